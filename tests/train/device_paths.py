"""Runs each path of the trainer on the pretended device and prints, as JSON, what went wrong in which.

python -m tests.train.device_paths TINY_BASE FOLDER
"""

from __future__ import annotations

from tests.train.pretended_device import install

DEVICE = install()  # before anything decorates its functions with what this replaces

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw

import adapter.base.llama
import train.__main__
from adapter.base.embedded import ENCODER
from adapter.base.encoder import load_encoder
from adapter.base.llama import load_base
from adapter.base.template import Message
from adapter.method.checkpoint import load_adapter
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualFeatures
from tests.train.parrot import parrot
from train.__main__ import main
from train.config import TrainConfig
from train.evaluate.answerer import Answerer
from train.input import keep
from train.input.examples import Example
from train.job import Stopped, _Run
from train.loop import batch_prompts, new_adapter
from train.recipes import extract, pirate, see, see_concepts
from train.recipes.see_drawings import UNSEEN_STYLE, Drawing, varied

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "orange", "brown")
SHAPES = ("ball", "box", "cat", "dog", "egg", "fish", "hat", "house", "key", "tree")


class Paths:
    """The paths, by the names of its methods."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder
        rows = []
        for i, colour in enumerate(COLOURS):
            Image.new("RGB", (30, 30), colour).save(folder / f"{colour}.png")
            rows.append({"instruction": "what>", "output": colour, "image": f"{colour}.png"})
            rows.append({"instruction": f"{i}>", "output": str(i)})
        (folder / "text.json").write_text(json.dumps([row for row in rows if "image" not in row]))
        (folder / "pictures.json").write_text(json.dumps(rows))

    def run(self, out: str, *more: str, data: str = "text.json", status: int = 0) -> None:
        words = [f"data={self.folder / data}", "template=raw", "steps=4", "batch_size=4", "prompt_length=4"]
        words += ["eval_every=2", "held_out=4", "accumulate=2", "data.validation=0.25", f"--base={self.base}"]
        found = main([*words, f"--out={self.folder / out}", *more])
        assert found == status, f"exit status {found}"

    # On files.

    def text(self) -> None:
        self.run("text", "precision=fp32", "clip_norm=1")

    def half_precision(self) -> None:
        self.run("fp16", "precision=fp16")
        self.run("bf16", "precision=bf16")

    def gradient_checkpointing(self) -> None:
        self.run("checkpointing", "gradient_checkpointing=true")

    def keep(self) -> None:
        text = self.folder / "unrelated.txt"
        text.write_text("the quick brown fox jumps over the lazy dog. " * 50)
        self.run("keep", "keep=0.5", f"keep_data={text}")
        with patch.object(keep, "_OWN_ROWS", 4), patch.object(keep, "_ROW_TOKENS", 16):
            self.run("keep-own", "keep=0.5")

    def stop_and_resume(self) -> None:
        after_step = _Run._after_step

        def stop_after_step(run: _Run, held_out: Any, last: bool, stop: bool) -> None:
            after_step(run, held_out, last, stop=True)
            raise Stopped("stopped")

        with patch.object(_Run, "_after_step", stop_after_step):
            self.run("resumed", status=130)
        self.run("resumed", "--resume")

    def start_from(self) -> None:
        self.run("first", "learn=prompts")
        tuning = ["tuning.norms=true", "tuning.bias=true", "tuning.scale=true", "tuning.lora_rank=2"]
        self.run("second", f"start_from={self.folder / 'first'}", "learn=tuning", *tuning)

    def pictures(self) -> None:
        self.run("global", "vision.projection=global", "disjoint=2", data="pictures.json")
        blocks = ["vision.width=24", "vision.heads=2", "vision.blocks=1"]
        self.run("queries", "vision.projection=queries", *blocks, data="pictures.json")

    def evaluation(self) -> None:
        self.run("seeing", "vision.projection=global", data="pictures.json")
        base = load_base(str(self.base), "none", str(DEVICE), torch.float32)
        seeing = load_adapter(self.folder / "seeing", base.fingerprint, base.device)
        answerer = Answerer(base, seeing, 0.5)
        paths = [self.folder / "red.png", None]
        questions = [(Message("user", "what>"),)] * 2
        encoder = load_encoder(ENCODER)
        on_cpu = [encoder.encode([Image.open(paths[0])], **seeing.config.vision.encoding), None]
        for features in (answerer.features(paths), on_cpu):
            answerer.nll(questions, ["red", "green"], features)
            answerer.next_logprobs([answerer.encode(question) for question in questions], [1, 2], features)
        answerer.generate(questions, paths, max_new_tokens=3)

    # Recipes of the project.

    def recipe(self, name: str) -> None:
        command = [name, f"--base={self.base}", f"--out={self.folder / name}"]
        assert main([*command, "steps=2", "batch_size=4", "held_out=4", "eval_every=2", "template=raw"]) == 0
        if name == "parrot":
            assert main([*command, "--score"]) == 0

    def a_recipe(self) -> None:
        names = patch.object(train.__main__, "recipe_names", lambda: ["parrot"])
        with names, patch.object(train.__main__, "load_recipe", lambda *_: parrot()):
            self.recipe("parrot")

    def pirate(self) -> None:
        def pairs(split: str, seed: int, answers: pirate.PlainAnswers) -> list[tuple[str, str]]:
            question = "What is a ship?"
            answers([question])  # of which nothing is fit to learn from
            return [(question, "A ship is a large boat.")] * 4

        cache = patch.dict(os.environ, LLAMA_ADAPTER_CACHE=str(self.folder / "cache"))  # nothing is known there
        few = patch.object(keep, "_OWN_ROWS", 4), patch.object(keep, "_ROW_TOKENS", 16)
        with (
            cache,
            few[0],
            few[1],
            patch.object(pirate, "_plain_pairs", pairs),
            patch.dict(pirate._COUNTS, test=2),
        ):
            self.recipe("pirate")

    def extract(self) -> None:
        few, small_talk = extract.hand_written()[:2], Example((Message("user", "Hi!"),), "Hello!")
        assert extract.CONFIG.tuning is not None
        small = replace(extract.CONFIG, insertion_layers=3, tuning=replace(extract.CONFIG.tuning, layers=3))
        with (
            patch.object(extract, "CONFIG", small),
            patch.object(extract, "test_set", lambda: few),
            patch.object(extract, "hand_written", lambda: few),
            patch.object(extract, "off_task_examples", lambda _: [small_talk] * 2),
        ):
            self.recipe("extract")

    def see(self) -> None:
        def drawing(i: int) -> Drawing:
            image = Image.new("RGBA", (64, 64))
            shape = ImageDraw.Draw(image).ellipse if i % 2 else ImageDraw.Draw(image).rectangle
            shape((8, 8, 30 + i % 20, 50), fill=COLOURS[i % 8])
            # Half of the held-out ones have a style of their own, and the name of one in training.
            style, named = (UNSEEN_STYLE, i + 1) if i % 8 == 0 else (f"style {i % 3}", i)
            return Drawing(f"a {COLOURS[named % 8]} {SHAPES[named // 8]}", style, i % 4 == 0, lambda: image)

        photos = [see.Photo(self.folder / "red.png", ("red",))]
        with (
            patch.object(see, "drawings", lambda: [drawing(i) for i in range(80)]),
            patch.object(see, "photographs", lambda: (photos, 0)),
            patch.object(see, "photograph_like", lambda _, rng: varied(drawing(1), rng)),
            patch.object(see, "off_task_examples", lambda _: [Example((Message("user", "Hi!"),), "Hello!")] * 2),
            patch.object(see_concepts, "_STEPS", 2),
            patch.object(see_concepts, "_FACT_STEPS", 2),
            patch.object(see, "_PHOTOGRAPH_LIKE", 8),
        ):
            self.recipe("see")

    # What must go wrong.

    def control(self) -> None:
        """Features of a recipe's own encoder, which is on the CPU, as they were once given to the adapter."""
        base = load_base(str(self.base), "none", str(DEVICE), torch.float32)
        config = VisionConfig(ENCODER, feature_size=8, hidden=4)
        seeing = new_adapter(TrainConfig("x", steps=1, vision=config), base).to(DEVICE)
        batch_prompts(seeing, base.model, VisualFeatures(torch.randn(1, 8)), None)


def run_all(base: Path, folder: Path) -> dict[str, str]:
    """The traceback of each path that failed, by its name; "" for the others."""
    generate = Answerer.generate

    def generate_little(
        answerer: Answerer, questions: Any, pictures: Any = None, max_new_tokens: int = 0
    ) -> list[str]:
        return generate(answerer, questions, pictures, 4)

    with (
        patch.object(Accelerator, "device", DEVICE),
        patch.object(Answerer, "generate", generate_little),
        patch.object(adapter.base.llama, "_memory", lambda _: 0),  # its tensors have no addresses
    ):
        paths = Paths(base, folder)
        return {name: failure(getattr(paths, name)) for name in NAMES}


def failure(path: Callable[[], None]) -> str:
    started = time.process_time()
    try:
        path()
    except BaseException:
        return traceback.format_exc()
    finally:
        print(f"{path.__name__}: {time.process_time() - started:.1f} s", file=sys.stderr)
    return ""


NAMES = [
    name for name, value in vars(Paths).items() if callable(value) and name not in ("__init__", "run", "recipe")
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n" + json.dumps(run_all(Path(sys.argv[1]), Path(sys.argv[2]))))
