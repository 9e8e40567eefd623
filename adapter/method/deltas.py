"""What an adapter of the V2 family changes of the frozen base beside its attention: norms and linear maps
(arXiv 2304.15010, section 3.1, and LoRA).

Knows tensors. Like the prompts, deltas are arguments of a call: U entries, one of which each row uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")  # of a decoder layer
NORMS = ("attention_norm", "mlp_norm")  # of a decoder layer
FINAL_NORM = "final_norm"


@dataclass(frozen=True)
class LinearDelta:
    """Changes y = W x to (1 + scale) * (y + up (down x) + bias). What is None is not changed.

    bias, scale: [U, out]; down: [U, r, in]; up: [U, out, r]. scale is fp32: bfloat16 has no numbers near 1.
    """

    bias: Tensor | None = None
    scale: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> LinearDelta:
        """The same with every tensor changed."""
        fields = (self.bias, self.scale, self.down, self.up)
        return LinearDelta(*(None if t is None else change(t) for t in fields))

    def scaled(self, strength: float) -> LinearDelta:
        """`strength` of the way from the base."""
        half = self.each(lambda t: t * strength)
        return LinearDelta(half.bias, half.scale, self.down, half.up)

    def of(self, rows: Tensor) -> LinearDelta:
        """Those of each row's entry; nothing for rows that have none (-1)."""
        return self.each(lambda t: _of(t, rows))

    def __call__(self, out: Tensor, x: Tensor) -> Tensor:
        """out: [B, T, out], the frozen map of x: [B, T, in]; entries: one, or one for each of B rows."""
        if self.down is not None and self.up is not None:
            out = out + x @ self.down.transpose(1, 2) @ self.up.transpose(1, 2)
        if self.bias is not None:
            out = out + self.bias[:, None]
        if self.scale is not None:
            out = (out * (1 + self.scale[:, None])).to(out.dtype)
        return out


@dataclass(frozen=True)
class Deltas:
    """All changes of the adapters in use: linear maps by (layer, name), norms by (layer, name).

    A norm's output is multiplied by 1 + delta, [U, hidden_size] in fp32; FINAL_NORM stands under layer -1.
    """

    linears: Mapping[tuple[int, str], LinearDelta]
    norms: Mapping[tuple[int, str], Tensor]
    size: int = 1  # U

    def scaled(self, strength: float) -> Deltas:
        """`strength` of the way from the base: 0 is the base."""
        linears = {key: delta.scaled(strength) for key, delta in self.linears.items()}
        return Deltas(linears, {key: delta * strength for key, delta in self.norms.items()}, self.size)

    def each(self, change: Callable[[Tensor], Tensor]) -> Deltas:
        """The same with every tensor changed."""
        linears = {key: delta.each(change) for key, delta in self.linears.items()}
        return Deltas(linears, {key: change(delta) for key, delta in self.norms.items()}, self.size)

    def linear(self, layer: int, name: str, out: Tensor, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """`out`, the frozen map `name` of x, as it is changed. Both [B, T, size]; rows: [B], as `prompt_rows`."""
        delta = self.linears.get((layer, name))
        return out if delta is None else (delta if rows is None else delta.of(rows))(out, x)

    def norm(self, layer: int, name: str, out: Tensor, rows: Tensor | None = None) -> Tensor:
        """`out` [B, T, hidden_size], the frozen norm's, as it is changed."""
        delta = self.norms.get((layer, name))
        if delta is None:
            return out
        return (out * (1 + (delta if rows is None else _of(delta, rows))[:, None])).to(out.dtype)

    @staticmethod
    def mixed(parts: Sequence[Deltas]) -> Deltas:
        """The changes of several adapters in one answer: biases, LoRA and norms add, scales multiply."""
        linears: dict[tuple[int, str], LinearDelta] = {}
        norms: dict[tuple[int, str], Tensor] = {}
        for part in parts:
            for key, delta in part.linears.items():
                linears[key] = _both(linears[key], delta) if key in linears else delta
            for key, norm in part.norms.items():
                norms[key] = norms[key] + norm if key in norms else norm
        return Deltas(linears, norms, parts[0].size)

    @staticmethod
    def stack(parts: Sequence[Deltas | None], sizes: Sequence[int]) -> Deltas | None:
        """The entries of all parts in order; sizes: how many each has, and None changes nothing."""
        there = [part for part in parts if part is not None]
        if not there:
            return None
        linears = {}
        for key in dict.fromkeys(key for part in there for key in part.linears):
            found = [None if part is None else part.linears.get(key) for part in parts]
            linears[key] = LinearDelta(
                *(_stacked([None if d is None else getattr(d, name) for d in found], sizes, axis)
                  for name, axis in (("bias", None), ("scale", None), ("down", 1), ("up", 2)))
            )  # fmt: skip
        norms = {}
        for key in dict.fromkeys(key for part in there for key in part.norms):
            stacked = _stacked([None if part is None else part.norms.get(key) for part in parts], sizes, None)
            assert stacked is not None
            norms[key] = stacked
        return Deltas(linears, norms, sum(sizes))


def _of(entries: Tensor, rows: Tensor) -> Tensor:
    there = (rows >= 0).view(-1, *[1] * (entries.ndim - 1))
    return entries[rows.clamp(min=0)] * there.to(entries.dtype)


def _both(left: LinearDelta, right: LinearDelta) -> LinearDelta:
    def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return b if a is None else a if b is None else a + b

    def joined(a: Tensor | None, b: Tensor | None, axis: int) -> Tensor | None:
        return b if a is None else a if b is None else torch.cat([a, b], axis)

    scale = added(left.scale, right.scale)
    if scale is not None and left.scale is not None and right.scale is not None:
        scale = scale + left.scale * right.scale
    return LinearDelta(
        added(left.bias, right.bias), scale, joined(left.down, right.down, 1), joined(left.up, right.up, 2)
    )


def _stacked(values: Sequence[Tensor | None], sizes: Sequence[int], axis: int | None) -> Tensor | None:
    """All entries along dim 0; zeros where there is nothing, and lengthened along `axis` to the longest."""
    like = next((v for v in values if v is not None), None)
    if like is None:
        return None
    shape = list(like.shape)
    if axis is not None:
        shape[axis] = max(v.shape[axis] for v in values if v is not None)
    parts = []
    for value, size in zip(values, sizes, strict=True):
        if value is None:
            value = like.new_zeros(size, *shape[1:])
        elif axis is not None and value.shape[axis] < shape[axis]:
            pad = [0, 0] * (value.ndim - 1 - axis) + [0, shape[axis] - value.shape[axis]]
            value = F.pad(value, pad)
        parts.append(value)
    return torch.cat(parts)
