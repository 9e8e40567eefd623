"""Packed linear layers: they compute what their weights say, for every input that a layer can meet."""

import pytest
import torch
from torch.testing import assert_close

from adapter.base.packed import quantize
from adapter.base.packed.quantize import PackedLinear, pack

BITS = pytest.mark.parametrize("bits", [4, 8])
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


def rounded(x):
    """x as the product takes it: in 8 bits by groups of 32 inputs."""
    groups = x.float().view(len(x), -1, 32)
    scales = groups.abs().amax(2, keepdim=True) / 127
    return ((groups / scales).round() * scales).view(x.shape)


@BITS
@DTYPES
def test_product_and_gradient_are_those_of_the_weights(bits, dtype):
    weight = four_bit_weight(128, 96)
    linear = PackedLinear.pack(weight, bits)
    assert linear(torch.zeros(1, 96, dtype=dtype)).dtype == dtype
    unpacked = linear.unpacked().float()
    # Half a step of eight bits, or what rounding the scales and the weights to `dtype` costs.
    assert (unpacked - weight).abs().max() < 0.03
    close = {"rtol": 1e-2, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 0.005}
    for rows in (1, 2, 3, 7, 100):
        x = torch.randn(rows, 96).to(dtype)
        assert_close(linear(x).float(), rounded(x) @ unpacked.T, **close)
    x = torch.randn(3, 96, dtype=dtype, requires_grad=True)
    linear(x).sum().backward()
    assert_close(x.grad.float(), unpacked.sum(0).expand(3, -1), rtol=2e-2, atol=0.2)


@BITS
@DTYPES
def test_a_row_is_a_row_bit_for_bit(bits, dtype, monkeypatch):
    """Whatever the others are, not even finite, however many threads share the outputs, and in strided inputs.

    The hidden states that a batched `generate()` gives to the head are a slice: strided rows.
    """
    linear = PackedLinear.pack(four_bit_weight(208, 96), bits)
    x = torch.randn(33, 96).to(dtype)
    together = linear(x)
    x[:20] = float("nan")
    for rows in (1, 2, 3, 4, 8, 13):
        assert torch.equal(linear(x[33 - rows :]), together[33 - rows :])
    assert torch.equal(linear(x)[20:], together[20:])
    for strided, want in ((x[20::3], together[20::3]), (x[20:].T.contiguous().T, together[20:])):
        assert not strided.is_contiguous() and torch.equal(linear(strided), want)
    empty = linear(torch.empty(2, 0, 96, dtype=dtype))
    assert empty.shape == (2, 0, 208) and empty.dtype == dtype
    monkeypatch.setattr(quantize, "_WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(linear(x[20:]), together[20:])


@BITS
def test_a_weight_packed_in_pieces_is_the_weight_packed_at_once(bits, monkeypatch):
    weight = four_bit_weight(320, 64)
    whole = PackedLinear.pack(weight, bits)
    monkeypatch.setattr(quantize, "_PIECE", 128 * 64)  # 128, 128 and 64 rows
    for one, other in zip(whole.buffers(), PackedLinear.pack(weight, bits).buffers(), strict=True):
        assert torch.equal(one, other)
    weight[300, 5] += 0.05
    assert PackedLinear.pack(weight, 4) is None, "the last piece counts too"


def test_a_group_that_uses_some_of_the_steps_lies_on_the_grid_too():
    """As those of Q4_K, which begin anywhere and need not have the codes 0 and 15."""
    codes = torch.randint(0, 16, (64, 4, 32))
    codes = torch.stack([codes[:, i].clamp(2 * i, 15 - 3 * i) for i in range(4)], 1)
    scales, minima = torch.rand(64, 4, 1) + 0.1, torch.randn(64, 4, 1) * 4
    weight = (codes * scales + minima).view(64, 128)
    packed = PackedLinear.pack(weight.half(), 4)
    assert packed is not None
    assert_close(packed.unpacked(), weight, rtol=1e-3, atol=5e-3)


def test_four_bits_are_searched_for_the_least_squares():
    """A fifth less than between the ends of each group, whatever the threads; exact where that is possible."""
    weight = torch.randn(512, 256)
    groups = weight.view(512, 8, 32)
    low, high = groups.aminmax(dim=2, keepdim=True)
    step = (high - low) / 15
    plain = (((groups - low) / step).round() * step + low - groups).square().mean()
    packed = pack(weight, 4)
    assert packed.bits == 4 and pack(weight, 4, "lm_head").bits == 8
    assert (packed.unpacked() - weight).square().mean() < 0.83 * plain
    exact = four_bit_weight(64, 96)
    assert torch.equal(pack(exact, 4).weight, PackedLinear.pack(exact, 4).weight)
    weight[:, :32] = 0.5
    assert_close(pack(weight, 4).unpacked()[:, :32], weight[:, :32])


@DTYPES
def test_weights_of_zero_and_weights_that_are_not_finite(dtype):
    weight = torch.randn(64, 32)
    weight[3] = 0
    assert torch.equal(pack(weight)(torch.randn(2, 32).to(dtype))[:, 3], torch.zeros(2, dtype=dtype))
    assert not pack(torch.zeros(64, 32)).unpacked().any()
    assert_close(pack(torch.full((64, 32), -0.37), 4).unpacked(), torch.full((64, 32), -0.37), rtol=1e-3, atol=0)
    for bits in (4, 8):
        with pytest.raises(ValueError, match="too small"):
            pack(weight * 1e-6, bits)
        assert_close(pack(weight * 1e-3, bits).unpacked() * 1e3, weight, rtol=0, atol=0.3)
    for number in (float("nan"), float("inf"), -float("inf"), 1e38, 1e8):
        weight[40, 7] = number
        for bits in (4, 8):
            with pytest.raises(ValueError, match="not finite"):
                pack(weight, bits)
