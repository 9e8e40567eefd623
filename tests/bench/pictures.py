"""Training on drawn pictures: two epochs, and one by a second run, with the encoder's features on disk or not.

Figures are seconds of the clock and, in brackets, of the processor. Every run is the trainer's own command in a
process of its own, on the embedded base. Encoders of timm have random weights: what they compute is noise, and
takes the time it takes.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw

import train.__main__ as command_line
from tests.bench.programs import ProgramProcess, print_head, print_row
from train.input.feature_store import FOLDER_VARIABLE, SIZE_VARIABLE
from train.run_folder import MetricsWriter

# CLIP takes a CPU too long for 2,000.
PICTURES = {"tf_efficientnet_lite0": 2000, "vit_base_patch16_clip_224": 128, "vit_large_patch14_clip_224": 32}
BATCH, HELD_OUT, LAYERS = 32, 8, 8
COLOURS = ("red", "green", "blue", "white", "yellow", "purple")


def run() -> None:
    print_head("encoder", "pictures", "features on disk", "epoch 1", "epoch 2", "second run, epoch 1")
    for encoder, count in PICTURES.items():
        for on_disk in (False, True):
            measure(encoder, count, on_disk)


def measure(encoder: str, count: int, on_disk: bool) -> None:
    """Prints the row of one encoder."""
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder), count)
        epochs = _epochs(encoder, Path(folder), 2, on_disk)
        # Without the disk the second run is as the first.
        epochs += _epochs(encoder, Path(folder), 1, on_disk) if on_disk else epochs[:1]
    figures = [f"{clock:.1f} ({processor:.1f})" for clock, processor in epochs]
    print_row(encoder, count, "yes" if on_disk else "no", *figures)


def draw_pictures(folder: Path, count: int) -> None:
    """JPEG files of 640 x 480 with their captions: a disc on a background of colour noise."""
    lines = []
    for i in range(count):
        rng, noise = random.Random(i), np.random.default_rng(i)
        small = Image.fromarray(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        picture, colour = small.resize((640, 480), Image.Resampling.BICUBIC), rng.choice(COLOURS)
        x, y, r = rng.randint(100, 540), rng.randint(100, 380), rng.randint(30, 90)
        ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), fill=colour)
        picture.save(folder / f"{i}.jpg", quality=88)
        lines.append(f"{i}.jpg\ta {colour} disc\n")
    (folder / "captions.tsv").write_text("image\tcaption\n" + "".join(lines))


def _epochs(encoder: str, folder: Path, epochs: int, on_disk: bool) -> list[tuple[float, float]]:
    """The seconds of each epoch of a run: of the clock, and of the processor."""
    program = ProgramProcess("tests.bench.pictures", encoder, str(folder), "10" if on_disk else "0")
    times = program.ask(epochs)
    program.close()
    ends = [times[round(epoch * (len(times) - 1) / epochs)] for epoch in range(epochs + 1)]
    return [(clock - before, cpu - cpu_before) for (before, cpu_before), (clock, cpu) in itertools.pairwise(ends)]


def start(encoder: str, folder: str, gigabytes: str) -> Callable[[int], list[tuple[float, float]]]:
    """A process answers a number of epochs by the times of its steps."""
    os.environ |= {FOLDER_VARIABLE: f"{folder}/features", SIZE_VARIABLE: gigabytes}
    create, record = timm.create_model, MetricsWriter.record
    times: list[tuple[float, float]] = []

    def recorded(self: MetricsWriter, step: int, **values: float) -> None:
        if "loss" in values or not times:  # a step, or the evaluation before the first
            times.append((time.perf_counter(), time.process_time()))
        record(self, step, **values)

    def seeded(name: str, pretrained: bool = False, **options: Any) -> Any:
        torch.manual_seed(0)  # other weights have other features
        return create(name, **options)

    MetricsWriter.record = recorded  # type: ignore[method-assign]
    timm.create_model = seeded

    def train(epochs: int) -> list[tuple[float, float]]:
        command_line.main([
            f"data={folder}/captions.tsv", "name=pictures", "template=raw", f"batch_size={BATCH}",
            f"held_out={HELD_OUT}", f"epochs={epochs}", "eval_every=1000000", f"vision.encoder={encoder}",
            "vision.projection=queries", "prompt_norm=true", f"insertion_layers={LAYERS}", "--device=cpu",
            f"--out={folder}/run-of-{epochs}",
        ])  # fmt: skip
        return times

    return train
