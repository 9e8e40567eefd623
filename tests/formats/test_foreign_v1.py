"""The official V1 format against its equations in fp64, on weights in Meta's convention. Its code was not used."""

import argparse

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
    rotate_pairs,
    stepwise_logits,
)
from tests.tiny_models import random_adapter

CLOSE = {"rtol": 0, "atol": 1e-5}


def random_v1(length=5, layers=3, scalar=False, seed=0):
    """A trained V1 file: gates of layers without prompts are still zero."""
    torch.manual_seed(seed)
    tensors = {"adapter_query.weight": torch.randn(layers * length, HIDDEN)}
    for i in range(LAYERS):
        gate = torch.zeros(1) if scalar else torch.zeros(1, HEADS, 1, 1)
        tensors[f"layers.{i}.attention.gate"] = gate.uniform_(-1.2, 1.2) if i >= LAYERS - layers else gate
    return tensors


def reference(model, tensors, layers, activation):
    """Logits by the published equations, with Meta's rotation of pairs."""
    prompts = tensors["adapter_query.weight"].view(layers, -1, HIDDEN)
    first = LAYERS - layers
    act = torch.tanh if activation == "tanh" else torch.clone
    gates = {i: act(tensors[f"layers.{i}.attention.gate"].double()).flatten() for i in range(first, LAYERS)}
    by_layer = {i: prompts[i - first] for i in range(first, LAYERS)}
    return reference_logits(meta_weights(model, in_pairs=True), IDS, by_layer, gates, rotate_pairs)


@pytest.mark.parametrize("activation", ["tanh", "identity"])
@pytest.mark.parametrize("length, layers, scalar", [(1, 4, False), (5, 3, False), (10, 1, True)])
def test_a_v1_file_gives_the_reference_logits(small, tmp_path, length, layers, scalar, activation):
    model, folder = small
    tensors = random_v1(length, layers, scalar)
    torch.save(tensors, tmp_path / "v1.pth")
    expected = reference(model, tensors, layers, activation)
    assert (expected - stepwise_logits(model, IDS)).abs().max() > 0.02
    found = converted_logits(model, folder, tmp_path / "v1.pth", tmp_path / "ours", gate_activation=activation)
    assert_close(found.double(), expected, **CLOSE)


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_our_adapter_written_as_v1_gives_the_same_logits(small, tmp_path, activation):
    model, folder = small
    fingerprint = base_fingerprint(str(folder))
    adapter = random_adapter(fingerprint, gate=1.4, gate_activation=activation)
    save_adapter(adapter, tmp_path / "ours")
    to = tmp_path / "theirs"
    if fingerprint.num_key_value_heads != HEADS:
        with pytest.raises(LoadError, match="shares 2 key heads"):
            convert(str(tmp_path / "ours"), to, Options(to_format="official-v1"))
        assert not to.exists()
        return
    _, notes = convert(str(tmp_path / "ours"), to, Options(to_format="official-v1"))
    assert ("through tanh" if activation == "tanh" else "without tanh") in notes[-1]
    tensors = torch.load(to / "llama_adapter_len5_layer3.pth", weights_only=True)
    assert sorted(tensors) == sorted(random_v1())
    assert not tensors["layers.0.attention.gate"].any()
    expected = reference(model, tensors, 3, activation)
    assert_close(stepwise_logits(model, IDS, prompt_kv=adapter(model)).double(), expected, **CLOSE)
    convert(str(to), tmp_path / "back", Options(base=str(folder), gate_activation=activation))
    back = load_adapter(tmp_path / "back")
    assert torch.equal(back.prompts, adapter.prompts) and torch.equal(back.gates, adapter.gates)


def test_a_full_training_checkpoint_is_read(small, tmp_path):
    """{model, optimizer, epoch, scaler, args} around the whole base; args tell K and L."""
    model, folder = small
    tensors = random_v1(length=6, layers=2)
    tensors["layers.2.attention.gate"].zero_()  # alone, the gates would mean one layer of 12 prompts
    whole = {
        "model": {**{n: t.half() for n, t in meta_weights(model, in_pairs=True).items()}, **tensors},
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 4,
        "args": argparse.Namespace(adapter_layer=2, adapter_len=6, lr=None),
    }
    torch.save(whole, tmp_path / "checkpoint-4.pth")
    found = converted_logits(model, folder, tmp_path / "checkpoint-4.pth", tmp_path / "ours")
    assert_close(found.double(), reference(model, tensors, 2, "tanh"), **CLOSE)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers.1.attention.gate": None}, "the gate of layer 1 is missing"),
        ({"layers.1.attention.gate": torch.full((1, HEADS, 1, 1), torch.nan)}, "not finite"),
        ({"adapter_query.weight": torch.randn(15, 64)}, "hidden_size 64 instead of 32"),
        ({"adapter_query.weight": torch.ones(1).expand(3 * 10**5, 10**6)}, "far more than an adapter has"),
        ({"surprise": torch.ones(1)}, "surprise is no part of a V1 adapter"),
        ({"tok_embeddings.weight": torch.ones(9, HIDDEN)}, "a vocabulary of 9 instead of"),
    ],
)
def test_a_broken_file_is_refused(small, tmp_path, change, message):
    torch.save({name: t for name, t in {**random_v1(), **change}.items() if t is not None}, tmp_path / "v1.pth")
    with pytest.raises(LoadError) as error:
        convert(str(tmp_path / "v1.pth"), tmp_path / "to", Options(base=str(small[1]), layers=3))
    assert message in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.pth"]
