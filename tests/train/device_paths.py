"""Runs paths of the trainer on the pretended device and prints, as JSON, what went wrong in which.

python -m tests.train.device_paths TINY_BASE FOLDER
"""

from __future__ import annotations

from tests.train.pretended_device import install

DEVICE = install()  # before anything decorates its functions with what this replaces

import json
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from PIL import Image

import adapter.base.llama
from adapter.base.embedded import ENCODER
from adapter.base.llama import load_base
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualFeatures
from train.__main__ import main
from train.config import TrainConfig
from train.input import keep
from train.job import Stopped, _Run
from train.loop import batch_prompts, new_adapter

COLOURS = ("red", "green", "blue", "white")
BASE, FOLDER = map(Path, sys.argv[1:])


def run(out: str, *more: str, data: str = "text.json", status: int = 0) -> None:
    words = [f"data={FOLDER / data}", "template=raw", "steps=2", "batch_size=4", "prompt_length=4", "eval_every=1"]
    words += ["held_out=2", "accumulate=2", "data.validation=0.25", f"--base={BASE}", f"--out={FOLDER / out}"]
    found = main([*words, *more])
    assert found == status, f"exit status {found}"


def text() -> None:
    run("text", "precision=fp16", "clip_norm=1", "gradient_checkpointing=true")


def pictures() -> None:
    run("global", "vision.projection=global", "disjoint=2", "tuning.norms=true", data="pictures.json")


def keep_text() -> None:
    with patch.object(keep, "_OWN_ROWS", 4), patch.object(keep, "_ROW_TOKENS", 16):
        run("keep", "keep=0.5")


def stop_and_resume() -> None:
    after_step = _Run._after_step

    def stop_after_step(run: _Run, held_out: Any, last: bool, stop: bool) -> None:
        after_step(run, held_out, last, stop=True)
        raise Stopped("stopped")

    with patch.object(_Run, "_after_step", stop_after_step):
        run("resumed", "average=0.9", status=130)
    run("resumed", "average=0.9", "--resume")


def control() -> None:
    """Has to fail: features on the CPU, given to an adapter that is not there."""
    base = load_base(str(BASE), "none", str(DEVICE), torch.float32)
    config = VisionConfig(ENCODER, feature_size=8, hidden=4)
    seeing = new_adapter(TrainConfig("x", steps=1, vision=config), base).to(DEVICE)
    batch_prompts(seeing, base.model, VisualFeatures(torch.randn(1, 8)), None)


def write_data() -> None:
    rows = []
    for i, colour in enumerate(COLOURS * 2):
        Image.new("RGB", (30, 30), colour).save(FOLDER / f"{i}.png")
        rows.append({"instruction": "what>", "output": colour, "image": f"{i}.png"})
        rows.append({"instruction": f"{i}>", "output": str(i)})
    (FOLDER / "text.json").write_text(json.dumps([row for row in rows if "image" not in row]))
    (FOLDER / "pictures.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_data()
    failures = {}
    # A pretended tensor has no address, by which the base's memory is counted.
    with patch.object(Accelerator, "device", DEVICE), patch.object(adapter.base.llama, "_memory", lambda _: 0):
        for path in (text, pictures, keep_text, stop_and_resume, control):
            try:
                path()
                failures[path.__name__] = ""
            except BaseException:
                failures[path.__name__] = traceback.format_exc()
    print("\n" + json.dumps(failures))
