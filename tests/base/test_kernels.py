"""The decoder layer's kernels: values and gradients are those of the formulas written out, in every form."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from adapter.base import kernels

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def check(kernel, formula, *inputs):
    """Both forms of a kernel, without and with gradients, against autograd through `formula`."""
    want = formula(*inputs)
    assert_close(kernel(*inputs), want, rtol=1e-6, atol=1e-6)  # transformers' norm goes through fp32
    inputs = [x.requires_grad_(True) for x in inputs]
    got, want = kernel(*inputs), formula(*inputs)
    assert_close(got, want, **CLOSE)
    slope = torch.randn_like(want)
    for one, other in zip(
        torch.autograd.grad(got, inputs, slope), torch.autograd.grad(want, inputs, slope), strict=True
    ):
        assert_close(one, other, **CLOSE)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_rms_norm():
    norm = LlamaRMSNorm(12).double().requires_grad_(False)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)

    def formula(x):
        return x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight

    check(lambda x: kernels.rms_norm(norm, x), formula, torch.randn(2, 5, 12).double())


@pytest.mark.parametrize("length", [1, 5])
def test_rotation(length):
    angles = torch.randn(2, length, 4).double().repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    x = torch.randn(2, 3, length, 8).double()

    def formula(x):
        return apply_rotary_pos_emb(x, x, cos, sin)[0]

    check(lambda x: kernels.rotate(x, cos, sin), formula, x)


@pytest.mark.parametrize("activation", [torch.nn.SiLU(), torch.nn.GELU()])
def test_gated_unit(activation):
    def formula(gate, up):
        return activation(gate) * up

    gate, up = torch.randn(2, 5, 12).double(), torch.randn(2, 5, 12).double()
    check(lambda gate, up: kernels.gated_unit(activation, gate, up), formula, gate, up)
