"""PEFT's ADAPTION_PROMPT, by running PEFT: both directions, prefill and decode with a cache, fp32."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from peft import AdaptionPromptConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from adapter.base.llama import base_fingerprint
from adapter.errors import LoadError
from adapter.formats.convert import Options, convert
from adapter.method.checkpoint import load_adapter, save_adapter
from tests.reference_llama import IDS, converted_logits, stepwise_logits
from tests.tiny_models import random_adapter

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def random_peft_model(folder, length=5, layers=3, seed=0):
    """A PEFT model with random prompts, and gates of both signs, some beyond 1."""
    torch.manual_seed(seed)
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = AdaptionPromptConfig(adapter_len=length, adapter_layers=layers, task_type="CAUSAL_LM")
    model = get_peft_model(plain, config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("adaption_gate"):
            weight.uniform_(-1.5, 1.5)
    return model


@pytest.mark.parametrize("length, layers", [(1, 4), (5, 3), (10, 1)])
def test_a_peft_adapter_gives_the_logits_of_peft(small, tmp_path, length, layers):
    model, folder = small
    theirs = random_peft_model(folder, length, layers)
    theirs.save_pretrained(tmp_path / "peft")
    expected = stepwise_logits(theirs, IDS)
    assert (expected - stepwise_logits(model, IDS)).abs().max() > 0.02  # the adapter does something
    assert_close(converted_logits(model, folder, tmp_path / "peft", tmp_path / "ours"), expected, **CLOSE)


@pytest.mark.parametrize("length, layers, activation", [(1, 4, "tanh"), (6, 2, "identity")])
def test_our_adapter_gives_the_same_logits_in_peft(small, tmp_path, length, layers, activation):
    model, folder = small
    config = {"prompt_length": length, "insertion_layers": layers, "gate_activation": activation}
    adapter = random_adapter(base_fingerprint(str(folder)), gate=1.4, **config)
    adapter.gates.copy_(adapter.gates[:, :1].expand_as(adapter.gates))
    save_adapter(adapter, tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "peft", Options(to_format="peft"))
    theirs = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), str(tmp_path / "peft")
    ).eval()
    expected = stepwise_logits(model, IDS, prompt_kv=adapter(model))
    assert (expected - stepwise_logits(model, IDS)).abs().max() > 0.02
    assert_close(stepwise_logits(theirs, IDS), expected, **CLOSE)


def test_the_round_trip_is_exact(small, tmp_path):
    _, folder = small
    random_peft_model(folder).save_pretrained(tmp_path / "one")
    convert(str(tmp_path / "one"), tmp_path / "ours", Options(base=str(folder)))
    convert(str(tmp_path / "ours"), tmp_path / "two", Options(to_format="peft"))
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert load_adapter(tmp_path / "ours").config.gate_activation == "identity"


def test_a_bin_and_a_single_file_are_read_too(small, tmp_path):
    model, folder = small
    theirs = random_peft_model(folder)
    theirs.save_pretrained(tmp_path / "peft")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    expected = converted_logits(model, folder, tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "alone")
    (tmp_path / "peft" / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "peft" / "adapter_model.bin")
    assert torch.equal(converted_logits(model, folder, tmp_path / "peft", tmp_path / "bin"), expected)


NAME = "base_model.model.model.layers.{}.self_attn.adaption_{}"


def write_peft_folder(folder, config=(), changes=()):
    """A PEFT folder with some configuration values and tensors, by layer and kind, replaced or taken away."""
    tensors = {(i, "prompt"): torch.ones(1, 5, 32) for i in (1, 2, 3)}
    tensors |= {(i, "gate"): torch.ones(1) for i in (1, 2, 3)}
    tensors |= dict(changes)
    folder.mkdir()
    present = {NAME.format(*key): tensor for key, tensor in tensors.items() if tensor is not None}
    save_file(present, folder / "adapter_model.safetensors")
    base = {"peft_type": "ADAPTION_PROMPT", "adapter_len": 5, "adapter_layers": 3}
    (folder / "adapter_config.json").write_text(json.dumps(base | dict(config)))
    return folder


@pytest.mark.parametrize(
    "config, changes, message",
    [
        ({"peft_type": "LORA"}, {}, "PEFT's LORA"),
        ({"adapter_len": 9}, {}, "says adapter_len 9, the weights have 5"),
        ({"adapter_layers": 2}, {}, "says adapter_layers 2, the weights have 3"),
        ({}, {(2, "prompt"): torch.ones(1, 4, 32)}, "different shapes"),
        ({}, {(2, "prompt"): torch.ones(5, 32)}, "layer 2 has shape (5, 32)"),
        ({}, {(2, "gate"): torch.ones(4)}, "some of its layers have 1 gates and others 4"),
        ({}, {(2, "gate"): torch.full((1,), torch.inf)}, "adaption_gate holds numbers that are not finite"),
        ({}, {(2, "gate"): torch.ones(1, dtype=torch.int32)}, "has type torch.int32"),
        ({}, {(2, "gate"): None}, "layer 2 has prompts only"),
        ({}, {(2, "gate"): None, (2, "prompt"): None}, "have gaps"),
        ({"adapter_layers": 2}, {(3, "gate"): None, (3, "prompt"): None}, "topmost"),
        (
            {"base_model_name_or_path": "huggyllama/llama-13b"},
            {(i, "prompt"): torch.ones(1, 5, 64) for i in (1, 2, 3)},
            "hidden_size 64 instead of 32. Name the base that it was made for with --base. It names huggyllama",
        ),
    ],
)
def test_a_broken_folder_is_refused(small, tmp_path, config, changes, message):
    source = write_peft_folder(tmp_path / "theirs", config, changes)
    with pytest.raises(LoadError) as error:
        convert(str(source), tmp_path / "to", Options(base=str(small[1])))
    assert message in str(error.value)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("head_dim", "message"),
    [
        (8, "one gate a layer, and in layer 1 the heads' gates differ"),
        (16, "number of key heads"),  # PEFT cannot run a base whose heads are not hidden_size together
    ],
)
def test_what_peft_cannot_hold_or_run_is_refused(small, tmp_path, head_dim, message):
    adapter = random_adapter(dataclasses.replace(base_fingerprint(str(small[1])), head_dim=head_dim))
    if head_dim == 16:
        adapter.gates.fill_(0.5)
    save_adapter(adapter, tmp_path / "ours")
    with pytest.raises(LoadError, match=message):
        convert(str(tmp_path / "ours"), tmp_path / "peft", Options(to_format="peft"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]
