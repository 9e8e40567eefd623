"""Captioned drawings for the `see` recipe: Tux Paint's stamps and Noto's colour emoji, and pictures made of them.

Both come from Debian packages (tuxpaint-stamps-default, fonts-noto-color-emoji); the images are read where they are
installed and never copied. Knows images and captions; knows nothing of models.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from train.recipes.see_names import emoji_name, renamed, stamp_name

STAMPS = Path("/usr/share/tuxpaint/stamps")
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_EMOJI_SIZE = 109  # the only size that this bitmap font has
_NEWEST_EMOJI = 15  # version of Unicode's emoji that the font knows
_HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Drawing:
    """`name`: what it shows, with its article ("a red apple"); `image`: RGBA, cropped to what is drawn."""

    name: str
    image: Image.Image
    held_out: bool


def drawings() -> list[Drawing]:
    """Every captioned drawing on this machine. Raises FileNotFoundError if neither package is installed."""
    found = [*_stamps(), *_emoji()]
    if not found:
        raise FileNotFoundError(
            "No captioned drawings: install the Debian packages tuxpaint-stamps-default and fonts-noto-color-emoji."
        )
    return found


def _is_held_out(key: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 100 < _HELD_OUT_PERCENT


def _stamps() -> Iterator[Drawing]:
    for path in sorted(STAMPS.rglob("*.png")):
        caption = path.with_suffix(".txt")
        if "symbols" in path.parts or not caption.is_file():
            continue
        lines = caption.read_text(encoding="utf-8", errors="replace").splitlines()
        if name := renamed(stamp_name(lines[0])) if lines else "":
            yield Drawing(name, _crop(Image.open(path)), _is_held_out(path.read_bytes()))


def _emoji() -> Iterator[Drawing]:
    if not EMOJI_FONT.is_file():
        return
    import emoji

    font = ImageFont.truetype(str(EMOJI_FONT), _EMOJI_SIZE)
    for text, data in sorted(emoji.EMOJI_DATA.items()):
        if data["status"] != emoji.STATUS["fully_qualified"] or any(map(_is_modifier, text)):
            continue
        name = renamed(emoji_name(data["en"].strip(":").replace("_", " ")))
        if not name or data.get("E", 0) > _NEWEST_EMOJI:
            continue
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((8, 8), text, font=font, embedded_color=True)
        if canvas.getbbox():
            yield Drawing(name, _crop(canvas), _is_held_out(name.encode()))


def _is_modifier(char: str) -> bool:
    """Skin tones, letters of flags and keycaps."""
    return 0x1F3FB <= ord(char) <= 0x1F3FF or 0x1F1E6 <= ord(char) <= 0x1F1FF or ord(char) == 0x20E3


def _crop(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return image.crop(image.getchannel("A").getbbox() or (0, 0, *image.size))


def plain(drawing: Drawing, size: int = 256) -> Image.Image:
    """The drawing alone on white, as large as fits with a small margin."""
    fitted = ImageOps.contain(drawing.image, (size - 16, size - 16))
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2), fitted)
    return canvas


def varied(drawing: Drawing, rng: random.Random, size: int = 256) -> Image.Image:
    """The drawing flipped, turned, scaled, shifted, with other brightness and contrast, on any background."""
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
