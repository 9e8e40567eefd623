"""The adapter store lists what is on disk, and returns one read-only object until its files change."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from adapter.errors import LoadError
from adapter.method.checkpoint import save_adapter
from adapter.serve.store import AdapterStore
from tests.tiny_models import random_adapter


def test_adapters_come_and_go(tmp_path, tiny_fingerprint, tiny_base):
    store = AdapterStore(tmp_path)
    assert store.names() == []
    save_adapter(random_adapter(tiny_fingerprint, description="Rhymes."), tmp_path / "poet")
    assert store.names() == ["poet"]
    card = store.card("poet")
    assert (card.description, card.config.is_visual) == ("Rhymes.", False)
    assert card.bytes == (tmp_path / "poet" / "adapter.safetensors").stat().st_size
    loaded = store.load("poet", tiny_base.fingerprint)
    assert store.load("poet", tiny_base.fingerprint) is loaded
    store._loaded.limit = loaded.nbytes + 1
    save_adapter(random_adapter(tiny_fingerprint), tmp_path / "other")
    store.load("other", tiny_base.fingerprint)
    assert store.load("poet", tiny_base.fingerprint) is not loaded, "kept by their bytes"
    for name in ("poet", "other"):
        shutil.rmtree(tmp_path / name)
    assert store.names() == []
    with pytest.raises(LoadError, match="no adapter 'poet'"):
        store.load("poet", tiny_base.fingerprint)
    assert torch.isfinite(loaded.prompts).all()  # a row that uses it can go on


def test_an_adapter_that_is_written_again_within_a_tick_of_the_clock_is_another(
    tmp_path, tiny_fingerprint, tiny_base, monkeypatch
):
    stat = os.stat

    def still(path, **options):  # all files have the same times
        found = stat(path, **options)
        times = {"st_mtime_ns": 0, "st_ctime_ns": 0, "st_size": found.st_size, "st_ino": found.st_ino}
        return SimpleNamespace(**times, st_mode=found.st_mode)

    store = AdapterStore(tmp_path)
    for adapter in [random_adapter(tiny_fingerprint, seed) for seed in (1, 2)]:
        save_adapter(adapter, tmp_path / "poet")
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", still)
            assert torch.equal(store.load("poet", tiny_base.fingerprint).prompts, adapter.prompts)


def test_a_form_is_checked_when_its_adapter_is_loaded_and_not_when_it_is_listed(
    tmp_path, tiny_fingerprint, tiny_base, monkeypatch
):
    save_adapter(random_adapter(tiny_fingerprint, form="start: ("), tmp_path / "poet")
    store = AdapterStore(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process"))
        assert store.card("poet").config.form == "start: ("
    for _ in range(2):
        with pytest.raises(LoadError, match="Adapter 'poet': The form cannot be used: 1\\(9\\): Expected token"):
            store.load("poet", tiny_base.fingerprint)


def test_a_name_is_never_a_path(tmp_path, tiny_fingerprint):
    save_adapter(random_adapter(tiny_fingerprint), tmp_path / "poet")
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner", tmp_path / "poet"):
        for name in ("../poet", f"../{tmp_path.name}/poet", "", ".", "poet/../poet"):
            with pytest.raises(LoadError, match="no adapter"):
                AdapterStore(folder).load(name, None)


def test_the_cards_of_many_adapters_do_not_look_at_all_of_them_each(tmp_path, tiny_fingerprint, monkeypatch):
    """Every open page asks for all cards every few seconds, and visitors may bring 500 adapters."""
    for number in range(20):
        save_adapter(random_adapter(tiny_fingerprint), tmp_path / f"a{number}")
    looked_at, is_file = [], os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: (looked_at.append(path), is_file(path))[1])
    store = AdapterStore(tmp_path)
    assert len([store.card(name) for name in store.names()]) == 20
    assert len(looked_at) == 40, "once for its name, once for its card"


def test_the_first_folder_wins(tmp_path, tiny_fingerprint):
    for which in ("mine", "shipped"):
        save_adapter(random_adapter(tiny_fingerprint, description=which), tmp_path / which / "poet")
    store = AdapterStore(tmp_path / "mine", tmp_path / "shipped")
    assert store.names() == ["poet"]
    assert store.card("poet").description == "mine"
