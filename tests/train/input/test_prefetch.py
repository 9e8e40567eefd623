"""What is prepared beside the steps: in order, not too far ahead, errors in their place, the run as without it."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import train.job
from adapter.base.template import Message
from adapter.method.config import VisionConfig
from tests.app_process import wait_until
from tests.train.input.test_features import FakeEncoder
from train.config import TrainConfig
from train.formats.dataset import DataError
from train.input.examples import Example, SkippedExamples
from train.input.feature_store import FOLDER_VARIABLE
from train.input.features import FeatureCache
from train.input.prefetch import Prefetch
from train.job import Stopped
from train.loop import new_adapter


def test_items_are_made_ahead_in_order_but_not_far():
    made: list[int] = []

    def numbers(_) -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    with Prefetch(numbers) as items:
        for number in range(10):
            assert next(items) == number
            wait_until(lambda number=number: len(made) == number + 3)
        assert list(items) == list(range(10, 20)), "and they may end"


def test_an_error_is_raised_where_its_item_would_be_used():
    def items(_) -> Iterator[int]:
        yield from (1, 2)
        raise DataError("The third is broken.")

    with Prefetch(items) as found:
        assert [next(found), next(found)] == [1, 2]
        with pytest.raises(DataError, match="third"):
            next(found)


def test_leaving_ends_the_thread_in_the_middle_of_an_item():
    reached, threads = threading.Event(), []

    def items(stopping) -> Iterator[int]:
        threads.append(threading.current_thread())
        yield 1
        reached.set()
        wait_until(stopping)
        yield 2

    with pytest.raises(KeyboardInterrupt), Prefetch(items) as found:
        assert next(found) == 1 and reached.wait(60)
        raise KeyboardInterrupt
    assert not threads[0].is_alive()


# Whole runs.

CONFIG = TrainConfig(
    "seen", steps=12, batch_size=4, prompt_length=4, template="raw", eval_every=4, held_out=8,
    vision=VisionConfig("fake", feature_size=3, hidden=8),
)  # fmt: skip


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "features"))
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (28 * i, 200, 100)).save(path)
    return paths


@pytest.fixture
def train_seen(tiny_base, tmp_path):
    """Trains on examples; returns the adapter."""

    def run(examples, folder="run", skipped=None, resume=False, encoder=None, accelerator=None, **changes):
        config, skipped = dataclasses.replace(CONFIG, **changes), skipped or SkippedExamples()
        cache = FeatureCache.on_disk(encoder or FakeEncoder(), config.vision, skipped, lambda _: None)
        splits = {"train": examples, "validation": itertools.islice(examples, 8)}
        return train.job.train(
            config, tiny_base, splits.__getitem__, tmp_path / folder, new_adapter(config, tiny_base),
            feature_cache=cache, skipped=skipped, resume=resume, accelerator=accelerator,
        )[0]  # fmt: skip

    return run


class Seen:
    """Endless examples of pictures; each iteration begins anew."""

    def __init__(self, pictures: list[Path]) -> None:
        self.pictures = pictures

    def __iter__(self) -> Iterator[Example]:
        question = (Message("user", "see>"),)
        for number in itertools.count():
            path = self.pictures[number * 5 % len(self.pictures)]
            yield Example(question, "ab"[number % 2] * (1 + number % 3), picture=path, where=f"record {number}")


def test_a_resumed_run_with_pictures_equals_one_that_never_stopped(train_seen, pictures, tmp_path, stop_after):
    """It goes on behind the last step, and not behind what had been prepared; its features are encoded again."""
    whole = train_seen(Seen(pictures), "whole")
    shutil.rmtree(tmp_path / "features")
    stop_after(5)
    with pytest.raises(Stopped):
        train_seen(Seen(pictures))
    shutil.rmtree(tmp_path / "features")
    resumed = train_seen(Seen(pictures), resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_only_what_was_used_counts_as_skipped(train_seen, pictures, tmp_path):
    """However far the thread was ahead when the last step was done."""
    logged: list[str] = []
    skipped = SkippedExamples(logged.append)

    class Missing(Seen):
        def __iter__(self) -> Iterator[Example]:
            for number, example in enumerate(super().__iter__()):
                missing = tmp_path / f"missing-{number}.png"
                yield example if number % 4 == 0 else dataclasses.replace(example, picture=missing)

    train_seen(Missing(pictures), skipped=skipped, steps=5, held_out=1)
    assert 0 < len(skipped.places) <= 5 * 4


def test_the_first_process_tells_what_the_others_could_not_read(train_seen, pictures, tmp_path, monkeypatch):
    class OneOfTwo(Accelerator):
        num_processes = property(lambda self: 2)

    logged: list[str] = []
    skipped = SkippedExamples(logged.append)
    broken = ("row 7", "row 7: its picture is broken")
    monkeypatch.setattr(train.job, "gathered", lambda _, found: [*found, broken])
    train_seen(Seen(pictures), skipped=skipped, steps=2, accelerator=OneOfTwo(mixed_precision="no", cpu=True))
    assert logged == ["skipped: row 7: its picture is broken"] and skipped.places == {"row 7"}
