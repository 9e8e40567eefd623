"""The optimiser of a run, its learning rates, and the moving average of what it trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from adapter.method.adapter import Adapter
from train.config import ConfigError, TrainConfig


def make_optimizer(
    adapter: Adapter, learnt: Sequence[torch.nn.Parameter], config: TrainConfig
) -> torch.optim.AdamW:
    """AdamW with a rate of its own for the gates, which do not decay, and for the tuning. Raises ConfigError."""
    if config.tuning_lr is not None and adapter.tuning is None:
        raise ConfigError(
            "tuning_lr finds no tuning to learn: leave it out, or set one, such as tuning: {lora_rank: 8}."
        )
    tuning = set() if adapter.tuning is None else set(map(id, adapter.tuning.parameters()))
    groups: dict[str, dict[str, Any]] = {
        "lr": {"params": [], "initial_lr": config.lr},
        "gate_lr": {"params": [], "initial_lr": config.gate_lr, "weight_decay": 0.0},
        "tuning_lr": {"params": [], "initial_lr": config.tuning_lr or config.lr},
    }
    for p in learnt:
        groups["gate_lr" if p is adapter.gates else "tuning_lr" if id(p) in tuning else "lr"]["params"].append(p)
    used = [group for group in groups.values() if group["params"]]
    return torch.optim.AdamW(used, betas=(0.9, 0.95), weight_decay=config.weight_decay)


def averaged(adapter: Adapter, decay: float) -> AveragedModel:
    """An exponential moving average of the adapter's parameters.

    Early in a run the decay is smaller, as in TensorFlow's ExponentialMovingAverage with num_updates: otherwise
    the first values would weigh most for as long as a short run lasts.
    """
    return AveragedModel(adapter, multi_avg_fn=partial(_average_in, decay))


def _average_in(decay: float, averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
    """Moves the averages towards `values` in place, after `count` earlier ones."""
    torch._foreach_lerp_(list(averages), list(values), 1 - min(decay, (1 + int(count)) / (10 + int(count))))


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at which step `step` of 0 to `steps` - 1 is taken.

    It rises in equal parts over the warm-up, one of which the first step takes already, and falls as a cosine,
    which is at 0 once all steps are taken.
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / (steps - rising))
