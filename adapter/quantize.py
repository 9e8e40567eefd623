"""Eight-bit frozen linear layers for CPUs, on the packed int8 product that torch ships.

The quantiser on CUDA is bitsandbytes; this one exists because on a CPU it is both faster and truer than
bitsandbytes' formats (README has the table). Knows layers; knows nothing of LLaMA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# With more rows than this, unpacking to bfloat16 first is faster; that path has a gradient too.
_PACKED_ROWS = 32


class Int8Linear(nn.Module):
    """`y = x W^T` with W as int8 and a bfloat16 scale for each output: [..., in] -> [..., out]."""

    weight: Tensor  # [out, in] int8
    scales: Tensor  # [out] bfloat16

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scales = (weight.float().abs().amax(dim=1) / 127).clamp(min=1e-8).to(torch.bfloat16)
        quantised = (weight.float() / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("weight", quantised)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] <= _PACKED_ROWS and not x.requires_grad:
            return packed_product(rows, self.weight, self.scales).view(*x.shape[:-1], -1)
        return unpacked_product(x, self.weight, self.scales)


def packed_product(rows: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """`rows W^T`, [N, in] -> [N, out]. Each row's result is the same bits whatever rows are beside it."""
    return torch._weight_int8pack_mm(rows, weight, scales)


def unpacked_product(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """`x W^T` by way of a bfloat16 copy of W: for many rows, and for gradients."""
    return F.linear(x, weight.to(x.dtype)) * scales.to(x.dtype)


def fuse(linears: Sequence[Int8Linear]) -> tuple[Tensor, Tensor]:
    """(weight, scales) of one product that does the work of several with a common input.

    The given layers become views of it, so that nothing is held twice.
    """
    weight = torch.cat([linear.weight for linear in linears])
    scales = torch.cat([linear.scales for linear in linears])
    start = 0
    for linear in linears:
        end = start + linear.weight.shape[0]
        linear.weight, linear.scales = weight[start:end], scales[start:end]
        start = end
    return weight, scales


def quantize_linears(model: nn.Module) -> None:
    """Replace every bias-free `nn.Linear` in `model` by an Int8Linear, in place.

    A weight that is tied to an embedding stays with the embedding; the linear gets its own eight-bit copy.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.bias is None:
                setattr(module, name, Int8Linear(child.weight.data))
