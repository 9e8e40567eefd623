"""Adapter upload: an adapter is added to the store unchanged, or refused with one sentence."""

import contextlib
import json
import os
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.errors import AdapterError, BadInput, LoadError
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, save_adapter
from adapter.method.config import VisionConfig
from adapter.serve.store import SHIPPED, AdapterStore
from adapter.server import adapter_upload as upload
from adapter.server.adapter_upload import add_adapter, delete_adapter, restore_adapter
from tests.tiny_models import random_adapter
from train.run_folder import STATE


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "mine", tmp_path / "runs", incoming=tmp_path / "runs")


@pytest.fixture
def folder(tmp_path: Path, tiny_fingerprint: Any) -> Path:
    """The folder of an adapter."""
    save_adapter(random_adapter(tiny_fingerprint, description="Rhymes."), tmp_path / "poet", "# poet\n\nRhymes.\n")
    return tmp_path / "poet"


@pytest.fixture
def add(store: AdapterStore, tiny_fingerprint: Any) -> Callable[..., tuple[str, bool]]:
    """Adds files, or all files of a folder, as a name."""

    def add(files: Path | list[Path], name: str = "guest", base: Any = tiny_fingerprint) -> tuple[str, bool]:
        chosen = files if isinstance(files, list) else list(files.iterdir()) if files.is_dir() else [files]
        return add_adapter(chosen, name, store, base)

    return add


@pytest.fixture
def refused(add: Any, store: AdapterStore) -> Callable[..., str]:
    """The sentence of a refusal. Nothing may be left on disk, and the sentence has no path of this machine."""

    def refused(files: Any, *about: Any, kind: type[Exception] = AdapterError, **more: Any) -> str:
        before = store.names()
        with pytest.raises(kind) as caught:
            add(files, *about, **more)
        said = str(caught.value)
        assert store.names() == before and not list(store.incoming.glob(".incoming*"))
        secret = ("Traceback", ".incoming", str(store.incoming))
        assert said.endswith(".") and not any(word in said for word in secret)
        return said

    return refused


def zipped(folder: Path, archive: Path, below: str = "", **more: bytes) -> Path:
    """A zip of a folder's files. more: further files."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(folder.iterdir()):
            opened.write(file, below + file.name)
        for name, data in more.items():
            opened.writestr(name, data)
    return archive


# Accepted uploads.


@pytest.mark.parametrize("below", ["", "a/b/poet/"])
def test_an_uploaded_zip_has_the_same_files(folder, store, add, tmp_path, below):
    assert add(zipped(folder, tmp_path / "poet.zip", below), "") == ("poet", True)
    there = store.folder("poet")
    assert there == store.incoming / "poet"
    for name in (CONFIG, WEIGHTS, CARD):
        assert (there / name).read_bytes() == (folder / name).read_bytes()
        assert stat.S_IMODE((there / name).stat().st_mode) == 0o644
    assert store.card("poet").description == "Rhymes." and store.card_text("poet") == "# poet\n\nRhymes."
    assert not list(store.incoming.glob(".incoming*"))


def test_only_the_adapters_files_are_taken_and_loose_ones_need_a_name(folder, store, add, refused, tmp_path):
    for name in ("state.pt", "log.txt", "run.json", ".hidden"):
        (folder / name).write_bytes(b"\0" * 100)
    add(zipped(folder, tmp_path / "run 1.zip", **{f"checkpoints/step-000100/{CONFIG}": b"{}"}), "")
    assert sorted(path.name for path in store.folder("run-1").iterdir()) == [CARD, WEIGHTS, CONFIG]
    files = [folder / CONFIG, folder / WEIGHTS]
    assert "name" in refused(files, "") and "twice" in refused([*files, files[0]])
    assert "2 adapters" in refused(zipped(folder, tmp_path / "two.zip", "a/", **{f"b/{CONFIG}": b"{}"}))
    assert add(files)[1] and sorted(path.name for path in store.folder("guest").iterdir()) == [WEIGHTS, CONFIG]


def test_same_upload_is_recognised_and_a_taken_name_refused(folder, store, add, refused, tiny_fingerprint):
    add(folder, "poet")
    assert add(folder, "Poet") == ("poet", False)
    first = (store.folder("poet") / WEIGHTS).read_bytes()
    save_adapter(random_adapter(tiny_fingerprint, seed=3), folder)
    assert "poet" in refused(folder, "POET", kind=BadInput)
    assert (store.folder("poet") / WEIGHTS).read_bytes() == first
    (store.incoming / "Busy").mkdir()  # a run that has saved nothing yet
    assert "Busy" in refused(folder, "busy", kind=BadInput)


@pytest.mark.parametrize("names", [["poet"] * 8, ["poet", "Poet"]], ids=["one name", "two cases of it"])
def test_one_of_concurrent_uploads_gets_the_name(store, add, tiny_fingerprint, tmp_path, monkeypatch, names):
    """Nor do two stand beside each other that people, and some systems, cannot tell apart."""
    for seed in range(len(names)):
        save_adapter(random_adapter(tiny_fingerprint, seed), tmp_path / f"a{seed}")
    all_there, rename = threading.Barrier(len(names)), os.rename

    def late(*places: Path) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            all_there.wait(1)
        rename(*places)

    def one(seed: int) -> bool:
        with contextlib.suppress(BadInput):
            return add(tmp_path / f"a{seed}", names[seed])[1]
        return False

    monkeypatch.setattr(upload.os, "rename", late)
    with ThreadPoolExecutor(8) as crowd:
        assert sum(crowd.map(one, range(len(names)))) == 1
    [name] = store.names()
    load_adapter(store.folder(name), tiny_fingerprint)
    assert not list(store.incoming.glob(".incoming*"))


@pytest.mark.parametrize("limit", ["FOLDER_ADAPTERS", "FOLDER_BYTES"])
def test_the_server_keeps_a_bounded_number_of_adapters(folder, store, add, refused, monkeypatch, limit):
    size = (folder / WEIGHTS).stat().st_size
    monkeypatch.setattr(upload, limit, 2 if limit == "FOLDER_ADAPTERS" else 2 * (size + 4096))
    for name in ("one", "two"):
        add(folder, name)
    assert "no place for more adapters" in refused(folder, "three", kind=BadInput)
    assert not add(folder, "one")[1]
    shutil.rmtree(store.incoming / "one")
    if limit == "FOLDER_BYTES":
        (store.incoming / "run" / "data").mkdir(parents=True)
        (store.incoming / "run" / "data" / "rows").write_text("x")
        assert "no place for more adapters" in refused(folder, "three", kind=BadInput)
        shutil.rmtree(store.incoming / "run")
    assert add(folder, "three")[1]


@pytest.mark.parametrize("name", ["pirate", "PIRATE"])
def test_shipped_adapters_are_not_replaced(store, folder, tiny_fingerprint, name):
    shipped = AdapterStore(*store.folders, SHIPPED, incoming=store.incoming)
    with pytest.raises(BadInput, match="another adapter"):
        add_adapter(list(folder.iterdir()), name, shipped, tiny_fingerprint)
    assert store.names() == [] and not list(store.incoming.glob(".incoming-*"))


def test_what_was_added_here_is_deleted_and_put_back(folder, store, add, tmp_path, monkeypatch):
    add(folder)
    shutil.copytree(folder, tmp_path / "mine" / "kept")
    files = {path.name: path.read_bytes() for path in store.folder("guest").iterdir()}
    token = delete_adapter("guest", store)
    assert store.names() == ["kept"]
    assert restore_adapter("guest", token, store) == "guest"
    assert {path.name: path.read_bytes() for path in store.folder("guest").iterdir()} == files
    aside = store.incoming / upload.DELETED
    shutil.rmtree(aside)
    aside.touch()  # as a full disk: no folder can be made
    with pytest.raises(LoadError, match="as it was"):
        delete_adapter("guest", store)
    aside.unlink()
    token = delete_adapter("guest", store)
    monkeypatch.setattr(upload, "FOLDER_ADAPTERS", 0)
    with pytest.raises(BadInput, match="no place for more"):
        restore_adapter("guest", token, store)
    monkeypatch.undo()
    with pytest.raises(BadInput, match="for good"):
        restore_adapter("guest", "1.5", store)
    add(folder, "Guest")
    with pytest.raises(BadInput, match="Delete that one first"):
        restore_adapter("guest", token, store)
    with pytest.raises(BadInput, match="stays"):
        delete_adapter("kept", store)
    with pytest.raises(LoadError, match="no adapter"):
        delete_adapter("../mine/kept", store)
    assert store.names() == ["Guest", "kept"]


def test_training_runs_are_left_alone_until_they_end(folder, store, add):
    add(folder)
    with FileLock(store.folder("guest") / ".lock"), pytest.raises(BadInput, match="being trained"):
        delete_adapter("guest", store)
    (store.folder("guest") / STATE).touch()
    assert delete_adapter("guest", store) and store.names() == []


# Refused uploads.


@pytest.mark.parametrize("name", ["../up", "a\\b", ".hidden", "-x", "con", "base", "Mix", "x" * 41, "a\nb", "é"])
def test_invalid_names_are_refused(folder, refused, name):
    refused(folder, name, kind=BadInput)


def test_pickles_are_not_opened(refused, tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for name in ("adapter.pth", "adapter_model.bin"):
        file = tmp_path / "loose" / name
        file.parent.mkdir(exist_ok=True)
        torch.save(Trap(), file)
        for files in (file, zipped(file.parent, tmp_path / "p.zip")):
            assert "python -m adapter convert" in refused(files, kind=BadInput)
        file.unlink()
    assert not (tmp_path / "sprung").exists()


def test_an_encoder_that_is_not_here_is_not_fetched(folder, tiny_fingerprint, refused):
    unknown = VisionConfig("vit_tiny_patch16_224", feature_size=6, hidden=5)
    save_adapter(random_adapter(tiny_fingerprint, vision=unknown), folder)
    assert "'vit_tiny_patch16_224', which is not here" in refused(folder, kind=BadInput)


def sized(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for size in (2**40, 10**30):
        yield {**config, "prompt_length": size}
        yield {**config, "vision": {"encoder": "tf_efficientnet_lite0", "feature_size": size, "hidden": size}}
        queries = {"encoder": "tf_efficientnet_lite0", "projection": "queries", "token_size": 8, "blocks": size}
        yield {**config, "vision": queries}
        yield {**config, "vision": {**queries, "blocks": 2, "width": size, "heads": 1}}
        yield {**config, "tuning": {"intermediate_size": size, "lora_rank": size}}


def test_huge_sizes_are_refused_before_allocation(folder, refused):
    for config in sized(json.loads((folder / CONFIG).read_text())):
        (folder / CONFIG).write_text(json.dumps(config))
        refused(folder)


@pytest.mark.parametrize(
    "name, mode, data",
    [
        ("../../evil.json", 0, b"{}"),
        ("poet/link.json", stat.S_IFLNK | 0o777, b"/etc/passwd"),
        ("poet/CONFIG.json", 0, b"{}"),  # one name on some systems
        ("a/" * 11 + "deep.json", 0, b"{}"),  # thousands of such files would make millions of folders
    ],
)
def test_zips_with_outside_paths_or_links_are_refused(folder, refused, tmp_path, name, mode, data):
    archive = zipped(folder, tmp_path / "p.zip", "poet/")
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(info, data)
    refused(archive, kind=BadInput)
    assert not list(tmp_path.rglob("evil*"))


def test_zip_bombs_and_too_many_files_are_refused(folder, refused, tmp_path):
    refused(zipped(folder, tmp_path / "p.zip", **{"bomb.json": b"\0" * 50_000_000}), kind=BadInput)
    # One that states another size: no more than that is unpacked.
    said, real = (size.to_bytes(4, "little") for size in (9, 50_000_000))
    (tmp_path / "liar.zip").write_bytes((tmp_path / "p.zip").read_bytes().replace(real, said))
    assert "cannot be read" in refused(tmp_path / "liar.zip", kind=BadInput)
    with zipfile.ZipFile(tmp_path / "bz2.zip", "w", zipfile.ZIP_BZIP2) as packed:  # a few bytes become gigabytes
        packed.writestr("poet/config.json", b"{}")
    assert "packed in a way that is not read" in refused(tmp_path / "bz2.zip", kind=BadInput)
    many = {f"{i}.json": b"{}" for i in range(1000)}
    assert "500" in refused(zipped(folder, tmp_path / "p.zip", **many), kind=BadInput)


@pytest.mark.parametrize("place", ["shutil.copyfile", "os.rename"])
def test_full_disk_is_reported(folder, refused, monkeypatch, place):
    monkeypatch.setattr(place, Mock(side_effect=OSError(28, "No space left", "/srv")))
    assert "make room" in refused(folder, kind=LoadError)


# Fuzzing: accepted unchanged, or refused with one sentence.


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzz_zip(folder, store, add, tiny_fingerprint, data):
    archive = folder.parent / "p.zip"
    whole = bytearray(zipped(folder, archive).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) - 30, len(whole) // 2]))])
    try:
        name = add(archive)[0]
    except AdapterError as error:
        said = str(error)
        assert said.endswith(".") and len(said) < 1000 and str(store.incoming) not in said
    else:  # it is finite and complete
        load_adapter(store.folder(name), tiny_fingerprint)
        shutil.rmtree(store.folder(name))
    assert not list(store.incoming.glob(".incoming*"))
