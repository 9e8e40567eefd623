"""Sampling of the next tokens of many requests at once. Knows logits; knows nothing of text or models."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapter.errors import AdapterError
from adapter.serve.device import to_device
from adapter.serve.form import Allowed, FormState
from adapter.serve.settings import Settings

_DEFAULTS = Settings()
_ROUNDING = 2.0**-24  # of fp32, relative
_LOWEST_TEMPERATURE = 1e-30  # at which the likeliest token is sampled as at 0

SampledToken = tuple[int, float]  # a token, and its log-probability before form, temperature and top-p
# Or why there is none: None where the logits are not finite, and what the row's form raised.
Sampled = SampledToken | AdapterError | None


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
    """The parameters, the form and the random numbers of one request. Without a seed the system chooses one.

    Each token that is sampled at a temperature above 0 uses up one number. They are made on the CPU, so that a
    seed gives the same ones on every device.
    """

    def __init__(self, params: SamplingParams, form: FormState | None = None) -> None:
        self.params = params
        self.form = form
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
) -> list[list[Sampled]]:
    """Sample the next tokens of several requests, on the device of `logits` and with one transfer to the host.

    logits: [N, vocab_size], for each request in order one row, or 1 + len(drafts[i]) consecutive ones. Drafts are
    guesses of the request's next tokens: the row of the first token comes first, and each other row was computed
    behind one more draft.
    Returns for each request its new tokens in order: one, and another for each draft that equals the token sampled
    in its place. Later rows are worth nothing, and no random number is used for them: tokens, log-probabilities
    and later random numbers are those that sampling one token at a time gives. A request's tokens do not depend on
    the other requests; on a CPU neither do the bits of their log-probabilities. The request's form has accepted
    its tokens; the one that completes it is the last. None stands where logits are not finite, an AdapterError
    where the form has failed, and either ends the list. Elsewhere than on a CPU a request with a form gets one.
    """
    drafts = [()] * len(samplers) if drafts is None else drafts
    params: list[SamplingParams] = []
    numbers: list[float] = []
    for sampler, guesses in zip(samplers, drafts, strict=True):
        params += [sampler.params] * (1 + len(guesses))
        numbers += sampler.peek(1 + len(guesses))
    forms = [s.form for s, guesses in zip(samplers, drafts, strict=True) for _ in range(1 + len(guesses))]
    on_cpu = logits.device.type == "cpu"
    token_of = _by_row(logits.float(), params, numbers, forms)
    found: list[list[Sampled]] = []
    row = 0
    for sampler, guesses in zip(samplers, drafts, strict=True):
        tokens: list[Sampled] = []
        for i, guess in enumerate((*guesses, None), start=row):
            tokens.append(token := token_of(i))
            if not isinstance(token, tuple) or token[0] != guess:
                break
            if sampler.form is not None and (sampler.form.complete or not on_cpu):
                break
        sampler.use(len(tokens))
        found.append(tokens)
        row += 1 + len(guesses)
    return found


def _by_row(
    logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float], forms: Sequence[FormState | None]
) -> Callable[[int], Sampled]:
    """The token of the i-th row: on a CPU it is sampled when it is asked for, elsewhere all are at once."""
    if logits.device.type == "cpu":
        return lambda i: _accepted(
            forms[i], lambda: _sample_on_cpu(logits[i], params[i], numbers[i], _allowed(forms[i]))
        )
    allowed: list[Allowed | None] = [None] * len(forms)
    failed: dict[int, AdapterError] = {}
    for i, form in enumerate(forms):
        try:
            allowed[i] = _allowed(form)
        except AdapterError as error:
            failed[i] = error
    tokens = _sample_on_device(logits, params, numbers, allowed)
    return lambda i: failed[i] if i in failed else _accepted(forms[i], lambda: tokens[i])


def _allowed(form: FormState | None) -> Allowed | None:
    return None if form is None else form.allowed()


def _accepted(form: FormState | None, choose: Callable[[], SampledToken | None]) -> Sampled:
    """The token that is chosen, when the form has accepted it; or what the form raises."""
    try:
        token = choose()
        if form is not None and token is not None:
            form.accept(token[0])
        return token
    except AdapterError as error:
        return error


def _sample_on_cpu(
    row: Tensor, params: SamplingParams, number: float, allowed: Allowed | None = None
) -> SampledToken | None:
    """One token, [vocab_size] -> token, by a random number between 0 and 1; None if a logit is not finite.

    By numpy, whose reductions take a fifth of the time of torch's and wake no other thread.
    """
    logits = row.numpy()
    token = int(logits.argmax())  # the first NaN, if there is one
    if not (logits[token] < np.inf and logits.min() > -np.inf):
        return None
    if isinstance(allowed, int):
        return allowed, float(row.log_softmax(-1)[allowed])
    if allowed is not None and not _has(allowed, token):
        tokens = np.flatnonzero(np.unpackbits(allowed.view(np.uint8), count=len(logits), bitorder="little"))
        token = int(tokens[logits[tokens].argmax()])
    if params.temperature > 0:
        highest = logits[token]
        temperature = np.float32(max(params.temperature, _LOWEST_TEMPERATURE))
        reach = temperature * np.float32(math.log(_ROUNDING / len(logits)))
        tokens = np.flatnonzero(logits >= highest + reach)  # the others together are lost in the rounding of fp32
        if allowed is not None:
            tokens = tokens[_has(allowed, tokens)]
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


def _has(bits: NDArray[np.uint32], tokens: Any) -> Any:
    """Whether the bits of a token or of an array of tokens are set."""
    return bits[tokens >> 5] >> (tokens & 31) & 1 != 0


def _sample_on_device(
    logits: Tensor,
    params: Sequence[SamplingParams],
    numbers: Sequence[float],
    allowed: Sequence[Allowed | None] | None = None,
) -> list[SampledToken | None]:
    """As _sample_on_cpu, for all rows of `logits`, [N, vocab_size]. Waits for the device once, at its end."""
    lowest, logprobs = logits.amin(-1), logits.log_softmax(-1)  # all NaN where a logit is NaN or +inf
    if allowed is not None and any(a is not None for a in allowed):
        logits = _masked(logits, allowed)
    tokens = logits.argmax(-1)
    if tempered := [row for row, p in enumerate(params) if p.temperature > 0]:
        settings = [(params[row].temperature, params[row].top_p, numbers[row]) for row in tempered]
        index = to_device(tempered, logits.device)
        tokens[index] = _draw(logits[index], *to_device(settings, logits.device, torch.float32).split(1, dim=1))
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].where(lowest > -torch.inf, torch.nan)
    found = torch.stack((tokens.float(), chosen)).T.tolist()  # fp32 holds tokens up to 2^24 exactly
    return [None if math.isnan(logprob) else (int(token), logprob) for token, logprob in found]


def _masked(logits: Tensor, allowed: Sequence[Allowed | None]) -> Tensor:
    """A copy of the logits, [N, vocab_size], with -inf for the tokens that a row does not allow."""
    width = logits.shape[1]
    bits = np.full((len(allowed), (width + 31) // 32), -1, np.int32)
    for row, one in zip(bits, allowed, strict=True):
        if isinstance(one, int):
            row[:] = 0
            row.view(np.uint32)[one >> 5] = 1 << (one & 31)
        elif one is not None:
            row[:] = one.view(np.int32)
    packed = torch.from_numpy(bits)
    if logits.device.type == "cuda":
        packed = packed.pin_memory()
    packed = packed.to(logits.device, non_blocking=True)
    places = torch.arange(width, device=logits.device)
    return logits.masked_fill((packed[:, places >> 5] >> (places & 31) & 1) == 0, -torch.inf)


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
