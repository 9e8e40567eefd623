"""Rounding of weights to 4 or 8 bits in the layout of `integer_product`, compiled for the processor at hand.

Weights are fp32, [rows, groups, 32]; a group's scale and minimum are fp32 numbers that fp16 holds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from adapter.base.packed.integer_product import BLOCK, GROUP
from adapter.base.packed.native import (
    F32,
    FLOATS,
    I8,
    I32,
    INTS,
    LANES,
    compiled,
    constant,
    emitted,
    function,
    load,
    splat,
    store,
    sums,
    version_of,
)  # fmt: skip

# Where the search begins: the range of a group as so many steps, and how many of these lie below code 0.
_STARTS = [(steps, (steps - 15) / 2 + shift) for steps in (14.6, 15.4, 16.2, 17.0) for shift in (-0.25, 0.25)]


@emitted(types.void, *[types.intp] * 3)
def _search_group(b: ir.IRBuilder, values: ir.Value, scale: ir.Value, minimum: ir.Value) -> None:
    """The scale and the minimum of 32 floats in four bits: of several roundings the one with the least squares.

    Each start's codes get the scale and minimum that fit them best; the best codes are rounded once more by these.
    Where the floats are all equal, or one is not finite, the scale is 0 and the minimum their mean.
    """
    parts = [load(b, values, FLOATS, 4 * LANES * i) for i in range(GROUP // LANES)]
    ends = []
    for order, name in (("<", "fmin"), (">", "fmax")):
        outer = b.select(b.fcmp_ordered(order, *parts), *parts)
        ends.append(b.call(function(b, f"llvm.vector.reduce.{name}.v16f32", F32, FLOATS), [outer]))
    total = b.extract_element(sums(b, [b.fadd(*parts)]), I32(0))
    count = F32(GROUP)

    def fit(origin: ir.Value, inverse: ir.Value, below: float) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Of codes in steps of 1 / inverse from `origin`: the variance that they explain, scale, minimum."""
        codes = []
        for part in parts:
            steps = b.fmul(b.fsub(part, splat(b, origin)), splat(b, inverse))
            codes.append(_rounded(b, b.fsub(steps, constant(FLOATS, below)), constant(FLOATS, 15.0)))
        squares = b.fadd(*(b.fmul(code, code) for code in codes))
        products = b.fadd(*(b.fmul(code, part) for code, part in zip(codes, parts, strict=True)))
        found = sums(b, [b.fadd(*codes), squares, products, squares])
        code, square, product, _ = (b.extract_element(found, I32(i)) for i in range(4))
        covariance = b.fsub(product, b.fdiv(b.fmul(code, total), count))
        variance = b.fsub(square, b.fdiv(b.fmul(code, code), count))
        slope = b.fdiv(covariance, variance)
        return b.fmul(covariance, slope), slope, b.fdiv(b.fsub(total, b.fmul(slope, code)), count)

    best = (F32(0.0), F32(0.0), b.fdiv(total, count))
    extent = b.fsub(ends[1], ends[0])
    for start in (*_STARTS, None):
        if start is None:
            found = fit(best[2], b.fdiv(F32(1.0), best[1]), 0.0)
        else:
            found = fit(ends[0], b.fdiv(F32(start[0]), extent), start[1])
        better = b.fcmp_ordered(">", found[0], best[0])
        best = tuple(b.select(better, new, old) for new, old in zip(found, best, strict=True))
    store(b, best[1], scale)
    store(b, best[2], minimum)


def _rounded(b: ir.IRBuilder, values: ir.Value, most: ir.Value) -> ir.Value:
    """The nearest whole numbers, half to even, from 0 to `most`; 0 for NaN."""
    values = b.select(b.fcmp_ordered(">", values, constant(FLOATS, 0.0)), values, constant(FLOATS, 0.0))
    values = b.select(b.fcmp_ordered("<", values, most), values, most)
    magic = constant(FLOATS, 12582912.0)  # 1.5 * 2^23, beside which no fraction has room
    return b.fsub(b.fadd(values, magic), magic)


@emitted(types.void, types.intp, types.float32, types.float32, types.float32, types.intp)
def _code_group(
    b: ir.IRBuilder, values: ir.Value, scale: ir.Value, minimum: ir.Value, most: ir.Value, codes: ir.Value
) -> None:
    """The codes of 32 floats, from 0 to `most`, as bytes."""
    divisor = b.select(b.fcmp_ordered(">", scale, F32(1e-12)), scale, F32(1e-12))
    for i in range(GROUP // LANES):
        steps = b.fsub(load(b, values, FLOATS, 4 * LANES * i), splat(b, minimum))
        whole = b.fptosi(_rounded(b, b.fdiv(steps, splat(b, divisor)), splat(b, most)), INTS)
        store(b, b.trunc(whole, ir.VectorType(I8, LANES)), codes, LANES * i)


@cache
def compile_rounding() -> Any:
    """`search` and `code`, from numba's disk cache or compiled anew."""
    version = version_of("adapter.base.packed.native", "adapter.base.packed.integer_product")

    @compiled("void(float32[:,:,::1], float32[:,::1], float32[:,::1])")
    def search(values, scales, minima):
        """Fill scales and minima, [rows, groups], for four bits."""
        _ = version
        address, groups = values.ctypes.data, values.shape[1]
        for group in range(values.shape[0] * groups):
            _search_group(
                address + 4 * GROUP * group, scales.ctypes.data + 4 * group, minima.ctypes.data + 4 * group
            )

    @compiled("void(float32[:,:,::1], float32[:,::1], float32[:,::1], int64, int32[:,:,::1])")
    def code(values, scales, minima, bits, out):
        """Write the codes of whole blocks, in front of each group's scales: [blocks, groups, words]."""
        _ = version
        address, groups = values.ctypes.data, values.shape[1]
        codes = np.empty((BLOCK, 8), np.int32)  # 4 a number
        for block in range(out.shape[0]):
            for group in range(groups):
                for row in range(BLOCK):
                    place = block * BLOCK + row
                    here = address + 4 * GROUP * (place * groups + group)
                    parameters = scales[place, group], minima[place, group]
                    _code_group(here, *parameters, np.float32(2**bits - 1), codes[row].ctypes.data)
                for step in range(bits):
                    for row in range(BLOCK):
                        words = codes[row, step]
                        if bits == 4:
                            words = codes[row, 2 * step] | codes[row, 2 * step + 1] << 4
                        out[block, group, step * BLOCK + row] = words

    return search, code
