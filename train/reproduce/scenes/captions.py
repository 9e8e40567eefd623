"""Captioned pictures of single things: `python -m train.reproduce.scenes.captions FOLDER` writes them.

Knows scenes and files; knows nothing of models.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from train.reproduce.scenes.drawing import COLORS, PLACES, THINGS, Scene, Thing, draw

T = TypeVar("T")
WHERE = {"beach": "on the beach", "meadow": "in a meadow", "night": "at night", "snow": "in the snow"}
_PALETTE = 48  # colours of a written picture


def captioned_scenes(count: int, seed: int) -> list[tuple[Scene, str]]:
    """`count` scenes of one large thing each, with their captions, which name the kind of thing and the place.

    Every kind is in every place before any of these pairs comes twice. Captions name no colour: from a few dozen
    pictures an adapter learns the colours by heart, and guesses those of others.
    """
    rng = random.Random(seed)
    pairs = _deal(list(itertools.product(THINGS, PLACES)), count, rng)
    found = []
    for (kind, place), color in zip(pairs, _deal(list(COLORS), count, rng), strict=True):
        x, y, size = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), rng.uniform(0.5, 0.64)
        scene = Scene(place, (Thing(kind, color, x, y, size),), rng.randrange(2**31))
        found.append((scene, f"A {kind} {WHERE[place]}."))
    return found


def _deal(pool: list[T], count: int, rng: random.Random) -> list[T]:
    """`count` entries: the whole pool in random order before any entry comes again."""
    dealt: list[T] = []
    while len(dealt) < count:
        dealt += rng.sample(pool, len(pool))
    return dealt[:count]


def small_picture(scene: Scene) -> Image.Image:
    """The picture of a scene in few colours, which makes its file small."""
    return draw(scene).quantize(_PALETTE, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def write_captioned(folder: Path, count: int, seed: int) -> None:
    """Writes NUMBER.png and NUMBER.txt for each scene. The same seed gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (scene, caption) in enumerate(captioned_scenes(count, seed), 1):
        small_picture(scene).save(folder / f"{number:02}.png", optimize=True)
        (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m train.reproduce.scenes.captions", description="Draw captioned pictures to learn from."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    write_captioned(args.folder, args.count, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
