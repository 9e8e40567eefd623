"""Frozen linear layers by oneDNN: values and gradients are those of `nn.Linear`, and the memory decides."""

import copy

import pytest
import torch
from torch import nn

from adapter.base import frozen_linear, memory
from adapter.base.frozen_linear import FrozenLinear, freeze_linears

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


@has_bf16
def test_a_model_stays_where_its_copies_would_not_fit(tiny, monkeypatch):
    frozen = copy.deepcopy(tiny).bfloat16()
    copies = sum(2 * m.weight.nbytes for m in frozen.modules() if type(m) is nn.Linear)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2 * copies - 1)
    assert not freeze_linears(frozen) and type(frozen.lm_head) is nn.Linear
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2 * copies)
    assert freeze_linears(frozen)
