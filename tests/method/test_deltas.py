"""V2 adapters: deltas are merged weights, zero is the base, and rows with and without them share a batch."""

import copy
import dataclasses

import pytest
import torch

from adapter.method.attention import PromptKV
from adapter.method.config import TuningConfig
from adapter.method.deltas import LINEARS, NORMS
from tests.tiny_models import random_adapter

ALL = TuningConfig(intermediate_size=64, norms=True, bias=True, scale=True, lora_rank=3)
IDS = torch.tensor([[i * 7 % 95 for i in range(20)], [i * 5 % 95 for i in range(20)]])


def tuned_adapter(fingerprint, seed=0, tuning=ALL, size=0.2):
    return random_adapter(fingerprint, seed, spread=size, prompt_length=4, tuning=tuning)


def logits(model, ids=IDS, kv=None, rows=None):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, prompt_kv=kv, prompt_rows=rows).logits


def merged(model, adapter, strength=1.0):
    """The base with the adapter's changes written into a copy of its weights."""
    model, tuning = copy.deepcopy(model), adapter.tuning
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers[-adapter.config.tuning.layers :]):
            for name in LINEARS:
                linear = getattr(layer.self_attn if name in "qkvo" else layer.mlp, f"{name}_proj")
                scale = 1 + strength * (tuning.scale[name][i] if name in tuning.scale else torch.zeros(()))
                if name in tuning.up:
                    linear.weight += strength * tuning.up[name][i] @ tuning.down[name][i]
                linear.weight *= scale.view(-1, 1)
                if name in tuning.bias:
                    linear.bias = torch.nn.Parameter(strength * tuning.bias[name][i] * scale)
            if tuning.norms is not None:
                for norm, module in zip(
                    NORMS, (layer.input_layernorm, layer.post_attention_layernorm), strict=True
                ):
                    module.weight *= 1 + strength * tuning.norms[2 * i + NORMS.index(norm)]
        if tuning.norms is not None:
            model.model.norm.weight *= 1 + strength * tuning.norms[-1]
    return model


@pytest.mark.parametrize(
    "tuning",
    [ALL, TuningConfig(64, norms=True), TuningConfig(64, lora_rank=2), dataclasses.replace(ALL, layers=1)],
    ids=["all", "norms", "lora", "topmost"],
)
def test_deltas_equal_merged_weights(tiny, tiny_fingerprint, tuning, strength=0.4):
    adapter = tuned_adapter(tiny_fingerprint, tuning=tuning)
    kv = adapter(tiny).scaled(strength)
    # Prompts pass the frozen projections, so they are the same on both sides.
    prompts = PromptKV(kv.layers)
    torch.testing.assert_close(
        logits(tiny, kv=kv), logits(merged(tiny, adapter, strength), kv=prompts), rtol=1e-4, atol=1e-4
    )


def test_untrained_deltas_and_strength_zero_are_the_base_bit_for_bit(tiny, tiny_fingerprint):
    untrained = tuned_adapter(tiny_fingerprint, size=0.0)
    untrained.gates.zero_()
    bare = logits(tiny)
    assert torch.equal(logits(tiny, kv=untrained(tiny)), bare)
    assert torch.equal(logits(tiny, kv=tuned_adapter(tiny_fingerprint)(tiny).scaled(0.0)), bare)


def test_rows_with_and_without_deltas_share_a_batch(tiny, tiny_fingerprint):
    plain, tuned = random_adapter(tiny_fingerprint), tuned_adapter(tiny_fingerprint, 1)
    other = tuned_adapter(tiny_fingerprint, 2, TuningConfig(64, bias=True, lora_rank=1))
    entries = [plain(tiny), tuned(tiny), other(tiny), PromptKV({})]
    together = logits(tiny, IDS[0].expand(4, -1), PromptKV.stack(entries), torch.tensor([1, 3, 0, 2]))
    for row, kv in zip(together, [entries[1], None, entries[0], entries[2]], strict=True):
        torch.testing.assert_close(row, logits(tiny, IDS[:1], kv)[0], rtol=1e-4, atol=1e-4)


def test_mixed_deltas_add(tiny, tiny_fingerprint):
    tuning = TuningConfig(64, bias=True, lora_rank=2)
    parts = [tuned_adapter(tiny_fingerprint, seed, tuning) for seed in (1, 2)]
    kv = PromptKV.mixed([part(tiny) for part in parts])
    model = merged(merged(tiny, parts[0]), parts[1])
    for i, layer in enumerate(model.model.layers):  # the second merge replaced the first's biases
        for name in LINEARS:
            linear = getattr(layer.self_attn if name in "qkvo" else layer.mlp, f"{name}_proj")
            linear.bias = torch.nn.Parameter(sum(part.tuning.bias[name][i] for part in parts))
    torch.testing.assert_close(logits(tiny, kv=kv), logits(model, kv=PromptKV(kv.layers)), rtol=1e-4, atol=1e-4)
