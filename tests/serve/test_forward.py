"""The forward pass for serving: it equals the model's own, whatever other rows are in the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from adapter.base.decoder import fuse_linears
from adapter.base.llama import Base
from adapter.base.quantize import quantize_linears
from adapter.serve.batch import stack_prompts
from adapter.serve.forward import Forward
from adapter.serve.kv_cache import BLOCK, KVCache
from tests.tiny_models import random_adapter

IDS = [i * 7 % 95 for i in range(90)]


@pytest.fixture(scope="module")
def packed_base(tiny_base) -> Base:
    """The tiny LLaMA in bfloat16, its linear layers packed in eight bits."""
    model = copy.deepcopy(tiny_base.model).bfloat16()
    quantize_linears(model)
    fuse_linears(model.model)
    return Base(model, tiny_base.tokenizer, tiny_base.fingerprint, "packed-int8", 0)


@pytest.fixture(params=["plain", "packed"])
def forward(request, tiny_base, packed_base):
    forward = Forward(tiny_base if request.param == "plain" else packed_base)
    assert forward._packed == (request.param == "packed")
    return forward


@pytest.fixture
def prompts(forward, tiny_fingerprint):
    adapters = [random_adapter(tiny_fingerprint, seed, prompt_length=3 + 4 * seed) for seed in range(2)]
    return [None, *(stack_prompts([adapter(forward._base.model)]) for adapter in adapters)]


@torch.no_grad()
def whole_sequence(forward, ids, prompts):
    """Logits after the last token by one pass of transformers' own model, without a cache."""
    output = forward._base.model(input_ids=torch.tensor([ids]), use_cache=False, prompt_kv=prompts)
    return output.logits[0, -1].float()


@pytest.mark.parametrize("cuts", [[90], [64, 26], [89, 1], [10, 54, 1, 1, 24]])
def test_chunked_prefill_equals_the_model(forward, prompts, cuts):
    close = {"atol": 0.3, "rtol": 0} if forward._packed else {"atol": 1e-3, "rtol": 0}
    for kv in prompts:
        cache, at = KVCache(forward._base), 0
        for size in cuts:
            logits = forward(cache, IDS[at : at + size], [at], kv)
            at += size
        assert logits.shape == (1, 97)
        assert_close(logits[0], whole_sequence(forward, IDS, kv), **close)


def test_batched_rows_equal_rows_alone(forward, prompts):
    """Of all lengths, on both sides of a block's end, with different prompts: bit for bit on a packed base."""
    lengths = [1, 5, BLOCK - 1, BLOCK, 80]
    chosen = [prompts[i % 3] for i in range(len(lengths))]
    together, alone = KVCache(forward._base), []
    together.reserve(len(lengths), BLOCK)
    for row, (length, kv) in enumerate(zip(lengths, chosen, strict=True)):
        cache = KVCache(forward._base)
        forward(cache, IDS[:length], [0], kv)
        together.reserve(len(lengths), length + 1)
        together.set_row(row, cache.copy_row(0, length))
        alone.append(forward(cache, [IDS[length]], [length], kv)[0])
    logits = forward(together, [IDS[n] for n in lengths], lengths, stack_prompts(chosen))
    for got, want in zip(logits, alone, strict=True):
        if forward._packed:
            assert torch.equal(got, want)
        else:
            assert_close(got, want, atol=1e-3, rtol=0)


def test_prefill_and_decode_give_the_same_bits_on_a_packed_base(packed_base, tiny_fingerprint):
    forward = Forward(packed_base)
    kv = stack_prompts([random_adapter(tiny_fingerprint)(packed_base.model)])
    together, singly = KVCache(packed_base), KVCache(packed_base)
    last = forward(together, IDS, [0], kv)
    for at, token in enumerate(IDS):
        logits = forward(singly, [token], [at], kv)
    assert torch.equal(last, logits)
    assert torch.equal(together.copy_row(0, 90), singly.copy_row(0, 90))


def test_fused_layers_share_their_memory_and_change_nothing(tiny_base):
    model = copy.deepcopy(tiny_base.model).bfloat16()
    quantize_linears(model)
    before = model(input_ids=torch.tensor([IDS])).logits
    fuse_linears(model.model)
    attention = model.model.layers[0].self_attn
    start = attention.q_proj.weight.data_ptr()
    assert attention.k_proj.weight.data_ptr() == start + attention.q_proj.weight.numel()
    assert torch.equal(model(input_ids=torch.tensor([IDS])).logits, before)


def test_the_cache_grows_and_keeps_its_content(tiny_base):
    cache = KVCache(tiny_base)
    past = torch.randn(4, 2, 2, 40, 8)
    cache.set_row(0, past)
    cache.reserve(3, 200)
    assert cache.data.shape[0] == 3 and cache.data.shape[4] % BLOCK == 0 and cache.data.shape[4] >= 200
    assert torch.equal(cache.copy_row(0, 40), past)
    assert not cache.data[:, ..., 40:, :].any()
