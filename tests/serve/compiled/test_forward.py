"""The forward pass for serving: it equals the model's own, whatever other rows are in the batch."""

from __future__ import annotations

import copy
import itertools
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from adapter.base.llama import Base
from adapter.base.packed.quantize import quantize_linears
from adapter.method.attention import LayerPrompts, PromptKV
from adapter.method.config import TuningConfig
from adapter.serve.compiled.forward import CompiledPass
from adapter.serve.forward import CompiledForward, make_forward
from adapter.serve.kv_cache import BLOCK, KVCache, Slot, SlotAllocator
from tests.tiny_models import random_adapter, random_llama

IDS = [i * 7 % 95 for i in range(90)]


@pytest.fixture(params=["plain", "packed"])
def base(request, tiny_base, packed_base) -> Base:
    return tiny_base if request.param == "plain" else packed_base


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def forward(request, base):
    with closing(make_forward(base, request.param)) as forward:
        assert isinstance(forward, CompiledForward) == (base.quantization == "packed-int8")
        yield forward


@pytest.fixture
def prompts(base, tiny_fingerprint):
    adapters = [random_adapter(tiny_fingerprint, seed, prompt_length=3 + 4 * seed) for seed in range(2)]
    tuned = random_adapter(tiny_fingerprint, 3, tuning=TuningConfig(lora_rank=2, intermediate_size=64))
    for parameter in tuned.tuning.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    entries = [adapter(base.model) for adapter in (*adapters, tuned)]
    return [None, *entries, PromptKV.mixed(entries[:2]).scaled(0.5)]


def run(forward, cache, ids, slots, starts, prompts, every=False):
    return forward(cache, ids, slots, starts, forward.stack([forward.prepare(kv) for kv in prompts]), every)


@torch.no_grad()
def whole_sequence(base, ids, prompts):
    """Logits after each token by one pass of the model itself in fp32, without a cache."""
    model = copy.deepcopy(base.model).float()
    if prompts is not None:
        layers = {
            i: tuple(LayerPrompts(p.keys.float(), p.values.float(), p.gates.float()) for p in terms)
            for i, terms in prompts.layers.items()
        }
        prompts = PromptKV(layers, deltas=prompts.deltas and prompts.deltas.map(torch.Tensor.float))
    return model(input_ids=torch.tensor([ids]), use_cache=False, prompt_kv=prompts).logits[0]


def assert_same(logits, want, base):
    """Keys, values and prompts are in bfloat16 on a packed base, and rounding may move an 8 bit number by one."""
    error = (logits - want).norm() / want.norm()
    assert error < (0.05 if base.model.dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("cuts", [[90], [64, 26], [89, 1], [10, 54, 1, 1, 24]])
def test_chunked_prefill_equals_the_model(base, forward, prompts, cuts):
    for kv in prompts:
        cache, slot, logits = KVCache(base, 256), Slot(64, 128), []
        for start, size in zip([0, *itertools.accumulate(cuts)], cuts, strict=False):
            logits.append(run(forward, cache, [IDS[start : start + size]], [slot], [start], [kv], every=True))
        want = whole_sequence(base, IDS, kv)
        assert_same(torch.cat(logits), want, base)
        again = run(forward, cache, [IDS[80:]], [slot], [80], [kv])  # the last logits only, over what is there
        assert_close(again, logits[-1][-1:], atol=0 if isinstance(forward, CompiledForward) else 1e-3, rtol=0)


@pytest.mark.parametrize("room", [128, 192, 256])
def test_batched_rows_equal_rows_alone(base, forward, prompts, room):
    """Of all lengths, on both sides of a block's end, with different prompts: bit for bit on a packed base.

    room: tokens of a slot, by which torch's attention reads rows in one run or in several.
    """
    lengths = [1, 5, BLOCK - 1, BLOCK, 80, 80, 3, 17, 66]
    chosen = [prompts[i % len(prompts)] for i in range(len(lengths))]
    together, allocator = KVCache(base, 4096), SlotAllocator(4096)
    together.data.fill_(float("nan"))  # whatever earlier rows have left
    slots = [allocator.take(room if i < 4 else 128) for i in range(len(lengths))]
    alone = []
    for slot, length, kv in zip(slots, lengths, chosen, strict=True):
        cache, own = KVCache(base, 128), Slot(0, 128)
        run(forward, cache, [IDS[:length]], [own], [0], [kv])
        together.write(slot, cache.read(own, length))
        alone.append(run(forward, cache, [IDS[length : length + 1]], [own], [length], [kv])[0])
    logits = run(forward, together, [IDS[n : n + 1] for n in lengths], slots, lengths, chosen)
    for got, want in zip(logits, alone, strict=True):
        if isinstance(forward, CompiledForward):
            assert torch.equal(got, want)
        else:
            assert_close(got, want, atol=1e-3, rtol=0)


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def compiled(request, packed_base):
    with closing(make_forward(packed_base, request.param)) as forward:
        yield forward


def test_tokens_give_the_same_bits_however_they_are_divided(compiled, packed_base, tiny_fingerprint):
    """One by one, in chunks, and several new tokens of several rows in one call."""
    kv = random_adapter(tiny_fingerprint)(packed_base.model)
    cache, slots = KVCache(packed_base, 1024), [Slot(256 * i, 128) for i in range(4)]
    want = run(compiled, cache, [IDS], slots[:1], [0], [kv], every=True)
    for at, token in enumerate(IDS):
        assert torch.equal(run(compiled, cache, [[token]], slots[1:2], [at], [kv])[0], want[at])
    run(compiled, cache, [IDS[:50], IDS[:30]], slots[2:], [0, 0], [kv, None])
    got = run(compiled, cache, [IDS[50:], IDS[30:31]], slots[2:], [50, 30], [kv, None], every=True)
    assert torch.equal(got[:40], want[50:])
    assert torch.equal(cache.read(slots[0], 90), cache.read(slots[1], 90))
    assert torch.equal(cache.read(slots[0], 90), cache.read(slots[2], 90))


def test_nothing_of_a_row_that_is_not_finite_reaches_another(compiled, packed_base):
    cache, slots = KVCache(packed_base, 512), [Slot(0, 128), Slot(256, 128)]
    run(compiled, cache, [IDS[:40], IDS[:40]], slots, [0, 0], [None, None])
    want = run(compiled, cache, [[7]], slots[1:], [40], [None])
    cache.read(slots[0], 40)[:] = float("nan")
    got = run(compiled, cache, [[7], [7]], slots, [40, 40], [None, None])
    assert not got[0].isfinite().any() and torch.equal(got[1], want[0])


def test_a_zero_gate_and_a_strength_of_zero_leave_the_base_bit_for_bit(compiled, packed_base, tiny_fingerprint):
    cache, slot = KVCache(packed_base, 128), Slot(0, 128)
    want = run(compiled, cache, [IDS], [slot], [0], [None], every=True)
    tuning = TuningConfig(lora_rank=2, intermediate_size=64)
    untrained = random_adapter(tiny_fingerprint, gate=0, tuning=tuning)(packed_base.model)
    trained = random_adapter(tiny_fingerprint, tuning=tuning)
    for parameter in trained.tuning.parameters():
        torch.nn.init.normal_(parameter)
    for kv in (untrained, trained(packed_base.model).scaled(0)):
        assert torch.equal(run(compiled, cache, [IDS], [slot], [0], [kv], every=True), want)


@pytest.mark.parametrize("sizes", [
    {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 20},
    {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128},
    {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 80},
])  # fmt: skip
def test_bases_of_any_shape(sizes, tiny_base):
    """Sizes that are no multiples of groups, blocks and vectors, and grouped queries."""
    model = random_llama(std=0.15, random_norms=True, **sizes).bfloat16()
    quantize_linears(model)
    base = Base(model, tiny_base.tokenizer, replace(tiny_base.fingerprint, **sizes), "packed-int8", 0)
    prompts = random_adapter(base.fingerprint)(model)
    with closing(make_forward(base, 2)) as forward:
        assert isinstance(forward, CompiledForward)
        logits = run(forward, KVCache(base, 128), [IDS], [Slot(0, 128)], [0], [prompts], every=True)
    assert_same(logits, whole_sequence(base, IDS, prompts), base)


def test_a_base_whose_heads_are_rotated_in_part_is_not_for_compiled_code(tiny_base):
    """It would take the angles of the next token, and read past the last one's."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    model = random_llama(rope_parameters=rope).bfloat16()
    quantize_linears(model)
    assert not CompiledPass.suits(replace(tiny_base, model=model))


def test_a_long_row_is_read_by_tiles(compiled, packed_base):
    """Attention over several tiles of keys equals torch's over all of them at once."""
    ids = [i * 11 % 95 for i in range(400)]
    logits = run(compiled, KVCache(packed_base, 512), [ids], [Slot(0, 512)], [0], [None], every=True)
    assert_same(logits, whole_sequence(packed_base, ids, None), packed_base)
