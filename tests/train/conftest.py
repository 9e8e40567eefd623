"""Fixtures of the trainer's tests: records, the drawn benchmark, a short run, one that is asked to stop."""

import dataclasses
import functools
import json
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapter.base.template import Message
from train.config import TrainConfig
from train.input.examples import Example
from train.job import Job
from train.loop import new_adapter
from train.run_folder import RunFolder

WORDS = ("ab", "cd", "ef", "gh")
ECHO = TrainConfig("echo", steps=12, batch_size=4, prompt_length=4, template="raw", eval_every=4, held_out=8)


@pytest.fixture
def rows(tmp_path) -> Path:
    """A file of sixty records in Alpaca's format."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": f"{i}>", "output": str(i % 3)} for i in range(60)]))
    return path


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory) -> Path:
    """The drawn benchmark, in ScienceQA's layout, asked for by two at once."""
    from train.reproduce.benchmark import drawn_benchmark

    with ThreadPoolExecutor(2) as pool:
        return {*pool.map(drawn_benchmark, [tmp_path_factory.mktemp("drawn") / "benchmark"] * 2)}.pop()


@pytest.fixture
def run(rows, tiny_folder, tmp_path) -> Callable[..., int]:
    """`python -m train` for six steps on the tiny base, into the folder `out`; returns the exit status."""
    from train.__main__ import main

    return lambda *more, out="out": main([
        f"data={rows}", "precision=fp32", "template=raw", "batch_size=4", "prompt_length=4", "eval_every=3",
        "steps=6", f"--base={tiny_folder}", f"--out={tmp_path / out}", "--device=cpu", *more,
    ])  # fmt: skip


@pytest.fixture
def parrot_command(tiny_folder, tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """The arguments of `python -m train` for the recipe `parrot`, or another one in its place."""
    import train.__main__
    from tests.train.parrot import CONFIG, parrot
    from train.config import RecipeFile, recipe_text

    folder = tmp_path / "recipes" / "parrot"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_text(RecipeFile((), CONFIG)))
    monkeypatch.setattr("train.recipes.recipe._FOLDER", folder.parent)
    monkeypatch.setattr(train.__main__, "recipe_names", lambda: ["parrot"])

    def command(*more: str, recipe=None) -> list[str]:
        monkeypatch.setattr(train.__main__, "load_recipe", lambda *_: recipe or parrot())
        return ["parrot", f"--base={tiny_folder}", f"--out={tmp_path / 'out'}", "--device=cpu", *more]

    return command


def signal_after(patch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Sends the next run a signal after its step `step`."""
    from train.tracker import MetricsWriter

    record = MetricsWriter.record

    def record_and_send(self, at, **values):
        record(self, at, **values)
        if at == step and "loss" in values:
            patch.setattr(MetricsWriter, "record", record)
            os.kill(os.getpid(), number)

    patch.setattr(MetricsWriter, "record", record_and_send)


@pytest.fixture
def stop_after(monkeypatch) -> Callable[[int], None]:
    """Lets the next run be asked to stop after its step `step`."""
    return functools.partial(signal_after, monkeypatch)


def examples(split):
    rng = random.Random(split)
    count = 10**6 if split == "train" else 16
    return (Example((Message("user", f"{w}>"),), w) for w in (rng.choice(WORDS) for _ in range(count)))


@pytest.fixture
def train_echo(tiny_base, tmp_path):
    """Trains on generated words with changes to ECHO; returns the adapter and the held-out loss."""

    def run(folder="run", resume=False, **changes):
        config = dataclasses.replace(ECHO, **changes)
        adapter = new_adapter(config, tiny_base)
        return Job(config, tiny_base, examples, RunFolder(tmp_path / folder), adapter, resume=resume).run()

    return run
