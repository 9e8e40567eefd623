"""Frozen linear layers to train through on a CPU: oneDNN's products, with weights kept in its own layouts.

torch multiplies fp32 by MKL, half as fast on AMD, and brings bf16 weights into oneDNN's layout for each product.
"""

import platform
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from adapter.base import memory

_ONEDNN = torch.ops.mkldnn


class FrozenLinear(nn.Module):
    """`y = x W^T`, [..., in] -> [..., out], whose gradient goes to x only.

    In bf16, W is held twice, for y and for the gradient, each in oneDNN's layout, which interleaves pairs of
    numbers: to make it anew for every product takes a twentieth of a step. In fp32, W is read as it is.
    """

    def __init__(self, weight: Tensor) -> None:
        """weight: [out, in], fp32 or bf16, for inputs of the same dtype; in bf16 it is not kept."""
        super().__init__()
        # No buffers: a module cannot move or save tensors in such a layout.
        if weight.dtype == torch.bfloat16:
            self._forward_weight = _ONEDNN._reorder_linear_weight(weight)
            self._backward_weight = _ONEDNN._reorder_linear_weight(weight.T.contiguous())
        else:
            self._forward_weight, self._backward_weight = weight, weight.T

    def forward(self, x: Tensor) -> Tensor:
        return _Products.apply(x, self)[0]

    def input_gradient(self, gradient: Tensor, other: Tensor | None = None) -> Tensor:
        """The gradient of x from that of y, plus `other`, which gets no rounding of its own."""
        if other is None:
            return _ONEDNN._linear_pointwise(gradient, self._backward_weight, None, "none", [], "")
        return _ONEDNN._linear_pointwise.binary(gradient, other, self._backward_weight, None, "add")

    @staticmethod
    def products(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
        """Each of several FrozenLinears of one input; the gradient of x is summed within the products."""
        return _Products.apply(x, *layers)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: FrozenLinear) -> tuple[Tensor, ...]:
        ctx.layers = layers
        return tuple(_ONEDNN._linear_pointwise(x, layer._forward_weight, None, "none", [], "") for layer in layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = None
        for layer, gradient in zip(ctx.layers, gradients, strict=True):
            total = layer.input_gradient(gradient, total)
        return total, *(None for _ in ctx.layers)


def freeze_linears(model: nn.Module) -> bool:
    """Replace every bias-free `nn.Linear` of a frozen model on a CPU by a FrozenLinear, in place.

    Does nothing, and returns False, where oneDNN has no such products for the model's dtype (on Arm they are
    untried), or where the copies of the weights would take more than half of the free memory.
    """
    weights: list[Tensor] = [m.weight for m in model.modules() if _is_plain(m)]
    copies = sum(2 * weight.nbytes for weight in weights if weight.dtype == torch.bfloat16)
    if not is_supported({weight.dtype for weight in weights}) or 2 * copies > memory.free_bytes("cpu"):
        return False
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _is_plain(child):
                setattr(module, name, FrozenLinear(child.weight.data))
    return True


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and module.bias is None


def is_supported(dtypes: set[torch.dtype]) -> bool:
    """Whether there are products of these dtypes for FrozenLinear."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    return dtypes == {torch.float32} or (dtypes == {torch.bfloat16} and _ONEDNN._is_mkldnn_bf16_supported())
