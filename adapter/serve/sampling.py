"""Sampling of the next token. Knows logits; knows nothing of text or models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapter.errors import BadInput

MAX_NEW_TOKENS = 2048
_TOP_K = 512  # holds top_p nearly always, and is ten times faster than sorting the vocabulary


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled. temperature 0 is greedy; the defaults are the paper's."""

    temperature: float = 0.1
    top_p: float = 0.75
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise BadInput(f"Temperature must lie between 0 and 2, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"Top-p must lie above 0 and be at most 1, got {self.top_p}.")
        if not 1 <= self.max_new_tokens <= MAX_NEW_TOKENS:
            raise BadInput(f"Max tokens must lie between 1 and {MAX_NEW_TOKENS}, got {self.max_new_tokens}.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise BadInput(f"The seed must be a whole number from 0 to 2^63 - 1, got {self.seed}.")

    def generator(self) -> torch.Generator:
        """A random generator for one request; without a seed it is seeded by the system."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> tuple[int, float]:
    """Sample the next token of one row; returns it and its log-probability before temperature and top-p.

    logits: [vocab_size]. `generator` is on the CPU, so that a seed gives the same numbers on every device.
    """
    logits = logits.float()
    if params.temperature == 0:
        token = int(logits.argmax())
    else:
        probabilities = torch.softmax(logits / params.temperature, dim=-1)
        # Keep the smallest set of most likely tokens that reaches top_p; the most likely one always stays.
        ordered, order = probabilities.topk(min(_TOP_K, probabilities.numel()))
        if ordered.sum() < params.top_p:
            ordered, order = probabilities.sort(descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= params.top_p, 0.0)
        token = int(order[torch.multinomial(ordered.cpu(), 1, generator=generator).to(order.device)])
    return token, float(logits[token] - logits.logsumexp(-1))
