"""Features of pictures: encoded once over epochs and runs, in the same bits, within a number of bytes."""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from adapter.base.template import Message
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.input import features as feature_module
from train.input.examples import Example, SkippedExamples
from train.input.features import FOLDER_VARIABLE, FeatureCache, FeatureStore
from train.input.rows import TokenisedRow

VISION = VisionConfig("fake", feature_size=3)


class FakeEncoder:
    """Features are the mean colour. encoded: the number of pictures of each call."""

    name = "fake"

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.encoded = torch.device(device), []

    def fingerprint(self) -> str:
        return "0"

    def encode(self, images, **options) -> VisualFeatures:
        self.encoded.append(len(images))
        return VisualFeatures(torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images]) / 3)


@pytest.fixture
def picture(tmp_path) -> Callable[..., Path]:
    def write(colour: int, name: str = "") -> Path:
        path = tmp_path / (name or f"{colour}.png")
        Image.new("RGB", (8, 8), (colour, 200, 100)).save(path)
        return path

    return write


def rows_of(*pictures: Path | None) -> list[TokenisedRow]:
    question = (Message("user", "?"),)
    return [TokenisedRow([1, 2], [1, 2], Example(question, "x", picture=p, where=f"row {p}")) for p in pictures]


@pytest.mark.parametrize("device, calls", [("cpu", [1] * 6), ("cuda", [6])])
def test_a_picture_is_encoded_once_over_epochs_runs_and_copies(device, calls, picture, monkeypatch):
    """On a GPU together, on a CPU alone."""
    paths = [picture(colour) for colour in range(0, 120, 20)]
    copy = picture(20, "copy.png")
    for encoded in (calls, []):  # the second time: another run
        encoder = FakeEncoder(device)
        cache = FeatureCache.on_disk(encoder, VISION, SkippedExamples(), lambda _: None)
        for _ in range(2):
            *got, none = [row.example.features for row in cache.with_features(rows_of(*paths, copy, None))]
            assert [round(3 * float(g.levels[0, 0])) for g in got] == [*range(0, 120, 20), 20] and none is None
        assert encoder.encoded == encoded
    other = VisionConfig("fake", feature_size=3, channels="BGR")
    FeatureCache.on_disk(encoder, other, SkippedExamples(), lambda _: None).with_features(rows_of(paths[0]))
    assert encoder.encoded == [1], "features of other options are others"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "features"))
    return tmp_path / "features"


def test_features_have_the_same_bits_in_any_batch_and_from_anywhere(tmp_path):
    """Alone, among others, from memory, from disk, and after the disk was emptied."""
    import timm

    rng, paths = random.Random(0), []
    for i in range(6):
        Image.frombytes("RGB", (8, 8), rng.randbytes(192)).resize((80, 60)).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    torch.manual_seed(0)
    encoder = VisualEncoder("x", timm.create_model("mobilenetv3_small_100"))
    vision = VisionConfig("x", projection="queries", token_size=encoder.token_size)
    alone = FeatureCache(encoder, vision, SkippedExamples(), None)
    expected = [alone.with_features(rows_of(path))[0].example.features for path in paths]

    def check(cache: FeatureCache) -> None:
        for row, features in zip(cache.with_features(rows_of(*paths)), expected, strict=True):
            assert torch.equal(row.example.features.levels, features.levels)
            assert torch.equal(row.example.features.tokens, features.tokens)
            assert features.tokens.dtype == torch.float32

    stored = FeatureCache(encoder, vision, SkippedExamples(), FeatureStore(tmp_path / "store", "x"))
    check(stored)  # encoded among others
    check(stored)  # from memory
    check(FeatureCache(encoder, vision, SkippedExamples(), FeatureStore(tmp_path / "store", "x")))  # from disk
    check(FeatureCache(encoder, vision, SkippedExamples(), FeatureStore(tmp_path / "empty", "x")))


def test_rows_whose_picture_cannot_be_read_are_left_out_and_counted(picture, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    logged: list[str] = []
    skipped = SkippedExamples(logged.append)
    cache = FeatureCache(FakeEncoder(), VISION, skipped, None)
    paths = [tmp_path / "bad.png", picture(10), tmp_path / "none\x1b.png", None]
    for _ in range(2):
        assert [row.example.picture for row in cache.with_features(rows_of(*paths))] == [paths[1], None]
    assert len(skipped.places) == len(logged) == 2 and "bad.png" in logged[0] and r"none\x1b.png" in logged[1]


def features(number: int) -> VisualFeatures:
    return VisualFeatures(torch.full((1, 500), float(number)), tokens=torch.full((1, 2, 3), 0.5).half())


NAMES = [f"{i:02x}{i:062x}" for i in range(40)]
FILE_BYTES = 2200  # at most
KEY = "0123456789abcdef"


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_does_not_fit_is_not_kept_and_gives_way_to_a_later_run(tmp_path):
    """An epoch over more pictures than fit finds as many as fit, where an LRU would find none."""
    bound = 20 * FILE_BYTES
    own = tmp_path / "thesis" / "1" / "chapter"  # a folder that is somebody's may be named
    own.parent.mkdir(parents=True)
    own.touch()
    store = FeatureStore(tmp_path, f"x-{KEY}", bound)
    for i, name in enumerate(NAMES):
        store.put(name, features(i))
    assert bytes_in(tmp_path) <= bound and sum(store.get(name) is not None for name in NAMES) >= 20
    for path in tmp_path.rglob("*"):
        os.utime(path, times=(time.time() - 100,) * 2)
    os.utime(own, times=(0, 0))
    later = FeatureStore(tmp_path, f"y-{KEY}", bound)
    for i in range(30, 35):
        later.put(NAMES[i], features(i))
        assert later.get(NAMES[i]) is not None
    assert bytes_in(tmp_path) <= bound and own.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:900] + b"?" + data[901:]])
def test_a_damaged_file_is_made_again(damage, tmp_path):
    store = FeatureStore(tmp_path, "x", 10**6)
    store.put(NAMES[3], features(3))
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(damage(path.read_bytes()))
    assert store.get(NAMES[3]) is None
    store.put(NAMES[3], features(3))
    with pytest.MonkeyPatch.context() as patch:  # from here on its disk is read-only, and it is full
        for module, name in (feature_module.os, "utime"), (Path, "unlink"):
            patch.setattr(module, name, Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
        got = FeatureStore(tmp_path, "x", 100).get(NAMES[3])
    assert got is not None and got.levels[0, 0] == 3 and got.logits is None and got.tokens.dtype == torch.half


def test_a_disk_that_fails_ends_the_keeping_and_not_the_run(own_folder, picture, monkeypatch):
    logged: list[str] = []
    encoder = FakeEncoder()
    cache = FeatureCache.on_disk(encoder, VISION, SkippedExamples(), logged.append)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(feature_module.os, "replace", full)
    for i in range(3):
        assert len(cache.with_features(rows_of(picture(i)))) == 1
    warnings = [line for line in logged if "no longer be kept" in line]
    assert len(warnings) == 1 and str(own_folder) not in "".join(logged)
    assert not any(path.is_file() for path in own_folder.rglob("*"))


def test_other_users_of_the_machine_see_no_pictures_features(own_folder, picture):
    """Nor their names, the digests of pictures; also where the folder is deleted in the middle of a run."""
    cache = FeatureCache.on_disk(FakeEncoder(), VISION, SkippedExamples(), lambda _: None)
    for i in range(2):
        cache.with_features(rows_of(picture(i)))
        assert own_folder.stat().st_mode & 0o777 == 0o700 and bytes_in(own_folder)
        shutil.rmtree(own_folder)
