"""Frozen linear layers to train through on a CPU: oneDNN's products, with weights kept in its own layouts.

torch multiplies fp32 by MKL, half as fast on AMD, and brings bf16 weights into oneDNN's layout for each product.
Products of eight-bit integers are three to four times as fast as fp32 where the processor has VNNI.
"""

import ctypes
import platform
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, TypeGuard

import numpy as np
import torch
from numba import config, njit, prange, set_num_threads
from torch import Tensor, nn

from adapter.base import memory
from adapter.base.packed.native import compiled

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

    def product(self, x: Tensor) -> Tensor:
        """`y`, without a gradient."""
        return _ONEDNN._linear_pointwise(x, self._forward_weight, None, "none", [], "")

    def input_gradient(self, gradient: Tensor, other: Tensor | None = None) -> Tensor:
        """The gradient of x from that of y, plus `other`, which gets no rounding of its own."""
        if other is None:
            return _ONEDNN._linear_pointwise(gradient, self._backward_weight, None, "none", [], "")
        return _ONEDNN._linear_pointwise.binary(gradient, other, self._backward_weight, None, "add")

    @staticmethod
    def products(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
        """Each of several FrozenLinears of one input; the gradient of x is summed within the products."""
        return _Products.apply(x, *layers)


class IntegerLinear(FrozenLinear):
    """FrozenLinear in fp32 whose factors are rounded to eight bits: W with a scale for each output, x and the
    gradient of y with one for each row. A row's result does not depend on other rows.
    """

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self._scales = weight.abs().amax(1).clamp_(min=1e-20) / 127
        self._weight = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._ones = torch.ones(weight.shape[1])

    def product(self, x: Tensor) -> Tensor:
        return _multiply(x, self._ones, self._weight.T, self._scales)

    def input_gradient(self, gradient: Tensor, other: Tensor | None = None) -> Tensor:
        result = _multiply(gradient, self._scales, self._weight, self._ones)
        return result if other is None else result.add_(other)


def _multiply(x: Tensor, before: Tensor, weight: Tensor, after: Tensor) -> Tensor:
    """(x * before) @ weight * after with x, [..., in], rounded by rows. before: [in]; weight: int8 [in, out]."""
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    integers, scales = torch.empty_like(rows, dtype=torch.int8), torch.empty(len(rows))
    round_rows, scale_rows = _compiled_rows()
    round_rows(rows.numpy(), before.numpy(), integers.numpy(), scales.numpy())
    sums = torch._int_mm(integers, weight)
    out = sums.view(torch.float32)  # the same memory: it is hot, and the system need not clear another
    scale_rows(sums.numpy(), scales.numpy(), after.numpy(), out.numpy())
    return out.view(*x.shape[:-1], -1)


@njit(error_model="numpy")
def _round_row(row: Any, factors: Any, integers: Any) -> Any:
    columns = len(factors)
    scaled = np.empty(columns + 1, np.float32)  # the last is the largest
    bits = scaled.view(np.int32)
    for j in range(columns):
        scaled[j] = row[j] * factors[j]
    largest = np.int32(0)  # the bits of absolute values have their order, and such maxima are vectorised
    for j in range(columns):
        size = bits[j] & np.int32(0x7FFFFFFF)
        largest = size if size > largest else largest
    bits[columns] = largest
    scale = (scaled[columns] + np.float32(1e-20)) / np.float32(127)
    inverse = np.float32(1) / scale
    for j in range(columns):
        integers[j] = np.int8(np.int32(np.rint(scaled[j] * inverse)))
    return scale


@cache
def _compiled_rows() -> Any:
    threads = torch.get_num_threads()
    set_num_threads(min(threads, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    torch.set_num_threads(threads)  # numba's pool has set all cores in OpenMP, which torch asks
    with suppress(OSError, AttributeError):  # and lets each thread of torch's start threads of its own
        ctypes.CDLL(torch._C.__file__).omp_set_max_active_levels(1)

    @compiled("void(float32[:, ::1], float32[::1], int8[:, ::1], float32[::1])", parallel=True)
    def round_rows(rows, factors, integers, scales):
        for i in prange(len(rows)):
            scales[i] = _round_row(rows[i], factors, integers[i])

    @compiled("void(int32[:, ::1], float32[::1], float32[::1], float32[:, ::1])", parallel=True)
    def scale_rows(sums, scales, factors, out):
        for i in prange(len(sums)):
            for j in range(len(factors)):
                out[i, j] = np.float32(sums[i, j]) * scales[i] * factors[j]

    return round_rows, scale_rows


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: FrozenLinear) -> tuple[Tensor, ...]:
        ctx.layers = layers
        return tuple(layer.product(x) for layer in layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = None
        for layer, gradient in zip(ctx.layers, gradients, strict=True):
            total = layer.input_gradient(gradient, total)
        return total, *(None for _ in ctx.layers)


def freeze_linears(model: nn.Module, integers: bool = False) -> bool:
    """Replace every bias-free `nn.Linear` of a frozen model on a CPU by a FrozenLinear, in place; all but the head
    by an IntegerLinear if `integers`.

    Does nothing, and returns False, where oneDNN has no such products for the model's dtype (on Arm they are
    untried), or where the copies of the weights would take more than half of the free memory.
    """
    weights: list[Tensor] = [m.weight for m in model.modules() if _is_plain(m)]
    copies = sum(2 * weight.nbytes for weight in weights if weight.dtype == torch.bfloat16)
    free = memory.free_bytes("cpu")
    if not is_supported({weight.dtype for weight in weights}) or 2 * copies > free:
        return False
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _is_plain(child):
                # A row of the head's gradient is one large number and many small ones.
                kind = IntegerLinear if integers and name != "lm_head" else FrozenLinear
                setattr(module, name, kind(child.weight.data))
    return True


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and module.bias is None


def is_supported(dtypes: set[torch.dtype]) -> bool:
    """Whether there are products of these dtypes for FrozenLinear, and exact ones of int8 for IntegerLinear."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if dtypes == {torch.int8}:  # without VNNI, oneDNN adds two of them in 16 bits, which are too few
        largest = torch.full((64, 64), 127, dtype=torch.int8)
        return bool(torch._int_mm(largest, largest).eq(64 * 127**2).all())
    return dtypes == {torch.float32} or (dtypes == {torch.bfloat16} and _ONEDNN._is_mkldnn_bf16_supported())
