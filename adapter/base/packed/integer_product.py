"""Products of quantised activations with packed weights, and the rounding of both, compiled for this processor.

Weights have 4 or 8 bits, activations 8 bits; both share a scale within groups of 32 inputs. Sums within a group
are sums of integers and exact, and the groups are added in order: a row's result does not depend on other rows.

Layout of a weight: blocks of 16 outputs, in them groups of 32 inputs, in them 8 steps of 4 inputs (16 x 4 bytes;
with 4 bits the even steps are the low halves and the odd steps the high halves of the bytes), then 16 scales in
fp16 and, with 4 bits, 16 minima. W = q * scale + minimum, q unsigned; with 8 bits the minimum is -128 * scale.
Layout of activations: int8 [rows, groups, 32], and fp32 [rows, groups, 2]: scale, and scale * sum of the integers.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from adapter.base.packed.native import (
    F32,
    FLOATS,
    I8,
    I16,
    I32,
    I64,
    INTS,
    LANES,
    compiled,
    constant,
    emitted,
    features,
    fma,
    function,
    load,
    load_fp16,
    loop,
    splat,
    store,
    version_of,
)  # fmt: skip

GROUP = 32  # inputs that share a scale
BLOCK = 16  # outputs that are computed together
PARAMETER_BYTES = {4: 4 * BLOCK, 8: 2 * BLOCK}  # of a block's group: the scales and minima
_FOUR_BYTES, _EIGHT_BYTES = GROUP * BLOCK // 2 + PARAMETER_BYTES[4], GROUP * BLOCK + PARAMETER_BYTES[8]
_OCTETS = ir.VectorType(I8, 4 * BLOCK)
_VERSION = version_of(__name__, "adapter.base.packed.native")


def whole_groups(size: int) -> int:
    """`size` inputs, rounded up to whole groups."""
    return -(-size // GROUP) * GROUP


def whole_blocks(size: int) -> int:
    """`size` outputs, rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


# The dot products of a group in each of 16 lanes: (builder, 8 steps of 4 unsigned bytes a lane, 8 x 4 signed bytes
# as an i32, bits of the unsigned) -> sums.
Dot = Callable[..., ir.Value]
_EIGHT_INTS, _WORDS, _EIGHT_OCTETS = ir.VectorType(I32, 8), ir.VectorType(I16, 16), ir.VectorType(I8, 32)


def _by_halves(b, steps, dot):
    """`dot` of each half of the 16 lanes."""
    parts = [ir.Constant(ir.VectorType(I32, 32), list(range(first, first + 32))) for first in (0, 32)]
    sums = [dot([b.shuffle_vector(q, q, part) for q in steps]) for part in parts]
    return b.shuffle_vector(*sums, ir.Constant(INTS, list(range(BLOCK))))


def _dot_vnni(b, steps, xs, bits, ints=INTS, octets=_OCTETS):
    dot = function(b, f"llvm.x86.avx512.vpdpbusd.{32 * ints.count}", ints, ints, octets, octets)
    sums = constant(ints, 0)
    for q, x in zip(steps, xs, strict=True):
        sums = b.call(dot, [sums, q, b.bitcast(splat(b, x, ints.count), octets)])
    return sums


def _dot_avxvnni(b, steps, xs, bits):
    return _by_halves(b, steps, lambda half: _dot_vnni(b, half, xs, bits, _EIGHT_INTS, _EIGHT_OCTETS))


def _dot_avx2(b, steps, xs, bits):
    multiply_words = function(b, "llvm.x86.avx2.pmadd.wd", _EIGHT_INTS, _WORDS, _WORDS)
    multiply_bytes = function(b, "llvm.x86.avx2.pmadd.ub.sw", _WORDS, _EIGHT_OCTETS, _EIGHT_OCTETS)
    eight = constant(_WORDS, 8)

    def half_4(steps):
        pairs = constant(_WORDS, 0)  # 8 steps of 2 * 15 * 127 fit into 16 bits
        for q, x in zip(steps, xs, strict=True):
            pairs = b.add(pairs, b.call(multiply_bytes, [q, b.bitcast(splat(b, x, 8), _EIGHT_OCTETS)]))
        return b.call(multiply_words, [pairs, constant(_WORDS, 1)])

    def half_8(steps):
        sums = constant(_EIGHT_INTS, 0)
        for q, x in zip(steps, xs, strict=True):
            q, x = b.bitcast(q, _WORDS), b.bitcast(splat(b, x, 8), _WORDS)
            even = b.call(multiply_words, [b.and_(q, constant(_WORDS, 255)), b.ashr(b.shl(x, eight), eight)])
            odd = b.call(multiply_words, [b.lshr(q, eight), b.ashr(x, eight)])
            sums = b.add(sums, b.add(even, odd))
        return sums

    return _by_halves(b, steps, half_4 if bits == 4 else half_8)


def _dot_generic(b, steps, xs, bits):
    sums = constant(INTS, 0)
    for q, x in zip(steps, xs, strict=True):
        lanes = b.bitcast(q, INTS)
        for byte in range(4):
            one = b.and_(b.lshr(lanes, constant(INTS, 8 * byte)), constant(INTS, 255))
            factor = b.ashr(b.shl(x, I32(24 - 8 * byte)), I32(24))
            sums = b.add(sums, b.mul(one, splat(b, factor)))
    return sums


# By the features that a processor needs for them, the fastest first.
DOTS: dict[frozenset[str], Dot] = {
    frozenset({"avx512vnni", "avx512f"}): _dot_vnni,
    frozenset({"avxvnni"}): _dot_avxvnni,
    frozenset({"avx2", "fma"}): _dot_avx2,
    frozenset(): _dot_generic,
}
_dot = next(dot for needed, dot in DOTS.items() if needed <= features())
_MOST_ROWS = 8 if "avx512f" in features() else 4  # at a time: their sums and totals stay in registers


def block_product(rows: int, dot: Dot = _dot) -> Any:
    """The function that multiplies `rows` rows of activations with one block of a weight."""

    @emitted(types.void, *[types.intp] * 7)
    def product(b, bits, weight, x, scales, groups, out, out_bytes):
        """bits: of the weight; the others are addresses or counts. Rows of out are out_bytes apart."""
        arguments = (weight, x, scales, groups, out, out_bytes)
        with b.if_else(b.icmp_signed("==", bits, I64(4))) as (four, eight):
            with four:
                _emit_product(b, rows, 4, dot, *arguments)
            with eight:
                _emit_product(b, rows, 8, dot, *arguments)

    return product


def _emit_product(b, rows, bits, dot, weight, x, scales, groups, out, out_bytes):
    x_bytes, scale_bytes = b.mul(groups, I64(GROUP)), b.mul(groups, I64(8))
    parameters = GROUP * BLOCK * bits // 8  # where they begin
    low, pairs = constant(_OCTETS, 15), ir.VectorType(I16, 2 * BLOCK)

    def add_group(group, totals):
        here = b.add(weight, b.mul(group, I64(parameters + PARAMETER_BYTES[bits])))
        steps = []
        for offset in range(0, parameters, 4 * BLOCK):
            q = load(b, here, _OCTETS, offset)
            if bits == 4:
                high = b.bitcast(b.lshr(b.bitcast(q, pairs), constant(pairs, 4)), _OCTETS)
                steps += [b.and_(q, low), b.and_(high, low)]
            else:
                steps.append(q)
        own = [b.add(b.add(x, b.mul(x_bytes, I64(r))), b.mul(group, I64(GROUP))) for r in range(rows)]
        sums = [dot(b, steps, [load(b, start, I32, 4 * i) for i in range(8)], bits) for start in own]
        scale = load_fp16(b, here, parameters)
        if bits == 4:
            minimum = load_fp16(b, here, parameters + 2 * BLOCK)
        else:
            minimum = b.fmul(scale, constant(FLOATS, -128.0))
        for r in range(rows):
            factors = b.add(b.add(scales, b.mul(scale_bytes, I64(r))), b.mul(group, I64(8)))
            product = b.fmul(b.sitofp(sums[r], FLOATS), splat(b, load(b, factors, F32)))
            totals[r] = fma(b, product, scale, totals[r])
            totals[r] = fma(b, minimum, splat(b, load(b, factors, F32, 4)), totals[r])
        return totals

    for r, total in enumerate(loop(b, groups, [constant(FLOATS, 0.0)] * rows, add_group)):
        store(b, total, b.add(out, b.mul(out_bytes, I64(r))))


# Module globals, because numba finds a function in its disk cache only if it has no closure.
_product_1, _product_2, _product_4, _product_8 = (block_product(rows) for rows in (1, 2, 4, 8))


@emitted(types.void, types.intp, types.intp, types.intp)
def _quantize_group(b, x, q, scales):
    """32 floats to 32 integers and two factors. What is not finite makes the factors infinite or NaN."""
    parts = [load(b, x, FLOATS, 4 * BLOCK * i) for i in range(2)]
    # Floats without their sign are ordered like integers, NaN above all.
    sizes = [b.and_(b.bitcast(part, INTS), constant(INTS, 0x7FFFFFFF)) for part in parts]
    larger = b.select(b.icmp_signed(">", *sizes), *sizes)
    amax = b.bitcast(b.call(function(b, "llvm.vector.reduce.smax.v16i32", I32, INTS), [larger]), F32)
    tiny = b.fcmp_unordered("<=", amax, F32(1e-30))  # its inverse would be infinite; or NaN
    inverse = b.select(tiny, F32(0.0), b.fdiv(F32(127.0), amax))
    total = constant(INTS, 0)
    for i, part in enumerate(parts):
        # Adding 1.5 * 2^23 leaves the nearest integer, half to even, in the low bits.
        shifted = b.fadd(b.fmul(part, splat(b, inverse)), constant(FLOATS, 12582912.0))
        whole = b.sub(b.bitcast(shifted, INTS), constant(INTS, 0x4B400000))
        store(b, b.trunc(whole, ir.VectorType(I8, BLOCK)), q, BLOCK * i)
        total = b.add(total, whole)
    count = b.sitofp(b.call(function(b, "llvm.vector.reduce.add.v16i32", I32, INTS), [total]), F32)
    scale = b.fdiv(amax, F32(127.0))
    store(b, scale, scales)
    store(b, b.fmul(scale, count), scales, 4)


@njit(error_model="numpy")
def multiply(weight, bits, x, scales, rows, groups, out, out_bytes, first, last):
    """Multiply `rows` rows of activations with the blocks `first` to `last` of a weight, to `out` in fp32.

    weight, x, scales, out: addresses in the layouts above; a row of out is out_bytes after the row before it.
    """
    block_bytes = groups * (_FOUR_BYTES if bits == 4 else _EIGHT_BYTES)
    x_bytes, scale_bytes = groups * GROUP, groups * 8
    for block in range(first, last):
        here, there, row = weight + block * block_bytes, out + block * 4 * BLOCK, 0
        while row < rows:
            row_x, row_scales, to = x + row * x_bytes, scales + row * scale_bytes, there + row * out_bytes
            left = rows - row
            step = 8 if left >= 8 and _MOST_ROWS == 8 else 4 if left >= 4 else 2 if left >= 2 else 1
            if step == 8:
                _product_8(bits, here, row_x, row_scales, groups, to, out_bytes)
            elif step == 4:
                _product_4(bits, here, row_x, row_scales, groups, to, out_bytes)
            elif step == 2:
                _product_2(bits, here, row_x, row_scales, groups, to, out_bytes)
            else:
                _product_1(bits, here, row_x, row_scales, groups, to, out_bytes)
            row += step


@njit(error_model="numpy")
def quantize(x, count, integers, scales):
    """Quantise `count` floats, in whole groups of 32, to the layout above; the others are addresses."""
    for group in range(count // GROUP):
        _quantize_group(x + group * 4 * GROUP, integers + group * GROUP, scales + group * 8)


@cache
def compile_products() -> Any:
    """`multiply` and `quantize` for callers in Python, from numba's disk cache or compiled anew."""
    version = _VERSION

    @compiled(f"void({', '.join(['int64'] * 10)})")
    def multiply_rows(weight, bits, x, scales, rows, groups, out, out_bytes, first, last):
        _ = version
        multiply(weight, bits, x, scales, rows, groups, out, out_bytes, first, last)

    @compiled("void(int64, int64, int64, int64)")
    def quantize_groups(x, count, integers, scales):
        _ = version
        quantize(x, count, integers, scales)

    return multiply_rows, quantize_groups


# Rounding of weights, fp32 [rows, groups, 32]. A group's scale and minimum are fp32 numbers that fp16 holds.

# Where the search begins: the range of a group as so many steps, and how many of these lie below code 0.
_STARTS = [(steps, (steps - 15) / 2 + shift) for steps in (14.6, 15.4, 16.2, 17.0) for shift in (-0.25, 0.25)]


@emitted(types.void, *[types.intp] * 3)
def _search_groups(b, values, scales, minima):
    """The scale and the minimum of 16 groups in four bits: of several roundings the one with the least squares.

    values: fp32 [32, 16], a group in each lane; they are replaced. Each start's codes get the scale and minimum
    that fit them best; the best codes are rounded once more by these. Where the numbers of a group are all equal,
    or one is not finite, the scale is 0 and the minimum their mean.
    """
    zero, count = constant(FLOATS, 0.0), constant(FLOATS, GROUP)

    def over_group(initial, body):
        return loop(b, I64(GROUP), initial, lambda i, found: body(b.add(values, b.mul(i, I64(4 * LANES))), found))

    def widen(place, ends):
        one = load(b, place, FLOATS)
        return [b.select(b.fcmp_ordered(o, one, end), one, end) for o, end in zip("<>", ends, strict=True)]

    def lower(place, totals):
        one = b.fsub(load(b, place, FLOATS), low)
        store(b, one, place)
        return [b.fadd(totals[0], one)]

    low, high = over_group([load(b, values, FLOATS)] * 2, widen)
    (total,) = over_group([zero], lower)

    def fit(inverse, offset):
        """Of codes in steps of 1 / inverse, plus offset: the variance that they explain, scale, minimum."""

        def add(place, sums):
            one = load(b, place, FLOATS)
            code = _rounded(b, fma(b, one, inverse, offset), constant(FLOATS, 15.0))
            return [b.fadd(sums[0], code), fma(b, code, code, sums[1]), fma(b, code, one, sums[2])]

        code, square, product = over_group([zero] * 3, add)
        covariance = b.fsub(product, b.fdiv(b.fmul(code, total), count))
        slope = b.fdiv(covariance, b.fsub(square, b.fdiv(b.fmul(code, code), count)))
        return b.fmul(covariance, slope), slope, b.fdiv(b.fsub(total, b.fmul(slope, code)), count)

    best = (zero, zero, b.fdiv(total, count))
    extent = b.fsub(high, low)
    for start in (*_STARTS, None):
        if start is None:
            inverse = b.fdiv(constant(FLOATS, 1.0), best[1])
            found = fit(inverse, b.fneg(b.fmul(best[2], inverse)))
        else:
            found = fit(b.fdiv(constant(FLOATS, start[0]), extent), constant(FLOATS, -start[1]))
        better = b.fcmp_ordered(">", found[0], best[0])
        best = tuple(b.select(better, new, old) for new, old in zip(found, best, strict=True))
    store(b, best[1], scales)
    store(b, b.fadd(best[2], low), minima)


def _rounded(b, values, most):
    """The nearest whole numbers, half to even, from 0 to `most`; 0 for NaN."""
    values = b.select(b.fcmp_ordered(">", values, constant(FLOATS, 0.0)), values, constant(FLOATS, 0.0))
    values = b.select(b.fcmp_ordered("<", values, most), values, most)
    magic = constant(FLOATS, 12582912.0)  # 1.5 * 2^23, beside which no fraction has room
    return b.fsub(b.fadd(values, magic), magic)


@emitted(types.void, types.intp, types.float32, types.float32, types.float32, types.intp)
def _code_group(b, values, scale, minimum, most, codes):
    """The codes of 32 floats, from 0 to `most`, as bytes."""
    divisor = b.select(b.fcmp_ordered(">", scale, F32(1e-12)), scale, F32(1e-12))
    for i in range(GROUP // LANES):
        steps = b.fsub(load(b, values, FLOATS, 4 * LANES * i), splat(b, minimum))
        whole = b.fptosi(_rounded(b, b.fdiv(steps, splat(b, divisor)), splat(b, most)), INTS)
        store(b, b.trunc(whole, ir.VectorType(I8, LANES)), codes, LANES * i)


@cache
def compile_rounding() -> Any:
    """`search` and `code`, from numba's disk cache or compiled anew."""
    version = _VERSION

    @compiled("void(float32[:,:,::1], float32[:,::1], float32[:,::1])")
    def search(values, scales, minima):
        """Fill scales and minima, [rows, groups], for four bits. rows: a multiple of 16."""
        _ = version
        numbers = values.reshape(-1, LANES, GROUP)
        lanes = np.empty((GROUP, LANES), np.float32)
        for part in range(len(numbers)):
            for lane in range(LANES):
                for i in range(GROUP):
                    lanes[i, lane] = numbers[part, lane, i]
            done = 4 * LANES * part
            _search_groups(lanes.ctypes.data, scales.ctypes.data + done, minima.ctypes.data + done)

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
