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
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from adapter.llama import AdaptedLlama, Base, load_base


def load_to_train(name: str, precision: str = "bf16", device: str = "auto") -> Base:
    """The base in one of PRECISIONS, made lean. Raises LoadError."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    quantization = precision if precision in ("nf4", "int8") else "none"
    base = load_base(name, quantization=quantization, device=device, dtype=dtype)
    make_lean(base.model)
    return base


def make_lean(model: AdaptedLlama) -> None:
    """Let norms and gated units of a frozen model keep their inputs alone and make their gradients in one go.

    transformers' own norm goes to fp32 and back in steps that autograd keeps: a sixth of a training step on a CPU.
    The two differ by the rounding of one product. Safe to call again.
    """
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = MethodType(_norm, module)
        elif isinstance(module, LlamaMLP) and isinstance(module.act_fn, (torch.nn.SiLU, SiLUActivation)):
            module.forward = MethodType(_mlp, module)


def _norm(self: LlamaRMSNorm, hidden_states: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


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
