"""Captioned drawings for the `see` recipe: Tux Paint's stamps, emoji and icons in many styles, and pictures of them.

`drawings.tsv` lists them with their names; the images are in packages that `pictures` fetches. They are read where they
are and never copied.
"""

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from adapter.errors import AdapterError
from train.recipes.sealed_sets import read_table
from train.recipes.see.concepts import FOLDER, Name
from train.recipes.see.pictures import find_unpacked, sealed

_STAMPS = "usr/share/tuxpaint/stamps"
_EMOJI_FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
# The other styles are names in @iconify-json/NAME. These are icons in black.
_BLACK = ("game-icons", "lucide-lab", "temaki")
_EMOJI_SIZE = 109  # the only size that this bitmap font has
_ICON_SIZE, _SEALED_SIZE = 192, 512  # of SVG drawings, in pixels
_SIZE = 256  # of the pictures that are made of drawings
_PHOTOGRAPHIC, _DRAWN = 0.28, 0.5  # shares of a stamp's pixels that equal a neighbour: at most, at least


@dataclass(frozen=True)
class Drawing:
    """name: what it shows, with its article ("a red apple"). style: where it is from. draw: makes the image, RGBA.

    concept: the thing itself ("an apple") and its kind.
    """

    name: str
    style: str
    held_out: bool
    draw: Callable[[], Image.Image]
    concept: Name

    @cached_property
    def image(self) -> Image.Image:
        """RGBA, cropped to what is drawn."""
        image = self.draw().convert("RGBA")
        return image.crop(image.getchannel("A").getbbox() or (0, 0, *image.size))

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


def drawings(held_out: bool | None = None) -> list[Drawing]:
    """The captioned drawings that are trained on or held out, None: both. Images are read when they are needed."""
    return [
        Drawing(name, style, bool(int(held)), partial(_draw, style, key), Name(concept, kind))
        for style, key, name, concept, kind, held in read_table(FOLDER / "drawings.tsv")
        if held_out in (None, bool(int(held)))
    ]


def sealed_drawings() -> list[Drawing]:
    """200 drawings in two styles that nothing is trained on."""
    files = sealed("drawings")
    return [Drawing(name, file.parent.name, True, partial(_open, file), Name("")) for file, name in files]


def _open(file: Path) -> Image.Image:
    return _draw_svg(file.read_text(encoding="utf-8"), _SEALED_SIZE) if file.suffix == ".svg" else Image.open(file)


def _draw(style: str, key: str) -> Image.Image:
    """The drawing of a style: a stamp's file, an emoji of the font or an icon of a set. Raises AdapterError if the
    package is missing.
    """
    if style == "stamp":
        return Image.open(_unpacked(_STAMPS) / key)
    if style == "noto":
        canvas = Image.new("RGBA", (160, 160))
        font = ImageFont.truetype(str(_unpacked(_EMOJI_FONT)), _EMOJI_SIZE)
        ImageDraw.Draw(canvas).text((8, 8), key, font=font, embedded_color=True)
        return canvas
    icons = _icons(style)
    icon = icons["icons"][key]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
    return _draw_svg(svg, _ICON_SIZE)


@cache
def _icons(style: str) -> Any:
    return json.loads(_unpacked(f"npm/@iconify-json/{style}/package/icons.json").read_text(encoding="utf-8"))


def _unpacked(path: str) -> Path:
    found = find_unpacked(path)
    if not found.exists():
        raise AdapterError(f"Drawings are missing: {path}. Fetch them with `make pictures ARGS=drawings`.")
    return found


def _draw_svg(svg: str, width: int) -> Image.Image:
    """An SVG, `width` pixels wide."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def plain(drawing: Drawing) -> Image.Image:
    """The drawing alone on white, as large as fits with a small margin."""
    fitted = ImageOps.contain(drawing.image, (_SIZE - 16, _SIZE - 16))
    canvas = Image.new("RGB", (_SIZE, _SIZE), "white")
    canvas.paste(fitted, ((_SIZE - fitted.width) // 2, (_SIZE - fitted.height) // 2), fitted)
    return canvas


def varied(drawing: Drawing, rng: random.Random) -> Image.Image:
    """The drawing flipped, turned, scaled, shifted, with other brightness and contrast, on any background."""
    image = drawing.image
    if drawing.style in _BLACK:
        dyed = Image.new("RGBA", image.size, _random_colour(rng))
        dyed.putalpha(image.getchannel("A"))
        image = dyed
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    image = ImageOps.contain(image, (_SIZE, _SIZE))
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)
    side = int(_SIZE * rng.uniform(0.55, 1.0))
    image = ImageOps.contain(image, (side, side))
    canvas = _background(rng)
    canvas.paste(image, (rng.randint(0, _SIZE - image.width), rng.randint(0, _SIZE - image.height)), image)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        canvas = change(canvas).enhance(rng.uniform(0.75, 1.25))
    return canvas


def _background(rng: random.Random) -> Image.Image:
    if rng.random() < 0.5:
        return Image.new("RGB", (_SIZE, _SIZE), "white")
    if rng.random() < 0.5:
        return Image.new("RGB", (_SIZE, _SIZE), _random_colour(rng))
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((_SIZE, _SIZE))
    one, other = (Image.new("RGB", (_SIZE, _SIZE), _random_colour(rng)) for _ in range(2))
    return Image.composite(one, other, ramp)


def _random_colour(rng: random.Random) -> tuple[int, int, int]:
    return (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))


def photograph_like(cut_outs: list[Drawing], rng: random.Random) -> Image.Image:
    """A picture with a photograph's texture all over: cut-outs of photographs before the inside of another one."""
    inside = rng.choice(cut_outs).image
    width, height = (max(8, int(side * rng.uniform(0.3, 0.6))) for side in inside.size)
    left, top = (inside.width - width) // 2, (inside.height - height) // 2
    canvas = Image.new("RGB", (width, height), _random_colour(rng))
    part = inside.crop((left, top, left + width, top + height))
    canvas.paste(part, (0, 0), part)
    canvas = canvas.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.choice((0, 0, 2, 5))))
    for _ in range(rng.choice((0, 1, 1, 2))):
        side = int(_SIZE * rng.uniform(0.4, 1.0))
        image = ImageOps.contain(rng.choice(cut_outs).image, (side, side))
        canvas.paste(image, (rng.randint(0, _SIZE - image.width), rng.randint(0, _SIZE - image.height)), image)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.uniform(1, 8), (_SIZE, _SIZE, 3))
    noisy = Image.fromarray((np.asarray(canvas) + noise).clip(0, 255).astype(np.uint8))
    return ImageEnhance.Brightness(noisy).enhance(rng.uniform(0.5, 1.25))


COLOURS = ("black", "white", "grey", "brown", "red", "orange", "yellow", "green", "blue", "purple", "pink")
# Where each hue ends, in degrees; behind the last one it is red again.
_HUES = {"red": 15, "orange": 40, "yellow": 68, "green": 165, "blue": 255, "purple": 290, "pink": 335}


def colour_shares(image: Image.Image) -> np.ndarray:
    """The share of each of COLOURS in an RGB picture, or in the opaque part of an RGBA one."""
    small = image.resize((64, 64), Image.Resampling.BOX)
    opaque = np.asarray(small.getchannel("A")) > 128 if small.mode == "RGBA" else np.ones((64, 64), bool)
    rgb = np.asarray(small.convert("RGB"))[opaque].astype(float) / 255
    value, low = rgb.max(1), rgb.min(1)
    hue = np.asarray(small.convert("RGB").convert("HSV"))[opaque][:, 0] * (360 / 255)
    chroma = value - low
    names = np.array([*_HUES, "red"])[np.digitize(hue, [*_HUES.values()])]
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
