"""What is prepared beside the steps: in order, not too far ahead, errors in their place, the run as without it."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from adapter.base.template import Message
from adapter.method.config import VisionConfig
from tests.app_process import wait_until
from tests.train.input.test_features import FakeEncoder
from train.config import TrainConfig
from train.formats.dataset import DataError
from train.input.batches import Prefetch
from train.input.examples import Example, SkippedExamples
from train.input.features import FOLDER_VARIABLE, FeatureCache
from train.job import Job, Stopped
from train.loop import new_adapter
from train.run_folder import RunFolder


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

    def run(examples, folder="run", resume=False):
        skipped = SkippedExamples()
        cache = FeatureCache.on_disk(FakeEncoder(), CONFIG.vision, skipped, lambda _: None)
        splits = {"train": examples, "validation": itertools.islice(examples, 8)}
        return Job(
            CONFIG, tiny_base, splits.__getitem__, RunFolder(tmp_path / folder), new_adapter(CONFIG, tiny_base),
            cache, skipped, resume,
        ).run()[0]  # fmt: skip

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
