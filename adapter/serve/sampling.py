"""Sampling of the next tokens of many requests at once. Knows logits; knows nothing of text or models."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapter.errors import AdapterError
from adapter.serve.device import to_device
from adapter.serve.form import FormState
from adapter.serve.settings import Settings

if TYPE_CHECKING:
    from adapter.serve.form import Allowed

_DEFAULTS = Settings()
_ROUNDING = 2.0**-24  # of fp32, relative
_LOWEST_TEMPERATURE = 1e-30  # at which the likeliest token is sampled as at 0

SampledToken = tuple[int, float]  # a token, and its log-probability by the model: before all that changes logits
# Or why there is none: None where the logits are not finite, and what the row's form raised.
Sampled = SampledToken | AdapterError | None


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled. Ranges and defaults are those of Settings; raises BadInput when out of range.

    In the order in which they apply, each as in transformers and vLLM:
    repetition_penalty: the logits of tokens that the prompt or the answer has are divided by it, or multiplied
    where they are negative. An answer that is held to a form has none: its marks and the words that it copies have
    to come again.
    temperature: 0 takes the likeliest token, whatever follows. top_k: only the k likeliest tokens, and those as
    likely as the k-th. top_p: only the fewest of these that together are as likely as that. min_p: only tokens
    that are at least so many times as likely as the likeliest.
    """

    temperature: float = _DEFAULTS.temperature
    top_p: float = _DEFAULTS.top_p
    max_new_tokens: int = _DEFAULTS.max_tokens
    seed: int | None = None
    top_k: int = _DEFAULTS.top_k
    min_p: float = _DEFAULTS.min_p
    repetition_penalty: float = _DEFAULTS.repetition_penalty

    def __post_init__(self) -> None:
        names = {"temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty"}
        Settings.checked({"max_tokens": self.max_new_tokens, **{name: getattr(self, name) for name in names}})


def check_finite(logits: Tensor) -> None:
    """Raises FloatingPointError if a logit is infinite or no number: somewhere in the pass numbers overflowed."""
    if float((logits * 0).sum()) != 0:  # NaN then, in a twelfth of the time of isfinite().all()
        raise FloatingPointError("the logits are not finite")


class Sampler:
    """The parameters, the form and the random numbers of one request. Without a seed the system chooses one.

    Each token that is sampled at a temperature above 0 uses up one number. They are made on the CPU, so that a
    seed gives the same ones on every device. prompt: its token ids, for the repetition penalty.
    """

    def __init__(self, params: SamplingParams, form: FormState | None = None, prompt: Sequence[int] = ()) -> None:
        self.params = params if form is None else replace(params, repetition_penalty=1.0)
        self.form = form
        self._penalised = array("q", prompt if self.params.repetition_penalty > 1 else ())
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

    def penalised(self, drafts: Sequence[int] = ()) -> NDArray[np.int64]:
        """The tokens that the penalty is on if these drafts follow, some twice; empty without a penalty."""
        if self.params.repetition_penalty == 1:
            return np.empty(0, np.int64)
        return np.array(self._penalised + array("q", drafts))

    def append(self, token: int) -> None:
        """The request's next token."""
        if self.params.repetition_penalty > 1:
            self._penalised.append(token)


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
    penalised: list[NDArray[np.int64]] = []
    for sampler, guesses in zip(samplers, drafts, strict=True):
        params += [sampler.params] * (1 + len(guesses))
        numbers += sampler.peek(1 + len(guesses))
        penalised += [sampler.penalised(guesses[:i]) for i in range(1 + len(guesses))]
    forms = [s.form for s, guesses in zip(samplers, drafts, strict=True) for _ in range(1 + len(guesses))]
    on_cpu = logits.device.type == "cpu"
    token_of = _by_row(logits.float(), params, numbers, forms, penalised)
    found: list[list[Sampled]] = []
    row = 0
    for sampler, guesses in zip(samplers, drafts, strict=True):
        tokens: list[Sampled] = []
        for i, guess in enumerate((*guesses, None), start=row):
            tokens.append(token := token_of(i))
            if not isinstance(token, tuple):
                break
            sampler.append(token[0])
            if token[0] != guess:
                break
            if sampler.form is not None and (sampler.form.complete or not on_cpu):
                break
        sampler.use(len(tokens))
        found.append(tokens)
        row += 1 + len(guesses)
    return found


def _by_row(
    logits: Tensor,
    params: Sequence[SamplingParams],
    numbers: Sequence[float],
    forms: Sequence[FormState | None],
    penalised: Sequence[NDArray[np.int64]],
) -> Callable[[int], Sampled]:
    """The token of the i-th row: on a CPU it is sampled when it is asked for, elsewhere all are at once."""
    if logits.device.type == "cpu":
        return lambda i: _accepted(
            forms[i],
            lambda: _sample_on_cpu(logits[i], params[i], numbers[i], _allowed(forms[i]), penalised[i]),
        )
    allowed: list[Allowed | None] = [None] * len(forms)
    failed: dict[int, AdapterError] = {}
    for i, form in enumerate(forms):
        try:
            allowed[i] = _allowed(form)
        except AdapterError as error:
            failed[i] = error
    tokens = _sample_on_device(logits, params, numbers, allowed, penalised)
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
    row: Tensor,
    params: SamplingParams,
    number: float,
    allowed: Allowed | None = None,
    penalised: NDArray[np.int64] | None = None,
) -> SampledToken | None:
    """One token, [vocab_size] -> token, by a random number between 0 and 1; None if a logit is not finite.

    By numpy, whose reductions take a fifth of the time of torch's and wake no other thread.
    """
    logits = row.numpy()
    if penalised is not None and len(penalised):
        logits = logits.copy()
        logits[penalised] = _penalise(logits[penalised], params.repetition_penalty)
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
        if 0 < params.top_k < len(weights):
            kept = weights >= np.partition(weights, -params.top_k)[-params.top_k]
            tokens, weights = tokens[kept], weights[kept]
        total = float(weights.sum())
        reached = params.top_p * total
        if params.top_p < 1 or 0 < params.top_k < len(logits) or params.min_p > 0:
            # Lighter ones together weigh less than top-p leaves out, so that they need not be sorted.
            least = max((1 - params.top_p) * total / len(weights), params.min_p)
            heavy = np.flatnonzero(weights >= least)
            order = heavy[np.argsort(-weights[heavy])]
            tokens, weights = tokens[order], weights[order]
        sums = weights.cumsum(dtype=np.float64)
        last = np.searchsorted(sums[:-1], reached)
        token = int(tokens[np.searchsorted(sums, number * sums[last], side="right")])
    return token, float(row.log_softmax(-1)[token])


def _penalise(logits: NDArray[np.float32], penalty: float) -> NDArray[np.float32]:
    return np.where(logits < 0, logits * np.float32(penalty), logits / np.float32(penalty))


def _has(bits: NDArray[np.uint32], tokens: Any) -> Any:
    """Whether the bits of a token or of an array of tokens are set."""
    return bits[tokens >> 5] >> (tokens & 31) & 1 != 0


def _sample_on_device(
    logits: Tensor,
    params: Sequence[SamplingParams],
    numbers: Sequence[float],
    allowed: Sequence[Allowed | None] | None = None,
    penalised: Sequence[NDArray[np.int64]] = (),
) -> list[SampledToken | None]:
    """As _sample_on_cpu, for all rows of `logits`, [N, vocab_size]. Waits for the device once, at its end."""
    lowest, logprobs = logits.amin(-1), logits.log_softmax(-1)  # all NaN where a logit is NaN or +inf
    if any(map(len, penalised)):
        logits = _penalise_on_device(logits, params, penalised)
    if allowed is not None and any(a is not None for a in allowed):
        logits = _masked(logits, allowed)
    tokens = logits.argmax(-1)
    if tempered := [row for row, p in enumerate(params) if p.temperature > 0]:
        size = logits.shape[1]
        settings = [
            (p.temperature, p.top_p, p.min_p, min(p.top_k or size, size), numbers[row])  # sizes are exact in fp32
            for row, p in ((row, params[row]) for row in tempered)
        ]
        index = to_device(tempered, logits.device)
        tokens[index] = _draw(logits[index], *to_device(settings, logits.device, torch.float32).split(1, dim=1))
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].where(lowest > -torch.inf, torch.nan)
    found = torch.stack((tokens.float(), chosen)).T.tolist()  # fp32 holds tokens up to 2^24 exactly
    return [None if math.isnan(logprob) else (int(token), logprob) for token, logprob in found]


def _penalise_on_device(
    logits: Tensor, params: Sequence[SamplingParams], penalised: Sequence[NDArray[np.int64]]
) -> Tensor:
    """A copy of the logits, [N, vocab_size], with each row's penalty on its tokens."""
    width = logits.shape[1]
    places = np.concatenate([row * width + tokens for row, tokens in enumerate(penalised)])
    index = to_device(places.tolist(), logits.device)
    penalty = to_device([p.repetition_penalty for p in params], logits.device, torch.float32)[index // width]
    found = logits.flatten().clone()
    values = found[index]
    found[index] = torch.where(values < 0, values * penalty, values / penalty)
    return found.view_as(logits)


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


def _draw(
    logits: Tensor, temperature: Tensor, top_p: Tensor, min_p: Tensor, top_k: Tensor, number: Tensor
) -> Tensor:
    """A token for each row at a temperature above 0, [R]. logits: [R, vocab_size], the others [R, 1]."""
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = (shifted / temperature.clamp(min=_LOWEST_TEMPERATURE)).exp()
    ordered, order = weights.sort(-1, descending=True)
    end = order.shape[1] - 1  # the last place; a row that is not finite keeps it
    kth = end - (ordered < ordered.gather(1, top_k.long() - 1)).sum(-1, keepdim=True)
    # Where all tokens stay they keep the vocabulary's order, as on a CPU, where it saves sorting them.
    filtered = (top_p < 1) | (top_k <= end) | (min_p > 0)
    ordered = torch.where(filtered, ordered, weights)
    order = torch.where(filtered, order, torch.arange(order.shape[1], device=order.device))
    sums = ordered.cumsum(-1)
    last = (sums[:, :-1] < top_p * sums.gather(1, kth)).sum(-1, keepdim=True)
    last = last.minimum(end - (ordered < min_p).sum(-1, keepdim=True))
    total = sums.gather(1, last)
    place = (sums <= number * total).sum(-1, keepdim=True)  # no number is so high that this rounds to the total
    return order.gather(1, place)[:, 0]
