"""Features of imagined photographs, from what the frozen encoder knows of its classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.method.vision import VisualEncoder, VisualFeatures


class ClassFeatures:
    """Draws features of imagined photographs around the encoder's own weight vector of a class.

    The pooled features are the mean over pictures with a photograph's texture, plus a step along the class's weight
    vector, plus part of such a picture's own deviation; the logits are the encoder's classifier on them. The other
    levels are that picture's.
    """

    def __init__(self, encoder: VisualEncoder, photograph_like: VisualFeatures) -> None:
        self._weight, self._bias = encoder.classifier
        pooled = photograph_like.levels[:, -self._weight.shape[1] :]
        self._other_levels = photograph_like.levels[:, : -self._weight.shape[1]]
        self._mean = pooled.mean(0)
        self._deviations = pooled - self._mean

    def draw(self, count: int, generator: torch.Generator, mixed: float = 0.5) -> VisualFeatures:
        """`count` rows of features, of a random class each. mixed: share of rows between the class and a near one."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count, 1).uniform_(low, high, generator=generator)

        classes = torch.randint(len(self._weight), (count,), generator=generator)
        unit = F.normalize(self._weight, dim=1)
        direction = unit[classes]
        near = (direction @ unit.T).topk(6, dim=1).indices  # itself first
        other = near[torch.arange(count), torch.randint(1, 6, (count,), generator=generator)]
        blend = uniform(0.2, 0.5) * (torch.rand(count, 1, generator=generator) < mixed)
        direction = F.normalize((1 - blend) * direction + blend * unit[other], dim=1)
        picked = torch.randint(len(self._deviations), (count,), generator=generator)
        pooled = self._mean + uniform(3, 8) * direction + uniform(0.4, 1.0) * self._deviations[picked]
        pooled = pooled.clamp(min=0)  # they come out of a rectifier
        levels = torch.cat([self._other_levels[picked], pooled], dim=1)
        return VisualFeatures(levels, F.linear(pooled, self._weight, self._bias))
