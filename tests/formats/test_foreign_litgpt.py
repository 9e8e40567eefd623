"""LitGPT's adapter v1 against its equations in fp64: prompts through the layer's projections, without rotation,
and one raw gate for each head. Its code was not used.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from adapter.base.llama import base_fingerprint
from adapter.errors import LoadError
from adapter.formats.convert import Options, convert
from adapter.method.checkpoint import load_adapter, save_adapter
from tests.reference_llama import (
    HEADS,
    HIDDEN,
    IDS,
    LAYERS,
    converted_logits,
    meta_weights,
    reference_logits,
    rotate_halves,
    stepwise_logits,
)
from tests.tiny_models import random_adapter

CLOSE = {"rtol": 0, "atol": 1e-5}
SHAPES = {"current": (1, 1, HEADS, 1), "earlier": (1, HEADS, 1, 1), "scalar": ()}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def random_litgpt(length=5, layers=3, gate=SHAPES["current"], seed=0):
    torch.manual_seed(seed)
    tensors = {}
    for i in range(LAYERS - layers, LAYERS):
        tensors[f"transformer.h.{i}.attn.adapter_wte.weight"] = torch.randn(length, HIDDEN)
        tensors[f"transformer.h.{i}.attn.gating_factor"] = torch.empty(gate).uniform_(-1.3, 1.3)
    return tensors


def reference(model, tensors):
    by_layer = {int(name.split(".")[2]): t for name, t in tensors.items() if name.endswith("wte.weight")}
    gates = {i: tensors[f"transformer.h.{i}.attn.gating_factor"].flatten() for i in by_layer}
    return reference_logits(meta_weights(model), IDS, by_layer, gates, rotate_halves)


@pytest.mark.parametrize("length, layers, gate", [(1, 4, "current"), (5, 3, "earlier"), (3, 1, "scalar")])
def test_a_litgpt_adapter_gives_the_reference_logits(small, tmp_path, length, layers, gate):
    model, folder = small
    tensors = random_litgpt(length, layers, SHAPES[gate])
    source = tmp_path / "lit_model.pth.adapter"
    torch.save(tensors, source)
    expected = reference(model, tensors)
    assert (expected - stepwise_logits(model, IDS)).abs().max() > 0.02
    assert_close(converted_logits(model, folder, source, tmp_path / "ours").double(), expected, **CLOSE)


@pytest.mark.parametrize("length, layers, activation", [(4, 3, "tanh"), (7, 4, "identity")])
def test_our_adapter_written_as_litgpt_gives_the_same_logits(small, tmp_path, length, layers, activation):
    model, folder = small
    config = {"prompt_length": length, "insertion_layers": layers, "gate_activation": activation}
    adapter = random_adapter(base_fingerprint(str(folder)), gate=1.4, **config)
    save_adapter(adapter, tmp_path / "ours")
    _, notes = convert(str(tmp_path / "ours"), tmp_path / "lit", Options(to_format="litgpt"))
    assert f"adapter_prompt_length: {length} and adapter_start_layer: {LAYERS - layers}" in notes[-1]
    tensors = torch.load(tmp_path / "lit" / "lit_model.pth.adapter", weights_only=True)["model"]
    assert {tuple(t.shape) for n, t in tensors.items() if n.endswith("gating_factor")} == {(1, 1, HEADS, 1)}
    assert_close(
        stepwise_logits(model, IDS, prompt_kv=adapter(model)).double(), reference(model, tensors), **CLOSE
    )
    convert(str(tmp_path / "lit"), tmp_path / "back", Options(base=str(folder)))
    back = load_adapter(tmp_path / "back")
    assert torch.equal(back.prompts, adapter.prompts) and torch.equal(back.gates, adapter.activated_gates())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"transformer.h.2.attn.gating_factor": None}, "layer 2 has prompts only"),
        ({"transformer.h.2.attn.adapter_wte.weight": torch.ones(5, 16)}, "different shapes"),
        ({"transformer.h.2.attn.adapter_bias": torch.ones(5)}, "adapter v2"),
    ],
)
def test_a_broken_file_is_refused(small, tmp_path, change, message):
    tensors = {name: t for name, t in {**random_litgpt(), **change}.items() if t is not None}
    torch.save({"model": tensors}, tmp_path / "lit_model.pth.adapter")
    with pytest.raises(LoadError) as error:
        convert(str(tmp_path / "lit_model.pth.adapter"), tmp_path / "to", Options(base=str(small[1])))
    assert message in str(error.value)
    assert not (tmp_path / "to").exists()
