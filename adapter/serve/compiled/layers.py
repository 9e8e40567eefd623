"""What the compiled pass computes: the operations of all layers, cut into pieces that threads share.

The computation is that of `base.decoder.DecoderLayer`, and tests hold it to that. Each token is a row of its own
through every operation. All data is at addresses in the records below. Compiled code checks nothing: `forward`
checks the shapes before it writes an address.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit

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
    largest_of,
    pause,
    pointer,
    scores,
    to_bf16,
    version_of,
    yield_thread,
)  # fmt: skip
from adapter.method.deltas import LINEARS


def _record(*fields: str | tuple[Any, ...]) -> np.dtype:
    """A record of int64 numbers and addresses, and of other records."""
    return np.dtype([(field, np.int64) if isinstance(field, str) else field for field in fields])


# A term of a row's prompts in one layer: the prompt length, and addresses.
TERM = _record("length", "keys", "values", "gates")
# V2's delta of a linear layer: addresses, 0 for none, the columns of `up` one after the other; and LoRA's rank.
LINEAR_DELTA = _record("bias", "scale", "down", "up", "rank")
# What a row's entry holds for a layer: the norms' deltas, the number of its TERMs and their address, the linears'
# deltas in the order of LINEARS. Behind the last layer stands the final norm's, as `attention_norm`.
ENTRY = _record("attention_norm", "mlp_norm", "terms", "first_term", ("linears", LINEAR_DELTA, len(LINEARS)))
# The frozen weights of a layer, those of linears in the order of LINEARS. Behind the last layer stand the final
# norm and the head.
WEIGHT = _record("address", "bits")
LAYER = _record("attention_norm", "mlp_norm", ("linears", WEIGHT, len(LINEARS)))
# A token: its place in the pool, that of its row's first token, the address of its row's entry, its output or -1.
TOKEN = _record("place", "start", "entry", "output")
# What all threads read. `tickets` (pieces that nobody has taken), `done` (pieces) and `active` (whether a pass is
# running) change while they read; each of the first two has a cache line of its own.
PLAN = _record(
    "tickets", ("_1", np.int64, 7), "done", ("_2", np.int64, 7), "active",
    "kind", "layer",  # of the pieces
    "layers", "hidden", "heads", "kv_heads", "head_dim", "mlp", "vocabulary", "capacity", "threads",  # sizes
    "constants", "model", "pool", "scratch", "scratch_bytes",  # epsilon and scaling; LAYERs; KV; buffers by thread
    "tokens", "outputs", "rows", "rotation",  # of this pass: how many, and addresses of TOKENs and angles
    "stream", "normed", "qkv", "attended", "projected", "gate_up", "activated", "integers", "scales",  # by token
    "last_integers", "last_scales", "logits",  # by output
)  # fmt: skip
_TICKETS, _DONE, _ACTIVE = (PLAN.fields[name][1] for name in ("tickets", "done", "active"))  # type: ignore[index]
_Q, _K, _V, _O, _GATE, _UP, _DOWN = range(len(LINEARS))

# The operations of a layer in order, and the head's.
(
    NORM_1, QUERY_KEY_VALUE, ROTATE, ATTEND, QUANTIZE, OUT, NORM_2, MLP_IN, ACTIVATE, MLP_OUT, HEAD,
) = range(11)  # fmt: skip
_SOURCES = ("adapter.base.packed.native", "adapter.base.packed.integer_product", "adapter.method.deltas")
_VERSION = version_of(__name__, *_SOURCES)
FEW = 4  # tokens up to which an operation by rows is not worth sharing
SPINS = 2000  # looks for work before a thread lets others have its core

_padded, _part_width = njit(whole_groups), njit(whole_blocks)


@njit(error_model="numpy")
def _layer(plan, layer):
    return carray(pointer(plan.model), layer + 1, LAYER)[layer]


@njit(error_model="numpy")
def _token(plan, token):
    return carray(pointer(plan.rows), token + 1, TOKEN)[token]


@njit(error_model="numpy")
def _entry(address, layer):
    return carray(pointer(address), layer + 1, ENTRY)[layer]


@njit(error_model="numpy")
def _norm(plan, row, weight, delta, to):
    """RMS norm of a row of the residual stream."""
    size = plan.hidden
    x, w, out = floats(row, size), floats(weight, size), floats(to, size)
    factor = np.float32(1) / np.sqrt(_dot(row, row, size) / np.float32(size) + floats(plan.constants, 2)[0])
    for i in range(size):
        out[i] = x[i] * factor * w[i]
    if delta:
        change = floats(delta, size)
        for i in range(size):
            out[i] *= np.float32(1) + change[i]


@njit(error_model="numpy", fastmath={"reassoc"})  # so that it becomes a sum of vectors
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
    delta, y = _entry(entry, layer).linears[linear], floats(out, outputs)
    for r in range(delta.rank):
        middle = _dot(delta.down + 4 * r * inputs, x, inputs)
        column = floats(delta.up + 4 * r * outputs, outputs)
        for i in range(outputs):
            y[i] += column[i] * middle
    if delta.bias:
        _add(out, delta.bias, outputs)
    if delta.scale:
        factor = floats(delta.scale, outputs)
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
            pieces = -(-length // LANES)
            p[length : pieces * LANES] = -np.inf  # what pads the scores to whole vectors: these weights vanish
            top = largest_of(tile_scores + g * SCORES_BYTES, pieces, largest[g])
            total = exp_below(tile_scores + g * SCORES_BYTES, pieces, top)
            if tile and top > largest[g]:
                p[TILE : TILE + LANES] = largest[g] - top  # behind the tile, the factor of the earlier sums
                exp_below(tile_scores + g * SCORES_BYTES + 4 * TILE, 1, np.float32(0))
                factor = p[TILE]
                sums[g] *= factor
                for i in range(g * size, (g + 1) * size):
                    out[i] *= factor
            sums[g], largest[g] = total + sums[g], top
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
    heads, kv_heads, size = plan.heads, plan.kv_heads, plan.head_dim
    group = heads // kv_heads
    row = _token(plan, token)
    side = plan.capacity * size * 2  # bytes of one head's keys
    keys = plan.pool + ((layer * 2) * kv_heads + kv_head) * side + row.start * size * 2
    query = plan.qkv + 4 * (token * _qkv_width(plan) + kv_head * group * size)
    scaling = floats(plan.constants, 2)[1]
    count = row.place - row.start + 1
    _softmax_attention(query, group, size, keys, keys + kv_heads * side, count, scaling, scratch)
    out = floats(plan.attended + 4 * (token * _padded(heads * size) + kv_head * group * size), group * size)
    totals, weights = floats(scratch, group * size), floats(scratch + 4 * group * size, group)
    for g in range(group):
        for i in range(g * size, (g + 1) * size):
            out[i] = totals[i] / weights[g]
    if row.entry == 0:
        return
    entry = _entry(row.entry, layer)
    for t in range(entry.terms):
        term = carray(pointer(entry.first_term), entry.terms, TERM)[t]
        length, gates = term.length, floats(term.gates, heads)
        offset = kv_head * length * size * 2
        _softmax_attention(query, group, size, term.keys + offset, term.values + offset, length, scaling, scratch)
        for g in range(group):
            gate = gates[kv_head * group + g]
            if gate != 0:
                factor = gate / weights[g]
                for i in range(g * size, (g + 1) * size):
                    out[i] += factor * totals[i]


@njit(error_model="numpy")
def _qkv_width(plan):
    size = plan.head_dim
    return _part_width(plan.heads * size) + 2 * _part_width(plan.kv_heads * size)


@njit(error_model="numpy")
def _norm_token(plan, kind, layer, token):
    """The last product's output joins the stream; then the norm before attention, the MLP or the head."""
    hidden, queries, row, second = plan.hidden, plan.heads * plan.head_dim, _token(plan, token), kind == NORM_2
    stream, normed = plan.stream + 4 * token * hidden, plan.normed + 4 * token * _padded(hidden)
    projected = plan.projected + 4 * token * _part_width(hidden)
    if second:
        _change(row.entry, layer, _O, projected, hidden, plan.attended + 4 * token * _padded(queries), queries)
    elif layer > 0:
        activated = plan.activated + 4 * token * _padded(plan.mlp)
        _change(row.entry, layer - 1, _DOWN, projected, hidden, activated, plan.mlp)
    if second or layer > 0:
        _add(stream, projected, hidden)
    if layer == plan.layers and row.output < 0:
        return
    weights, delta = _layer(plan, layer), 0
    if row.entry:
        entry = _entry(row.entry, layer)
        delta = entry.mlp_norm if second else entry.attention_norm
    _norm(plan, stream, weights.mlp_norm if second else weights.attention_norm, delta, normed)
    if layer < plan.layers:
        _quantize(plan, token, normed, hidden)
    else:
        columns = _padded(hidden)
        to = plan.last_integers + row.output * columns
        quantize(normed, columns, to, plan.last_scales + row.output * columns // GROUP * 8)


@njit(error_model="numpy")
def _store_heads(plan, layer, token):
    """Deltas and rotation of a token's queries, keys and values; the latter two go to the pool."""
    hidden, heads, kv_heads, size = plan.hidden, plan.heads, plan.kv_heads, plan.head_dim
    queries, keys, row = heads * size, kv_heads * size, _token(plan, token)
    normed = plan.normed + 4 * token * _padded(hidden)
    query = plan.qkv + 4 * token * _qkv_width(plan)
    key = query + 4 * _part_width(queries)
    value = key + 4 * _part_width(keys)
    _change(row.entry, layer, _Q, query, queries, normed, hidden)
    _change(row.entry, layer, _K, key, keys, normed, hidden)
    _change(row.entry, layer, _V, value, keys, normed, hidden)
    rotation = plan.rotation + 4 * token * size
    for head in range(heads):
        _rotate(query + 4 * head * size, rotation, size)
    for head in range(kv_heads):
        _rotate(key + 4 * head * size, rotation, size)
        to = plan.pool + (((layer * 2) * kv_heads + head) * plan.capacity + row.place) * size * 2
        _store_bf16(to, key + 4 * head * size, size)
        _store_bf16(to + kv_heads * plan.capacity * size * 2, value + 4 * head * size, size)


@njit(error_model="numpy")
def _activate(plan, layer, token):
    """The MLP's gated unit."""
    hidden, mlp, row = plan.hidden, plan.mlp, _token(plan, token)
    width, normed = _part_width(mlp), plan.normed + 4 * token * _padded(hidden)
    gate = plan.gate_up + 4 * token * 2 * width
    up, activated = gate + 4 * width, plan.activated + 4 * token * _padded(mlp)
    _change(row.entry, layer, _GATE, gate, mlp, normed, hidden)
    _change(row.entry, layer, _UP, up, mlp, normed, hidden)
    gated_silu(gate, up, width // LANES, activated)
    _quantize(plan, token, activated, mlp)


@njit(error_model="numpy")
def _quantize(plan, token, x, columns):
    """Quantise a row of a buffer, the input of the next product. What pads it is zero."""
    columns = _padded(columns)
    quantize(x, columns, plan.integers + token * columns, plan.scales + token * (columns // GROUP) * 8)


@njit(error_model="numpy")
def _product(plan, weight, outputs, inputs, out, width, offset, first, last):
    """The part of blocks `first` to `last` that lies in one weight, whose outputs begin at `offset`."""
    blocks, before = _part_width(outputs) // BLOCK, offset // BLOCK
    first, last = max(first - before, 0), min(last - before, blocks)
    if first < last:
        groups, to = _padded(inputs) // GROUP, out + 4 * offset
        x, scales, tokens = plan.integers, plan.scales, plan.tokens
        multiply(weight.address, weight.bits, x, scales, tokens, groups, to, 4 * width, first, last)


@njit(error_model="numpy")
def _units(plan, kind):
    """What an operation can be cut into: blocks of a product's outputs, KV heads of tokens, or tokens."""
    if kind == QUERY_KEY_VALUE:
        return _qkv_width(plan) // BLOCK
    if kind == MLP_IN:
        return 2 * _part_width(plan.mlp) // BLOCK
    if kind == HEAD:
        return _part_width(plan.vocabulary) // BLOCK
    if kind in (OUT, MLP_OUT):
        return _part_width(plan.hidden) // BLOCK
    return plan.tokens * (plan.kv_heads if kind == ATTEND else 1)


@njit(error_model="numpy")
def _pieces(plan, kind):
    """Into how many pieces an operation is cut."""
    units = _units(plan, kind)
    if kind in (NORM_1, ROTATE, QUANTIZE, NORM_2, ACTIVATE) and units <= FEW:
        return 1
    return min(units, (8 if kind == ATTEND else 4) * plan.threads)


@njit(error_model="numpy")
def _run_product(plan, kind, layer, first, last):
    """Blocks `first` to `last` of the outputs of a product."""
    hidden, mlp, queries, keys = plan.hidden, plan.mlp, plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim
    weights = _layer(plan, layer).linears
    if kind == QUERY_KEY_VALUE:
        width, out, offset = _qkv_width(plan), plan.qkv, _part_width(queries)
        _product(plan, weights[_Q], queries, hidden, out, width, 0, first, last)
        _product(plan, weights[_K], keys, hidden, out, width, offset, first, last)
        _product(plan, weights[_V], keys, hidden, out, width, offset + _part_width(keys), first, last)
    elif kind == OUT:
        _product(plan, weights[_O], hidden, queries, plan.projected, _part_width(hidden), 0, first, last)
    elif kind == MLP_IN:
        width = _part_width(mlp)
        _product(plan, weights[_GATE], mlp, hidden, plan.gate_up, 2 * width, 0, first, last)
        _product(plan, weights[_UP], mlp, hidden, plan.gate_up, 2 * width, width, first, last)
    elif kind == MLP_OUT:
        _product(plan, weights[_DOWN], hidden, mlp, plan.projected, _part_width(hidden), 0, first, last)
    else:
        head, groups, width = weights[0], _padded(hidden) // GROUP, 4 * _part_width(plan.vocabulary)
        x, scales, outputs = plan.last_integers, plan.last_scales, plan.outputs
        multiply(head.address, head.bits, x, scales, outputs, groups, plan.logits, width, first, last)


@njit(error_model="numpy")
def _run(plan, kind, layer, piece, thread):
    """One piece of an operation."""
    units, pieces = _units(plan, kind), _pieces(plan, kind)
    first, last = units * piece // pieces, units * (piece + 1) // pieces
    if kind in (QUERY_KEY_VALUE, OUT, MLP_IN, MLP_OUT, HEAD):
        _run_product(plan, kind, layer, first, last)
        return
    for unit in range(first, last):
        if kind == ATTEND:  # all tokens of a KV head, whose keys and values stay in the processor's cache
            scratch = plan.scratch + thread * plan.scratch_bytes
            _attend(plan, unit % plan.tokens, unit // plan.tokens, layer, scratch)
        elif kind in (NORM_1, NORM_2):
            _norm_token(plan, kind, layer, unit)
        elif kind == ROTATE:
            _store_heads(plan, layer, unit)
        elif kind == QUANTIZE:
            queries = plan.heads * plan.head_dim
            _quantize(plan, unit, plan.attended + 4 * unit * _padded(queries), queries)
        else:
            _activate(plan, layer, unit)


@njit(error_model="numpy")
def _take_pieces(plan, address, thread):
    """Run pieces of the current operation until none is left.

    While a thread holds a piece, the operation is not done, and so the plan does not change.
    """
    while atomic_load(address + _TICKETS) > 0:
        ticket = atomic_add(address + _TICKETS, -1)
        if ticket > 0:
            _run(plan, plan.kind, plan.layer, ticket - 1, thread)
            atomic_add(address + _DONE, 1)


@njit(error_model="numpy")
def _operation(plan, address, kind, layer):
    """Run one operation for all tokens, with the help of whoever is awake."""
    pieces = _pieces(plan, kind)
    plan.kind, plan.layer = kind, layer
    atomic_store(address + _DONE, 0)
    atomic_store(address + _TICKETS, pieces)
    _take_pieces(plan, address, 0)
    spins = 0
    while atomic_load(address + _DONE) < pieces:
        pause()
        spins += 1
        if spins % SPINS == 0:
            yield_thread()


@cache
def compile_work() -> Any:
    """The function (address of the plan, thread), from numba's disk cache or, in 10 to 20 seconds, anew."""
    version = _VERSION

    @compiled("void(int64, int64)")
    def work(address, thread):
        """Thread 0: all layers for the tokens of the plan. Others: help until no pass has run for a while."""
        _ = version
        plan, spins = carray(pointer(address), 1, PLAN)[0], 0
        if thread > 0:
            while spins < SPINS or atomic_load(address + _ACTIVE):
                if atomic_load(address + _TICKETS) > 0:
                    _take_pieces(plan, address, thread)
                    spins = 0
                pause()
                spins += 1
                if spins % SPINS == 0:
                    yield_thread()
            return
        atomic_store(address + _ACTIVE, 1)
        for operation in range(plan.layers * HEAD + 2):
            layer = operation // HEAD
            kind = operation % HEAD if layer < plan.layers else NORM_1 if operation % HEAD == 0 else HEAD
            _operation(plan, address, kind, layer)
        atomic_store(address + _ACTIVE, 0)

    return work
