"""The trainable part of V2 adapters beside prompts: changes of norms and linear maps, and their deltas.

Knows one adapter's tensors; knows nothing of the base but its sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapter.method.config import BaseFingerprint, TuningConfig
from adapter.method.deltas import FINAL_NORM, LINEARS, NORMS, Deltas, LinearDelta


class Tuning(nn.Module):
    """Changes of all N layers, zero at first: an untrained one leaves the base as it is.

    norms: [2 N + 1, hidden_size], of attention_norm and mlp_norm of each layer and the final norm; for each linear
    map bias.NAME, scale.NAME: [N, out], down.NAME: [N, r, in], up.NAME: [N, out, r].
    """

    def __init__(self, config: TuningConfig, base: BaseFingerprint) -> None:
        super().__init__()
        layers, rank = base.num_hidden_layers, config.lora_rank
        self._layers = layers
        self.norms = nn.Parameter(torch.zeros(2 * layers + 1, base.hidden_size)) if config.norms else None
        self.bias, self.scale, self.down, self.up = (nn.ParameterDict() for _ in range(4))
        for name, (outputs, inputs) in sizes(base, config.intermediate_size).items():
            if config.bias:
                self.bias[name] = nn.Parameter(torch.zeros(layers, outputs))
            if config.scale:
                self.scale[name] = nn.Parameter(torch.zeros(layers, outputs))
            if rank:
                self.down[name] = nn.Parameter(torch.randn(layers, rank, inputs) * inputs**-0.5)
                self.up[name] = nn.Parameter(torch.zeros(layers, outputs, rank))

    def forward(self, dtype: torch.dtype, entries: int = 1) -> Deltas:
        """The deltas in the base's type, the same for each of U entries."""

        def one(tensors: nn.ParameterDict, name: str, layer: int, kind: torch.dtype) -> Tensor | None:
            return _entries(tensors[name][layer].to(kind), entries) if name in tensors else None

        linears = {
            (layer, name): LinearDelta(
                one(self.bias, name, layer, dtype),
                one(self.scale, name, layer, torch.float32),
                one(self.down, name, layer, dtype),
                one(self.up, name, layer, dtype),
            )
            for layer in range(self._layers)
            for name in {**self.bias, **self.scale, **self.down}
        }
        norms = {}
        if self.norms is not None:
            keys = [*((layer, name) for layer in range(self._layers) for name in NORMS), (-1, FINAL_NORM)]
            norms = {key: _entries(delta, entries) for key, delta in zip(keys, self.norms, strict=True)}
        return Deltas(linears, norms, entries)


def sizes(base: BaseFingerprint, intermediate_size: int) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear map of a decoder layer."""
    queries = base.num_attention_heads * base.head_dim
    keys = base.num_key_value_heads * base.head_dim
    inputs = {"o": queries, "down": intermediate_size}
    outputs = {"q": queries, "k": keys, "v": keys, "gate": intermediate_size, "up": intermediate_size}
    hidden = base.hidden_size
    return {name: (outputs.get(name, hidden), inputs.get(name, hidden)) for name in LINEARS}


def _entries(value: Tensor, entries: int) -> Tensor:
    return value.expand(entries, *value.shape)
