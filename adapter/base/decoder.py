"""LLaMA's decoder layer with adaption prompts and V2's deltas as arguments of the call, written once.

Training, serving, inspection and transformers' `generate()` run this forward pass. `serve.compiled` is the same
computation for packed bases: whoever changes one changes the other. Norm, rotation and gated unit have two forms:

- Inputs that need a gradient: autograd functions that save little and compute their gradient in one step.
  transformers' own norm alone, which goes to fp32 and back, is a sixth of a training step on a CPU.
- Else transformers' own formulas, so that without prompts the logits are transformers' bit for bit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import SiLUActivation
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRMSNorm, rotate_half

from adapter.base.frozen_linear import FrozenLinear
from adapter.method.attention import PromptKV, Runs, zero_init_attention
from adapter.method.deltas import FINAL_NORM

# What V2's deltas make of a linear layer: its name in `deltas.LINEARS`, its output, its input -> the new output.
Change = Callable[[str, Tensor, Tensor], Tensor]


class DecoderLayer(LlamaDecoderLayer):
    """transformers' modules with a forward pass of our own."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Runs | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Any = None,
        prompt_kv: PromptKV | None = None,
        prompt_rows: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """hidden_states: [B, T, hidden_size]; attention_mask: of SDPA, None for causal attention.

        position_embeddings: cos and sin, [B or 1, T, head_dim]; cache: transformers' or `serve.kv_cache`, whose
        `update(key, value, layer)` appends [B, Hkv, T, head_dim] and returns all keys and values, [B, Hkv, S,
        head_dim] or by runs; prompt_kv, prompt_rows: see PromptKV.
        """
        assert position_embeddings is not None
        attention, mlp, index = self.self_attn, self.mlp, self.self_attn.layer_idx
        deltas = None if prompt_kv is None else prompt_kv.deltas
        change = None if deltas is None else partial(deltas.linear, index, rows=prompt_rows)

        x = rms_norm(self.input_layernorm, hidden_states)
        if deltas is not None:
            x = deltas.norm(index, "attention_norm", x, prompt_rows)
        outputs = linears("qkv", (attention.q_proj, attention.k_proj, attention.v_proj), x, change)
        shape = (*x.shape[:2], -1, attention.head_dim)
        query, key, value = (out.view(shape).transpose(1, 2) for out in outputs)  # [B, H or Hkv, T, head_dim]
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        keys, values = (key, value) if cache is None else cache.update(key, value, index)
        out = zero_init_attention(attention, query, keys, values, attention_mask, prompt_kv, prompt_rows)
        out = out.flatten(2)  # [B, T, H * head_dim]
        projected = attention.o_proj(out)
        hidden_states = hidden_states + (projected if change is None else change("o", projected, out))

        x = rms_norm(self.post_attention_layernorm, hidden_states)
        if deltas is not None:
            x = deltas.norm(index, "mlp_norm", x, prompt_rows)
        gate, up = linears(("gate", "up"), (mlp.gate_proj, mlp.up_proj), x, change)
        product = gated_unit(mlp.act_fn, gate, up)
        projected = mlp.down_proj(product)
        return hidden_states + (projected if change is None else change("down", projected, product))


class Decoder(LlamaModel):
    """The layers between embedding and head, with the final norm's delta."""

    def forward(
        self, *args: Any, prompt_kv: PromptKV | None = None, prompt_rows: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """As the parent's; prompt_kv, prompt_rows: see PromptKV."""
        output = super().forward(*args, prompt_kv=prompt_kv, prompt_rows=prompt_rows, **kwargs)
        output.last_hidden_state = final_delta(output.last_hidden_state, prompt_kv, prompt_rows)
        return output


def final_delta(hidden: Tensor, prompt_kv: PromptKV | None, rows: Tensor | None = None) -> Tensor:
    """The output of the norm before the head, with its delta. rows: `prompt_rows`."""
    if prompt_kv is None or prompt_kv.deltas is None:
        return hidden
    return prompt_kv.deltas.norm(-1, FINAL_NORM, hidden, rows)


def set_gradient_checkpointing(model: LlamaModel, enabled: bool) -> None:
    """Whether layers compute their activations again in the backward pass instead of keeping them.

    transformers' own function would also make the embeddings require a gradient, for layers below the lowest
    insertion layer too.
    """
    for layer in model.layers:
        layer.training = enabled  # transformers checks it; not train(): bitsandbytes' linears would then differ
        layer.gradient_checkpointing = enabled
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def adapt(model: LlamaModel) -> None:
    """Give a LLaMA our forward passes. Its weights stay, and without prompts its answers up to rounding."""
    model.__class__ = Decoder
    for layer in model.layers:
        layer.__class__ = DecoderLayer


def rms_norm(norm: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    """`norm` of hidden, [..., hidden_size]. A weight that is trained (full fine-tuning) gets its gradient too."""
    if hidden.requires_grad and not norm.weight.requires_grad:
        return _RMSNorm.apply(hidden, norm.weight, norm.variance_epsilon)
    return norm(hidden)


def linears(
    names: Sequence[str], layers: Sequence[nn.Module], x: Tensor, change: Change | None
) -> Sequence[Tensor]:
    """Each of several linear layers of one input."""
    frozen = isinstance(layers[0], FrozenLinear)
    outputs: Sequence[Tensor] = FrozenLinear.products(layers, x) if frozen else [layer(x) for layer in layers]
    return outputs if change is None else [change(n, out, x) for n, out in zip(names, outputs, strict=True)]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x, [B, H, T, head_dim]. cos, sin: [B or 1, T, head_dim], of equal halves."""
    if x.requires_grad:
        return _Rotation.apply(x, cos, sin)
    return x * cos.unsqueeze(1) + rotate_half(x) * sin.unsqueeze(1)


def gated_unit(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    if not isinstance(activation, (nn.SiLU, SiLUActivation)):
        return activation(gate) * up
    return _GatedSiLU.apply(gate, up) if gate.requires_grad or up.requires_grad else F.silu(gate) * up


class _RMSNorm(torch.autograd.Function):
    """Differs from transformers' by the rounding of one product: it goes back from fp32 after the weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = _at_least_fp32(hidden)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale.add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return (x * scale).mul_(weight).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        hidden, weight, scale = ctx.saved_tensors
        x, grad = _at_least_fp32(hidden), _at_least_fp32(grads[0]) * weight
        along = torch.linalg.vecdot(grad, x).unsqueeze(-1).mul_(scale.square()).div_(x.shape[-1])
        return grad.addcmul_(x, along, value=-1).mul_(scale).to(hidden.dtype), None, None


def _at_least_fp32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _Rotation(torch.autograd.Function):
    """Half by half, so that no negated copy of x is put together. The gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [B, H, T, head_dim]; cos, sin: [B or 1, 1, T, head_dim / 2]."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)  # heads before positions also in memory
    (left, right), (out_left, out_right) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin)
    return out


class _GatedSiLU(torch.autograd.Function):
    """Computes silu again in the backward pass, which saves a third of the memory."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), F.silu(gate).mul_(grads[0])
