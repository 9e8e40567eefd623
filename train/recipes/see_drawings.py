"""Captioned drawings for the `see` recipe: Tux Paint's stamps and Noto's colour emoji, and pictures made of them.

Both come from Debian packages (tuxpaint-stamps-default, fonts-noto-color-emoji); the images are read where they are
installed and never copied. Knows images and captions; knows nothing of models.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

STAMPS = Path("/usr/share/tuxpaint/stamps")
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_EMOJI_SIZE = 109  # the only size that this bitmap font has
HELD_OUT_SHARE = 15  # per cent

# Emoji that show a sign, a letter, a number or a variant of another picture.
_SIGNS = re.compile(
    r"button|arrow|\bsign\b|symbol|o’clock|thirty|\bsquare\b|circle|diamond|\binput|blood type|Japanese|zodiac|medium|mark\b"
    r"|\bfamily|^(man|woman|men|women)\b.|^person (bald|beard|red|white|blond|curly|in manual|in motorized|gesturing)|facing right"
    r"|couple|kiss |heart (man|woman)|people|keycap|speech|anger|bubble$|trade|registered|copyright|room$|exclamation|index|suit$"
    r"|asterisk|star$.*pointed|cross$|infinity|multiply|plus$|minus$|divide|hundred|loop|dash|khanda|^om$|yin|wheel of|fleur"
    r"|trident|antenna bars|vibration|mobile phone (off|with)|^no |prohibited|restroom|closet|passport|customs|claim|left luggage"
    r"|dotted|part alternation|repeat|shuffle|track|playback|record|eject|check|ballot|currency|chart|^ON|^SOON|^BACK|^END|^TOP"
    r"|SOS|ZZZ|ATM|recycl|triangular|globe with|linked|outbox|inbox|e-mail|incoming|level slider|control knobs|Mx |point|fist|thumb"
    r"|pushing|wards hand|splayed|raised|palm|call me|hand with|biohazard|radioactive|warning|hash|sparkle$|litter|potable|medical"
    r"|splatter|collision|dizzy|dashing|sweat droplets|gender|dotted|alembic|nazar|hamsa|ledger|merperson|face (in|with(out)? (mouth|open|diag|cross|bags|peek|spiral|symb))"
)
_ZODIAC = frozenset(
    "Aries Taurus Gemini Cancer Leo Virgo Libra Scorpio Sagittarius Capricorn Aquarius Pisces Ophiuchus".split()
)
# Names that take no article: mass nouns, and plurals but for the singulars that end in s.
_UNCOUNTED = re.compile(
    r"(s|\b(rice|bread|fire|water|fog|snow|rain|broccoli|garlic|butter|bacon|salt|sake|soap|coral|wood|ice|yarn|popcorn|sushi|corn|"
    r"spaghetti|confetti|knitting|tea|milk|food|trash|hair|coffee|poo|cream|tennis|lacrosse|hockey|badminton|ginger|custard|fondue|"
    r"lettuce|lightning|money|oil|paper|thread|bowling|golf|Claus|luggage|lipstick|brain|flatbread|falafel|bedding|salad|herb))$"
)
_COUNTED_S = re.compile(
    r"(bus|cactus|octopus|glass|lens|compass|dress|rhinoceros|hippopotamus|cross|abacus|fortress|lotus|princess|hibiscus|mantis|"
    r"platypus|iris|moss)$"
)
# Captions and names that are no plain name of what is drawn, and what replaces some of them ("" drops it).
_RENAMED = {
    "a breast-feeding": "a mother with a baby", "a camping": "a tent", "a building construction": "a building site",
    "a construction": "a building site", "a cooking": "a frying pan with an egg", "a horse racing": "a jockey on a horse",
    "a ping pong": "a table tennis bat and ball", "badminton": "a badminton racket", "lacrosse": "a lacrosse stick",
    "field hockey": "a hockey stick", "ice hockey": "an ice hockey stick", "bowling": "a bowling ball and pins",
    "a tennis": "a tennis racket", "a dna": "a DNA strand", "a dvd": "a DVD", "a mate": "a cup of mate", "an oden": "oden on a stick",
    "a mount fuji": "Mount Fuji", "a pool 8 ball": "a black pool ball", "a middle finger": "a hand gesture", "a wedding": "a church with a heart",
    "an ewe": "a sheep", "a link": "a chain link", "a bug": "a caterpillar", "a classical building": "a classical building with columns",
    "a doughnut": "a doughnut", "a big eared rabbit": "a rabbit with big ears", "a mountaingoat": "a mountain goat", "an hippopotamus": "a hippopotamus",
    "a european bear": "a European bear", "a jupiter": "the planet Jupiter", "a mercury": "the planet Mercury", "a saturn": "the planet Saturn",
    "a neptune": "the planet Neptune", "mars": "the planet Mars", "uranus": "the planet Uranus", "venus": "the planet Venus",
    "santa Claus": "Santa Claus", "an american football": "an American football", "a Statue of Liberty": "the Statue of Liberty",
    "a Tokyo tower": "Tokyo Tower", "a rolling on the floor laughing": "a laughing face", "a star-struck": "a face with stars for eyes",
    "a ripe": "a tomato", "a tux": "Tux the penguin", "a tux and spider": "a penguin and a spider", "an eddie the Helicopter": "a helicopter",
    "a tux the penguin in a farm tractor": "a penguin in a farm tractor", "tux Airways": "an airplane", "tankers carry bulk liquids": "a tank wagon",
    "a high voltage": "a lightning bolt", "an empty roadsign to draw on": "an empty road sign", "a dead end ahead": "a road sign",
    "a roundabout ahead": "a road sign", "a school ahead": "a road sign", "crossroads": "a road sign", "a t-intersection": "a road sign",
    "a george the blue groper": "a blue fish", "a laser Printer": "a laser printer", "an inkjet Printer": "an inkjet printer",
    "a grandma’s old rag doll": "an old rag doll", "an edward Bear": "a teddy bear", "a digital thermometer for taking your temperature": "a digital thermometer",
    "a dumper": "a dumper truck", "an important part of Hanukkah": "a menorah", "a ginger 'root": "a ginger root", "an optical disk": "a compact disc",
    "a first quarter moon": "a half moon", "a last quarter moon": "a half moon", "a knight’s helmet": "a knight's helmet", "penguins": "two penguins",
    "a pluto and Charon": "", "a lens flare": "", "an information": "", "a Wales": "", "a Scotland": "", "an England": "", "Wales": "", "wireless": "",
    "a foggy": "", "a love-you gesture": "a hand gesture", "a vulcan salute": "a hand with spread fingers", "a victory hand": "a hand with two raised fingers",
    "a bell with slash": "a crossed-out bell", "performing arts": "theatre masks", "a locked with key": "a padlock with a key", "a locked with pen": "a padlock with a pen",
    "an appooppan Thaadi": "a milkweed plant", "an anthurium": "a red anthurium flower", "an adenium": "a desert rose", "a balsam": "a balsam flower",
    "a xanthia": "a moth", "the fountain of youth": "a fountain", "the caboose": "a caboose", "a national park": "a national park landscape",
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """`name`: what it shows, with its article ("a red apple"); `image`: RGBA, cut to what is drawn."""

    name: str
    image: Image.Image
    held_out: bool


def drawings() -> list[Drawing]:
    """Every captioned drawing on this machine; those of missing packages are left out."""
    found = [*_stamps(), *_emoji()]
    if not found:
        raise FileNotFoundError(
            "No captioned drawings: install the Debian packages tuxpaint-stamps-default and fonts-noto-color-emoji."
        )
    return found


def _held_out(key: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(key).digest()[:4]) % 100 < HELD_OUT_SHARE


def _stamps() -> list[Drawing]:
    found = []
    for path in sorted(STAMPS.rglob("*.png")):
        caption = path.with_suffix(".txt")
        if "symbols" in path.parts or not caption.is_file():
            continue
        lines = caption.read_text(encoding="utf-8", errors="replace").splitlines()
        name = stamp_name(lines[0]) if lines else ""
        name = _RENAMED.get(name, name)
        if name:
            found.append(Drawing(name, _cut(Image.open(path)), _held_out(path.read_bytes())))
    return found


def stamp_name(caption: str) -> str:
    """The thing a stamp's first line names, with its article; empty if the line is no plain name."""
    text = re.split(r"[.!?:;—(,]|  | - | is | are | was | used | lets | resembles | says ", caption.strip())[
        0
    ].strip(" “”\"'")
    text = re.sub(r"[“”\"]", "", text)
    words = text.split()
    if not 1 <= len(words) <= 7 or (
        words[0].lower()
        in (
            "eat",
            "say",
            "we",
            "this",
            "with",
            "remember",
            "no",
            "our",
            "an",
            "another",
            "it's",
            "–",
            "put",
            "uh",
            "boom",
            "down",
            "enter",
            "hei",
            "gimel",
            "nun",
            "shin",
            "left",
            "right",
        )
        and words[0] != "An"
    ):
        return ""
    if words[0] in ("A", "An", "The", "Some", "Two"):
        return words[0].lower() + text[len(words[0]) :]
    return with_article(text if words[0][1:] != words[0][1:].lower() else text[0].lower() + text[1:])


def with_article(name: str) -> str:
    """A bare name with "a", "an", or nothing where it takes none."""
    head = re.split(r" (?:of|with|in|on|at|for|and|without|behind) ", name)[0]
    if _UNCOUNTED.search(head) and not _COUNTED_S.search(head):
        return name
    sounds_vowel = re.match(r"[aeiouAEIOU]|hour|x-ray|F-22|M-3", name) and not re.match(
        r"uni|euro|one|UK|ukulele|US", name
    )
    return ("an " if sounds_vowel else "a ") + name


def _emoji() -> list[Drawing]:
    if not EMOJI_FONT.is_file():
        return []
    import emoji

    font = ImageFont.truetype(str(EMOJI_FONT), _EMOJI_SIZE)
    found = []
    for text, data in sorted(emoji.EMOJI_DATA.items()):
        name = data["en"].strip(":").replace("_", " ")
        modified = any(
            0x1F3FB <= ord(c) <= 0x1F3FF or 0x1F1E6 <= ord(c) <= 0x1F1FF or ord(c) == 0x20E3 for c in text
        )
        if data["status"] != emoji.STATUS["fully_qualified"] or modified or _SIGNS.search(name) or name in _ZODIAC:
            continue
        if data.get("E", 0) > 15:  # newer than the font
            continue
        name = with_article(_emoji_name(name))
        name = _RENAMED.get(name, name)
        if not name:
            continue
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((8, 8), text, font=font, embedded_color=True)
        if canvas.getbbox():
            found.append(Drawing(name, _cut(canvas), _held_out(name.encode())))
    return found


def _emoji_name(name: str) -> str:
    name = re.sub(r"^(oncoming|articulated) ", "", name)
    name = {"ewe": "sheep", "locked": "closed padlock", "unlocked": "open padlock"}.get(name, name)
    return re.sub(r" (not )?done$", "", name)


def _cut(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return image.crop(image.getchannel("A").getbbox() or (0, 0, *image.size))


def plain(drawing: Drawing, size: int = 256) -> Image.Image:
    """The drawing alone on white, as large as fits with a small margin."""
    fitted = ImageOps.contain(drawing.image, (size - 16, size - 16))
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2), fitted)
    return canvas


def varied(drawing: Drawing, rng: random.Random, size: int = 256) -> Image.Image:
    """The drawing flipped, turned, scaled, shifted, lit differently, on a background of any colour."""
    image = drawing.image
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    image = ImageOps.contain(image, (size, size))
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)
    side = int(size * rng.uniform(0.55, 1.0))
    image = ImageOps.contain(image, (side, side))
    canvas = _background(rng, size)
    canvas.paste(image, (rng.randint(0, size - image.width), rng.randint(0, size - image.height)), image)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        canvas = change(canvas).enhance(rng.uniform(0.75, 1.25))
    return canvas


def _background(rng: random.Random, size: int) -> Image.Image:
    if rng.random() < 0.5:
        return Image.new("RGB", (size, size), "white")

    def colour() -> tuple[int, int, int]:
        return (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))

    if rng.random() < 0.5:
        return Image.new("RGB", (size, size), colour())
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((size, size))
    return Image.composite(
        Image.new("RGB", (size, size), colour()), Image.new("RGB", (size, size), colour()), ramp
    )
