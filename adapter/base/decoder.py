"""LLaMA's decoder layers with deltas as arguments of the call. Without deltas they are transformers' own.

Knows transformers' LLaMA modules and deltas; knows nothing of loading.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, apply_rotary_pos_emb

from adapter.method.attention import PromptKV
from adapter.method.deltas import FINAL_NORM


class AdaptedLayer(LlamaDecoderLayer):
    """A decoder layer that also applies the deltas in `prompt_kv`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Any = None,
        prompt_kv: PromptKV | None = None,
        prompt_rows: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As the parent's; hidden_states: [B, T, hidden_size]."""
        if prompt_kv is None or prompt_kv.deltas is None:
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                cache=cache,
                prompt_kv=prompt_kv,
                prompt_rows=prompt_rows,
                **kwargs,
            )
        deltas, rows = prompt_kv.deltas, prompt_rows
        attention, mlp, index = self.self_attn, self.mlp, int(self.self_attn.layer_idx)
        x = deltas.norm(index, "attention_norm", self.input_layernorm(hidden_states), rows)
        projections = (("q", attention.q_proj), ("k", attention.k_proj), ("v", attention.v_proj))
        query, key, value = (
            deltas.linear(index, name, linear(x), x, rows).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
            for name, linear in projections
        )
        assert position_embeddings is not None
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, index)
        attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
        out, _ = attend(
            attention,
            query,
            key,
            value,
            attention_mask,
            scaling=attention.scaling,
            prompt_kv=prompt_kv,
            prompt_rows=prompt_rows,
        )
        out = out.flatten(2)
        hidden_states = hidden_states + deltas.linear(index, "o", attention.o_proj(out), out, rows)
        x = deltas.norm(index, "mlp_norm", self.post_attention_layernorm(hidden_states), rows)
        gate = deltas.linear(index, "gate", mlp.gate_proj(x), x, rows)
        up = deltas.linear(index, "up", mlp.up_proj(x), x, rows)
        product = mlp.act_fn(gate) * up
        return hidden_states + deltas.linear(index, "down", mlp.down_proj(product), product, rows)


class AdaptedModel(LlamaModel):
    """The layers between embedding and head, with the final norm's delta."""

    def forward(
        self, *args: Any, prompt_kv: PromptKV | None = None, prompt_rows: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """As the parent's."""
        output = super().forward(*args, prompt_kv=prompt_kv, prompt_rows=prompt_rows, **kwargs)
        if prompt_kv is not None and prompt_kv.deltas is not None:
            hidden = output.last_hidden_state
            output.last_hidden_state = prompt_kv.deltas.norm(-1, FINAL_NORM, hidden, prompt_rows)
        return output


def adapt(model: LlamaModel) -> None:
    """Let a LLaMA's layers take deltas. Its weights and what it answers without deltas stay as they are."""
    model.__class__ = AdaptedModel
    for layer in model.layers:
        layer.__class__ = AdaptedLayer
