"""LLaMA-Adapter V2 beside its prompts (arXiv 2304.15010, section 4.1): changes of norms, linear layers, LoRA.

`Tuning` holds the trainable tensors, `Deltas` what a forward pass applies of them. Like prompts, deltas are
arguments of the call: U entries, one of which each row uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter.method.config import BaseFingerprint, TuningConfig

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")  # of a decoder layer
NORMS = ("attention_norm", "mlp_norm")  # of a decoder layer
FINAL_NORM = "final_norm"


@dataclass(frozen=True)
class LinearDelta:
    """Changes y = W x to (1 + scale) * (y + up (down x) + bias): equation 5 of V2, and LoRA. None: no such term.

    bias, scale: [U, out]; down: [U, r, in]; up: [U, out, r]. scale is fp32: bfloat16 is too coarse for 1 + scale.
    """

    bias: Tensor | None = None
    scale: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> LinearDelta:
        fields = (self.bias, self.scale, self.down, self.up)
        return LinearDelta(*(None if t is None else change(t) for t in fields))

    def scaled(self, strength: float) -> LinearDelta:
        """The delta times `strength`: 0 is the base, 1 the trained adapter."""
        return replace(self.map(lambda t: t * strength), down=self.down)

    def __call__(self, out: Tensor, x: Tensor) -> Tensor:
        """The changed output. out: [B, T, out], the frozen layer's for x, [B, T, in]; U is 1 or B."""
        if self.down is not None and self.up is not None:
            out = out + x @ self.down.transpose(1, 2) @ self.up.transpose(1, 2)
        if self.bias is not None:
            out = out + self.bias[:, None]
        if self.scale is not None:
            out = (out * (1 + self.scale[:, None])).to(out.dtype)
        return out


@dataclass(frozen=True)
class Deltas:
    """The changes of all adapters in use, by (layer, name) with the names of LINEARS, NORMS and FINAL_NORM.

    A norm's output is multiplied by 1 + delta, [U, hidden_size] in fp32; FINAL_NORM stands under layer -1.
    """

    linears: Mapping[tuple[int, str], LinearDelta]
    norms: Mapping[tuple[int, str], Tensor]

    def scaled(self, strength: float) -> Deltas:
        linears = {key: delta.scaled(strength) for key, delta in self.linears.items()}
        return Deltas(linears, {key: delta * strength for key, delta in self.norms.items()})

    def linear(self, layer: int, name: str, out: Tensor, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """`out`, the frozen layer `name`'s for x, with its delta; both [B, T, size]. rows: `prompt_rows`."""
        delta = self.linears.get((layer, name))
        return out if delta is None else (delta if rows is None else delta.map(lambda t: t[rows]))(out, x)

    def norm(self, layer: int, name: str, out: Tensor, rows: Tensor | None = None) -> Tensor:
        """`out`, [B, T, hidden_size], the frozen norm's, with its delta."""
        delta = self.norms.get((layer, name))
        if delta is None:
            return out
        return (out * (1 + (delta if rows is None else delta[rows])[:, None])).to(out.dtype)

    @staticmethod
    def mixed(parts: Sequence[Deltas]) -> Deltas:
        """Several adapters in one answer: biases, LoRA and norms add, scales multiply."""
        linears: dict[tuple[int, str], LinearDelta] = {}
        norms: dict[tuple[int, str], Tensor] = {}
        for part in parts:
            for key, delta in part.linears.items():
                linears[key] = _add(linears[key], delta) if key in linears else delta
            for key, norm in part.norms.items():
                norms[key] = norms[key] + norm if key in norms else norm
        return Deltas(linears, norms)

    @staticmethod
    def stack(parts: Sequence[Deltas | None], sizes: Sequence[int]) -> Deltas | None:
        """The entries of all parts in one Deltas, in order. sizes: entries of each part; None changes nothing."""
        present = [part for part in parts if part is not None]
        if not present:
            return None
        linears, norms = {}, {}
        for key in dict.fromkeys(key for part in present for key in part.linears):
            deltas = [LinearDelta() if part is None else part.linears.get(key, LinearDelta()) for part in parts]
            linears[key] = LinearDelta(
                *(stack_entries([getattr(delta, name) for delta in deltas], sizes, axis)
                  for name, axis in (("bias", None), ("scale", None), ("down", 1), ("up", 2)))
            )  # fmt: skip
        for key in dict.fromkeys(key for part in present for key in part.norms):
            norms[key] = stack_entries([None if part is None else part.norms.get(key) for part in parts], sizes)
        return Deltas(linears, norms)


def _add(left: LinearDelta, right: LinearDelta) -> LinearDelta:
    def joined(name: str, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        a, b = getattr(left, name), getattr(right, name)
        return b if a is None else a if b is None else join(a, b)

    return LinearDelta(
        joined("bias", torch.add),
        joined("scale", lambda a, b: a + b + a * b),
        joined("down", lambda a, b: torch.cat([a, b], 1)),
        joined("up", lambda a, b: torch.cat([a, b], 2)),
    )


def stack_entries(
    parts: Sequence[Tensor | None], sizes: Sequence[int], axis: int | None = None, length: int = 0, fill: float = 0
) -> Any:
    """Entries along dim 0, padded along `axis` to the longest or `length`; zeros for None; None if all are."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    shape = list(present[0].shape)
    if axis is not None:
        shape[axis] = max(length, *(part.shape[axis] for part in present))
    padded = []
    for part, size in zip(parts, sizes, strict=True):
        if part is None:
            part = present[0].new_zeros(size, *shape[1:])
        elif axis is not None and part.shape[axis] < shape[axis]:
            missing = [0, 0] * (part.ndim - 1 - axis) + [0, shape[axis] - part.shape[axis]]
            part = F.pad(part, missing, value=fill)
        padded.append(part)
    return torch.cat(padded)


class Tuning(nn.Module):
    """The trainable part of a V2 adapter beside its prompts: zero at first, so that it leaves the base as it is.

    norms: [2 L + 1, hidden_size], of attention_norm and mlp_norm of the topmost L layers and the final norm; for
    each linear map bias.NAME, scale.NAME: [L, out], down.NAME: [L, r, in], up.NAME: [L, out, r].
    """

    def __init__(self, config: TuningConfig, base: BaseFingerprint) -> None:
        super().__init__()
        total, rank = base.num_hidden_layers, config.lora_rank
        layers = config.layers or total
        self._layers = range(total - layers, total)
        self.norms = nn.Parameter(torch.zeros(2 * layers + 1, base.hidden_size)) if config.norms else None
        self.bias, self.scale, self.down, self.up = (nn.ParameterDict() for _ in range(4))
        for name, (outputs, inputs) in linear_sizes(base, config.intermediate_size).items():
            if config.bias:
                self.bias[name] = nn.Parameter(torch.zeros(layers, outputs))
            if config.scale:
                self.scale[name] = nn.Parameter(torch.zeros(layers, outputs))
            if rank:
                self.down[name] = nn.Parameter(torch.randn(layers, rank, inputs) * inputs**-0.5)
                self.up[name] = nn.Parameter(torch.zeros(layers, outputs, rank))

    def forward(self, dtype: torch.dtype, entries: int = 1) -> Deltas:
        """The deltas of all layers (biases and LoRA in `dtype`, the rest in fp32), equal for all U entries."""

        def one(tensors: nn.ParameterDict, name: str, index: int, kind: torch.dtype) -> Tensor | None:
            if name not in tensors:
                return None
            value = tensors[name][index].to(kind)
            return value.expand(entries, *value.shape)

        terms = ((self.bias, dtype), (self.scale, torch.float32), (self.down, dtype), (self.up, dtype))
        linears = {
            (layer, name): LinearDelta(*(one(tensors, name, index, kind) for tensors, kind in terms))
            for index, layer in enumerate(self._layers)
            for name in {**self.bias, **self.scale, **self.down}
        }
        norms = {}
        if self.norms is not None:
            keys = [*((layer, name) for layer in self._layers for name in NORMS), (-1, FINAL_NORM)]
            norms = {key: delta.expand(entries, -1) for key, delta in zip(keys, self.norms, strict=True)}
        return Deltas(linears, norms)


def linear_sizes(base: BaseFingerprint, intermediate_size: int) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear map of a decoder layer."""
    queries = base.num_attention_heads * base.head_dim
    keys = base.num_key_value_heads * base.head_dim
    inputs = {"o": queries, "down": intermediate_size}
    outputs = {"q": queries, "k": keys, "v": keys, "gate": intermediate_size, "up": intermediate_size}
    hidden = base.hidden_size
    return {name: (outputs.get(name, hidden), inputs.get(name, hidden)) for name in LINEARS}
