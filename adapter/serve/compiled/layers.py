"""What the compiled pass computes: the operations of all layers, cut into pieces that threads share.

The computation is that of `base.decoder.DecoderLayer`, and tests hold it to that. Each token is a row of its own
through every operation. Everything is at an address in the plan; `compiled_pass` fills it in. Compiled code checks
nothing: whoever fills in the plan and an entry knows the shapes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from adapter.base.packed.integer_product import BLOCK, GROUP, multiply, quantize, whole_blocks, whole_groups
from adapter.base.packed.native import (
    LANES,
    SCORES_BYTES,
    TILE,
    add_weighted,
    atomic_add,
    atomic_load,
    atomic_store,
    compiled,
    exp_below,
    floats,
    from_bf16,
    gated_silu,
    halves,
    integers,
    pause,
    scores,
    to_bf16,
    version_of,
    yield_thread,
)  # fmt: skip
from adapter.method.deltas import LINEARS

# The plan: int64 numbers and addresses that all threads read. Its first fields change during a pass.
TICKETS, DONE, ACTIVE = 0, 8, 16  # pieces not taken yet; pieces done; whether a pass is running
KIND, LAYER = 17, 18  # of the pieces
(
    LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCABULARY, CAPACITY, THREADS,  # sizes
    CONSTANTS, MODEL, POOL, SCRATCH, SCRATCH_BYTES,  # addresses: epsilon and scaling; WEIGHTS a layer; KV
    TOKENS, OUTPUTS, ROWS, ROTATION,  # of this pass: how many, and their fields
    STREAM, NORMED, QKV, ATTENDED, PROJECTED, GATE_UP, ACTIVATED, INTEGERS, SCALES,  # buffers by token
    LAST_INTEGERS, LAST_SCALES, LOGITS,
) = range(24, 54)  # fmt: skip
PLAN = 64

# Fields of a token: its place in the pool, the place of its row's first token, its entry of prompts, its output.
PLACE, START, ENTRY, OUTPUT = range(4)
FIELDS = 4
# Of a layer: the norms' addresses, then the address and the bits of each of the seven weights.
WEIGHTS = 2 + 2 * len(LINEARS)
# Of an entry's layer: the norms' deltas, the number of prompt terms, their address, then five numbers for each
# linear layer: addresses of bias, scale, down, up by columns, and the rank.
DELTAS = 4 + 5 * len(LINEARS)
TERM = 4  # prompt length, addresses of keys, values and gates
(_Q, _K, _V, _O, _GATE, _UP, _DOWN) = range(7)  # of LINEARS

# The operations of a layer in order, and the head's.
(
    NORM_1, QUERY_KEY_VALUE, ROTATE, ATTEND, QUANTIZE, OUT, NORM_2, MLP_IN, ACTIVATE, MLP_OUT, HEAD,
) = range(11)  # fmt: skip
FEW = 4  # tokens up to which an operation by rows is not worth sharing
SPINS = 2000  # looks for work before a thread lets others have its core


_padded, _part_width = njit(whole_groups), njit(whole_blocks)


@njit(error_model="numpy")
def _norm(plan, row, weight, delta, to):
    """RMS norm of a row of the residual stream."""
    size = plan[HIDDEN]
    x, w, out = floats(row, size), floats(weight, size), floats(to, size)
    total = _sum_of_squares(row, size)
    factor = np.float32(1) / np.sqrt(total / np.float32(size) + floats(plan[CONSTANTS], 2)[0])
    for i in range(size):
        out[i] = x[i] * factor * w[i]
    if delta:
        change = floats(delta, size)
        for i in range(size):
            out[i] *= np.float32(1) + change[i]


@njit(error_model="numpy", fastmath={"reassoc"})  # so that it becomes a sum of vectors
def _sum_of_squares(address, count):
    x, total = floats(address, count), np.float32(0)
    for i in range(count):
        total += x[i] * x[i]
    return total


@njit(error_model="numpy", fastmath={"reassoc"})
def _dot(left, right, count):
    x, y, total = floats(left, count), floats(right, count), np.float32(0)
    for i in range(count):
        total += x[i] * y[i]
    return total


@njit(error_model="numpy")
def _add(to, what, count):
    out, x = floats(to, count), floats(what, count)
    for i in range(count):
        out[i] += x[i]


@njit(error_model="numpy")
def _change(entry, layer, linear, out, outputs, x, inputs):
    """V2's delta of a linear layer, see LinearDelta."""
    if entry == 0:
        return
    fields = integers(entry + 8 * (layer * DELTAS + 4 + 5 * linear), 5)
    bias, scale, down, up, rank = fields[0], fields[1], fields[2], fields[3], fields[4]
    y = floats(out, outputs)
    for r in range(rank):
        middle, column = _dot(down + 4 * r * inputs, x, inputs), floats(up + 4 * r * outputs, outputs)
        for i in range(outputs):
            y[i] += column[i] * middle
    if bias:
        _add(out, bias, outputs)
    if scale:
        factor = floats(scale, outputs)
        for i in range(outputs):
            y[i] *= np.float32(1) + factor[i]


@njit(error_model="numpy")
def _rotate(x, rotation, size):
    """RoPE of one head in place. rotation: cosines and sines of its halves, which are equal."""
    half = size // 2
    v, r = floats(x, size), floats(rotation, size)
    for i in range(half):
        left, right, cos, sin = v[i], v[i + half], r[i], r[i + half]
        v[i] = left * cos - right * sin
        v[i + half] = right * cos + left * sin


@njit(error_model="numpy")
def _store_bf16(to, x, count):
    out, v = halves(to, count), floats(x, count)
    for i in range(count):
        out[i] = to_bf16(v[i])


@njit(error_model="numpy")
def _scalar_scores(query, keys, count, size, scaling, to):
    """As `scores`, of one query, for heads whose size is no multiple of 16."""
    out, q = floats(to, count), floats(query, size)
    for j in range(count):
        k, score = halves(keys + 2 * j * size, size), np.float32(0)
        for i in range(size):
            score += q[i] * from_bf16(k[i])
        out[j] = score * scaling


@njit(error_model="numpy")
def _scalar_add_weighted(weights, rows, count, size, to):
    """As `add_weighted`, of one query, for heads whose size is no multiple of 16."""
    w, out = floats(weights, count), floats(to, size)
    for j in range(count):
        v = halves(rows + 2 * j * size, size)
        for i in range(size):
            out[i] += w[j] * from_bf16(v[i])


@njit(error_model="numpy")
def _softmax_attention(query, group, size, keys, values, count, scaling, scratch):
    """Attention of the `group` queries of one KV head, by tiles of keys. Leaves in scratch the sums of values,
    [group, size], then the sums of weights, [group].
    """
    totals, weights, maxima = scratch, scratch + 4 * group * size, scratch + 4 * group * (size + 1)
    tile_scores = scratch + 4 * group * (size + 2)
    out, sums, largest = floats(totals, group * size), floats(weights, group), floats(maxima, group)
    out[:] = 0
    sums[:] = 0
    largest[:] = -np.inf
    for tile in range(0, count, TILE):
        length, vectors = min(TILE, count - tile), size // LANES
        tile_keys, tile_values = keys + 2 * tile * size, values + 2 * tile * size
        for first in range(0, group, 4 if size % LANES == 0 else 1):
            some = min(4, group - first)
            here, to = query + 4 * first * size, tile_scores + first * SCORES_BYTES
            if size % LANES == 0:
                scores(here, 4 * size, some, tile_keys, 2 * size, length, vectors, scaling, to)
            else:
                _scalar_scores(here, tile_keys, length, size, scaling, to)
        for g in range(group):
            p = floats(tile_scores + g * SCORES_BYTES, TILE + LANES)
            top = largest[g]
            for j in range(length):
                top = p[j] if p[j] > top else top
            pieces = -(-length // LANES)
            p[length : pieces * LANES] = -np.inf  # what pads the scores to whole vectors: these weights vanish
            total = exp_below(tile_scores + g * SCORES_BYTES, pieces, top)
            if tile:
                p[TILE : TILE + LANES] = largest[g] - top  # behind the tile, the factor of the earlier sums
                exp_below(tile_scores + g * SCORES_BYTES + 4 * TILE, 1, np.float32(0))
                total += sums[g] * p[TILE]
                for i in range(g * size, (g + 1) * size):
                    out[i] *= p[TILE]
            sums[g], largest[g] = total, top
        for first in range(0, group, 4 if size % LANES == 0 else 1):
            some = min(4, group - first)
            here, to = tile_scores + first * SCORES_BYTES, totals + 4 * first * size
            if size % LANES == 0:
                add_weighted(here, some, tile_values, 2 * size, length, size, to, 4 * size)
            else:
                _scalar_add_weighted(here, tile_values, length, size, to)


@njit(error_model="numpy")
def _attend(plan, token, kv_head, layer, scratch):
    """Zero-init attention (equations 5 to 8) of the queries of one KV head of one token."""
    heads, kv_heads, size = plan[HEADS], plan[KV_HEADS], plan[HEAD_DIM]
    group = heads // kv_heads
    fields = integers(plan[ROWS] + 8 * token * FIELDS, FIELDS)
    side = plan[CAPACITY] * size * 2  # bytes of one head's keys
    keys = plan[POOL] + ((layer * 2) * kv_heads + kv_head) * side + fields[START] * size * 2
    query = plan[QKV] + 4 * (token * _qkv_width(plan) + kv_head * group * size)
    scaling = floats(plan[CONSTANTS], 2)[1]
    count = fields[PLACE] - fields[START] + 1
    _softmax_attention(query, group, size, keys, keys + kv_heads * side, count, scaling, scratch)
    out = floats(plan[ATTENDED] + 4 * (token * _padded(heads * size) + kv_head * group * size), group * size)
    totals, weights = floats(scratch, group * size), floats(scratch + 4 * group * size, group)
    for g in range(group):
        for i in range(g * size, (g + 1) * size):
            out[i] = totals[i] / weights[g]
    entry = fields[ENTRY]
    if entry == 0:
        return
    terms = integers(entry + 8 * layer * DELTAS, 4)
    for t in range(terms[2]):
        term = integers(terms[3] + 8 * t * TERM, TERM)
        length, gates = term[0], floats(term[3], heads)
        offset = kv_head * length * size * 2
        _softmax_attention(query, group, size, term[1] + offset, term[2] + offset, length, scaling, scratch)
        for g in range(group):
            gate = gates[kv_head * group + g]
            if gate != 0:
                factor = gate / weights[g]
                for i in range(g * size, (g + 1) * size):
                    out[i] += factor * totals[i]


@njit(error_model="numpy")
def _qkv_width(plan):
    size = plan[HEAD_DIM]
    return _part_width(plan[HEADS] * size) + 2 * _part_width(plan[KV_HEADS] * size)


@njit(error_model="numpy")
def _by_row(plan, kind, layer, token):
    """An operation between two products, on one token."""
    hidden, heads, kv_heads, size = plan[HIDDEN], plan[HEADS], plan[KV_HEADS], plan[HEAD_DIM]
    mlp, queries, keys = plan[MLP], plan[HEADS] * plan[HEAD_DIM], plan[KV_HEADS] * plan[HEAD_DIM]
    fields = integers(plan[ROWS] + 8 * token * FIELDS, FIELDS)
    entry = fields[ENTRY]
    stream = plan[STREAM] + 4 * token * hidden
    normed = plan[NORMED] + 4 * token * _padded(hidden)
    projected = plan[PROJECTED] + 4 * token * _part_width(hidden)
    attended = plan[ATTENDED] + 4 * token * _padded(queries)
    activated = plan[ACTIVATED] + 4 * token * _padded(mlp)
    weights = integers(plan[MODEL] + 8 * layer * WEIGHTS, WEIGHTS)
    if kind == NORM_1:
        if layer > 0:
            _change(entry, layer - 1, _DOWN, projected, hidden, activated, mlp)
            _add(stream, projected, hidden)
        delta = integers(entry + 8 * layer * DELTAS, 1)[0] if entry else 0
        if layer < plan[LAYERS]:
            _norm(plan, stream, weights[0], delta, normed)
            _quantize(plan, token, normed, hidden)
        elif fields[OUTPUT] >= 0:
            _norm(plan, stream, weights[0], delta, normed)
            columns = _padded(hidden)
            to = plan[LAST_INTEGERS] + fields[OUTPUT] * columns
            quantize(normed, columns, to, plan[LAST_SCALES] + fields[OUTPUT] * columns // GROUP * 8)
    elif kind == ROTATE:
        query = plan[QKV] + 4 * token * _qkv_width(plan)
        key = query + 4 * _part_width(queries)
        value = key + 4 * _part_width(keys)
        _change(entry, layer, _Q, query, queries, normed, hidden)
        _change(entry, layer, _K, key, keys, normed, hidden)
        _change(entry, layer, _V, value, keys, normed, hidden)
        rotation = plan[ROTATION] + 4 * token * size
        for head in range(heads):
            _rotate(query + 4 * head * size, rotation, size)
        for head in range(kv_heads):
            _rotate(key + 4 * head * size, rotation, size)
            to = plan[POOL] + (((layer * 2) * kv_heads + head) * plan[CAPACITY] + fields[PLACE]) * size * 2
            _store_bf16(to, key + 4 * head * size, size)
            _store_bf16(to + kv_heads * plan[CAPACITY] * size * 2, value + 4 * head * size, size)
    elif kind == QUANTIZE:
        _quantize(plan, token, attended, queries)
    elif kind == NORM_2:
        _change(entry, layer, _O, projected, hidden, attended, queries)
        _add(stream, projected, hidden)
        delta = integers(entry + 8 * (layer * DELTAS + 1), 1)[0] if entry else 0
        _norm(plan, stream, weights[1], delta, normed)
        _quantize(plan, token, normed, hidden)
    elif kind == ACTIVATE:
        width = _part_width(mlp)
        gate = plan[GATE_UP] + 4 * token * 2 * width
        up = gate + 4 * width
        _change(entry, layer, _GATE, gate, mlp, normed, hidden)
        _change(entry, layer, _UP, up, mlp, normed, hidden)
        gated_silu(gate, up, width // LANES, activated)
        _quantize(plan, token, activated, mlp)


@njit(error_model="numpy")
def _quantize(plan, token, x, columns):
    """Quantise a row of a buffer, the input of the next product. What pads it is zero."""
    columns = _padded(columns)
    quantize(x, columns, plan[INTEGERS] + token * columns, plan[SCALES] + token * (columns // GROUP) * 8)


@njit(error_model="numpy")
def _share(count, pieces, piece):
    """The first of `count` things that belong to a piece."""
    return count * piece // pieces


@njit(error_model="numpy")
def _product(plan, weight, outputs, inputs, out, width, offset, first, last):
    """The part of blocks `first` to `last` that lies in one weight, whose outputs begin at `offset`."""
    blocks, before = _part_width(outputs) // BLOCK, offset // BLOCK
    first, last = max(first - before, 0), min(last - before, blocks)
    if first < last:
        groups, to = _padded(inputs) // GROUP, out + 4 * offset
        x, scales, tokens = plan[INTEGERS], plan[SCALES], plan[TOKENS]
        multiply(weight[0], weight[1], x, scales, tokens, groups, to, 4 * width, first, last)


@njit(error_model="numpy")
def _blocks(plan, kind):
    """Blocks of outputs of a product."""
    if kind == QUERY_KEY_VALUE:
        return _qkv_width(plan) // BLOCK
    if kind == MLP_IN:
        return 2 * _part_width(plan[MLP]) // BLOCK
    if kind == HEAD:
        return _part_width(plan[VOCABULARY]) // BLOCK
    return _part_width(plan[HIDDEN]) // BLOCK


@njit(error_model="numpy")
def _pieces(plan, kind):
    """Into how many pieces an operation is cut."""
    threads, tokens = plan[THREADS], plan[TOKENS]
    if kind == ATTEND:
        return min(tokens * plan[KV_HEADS], 8 * threads)
    if kind in (QUERY_KEY_VALUE, OUT, MLP_IN, MLP_OUT, HEAD):
        return min(_blocks(plan, kind), 4 * threads)
    return 1 if tokens <= FEW else min(tokens, 4 * threads)


@njit(error_model="numpy")
def _run(plan, kind, layer, piece, thread):
    """One piece of an operation."""
    scratch = plan[SCRATCH] + thread * plan[SCRATCH_BYTES]
    pieces = _pieces(plan, kind)
    if kind == ATTEND:
        units, kv_heads = plan[TOKENS] * plan[KV_HEADS], plan[KV_HEADS]
        for unit in range(_share(units, pieces, piece), _share(units, pieces, piece + 1)):
            _attend(plan, unit // kv_heads, unit % kv_heads, layer, scratch)
    elif kind in (QUERY_KEY_VALUE, OUT, MLP_IN, MLP_OUT, HEAD):
        blocks = _blocks(plan, kind)
        first, last = _share(blocks, pieces, piece), _share(blocks, pieces, piece + 1)
        hidden, mlp, queries = plan[HIDDEN], plan[MLP], plan[HEADS] * plan[HEAD_DIM]
        weights = integers(plan[MODEL] + 8 * layer * WEIGHTS, WEIGHTS)[2:]
        if kind == QUERY_KEY_VALUE:
            keys, width, out = plan[KV_HEADS] * plan[HEAD_DIM], _qkv_width(plan), plan[QKV]
            offset = _part_width(queries)
            _product(plan, weights[0:2], queries, hidden, out, width, 0, first, last)
            _product(plan, weights[2:4], keys, hidden, out, width, offset, first, last)
            _product(plan, weights[4:6], keys, hidden, out, width, offset + _part_width(keys), first, last)
        elif kind == OUT:
            _product(plan, weights[6:8], hidden, queries, plan[PROJECTED], _part_width(hidden), 0, first, last)
        elif kind == MLP_IN:
            width = _part_width(mlp)
            _product(plan, weights[8:10], mlp, hidden, plan[GATE_UP], 2 * width, 0, first, last)
            _product(plan, weights[10:12], mlp, hidden, plan[GATE_UP], 2 * width, width, first, last)
        elif kind == MLP_OUT:
            _product(plan, weights[12:14], hidden, mlp, plan[PROJECTED], _part_width(hidden), 0, first, last)
        else:
            groups, width = _padded(hidden) // GROUP, _part_width(plan[VOCABULARY])
            x, scales, outputs = plan[LAST_INTEGERS], plan[LAST_SCALES], plan[OUTPUTS]
            multiply(weights[0], weights[1], x, scales, outputs, groups, plan[LOGITS], 4 * width, first, last)
    else:
        tokens = plan[TOKENS]
        for token in range(_share(tokens, pieces, piece), _share(tokens, pieces, piece + 1)):
            _by_row(plan, kind, layer, token)


@njit(error_model="numpy")
def _take_pieces(plan, address, thread):
    """Run pieces of the current operation until none is left.

    While a thread holds a piece, the operation is not done, and so the plan does not change.
    """
    while atomic_load(address + 8 * TICKETS) > 0:
        ticket = atomic_add(address + 8 * TICKETS, -1)
        if ticket > 0:
            _run(plan, plan[KIND], plan[LAYER], ticket - 1, thread)
            atomic_add(address + 8 * DONE, 1)


@njit(error_model="numpy")
def _operation(plan, address, kind, layer):
    """Run one operation for all tokens, with the help of whoever is awake."""
    pieces = _pieces(plan, kind)
    plan[KIND], plan[LAYER] = kind, layer
    atomic_store(address + 8 * DONE, 0)
    atomic_store(address + 8 * TICKETS, pieces)
    _take_pieces(plan, address, 0)
    spins = 0
    while atomic_load(address + 8 * DONE) < pieces:
        pause()
        spins += 1
        if spins % SPINS == 0:
            yield_thread()


@cache
def compile_work() -> Any:
    """The function (address of the plan, thread), from numba's disk cache or, in 10 to 20 seconds, anew."""
    version = version_of(
        "adapter.base.packed.native", "adapter.base.packed.integer_product", "adapter.method.deltas"
    )

    @compiled("void(int64, int64)")
    def work(address, thread):
        """Thread 0: all layers for the tokens of the plan. Others: help until no pass has run for a while."""
        _ = version
        plan, spins = integers(address, PLAN), 0
        if thread > 0:
            while spins < SPINS or atomic_load(address + 8 * ACTIVE):
                if atomic_load(address + 8 * TICKETS) > 0:
                    _take_pieces(plan, address, thread)
                    spins = 0
                pause()
                spins += 1
                if spins % SPINS == 0:
                    yield_thread()
            return
        atomic_store(address + 8 * ACTIVE, 1)
        for operation in range(plan[LAYERS] * HEAD + 2):
            layer = operation // HEAD
            kind = operation % HEAD if layer < plan[LAYERS] else NORM_1 if operation % HEAD == 0 else HEAD
            _operation(plan, address, kind, layer)
        atomic_store(address + 8 * ACTIVE, 0)

    return work
