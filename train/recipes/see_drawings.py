"""Captioned drawings for the `see` recipe: Tux Paint's stamps, emoji and icons in many styles, and pictures of them.

All come from packages of `data/see_packages.tsv`, which `see_pictures` fetches: stamps, a font of emoji, and npm's
@iconify-json/NAME. The images are read where they are and never copied. Knows images and captions; knows
nothing of models.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from adapter.errors import AdapterError
from train.recipes.see_names import emoji_name, renamed, see_words, stamp_name, with_article
from train.recipes.see_pictures import find_unpacked, packages

_STAMPS = "usr/share/tuxpaint/stamps"
_EMOJI_FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
# Names in @iconify-json/NAME: the first ones are emoji, the others icons in black.
EMOJI_SETS = (
    "twemoji",
    "fluent-emoji-flat",
    "noto-v1",
    "emojione",
    "emojione-v1",
    "streamline-emojis",
    "fxemoji",
)
ICON_SETS = ("game-icons", "lucide-lab", "temaki")
UNSEEN_STYLE = "fxemoji"  # held out as a whole
_EMOJI_SIZE = 109  # the only size that this bitmap font has
_ICON_SIZE = 192
_NEWEST_EMOJI = 15  # version of Unicode's emoji that the font knows
_HELD_OUT_PERCENT = 15
_PHOTOGRAPHIC, _DRAWN = 0.28, 0.5  # shares of a stamp's pixels that equal a neighbour: at most, at least


@dataclass(frozen=True)
class Drawing:
    """name: what it shows, with its article ("a red apple"). style: where it is from. draw: makes the image, RGBA."""

    name: str
    style: str
    held_out: bool
    draw: Callable[[], Image.Image]

    @cached_property
    def image(self) -> Image.Image:
        """Cropped to what is drawn."""
        return cropped(self.draw())

    @property
    def is_photo(self) -> bool | None:
        """Whether it is the cut-out of a photograph, None where that is hard to tell.

        By the share of pixels that are just as bright as the one beside or above: a photograph has noise.
        """
        if self.style != "stamp":
            return False
        small = self.image.copy()
        small.thumbnail((256, 256))
        pixels = np.asarray(small).astype(float)
        opaque, grey = pixels[..., 3] > 250, pixels[..., :3].mean(2)
        inner = opaque[1:, 1:] & opaque[:-1, 1:] & opaque[1:, :-1]
        step = np.minimum(abs(grey[1:, 1:] - grey[:-1, 1:]), abs(grey[1:, 1:] - grey[1:, :-1]))
        if inner.sum() < 500:
            return None
        flat = float((step[inner] < 0.7).mean())
        return True if flat <= _PHOTOGRAPHIC else False if flat >= _DRAWN else None


def drawings() -> Iterator[Drawing]:
    """Every captioned drawing. Raises AdapterError if a package is missing."""
    stamps, font = find_unpacked(_STAMPS), find_unpacked(_EMOJI_FONT)
    missing = [path for path, found in ((_STAMPS, stamps), (_EMOJI_FONT, font)) if found is None]
    missing += [name for name in (*EMOJI_SETS, *ICON_SETS) if not _icon_file(name).is_file()]
    if stamps is None or font is None or missing:
        raise AdapterError(
            f"Drawings are missing: {', '.join(missing)}. "
            "Fetch them with `python -m train.recipes.see_pictures drawings`."
        )
    yield from _stamps(stamps)
    yield from _noto(font)
    for style in EMOJI_SETS:
        yield from _icons(style, _emoji_by_slug())
    for style in ICON_SETS:
        yield from _icons(style, {name.replace(" ", "-"): with_article(name) for name in see_words("icons")})


def _is_held_out(key: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 100 < _HELD_OUT_PERCENT


def _stamps(folder: Path) -> Iterator[Drawing]:
    for path in sorted(folder.rglob("*.png")):
        caption = path.with_suffix(".txt")
        if "symbols" in path.parts or not caption.is_file():
            continue
        lines = caption.read_text(encoding="utf-8", errors="replace").splitlines()
        if name := renamed(stamp_name(lines[0])) if lines else "":
            yield Drawing(name, "stamp", _is_held_out(path.read_bytes()), partial(Image.open, path))


@cache
def _emoji_names() -> dict[str, str]:
    """The emoji that show a thing: characters and names."""
    import emoji

    names = {}
    for text, data in sorted(emoji.EMOJI_DATA.items()):
        if data["status"] != emoji.STATUS["fully_qualified"] or any(map(_is_modifier, text)):
            continue
        name = renamed(emoji_name(data["en"].strip(":").replace("_", " ")))
        if name and data.get("E", 0) <= _NEWEST_EMOJI:
            names[text] = name
    return names


def _is_modifier(char: str) -> bool:
    """Skin tones, letters of flags and keycaps."""
    return 0x1F3FB <= ord(char) <= 0x1F3FF or 0x1F1E6 <= ord(char) <= 0x1F1FF or ord(char) == 0x20E3


@cache
def _emoji_by_slug() -> dict[str, str]:
    """Names of emoji by what icon sets call them: "red-apple", in one set "redapple"."""
    import emoji

    slugs: dict[str, str] = {}
    for text, name in _emoji_names().items():
        slug = re.sub(r"[^a-z0-9]+", "-", emoji.EMOJI_DATA[text]["en"].lower()).strip("-")
        slugs |= {slug: name, slug.replace("-", ""): name}
    return slugs


def _noto(file: Path) -> Iterator[Drawing]:
    font = ImageFont.truetype(str(file), _EMOJI_SIZE)

    def draw(text: str) -> Image.Image:
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((8, 8), text, font=font, embedded_color=True)
        return canvas

    for text, name in _emoji_names().items():
        if font.getmask(text).getbbox():
            yield Drawing(name, "noto", _is_held_out(name.encode()), partial(draw, text))


def _icon_file(style: str) -> Path:
    return packages()[f"@iconify-json/{style}"].folder / "package" / "icons.json"


def _icons(style: str, names: dict[str, str]) -> Iterator[Drawing]:
    """The icons of a set that `names` has, by their names in the set."""
    icons = json.loads(_icon_file(style).read_text(encoding="utf-8"))
    for key, icon in icons["icons"].items():
        if not (name := names.get(key)):
            continue
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        held_out = style == UNSEEN_STYLE or _is_held_out(name.encode())
        yield Drawing(name, style, held_out, partial(draw_svg, svg, _ICON_SIZE))


def draw_svg(svg: str, width: int) -> Image.Image:
    """An SVG, `width` pixels wide."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def cropped(image: Image.Image) -> Image.Image:
    """What is drawn in an image, RGBA, without the transparent part around it."""
    image = image.convert("RGBA")
    return image.crop(image.getchannel("A").getbbox() or (0, 0, *image.size))


def plain(drawing: Drawing) -> Image.Image:
    """The drawing alone on white."""
    return on_white(drawing.image)


def on_white(image: Image.Image, size: int = 256) -> Image.Image:
    """An RGBA image on white, as large as fits with a small margin."""
    fitted = ImageOps.contain(image, (size - 16, size - 16))
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2), fitted)
    return canvas


def varied(drawing: Drawing, rng: random.Random, size: int = 256) -> Image.Image:
    """The drawing flipped, turned, scaled, shifted, with other brightness and contrast, on any background."""
    image = drawing.image
    if drawing.style in ICON_SETS:
        image = _dyed(image, _random_colour(rng))
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
    if rng.random() < 0.5:
        return Image.new("RGB", (size, size), _random_colour(rng))
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((size, size))
    one, other = (Image.new("RGB", (size, size), _random_colour(rng)) for _ in range(2))
    return Image.composite(one, other, ramp)


def _random_colour(rng: random.Random) -> tuple[int, int, int]:
    return (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))


def _dyed(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    dyed = Image.new("RGBA", image.size, colour)
    dyed.putalpha(image.getchannel("A"))
    return dyed


def photograph_like(cut_outs: list[Drawing], rng: random.Random, size: int = 256) -> Image.Image:
    """A picture with a photograph's texture all over: cut-outs of photographs before the inside of another one."""
    inside = rng.choice(cut_outs).image
    width, height = (max(8, int(side * rng.uniform(0.3, 0.6))) for side in inside.size)
    left, top = (inside.width - width) // 2, (inside.height - height) // 2
    canvas = Image.new("RGB", (width, height), _random_colour(rng))
    part = inside.crop((left, top, left + width, top + height))
    canvas.paste(part, (0, 0), part)
    canvas = canvas.resize((size, size), Image.Resampling.BICUBIC)
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.choice((0, 0, 2, 5))))
    for _ in range(rng.choice((0, 1, 1, 2))):
        side = int(size * rng.uniform(0.4, 1.0))
        image = ImageOps.contain(rng.choice(cut_outs).image, (side, side))
        canvas.paste(image, (rng.randint(0, size - image.width), rng.randint(0, size - image.height)), image)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.uniform(1, 8), (size, size, 3))
    noisy = Image.fromarray((np.asarray(canvas) + noise).clip(0, 255).astype(np.uint8))
    return ImageEnhance.Brightness(noisy).enhance(rng.uniform(0.5, 1.25))


COLOURS = ("black", "white", "grey", "brown", "red", "orange", "yellow", "green", "blue", "purple", "pink")
_HUES = (
    (15, "red"),
    (40, "orange"),
    (68, "yellow"),
    (165, "green"),
    (255, "blue"),
    (290, "purple"),
    (335, "pink"),
)


def colour_shares(image: Image.Image) -> np.ndarray:
    """The share of each of COLOURS in an RGB picture, or in the opaque part of an RGBA one."""
    small = image.resize((64, 64), Image.Resampling.BOX)
    opaque = np.asarray(small.getchannel("A")) > 128 if small.mode == "RGBA" else np.ones((64, 64), bool)
    rgb = np.asarray(small.convert("RGB"))[opaque].astype(float) / 255
    value, low = rgb.max(1), rgb.min(1)
    hue = np.asarray(small.convert("RGB").convert("HSV"))[opaque][:, 0] * (360 / 255)
    chroma = value - low
    names = np.full(len(rgb), "red", dtype="U6")
    for end, name in reversed(_HUES):
        names[hue < end] = name
    warm = (names == "red") | (names == "orange") | (names == "yellow")
    names[((names == "orange") | ((names == "yellow") & (hue < 50))) & (value < 0.65)] = "brown"
    names[(names == "red") & (value < 0.5)] = "brown"
    names[(names == "red") & (low > 0.45)] = "pink"
    names[warm & (chroma < 0.25) & (value < 0.7)] = "brown"
    pale = chroma < np.where(warm, 0.12, 0.1)
    names[pale] = "grey"
    names[pale & (value > 0.87)] = "white"
    names[value < 0.2] = "black"
    return np.array([(names == colour).mean() if len(names) else 0.0 for colour in COLOURS])
