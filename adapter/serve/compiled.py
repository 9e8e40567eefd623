"""The forward pass of a packed base on a CPU, compiled: all layers of several tokens in one call.

It computes what `base.decoder.DecoderLayer` computes, and tests hold it to that. Each token is a row of its own
through every operation, so that a prompt read in any chunks, an answer and a batch all give the same bits. Work is
cut into small pieces that helper threads take if they are awake; nobody waits for a helper to begin.
Knows tensors; knows nothing of requests.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from transformers.activations import SiLUActivation

from adapter.base.integer_product import BLOCK, GROUP, multiply, quantize_row
from adapter.base.llama import Base
from adapter.base.native import (
    LANES,
    SCORES_BYTES,
    TILE,
    add_weighted,
    atomic_add,
    atomic_load,
    atomic_store,
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
from adapter.base.quantize import PackedLinear
from adapter.method.attention import PromptKV
from adapter.method.deltas import FINAL_NORM, LINEARS, NORMS

# The plan: int64 numbers and addresses that all threads read. Its first fields change during a pass.
_TICKETS, _DONE, _ACTIVE = 0, 8, 16  # pieces not taken yet; pieces done; whether a pass is running
_KIND, _LAYER = 17, 18  # of the pieces
(
    _LAYERS, _HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _MLP, _VOCABULARY, _CAPACITY, _THREADS,  # sizes
    _CONSTANTS, _MODEL, _POOL, _SCRATCH, _SCRATCH_BYTES,  # addresses: epsilon and scaling; _WEIGHTS a layer; KV
    _TOKENS, _OUTPUTS, _ROWS, _ROTATION,  # of this pass: how many, and their fields
    _STREAM, _NORMED, _QKV, _ATTENDED, _PROJECTED, _GATE_UP, _ACTIVATED, _INTEGERS, _SCALES,  # buffers by token
    _LAST_INTEGERS, _LAST_SCALES, _LOGITS,
) = range(24, 54)  # fmt: skip
_PLAN = 64

# Fields of a token: its place in the pool, the place of its row's first token, its entry of prompts, its output.
_PLACE, _START, _ENTRY, _OUTPUT = range(4)
_FIELDS = 4
# Of a layer: the norms' addresses, then the address and the bits of each of the seven weights.
_WEIGHTS = 2 + 2 * len(LINEARS)
# Of an entry's layer: the norms' deltas, the number of prompt terms, their address, then five numbers for each
# linear layer: addresses of bias, scale, down, up, and the rank.
_DELTAS = 4 + 5 * len(LINEARS)
_TERM = 4  # prompt length, addresses of keys, values and gates
_Q, _K, _V, _O, _GATE, _UP, _DOWN = range(7)

_NORM_1, _QUERY_KEY_VALUE, _ROTATE, _ATTEND, _QUANTIZE, _OUT, _NORM_2, _MLP_IN, _ACTIVATE, _MLP_OUT, _HEAD = range(
    11
)
_FEW = 4  # tokens up to which an operation by rows is not worth sharing
_SPINS = 2000  # looks for work before a thread lets others have its core


@njit(error_model="numpy")
def _padded(size):
    return -(-size // GROUP) * GROUP


@njit(error_model="numpy")
def _norm(plan, row, weight, delta, to):
    """RMS norm of a row of the residual stream."""
    size = plan[_HIDDEN]
    x, w, out = floats(row, size), floats(weight, size), floats(to, size)
    total = _sum_of_squares(row, size)
    factor = np.float32(1) / np.sqrt(total / np.float32(size) + floats(plan[_CONSTANTS], 2)[0])
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
def _change(entry, layer, linear, out, outputs, x, inputs, scratch):
    """V2's delta of a linear layer, see LinearDelta."""
    if entry == 0:
        return
    fields = integers(entry + 8 * (layer * _DELTAS + 4 + 5 * linear), 5)
    bias, scale, down, up, rank = fields[0], fields[1], fields[2], fields[3], fields[4]
    y = floats(out, outputs)
    if rank:
        middle = floats(scratch, rank)
        for i in range(rank):
            middle[i] = _dot(down + 4 * i * inputs, x, inputs)
        for i in range(outputs):
            y[i] += _dot(up + 4 * i * rank, scratch, rank)
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
            # Behind the scores, what pads them to whole vectors: these weights vanish. Behind the tile, the
            # largest score before, which becomes the factor of the earlier sums.
            p[length : TILE + LANES] = -np.inf
            p[TILE] = largest[g]
            largest[g] = top
            exp_below(tile_scores + g * SCORES_BYTES + 4 * TILE, 1, top)
            shrink = p[TILE]
            total = exp_below(tile_scores + g * SCORES_BYTES, -(-length // LANES), top)
            sums[g] = sums[g] * shrink + total
            if tile:
                for i in range(g * size, (g + 1) * size):
                    out[i] *= shrink
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
    heads, kv_heads, size = plan[_HEADS], plan[_KV_HEADS], plan[_HEAD_DIM]
    group = heads // kv_heads
    fields = integers(plan[_ROWS] + 8 * token * _FIELDS, _FIELDS)
    side = plan[_CAPACITY] * size * 2  # bytes of one head's keys
    keys = plan[_POOL] + ((layer * 2) * kv_heads + kv_head) * side + fields[_START] * size * 2
    query = plan[_QKV] + 4 * (token * _qkv_width(plan) + kv_head * group * size)
    scaling = floats(plan[_CONSTANTS], 2)[1]
    count = fields[_PLACE] - fields[_START] + 1
    _softmax_attention(query, group, size, keys, keys + kv_heads * side, count, scaling, scratch)
    out = floats(plan[_ATTENDED] + 4 * (token * _padded(heads * size) + kv_head * group * size), group * size)
    totals, weights = floats(scratch, group * size), floats(scratch + 4 * group * size, group)
    for g in range(group):
        for i in range(g * size, (g + 1) * size):
            out[i] = totals[i] / weights[g]
    entry = fields[_ENTRY]
    if entry == 0:
        return
    terms = integers(entry + 8 * layer * _DELTAS, 4)
    for t in range(terms[2]):
        term = integers(terms[3] + 8 * t * _TERM, _TERM)
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
def _part_width(size):
    """Outputs of a linear layer in whole blocks."""
    return -(-size // BLOCK) * BLOCK


@njit(error_model="numpy")
def _qkv_width(plan):
    size = plan[_HEAD_DIM]
    return _part_width(plan[_HEADS] * size) + 2 * _part_width(plan[_KV_HEADS] * size)


@njit(error_model="numpy")
def _by_row(plan, kind, layer, token, scratch):
    """An operation between two products, on one token."""
    hidden, heads, kv_heads, size = plan[_HIDDEN], plan[_HEADS], plan[_KV_HEADS], plan[_HEAD_DIM]
    mlp, queries, keys = plan[_MLP], plan[_HEADS] * plan[_HEAD_DIM], plan[_KV_HEADS] * plan[_HEAD_DIM]
    fields = integers(plan[_ROWS] + 8 * token * _FIELDS, _FIELDS)
    entry = fields[_ENTRY]
    stream = plan[_STREAM] + 4 * token * hidden
    normed = plan[_NORMED] + 4 * token * _padded(hidden)
    projected = plan[_PROJECTED] + 4 * token * _part_width(hidden)
    attended = plan[_ATTENDED] + 4 * token * _padded(queries)
    activated = plan[_ACTIVATED] + 4 * token * _padded(mlp)
    weights = integers(plan[_MODEL] + 8 * layer * _WEIGHTS, _WEIGHTS)
    if kind == _NORM_1:
        if layer > 0:
            _change(entry, layer - 1, _DOWN, projected, hidden, activated, mlp, scratch)
            _add(stream, projected, hidden)
        delta = integers(entry + 8 * layer * _DELTAS, 1)[0] if entry else 0
        if layer < plan[_LAYERS]:
            _norm(plan, stream, weights[0], delta, normed)
            _quantize(plan, token, normed, hidden)
        elif fields[_OUTPUT] >= 0:
            _norm(plan, stream, weights[0], delta, normed)
            columns = _padded(hidden)
            to = plan[_LAST_INTEGERS] + fields[_OUTPUT] * columns
            quantize_row(normed, columns, to, plan[_LAST_SCALES] + fields[_OUTPUT] * columns // GROUP * 8)
    elif kind == _ROTATE:
        query = plan[_QKV] + 4 * token * _qkv_width(plan)
        key = query + 4 * _part_width(queries)
        value = key + 4 * _part_width(keys)
        _change(entry, layer, _Q, query, queries, normed, hidden, scratch)
        _change(entry, layer, _K, key, keys, normed, hidden, scratch)
        _change(entry, layer, _V, value, keys, normed, hidden, scratch)
        rotation = plan[_ROTATION] + 4 * token * size
        for head in range(heads):
            _rotate(query + 4 * head * size, rotation, size)
        for head in range(kv_heads):
            _rotate(key + 4 * head * size, rotation, size)
            to = plan[_POOL] + (((layer * 2) * kv_heads + head) * plan[_CAPACITY] + fields[_PLACE]) * size * 2
            _store_bf16(to, key + 4 * head * size, size)
            _store_bf16(to + kv_heads * plan[_CAPACITY] * size * 2, value + 4 * head * size, size)
    elif kind == _QUANTIZE:
        _quantize(plan, token, attended, queries)
    elif kind == _NORM_2:
        _change(entry, layer, _O, projected, hidden, attended, queries, scratch)
        _add(stream, projected, hidden)
        delta = integers(entry + 8 * (layer * _DELTAS + 1), 1)[0] if entry else 0
        _norm(plan, stream, weights[1], delta, normed)
        _quantize(plan, token, normed, hidden)
    elif kind == _ACTIVATE:
        width = _part_width(mlp)
        gate = plan[_GATE_UP] + 4 * token * 2 * width
        up = gate + 4 * width
        _change(entry, layer, _GATE, gate, mlp, normed, hidden, scratch)
        _change(entry, layer, _UP, up, mlp, normed, hidden, scratch)
        gated_silu(gate, up, width // LANES, activated)
        _quantize(plan, token, activated, mlp)


@njit(error_model="numpy")
def _quantize(plan, token, x, columns):
    """Quantise a row of a buffer, the input of the next product. What pads it is zero."""
    columns = _padded(columns)
    quantize_row(x, columns, plan[_INTEGERS] + token * columns, plan[_SCALES] + token * (columns // GROUP) * 8)


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
        x, scales, tokens = plan[_INTEGERS], plan[_SCALES], plan[_TOKENS]
        multiply(weight[0], weight[1], x, scales, tokens, groups, to, 4 * width, first, last)


@njit(error_model="numpy")
def _blocks(plan, kind):
    """Blocks of outputs of a product."""
    if kind == _QUERY_KEY_VALUE:
        return _qkv_width(plan) // BLOCK
    if kind == _MLP_IN:
        return 2 * _part_width(plan[_MLP]) // BLOCK
    if kind == _HEAD:
        return _part_width(plan[_VOCABULARY]) // BLOCK
    return _part_width(plan[_HIDDEN]) // BLOCK


@njit(error_model="numpy")
def _pieces(plan, kind):
    """Into how many pieces an operation is cut."""
    threads, tokens = plan[_THREADS], plan[_TOKENS]
    if kind == _ATTEND:
        return min(tokens * plan[_KV_HEADS], 8 * threads)
    if kind in (_QUERY_KEY_VALUE, _OUT, _MLP_IN, _MLP_OUT, _HEAD):
        return min(_blocks(plan, kind), 4 * threads)
    return 1 if tokens <= _FEW else min(tokens, 4 * threads)


@njit(error_model="numpy")
def _run(plan, kind, layer, piece, thread):
    """One piece of an operation."""
    scratch = plan[_SCRATCH] + thread * plan[_SCRATCH_BYTES]
    pieces = _pieces(plan, kind)
    if kind == _ATTEND:
        units, kv_heads = plan[_TOKENS] * plan[_KV_HEADS], plan[_KV_HEADS]
        for unit in range(_share(units, pieces, piece), _share(units, pieces, piece + 1)):
            _attend(plan, unit // kv_heads, unit % kv_heads, layer, scratch)
    elif kind in (_QUERY_KEY_VALUE, _OUT, _MLP_IN, _MLP_OUT, _HEAD):
        blocks = _blocks(plan, kind)
        first, last = _share(blocks, pieces, piece), _share(blocks, pieces, piece + 1)
        hidden, mlp, queries = plan[_HIDDEN], plan[_MLP], plan[_HEADS] * plan[_HEAD_DIM]
        weights = integers(plan[_MODEL] + 8 * layer * _WEIGHTS, _WEIGHTS)[2:]
        if kind == _QUERY_KEY_VALUE:
            keys, width, out = plan[_KV_HEADS] * plan[_HEAD_DIM], _qkv_width(plan), plan[_QKV]
            offset = _part_width(queries)
            _product(plan, weights[0:2], queries, hidden, out, width, 0, first, last)
            _product(plan, weights[2:4], keys, hidden, out, width, offset, first, last)
            _product(plan, weights[4:6], keys, hidden, out, width, offset + _part_width(keys), first, last)
        elif kind == _OUT:
            _product(plan, weights[6:8], hidden, queries, plan[_PROJECTED], _part_width(hidden), 0, first, last)
        elif kind == _MLP_IN:
            width = _part_width(mlp)
            _product(plan, weights[8:10], mlp, hidden, plan[_GATE_UP], 2 * width, 0, first, last)
            _product(plan, weights[10:12], mlp, hidden, plan[_GATE_UP], 2 * width, width, first, last)
        elif kind == _MLP_OUT:
            _product(plan, weights[12:14], hidden, mlp, plan[_PROJECTED], _part_width(hidden), 0, first, last)
        else:
            groups, width = _padded(hidden) // GROUP, _part_width(plan[_VOCABULARY])
            x, scales, outputs = plan[_LAST_INTEGERS], plan[_LAST_SCALES], plan[_OUTPUTS]
            multiply(weights[0], weights[1], x, scales, outputs, groups, plan[_LOGITS], 4 * width, first, last)
    else:
        tokens = plan[_TOKENS]
        for token in range(_share(tokens, pieces, piece), _share(tokens, pieces, piece + 1)):
            _by_row(plan, kind, layer, token, scratch)


@njit(error_model="numpy")
def _take_pieces(plan, address, thread):
    """Run pieces of the current operation until none is left.

    While a thread holds a piece, the operation is not done, and so the plan does not change.
    """
    while atomic_load(address + 8 * _TICKETS) > 0:
        ticket = atomic_add(address + 8 * _TICKETS, -1)
        if ticket > 0:
            _run(plan, plan[_KIND], plan[_LAYER], ticket - 1, thread)
            atomic_add(address + 8 * _DONE, 1)


@njit(error_model="numpy")
def _operation(plan, address, kind, layer):
    """Run one operation for all tokens, with the help of whoever is awake."""
    pieces = _pieces(plan, kind)
    plan[_KIND], plan[_LAYER] = kind, layer
    atomic_store(address + 8 * _DONE, 0)
    atomic_store(address + 8 * _TICKETS, pieces)
    _take_pieces(plan, address, 0)
    spins = 0
    while atomic_load(address + 8 * _DONE) < pieces:
        pause()
        spins += 1
        if spins % _SPINS == 0:
            yield_thread()


@cache
def _compiled(version: int) -> Any:
    """The compiled pass, from numba's disk cache or, in about ten seconds, anew. version: see version_of."""

    @njit("void(int64, int64)", nogil=True, cache=True, error_model="numpy")
    def work(address, thread):
        """Thread 0: all layers for the tokens of the plan. Others: help until no pass has run for a while."""
        _ = version
        plan, spins = integers(address, _PLAN), 0
        if thread > 0:
            while spins < _SPINS or atomic_load(address + 8 * _ACTIVE):
                if atomic_load(address + 8 * _TICKETS) > 0:
                    _take_pieces(plan, address, thread)
                    spins = 0
                pause()
                spins += 1
                if spins % _SPINS == 0:
                    yield_thread()
            return
        atomic_store(address + 8 * _ACTIVE, 1)
        for operation in range(plan[_LAYERS] * _HEAD + 2):
            layer = operation // _HEAD
            kind = operation % _HEAD if layer < plan[_LAYERS] else _NORM_1 if operation % _HEAD == 0 else _HEAD
            _operation(plan, address, kind, layer)
        atomic_store(address + 8 * _ACTIVE, 0)

    return work


class Entry:
    """The prompts and deltas of a row in the form that the compiled pass reads. `address` is 0 for none."""

    def __init__(self, prompts: PromptKV | None, layers: int) -> None:
        self.address = 0
        self._kept: list[Tensor] = []  # whose addresses are in the table
        if prompts is None:
            return
        assert prompts.size == 1
        table = torch.zeros(layers + 1, _DELTAS, dtype=torch.int64)
        for layer, terms in prompts.layers.items():
            rows = [
                [
                    term.keys.shape[2],
                    self._keep(term.keys.bfloat16()),
                    self._keep(term.values.bfloat16()),
                    self._keep(term.gates.float()),
                ]
                for term in terms
            ]
            table[layer, 2], table[layer, 3] = len(rows), self._keep(torch.tensor(rows))
        if prompts.deltas is not None:
            for (layer, name), norm in prompts.deltas.norms.items():
                column = 0 if name == FINAL_NORM else NORMS.index(name)
                table[layer, column] = self._keep(norm.float())  # the final norm's layer is -1
            for (layer, name), delta in prompts.deltas.linears.items():
                first = 4 + 5 * LINEARS.index(name)
                for i, tensor in enumerate((delta.bias, delta.scale, delta.down, delta.up)):
                    if tensor is not None:
                        table[layer, first + i] = self._keep(tensor.float())
                if delta.down is not None:
                    table[layer, first + 4] = delta.down.shape[1]
        self.address = self._keep(table)

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


class CompiledPass:
    """The compiled forward pass of one base, with its buffers and helper threads. For one thread at a time."""

    @staticmethod
    def suits(base: Base) -> bool:
        """Whether a base can be run: every linear layer is packed, and it is a LLaMA in bfloat16 on a CPU."""
        model = base.model
        linears = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, PackedLinear))]
        return (
            all(isinstance(m, PackedLinear) for m in linears)
            and all(isinstance(layer.mlp.act_fn, (torch.nn.SiLU, SiLUActivation)) for layer in model.model.layers)
            and model.dtype == torch.bfloat16
            and base.device.type == "cpu"
        )

    def __init__(self, base: Base, threads: int) -> None:
        config, model = base.model.config, base.model.model
        self._work = _compiled(version_of("adapter.base.native", "adapter.base.integer_product"))
        self._rotary, self._embedding = model.rotary_emb, model.embed_tokens
        self._kept: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._plan = torch.zeros(_PLAN, dtype=torch.int64)
        self._address = self._plan.data_ptr()
        self._set(_LAYERS, config.num_hidden_layers)
        self._set(_HIDDEN, config.hidden_size)
        self._set(_HEADS, config.num_attention_heads)
        self._set(_KV_HEADS, config.num_key_value_heads)
        self._set(_HEAD_DIM, config.head_dim)
        self._set(_MLP, config.intermediate_size)
        self._set(_VOCABULARY, config.vocab_size)
        self._set(_CONSTANTS, self._keep(torch.tensor([config.rms_norm_eps, config.head_dim**-0.5])))
        records = []
        for layer in model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            linears = (
                attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
                mlp.gate_proj, mlp.up_proj, mlp.down_proj,
            )  # fmt: skip
            norms = [self._keep(n.weight.float()) for n in (layer.input_layernorm, layer.post_attention_layernorm)]
            records.append([*norms, *(value for linear in linears for value in self._weight(linear))])
        last = [self._keep(model.norm.weight.float()), 0, *self._weight(base.model.lm_head)]
        records.append(last + [0] * (_WEIGHTS - len(last)))
        self._set(_MODEL, self._keep(torch.tensor(records)))
        group = config.num_attention_heads // config.num_key_value_heads
        scratch = max(group * (config.head_dim + 2) + group * SCORES_BYTES // 4, 4096)
        self._set(_SCRATCH_BYTES, 4 * scratch)
        self._set(_SCRATCH, self._keep(torch.empty(threads, scratch)))
        self._set(_THREADS, threads)
        self._capacity = 0
        self._helpers = [_Helper(self._work, self._plan, thread) for thread in range(1, threads)]

    def close(self) -> None:
        for helper in self._helpers:
            helper.close()

    def __call__(
        self,
        pool: Tensor,
        ids: Sequence[int],
        places: Sequence[int],
        starts: Sequence[int],
        entries: Sequence[Entry],
        outputs: Sequence[int],
    ) -> Tensor:
        """Read tokens, each into its place in the pool, [layers, 2, Hkv, capacity, head_dim] in bfloat16.

        starts: the place of the first token of each token's row, entries: its row's prompts. A token attends to
        the places from start to its own. outputs: indices of the tokens, in ascending order, behind which the
        logits are wanted. Returns these, [outputs, vocab_size] in fp32.
        """
        tokens = len(ids)
        if tokens > self._capacity:
            self._allocate(tokens)
        positions = torch.tensor(places) - torch.tensor(starts)
        embedded = self._embedding(torch.tensor(ids)).float()
        self._stream[:tokens] = embedded
        cos, sin = self._rotary(embedded, positions[None])
        half = cos.shape[-1] // 2
        rotation = torch.cat((cos[0, :, :half], sin[0, :, :half]), 1).float()
        fields = torch.full((tokens, _FIELDS), -1)
        fields[:, _PLACE], fields[:, _START] = torch.tensor(places), torch.tensor(starts)
        fields[:, _ENTRY] = torch.tensor([entry.address for entry in entries])
        fields[outputs, _OUTPUT] = torch.arange(len(outputs))
        vocabulary = int(self._plan[_VOCABULARY])
        logits = torch.empty(len(outputs), -(-vocabulary // BLOCK) * BLOCK)
        numbers = {
            _TOKENS: tokens,
            _OUTPUTS: len(outputs),
            _ROWS: fields.data_ptr(),
            _ROTATION: rotation.data_ptr(),
        }
        numbers |= {_LOGITS: logits.data_ptr(), _POOL: pool.data_ptr(), _CAPACITY: pool.shape[3]}
        for name, value in numbers.items():
            self._set(name, value)
        for helper in self._helpers:
            helper.wake()
        self._work(self._address, 0)
        return logits[:, :vocabulary]

    def _set(self, name: int, value: int) -> None:
        self._plan[name] = value

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _weight(self, linear: Any) -> tuple[int, int]:
        return self._keep(linear.weight), linear.bits

    def _allocate(self, tokens: int) -> None:
        """Buffers for a pass of so many tokens. What pads a row to whole groups stays zero."""
        sizes = {name: int(self._plan[name]) for name in (_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _MLP)}
        hidden, mlp = sizes[_HIDDEN], sizes[_MLP]
        queries, keys = sizes[_HEADS] * sizes[_HEAD_DIM], sizes[_KV_HEADS] * sizes[_HEAD_DIM]

        def groups(size: int) -> int:
            return -(-size // GROUP) * GROUP

        def blocks(size: int) -> int:
            return -(-size // BLOCK) * BLOCK

        widest = groups(max(hidden, mlp, queries))
        widths = {
            _NORMED: groups(hidden), _QKV: blocks(queries) + 2 * blocks(keys), _ATTENDED: groups(queries),
            _PROJECTED: blocks(hidden), _GATE_UP: 2 * blocks(mlp), _ACTIVATED: groups(mlp),
            _SCALES: widest // GROUP * 2, _LAST_SCALES: groups(hidden) // GROUP * 2,
        }  # fmt: skip
        self._stream = torch.zeros(tokens, hidden)
        self._buffers = [self._stream]
        self._set(_STREAM, self._stream.data_ptr())
        for name, width, dtype in (
            *((name, width, torch.float32) for name, width in widths.items()),
            (_INTEGERS, widest, torch.int8),
            (_LAST_INTEGERS, groups(hidden), torch.int8),
        ):
            buffer = torch.zeros(tokens, width, dtype=dtype)
            self._buffers.append(buffer)
            self._set(name, buffer.data_ptr())
        self._capacity = tokens


class _Helper:
    """A thread that takes pieces of the passes. It sleeps when there have been none for some microseconds."""

    def __init__(self, compiled: Any, plan: Tensor, thread: int) -> None:
        self._compiled, self._plan, self._thread = compiled, plan, thread
        self._wake = threading.Semaphore(0)
        self._asleep = self._closed = False
        threading.Thread(target=self._work, name=f"engine helper {thread}", daemon=True).start()

    def wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._wake.release()

    def close(self) -> None:
        self._closed = True
        self._wake.release()

    def _work(self) -> None:
        while not self._closed:
            self._asleep = True
            self._wake.acquire()
            self._compiled(self._plan.data_ptr(), self._thread)
