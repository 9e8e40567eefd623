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
from adapter.serve.kv_cache import BLOCK, KVCache, Slot, SlotAllocator
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
        cache, at, slot = KVCache(forward._base, 256), 0, Slot(64, 128)
        for size in cuts:
            logits = forward(cache, IDS[at : at + size], [slot], [at], kv)
            at += size
        assert logits.shape == (1, 97)
        assert_close(logits[0], whole_sequence(forward, IDS, kv), **close)


@pytest.mark.parametrize("room", [128, 192, 256])
def test_batched_rows_equal_rows_alone(forward, prompts, room):
    """Of all lengths, on both sides of a block's end, with different prompts: bit for bit on a packed base.

    room: tokens of a slot, by which rows are read in one run or in several.
    """
    lengths = [1, 5, BLOCK - 1, BLOCK, 80, 80, 3]
    chosen = [prompts[i % 3] for i in range(len(lengths))]
    together, allocator = KVCache(forward._base, 4096), SlotAllocator(4096)
    together.data.fill_(float("nan"))  # whatever earlier rows have left
    slots = [allocator.take(room if i < 4 else 128) for i in range(len(lengths))]
    alone = []
    for slot, length, kv in zip(slots, lengths, chosen, strict=True):
        cache, own = KVCache(forward._base, 128), Slot(0, 128)
        forward(cache, IDS[:length], [own], [0], kv)
        together.write(slot, cache.read(own, length))
        alone.append(forward(cache, [IDS[length]], [own], [length], kv)[0])
    logits = forward(together, [IDS[n] for n in lengths], slots, lengths, stack_prompts(chosen))
    for got, want in zip(logits, alone, strict=True):
        if forward._packed:
            assert torch.equal(got, want)
        else:
            assert_close(got, want, atol=1e-3, rtol=0)


def test_prefill_and_decode_give_the_same_bits_on_a_packed_base(packed_base, tiny_fingerprint):
    forward = Forward(packed_base)
    kv = stack_prompts([random_adapter(tiny_fingerprint)(packed_base.model)])
    cache, (together, singly) = KVCache(packed_base, 512), (Slot(0, 128), Slot(256, 128))
    last = forward(cache, IDS, [together], [0], kv)
    for at, token in enumerate(IDS):
        logits = forward(cache, [token], [singly], [at], kv)
    assert torch.equal(last, logits)
    assert torch.equal(cache.read(together, 90), cache.read(singly, 90))


def test_fused_layers_share_their_memory_and_change_nothing(tiny_base):
    model = copy.deepcopy(tiny_base.model).bfloat16()
    quantize_linears(model)
    before = model(input_ids=torch.tensor([IDS])).logits
    fuse_linears(model.model)
    attention = model.model.layers[0].self_attn
    start = attention.q_proj.weight.data_ptr()
    assert attention.k_proj.weight.data_ptr() == start + attention.q_proj.weight.numel()
    assert torch.equal(model(input_ids=torch.tensor([IDS])).logits, before)
