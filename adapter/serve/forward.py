"""The base's forward pass for serving: next tokens of several rows, each with its own past and prompts.

Two passes give the same answers: that of transformers, for every base, and a leaner one for the packed base on a
CPU, where Python and small operations would cost more than the products. Both call `adapter.method.attention`.
Knows tensors; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.base.llama import AdaptedLlama, Base
from adapter.base.quantize import PackedLinear
from adapter.method.attention import PromptKV, add_prompt_terms, attend, grouped, ungrouped
from adapter.method.deltas import FINAL_NORM, Deltas
from adapter.serve.kv_cache import KVCache, round_to_blocks

# A few tokens are read faster by one thread: there are hundreds of operations in a step, and after each of them
# several threads would wait for one another (here 121 tokens/s against 84 with two).
_FEW = 4


@dataclass
class _Step:
    """N new tokens, one for each of N rows or all of one row: where they go and what they may look at."""

    cache: KVCache
    rows: int  # N or 1
    start: int  # of the first row
    places: tuple[Tensor, slice, slice, Tensor]  # in a layer of the cache, of N rows' new tokens
    positions: Tensor  # [N]
    span: int
    mask: Tensor  # [N, 1, 1, span], additive

    def write(self, layer: int, new: Tensor) -> None:
        """new: [N, 2, Hkv, head_dim], keys and values."""
        data = self.cache.data[:, layer]
        if self.rows == 1:
            data[0, :, :, self.start : self.start + len(new)] = new.permute(1, 2, 0, 3)
        else:
            data[self.places] = new

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values so far: [rows, Hkv, span, head_dim]."""
        past = self.cache.data[: self.rows, layer, :, :, : self.span]
        return past[:, 0], past[:, 1]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What transformers asks of a cache. key, value: [rows, Hkv, N / rows, head_dim]."""
        self.write(layer, torch.stack([key, value]).permute(1, 3, 0, 2, 4).flatten(0, 1))
        return self.read(layer)


class Forward:
    """The forward pass of one base for serving, by the leaner way where that applies."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._lean = _Lean(base.model) if _Lean.fits(base) else None

    @torch.inference_mode()
    def __call__(
        self,
        cache: KVCache,
        ids: Sequence[int],
        starts: Sequence[int],
        prompts: PromptKV | None,
    ) -> Tensor:
        """Read one new token for each of several rows, or several for one; the cache takes them in.

        starts: how many tokens the cache holds of each row; prompts: one entry a row, or None. Returns the logits
        after the last token of each row, [rows, vocab_size] in fp32. On the leaner way each token gives the same
        bits as alone.
        """
        device = self._base.device
        rows, count = len(starts), len(ids)
        assert rows in (1, count)
        positions = torch.tensor(starts, device=device)
        if rows < count:
            positions = positions + torch.arange(count, device=device)
        span = round_to_blocks(max(starts) + count // rows)
        cache.reserve(rows, span)
        later = torch.arange(span, device=device) > positions[:, None]
        mask = torch.zeros(later.shape, dtype=cache.data.dtype, device=device)
        mask = mask.masked_fill_(later, float("-inf"))[:, None, None]
        places = (torch.arange(rows, device=device), slice(None), slice(None), positions)
        step = _Step(cache, rows, starts[0], places, positions, span, mask)
        new = torch.tensor(ids, device=device)
        hidden = (self._lean or self._plain)(new, step, prompts)
        return self._base.model.lm_head(hidden[-rows:]).float()

    def _plain(self, ids: Tensor, step: _Step, prompts: PromptKV | None) -> Tensor:
        # [N, 1] for rows of a batch, [1, N] for the tokens of one row.
        mask = step.mask if step.rows == len(ids) else step.mask.transpose(0, 2)
        return self._base.model.model(
            input_ids=ids.view(step.rows, -1),
            position_ids=step.positions.view(step.rows, -1),
            attention_mask=mask,
            cache=step,
            use_cache=True,
            prompt_kv=prompts,
        ).last_hidden_state.flatten(0, 1)


class _Layer:
    """One decoder layer's frozen parts, with the products of a common input in one."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.first_norm, self.second_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.qkv = _fused(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = _fused(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = attention.o_proj.product, mlp.down_proj.product


def _fused(*linears: PackedLinear) -> Callable[[Tensor], Tensor]:
    if len({type(linear) for linear in linears}) == 1:
        return type(linears[0]).fused(linears).product
    return lambda rows: torch.cat([linear.product(rows) for linear in linears], dim=1)


class _Lean:
    """The decoder layers of a packed LLaMA, with as few and as large operations as eager torch allows.

    Every token is a row of its own for the products and the attention alike, so that a prompt read in any pieces,
    an answer and a batch all give the same bits.
    """

    def __init__(self, model: AdaptedLlama) -> None:
        config = model.config
        self._model = model
        self._layers = [_Layer(layer) for layer in model.model.layers]
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._epsilon = config.rms_norm_eps
        self._threads = torch.get_num_threads()
        self._head_dim, self._scaling = config.head_dim, config.head_dim**-0.5
        # rotate_half(x) * sin is roll(x) * sin with the first half negative.
        self._signs = torch.ones(self._head_dim, dtype=model.dtype)
        self._signs[: self._head_dim // 2] = -1

    @staticmethod
    def fits(base: Base) -> bool:
        """Whether `base` is one that this pass knows."""
        layers, config = base.model.model.layers, base.model.config
        linears = [m for m in layers.modules() if isinstance(m, (torch.nn.Linear, PackedLinear))]
        return all(isinstance(m, PackedLinear) for m in linears) and config.hidden_act == "silu"

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self._epsilon)

    def __call__(self, ids: Tensor, step: _Step, prompts: PromptKV | None) -> Tensor:
        """[N] token ids -> [N, hidden_size], ready for the head."""
        torch.set_num_threads(1 if len(ids) <= _FEW else self._threads)
        heads, kv_heads, head_dim = self._heads, self._kv_heads, self._head_dim
        deltas = None if prompts is None else prompts.deltas
        qkv_sizes = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        hidden = self._model.model.embed_tokens(ids)
        cos, sin = self._model.model.rotary_emb(hidden, step.positions[None])
        cos, sin = cos[0].unsqueeze(1), (sin[0] * self._signs).unsqueeze(1)  # [N, 1, head_dim]
        for index, layer in enumerate(self._layers):
            x = _normed(deltas, index, "attention_norm", self._norm(hidden, layer.first_norm))
            qkv = _mapped(deltas, index, qkv_sizes, layer.qkv(x), x).view(-1, heads + 2 * kv_heads, head_dim)
            rotated = qkv[:, : heads + kv_heads]
            half = rotated.roll(head_dim // 2, -1)
            rotated.mul_(cos).addcmul_(half, sin)
            step.write(index, qkv[:, heads:].view(-1, 2, kv_heads, head_dim))
            query = qkv[:, :heads].unsqueeze(2)  # [N, H, 1, head_dim]
            keys, values = step.read(index)
            if step.rows < len(query):  # tokens of one row
                keys, values = (t.expand(len(query), -1, -1, -1) for t in (keys, values))
            out = ungrouped(attend(grouped(query, kv_heads), keys, values, step.mask, self._scaling), query)
            if prompts is not None:
                out = add_prompt_terms(out, query, prompts.layers.get(index, ()), None, self._scaling)
            out = out.reshape(-1, heads * head_dim)
            hidden = hidden + _mapped(deltas, index, {"o": hidden.shape[1]}, layer.out(out), out)
            x = _normed(deltas, index, "mlp_norm", self._norm(hidden, layer.second_norm))
            both = layer.gate_up(x)
            inner = both.shape[1] // 2
            gate, up = _mapped(deltas, index, {"gate": inner, "up": inner}, both, x).chunk(2, dim=-1)
            product = F.silu(gate) * up
            hidden = hidden + _mapped(deltas, index, {"down": hidden.shape[1]}, layer.down(product), product)
        torch.set_num_threads(self._threads)  # for the head: one product, and a fifth of all weights
        return _normed(deltas, -1, FINAL_NORM, self._model.model.norm(hidden))


def _normed(deltas: Deltas | None, layer: int, name: str, out: Tensor) -> Tensor:
    """A norm's output for N tokens, [N, hidden_size], as the deltas change it."""
    return out if deltas is None else deltas.norm(layer, name, out[:, None])[:, 0]


def _mapped(deltas: Deltas | None, layer: int, sizes: Mapping[str, int], out: Tensor, x: Tensor) -> Tensor:
    """What linear maps of one input x [N, in] give side by side, by name and size, as the deltas change it."""
    if deltas is None:
        return out
    pieces = out[:, None].split(list(sizes.values()), 2)
    changed = [deltas.linear(layer, name, p, x[:, None]) for name, p in zip(sizes, pieces, strict=True)]
    return torch.cat(changed, 2)[:, 0]
