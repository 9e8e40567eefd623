"""What a training step computes: the loss of an adapter on a frozen base, and the optimiser with its rates."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from adapter.base.frozen_linear import FrozenLinear
from adapter.base.llama import AdaptedLlama, Base
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.config import AdapterConfig
from adapter.method.vision import VisualFeatures
from train.config import TrainConfig
from train.input.batches import Batch
from train.input.rows import IGNORED

_CHUNK_POSITIONS = 256  # per product of the head: the logits of all positions would be most of the memory
_CACHE_POSITIONS = 16  # whose logits in fp32 fit into a processor's cache
# The settings of a run that its adapter keeps, beside its layers.
OF_ADAPTER = (
    "prompt_length", "gate_activation", "prompt_norm", "template", "description", "form", "vision", "tuning",
)  # fmt: skip


def new_adapter(config: TrainConfig, base: Base) -> Adapter:
    """An untrained adapter for `base`: random prompts, and gates that are zero unless config.init is "random"."""
    set_seed(config.seed)
    layers = config.layers_of(base.fingerprint.num_hidden_layers)
    settings = {name: getattr(config, name) for name in OF_ADAPTER}
    adapter = Adapter(AdapterConfig(base=base.fingerprint, insertion_layers=layers, **settings))
    torch.nn.init.normal_(adapter.prompts, std=config.prompt_std)
    if config.init == "random":
        torch.nn.init.normal_(adapter.gates)
    return adapter


def trainable_parameters(adapter: Adapter, learn: str) -> list[nn.Parameter]:
    """The parameters that `learn` (see TrainConfig) selects; freezes the adapter's others."""
    for name, parameter in adapter.named_parameters():
        parameter.requires_grad_(learn == "all" or name.startswith("tuning.") == (learn == "tuning"))
    return [p for p in adapter.parameters() if p.requires_grad]


def batch_prompts(
    adapter: Adapter, model: AdaptedLlama, features: VisualFeatures | None, rows: Tensor | None
) -> PromptKV:
    """Prompts for a batch; features and rows as in Batch. With rows, entry 0 is the adapter without an image."""
    kv: PromptKV = adapter(model, features)
    return kv if rows is None else PromptKV.stack([adapter(model), kv])


def total_loss(model: AdaptedLlama, adapter: Adapter, batch: Batch) -> Tensor:
    """Summed cross-entropy of the answers' tokens, in nats; the head runs on those positions only."""
    targets = batch.labels[:, 1:]
    return _HeadLoss.apply(_adapted_states(model, adapter, batch), model.lm_head, targets[targets != IGNORED])


def total_divergence(model: AdaptedLlama, adapter: Adapter, batch: Batch) -> Tensor:
    """Summed KL(base || adapted) of the next token at the batch's supervised positions, in nats."""
    with torch.no_grad():
        base = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        base = base[:, :-1][batch.labels[:, 1:] != IGNORED]
    return _HeadLoss.apply(_adapted_states(model, adapter, batch), model.lm_head, base)


def _adapted_states(model: AdaptedLlama, adapter: Adapter, batch: Batch) -> Tensor:
    """Hidden states of the positions before supervised ones, [P, hidden_size]."""
    kv = batch_prompts(adapter, model, batch.features, batch.prompt_rows)
    # Right-padded: causal attention alone keeps padding from the supervised positions.
    states = model.model(
        input_ids=batch.input_ids, use_cache=False, prompt_kv=kv, prompt_rows=batch.prompt_rows
    ).last_hidden_state
    return states[:, :-1][batch.labels[:, 1:] != IGNORED]


class _HeadLoss(torch.autograd.Function):
    """Summed loss of a frozen head, with its input's gradient, piece by piece: no logits outlive their piece."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Linear | FrozenLinear, targets: Tensor) -> Tensor:
        """hidden: [P, hidden_size]; head: of [vocab_size, hidden_size].

        targets: token ids [P] for cross-entropy, or the base's states [P, hidden_size] for KL(base || hidden).
        """
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), _CHUNK_POSITIONS):
            chunk = slice(start, start + _CHUNK_POSITIONS)
            logits = head(hidden[chunk])
            wanted = targets[chunk] if targets.ndim == 1 else head(targets[chunk])
            pieces = zip(logits.split(_CACHE_POSITIONS), wanted.split(_CACHE_POSITIONS), strict=True)
            for piece, piece_targets in pieces:
                logs = piece.float().log_softmax(1)
                if targets.ndim == 1:
                    total -= logs.gather(1, piece_targets[:, None]).sum()
                    minus_one = logs.new_full((len(piece_targets), 1), -1.0)
                    slope = logs.exp_().scatter_add_(1, piece_targets[:, None], minus_one)
                else:
                    base_logs = piece_targets.float().log_softmax(1)
                    base_probabilities = base_logs.exp()
                    total += (base_probabilities * base_logs.sub_(logs)).sum()
                    slope = logs.exp_().sub_(base_probabilities)
                if gradient is not None:
                    piece.copy_(slope)
            if gradient is not None:
                gradient[chunk] = (
                    head.input_gradient(logits) if isinstance(head, FrozenLinear) else logits @ head.weight
                )
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None


@torch.no_grad()
def evaluate(model: AdaptedLlama, adapter: Adapter, held_out: Iterable[Batch]) -> tuple[float, int]:
    """The loss summed over `held_out`, in nats, and the number of supervised tokens."""
    total, count = 0.0, 0
    for batch in held_out:
        total += total_loss(model, adapter, batch).item()
        count += batch.supervised
    return total, count


def make_optimizer(adapter: Adapter, learnt: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a rate of its own for the gates, which do not decay, and for the tuning."""
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
    """A moving average of the adapter's parameters; as in TensorFlow's, the decay is smaller early in a run."""

    def average_in(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_(list(averages), list(values), 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return AveragedModel(adapter, multi_avg_fn=average_in)


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at step 0 to `steps` - 1: rises in equal parts, falls as a cosine to 0."""
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / (steps - rising))
