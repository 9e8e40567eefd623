"""Frozen linear layers for CPUs on the packed low-bit products that torch ships.

The quantiser on CUDA is bitsandbytes; this one exists because on a CPU it is both faster and truer than
bitsandbytes' formats (`make bench` prints the table). Knows layers; knows nothing of LLaMA.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Self

_GROUP = 32  # inputs that share a scale and a zero point in four bits
_BLOCK = 64  # outputs that the four-bit product packs together
# Largest distance, in steps, of a weight from the grid of four bits that it was rounded to bf16 from.
_OFF_GRID = 0.1
_PIECE = 1 << 20  # weights that are packed at a time: their fp32 copies stay in the processor's cache


class PackedLinear(nn.Module):
    """`y = x W^T` with W in few bits: [..., in] -> [..., out]. Frozen, but x may need a gradient.

    x has the dtype of the scales: bfloat16, float16 or float32. fused: the layer that computes this one and its
    neighbours of the same input, if `fuse` made one. It stands in a tuple so that it is no submodule. sizes: of
    its parts' outputs, in such a layer.
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fused: tuple[PackedLinear, ...] = ()
        self.sizes: list[int] = []

    @abstractmethod
    def product(self, rows: Tensor) -> Tensor:
        """Contiguous [N, in] -> [N, out]. A row's result does not depend on the other rows, bit for bit."""

    @abstractmethod
    def unpacked(self) -> Tensor:
        """W, [out, in]."""

    @classmethod
    @abstractmethod
    def concatenated(cls, linears: Sequence[Self]) -> Self:
        """One layer with the outputs of several in order; they share its weights' memory from then on."""

    @staticmethod
    def fuse(linears: Sequence[nn.Module]) -> None:
        """Let the first of several layers of one input hold their concatenation, if all have the same format."""
        packed = [linear for linear in linears if isinstance(linear, PackedLinear)]
        if len(packed) == len(linears) and len({type(linear) for linear in packed}) == 1:
            whole = type(packed[0]).concatenated(packed)
            whole.sizes = [len(linear.weight) for linear in packed]
            packed[0].fused = (whole,)

    def __call__(self, x: Tensor) -> Tensor:  # without nn.Module's hooks: they cost as much as a small product
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return F.linear(x, self.unpacked().to(x.dtype))
        # Some products refuse strided rows, such as the last tokens of a batch's hidden states.
        if x.ndim == 2:
            return self.product(x.contiguous())
        *outer, inputs = x.shape
        out = self.product(x.reshape(-1, inputs).contiguous())
        return out.view(*outer, out.shape[1])


class Int8Linear(PackedLinear):
    """W as int8 [out, in] and a scale for each output."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)

    @classmethod
    def pack(cls, weight: Tensor, dtype: torch.dtype | None = None) -> Self:
        """`weight`, [out, in], rounded to eight bits, for inputs of `dtype` (default: the weight's own)."""
        packed = torch.empty(weight.shape, dtype=torch.int8)
        scales = torch.empty(len(weight), dtype=dtype or weight.dtype)
        pieces = (_pieces(weight), _pieces(packed, weight), _pieces(scales, weight))
        for piece, packed_piece, scales_piece in zip(*pieces, strict=True):
            steps = piece.to(torch.float32, copy=True)
            largest = torch.maximum(steps.amax(dim=1), -steps.amin(dim=1))
            scales_piece.copy_((largest / 127).clamp_(min=1e-8))
            steps.div_(scales_piece.float()[:, None]).round_().clamp_(-127, 127)
            packed_piece.copy_(steps)
        return cls(packed, scales)

    def product(self, rows: Tensor) -> Tensor:
        # A dict look-up takes a third of the time of a module's attribute, of which a step reads hundreds.
        tensors: dict[str, Any] = self._buffers
        return torch._weight_int8pack_mm(rows, tensors["weight"], tensors["scales"])

    def unpacked(self) -> Tensor:
        return self.weight * self.scales[:, None]

    @classmethod
    def concatenated(cls, linears: Sequence[Self]) -> Self:
        whole = cls(torch.cat([n.weight for n in linears]), torch.cat([n.scales for n in linears]))
        sizes = [len(n.weight) for n in linears]
        for linear, weight, scales in zip(
            linears, whole.weight.split(sizes), whole.scales.split(sizes), strict=True
        ):
            linear.weight, linear.scales = weight, scales
        return whole


class Int4Linear(PackedLinear):
    """W as packed int4, with a scale and a zero for each group of 32 inputs of an output.

    weight: uint8 [out, in / 2] in the product's own layout; scales_and_zeros: [in / 32, out, 2];
    W = (q - 8) * scale + zero.
    """

    weight: Tensor
    scales_and_zeros: Tensor

    def __init__(self, weight: Tensor, scales_and_zeros: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scales_and_zeros", scales_and_zeros)

    @classmethod
    def pack(cls, weight: Tensor, dtype: torch.dtype | None = None) -> Self | None:
        """`weight`, [out, in], if four bits hold it exactly, as from a GGUF file in Q4_1; else None.

        dtype: of the inputs (default: the weight's own).
        """
        if weight.shape[0] % _BLOCK or weight.shape[1] % _GROUP:
            return None
        packed, parameters = [], []
        for piece in _pieces(weight):
            steps = piece.to(torch.float32, copy=True).view(len(piece), -1, _GROUP)
            low, high = steps.amin(dim=2, keepdim=True), steps.amax(dim=2, keepdim=True)
            scales = ((high - low) / 15).clamp_(min=1e-8)
            steps.sub_(low).div_(scales)  # in place: this runs over the whole model at every start
            whole = steps.round()
            if not steps.sub_(whole).abs_().amax() <= _OFF_GRID:  # NaN too
                return None  # a weight that never was in four bits ends here, at its first piece
            packed.append(torch._convert_weight_to_int4pack_for_cpu(whole.int().view(piece.shape), 1))
            parameters.append(torch.cat([scales, low + 8 * scales], dim=2).transpose(0, 1))
        return cls(torch.cat(packed), torch.cat(parameters, dim=1).to(dtype or weight.dtype))

    def product(self, rows: Tensor) -> Tensor:
        tensors: dict[str, Any] = self._buffers  # see Int8Linear
        return torch._weight_int4pack_mm_for_cpu(rows, tensors["weight"], _GROUP, tensors["scales_and_zeros"])

    def unpacked(self) -> Tensor:
        inputs = self.scales_and_zeros.shape[0] * _GROUP
        return self.product(torch.eye(inputs, dtype=self.scales_and_zeros.dtype)).T

    @classmethod
    def concatenated(cls, linears: Sequence[Self]) -> Self:
        # Packed weights are blocks of outputs and can be split again. Scales are not: the parts keep copies.
        whole = cls(
            torch.cat([n.weight for n in linears]), torch.cat([n.scales_and_zeros for n in linears], dim=1)
        )
        parts = whole.weight.split([len(n.weight) for n in linears])
        for linear, weight in zip(linears, parts, strict=True):
            linear.weight = weight
        return whole


def pack(weight: Tensor, dtype: torch.dtype | None = None) -> PackedLinear:
    """`weight`, [out, in], in four bits if they hold it exactly, else in eight, for inputs of `dtype`."""
    return Int4Linear.pack(weight, dtype) or Int8Linear.pack(weight, dtype)


def quantize_linears(model: nn.Module) -> str:
    """Replace every bias-free `nn.Linear` in `model` by a PackedLinear, in place; returns the commonest format.

    One that is tied to an embedding leaves the weight to the embedding; the linear gets its own copy.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.bias is None:
                setattr(module, name, pack(child.weight.data))
    bits = [4 if isinstance(m, Int4Linear) else 8 for m in model.modules() if isinstance(m, PackedLinear)]
    return f"packed-int{max(set(bits), key=bits.count)}"


def _pieces(tensor: Tensor, weight: Tensor | None = None) -> tuple[Tensor, ...]:
    """`tensor` in pieces of rows: of whole blocks, and of about _PIECE numbers of `weight` (default: `tensor`)."""
    columns = (tensor if weight is None else weight).shape[1]
    return tensor.split(max(_PIECE // columns // _BLOCK, 1) * _BLOCK)
