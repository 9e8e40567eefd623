"""Frozen linear layers in 4 or 8 bits for CPUs, on the products of `integer_product`.

The quantiser on CUDA is bitsandbytes; this one exists because on a CPU it is both faster and truer than
bitsandbytes' formats (`make bench` prints the table).
"""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter.base.packed.integer_product import BLOCK, GROUP, PARAMETER_BYTES, compile_products

if TYPE_CHECKING:
    from typing import Self

# Largest distance, in steps, of a weight from the grid of four bits that it was rounded to bf16 from.
_OFF_GRID = 0.1
_WORK_OF_A_THREAD = 1 << 28  # bytes of the weight times rows: below that, starting a thread is not worth it
_PIECE = 1 << 20  # weights that are packed at a time: their fp32 copies stay in the processor's cache


class PackedLinear(nn.Module):
    """`y = x W^T` with W in few bits: [..., in] -> [..., out] of x's dtype. Frozen, but x may need a gradient.

    x is rounded to 8 bits by groups of 32 inputs; a row's result does not depend on other rows, bit for bit.
    weight: uint8 [blocks, groups, bytes] in the layout of `integer_product`.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bits: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bits, self.in_features, self.out_features = bits, in_features, out_features

    @classmethod
    def pack(cls, weight: Tensor, bits: int) -> Self | None:
        """`weight`, [out, in]. None if four bits do not hold it exactly, as they do one from a Q4_1 GGUF file."""
        outputs, inputs = weight.shape
        blocks, groups = -(-outputs // BLOCK), -(-inputs // GROUP)
        integers = GROUP * BLOCK * bits // 8  # bytes
        packed = torch.empty(blocks, groups, integers + PARAMETER_BYTES[bits], dtype=torch.uint8)
        rows = max(_PIECE // inputs // BLOCK, 1) * BLOCK
        for piece, to in zip(weight.split(rows), packed.split(rows // BLOCK), strict=True):
            steps = F.pad(piece.to(torch.float32, copy=True), (0, -inputs % GROUP, 0, -len(piece) % BLOCK))
            steps = steps.view(len(to), BLOCK, groups, GROUP)
            low, high = steps.amin(dim=3, keepdim=True), steps.amax(dim=3, keepdim=True)
            if bits == 4:
                low, scales = low.half(), ((high - low) / 15).half()
            else:
                scales = (torch.maximum(high, -low) / 127).half()
                low = scales * -128
            # In place: this runs over the whole model at every start.
            steps.sub_(low).div_(scales.float().clamp_(min=1e-12))
            whole = steps.round()
            if bits == 4:
                errors = steps.sub_(whole)
                if not errors.abs().amax() <= _OFF_GRID:  # NaN too
                    return None  # a weight that never was in four bits ends here, at its first piece
                low, scales = _fitted(whole, errors, low.float(), scales.float())
            q = whole.clamp_(0, 2**bits - 1).to(torch.uint8).view(torch.int32)  # 4 inputs a number
            q = q.permute(0, 2, 3, 1).contiguous().view(torch.uint8)  # [blocks, groups, 8, 4 x 16]
            if bits == 4:
                q = q[:, :, 0::2] | q[:, :, 1::2] << 4
            parameters = (
                torch.stack((scales, low) if bits == 4 else (scales,)).squeeze(4).permute(1, 3, 0, 2).contiguous()
            )
            to[:, :, :integers] = q.flatten(2)
            to[:, :, integers:] = parameters.flatten(2).view(torch.uint8)
        return cls(packed, bits, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return F.linear(x, self.unpacked().to(x.dtype))
        multiply, quantize = compile_products()
        groups, stride = self.weight.shape[1], len(self.weight) * BLOCK
        rows = F.pad(x.reshape(-1, self.in_features).float(), (0, groups * GROUP - self.in_features)).contiguous()
        integers = torch.empty(len(rows), groups * GROUP, dtype=torch.int8)
        scales = torch.empty(len(rows), groups, 2)
        out = torch.empty(len(rows), stride)
        quantize(rows.data_ptr(), rows.numel(), integers.data_ptr(), scales.data_ptr())
        pointers = self.weight.data_ptr(), self.bits, integers.data_ptr(), scales.data_ptr()
        arguments = (*pointers, len(rows), groups, out.data_ptr(), 4 * stride)
        blocks, work = len(self.weight), len(rows) * self.weight.numel()
        shares = min(torch.get_num_threads(), blocks, 1 + work // _WORK_OF_A_THREAD)
        ends = [blocks * (i + 1) // shares for i in range(shares)]
        others = [threading.Thread(target=multiply, args=(*arguments, *share)) for share in pairwise(ends)]
        for thread in others:
            thread.start()
        multiply(*arguments, 0, ends[0])
        for thread in others:
            thread.join()
        return out[:, : self.out_features].to(x.dtype).view(*x.shape[:-1], self.out_features)

    def unpacked(self) -> Tensor:
        """W, [out, in] in fp32."""
        blocks, groups, _ = self.weight.shape
        integers = GROUP * BLOCK * self.bits // 8  # bytes
        q = self.weight[:, :, :integers].unflatten(2, (-1, 64))
        if self.bits == 4:
            q = torch.stack((q & 15, q >> 4), dim=3).flatten(2, 3)
        q = q.contiguous().view(torch.int32).permute(0, 3, 1, 2).contiguous().view(torch.uint8)
        parameters = self.weight[:, :, integers:].contiguous().view(torch.float16).float()
        scales, *low = parameters.view(blocks, groups, -1, BLOCK, 1).permute(2, 0, 3, 1, 4)
        low = low[0] if low else scales * -128
        whole = (q.view(blocks, BLOCK, groups, GROUP) * scales + low).view(blocks * BLOCK, groups * GROUP)
        return whole[: self.out_features, : self.in_features]


def _fitted(whole: Tensor, errors: Tensor, low: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares for `whole * scales + low` in each group, in fp16.

    The weights have been rounded to bf16 since they were in four bits: the ends of a group alone give its scale to
    eight bits. errors: of the weights in steps of the scales as they are.
    """
    mean, error = whole.mean(3, keepdim=True), errors.mean(3, keepdim=True)
    covariance = torch.linalg.vecdot(whole, errors).unsqueeze(3) - GROUP * mean * error
    variance = torch.linalg.vecdot(whole, whole).unsqueeze(3) - GROUP * mean.square()
    slope = covariance / variance.clamp_(min=1)
    offset = error - slope * mean
    return (low + offset * scales).half(), (scales + slope * scales).half()


def pack(weight: Tensor) -> PackedLinear:
    """`weight`, [out, in], in four bits if they hold it exactly, else in eight."""
    packed = PackedLinear.pack(weight, 4) or PackedLinear.pack(weight, 8)
    assert packed is not None
    return packed


def quantize_linears(model: nn.Module) -> str:
    """Replace every bias-free `nn.Linear` in `model` by a PackedLinear, in place; returns the commonest format.

    One that is tied to an embedding leaves the weight to the embedding; the linear gets its own copy.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.bias is None:
                setattr(module, name, pack(child.weight.data))
    bits = [module.bits for module in model.modules() if isinstance(module, PackedLinear)]
    return f"packed-int{max(set(bits), key=bits.count)}"
