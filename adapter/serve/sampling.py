"""Sampling of the next tokens of many requests at once. Knows logits; knows nothing of text or models."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapter.serve.device import to_device
from adapter.serve.settings import Settings

_DEFAULTS = Settings()
_ROUNDING = 2.0**-24  # of fp32, relative
_LOWEST_TEMPERATURE = 1e-30  # at which the likeliest token is sampled as at 0

SampledToken = tuple[int, float]  # a token, and its log-probability before temperature and top-p


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


def check_finite(logits: Tensor) -> None:
    """Raises FloatingPointError if a logit is infinite or no number: somewhere in the pass numbers overflowed."""
    if float((logits * 0).sum()) != 0:  # NaN then, in a twelfth of the time of isfinite().all()
        raise FloatingPointError("the logits are not finite")


class Sampler:
    """The parameters and the random numbers of one request. Without a seed the system chooses one.

    Each token that is sampled at a temperature above 0 uses up one number. They are made on the CPU, so that a
    seed gives the same ones on every device.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = random.Random(params.seed)
        self._numbers: list[float] = []  # drawn and not yet used up

    def peek(self, count: int) -> list[float]:
        """The next `count` numbers, above 0 and below 1, exact in fp32."""
        if self.params.temperature == 0:
            return [0.0] * count
        while len(self._numbers) < count:
            self._numbers.append((2 * self._random.getrandbits(23) + 1) * 2.0**-24)
        return self._numbers[:count]

    def use(self, count: int) -> None:
        """Use up the first `count` numbers that `peek` has returned."""
        del self._numbers[:count]


def sample(
    logits: Tensor, samplers: Sequence[Sampler], drafts: Sequence[Sequence[int]] | None = None
) -> list[list[SampledToken | None]]:
    """Sample the next tokens of several requests, on the device of `logits` and with one transfer to the host.

    logits: [N, vocab_size], for each request in order one row, or 1 + len(drafts[i]) consecutive ones. Drafts are
    guesses of the request's next tokens: the row of the first token comes first, and each other row was computed
    behind one more draft.
    Returns for each request its new tokens in order: one, and another for each draft that equals the token sampled
    in its place. Later rows are worth nothing, and no random number is used for them: tokens, log-probabilities
    and later random numbers are those that sampling one token at a time gives. A request's tokens do not depend on
    the other requests; on a CPU neither do the bits of their log-probabilities. None stands where logits are not
    finite, and ends the list.
    """
    drafts = [()] * len(samplers) if drafts is None else drafts
    params: list[SamplingParams] = []
    numbers: list[float] = []
    for sampler, guesses in zip(samplers, drafts, strict=True):
        params += [sampler.params] * (1 + len(guesses))
        numbers += sampler.peek(1 + len(guesses))
    token_of = _by_row(logits.float(), params, numbers)
    found: list[list[SampledToken | None]] = []
    row = 0
    for sampler, guesses in zip(samplers, drafts, strict=True):
        tokens: list[SampledToken | None] = []
        for i, guess in enumerate((*guesses, None), start=row):
            tokens.append(token := token_of(i))
            if token is None or token[0] != guess:
                break
        sampler.use(len(tokens))
        found.append(tokens)
        row += 1 + len(guesses)
    return found


def _by_row(
    logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]
) -> Callable[[int], SampledToken | None]:
    """The token of the i-th row: on a CPU it is sampled when it is asked for, elsewhere all are at once."""
    if logits.device.type == "cpu":
        return lambda i: _sample_on_cpu(logits[i], params[i], numbers[i])
    return _sample_on_device(logits, params, numbers).__getitem__


def _sample_on_cpu(row: Tensor, params: SamplingParams, number: float) -> SampledToken | None:
    """One token, [vocab_size] -> token, by a random number between 0 and 1; None if a logit is not finite.

    By numpy, whose reductions take a fifth of the time of torch's and wake no other thread.
    """
    logits = row.numpy()
    token = int(logits.argmax())  # the first NaN, if there is one
    highest = logits[token]
    if not (highest < np.inf and logits.min() > -np.inf):
        return None
    if params.temperature > 0:
        temperature = np.float32(max(params.temperature, _LOWEST_TEMPERATURE))
        reach = temperature * np.float32(math.log(_ROUNDING / len(logits)))
        tokens = np.flatnonzero(logits >= highest + reach)  # the others together are lost in the rounding of fp32
        weights = np.exp((logits[tokens] - highest) / temperature)
        reached = params.top_p * float(weights.sum())
        if params.top_p < 1:
            # Lighter ones together weigh less than top-p leaves out, so that they need not be sorted.
            least = (1 - params.top_p) * float(weights.sum()) / len(weights)
            heavy = np.flatnonzero(weights >= least)
            order = heavy[np.argsort(-weights[heavy])]
            tokens, weights = tokens[order], weights[order]
        sums = weights.cumsum(dtype=np.float64)
        last = np.searchsorted(sums[:-1], reached)
        token = int(tokens[np.searchsorted(sums, number * sums[last], side="right")])
    return token, float(row.log_softmax(-1)[token])


def _sample_on_device(
    logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]
) -> list[SampledToken | None]:
    """As _sample_on_cpu, for all rows of `logits`, [N, vocab_size]. Waits for the device once, at its end."""
    tokens, lowest = logits.argmax(-1), logits.amin(-1)
    logprobs = logits.log_softmax(-1)  # all NaN where a logit is NaN or +inf
    if tempered := [row for row, p in enumerate(params) if p.temperature > 0]:
        settings = [(params[row].temperature, params[row].top_p, numbers[row]) for row in tempered]
        index = to_device(tempered, logits.device)
        tokens[index] = _draw(logits[index], *to_device(settings, logits.device, torch.float32).split(1, dim=1))
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].where(lowest > -torch.inf, torch.nan)
    found = torch.stack((tokens.float(), chosen)).T.tolist()  # fp32 holds tokens up to 2^24 exactly
    return [None if math.isnan(logprob) else (int(token), logprob) for token, logprob in found]


def _draw(logits: Tensor, temperature: Tensor, top_p: Tensor, number: Tensor) -> Tensor:
    """A token for each row at a temperature above 0, [R]. logits: [R, vocab_size], the others [R, 1]."""
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = (shifted / temperature.clamp(min=_LOWEST_TEMPERATURE)).exp()
    ordered, order = weights.sort(-1, descending=True)
    # Where all tokens stay they keep the vocabulary's order, as on a CPU, where it saves sorting them.
    ordered = torch.where(top_p < 1, ordered, weights)
    order = torch.where(top_p < 1, order, torch.arange(order.shape[1], device=order.device))
    sums = ordered.cumsum(-1)
    last = (sums[:, :-1] < top_p * sums[:, -1:]).sum(-1, keepdim=True)
    total = sums.gather(1, last)
    place = (sums <= number * total).sum(-1, keepdim=True)  # no number is so high that this rounds to the total
    return order.gather(1, place)[:, 0]
