"""The parts of the decoder layer: values and gradients are those of the formulas written out, in every form."""

import pytest
import torch
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from adapter.base import decoder

NORM = LlamaRMSNorm(12).double().requires_grad_(False)
ANGLES = torch.linspace(-3, 3, 40).view(2, 5, 4).double().repeat(1, 1, 2)
COS, SIN = ANGLES.cos(), ANGLES.sin()


@pytest.mark.parametrize(
    ("kernel", "formula", "shapes"),
    [
        (
            lambda x: decoder.rms_norm(NORM, x),
            lambda x: x / (x.square().mean(-1, keepdim=True) + NORM.variance_epsilon).sqrt() * NORM.weight,
            [(2, 5, 12)],
        ),
        (lambda x: decoder.rotate(x, COS, SIN), lambda x: apply_rotary_pos_emb(x, x, COS, SIN)[0], [(2, 3, 5, 8)]),
        (
            lambda gate, up: decoder.gated_unit(torch.nn.SiLU(), gate, up),
            lambda gate, up: torch.nn.functional.silu(gate) * up,
            [(2, 5, 12)] * 2,
        ),
    ],
)
def test_both_forms_of_a_kernel_equal_autograd_through_its_formula(kernel, formula, shapes):
    torch.manual_seed(0)
    torch.nn.init.uniform_(NORM.weight, 0.5, 1.5)
    inputs = [torch.randn(shape).double() for shape in shapes]
    assert_close(kernel(*inputs), formula(*inputs), rtol=1e-6, atol=1e-6)  # transformers' norm goes through fp32
    inputs = [x.requires_grad_(True) for x in inputs]
    got, want = kernel(*inputs), formula(*inputs)
    assert_close(got, want, rtol=1e-10, atol=1e-10)
    slope = torch.randn_like(want)
    gradients, wanted = (torch.autograd.grad(out, inputs, slope) for out in (got, want))
    assert_close(gradients, wanted, rtol=1e-10, atol=1e-10)
