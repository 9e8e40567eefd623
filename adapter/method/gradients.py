"""Zero-init attention (arXiv 2303.16199, section 3.2) for training on a CPU, where torch's backward pass is slow.

The same values as `attention.py` with hand-written gradients: scores are computed in blocks that fit the
processor's cache, and only what the backward pass reads is saved.
"""

from typing import Any

import torch
from torch import Tensor

_BLOCK = 64  # queries per block


class CausalAttention(torch.autograd.Function):
    """Causal attention over the words (equations 5 and 8).

    Works on blocks of queries, each against the keys up to its end: this skips the masked half of the scores.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query: [B, H, T, head_dim]; key, value: [B, Hkv, T, head_dim]. Returns [B, T, H, head_dim]."""
        batch, heads, length, head_dim = query.shape
        kv_heads = key.shape[1]
        groups = heads // kv_heads
        queries = query.reshape(batch, kv_heads, groups, length, head_dim)
        keys, values = (t.reshape(batch * kv_heads, length, head_dim) for t in (key, value))
        out = query.new_empty(batch, length, heads, head_dim)
        outs = out.view(batch, length, kv_heads, groups, head_dim)
        future = query.new_full((_BLOCK, _BLOCK), float("-inf")).triu_(1)
        weights = []
        for start, end in _blocks(length):
            block = (queries[:, :, :, start:end] * scaling).reshape(batch * kv_heads, -1, head_dim)
            scores = torch.bmm(block, keys[:, :end].transpose(1, 2))  # [B * Hkv, groups * (end - start), end]
            scores.view(-1, groups, end - start, end)[..., start:] += future[: end - start, : end - start]
            weights.append(scores.softmax(-1))
            attended = torch.bmm(weights[-1], values[:, :end]).view(batch, kv_heads, groups, -1, head_dim)
            outs[:, start:end] = attended.permute(0, 3, 1, 2, 4)
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, *weights = ctx.saved_tensors
        batch, kv_heads, groups, length, head_dim = queries.shape
        query_grad = torch.empty_like(queries)
        key_grad, value_grad = keys.new_zeros(keys.shape), values.new_zeros(values.shape)
        outs = grads[0].view(batch, length, kv_heads, groups, head_dim)
        for (start, end), weight in zip(_blocks(length), weights, strict=True):
            grad = outs[:, start:end].permute(0, 2, 3, 1, 4).reshape(batch * kv_heads, -1, head_dim)
            block = queries[:, :, :, start:end].reshape(batch * kv_heads, -1, head_dim)
            value_grad[:, :end].baddbmm_(weight.transpose(1, 2), grad)
            weight_grad = torch.bmm(grad, values[:, :end].transpose(1, 2))
            scores_grad = torch._softmax_backward_data(weight_grad, weight, -1, weight.dtype)
            block_grad = torch.bmm(scores_grad, keys[:, :end]).mul_(ctx.scaling)
            query_grad[:, :, :, start:end] = block_grad.view(batch, kv_heads, groups, -1, head_dim)
            key_grad[:, :end].baddbmm_(scores_grad.transpose(1, 2), block, alpha=ctx.scaling)
        key_grad, value_grad = (t.view(batch, kv_heads, length, head_dim) for t in (key_grad, value_grad))
        return query_grad.view(batch, -1, length, head_dim), key_grad, value_grad, None


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK)]


class PromptTerm(torch.autograd.Function):
    """out + act(g) * softmax(q kp^T * scaling) vp: the gated prompt term of equation 7.

    Positions are innermost in the scores: a softmax over an innermost dimension of ten prompts is slow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        gates: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """out: [B, T, H, head_dim]; query: [B, H, T, head_dim]; keys, values: [U, Hkv, K, head_dim]; gates: [U, H]
        and mask: [U, K], additive, with U = B or 1. Returns [B, T, H, head_dim].
        """
        batch, heads, length, head_dim = query.shape
        entries, kv_heads, prompts, _ = keys.shape
        queries = query.reshape(batch * kv_heads, -1, head_dim)
        keys = (keys * scaling).expand(batch, -1, -1, -1).reshape(-1, prompts, head_dim)
        values = values.expand(batch, -1, -1, -1).reshape(-1, prompts, head_dim)
        scores = torch.bmm(keys, queries.transpose(1, 2))  # [B * Hkv, K, H / Hkv * T]
        if mask is not None:
            scores.view(batch, kv_heads, prompts, -1).add_(mask[:, None, :, None])
        weights = scores.softmax(1)
        term = torch.bmm(weights.transpose(1, 2), values).view(batch, heads, length, head_dim).transpose(1, 2)
        ctx.save_for_backward(queries, weights, keys, values, gates)
        ctx.scaling, ctx.entries = scaling, entries
        return torch.addcmul(out, term, gates[:, None, :, None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, weights, keys, values, gates = ctx.saved_tensors
        batch, length, heads, head_dim = grads[0].shape
        rows = len(keys)  # B * Hkv
        grad = grads[0].transpose(1, 2).reshape(rows, -1, head_dim)
        weights_grad = torch.bmm(values, grad.transpose(1, 2))  # before the gate
        gates_grad = (weights_grad * weights).sum(1, dtype=torch.float32).view(batch, heads, length).sum(2)
        factors = gates.expand(batch, -1).reshape(rows, -1, 1).expand(-1, -1, length).reshape(rows, 1, -1)
        value_grad = torch.bmm(weights * factors, grad).view(batch, -1, *values.shape[1:])
        scores_grad = torch._softmax_backward_data(weights_grad.mul_(factors), weights, 1, weights.dtype)
        key_grad = torch.bmm(scores_grad, queries).mul_(ctx.scaling).view(batch, -1, *keys.shape[1:])
        query_grad = torch.bmm(scores_grad.transpose(1, 2), keys).view(batch, heads, length, head_dim)
        if ctx.entries < batch:
            gates_grad, key_grad, value_grad = (t.sum(0, keepdim=True) for t in (gates_grad, key_grad, value_grad))
        return grads[0], query_grad, key_grad, value_grad, gates_grad.to(gates.dtype), None, None
