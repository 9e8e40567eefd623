"""LLaMA's decoder layer with adaption prompts and V2's deltas as arguments of the call, written once.

Training, serving, inspection and transformers' `generate()` run this forward pass; `kernels` and
`method.attention` choose faster forms of its parts by their inputs. `serve.compiled` is the same computation for
packed bases: whoever changes one changes the other.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from adapter.base import kernels
from adapter.method.attention import PromptKV, Runs, zero_init_attention
from adapter.method.deltas import FINAL_NORM


class LayerCache(Protocol):
    """What a layer asks of a KV cache; transformers' caches and `serve.kv_cache` have it."""

    def update(self, key: Tensor, value: Tensor, layer: int, /) -> tuple[Runs, Runs]:
        """Append [B, Hkv, T, head_dim]; returns all keys and values, [B, Hkv, S, head_dim] or by runs."""


class DecoderLayer(LlamaDecoderLayer):
    """transformers' modules with a forward pass of our own."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Runs | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        prompt_kv: PromptKV | None = None,
        prompt_rows: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """hidden_states: [B, T, hidden_size]; attention_mask: of SDPA, None for causal attention.

        position_embeddings: cos and sin, [B or 1, T, head_dim]; prompt_kv, prompt_rows: see PromptKV.
        """
        assert position_embeddings is not None
        attention, mlp, index = self.self_attn, self.mlp, self.self_attn.layer_idx
        deltas = None if prompt_kv is None else prompt_kv.deltas
        change = None if deltas is None else partial(deltas.linear, index, rows=prompt_rows)

        x = kernels.rms_norm(self.input_layernorm, hidden_states)
        if deltas is not None:
            x = deltas.norm(index, "attention_norm", x, prompt_rows)
        query, key, value = kernels.query_key_value(attention, x, *position_embeddings, change)
        if cache is not None:
            keys, values = cache.update(key, value, index)
        else:
            keys, values = key, value
        out = zero_init_attention(attention, query, keys, values, attention_mask, prompt_kv, prompt_rows)
        out = out.flatten(2)  # [B, T, H * head_dim]
        projected = attention.o_proj(out)
        hidden_states = hidden_states + (projected if change is None else change("o", projected, out))

        x = kernels.rms_norm(self.post_attention_layernorm, hidden_states)
        if deltas is not None:
            x = deltas.norm(index, "mlp_norm", x, prompt_rows)
        gate, up = kernels.linears(("gate", "up"), (mlp.gate_proj, mlp.up_proj), x, change)
        product = kernels.gated_unit(mlp.act_fn, gate, up)
        projected = mlp.down_proj(product)
        return hidden_states + (projected if change is None else change("down", projected, product))


class Decoder(LlamaModel):
    """The layers between embedding and head, with the final norm's delta."""

    def forward(
        self, *args: Any, prompt_kv: PromptKV | None = None, prompt_rows: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """As the parent's; prompt_kv, prompt_rows: see PromptKV."""
        output = super().forward(*args, prompt_kv=prompt_kv, prompt_rows=prompt_rows, **kwargs)
        output.last_hidden_state = _final_delta(output.last_hidden_state, prompt_kv, prompt_rows)
        return output

    def final_norm(self, hidden: Tensor, prompt_kv: PromptKV | None) -> Tensor:
        """The norm before the head, with its delta, for callers that run the layers themselves."""
        return _final_delta(self.norm(hidden), prompt_kv)


def _final_delta(hidden: Tensor, prompt_kv: PromptKV | None, rows: Tensor | None = None) -> Tensor:
    if prompt_kv is None or prompt_kv.deltas is None:
        return hidden
    return prompt_kv.deltas.norm(-1, FINAL_NORM, hidden, rows)


def set_gradient_checkpointing(model: LlamaModel, enabled: bool) -> None:
    """Whether layers compute their activations again in the backward pass instead of keeping them.

    transformers' own function would also make the embeddings require a gradient, for layers below the lowest
    insertion layer too.
    """
    for layer in model.layers:
        layer.train(enabled)  # which transformers asks for; nothing in a layer depends on it
        layer.gradient_checkpointing = enabled
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def adapt(model: LlamaModel) -> None:
    """Give a LLaMA our forward passes. Its weights stay, and without prompts its answers up to rounding."""
    model.__class__ = Decoder
    for layer in model.layers:
        layer.__class__ = DecoderLayer
