"""Packed linear layers: they compute what their weights say, for every input that a layer can meet."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from adapter.base import quantize
from adapter.base.quantize import Int4Linear, Int8Linear, PackedLinear, pack

KINDS = pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def four_bit_weight(rows, columns):
    """A weight as a GGUF file in Q4_1 holds it: sixteen steps between the ends of each group of 32."""
    groups = torch.randn(rows, columns // 32, 32)
    low, high = groups.aminmax(dim=2, keepdim=True)
    step = ((high - low) / 15).half().float()
    return (((groups - low) / step).round() * step + low.half()).view(rows, columns)


@KINDS
@DTYPES
def test_product_and_gradient_are_those_of_the_weights(kind, dtype):
    weight = four_bit_weight(128, 96)
    linear = kind.pack(weight, dtype)
    assert linear.weight.element_size() == 1 and linear(torch.zeros(1, 96, dtype=dtype)).dtype == dtype
    unpacked = linear.unpacked().float()
    # Half a step of eight bits, or what rounding the scales and the weights to `dtype` costs.
    assert (unpacked - weight).abs().max() < 0.03
    close = {"rtol": 2e-2, "atol": 0.2} if dtype == torch.bfloat16 else {"rtol": 2e-3, "atol": 0.02}
    for rows in (1, 7, 100):
        x = torch.randn(rows, 96).to(dtype)
        assert_close(linear(x).float(), x.float() @ unpacked.T, **close)
    x = torch.randn(3, 96, dtype=dtype, requires_grad=True)
    linear(x).sum().backward()
    assert_close(x.grad.float(), unpacked.sum(0).expand(3, -1), rtol=2e-2, atol=0.2)


@KINDS
@DTYPES
def test_a_row_is_a_row_bit_for_bit(kind, dtype):
    linear = kind.pack(four_bit_weight(128, 96), dtype)
    x = torch.randn(33, 96).to(dtype)
    together = linear(x)
    x[:20] = float("nan")  # not even what is not finite reaches a neighbour
    for rows in (1, 2, 3, 4, 8, 13):
        assert torch.equal(linear(x[33 - rows :]), together[33 - rows :])
    assert torch.equal(linear(x)[20:], together[20:])


@KINDS
@DTYPES
def test_strided_and_empty_inputs(kind, dtype):
    """The hidden states that a batched `generate()` gives to the head are a slice: strided rows."""
    linear = kind.pack(four_bit_weight(128, 96), dtype)
    x = torch.randn(5, 7, 96).to(dtype)
    strided = [x[:, -1:], x[:, 2], x[::2, 1:6:2], x.transpose(0, 1), torch.randn(96, 4).to(dtype).T, x[0, 0]]
    assert sum(not s.is_contiguous() for s in strided) == 5
    for inputs in strided:
        assert torch.equal(linear(inputs), linear(inputs.contiguous().clone()))
    for shape in ((0, 96), (2, 0, 96), (0, 3, 96)):
        empty = linear(torch.empty(shape, dtype=dtype))
        assert empty.shape == (*shape[:-1], 128) and empty.dtype == dtype


def test_int4_packs_only_weights_that_it_holds_exactly():
    weight = four_bit_weight(128, 96)
    linear = Int4Linear.pack(weight.bfloat16())
    assert linear.weight.numel() * 2 == weight.numel()
    assert Int4Linear.pack(torch.randn(128, 96)) is None
    assert Int4Linear.pack(four_bit_weight(48, 96)) is None  # no whole block of outputs
    assert isinstance(pack(weight), Int4Linear) and isinstance(pack(torch.randn(128, 96)), Int8Linear)


@KINDS
def test_a_weight_packed_in_pieces_is_the_weight_packed_at_once(kind, monkeypatch):
    weight = four_bit_weight(320, 64)
    whole = kind.pack(weight)
    monkeypatch.setattr(quantize, "_PIECE", 128 * 64)  # 128, 128 and 64 rows
    pieces = kind.pack(weight)
    for one, other in zip(whole.buffers(), pieces.buffers(), strict=True):
        assert torch.equal(one, other)
    weight[300, 5] += 0.05
    assert Int4Linear.pack(weight) is None, "the last piece counts too"


@DTYPES
def test_weights_of_zero_and_weights_that_are_not_finite(dtype):
    weight = torch.randn(64, 32)
    weight[3] = 0
    x = torch.randn(2, 32).to(dtype)
    assert torch.equal(pack(weight, dtype)(x)[:, 3], torch.zeros(2, dtype=dtype))
    weight[5, 7], weight[6, 7] = float("nan"), float("inf")
    broken = pack(weight, dtype)  # a broken base must not answer as if it were whole
    assert isinstance(broken, Int8Linear), "a comparison with NaN must not mean that four bits hold it"
    out = broken(x)
    assert out.isfinite().all(0).tolist() == [i not in (5, 6) for i in range(64)]


@KINDS
def test_a_concatenated_layer_equals_its_parts_and_shares_their_memory(kind):
    parts = [kind.pack(four_bit_weight(rows, 64).bfloat16()) for rows in (128, 64, 64)]
    x = torch.randn(5, 64).bfloat16()
    before = [part(x) for part in parts]
    whole = kind.concatenated(parts)
    assert torch.equal(whole(x), torch.cat(before, dim=1))
    assert [torch.equal(part(x), want) for part, want in zip(parts, before, strict=True)] == [True] * 3
    assert parts[1].weight.untyped_storage().data_ptr() == whole.weight.untyped_storage().data_ptr()
    PackedLinear.fuse(parts)
    assert parts[0].fused[0].sizes == [len(part(x)[0]) for part in parts]
