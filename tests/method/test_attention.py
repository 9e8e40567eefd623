"""The laws of zero-init attention, on a tiny grouped-query LLaMA in fp32."""

import copy

import pytest
import torch
from torch.testing import assert_close

from adapter.method.attention import PromptKV
from tests.reference_llama import IDS, meta_weights, reference_logits, rotate_halves
from tests.tiny_models import random_adapter


def greedy_without_cache(model, ids, steps, **kwargs):
    for _ in range(steps):
        logits = model(input_ids=ids, use_cache=False, **kwargs).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


def test_zero_gate_and_strength_zero_are_the_base_and_strength_scales_the_activated_gate(tiny, tiny_fingerprint):
    adapter = random_adapter(tiny_fingerprint)
    kv = adapter(tiny)
    plain = tiny(input_ids=IDS)
    assert not torch.allclose(plain.logits, tiny(input_ids=IDS, prompt_kv=kv).logits)
    half = tiny(input_ids=IDS, prompt_kv=kv.scaled(0.5)).logits
    gates = adapter.gates.clone()
    adapter.gates.copy_((gates.tanh() * 0.5).atanh())
    assert_close(half, tiny(input_ids=IDS, prompt_kv=adapter(tiny)).logits)
    adapter.gates.zero_()
    following = torch.tensor([[3], [5]])
    for nothing in (kv.scaled(0.0), adapter(tiny)):
        gated = tiny(input_ids=IDS, prompt_kv=nothing)
        assert torch.equal(plain.logits, gated.logits)
        gated = tiny(input_ids=following, cache=gated.cache, prompt_kv=nothing).logits
        assert torch.equal(gated, tiny(input_ids=following, cache=copy.deepcopy(plain.cache)).logits)


@pytest.mark.parametrize("prompt_norm", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_equals_the_paper_written_out(tiny, tiny_fingerprint, activation, prompt_norm):
    """Equations 6 to 8, in fp64."""
    adapter = random_adapter(tiny_fingerprint, gate_activation=activation, prompt_norm=prompt_norm).double()
    model = copy.deepcopy(tiny).double()
    prompts, gates = {}, {}
    for i, layer in enumerate(adapter.config.layers):
        norm = model.model.layers[layer].input_layernorm
        prompts[layer] = norm(adapter.prompts[i]) if prompt_norm else adapter.prompts[i]
        gates[layer] = adapter.gates[i].tanh() if activation == "tanh" else adapter.gates[i]
    want = reference_logits(meta_weights(model), IDS, prompts, gates, rotate_halves)
    got = model(input_ids=IDS, prompt_kv=adapter(model)).logits
    assert_close(got, want, rtol=1e-4, atol=1e-5)  # softmax and RMSNorm run in fp32


def test_left_padded_rows_equal_themselves_alone(tiny, tiny_fingerprint):
    kv = random_adapter(tiny_fingerprint)(tiny)
    short = IDS[:1, :7]
    batch = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1), IDS[1:]])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    got = tiny.generate(input_ids=batch, attention_mask=mask, max_new_tokens=8, do_sample=False, prompt_kv=kv)
    assert got[0, 5:].tolist() == greedy_without_cache(tiny, short, 8, prompt_kv=kv)[0].tolist()
    assert got[1].tolist() == greedy_without_cache(tiny, IDS[1:], 8, prompt_kv=kv)[0].tolist()


def test_rows_with_different_adapters_equal_each_alone(tiny, tiny_fingerprint):
    """Different prompt lengths, insertion layers and strengths, and a row with none, in one batch."""
    one = random_adapter(tiny_fingerprint, 1, prompt_length=3, insertion_layers=4)(tiny).scaled(1.5)
    two = random_adapter(tiny_fingerprint, 2, prompt_length=6, insertion_layers=2)(tiny)
    ids = IDS[:1].repeat(4, 1)
    rows = torch.tensor([1, 2, 0, 1])
    got = tiny(input_ids=ids, prompt_kv=PromptKV.stack([one, two, PromptKV({})]), prompt_rows=rows).logits
    alone = [tiny(input_ids=IDS[:1], prompt_kv=kv).logits[0] for kv in (two, None, one, two)]
    assert_close(got, torch.stack(alone), rtol=1e-5, atol=1e-5)
    assert torch.equal(got[1], tiny(input_ids=ids).logits[1])
