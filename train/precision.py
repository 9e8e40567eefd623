"""The frozen base as it is trained through: its precision, and parts of it with less work and memory than
transformers' own. Knows LLaMA's modules; knows nothing of adapters.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from adapter.base.llama import AdaptedLlama, Base, load_base


def load_to_train(name: str, precision: str = "bf16", device: str = "auto") -> Base:
    """The base in one of PRECISIONS, made lean. Raises LoadError."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    quantization = precision if precision in ("nf4", "int8") else "none"
    base = load_base(name, quantization=quantization, device=device, dtype=dtype)
    for module in base.model.modules():
        # Else bitsandbytes packs weights for a CPU when it first sees an input without a gradient, and the packed
        # product passes no gradient on: it would be lost from then on, without a word.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    make_lean(base.model)
    return base


def make_lean(model: AdaptedLlama) -> None:
    """Let norms, rotations and gated units of a frozen model keep little and make their gradients in one go.

    transformers' own norm goes to fp32 and back in steps that autograd keeps: a sixth of a training step on a CPU.
    The two differ by the rounding of one product. Safe to call again.
    """
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = MethodType(_norm, module)
        elif isinstance(module, LlamaAttention):
            module.forward = MethodType(_attention, module)
        elif isinstance(module, LlamaMLP) and isinstance(module.act_fn, (torch.nn.SiLU, SiLUActivation)):
            module.forward = MethodType(_mlp, module)


def _norm(self: LlamaRMSNorm, hidden_states: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _attention(
    self: LlamaAttention,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    query, key, value = (
        linear(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for linear in (self.q_proj, self.k_proj, self.v_proj)
    )
    query, key = (_Rotation.apply(t, *position_embeddings) for t in (query, key))
    if cache is not None:
        key, value = cache.update(key, value, self.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    out, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
    return self.o_proj(out.flatten(-2)), weights


def _mlp(self: LlamaMLP, x: Tensor) -> Tensor:
    return self.down_proj(_GatedUnit.apply(self.gate_proj(x), self.up_proj(x)))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """hidden: [..., hidden_size]; weight: [hidden_size], frozen."""
        x = _precise(hidden)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale.add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return (x * scale).mul_(weight).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        hidden, weight, scale = ctx.saved_tensors
        x, slope = _precise(hidden), _precise(slopes[0]) * weight
        along = torch.linalg.vecdot(slope, x).unsqueeze(-1).mul_(scale.square()).div_(x.shape[-1])
        return slope.addcmul_(x, along, value=-1).mul_(scale).to(hidden.dtype), None, None


class _Rotation(torch.autograd.Function):
    """Rotary positions, half by half: no negated copy is put together, and the gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, H, T, head_dim]; cos, sin: [B or 1, T, head_dim], whose halves are equal."""
        half = x.shape[-1] // 2
        cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(slopes[0], cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)  # heads before positions also in memory
    (left, right), (out_left, out_right) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin)
    return out


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _GatedUnit(torch.autograd.Function):
    """silu(gate) * up; silu is computed again in the backward pass, for a third of the memory."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(slopes[0] * up, gate), F.silu(gate).mul_(slopes[0])
