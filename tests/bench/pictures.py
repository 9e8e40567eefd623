"""Training on drawn pictures: two epochs, and one by a second run, with the encoder's features on disk or not.

Every run is the trainer's own command in a process of its own, on the embedded base. Encoders of timm have random
weights: what they compute is noise, and takes the time it takes. Heavy imports are made in these processes.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

# CLIP takes a CPU too long for 2,000.
PICTURES = {"tf_efficientnet_lite0": 2000, "vit_base_patch16_clip_224": 128, "vit_large_patch14_clip_224": 32}
BATCH, HELD_OUT = 32, 8
COLOURS = ("red", "green", "blue", "white", "yellow", "purple")


def run() -> None:
    print("| encoder | pictures | features on disk | epoch 1, s | epoch 2, s | second run, epoch 1, s | CPU, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for encoder, count in PICTURES.items():
        for on_disk in (False, True):
            measure(encoder, count, on_disk)


def measure(encoder: str, count: int, on_disk: bool) -> None:
    """Prints the row of one encoder; the CPU seconds are those of the first run, from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder), count)
        before = _cpu_seconds()
        first = _epochs(encoder, Path(folder), 2, on_disk)
        used = _cpu_seconds() - before
        # Without the disk the second run is as the first.
        second = _epochs(encoder, Path(folder), 1, on_disk)[0] if on_disk else first[0]
        figures = " | ".join(f"{seconds:.1f}" for seconds in (*first, second, used))
        print(f"| {encoder} | {count} | {'yes' if on_disk else 'no'} | {figures} |", flush=True)


def draw_pictures(folder: Path, count: int) -> None:
    """JPEG files of 640 x 480 with their captions: a disc on a background of colour noise."""
    import numpy as np
    from PIL import Image, ImageDraw

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


def _epochs(encoder: str, folder: Path, epochs: int, on_disk: bool) -> list[float]:
    """The seconds of each epoch of a run."""
    out = folder / f"run-of-{epochs}"
    environment = {
        **os.environ,
        "LLAMA_ADAPTER_FEATURES": str(folder / "features"),
        "LLAMA_ADAPTER_FEATURES_GB": "10" if on_disk else "0",
    }
    arguments = [encoder, str(folder / "captions.tsv"), str(epochs), str(out)]
    command = [sys.executable, "-m", "tests.bench.pictures", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds = [0.0, *(line["seconds"] for line in lines if "loss" in line)]
    ends = [round(epoch * (len(seconds) - 1) / epochs) for epoch in range(epochs + 1)]
    return [seconds[end] - seconds[start] for start, end in itertools.pairwise(ends)]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _train(encoder: str, data: str, epochs: str, out: str) -> int:
    import timm

    from train.__main__ import main

    create = timm.create_model
    timm.create_model = lambda name, pretrained=False, **options: create(name, **options)
    return main(
        [
            f"data={data}", "name=pictures", "template=raw", f"batch_size={BATCH}", f"held_out={HELD_OUT}",
            f"epochs={epochs}", "eval_every=1000000", f"vision.encoder={encoder}", "vision.projection=queries",
            "prompt_norm=true", "--device=cpu", f"--out={out}",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(_train(*sys.argv[1:]))
