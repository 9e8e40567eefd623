"""What a decoder layer computes besides matrix products and attention, in the best form for its inputs.

- Inputs that need a gradient: autograd functions that save little and compute their gradient in one step.
  transformers' own norm alone, which goes to fp32 and back, is a sixth of a training step on a CPU.
- Else transformers' own formulas, so that without prompts the logits are transformers' bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, rotate_half

from adapter.base.frozen_linear import FrozenLinear

# What V2's deltas make of a linear layer: its name in `deltas.LINEARS`, its output, its input -> the new output.
Change = Callable[[str, Tensor, Tensor], Tensor]


def rms_norm(norm: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    """`norm` of hidden, [..., hidden_size]. A weight that is trained (full fine-tuning) gets its gradient too."""
    if hidden.requires_grad and not norm.weight.requires_grad:
        return _RMSNorm.apply(hidden, norm.weight, norm.variance_epsilon)
    return norm(hidden)


def query_key_value(
    attention: LlamaAttention, x: Tensor, cos: Tensor, sin: Tensor, change: Change | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, H, T, head_dim], keys and values [B, Hkv, T, head_dim] of x, [B, T, hidden_size], rotated.

    cos, sin: [B or 1, T, head_dim], whose halves are equal.
    """
    shape = (*x.shape[:2], -1, attention.head_dim)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (out.view(shape).transpose(1, 2) for out in linears("qkv", layers, x, change))
    return rotate(query, cos, sin), rotate(key, cos, sin), value


def linears(
    names: Sequence[str], layers: Sequence[nn.Module], x: Tensor, change: Change | None
) -> Sequence[Tensor]:
    """Each of several linear layers of one input."""
    frozen = isinstance(layers[0], FrozenLinear)
    outputs: Sequence[Tensor] = FrozenLinear.products(layers, x) if frozen else [layer(x) for layer in layers]
    return outputs if change is None else [change(n, out, x) for n, out in zip(names, outputs, strict=True)]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x, [B, H, T, head_dim]."""
    if x.requires_grad:
        return _Rotation.apply(x, cos, sin)
    return x * cos.unsqueeze(1) + rotate_half(x) * sin.unsqueeze(1)


def gated_unit(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up."""
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
    """Computes silu again in the backward pass, for a third of the memory."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), F.silu(gate).mul_(grads[0])
