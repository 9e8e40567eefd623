"""`python -m adapter convert`: what it recognises, refuses and leaves on disk; adapters from the Hub."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from adapter.__main__ import main
from adapter.base.llama import base_fingerprint, load_base
from adapter.errors import LoadError, with_detail
from adapter.formats import hub
from adapter.formats.convert import Options, convert
from adapter.method.checkpoint import load_adapter, save_adapter
from adapter.method.config import VisionConfig
from tests.formats.test_foreign_peft import random_peft_model
from tests.tiny_models import random_adapter, random_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def ours(tmp_path, tiny_folder) -> Path:
    """One of our adapters for the tiny base, as `train` would write it."""
    adapter = random_adapter(base_fingerprint(str(tiny_folder)), template="raw", description="Rhymes.")
    head = "---\nlicense: other  # as it says\nlicense_link: https://example.org\n---\n\n# poet\n"
    save_adapter(adapter, tmp_path / "poet", head)
    return tmp_path / "poet"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The fingerprint of a base, without loading it.


@pytest.mark.parametrize("kind", ["whole", "sharded", "of another base in shards beside it"])
def test_the_fingerprint_equals_that_of_the_loaded_base(kind, tiny_base, tiny_folder, tmp_path):
    loaded = load_base(str(tiny_folder), "none", "cpu").fingerprint
    folder = shutil.copytree(tiny_folder, tmp_path / tiny_folder.name)
    if kind != "whole":
        (folder / "model.safetensors").unlink()
        model = tiny_base.model if kind == "sharded" else random_llama(random_norms=True)
        model.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    if kind not in ("whole", "sharded"):  # the index is older, and transformers reads the whole file too
        shutil.copy(tiny_folder / "model.safetensors", folder)
    assert base_fingerprint(str(folder)) == loaded and loaded.weights


def test_ours_is_copied_with_its_licence(ours, tmp_path):
    convert(str(ours), tmp_path / "to")
    one, two = load_adapter(ours), load_adapter(tmp_path / "to")
    assert one.config == two.config
    assert torch.equal(one.prompts, two.prompts) and torch.equal(one.gates, two.gates)
    head = "---\nlicense: other\nlicense_link: https://example.org\nbase_model: "
    assert (tmp_path / "to" / "README.md").read_text().startswith(head)


@pytest.mark.parametrize(
    "config, options, message",
    [
        ({"prompt_norm": True}, {"to_format": "official-v1"}, "norm, which the format does not know"),
        ({"form": 'start: "a"'}, {"to_format": "official-v1"}, "or has a form"),
        ({"vision": VisionConfig("any", feature_size=6)}, {"to_format": "official-v1"}, "it reads pictures"),
        ({}, {"gate_activation": "identity"}, "says tanh. Leave --gate-activation out"),
    ],
)
def test_what_cannot_be_written_exactly_is_refused(tiny_fingerprint, tmp_path, config, options, message):
    save_adapter(random_adapter(tiny_fingerprint, **config), tmp_path / "ours")
    with pytest.raises(LoadError, match=message):
        convert(str(tmp_path / "ours"), tmp_path / "to", Options(**options))
    assert names_in(tmp_path) == ["ours"]


# Files that are refused.


class _Code:
    def __reduce__(self):
        return os.system, ('touch "$MADE_BY_CODE"',)


LLAMA_PTH = {f"layers.{i}.attention.wq.weight": torch.ones(2, 2) for i in range(2)}
V1 = {"adapter_query.weight": torch.ones(10, 32)} | {
    f"layers.{i}.attention.gate": torch.ones(1, 4, 1, 1) for i in range(4)
}


def saved(content, compression=zipfile.ZIP_STORED, zipped=True) -> bytes:
    """The bytes that torch.save writes; compressed if asked to, which torch never does."""
    stored, packed = io.BytesIO(), io.BytesIO()
    torch.save(content, stored, _use_new_zipfile_serialization=zipped)
    if not compression:
        return stored.getvalue()
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return packed.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (saved({"adapter_query.weight": _Code()}), "(posix.system)"),
        (pickle.dumps({"a": _Code()}, protocol=2), "holds code, which is not run"),
        (saved(V1, zipfile.ZIP_DEFLATED), "compressed"),  # it could unpack to any size
        (saved({**LLAMA_PTH, "tok_embeddings.weight": torch.ones(2, 2)}), "is a base"),
        (saved({"base_model.model.layers.0.q_proj.lora_A.weight": torch.ones(2)}), "is a LoRA"),
        # The V2 family is recognised by tensors that only it has.
        (saved({"model": V1, "config": {"w_bias": True, "w_lora": False}}), "cannot be shared out"),
        *((half, "damaged or only half a download") for half in (saved(V1)[:-20], saved(V1, zipped=False)[:30])),
        (b"# Notes\n", "no weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_v1_adapter_is_refused(tiny_folder, tmp_path, monkeypatch, content, message):
    monkeypatch.setenv("MADE_BY_CODE", str(tmp_path / "made"))
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(LoadError) as error:
        convert(str(tmp_path / "file.pth"), tmp_path / "to", Options(base=str(tiny_folder)))
    assert message in with_detail(error.value) and "\n" not in str(error.value)
    assert names_in(tmp_path) == ["file.pth"]


# What is left on disk.


def test_a_folder_that_is_not_empty_is_never_written_to(ours, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(LoadError, match="exists already and is not overwritten"):
        convert(str(ours), tmp_path / "full")
    assert names_in(tmp_path / "full") == ["thesis.txt"]


# The command line and the Hub.


def test_the_command_converts_and_notes_what_it_assumed(tiny_folder, tmp_path, capsys):
    to = tmp_path / "v1"
    torch.save(V1, tmp_path / "v1.pth")
    stated = ["--base", str(tiny_folder), "--layers", "2"]
    assert main(["convert", str(tmp_path / "v1.pth"), "--to", str(to), *stated]) == 0
    out = capsys.readouterr().out
    assert "tanh gates, template alpaca" in out and "note: gate activation (assumed)" in out
    assert "note: template (assumed)" in out
    assert "| gate activation | tanh (assumed, see below) |" in (to / "README.md").read_text()
    assert main(["--adapters", str(tmp_path), "show", "v1"]) == 0


def test_adapters_of_both_formats_answer_from_the_hub(ours, tiny_folder, tmp_path, monkeypatch, capsys):
    snapshot = tmp_path / "hub" / "snapshots" / COMMIT
    download = Mock(return_value=str(snapshot))
    monkeypatch.setattr(hub, "snapshot_download", download)
    common = ["generate", "--temperature", "0", "--max-new-tokens", "8", "--quantization", "none"]
    common += ["--device", "cpu", "--base", str(tiny_folder), "--raw", "hello"]
    assert main(["--adapters", str(ours.parent), *common, "--adapter", "poet"]) == 0
    expected = capsys.readouterr().out
    shutil.copytree(ours, snapshot)
    assert main([*common, "--adapter", "someone/poet@v1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == expected and f"adapter: someone/poet@{COMMIT}" in captured.err
    patterns = ["*.safetensors", "*.json", "*.md"]
    asked = {"allow_patterns": patterns, "ignore_patterns": ["model*-of-*.safetensors"]}
    download.assert_called_once_with("someone/poet", revision="v1", **asked)
    shutil.rmtree(snapshot)
    random_peft_model(tiny_folder).save_pretrained(snapshot)
    assert main([*common, "--adapter", "someone/peft"]) == 0
    answered, to = capsys.readouterr().out, tmp_path / "converted" / "peft"
    assert main(["convert", "someone/peft", "--to", str(to), "--base", str(tiny_folder)]) == 0
    assert f"someone/peft@{COMMIT}" in (to / "README.md").read_text()
    capsys.readouterr()
    assert main(["--adapters", str(to.parent), *common, "--adapter", "peft"]) == 0
    assert capsys.readouterr().out == answered != expected
