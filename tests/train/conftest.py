"""Fixtures of the trainer's tests: records, the drawn benchmark, a short run, one that is asked to stop."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def rows(tmp_path) -> Path:
    """A file of sixty records in Alpaca's format."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": f"{i}>", "output": str(i % 3)} for i in range(60)]))
    return path


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory) -> Path:
    """The drawn benchmark, in ScienceQA's layout."""
    from train.reproduce.benchmark import drawn_benchmark

    return drawn_benchmark(tmp_path_factory.mktemp("drawn") / "benchmark")


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
