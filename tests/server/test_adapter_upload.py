"""Adapter upload: an adapter is added to the store unchanged, or refused with one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import app
from adapter.errors import AdapterError, BadInput, LoadError
from adapter.formats import peft_adapter as peft
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, save_adapter
from adapter.serve.store import SHIPPED, AdapterStore
from adapter.server import adapter_upload as upload
from adapter.server.adapter_upload import (
    UploadedAdapter,
    add_adapter,
    delete_adapter,
    rename_adapter,
    restore_adapter,
)
from tests.browser import Visitor
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider
from tests.tiny_models import random_adapter
from train.run_folder import STATE

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def store(runs: Path, tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "mine", runs, incoming=runs)


@pytest.fixture
def folder(tmp_path: Path, tiny_fingerprint: Any) -> Path:
    """The folder of an adapter."""
    save_adapter(random_adapter(tiny_fingerprint, description="Rhymes."), tmp_path / "poet", "# poet\n\nRhymes.\n")
    return tmp_path / "poet"


def zipped(folder: Path, archive: Path, below: str = "") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(folder.iterdir()):
            opened.write(file, below + file.name)
    return archive


def refused(
    files: list[Path], store: AdapterStore, base: Any, name: str = "guest", kind: type[Exception] = AdapterError
) -> str:
    """The sentence of the refusal. Nothing may be left on disk, and the sentence has no path of this machine."""
    before = store.names()
    with pytest.raises(kind) as caught:
        add_adapter(files, name, store, base)
    assert store.names() == before
    assert not list(store.incoming.glob(".incoming*")) and str(store.incoming) not in str(caught.value)
    said = str(caught.value)
    assert said.endswith(".") and "Traceback" not in said and ".incoming" not in said
    return said


# Accepted uploads.


@pytest.mark.parametrize("below", ["", "poet/", "a/b/poet/"])
def test_an_uploaded_zip_has_the_same_files(folder, store, tiny_fingerprint, tmp_path, below):
    archive = zipped(folder, tmp_path / "poet.zip", below)
    assert add_adapter([archive], "", store, tiny_fingerprint) == UploadedAdapter("poet", new=True)
    there = store.folder("poet")
    assert there == store.incoming / "poet"
    for name in (CONFIG, WEIGHTS, CARD):
        assert (there / name).read_bytes() == (folder / name).read_bytes()
        assert stat.S_IMODE((there / name).stat().st_mode) == 0o644
    assert store.card("poet").description == "Rhymes." and store.card_text("poet") == "# poet\n\nRhymes."
    assert not list(store.incoming.glob(".incoming*"))


def test_loose_files_need_a_name(folder, store, tiny_fingerprint):
    files = [folder / CONFIG, folder / WEIGHTS]
    assert "name" in refused(files, store, tiny_fingerprint, name="")
    assert add_adapter(files, "guest", store, tiny_fingerprint) == UploadedAdapter("guest", new=True)
    assert sorted(path.name for path in store.folder("guest").iterdir()) == [WEIGHTS, CONFIG]


def test_only_the_adapter_is_taken_from_a_run_folder(folder, store, tiny_fingerprint, tmp_path):
    for name in ("state.pt", "log.txt", "run.json", ".hidden", "__MACOSX"):
        (folder / name).write_bytes(b"\0" * 100)
    add_adapter([zipped(folder, tmp_path / "run 1.zip")], "", store, tiny_fingerprint)
    assert sorted(path.name for path in store.folder("run-1").iterdir()) == [CARD, WEIGHTS, CONFIG]


def test_same_upload_is_recognised_and_a_taken_name_refused(folder, store, tiny_fingerprint, tmp_path):
    archive = zipped(folder, tmp_path / "poet.zip")
    add_adapter([archive], "", store, tiny_fingerprint)
    assert add_adapter([archive], "Poet", store, tiny_fingerprint) == UploadedAdapter("poet", new=False)
    first = (store.folder("poet") / WEIGHTS).read_bytes()
    save_adapter(random_adapter(tiny_fingerprint, seed=3), folder)
    assert "poet" in refused([zipped(folder, tmp_path / "poet.zip")], store, tiny_fingerprint, "POET", BadInput)
    assert (store.folder("poet") / WEIGHTS).read_bytes() == first
    # A run that has saved nothing yet has its name too.
    (store.incoming / "busy").mkdir()
    (store.incoming / "busy" / "run.json").write_text("{}")
    assert "busy" in refused([archive], store, tiny_fingerprint, "busy", BadInput)


def test_one_of_concurrent_uploads_gets_the_name(store, tiny_fingerprint, tmp_path):
    archives = []
    for seed in range(8):
        save_adapter(random_adapter(tiny_fingerprint, seed), tmp_path / f"a{seed}")
        archives.append(zipped(tmp_path / f"a{seed}", tmp_path / f"{seed}.zip"))

    def one(archive: Path) -> bool:
        try:
            return add_adapter([archive], "poet", store, tiny_fingerprint).new
        except BadInput:
            return False

    with ThreadPoolExecutor(8) as crowd:
        assert sum(crowd.map(one, archives)) == 1
        assert all(crowd.map(lambda i: add_adapter([archives[i]], f"n{i}", store, tiny_fingerprint).new, range(8)))
    assert store.names() == [*(f"n{i}" for i in range(8)), "poet"]
    assert not list(store.incoming.glob(".incoming*"))
    load_adapter(store.folder("poet"), tiny_fingerprint)


def test_names_that_differ_in_case_alone_are_not_taken_at_once(store, tiny_fingerprint, tmp_path, monkeypatch):
    """A visitor's adapter must not stand beside another one that people, and some systems, cannot tell apart."""
    archives, both, rename = {}, threading.Barrier(2), os.rename
    for seed, name in enumerate(("poet", "Poet")):
        save_adapter(random_adapter(tiny_fingerprint, seed), tmp_path / name)
        archives[name] = zipped(tmp_path / name, tmp_path / f"{seed}.zip")

    def late(*places: Path) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)
        rename(*places)

    def upload_as(name: str) -> bool:
        with contextlib.suppress(BadInput):
            return add_adapter([archives[name]], name, store, tiny_fingerprint).new
        return False

    monkeypatch.setattr(upload.os, "rename", late)
    with ThreadPoolExecutor(2) as crowd:
        assert sum(crowd.map(upload_as, archives)) == 1
    assert len(store.names()) == 1
    (store.incoming / "Busy").mkdir()  # a run that has saved nothing yet
    assert "Busy" in refused([archives["poet"]], store, tiny_fingerprint, "busy", BadInput)


@pytest.mark.parametrize("limit", ["FOLDER_ADAPTERS", "FOLDER_BYTES"])
def test_the_server_keeps_a_bounded_number_of_adapters(
    folder, store, runs, tiny_fingerprint, tmp_path, monkeypatch, limit
):
    size = (folder / WEIGHTS).stat().st_size
    monkeypatch.setattr(upload, limit, 2 if limit == "FOLDER_ADAPTERS" else 2 * size)
    archive = zipped(folder, tmp_path / "poet.zip")
    for name in ("one", "two"):
        add_adapter([archive], name, store, tiny_fingerprint)
    with pytest.raises(BadInput, match="no place for more adapters"):
        add_adapter([archive], "three", store, tiny_fingerprint)
    assert sorted(path.name for path in runs.iterdir() if path.name[0] != ".") == ["one", "two"]
    assert not add_adapter([archive], "one", store, tiny_fingerprint).new
    shutil.rmtree(runs / "one")
    assert add_adapter([archive], "three", store, tiny_fingerprint).new


def test_shipped_adapters_are_not_replaced(store, folder, tiny_fingerprint, tmp_path):
    shipped = AdapterStore(*store.folders, SHIPPED, incoming=store.incoming)
    for name in ("pirate", "PIRATE", "see"):
        archive = zipped(folder, tmp_path / f"{name}.zip")
        assert "another adapter" in refused([archive], shipped, tiny_fingerprint, "", BadInput)


def test_what_was_added_here_is_renamed_deleted_and_put_back(folder, store, tiny_fingerprint, tmp_path):
    add_adapter(list(folder.iterdir()), "guest", store, tiny_fingerprint)
    shutil.copytree(folder, tmp_path / "mine" / "kept")
    files = {path.name: path.read_bytes() for path in store.folder("guest").iterdir()}
    assert rename_adapter("guest", " bard ", store) == "bard" and store.names() == ["bard", "kept"]
    assert rename_adapter("bard", "Bard", store) == "Bard", "the case of its letters alone is another name too"
    with pytest.raises(BadInput, match="already"):
        rename_adapter("Bard", "KEPT", store)
    with pytest.raises(BadInput, match="letters"):
        rename_adapter("Bard", "../kept", store)
    token = delete_adapter("Bard", store)
    assert store.names() == ["kept"]
    assert restore_adapter("Bard", token, store) == "Bard"
    assert {path.name: path.read_bytes() for path in store.folder("Bard").iterdir()} == files
    token = delete_adapter("Bard", store)
    add_adapter(list(folder.iterdir()), "Bard", store, tiny_fingerprint)
    with pytest.raises(BadInput, match="another adapter"):
        restore_adapter("Bard", token, store)
    for act in (lambda name: delete_adapter(name, store), lambda name: rename_adapter(name, "new", store)):
        with pytest.raises(BadInput, match="stays"):
            act("kept")
        with pytest.raises(LoadError, match="no adapter"):
            act("../mine/kept")
    assert store.names() == ["Bard", "kept"]


def test_training_runs_are_left_alone_until_they_end(folder, store, tiny_fingerprint):
    add_adapter(list(folder.iterdir()), "guest", store, tiny_fingerprint)
    with FileLock(store.folder("guest") / ".lock"):
        for act in (lambda: delete_adapter("guest", store), lambda: rename_adapter("guest", "new", store)):
            with pytest.raises(BadInput, match="being trained"):
                act()
    (store.folder("guest") / STATE).touch()
    with pytest.raises(BadInput, match="not ended"):
        rename_adapter("guest", "new", store)
    assert delete_adapter("guest", store) and store.names() == []


def test_the_deleted_are_removed_after_a_day(folder, store, runs, tiny_fingerprint, monkeypatch):
    for name in ("one", "two"):
        add_adapter(list(folder.iterdir()), name, store, tiny_fingerprint)
    first = delete_adapter("one", store)
    assert (runs / upload.DELETED / first / "one").is_dir()
    (runs / upload.DELETED / ".DS_Store").touch()  # of a file manager
    monkeypatch.setattr(upload, "DELETED_SECONDS", -1)
    second = delete_adapter("two", store)
    assert [path.name for path in (runs / upload.DELETED).iterdir() if path.is_dir()] == [second]
    with pytest.raises(LoadError, match="could not be moved"):
        restore_adapter("one", first, store)


def test_peft_adaption_prompts_are_converted(store, tiny_fingerprint, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    adapter = random_adapter(tiny_fingerprint, gate_activation="identity")
    adapter.gates.data[:] = adapter.gates[:, :1]
    peft.write(adapter, theirs)
    assert add_adapter([zipped(theirs, tmp_path / "theirs.zip")], "", store, tiny_fingerprint) == UploadedAdapter(
        "theirs", True
    )
    loaded = load_adapter(store.folder("theirs"), tiny_fingerprint)
    assert torch.equal(loaded.prompts, adapter.prompts) and torch.equal(loaded.gates, adapter.gates)
    assert "peft" in store.card_text("theirs").lower() and ".incoming" not in store.card_text("theirs")
    other = replace(tiny_fingerprint, name="huge", hidden_size=64)
    said = refused([zipped(theirs, tmp_path / "theirs.zip")], store, other, "again", LoadError)
    assert "tiny" in said and "huge" in said and "hidden_size 32 instead of 64" in said
    (theirs / peft.WEIGHTS[0]).rename(theirs / peft.WEIGHTS[1])
    assert "python -m adapter convert" in refused([zipped(theirs, tmp_path / "b.zip")], store, tiny_fingerprint)


# Refused uploads.


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", ".hidden", "-x", "con", "base", "x" * 41, "a\nb", "é"])
def test_invalid_names_are_refused(folder, store, tiny_fingerprint, name):
    refused([folder / CONFIG, folder / WEIGHTS], store, tiny_fingerprint, name, BadInput)


def test_another_base_is_refused(folder, store, tiny_fingerprint, tmp_path):
    other = replace(tiny_fingerprint, name="huge", hidden_size=64)
    said = refused([zipped(folder, tmp_path / "p.zip")], store, other, kind=LoadError)
    assert "tiny" in said and "huge" in said and "32 instead of 64" in said


def test_pickles_are_not_opened(store, tiny_fingerprint, tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for name in ("adapter.pth", "adapter_model.bin", "x.pt"):
        file = tmp_path / name
        torch.save(Trap(), file)
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as opened:
            opened.write(file, name)
        for files in ([file], [tmp_path / "p.zip"]):
            assert "python -m adapter convert" in refused(files, store, tiny_fingerprint, kind=BadInput)
    assert not (tmp_path / "sprung").exists()


def test_non_finite_weights_and_unknown_encoders_are_refused(folder, store, tiny_fingerprint, tmp_path):
    tensors = load_file(folder / WEIGHTS)
    tensors["gates"][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    assert "not finite" in refused([zipped(folder, tmp_path / "p.zip")], store, tiny_fingerprint, kind=LoadError)
    from adapter.method.config import VisionConfig

    vision = VisionConfig(encoder="vit_giant_from_afar", feature_size=8, hidden=4)
    save_adapter(random_adapter(tiny_fingerprint, vision=vision), folder)
    assert "vit_giant_from_afar" in refused([zipped(folder, tmp_path / "p.zip")], store, tiny_fingerprint)


def sized(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for size in (10**6, 2**40, 10**18, 10**30):
        yield {**config, "prompt_length": size}
        label = {"encoder": "tf_efficientnet_lite0", "feature_size": size, "hidden": size}
        yield {**config, "vision": label}
        queries = {"encoder": "tf_efficientnet_lite0", "projection": "queries", "token_size": 8, "blocks": size}
        yield {**config, "vision": queries}
        yield {**config, "vision": {**queries, "blocks": 2, "width": size, "heads": 1}}
        yield {**config, "tuning": {"intermediate_size": size, "lora_rank": size}}


def test_huge_sizes_are_refused_before_allocation(folder, store, tiny_fingerprint):
    for config in sized(json.loads((folder / CONFIG).read_text())):
        (folder / CONFIG).write_text(json.dumps(config))
        refused([folder / CONFIG, folder / WEIGHTS], store, tiny_fingerprint)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"base": {"name": "\\ud800"}}', "1" * 5000, '{"base": 1e999}']
)
def test_broken_configurations_are_refused(folder, store, tiny_fingerprint, text):
    (folder / CONFIG).write_text(text)
    assert len(refused([folder / CONFIG, folder / WEIGHTS], store, tiny_fingerprint)) < 700


@pytest.mark.parametrize("changed", [{"name": "tiny\x1b[2J"}, {"tiny\u202e": 1}])
def test_control_characters_are_not_repeated(folder, store, tiny_fingerprint, changed):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "base": {**config["base"], **changed}}))
    assert refused([folder / CONFIG, folder / WEIGHTS], store, tiny_fingerprint).isprintable()


def test_lone_surrogates_are_refused(folder, store, tiny_fingerprint):
    config = {**json.loads((folder / CONFIG).read_text()), "description": "\ud800"}
    (folder / CONFIG).write_text(json.dumps(config))
    refused([folder / CONFIG, folder / WEIGHTS], store, tiny_fingerprint, kind=LoadError)


def test_long_cards_and_foreign_files_are_refused(folder, store, tiny_fingerprint, tmp_path):
    (folder / CARD).write_text("x" * 300_000)
    assert "kB" in refused([zipped(folder, tmp_path / "p.zip")], store, tiny_fingerprint)
    (tmp_path / "notes.md").write_text("x")
    assert "notes.md" in refused(
        [folder / CONFIG, folder / WEIGHTS, tmp_path / "notes.md"], store, tiny_fingerprint
    )
    assert CONFIG in refused([folder / WEIGHTS], store, tiny_fingerprint)
    assert WEIGHTS in refused([folder / CONFIG], store, tiny_fingerprint)
    refused([], store, tiny_fingerprint)


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "name, mode, data",
    [
        ("../../evil.json", 0, b"{}"),
        ("/etc/evil.json", 0, b"{}"),
        ("..\\evil.json", 0, b"{}"),
        ("C:/evil.json", 0, b"{}"),
        ("poet/link.json", stat.S_IFLNK | 0o777, b"/etc/passwd"),
        ("poet/pipe.json", stat.S_IFIFO | 0o666, b""),
        ("poet/CONFIG.json", 0, b"{}"),  # one name on some systems
        ("a/" * 11 + "deep.json", 0, b"{}"),  # thousands of such files would make millions of folders
    ],
)
def test_zips_with_outside_paths_or_links_are_refused(folder, store, tiny_fingerprint, tmp_path, name, mode, data):
    archive = zipped(folder, tmp_path / "p.zip", "poet/")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(entry(name, mode), data)
    refused([archive], store, tiny_fingerprint, kind=BadInput)
    assert not list(tmp_path.rglob("evil*")) and not Path("/etc/evil.json").exists()


def test_zip_bombs_and_too_many_files_are_refused(folder, store, tiny_fingerprint, tmp_path, monkeypatch):
    archive = zipped(folder, tmp_path / "p.zip")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("bomb.json", b"\0" * 50_000_000)
    refused([archive], store, tiny_fingerprint, kind=BadInput)
    archive = zipped(folder, tmp_path / "p.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        for i in range(1000):
            opened.writestr(f"{i}.json", b"{}")
    assert "500" in refused([archive], store, tiny_fingerprint, kind=BadInput)
    monkeypatch.setattr(upload, "MAX_BYTES", 1000)
    assert "MB" in refused([folder / CONFIG, folder / WEIGHTS], store, tiny_fingerprint, kind=BadInput)


@pytest.mark.parametrize("error", [OSError(28, "No space left", "/srv"), SafetensorError("No space left")])
@pytest.mark.parametrize("place", ["shutil.copyfile", "adapter.server.adapter_upload._take_files", "os.rename"])
def test_full_disk_is_reported(folder, store, tiny_fingerprint, monkeypatch, place, error):
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(place, full)
    assert "make room" in refused([folder / CONFIG, folder / WEIGHTS], store, tiny_fingerprint, kind=LoadError)


# Fuzzing: accepted unchanged, or refused with one sentence.


def forged(tensors: dict[str, Any]) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(64)


def stated(dtype: str, shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(lambda n, tail: struct.pack("<Q", n) + tail, st.integers(0, 2**64 - 1), st.binary(max_size=100)),
        st.builds(
            lambda *about: forged({"gates": stated(*about), "prompts": stated(*about)}),
            st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "F4", "I64", "U8", "BOOL", "C64", "X"]),
            st.lists(st.integers(0, 2**63), max_size=4),
            st.lists(st.integers(0, 2**63), min_size=2, max_size=2),
        ),
    )
)  # fmt: skip
def test_fuzz_weights(folder, store, tiny_fingerprint, data):
    (folder / WEIGHTS).write_bytes(data)
    refused([folder / CONFIG, folder / WEIGHTS], store, tiny_fingerprint)


@FUZZ
@given(st.data())
def test_fuzz_zip(folder, store, tiny_fingerprint, data):
    """With a few bytes of the zip changed, an adapter that is accepted is finite and complete."""
    archive = folder.parent / "p.zip"
    whole = bytearray(zipped(folder, archive).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) - 30, len(whole) // 2]))])
    try:
        name = add_adapter([archive], "guest", store, tiny_fingerprint).name
    except AdapterError as error:
        assert str(error).endswith(".") and str(store.incoming) not in str(error)
    else:
        load_adapter(store.folder(name), tiny_fingerprint)
        shutil.rmtree(store.folder(name))
    assert not list(store.incoming.glob(".incoming*"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@FUZZ
@given(st.data())
def test_fuzz_config(folder, store, tiny_fingerprint, data):
    config = json.loads((folder / CONFIG).read_text())
    place = data.draw(st.sampled_from([config, config["base"]]))
    place[data.draw(st.sampled_from(sorted(place)) | st.text(max_size=5))] = data.draw(json_values)
    changed = folder.parent / "changed"
    shutil.copytree(folder, changed, dirs_exist_ok=True)
    (changed / CONFIG).write_text(json.dumps(config))
    try:
        name = add_adapter([changed / CONFIG, changed / WEIGHTS], "guest", store, tiny_fingerprint).name
    except AdapterError as error:
        assert str(error).endswith(".") and len(str(error)) < 1000
    else:
        load_adapter(store.folder(name), tiny_fingerprint)
        shutil.rmtree(store.folder(name))


def test_without_training_there_is_no_upload_endpoint() -> None:
    def called(training: bool) -> list[str]:
        page = app.build_page(ReadyProvider(EchoEngine()), FakeCatalog(), training=training)
        return [str(fn.api_name) for fn in page.fns.values()]

    assert "upload_adapter" in called(True) and "upload_adapter" not in called(False)


# In a browser, on the real base.


@pytest.mark.slow
@pytest.mark.browser
def test_an_uploaded_adapter_is_selected_and_answers(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    visitor.pick("pirate")
    theirs = visitor.ask("Why is the sky blue?")
    visitor.page.locator('#chat [title="Clear"]').click()
    visitor.page.get_by_role("button", name="Bring an adapter").click()
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK nothing")
    page = visitor.page
    page.locator("#adapter-upload input[type=file]").set_input_files(bad)
    page.locator('#adapter-upload [aria-label="bad.zip"]').wait_for()
    page.get_by_role("button", name="Add it").click()
    assert "zip" in visitor.toast()
    page.locator("#adapter-upload").get_by_label("Clear").first.click()
    page.locator("#adapter-upload input[type=file]").set_input_files(
        zipped(SHIPPED / "pirate", tmp_path / "parrot.zip")
    )
    page.locator('#adapter-upload [aria-label="parrot.zip"]').wait_for()
    page.get_by_role("button", name="Add it").click()
    page.wait_for_function("""() => document.querySelector('#picker input[value="parrot"]')?.checked""")
    assert "parrot" in visitor.toast()
    assert visitor.ask("Why is the sky blue?") == theirs
    assert visitor.stats().startswith("parrot ·")
