"""Frozen linear layers by oneDNN: values and gradients are those of `nn.Linear`, and the memory decides."""

import copy
import ctypes
import sys

import pytest
import torch
from torch import nn

from adapter.base import frozen_linear, memory
from adapter.base.frozen_linear import FrozenLinear, IntegerLinear, freeze_linears

pytestmark = pytest.mark.skipif(
    not frozen_linear.is_supported({torch.float32}), reason="oneDNN's products are not built in here"
)


has_bf16 = pytest.mark.skipif(
    not frozen_linear.is_supported({torch.bfloat16}), reason="oneDNN has no bf16 products for this processor"
)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=has_bf16)])
@pytest.mark.parametrize("outputs", [(40,), (24, 8, 8)])
def test_values_and_the_summed_gradient_are_those_of_plain_layers(outputs, dtype):
    torch.manual_seed(0)
    weights = [torch.randn(size, 24, dtype=dtype) for size in outputs]
    x = torch.randn(2, 7, 24, dtype=dtype, requires_grad=True)
    got = FrozenLinear.products([FrozenLinear(weight) for weight in weights], x)
    want = [x @ weight.T for weight in weights]
    slopes = [torch.randn_like(out) for out in want]
    close = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    torch.testing.assert_close(list(got), want, **close)
    torch.testing.assert_close(torch.autograd.grad(got, x, slopes), torch.autograd.grad(want, x, slopes), **close)


@pytest.mark.skipif(not frozen_linear.is_supported({torch.int8}), reason="this processor's sums of int8 saturate")
def test_products_of_integers_are_near_those_of_fp32_and_a_row_is_a_row_bit_for_bit():
    torch.manual_seed(0)
    weights = [torch.randn(size, 81) for size in (40, 8)]
    x = (torch.randn(2, 7, 81) * torch.logspace(-6, 3, 7)[:, None]).requires_grad_()
    layers, threads = [IntegerLinear(weight) for weight in weights], torch.get_num_threads()
    got, want = FrozenLinear.products(layers, x), [x @ weight.T for weight in weights]
    slopes = [torch.randn_like(out) * torch.logspace(3, -6, 7)[:, None] for out in want]
    values = [*got, *torch.autograd.grad(got, x, slopes)]
    assert torch.get_num_threads() == threads  # numba takes all cores by itself
    if sys.platform == "linux":  # and lets each thread start as many
        assert ctypes.CDLL(torch._C.__file__).omp_get_max_active_levels() == 1
    for value, exact in zip(values, [*want, *torch.autograd.grad(want, x, slopes)], strict=True):
        assert ((value - exact).norm(dim=-1) < 0.03 * exact.norm(dim=-1)).all()
    other = x.detach().index_copy(1, torch.tensor([0]), torch.full((2, 1, 81), torch.nan))
    changed = layers[0](other)
    assert changed[:, 0].isnan().any() and torch.equal(changed[:, 1:], got[0][:, 1:])


def test_integers_whose_sums_saturate_are_not_used(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(max=10**6))
    assert not frozen_linear.is_supported({torch.int8}) and frozen_linear.is_supported({torch.float32})


@has_bf16
def test_a_model_stays_where_its_copies_would_not_fit(tiny, monkeypatch):
    frozen = copy.deepcopy(tiny).bfloat16()
    copies = sum(2 * m.weight.nbytes for m in frozen.modules() if type(m) is nn.Linear)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2 * copies - 1)
    assert not freeze_linears(frozen) and type(frozen.lm_head) is nn.Linear
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2 * copies)
    assert freeze_linears(frozen)
