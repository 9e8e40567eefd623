"""The base's forward pass for serving: next tokens of several rows, each with its own past and prompts.

Two passes give the same answers: transformers' own, for every base, and a leaner one for the packed int8 base on a
CPU, where Python and small operations would cost more than the products. Both call `adapter.attention`. Knows
tensors; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.attention import PromptKV, add_prompt_terms, attend, grouped
from adapter.llama import AdaptedLlama, Base
from adapter.quantize import Int8Linear, fuse, int8_product

# The past is read in whole blocks behind a mask. torch's attention then gives a row the same bits whatever longer
# rows are beside it, which it does not when the length is no multiple of its vectors.
BLOCK = 64


class KeyValues:
    """The past of several rows: [rows, layers, 2, Hkv, capacity, head_dim], keys and values; grows in blocks."""

    def __init__(self, base: Base, rows: int = 1, tokens: int = BLOCK) -> None:
        f = base.fingerprint
        self._rest = (f.num_hidden_layers, 2, f.num_key_value_heads)
        self._head_dim = f.head_dim
        # Zeros: what is masked must be a number.
        self.data = torch.zeros(
            rows, *self._rest, _blocks(tokens), f.head_dim, dtype=base.model.dtype, device=base.device
        )

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room, keeping what is there."""
        had_rows, had_tokens = self.data.shape[0], self.data.shape[4]
        if rows <= had_rows and tokens <= had_tokens:
            return
        rows = max(rows, had_rows)
        tokens = had_tokens if tokens <= had_tokens else _blocks(max(tokens, had_tokens * 3 // 2))
        grown = self.data.new_zeros(rows, *self._rest, tokens, self._head_dim)
        grown[:had_rows, ..., :had_tokens, :] = self.data
        self.data = grown

    def row(self, index: int, tokens: int) -> Tensor:
        """A copy of one row's past: [layers, 2, Hkv, tokens, head_dim]."""
        return self.data[index, ..., :tokens, :].clone()

    def put(self, index: int, past: Tensor) -> None:
        """Set one row's past; there must be room."""
        self.data[index, ..., : past.shape[3], :] = past


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


@dataclass
class _Step:
    """T new tokens for each of B rows: where they go and what they may look at."""

    cache: KeyValues
    starts: Sequence[int]
    positions: Tensor  # [B, T]
    span: int
    mask: Tensor  # [B, 1, T, span], additive

    def write(self, layer: int, new: Tensor) -> None:
        """new: [B, T, 2, Hkv, head_dim], keys and values."""
        batch, length = self.positions.shape
        if batch == 1:
            start = self.starts[0]
            self.cache.data[0, layer, :, :, start : start + length] = new[0].permute(1, 2, 0, 3)
        else:
            rows = torch.arange(batch, device=new.device)[:, None]
            self.cache.data[:, layer][rows, :, :, self.positions] = new

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values so far: [B, Hkv, span, head_dim]."""
        past = self.cache.data[: len(self.starts), layer, :, :, : self.span]
        return past[:, 0], past[:, 1]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What transformers asks of a cache. key, value: [B, Hkv, T, head_dim]."""
        self.write(layer, torch.stack([key, value]).permute(1, 3, 0, 2, 4))
        return self.read(layer)


# (new token ids [B, T], hidden before the head) -> [B, T, hidden_size]
_Body = Callable[[Tensor, _Step, PromptKV | None], Tensor]


class Forward:
    """The forward pass of one base for serving, by the leaner way where that applies."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._body: _Body = _Lean(base.model) if _Lean.fits(base) else self._plain

    @torch.inference_mode()
    def __call__(self, cache: KeyValues, ids: Tensor, starts: Sequence[int], prompts: PromptKV | None) -> Tensor:
        """Logits after the last token of each row, [B, vocab_size] in fp32; the cache takes the new tokens in.

        ids: [B, T]; starts: how many tokens of each row the cache holds; prompts: one entry a row, or None.
        """
        batch, length = ids.shape
        device = self._base.device
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(length, device=device)
        span = _blocks(max(starts) + length)
        cache.reserve(batch, span)
        hidden_from = torch.arange(span, device=device) > positions[:, None, :, None]
        mask = torch.zeros(hidden_from.shape, dtype=cache.data.dtype, device=device)
        mask.masked_fill_(hidden_from, float("-inf"))
        hidden = self._body(ids.to(device), _Step(cache, starts, positions, span, mask), prompts)
        return self._base.model.lm_head(hidden[:, -1]).float()

    def _plain(self, ids: Tensor, step: _Step, prompts: PromptKV | None) -> Tensor:
        return self._base.model.model(
            input_ids=ids,
            position_ids=step.positions,
            attention_mask=step.mask,
            cache=step,
            use_cache=True,
            prompt_kv=prompts,
        ).last_hidden_state


class _Layer:
    """One decoder layer's frozen tensors, with the products of a common input in one."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.first_norm, self.second_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self.gate_up = fuse([mlp.gate_proj, mlp.up_proj])
        self.out = attention.o_proj.weight, attention.o_proj.scales
        self.down = mlp.down_proj.weight, mlp.down_proj.scales


class _Lean:
    """The decoder layers of a packed int8 LLaMA, with as few and as large operations as eager torch allows."""

    def __init__(self, model: AdaptedLlama) -> None:
        config = model.config
        self._model = model
        self._layers = [_Layer(layer) for layer in model.model.layers]
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim, self._scaling = config.head_dim, config.head_dim**-0.5
        # rotate_half(x) * sin is roll(x) * sin with the first half negative.
        self._signs = torch.ones(self._head_dim, dtype=model.dtype)
        self._signs[: self._head_dim // 2] = -1

    @staticmethod
    def fits(base: Base) -> bool:
        """Whether `base` is one that this pass knows."""
        layers, config = base.model.model.layers, base.model.config
        linears = [m for m in layers.modules() if isinstance(m, (torch.nn.Linear, Int8Linear))]
        return all(isinstance(m, Int8Linear) for m in linears) and config.hidden_act == "silu"

    def __call__(self, ids: Tensor, step: _Step, prompts: PromptKV | None) -> Tensor:
        batch, length = ids.shape
        heads, kv_heads, head_dim = self._heads, self._kv_heads, self._head_dim
        hidden = self._model.model.embed_tokens(ids.flatten())  # [B * T, hidden_size]
        cos, sin = self._model.model.rotary_emb(hidden, step.positions)  # [B, T, head_dim]
        cos, sin = cos.unsqueeze(2), (sin * self._signs).unsqueeze(2)
        # The heads of a group become further positions, each with the mask of its own.
        mask = step.mask if length == 1 else step.mask.repeat(1, 1, heads // kv_heads, 1)
        for index, layer in enumerate(self._layers):
            normed = layer.first_norm(hidden)
            qkv = int8_product(normed, *layer.qkv).view(batch, length, heads + 2 * kv_heads, head_dim)
            rotated = qkv[:, :, : heads + kv_heads]
            half = rotated.roll(head_dim // 2, -1)
            rotated.mul_(cos).addcmul_(half, sin)
            query = rotated[:, :, :heads].transpose(1, 2)
            step.write(index, qkv[:, :, heads:].view(batch, length, 2, kv_heads, head_dim))
            keys, values = step.read(index)
            out = attend(grouped(query, kv_heads), keys, values, mask, self._scaling)
            out = out.reshape(batch, heads, length, head_dim).transpose(1, 2)
            if prompts is not None:
                out = add_prompt_terms(out, query, prompts.layers.get(index, ()), None, self._scaling)
            hidden = hidden + int8_product(out.reshape(batch * length, heads * head_dim), *layer.out)
            gate, up = int8_product(layer.second_norm(hidden), *layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + int8_product(F.silu(gate) * up, *layer.down)
        return self._model.model.norm(hidden).view(batch, length, -1)
