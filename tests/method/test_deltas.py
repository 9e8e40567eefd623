"""V2 adapters: deltas are merged weights, zero is the base, and rows with and without them share a batch."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import closing

import pytest
import torch

from adapter.base.template import Message
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.checkpoint import save_adapter
from adapter.method.config import AdapterConfig, TuningConfig
from adapter.method.deltas import LINEARS, NORMS
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest, SamplingParams
from adapter.serve.store import AdapterStore
from tests.tiny_models import random_adapter

ALL = TuningConfig(intermediate_size=64, norms=True, bias=True, scale=True, lora_rank=3)
IDS = torch.tensor([[i * 7 % 95 for i in range(20)], [i * 5 % 95 for i in range(20)]])


def tuned_adapter(fingerprint, seed=0, tuning=ALL, size=0.2, **config) -> Adapter:
    torch.manual_seed(seed)
    adapter = Adapter(
        AdapterConfig(base=fingerprint, prompt_length=4, insertion_layers=3, tuning=tuning, **config)
    )
    torch.nn.init.uniform_(adapter.gates, 0.2, 0.5)
    for parameter in adapter.tuning.parameters():
        torch.nn.init.normal_(parameter, std=size)
    return adapter.requires_grad_(False).eval()


def logits(model, ids=IDS, kv=None, rows=None):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, prompt_kv=kv, prompt_rows=rows).logits


def merged(model, adapter, strength=1.0):
    """The base with the adapter's changes written into a copy of its weights."""
    model, tuning = copy.deepcopy(model), adapter.tuning
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "gate": "gate_proj", "up": "up_proj"}
    names["down"] = "down_proj"
    with torch.no_grad():
        layers = model.model.layers[-adapter.config.tuning.layers :]
        for i, layer in enumerate(layers):
            for name in LINEARS:
                linear = getattr(layer.self_attn if name in "qkvo" else layer.mlp, names[name])
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


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize(
    "tuning",
    [
        ALL,
        TuningConfig(64, norms=True),
        TuningConfig(64, bias=True),
        TuningConfig(64, scale=True),
        TuningConfig(64, lora_rank=2),
        dataclasses.replace(ALL, layers=1),
    ],
    ids=["all", "norms", "bias", "scale", "lora", "topmost"],
)
def test_deltas_equal_merged_weights(tiny, tiny_fingerprint, tuning, strength):
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
    entries = [plain(tiny), tuned(tiny), other(tiny)]
    ids = IDS[0].expand(4, -1)
    together = logits(tiny, ids, PromptKV.stack(entries), torch.tensor([1, -1, 0, 2]))
    alone = [entries[1], None, entries[0], entries[2]]
    for row, kv in zip(together, alone, strict=True):
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


def test_generate_with_a_cache_equals_no_cache(tiny, tiny_fingerprint):
    kv = tuned_adapter(tiny_fingerprint)(tiny)
    ids = tiny.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, prompt_kv=kv
    )
    assert torch.equal(logits(tiny, ids, kv)[:, 19:-1].argmax(-1), ids[:, 20:])


@pytest.mark.parametrize("kind", ["tiny_base", "packed_base"])
def test_batched_rows_equal_rows_alone_in_the_engine(kind, request, tiny_fingerprint, tmp_path):
    serving = request.getfixturevalue(kind)
    save_adapter(tuned_adapter(tiny_fingerprint, 1, template="raw", size=0.05), tmp_path / "tuned")
    save_adapter(random_adapter(tiny_fingerprint, 2, template="raw"), tmp_path / "plain")
    requests = [
        GenerationRequest((Message("user", "abc"),), adapter=name, strength=strength, mix=mix,
                          sampling=SamplingParams(temperature=0, max_new_tokens=8))
        for name, strength, mix in (
            ("tuned", 1.0, ()), (None, 1.0, ()), ("plain", 1.0, ()), ("tuned", 0.5, (("plain", 0.7),)),
            ("tuned", 0.0, ()), ("plain", 0.0, ()),
        )
    ]  # fmt: skip

    def told(answers):
        return [[(e.token_id, e.logprob) for e in answer if e.token_id is not None] for answer in answers]

    with closing(Engine(serving, AdapterStore(tmp_path))) as engine:
        alone = [told([engine.submit(request)])[0] for request in requests]
        together = told([engine.submit(request) for request in requests])
    exact = serving.quantization != "none"  # in fp32 the order of summation may differ

    def same(one, other):
        assert [t for t, _ in one] == [t for t, _ in other]
        assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=0 if exact else 1e-3)

    for one, other in zip(alone, together, strict=True):
        same(one, other)
    same(alone[4], alone[5])
    assert alone[4] != alone[0]
