"""What numba lacks for code that is compiled for the processor at hand: addresses, atomics, vectors of 16 floats.

Addresses are integers and counts are not checked: callers know their shapes. A function whose first argument is an
IRBuilder emits LLVM code; its other arguments are the code's values.
"""

import contextlib
import platform
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, config, njit, types
from numba.core.caching import FunctionCache
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

_X86 = platform.machine().lower() in ("x86_64", "amd64")
LANES = 16  # of the vectors; the compiler splits them for processors with shorter ones

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, HALF = ir.FloatType(), ir.HalfType()
FLOATS, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
Emit = Callable[..., ir.Value | None]


def emitted(result: Any, *arguments: Any) -> Callable[[Emit], Any]:
    """Decorates a function that emits LLVM code, (builder, *values) -> the result: it is called from numba."""

    def decorate(emit: Emit) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        scope: dict[str, Any] = {"answer": (result(*arguments), codegen)}
        # numba reads the number of arguments from the signature.
        exec(f"def typed(typing_context, {names}): return answer", scope)
        scope["typed"].__doc__, scope["typed"].__name__ = emit.__doc__, emit.__name__
        return intrinsic(scope["typed"])

    return decorate


def features() -> frozenset[str]:
    """What the processor that numba compiles for can do, in LLVM's names; NUMBA_CPU_FEATURES names another."""
    names: str | None = config.CPU_FEATURES  # type: ignore[attr-defined]
    names = get_host_cpu_features() if names is None else names  # empty for NUMBA_CPU_NAME=generic
    return frozenset(name[1:] for name in names.split(",") if name.startswith("+"))


def version_of(*modules: str) -> int:
    """A number that changes with the source of modules. It is asked for while they are imported: files may change.

    numba's disk cache sees a function's own file as it is when the code is saved, and what its closure holds, but
    no other modules: a cached function holds this number of them all.
    """
    return zlib.crc32(b"".join(Path(str(sys.modules[module].__file__)).read_bytes() for module in modules))


def compiled(signature: str) -> Callable[[Callable[..., None]], Any]:
    """Decorates a function that numba compiles, or takes from its disk cache; it runs without Python's lock."""
    options: Any = {"nogil": True, "error_model": "numpy"}

    def decorate(python: Callable[..., None]) -> Any:
        try:
            return njit(signature, cache=True, **options)(python)
        except Exception:  # no folder that can be written to, a full disk, a damaged file
            with contextlib.suppress(Exception):
                FunctionCache(python).flush()  # the next start writes it anew
            return njit(signature, **options)(python)

    return decorate


def function(b, name, result, *arguments):
    """One of LLVM's own functions."""
    return b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(result, arguments), name)


def load(b, address, kind, offset=0):
    address = b.add(address, I64(offset)) if offset else address
    return b.load(b.inttoptr(address, kind.as_pointer()), align=1)


def store(b, value, address, offset=0):
    address = b.add(address, I64(offset)) if offset else address
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=1)


def splat(b, value, count=LANES):
    undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(I32, count), [0] * count)
    return b.shuffle_vector(b.insert_element(undefined, value, I32(0)), undefined, zeros)


def constant(kind, value):
    return ir.Constant(kind, [value] * kind.count)


def fma(b, x, y, z):
    return b.call(function(b, "llvm.fma.v16f32", FLOATS, FLOATS, FLOATS, FLOATS), [x, y, z])


def load_bf16(b, address, offset=0):
    """16 numbers in bfloat16 as floats."""
    halves = b.zext(load(b, address, ir.VectorType(I16, LANES), offset), INTS)
    return b.bitcast(b.shl(halves, constant(INTS, 16)), FLOATS)


def load_fp16(b, address, offset=0):
    """16 numbers in fp16 as floats."""
    if "f16c" in features() or not _X86:
        return b.fpext(load(b, address, ir.VectorType(HALF, LANES), offset), FLOATS)
    # Else LLVM calls a function that is not there. A half's exponent is moved, then corrected by a product.
    halves = b.zext(load(b, address, ir.VectorType(I16, LANES), offset), INTS)
    size = b.shl(b.and_(halves, constant(INTS, 0x7FFF)), constant(INTS, 13))
    value = b.bitcast(b.fmul(b.bitcast(size, FLOATS), constant(FLOATS, 2.0**112)), INTS)
    special = b.icmp_unsigned(">=", size, constant(INTS, 0x7C00 << 13))  # infinite or NaN
    value = b.select(special, b.or_(size, constant(INTS, 0x7F800000)), value)
    sign = b.shl(b.and_(halves, constant(INTS, 0x8000)), constant(INTS, 16))
    return b.bitcast(b.or_(value, sign), FLOATS)


def loop(b, count, initial, body):
    """`values = body(index, values)` for each index below `count`, at least once; returns the last values."""
    before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.branch(inside)
    b.position_at_end(inside)
    index = b.phi(I64)
    index.add_incoming(I64(0), before)
    values = [b.phi(value.type) for value in initial]
    for value, first in zip(values, initial, strict=True):
        value.add_incoming(first, before)
    results = body(index, list(values))
    following = b.add(index, I64(1))
    for phi, value in ((index, following), *zip(values, results, strict=True)):
        phi.add_incoming(value, b.block)
    b.cbranch(b.icmp_signed("<", following, count), inside, after)
    b.position_at_end(after)
    return results


@emitted(types.voidptr, types.intp)
def pointer(b, address):
    """The address as numba's `carray` takes it."""
    return b.inttoptr(address, ir.PointerType(I8))


@njit(error_model="numpy")
def floats(address, count):
    return carray(pointer(address), count, np.float32)


@njit(error_model="numpy")
def halves(address, count):
    """The array of 16 bit numbers at an address."""
    return carray(pointer(address), count, np.int16)


@emitted(types.int64, types.intp)
def atomic_load(b, address):
    return b.load_atomic(b.inttoptr(address, I64.as_pointer()), "seq_cst", 8)


@emitted(types.void, types.intp, types.int64)
def atomic_store(b, address, value):
    b.store_atomic(value, b.inttoptr(address, I64.as_pointer()), "seq_cst", 8)


@emitted(types.int64, types.intp, types.int64)
def atomic_add(b, address, value):
    """Add to the number at an address; returns what it was before."""
    return b.atomic_rmw("add", b.inttoptr(address, I64.as_pointer()), value, "seq_cst")


@emitted(types.void)
def pause(b):
    """Tell the processor that this thread waits for another one."""
    if _X86:
        b.call(function(b, "llvm.x86.sse2.pause", ir.VoidType()), [])


yield_thread = types.ExternalFunction("sched_yield", types.int32())  # lets another thread have the core


def sums(b, vectors, add=ir.IRBuilder.fadd):
    """The sum of each of 1, 2 or 4 vectors of 16 floats, as a vector; or what `add` makes of two vectors instead.

    Upper halves are added to lower ones, on every processor: the bits are the same.
    """
    size = LANES  # of a run of partial sums of one vector
    while size > 1:
        pairs = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
        lanes = vectors[0].type.count * len(pairs[0])
        lower = [start + i for start in range(0, lanes, size) for i in range(size // 2)]
        folded = []
        for pair in pairs:
            parts = [
                ir.Constant(ir.VectorType(I32, lanes // 2), [i + offset for i in lower])
                for offset in (0, size // 2)
            ]
            folded.append(add(b, *(b.shuffle_vector(pair[0], pair[-1], part) for part in parts)))
        vectors, size = folded, size // 2
    return vectors[0]


def _switch(b, value, cases, emit):
    """The code of `emit(case)` for the case that `value` is."""
    after = b.append_basic_block()
    choice = b.switch(value, after)
    for case in cases:
        block = b.append_basic_block()
        choice.add_case(I64(case), block)
        b.position_at_end(block)
        emit(case)
        b.branch(after)
    b.position_at_end(after)


TILE = 64  # keys that attention reads at a time
SCORES_BYTES = 4 * (TILE + LANES)  # of a query's scores of a tile, and a vector behind them
_QUERIES = (1, 2, 3, 4)  # whose sums stay in registers


@emitted(types.void, *[types.intp] * 7, types.float32, types.intp)
def _scores(b, queries, keys, query, query_bytes, key, key_bytes, vectors, scaling, out):
    """The scaled products of 1 to 4 queries, floats, and 1 or 4 keys, bfloat16, of 16 * vectors numbers.

    A query's scores lie SCORES_BYTES behind those of the query before it.
    """

    def emit(queries: int, keys: int) -> None:
        def add(i, products):
            here = b.add(key, b.mul(i, I64(2 * LANES)))
            loaded = [load_bf16(b, b.add(here, b.mul(key_bytes, I64(k)))) for k in range(keys)]
            for q in range(queries):
                start = b.add(query, b.mul(query_bytes, I64(q)))
                one = load(b, b.add(start, b.mul(i, I64(4 * LANES))), FLOATS)
                for k in range(keys):
                    products[q * keys + k] = fma(b, one, loaded[k], products[q * keys + k])
            return products

        products = loop(b, vectors, [constant(FLOATS, 0.0)] * (queries * keys), add)
        for q in range(queries):
            found = sums(b, products[q * keys : (q + 1) * keys])
            store(b, b.fmul(found, splat(b, scaling, keys)), out, SCORES_BYTES * q)

    _switch(b, keys, (1, 4), lambda k: _switch(b, queries, _QUERIES, lambda q: emit(q, k)))


@emitted(types.void, *[types.intp] * 8)
def _add_weighted(b, queries, vectors, weights, rows, row_bytes, count, sums, sum_bytes):
    """Add to the sums of 1 to 4 queries, of 1 or 4 vectors, each with its own weights, `count` bfloat16 rows."""

    def emit(queries: int, vectors: int) -> None:
        def add(i, totals):
            row = b.add(rows, b.mul(i, row_bytes))
            loaded = [load_bf16(b, row, 2 * LANES * v) for v in range(vectors)]
            here = b.add(weights, b.mul(i, I64(4)))
            for q in range(queries):
                weight = splat(b, load(b, here, F32, SCORES_BYTES * q))
                for v in range(vectors):
                    totals[q * vectors + v] = fma(b, weight, loaded[v], totals[q * vectors + v])
            return totals

        places = [b.add(sums, b.mul(sum_bytes, I64(q))) for q in range(queries)]
        initial = [load(b, place, FLOATS, 4 * LANES * v) for place in places for v in range(vectors)]
        for i, total in enumerate(loop(b, count, initial, add)):
            store(b, total, places[i // vectors], 4 * LANES * (i % vectors))

    _switch(b, vectors, (1, 4), lambda v: _switch(b, queries, _QUERIES, lambda q: emit(q, v)))


@njit(error_model="numpy")
def scores(query, query_bytes, queries, key, key_bytes, keys, vectors, scaling, out):
    """The scaled products of 1 to 4 queries with any number of keys, see `_scores`."""
    k = 0
    while k < keys:
        step = 4 if k + 4 <= keys else 1
        _scores(queries, step, query, query_bytes, key + k * key_bytes, key_bytes, vectors, scaling, out + 4 * k)
        k += step


@njit(error_model="numpy")
def add_weighted(weights, queries, rows, row_bytes, count, size, sums, sum_bytes):
    """Add weighted rows of `size` numbers, a multiple of 16, to the sums of 1 to 4 queries."""
    done = 0
    while done < size:
        step = 4 if done + 64 <= size else 1
        _add_weighted(queries, step, weights, rows + 2 * done, row_bytes, count, sums + 4 * done, sum_bytes)
        done += 16 * step


def _exp(b, x):
    """e^x of 16 floats up to 88, to 2 units in the last place; at least e^-87, and NaN for NaN."""
    x = b.select(b.fcmp_ordered("<", x, constant(FLOATS, -87.0)), constant(FLOATS, -87.0), x)
    # Adding 1.5 * 2^23 leaves the nearest integer in the low bits, which become the exponent.
    shifted = fma(b, x, constant(FLOATS, 1.4426950408889634), constant(FLOATS, 12582912.0))
    whole = b.fsub(shifted, constant(FLOATS, 12582912.0))
    rest = fma(b, whole, constant(FLOATS, -0.693145751953125), x)  # ln 2 in two parts
    rest = fma(b, whole, constant(FLOATS, -1.428606765330187e-06), rest)
    power = constant(FLOATS, 1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        power = fma(b, power, rest, constant(FLOATS, factor))
    power = b.fadd(fma(b, power, b.fmul(rest, rest), rest), constant(FLOATS, 1.0))
    exponent = b.sub(b.bitcast(shifted, INTS), constant(INTS, 0x4B400000 - 127))
    return b.fmul(power, b.bitcast(b.shl(exponent, constant(INTS, 23)), FLOATS))


def _larger(b, x, y):
    """The larger numbers of two vectors; those of x where y is NaN."""
    return b.select(b.fcmp_ordered(">", y, x), y, x)


@emitted(types.float32, types.intp, types.int64, types.float32)
def largest_of(b, x, vectors, least):
    """The largest of `least`, which is no NaN, and the 16 * vectors floats at x, at least one vector."""

    def compare(i, found):
        return [_larger(b, found[0], load(b, b.add(x, b.mul(i, I64(4 * LANES))), FLOATS))]

    return b.extract_element(sums(b, loop(b, vectors, [splat(b, least)], compare), _larger), I32(0))


@emitted(types.float32, types.intp, types.int64, types.float32)
def exp_below(b, x, vectors, largest):
    """Replace 16 * vectors floats at x, at least one vector, by e^(x - largest); returns their sum."""

    def replace(i, totals):
        here = b.add(x, b.mul(i, I64(4 * LANES)))
        power = _exp(b, b.fsub(load(b, here, FLOATS), splat(b, largest)))
        store(b, power, here)
        return [b.fadd(totals[0], power)]

    return b.extract_element(sums(b, loop(b, vectors, [constant(FLOATS, 0.0)], replace)), I32(0))


@emitted(types.void, types.intp, types.intp, types.int64, types.intp)
def gated_silu(b, gate, up, vectors, out):
    """silu(gate) * up of 16 * vectors floats, at least one vector."""

    def compute(i, _):
        offset = b.mul(i, I64(4 * LANES))
        x, factor = load(b, b.add(gate, offset), FLOATS), load(b, b.add(up, offset), FLOATS)
        minus = b.fneg(x)
        minus = b.select(b.fcmp_ordered(">", minus, constant(FLOATS, 87.0)), constant(FLOATS, 87.0), minus)
        silu = b.fdiv(x, b.fadd(_exp(b, minus), constant(FLOATS, 1.0)))
        store(b, b.fmul(silu, factor), b.add(out, offset))
        return []

    loop(b, vectors, [], compute)


@emitted(types.int16, types.float32)
def to_bf16(b, x):
    """A float as bfloat16, to the nearest, half to even; NaN stays NaN."""
    number = b.bitcast(x, I32)
    half = b.add(I32(0x7FFF), b.and_(b.lshr(number, I32(16)), I32(1)))
    rounded = b.select(b.fcmp_unordered("uno", x, x), I32(0x7FC00000), b.add(number, half))
    return b.trunc(b.lshr(rounded, I32(16)), I16)


@emitted(types.float32, types.int16)
def from_bf16(b, x):
    return b.bitcast(b.shl(b.zext(x, I32), I32(16)), F32)
