"""The laws of zero-init attention, on a tiny grouped-query LLaMA in fp32."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from adapter.method.attention import PromptKV
from tests.tiny_models import random_adapter

IDS = torch.arange(24).reshape(2, 12) * 7 % 97


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def greedy_without_cache(model, ids, steps, **kwargs):
    for _ in range(steps):
        logits = model(input_ids=ids, use_cache=False, **kwargs).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


def test_zero_gate_is_the_base_bit_for_bit(tiny, tiny_fingerprint):
    adapter = random_adapter(tiny_fingerprint)
    adapter.gates.zero_()
    kv = adapter(tiny)
    plain, gated = tiny(input_ids=IDS), tiny(input_ids=IDS, prompt_kv=kv)
    assert torch.equal(plain.logits, gated.logits)
    following = torch.tensor([[3], [5]])
    plain = tiny(input_ids=following, cache=plain.cache)
    gated = tiny(input_ids=following, cache=gated.cache, prompt_kv=kv)
    assert torch.equal(plain.logits, gated.logits)


def test_strength_zero_is_the_base_and_strength_scales_the_activated_gate(tiny, tiny_fingerprint):
    adapter = random_adapter(tiny_fingerprint)
    kv = adapter(tiny)
    base = tiny(input_ids=IDS).logits
    assert torch.equal(base, tiny(input_ids=IDS, prompt_kv=kv.scaled(0.0)).logits)
    assert not torch.allclose(base, tiny(input_ids=IDS, prompt_kv=kv).logits)
    adapter.gates.copy_((adapter.gates.tanh() * 0.5).atanh())
    assert_close(
        tiny(input_ids=IDS, prompt_kv=kv.scaled(0.5)).logits,
        tiny(input_ids=IDS, prompt_kv=adapter(tiny)).logits,
    )


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_equals_the_paper_written_out(tiny, tiny_fingerprint, activation):
    """Equations 6 to 8, in fp64 with loops over heads, inside an otherwise untouched forward pass."""
    adapter = random_adapter(tiny_fingerprint, gate_activation=activation).double()
    model = tiny.double()
    try:
        got = model(input_ids=IDS, prompt_kv=adapter(model)).logits
        want = _reference_logits(model, adapter, IDS)
    finally:
        tiny.float()
    assert_close(got, want, rtol=1e-4, atol=1e-5)  # softmax and RMSNorm run in fp32


def _reference_logits(model, adapter, ids):
    hidden = model.model.embed_tokens(ids)
    length = hidden.shape[1]
    cos, sin = model.model.rotary_emb(hidden, torch.arange(length)[None])
    first = adapter.config.layers[0]
    for index, layer in enumerate(model.model.layers):
        attn = layer.self_attn
        x = layer.input_layernorm(hidden)
        heads = []
        for h in range(4):
            group = h // 2
            q = _rope(x @ attn.q_proj.weight[h * 8 : h * 8 + 8].T, cos, sin)
            wk = attn.k_proj.weight[group * 8 : group * 8 + 8]
            wv = attn.v_proj.weight[group * 8 : group * 8 + 8]
            k, v = _rope(x @ wk.T, cos, sin), x @ wv.T
            scores = q @ k.transpose(1, 2) / math.sqrt(8)
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            out = scores.softmax(-1) @ v
            if index >= first:
                prompts = adapter.prompts[index - first]
                gate = adapter.gates[index - first, h]
                gate = gate.tanh() if adapter.config.gate_activation == "tanh" else gate
                out = out + gate * (q @ (prompts @ wk.T).T / math.sqrt(8)).softmax(-1) @ (prompts @ wv.T)
            heads.append(out)
        hidden = hidden + torch.cat(heads, dim=-1) @ attn.o_proj.weight.T
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.model.norm(hidden) @ model.lm_head.weight.T


def _rope(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_equals_the_uncached_forward_pass(tiny, tiny_fingerprint, cache):
    kv = random_adapter(tiny_fingerprint)(tiny)
    want = greedy_without_cache(tiny, IDS, 10, prompt_kv=kv)
    got = tiny.generate(
        input_ids=IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=10,
        do_sample=False,
        prompt_kv=kv,
        **({"cache_implementation": "static"} if cache == "static" else {}),
    )
    assert got.tolist() == want.tolist()


def test_left_padded_rows_equal_themselves_alone(tiny, tiny_fingerprint):
    kv = random_adapter(tiny_fingerprint)(tiny)
    short = IDS[:1, :7]
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1)
    batch = torch.cat([padded, IDS[1:]])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    got = tiny.generate(input_ids=batch, attention_mask=mask, max_new_tokens=8, do_sample=False, prompt_kv=kv)
    assert got[0, 5:].tolist() == greedy_without_cache(tiny, short, 8, prompt_kv=kv)[0].tolist()
    assert got[1].tolist() == greedy_without_cache(tiny, IDS[1:], 8, prompt_kv=kv)[0].tolist()


def test_beams_equal_an_exhaustive_search_without_cache(tiny, tiny_fingerprint):
    kv = random_adapter(tiny_fingerprint)(tiny)
    got = tiny.generate(
        input_ids=IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=2,
        num_beams=97,
        do_sample=False,
        prompt_kv=kv,
    )
    for row in range(2):
        first = tiny(input_ids=IDS[row : row + 1], prompt_kv=kv).logits[0, -1].log_softmax(-1)
        grown = torch.cat([IDS[row : row + 1].repeat(97, 1), torch.arange(97)[:, None]], dim=1)
        second = tiny(input_ids=grown, prompt_kv=kv).logits[:, -1].log_softmax(-1)
        best = int((first[:, None] + second).argmax())
        assert got[row, -2:].tolist() == [best // 97, best % 97]


def test_beams_follow_the_entry_of_their_row(tiny, tiny_fingerprint):
    adapters = [random_adapter(tiny_fingerprint, seed) for seed in (1, 2)]
    kv = PromptKV.stack([a(tiny) for a in adapters])
    kwargs = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    rows = torch.tensor([1, -1])
    together = tiny.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), prompt_kv=kv, prompt_rows=rows, **kwargs
    )
    mask = torch.ones_like(IDS[:1])
    first = tiny.generate(input_ids=IDS[:1], attention_mask=mask, prompt_kv=adapters[1](tiny), **kwargs)
    second = tiny.generate(input_ids=IDS[1:], attention_mask=mask, **kwargs)
    assert together.tolist() == [first[0].tolist(), second[0].tolist()]


def test_rows_with_different_adapters_equal_each_alone(tiny, tiny_fingerprint):
    """Different prompt lengths, insertion layers and strengths, and a row with none, in one batch."""
    one = random_adapter(tiny_fingerprint, 1, prompt_length=3, insertion_layers=4)(tiny).scaled(1.5)
    two = random_adapter(tiny_fingerprint, 2, prompt_length=6, insertion_layers=2)(tiny)
    ids = IDS[:1].repeat(4, 1)
    rows = torch.tensor([1, -1, 0, 1])
    got = tiny(input_ids=ids, prompt_kv=PromptKV.stack([one, two]), prompt_rows=rows).logits
    alone = [tiny(input_ids=IDS[:1], prompt_kv=kv).logits[0] for kv in (two, None, one, two)]
    assert_close(got, torch.stack(alone), rtol=1e-5, atol=1e-5)
    assert torch.equal(got[1], tiny(input_ids=ids).logits[1])


def test_prompt_norm_uses_the_layers_own_norm(tiny, tiny_fingerprint):
    adapter = random_adapter(tiny_fingerprint, prompt_norm=True)
    kv = adapter(tiny)
    layer = tiny.model.layers[1]
    want = layer.self_attn.k_proj(layer.input_layernorm(adapter.prompts[0])).view(5, 2, 8).transpose(0, 1)
    assert_close(kv.layers[1][0].keys[0], want)
    assert sorted(kv.layers) == [1, 2, 3]
