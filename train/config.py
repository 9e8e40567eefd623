"""What one training run is: a frozen dataclass that fails when made. Knows nothing of data or tensors."""

from __future__ import annotations

from dataclasses import dataclass

from adapter.config import VisionConfig


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of one adapter. Rates are AdamW's; gates start at zero and have their own."""

    name: str
    description: str
    steps: int
    batch_size: int = 16
    lr: float = 1e-2
    gate_lr: float = 1e-2
    weight_decay: float = 0.02
    warmup: float = 0.05  # share of the steps
    clip_norm: float | None = None
    prompt_length: int = 10
    insertion_layers: int | None = None  # None: all of the base's
    prompt_std: float = 1.0  # of the prompts' normal initialisation
    prompt_norm: bool = False
    gate_activation: str = "tanh"
    template: str = "chat"
    vision: VisionConfig | None = None
    max_length: int = 512  # tokens; longer examples lose their end
    eval_every: int = 100  # steps
    held_out: int = 96  # examples in the held-out loss
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "gate_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")
