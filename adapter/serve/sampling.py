"""Sampling of the next token. Knows logits; knows nothing of text or models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapter.serve.settings import Settings

_DEFAULTS = Settings()
_TOP_K = 512  # holds top_p nearly always, and is ten times faster than sorting the vocabulary


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled. Ranges and defaults are those of Settings; raises BadInput when out of range."""

    temperature: float = _DEFAULTS.temperature
    top_p: float = _DEFAULTS.top_p
    max_new_tokens: int = _DEFAULTS.max_tokens
    seed: int | None = None

    def __post_init__(self) -> None:
        names = {"temperature", "top_p", "seed"}
        Settings.checked({"max_tokens": self.max_new_tokens, **{name: getattr(self, name) for name in names}})

    def generator(self) -> torch.Generator:
        """A random generator for one request; without a seed it is seeded by the system."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def check_finite(logits: Tensor) -> None:
    """Raises FloatingPointError if a logit is infinite or no number: somewhere in the pass numbers overflowed."""
    if float((logits * 0).sum()) != 0:  # NaN then, in a twelfth of the time of isfinite().all()
        raise FloatingPointError("the logits are not finite")


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> tuple[int, float]:
    """Sample the next token of one row; returns it and its log-probability before temperature and top-p.

    logits: [vocab_size]. `generator` is on the CPU, so that a seed gives the same numbers on every device. Raises
    FloatingPointError as `check_finite` does.
    """
    check_finite(logits)
    logits = logits.float()
    if params.temperature == 0:
        token = int(logits.argmax())
    else:
        # The largest logit is 0 here and the divisor a number of fp32: no temperature makes an infinity or 0 / 0.
        temperature = max(params.temperature, torch.finfo(logits.dtype).tiny)
        probabilities = torch.softmax((logits - logits.max()) / temperature, dim=-1)
        # Keep the smallest set of most likely tokens that reaches top_p; the most likely one always stays.
        ordered, order = probabilities.topk(min(_TOP_K, probabilities.numel()))
        if ordered.sum() < params.top_p:
            ordered, order = probabilities.sort(descending=True)
        ordered[1:].masked_fill_(ordered.cumsum(-1)[:-1] >= params.top_p, 0.0)
        token = int(order[torch.multinomial(ordered.cpu(), 1, generator=generator).to(order.device)])
    return token, float(logits[token] - logits.logsumexp(-1))
