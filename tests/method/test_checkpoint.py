"""Adapters on disk: the identity of saving and loading, and everything that must be refused."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter.errors import LoadError
from adapter.method.checkpoint import CONFIG, WEIGHTS, load_adapter, read_config, save_adapter
from tests.tiny_models import random_adapter


@pytest.fixture
def saved(tmp_path, tiny_fingerprint):
    adapter = random_adapter(tiny_fingerprint)
    save_adapter(adapter, tmp_path / "poet", "A card.")
    return adapter, tmp_path / "poet"


def test_save_then_load_is_the_identity(saved):
    adapter, folder = saved
    loaded = load_adapter(folder)
    assert loaded.config == adapter.config
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert (folder / "README.md").read_text() == "A card."
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "others may read the weights, too"
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda t: t.pop("gates"), "lacks gates"),
        (lambda t: t.update(prompts=torch.zeros(3, 4, 32)), r"\(3, 4, 32\), not \(3, 5, 32\)"),
        (lambda t: t["prompts"].__setitem__((0, 0, 0), float("nan")), "not finite"),
        (lambda t: t.update(gates=torch.zeros(3, 4, dtype=torch.int64)), "type torch.int64"),
        (lambda t: t.update(gates=t["gates"].to(torch.float8_e4m3fn)), "type torch.float8_e4m3fn"),
    ],
)
def test_wrong_weights_are_refused_by_name(saved, edit, words):
    _, folder = saved
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(LoadError, match=words) as caught:
        load_adapter(folder)
    assert "poet" in str(caught.value) and "again" in str(caught.value)


def test_a_header_that_is_far_too_long_is_not_parsed(saved, monkeypatch):
    """Its tensors, however empty, would hold up everybody for seconds, and take gigabytes."""
    monkeypatch.setattr("adapter.method.checkpoint._HEADER_BYTES", 100)
    with pytest.raises(LoadError, match="header"):
        load_adapter(saved[1])


def test_a_truncated_or_missing_file_is_refused(saved):
    _, folder = saved
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(LoadError, match="poet.*damaged"):
            load_adapter(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(LoadError, match="poet.*missing"):
        load_adapter(folder)


def test_another_base_is_refused_with_both_names(saved, tiny_fingerprint):
    _, folder = saved
    other = replace(tiny_fingerprint, name="huge", hidden_size=4096)
    with pytest.raises(LoadError, match="made for tiny.*huge.*hidden_size 32 instead of 4096.*Load the base"):
        load_adapter(folder, other)
    known = replace(tiny_fingerprint, tokenizer="aaaa")
    save_adapter(random_adapter(known), folder)
    load_adapter(folder, known)
    with pytest.raises(LoadError, match="another tokenizer"):
        load_adapter(folder, replace(known, tokenizer="bbbb"))
    load_adapter(folder, replace(known, weights="other precision"))


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda c: c.update(surprise=1), "surprise: Unexpected keyword"),
        (lambda c: c["base"].pop("hidden_size"), "base.hidden_size: Field required"),
        (lambda c: c.update(prompt_length="ten"), "prompt_length: .* valid integer, got 'ten'"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_field(saved, edit, words):
    _, folder = saved
    config = json.loads((folder / CONFIG).read_text())
    edit(config)
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(LoadError, match=words):
        read_config(folder)


@pytest.mark.parametrize("fails, done", [("adapter.method.checkpoint.save", 0), ("pathlib.Path.write_text", 1)])
def test_a_failed_save_keeps_the_old_adapter(saved, monkeypatch, tiny_fingerprint, fails, done):
    adapter, folder = saved
    monkeypatch.setattr(fails, Mock(side_effect=[*[0] * done, OSError(28, "No space left on device")]))
    with pytest.raises(OSError, match="No space"):
        save_adapter(random_adapter(tiny_fingerprint, seed=9, description="Another."), folder, "New.")
    assert torch.equal(load_adapter(folder).prompts, adapter.prompts)
    assert (folder / "README.md").read_text() == "A card."
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", WEIGHTS, CONFIG]
