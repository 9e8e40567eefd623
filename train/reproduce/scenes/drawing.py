"""Pictures of simple scenes: a place and the things in it. Knows Pillow; knows nothing of questions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 192  # pixels, square
_FINE = 2  # factor by which it is drawn larger, for smooth edges

COLORS = {
    "blue": (32, 70, 200),
    "green": (36, 150, 52),
    "purple": (136, 44, 168),
    "red": (208, 32, 38),
    "yellow": (245, 214, 20),
}
_OUTLINE = (70, 70, 74)

Paint = tuple[int, int, int]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Thing:
    """One drawn thing. x, y: its centre, size: its width and height, all as shares of the picture's side."""

    kind: str
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """A place and the things in it. seed: of details without meaning, such as flakes and stars."""

    place: str
    things: tuple[Thing, ...]
    seed: int


class _Pen:
    """Draws on a square of the canvas, in coordinates from 0 to 1."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: float, top: float, side: float) -> None:
        self._draw, self._left, self._top, self._side = draw, left, top, side

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self._left + x * self._side, self._top + y * self._side

    def polygon(self, points: Points, fill: Paint) -> None:
        self._draw.polygon([self._at(*p) for p in points], fill=fill, outline=_OUTLINE, width=_FINE)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Paint) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def disc(self, x: float, y: float, rx: float, ry: float, fill: Paint) -> None:
        box = [*self._at(x - rx, y - ry), *self._at(x + rx, y + ry)]
        self._draw.ellipse(box, fill=fill, outline=_OUTLINE, width=_FINE)

    def line(self, x0: float, y0: float, x1: float, y1: float, paint: Paint, width: float) -> None:
        self._draw.line([self._at(x0, y0), self._at(x1, y1)], fill=paint, width=max(1, round(width * self._side)))


_WOOD, _PALE, _DARK, _LEAF, _GOLD = (120, 80, 44), (236, 236, 230), (48, 48, 52), (70, 140, 60), (250, 200, 60)


def _hammer(pen: _Pen, paint: Paint) -> None:
    pen.box(0.42, 0.3, 0.58, 1.0, _WOOD)
    pen.polygon([(0.05, 0.3), (0.2, 0.06), (0.85, 0.06), (0.85, 0.36), (0.05, 0.36)], paint)
    pen.box(0.85, 0.02, 0.98, 0.4, paint)


def _saw(pen: _Pen, paint: Paint) -> None:
    teeth = [(x / 14, 0.74 - 0.08 * (x % 2)) for x in range(10)]
    pen.polygon([(0.0, 0.62), (0.66, 0.3), (0.66, 0.7), *reversed(teeth)], paint)
    pen.disc(0.8, 0.5, 0.2, 0.26, _WOOD)
    pen.disc(0.8, 0.5, 0.09, 0.13, _PALE)


def _tree(pen: _Pen, paint: Paint) -> None:
    pen.box(0.43, 0.6, 0.57, 1.0, _WOOD)
    for x, y in ((0.3, 0.45), (0.7, 0.45), (0.5, 0.25), (0.5, 0.5)):
        pen.disc(x, y, 0.25, 0.24, paint)


def _car(pen: _Pen, paint: Paint) -> None:
    pen.polygon([(0.22, 0.5), (0.34, 0.26), (0.7, 0.26), (0.84, 0.5)], paint)
    pen.polygon([(0.31, 0.48), (0.38, 0.31), (0.5, 0.31), (0.5, 0.48)], _PALE)
    pen.polygon([(0.54, 0.48), (0.54, 0.31), (0.67, 0.31), (0.75, 0.48)], _PALE)
    pen.box(0.0, 0.48, 1.0, 0.74, paint)
    for x in (0.23, 0.77):
        pen.disc(x, 0.75, 0.13, 0.13, _DARK)
        pen.disc(x, 0.75, 0.05, 0.05, _PALE)


def _fish(pen: _Pen, paint: Paint) -> None:
    pen.polygon([(0.68, 0.5), (1.0, 0.22), (1.0, 0.78)], paint)
    pen.disc(0.4, 0.5, 0.4, 0.27, paint)
    pen.polygon([(0.38, 0.45), (0.56, 0.58), (0.36, 0.62)], _PALE)
    pen.disc(0.18, 0.42, 0.05, 0.05, _PALE)
    pen.disc(0.18, 0.42, 0.02, 0.02, _DARK)


def _boat(pen: _Pen, paint: Paint) -> None:
    pen.line(0.5, 0.02, 0.5, 0.72, _WOOD, 0.05)
    pen.polygon([(0.54, 0.05), (0.54, 0.62), (0.95, 0.62)], _PALE)
    pen.polygon([(0.46, 0.15), (0.46, 0.62), (0.14, 0.62)], _PALE)
    pen.polygon([(0.0, 0.7), (1.0, 0.7), (0.8, 0.98), (0.2, 0.98)], paint)


def _bird(pen: _Pen, paint: Paint) -> None:
    pen.line(0.45, 0.75, 0.45, 0.98, _WOOD, 0.04)
    pen.line(0.55, 0.75, 0.55, 0.98, _WOOD, 0.04)
    pen.polygon([(0.66, 0.5), (1.0, 0.36), (0.94, 0.62)], paint)
    pen.disc(0.5, 0.58, 0.3, 0.22, paint)
    pen.disc(0.28, 0.32, 0.19, 0.18, paint)
    pen.polygon([(0.11, 0.27), (0.11, 0.39), (-0.06, 0.34)], _GOLD)
    pen.polygon([(0.42, 0.5), (0.74, 0.52), (0.56, 0.74)], _PALE)
    pen.disc(0.24, 0.28, 0.03, 0.03, _DARK)


def _flower(pen: _Pen, paint: Paint) -> None:
    pen.line(0.5, 0.4, 0.5, 1.0, _LEAF, 0.06)
    pen.disc(0.64, 0.8, 0.13, 0.06, _LEAF)
    for i in range(6):
        angle = math.pi * i / 3
        pen.disc(0.5 + 0.2 * math.cos(angle), 0.34 + 0.2 * math.sin(angle), 0.14, 0.14, paint)
    pen.disc(0.5, 0.34, 0.11, 0.11, _GOLD)


THINGS: dict[str, Callable[[_Pen, Paint], None]] = {
    "bird": _bird,
    "boat": _boat,
    "car": _car,
    "fish": _fish,
    "flower": _flower,
    "hammer": _hammer,
    "saw": _saw,
    "tree": _tree,
}


def _dots(
    draw: ImageDraw.ImageDraw, rng: random.Random, count: int, lowest: float, radius: float, fill: Paint
) -> None:
    side = SIZE * _FINE
    for _ in range(count):
        x, y, r = rng.random() * side, rng.random() * side * lowest, radius * side * rng.uniform(0.6, 1.3)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)


def _bands(draw: ImageDraw.ImageDraw, *bands: tuple[float, Paint]) -> None:
    """Horizontal bands from the given heights downwards."""
    side = SIZE * _FINE
    for top, fill in bands:
        draw.rectangle([0, top * side, side, side], fill=fill)


def _meadow(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (0, (170, 214, 245)), (0.55, (150, 205, 120)))
    side = SIZE * _FINE
    for _ in range(60):
        x, y = rng.random() * side, rng.uniform(0.58, 1.0) * side
        draw.line([x, y, x + rng.uniform(-4, 4), y - 0.04 * side], fill=(96, 160, 80), width=_FINE)


def _beach(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (0, (190, 226, 246)), (0.35, (90, 170, 205)), (0.6, (238, 218, 170)))
    side = SIZE * _FINE
    for i in range(6):
        x, y = (i + rng.random()) / 6 * side, rng.uniform(0.4, 0.56) * side
        draw.arc([x, y, x + 0.12 * side, y + 0.05 * side], 180, 360, fill=(225, 242, 250), width=_FINE * 2)


def _snow(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (0, (196, 206, 216)), (0.62, (240, 244, 248)))
    _dots(draw, rng, 70, 1.0, 0.009, (255, 255, 255))


def _night(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (0, (34, 40, 84)), (0.7, (60, 64, 96)))
    _dots(draw, rng, 40, 0.68, 0.005, (250, 246, 200))
    side = SIZE * _FINE
    x = rng.choice((0.14, 0.72)) * side
    draw.ellipse([x, 0.13 * side, x + 0.13 * side, 0.26 * side], fill=(244, 238, 190))


PLACES: dict[str, Callable[[ImageDraw.ImageDraw, random.Random], None]] = {
    "beach": _beach,
    "meadow": _meadow,
    "night": _night,
    "snow": _snow,
}


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of SIZE x SIZE."""
    side = SIZE * _FINE
    image = Image.new("RGB", (side, side))
    canvas = ImageDraw.Draw(image)
    PLACES[scene.place](canvas, random.Random(scene.seed))
    for thing in scene.things:
        half = thing.size / 2
        pen = _Pen(canvas, (thing.x - half) * side, (thing.y - half) * side, thing.size * side)
        THINGS[thing.kind](pen, COLORS[thing.color])
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
