"""Frozen linear layers in 4 or 8 bits for CPUs, on the products of `integer_product`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter.base.hf_folder import StoredMatrix
from adapter.base.packed.integer_product import BLOCK, GROUP, PARAMETER_BYTES, compile_products, compile_rounding

REVISION = 3  # of what `pack` makes: increase it when the same weight gives other bytes
# Largest distance, in steps, of a weight from the grid of four bits that it was rounded to bf16 from.
_OFF_GRID = 0.1
_LEAST_SCALE = 2.0**-20  # of a matrix's largest group: fp16 has few bits below it, and none below 2**-24
_HEAD = ("lm_head",)  # which is not rounded to four bits
_SMALL = ("k_proj", "v_proj")  # nor are these where heads share them: small then, and much depends on them
_WORK_OF_A_THREAD = 1 << 28  # bytes of the weight times rows: below that, starting a thread is not worth it
_PIECE = 1 << 19  # weights that are packed at a time: their fp32 copies stay in the processor's caches


class PackedLinear(nn.Module):
    """`y = x W^T` with W in few bits: [..., in] -> [..., out] of x's dtype. Frozen, but x may need a gradient.

    Unless x needs a gradient, it is rounded to 8 bits by groups of 32, and rows are independent bit for bit.
    weight: uint8 [blocks, groups, bytes] in the layout of `integer_product`.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bits: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bits, self.in_features, self.out_features = bits, in_features, out_features

    @staticmethod
    def pack(weight: Tensor | StoredMatrix, bits: int, search: bool = False) -> PackedLinear | None:
        """`weight`, [out, in], packed. With 4 bits and without `search`, None unless 4 bits hold it exactly.

        search: round to 4 bits with loss, by the scales and minima of least squared error. Raises ValueError if a
        number is not finite, or larger than packed weights can be.
        """
        outputs, inputs = weight.shape
        blocks, groups = -(-outputs // BLOCK), -(-inputs // GROUP)
        integers = GROUP * BLOCK * bits // 8  # bytes
        packed = torch.empty(blocks, groups, integers + PARAMETER_BYTES[bits], dtype=torch.uint8)
        largest = [0.0]  # scales by piece; for a group of one number, whose scale is 0, its size
        find = _eight_bits if bits == 8 else _searched if search else _on_grid
        _, code = compile_rounding()

        def fill(first: int, last: int, buffer: Tensor) -> bool:
            """Pack these blocks of rows. buffer: zeros; what it holds stays in the processor's cache."""
            rows, to = weight[first * BLOCK : last * BLOCK], packed[first:last]
            buffer[: len(rows), :inputs] = rows
            buffer[len(rows) :] = 0
            values = buffer[: len(to) * BLOCK].view(-1, groups, GROUP)
            if (found := find(values)) is None:
                return False
            if not all(parameters.isfinite().all() for parameters in found):
                raise ValueError("holds numbers that are not finite, or too large to be packed")
            largest.append(float(torch.where(found[0] > 0, found[0], found[1].abs()).amax()))
            scales, minima = (parameters.float().numpy() for parameters in found)
            code(values.numpy(), scales, minima, bits, to.view(torch.int32).numpy())
            parameters = torch.stack(found if bits == 4 else found[:1]).view(-1, len(to), BLOCK, groups)
            to[:, :, integers:] = parameters.permute(1, 3, 0, 2).contiguous().flatten(2).view(torch.uint8)
            return True

        piece = max(_PIECE // inputs // BLOCK, 1)  # blocks
        starts = iter(range(0, blocks, piece))  # each is taken by one thread

        def fill_in_turn() -> bool:
            torch.set_num_threads(1)  # else each of these threads would start as many
            buffer = torch.zeros(piece * BLOCK, groups * GROUP, dtype=torch.float32)
            return all(fill(start, min(start + piece, blocks), buffer) for start in starts)

        group = weight[:1][0, :GROUP].float()
        if find is _on_grid and find(F.pad(group, (0, GROUP - len(group))).view(1, 1, GROUP)) is None:
            return None  # as any weight that never was in four bits
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            parts = [pool.submit(fill_in_turn) for _ in range(threads)]
        torch.set_num_threads(threads)
        if not all(part.result() for part in parts):
            return None
        rows = range(0, outputs, BLOCK)
        if max(largest) < _LEAST_SCALE and any(weight[row : row + BLOCK].any() for row in rows):
            raise ValueError("holds numbers that are too small to be packed")
        return PackedLinear(packed, bits, inputs, outputs)

    @staticmethod
    def stored(weight: Tensor, out_features: int, in_features: int) -> PackedLinear:
        """A layer of this size whose packed weight was kept. Raises ValueError if it is another size's."""
        blocks, groups = -(-out_features // BLOCK), -(-in_features // GROUP)
        for bits, parameters in PARAMETER_BYTES.items():
            if weight.shape == (blocks, groups, GROUP * BLOCK * bits // 8 + parameters):
                return PackedLinear(weight, bits, in_features, out_features)
        raise ValueError(f"{tuple(weight.shape)} is no packed [{out_features}, {in_features}]")

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return F.linear(x, self.unpacked().to(x.dtype))
        multiply, quantize = compile_products()
        groups, stride = self.weight.shape[1], len(self.weight) * BLOCK
        rows = F.pad(x.reshape(-1, self.in_features).float(), (0, groups * GROUP - self.in_features)).contiguous()
        integers = torch.empty(len(rows), groups * GROUP, dtype=torch.int8)
        scales = torch.empty(len(rows), groups, 2, dtype=torch.float32)
        out = torch.empty(len(rows), stride, dtype=torch.float32)
        quantize(rows.data_ptr(), rows.numel(), integers.data_ptr(), scales.data_ptr())
        pointers = self.weight.data_ptr(), self.bits, integers.data_ptr(), scales.data_ptr()
        arguments = (*pointers, len(rows), groups, out.data_ptr(), 4 * stride)
        blocks, work = len(self.weight), len(rows) * self.weight.numel()
        shares = min(torch.get_num_threads(), blocks, 1 + work // _WORK_OF_A_THREAD)
        ends = [blocks * (i + 1) // shares for i in range(shares)]
        with ThreadPoolExecutor(shares) as pool:  # which waits for those that have begun, should one not start
            for share in pairwise(ends):
                pool.submit(multiply, *arguments, *share)
            multiply(*arguments, 0, ends[0])
        return out[:, : self.out_features].to(x.dtype).view(*x.shape[:-1], self.out_features)

    def unpacked(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """W, [out, in] in fp32; of some blocks of outputs only, [blocks, 16, in], if these are chosen."""
        weight = self.weight[chosen]
        blocks, groups, _ = weight.shape
        integers = GROUP * BLOCK * self.bits // 8  # bytes
        q = weight[:, :, :integers].unflatten(2, (-1, 64))
        if self.bits == 4:
            q = torch.stack((q & 15, q >> 4), dim=3).flatten(2, 3)
        q = q.contiguous().view(torch.int32).permute(0, 3, 1, 2).contiguous().view(torch.uint8)
        parameters = weight[:, :, integers:].contiguous().view(torch.float16).float()
        scales, *low = parameters.view(blocks, groups, -1, BLOCK, 1).permute(2, 0, 3, 1, 4)
        low = low[0] if low else scales * -128
        whole = (q.view(blocks, BLOCK, groups, GROUP) * scales + low).flatten(2)[:, :, : self.in_features]
        return whole if isinstance(chosen, Tensor) else whole.flatten(0, 1)[: self.out_features]


class PackedEmbedding(nn.Module):
    """An embedding whose table, [words, size], is packed. Returns `dtype`."""

    def __init__(self, table: PackedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self.dtype = table, dtype

    def forward(self, ids: Tensor) -> Tensor:
        # A token's block, [16, size] in fp32, is unpacked to keep one row: few of them at a time.
        rows = [
            self.table.unpacked(part // BLOCK)[torch.arange(len(part)), part % BLOCK].to(self.dtype)
            for part in ids.flatten().split(64)
        ]
        return torch.cat(rows).view(*ids.shape, -1)


# The scales and minima of groups, both fp16 [rows, groups], of values, fp32 [rows, groups, 32].


def _eight_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    low, high = values.amin(2), values.amax(2)
    scales = (torch.maximum(high, -low) / 127).half()
    return scales, scales * -128


def _searched(values: Tensor) -> tuple[Tensor, Tensor]:
    search, _ = compile_rounding()
    scales, minima = torch.empty(2, *values.shape[:2], dtype=torch.float32)
    search(values.numpy(), scales.numpy(), minima.numpy())
    return scales.half(), minima.half()


def _on_grid(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns None where a group does not lie on a grid of at most 16 steps, as those of Q4_1 and Q4_K of GGUF
    files do. Weights have been rounded to 16 bits since: scales are the least squares of all codes, not from the
    ends alone.
    """
    low, high = values.amin(2, keepdim=True), values.amax(2, keepdim=True)  # many times as fast as aminmax
    ends, extent = low.half().float(), high - low
    scales = (extent / 15).half().float()
    whole, errors, off = _codes(values, ends, scales)
    for steps in range(14, 0, -1):  # a group need not have both codes 0 and 15
        if not off.any():
            break
        ends[off], scales[off] = low[off], extent[off] / steps
        whole[off], errors[off], still = _codes(values[off], ends[off], scales[off])
        off[off.clone()] = still
    if off.any():
        return None
    mean, error = whole.mean(2, keepdim=True), errors.mean(2, keepdim=True)
    covariance = torch.linalg.vecdot(whole, errors).unsqueeze(2) - GROUP * mean * error
    variance = torch.linalg.vecdot(whole, whole).unsqueeze(2) - GROUP * mean.square()
    slope = covariance / variance.clamp_(min=1)
    offset = error - slope * mean
    return (scales + slope * scales).half().squeeze(2), (ends + offset * scales).half().squeeze(2)


def _codes(values: Tensor, ends: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whole steps, the errors in steps, and which groups are off the grid, NaN too."""
    steps = (values - ends) / scales.clamp(min=1e-12)
    whole = steps.round()
    errors = steps - whole
    return whole, errors, ~(errors.abs().amax(-1) <= _OFF_GRID)


def pack(weight: Tensor | StoredMatrix, bits: int = 8, name: str = "") -> PackedLinear:
    """`weight`, [out, in], in four bits if they hold it exactly, else in `bits`, or in 8 by its layer's `name`.

    Raises ValueError for numbers that are not finite or that no scale can hold.
    """
    sensitive = name.endswith(_HEAD) or (name.endswith(_SMALL) and weight.shape[0] < weight.shape[1])
    packed = PackedLinear.pack(weight, 4) or PackedLinear.pack(weight, 8 if sensitive else bits, search=True)
    assert packed is not None
    return packed


def quantize_linears(model: nn.Module, bits: int = 8) -> str:
    """Replace every bias-free `nn.Linear` in `model` by a PackedLinear; returns the commonest format."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and module.bias is None:
            model.set_submodule(path, pack(module.weight.data, bits, path))
    found = [module.bits for module in model.modules() if isinstance(module, PackedLinear)]
    return f"packed-int{max(set(found), key=found.count)}"
