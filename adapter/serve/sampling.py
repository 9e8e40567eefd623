"""Sampling of the next tokens of many requests at once."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapter.base.memory import to_device
from adapter.serve.form import FormState
from adapter.serve.request import SamplingParams

if TYPE_CHECKING:
    from adapter.serve.form import Allowed

_ROUNDING = 2.0**-24  # of fp32, relative
_NOT_FINITE = "the logits are not finite"
_NO_TOKENS = np.empty(0, np.int64)
_LOWEST_TEMPERATURE = 1e-30  # at which the likeliest token is sampled as at 0


class Ranked(NamedTuple):
    """A token's log-probability among all that it was chosen from, and the likeliest of these with theirs.

    By the logits behind the penalties, the biases and the form, and before the temperature.
    """

    logprob: float
    ids: list[int]
    logprobs: list[float]


class SampledToken(NamedTuple):
    """logprob: by the model, before all that changes logits. ranked: if the request asks for it."""

    token: int
    logprob: float
    ranked: Ranked | None = None


Sampled = SampledToken | Exception  # or why there is none: FloatingPointError where logits are not finite
_LINE = 1024  # of a vocabulary, see _likeliest


def check_finite(logits: Tensor) -> None:
    """Raises FloatingPointError if a logit is infinite or no number: somewhere in the pass numbers overflowed."""
    if float((logits * 0).sum()) != 0:  # NaN then, in a twelfth of the time of isfinite().all()
        raise FloatingPointError(_NOT_FINITE)


class Inputs(NamedTuple):
    """What one token is sampled by, beside its logits.

    number: random, above 0 and below 1, exact in fp32. allowed: of the form. penalised: the tokens that the
    repetition penalty is on, some twice. written: those of the answer, if another penalty is on them. top: how
    many of the likeliest tokens are asked for.
    """

    params: SamplingParams
    number: float = 0.0
    allowed: Allowed | None = None
    penalised: NDArray[np.int64] = _NO_TOKENS
    written: NDArray[np.int64] = _NO_TOKENS
    top: int = 0

    @property
    def changes(self) -> bool:
        """Whether the logits are changed one by one."""
        return bool(len(self.penalised) or len(self.written) or self.params.logit_bias)


class Sampler:
    """The parameters, the form and the random numbers of one request. Without a seed the system chooses one.

    Each token that is sampled at a temperature above 0 uses up one number. They are made on the CPU, so that a
    seed gives the same ones on every device. prompt: its token ids, for the repetition penalty; stop_ids: tokens
    without one. begun: the beginning of the answer. top: see Inputs.
    """

    def __init__(
        self,
        params: SamplingParams,
        form: FormState | None = None,
        prompt: Sequence[int] = (),
        stop_ids: Collection[int] = (),
        begun: Sequence[int] = (),
        top: int = 0,
    ) -> None:
        self.params = params if form is None else params.without_penalties()
        self.form = form
        self.top = top
        self._penalises = self.params.repetition_penalty > 1
        self._counts = bool(self.params.presence_penalty or self.params.frequency_penalty)
        shown = (*prompt, *begun) if self._penalises else ()
        self._penalised = array("q", (i for i in shown if i not in stop_ids))
        self._written = array("q", begun if self._counts else ())
        self._random = random.Random(params.seed)
        self._numbers: list[float] = []  # drawn and not yet used up

    def inputs(self, drafts: Sequence[int] = ()) -> Inputs:
        """Of the token behind these drafts. Those of a form are valid until the next call, and without drafts."""
        number, penalised, written = 0.0, _NO_TOKENS, _NO_TOKENS
        if self.params.temperature > 0:
            self._draw_numbers(len(drafts) + 1)
            number = self._numbers[len(drafts)]
        if self._penalises:
            penalised = np.array(self._penalised + array("q", drafts))
        if self._counts:
            written = np.array(self._written + array("q", drafts))
        allowed = None if self.form is None else self.form.allowed()
        return Inputs(self.params, number, allowed, penalised, written, self.top)

    def accept(self, token: int) -> None:
        """The request's next token. Raises BadInput if the form cannot go on behind it."""
        if self.form is not None:
            self.form.accept(token)
        if self._penalises:
            self._penalised.append(token)
        if self._counts:
            self._written.append(token)

    def use(self, tokens: int) -> None:
        """Use up the random numbers of so many tokens."""
        if self.params.temperature > 0:
            self._draw_numbers(tokens)
            del self._numbers[:tokens]

    def _draw_numbers(self, count: int) -> None:
        while len(self._numbers) < count:
            self._numbers.append((2 * self._random.getrandbits(23) + 1) * 2.0**-24)


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
    its tokens; the one that completes it is the last. What went wrong with a token stands in its place and ends
    the request's list. Elsewhere than on a CPU a request with a form gets one token.
    """
    drafts = [()] * len(samplers) if drafts is None else drafts
    logits, on_cpu = logits.float(), _is_on_cpu(logits)
    places = [
        (sampler, guesses[:count])
        for sampler, guesses in zip(samplers, drafts, strict=True)
        for count in range(1 + len(guesses))
    ]
    on_device = [] if on_cpu else _sample_each_on_device(logits, places)
    found: list[list[Sampled]] = []
    first = 0
    for sampler, guesses in zip(samplers, drafts, strict=True):
        tokens: list[Sampled] = []
        for row, guess in enumerate((*guesses, None), start=first):
            try:
                token = _sample_on_cpu(logits[row], sampler.inputs(places[row][1])) if on_cpu else on_device[row]
                if isinstance(token, Exception):
                    raise token
                sampler.accept(token[0])
                ends = sampler.form is not None and (sampler.form.complete or not on_cpu)
            except Exception as error:  # lack of memory, too: it is this request's
                tokens.append(error)
                break
            tokens.append(token)
            if token[0] != guess or ends:
                break
        sampler.use(len(tokens))
        found.append(tokens)
        first += 1 + len(guesses)
    return found


def _is_on_cpu(logits: Tensor) -> bool:
    return logits.device.type == "cpu"


def _sample_each_on_device(logits: Tensor, places: Sequence[tuple[Sampler, Sequence[int]]]) -> list[Sampled]:
    """A token for each row of `logits`: of all at once or, if that fails, of each alone."""
    try:
        return _sample_on_device(logits, [sampler.inputs(drafts) for sampler, drafts in places])
    except Exception as error:
        if len(places) == 1:
            return [error]
        rows = zip(logits.split(1), places, strict=True)
        return [token for row, place in rows for token in _sample_each_on_device(row, [place])]


def _sample_on_cpu(row: Tensor, inputs: Inputs) -> SampledToken:
    """One token, [vocab_size] -> token. Raises FloatingPointError if a logit is not finite.

    By numpy, whose reductions take a fifth of the time of torch's and wake no other thread.
    """
    params, allowed = inputs.params, inputs.allowed
    logits = row.numpy()
    if inputs.changes:
        logits = _changed(logits, inputs)
    token = int(logits.argmax())  # the first NaN, if there is one
    if not (logits[token] < np.inf and logits.min() > -np.inf):
        raise FloatingPointError(_NOT_FINITE)
    logprobs = row.log_softmax(-1).numpy()
    if isinstance(allowed, int):
        ranked = Ranked(0.0, [allowed], [0.0]) if inputs.top else None
        return SampledToken(allowed, float(logprobs[allowed]), ranked)
    if allowed is not None and not _has(allowed, token):
        tokens = _tokens_of(allowed, len(logits))
        token = int(tokens[logits[tokens].argmax()])
    if params.temperature > 0:
        token = _draw_on_cpu(logits, logits[token], params, inputs.number, allowed)
    if not inputs.top:
        return SampledToken(token, float(logprobs[token]))
    chosen_from = torch.from_numpy(logits).log_softmax(-1).numpy() if inputs.changes else logprobs
    if allowed is None:
        ids = _likeliest(logits, inputs.top)
    else:
        tokens = _tokens_of(allowed, len(logits))
        chosen_from = chosen_from - np.logaddexp.reduce(chosen_from[tokens])
        ids = tokens[_likeliest(logits[tokens], inputs.top)]
    ranked = Ranked(float(chosen_from[token]), ids.tolist(), chosen_from[ids].tolist())
    return SampledToken(token, float(logprobs[token]), ranked)


def _likeliest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The places of the largest values, the largest first.

    Laid out in lines, the values have their largest in the columns with the largest maxima.
    """
    lines = len(values) // _LINE
    if count < _LINE and lines > 1:
        laid = values[: lines * _LINE].reshape(lines, _LINE)
        maxima = laid.max(axis=0)
        least = np.partition(maxima, -count)[-count]
        columns = np.flatnonzero(maxima >= least)
        line, column = np.nonzero(laid[:, columns] >= least)
        rest = np.flatnonzero(values[lines * _LINE :] >= least) + lines * _LINE
        places = np.append(line * _LINE + columns[column], rest)
    else:
        places = np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")][:count]


def _tokens_of(allowed: NDArray[np.uint32], size: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(allowed.view(np.uint8), count=size, bitorder="little"))


def _changed(logits: NDArray[np.float32], inputs: Inputs) -> NDArray[np.float32]:
    """A copy with the biases and the penalties, in vLLM's order."""
    params, logits = inputs.params, logits.copy()
    for token, bias in params.logit_bias:
        logits[token] += np.float32(bias)
    if len(inputs.penalised):
        values = logits[inputs.penalised]
        penalty = np.float32(params.repetition_penalty)
        logits[inputs.penalised] = np.where(values < 0, values * penalty, values / penalty)
    if len(inputs.written):
        tokens, counts = np.unique(inputs.written, return_counts=True)
        logits[tokens] -= (params.frequency_penalty * counts + params.presence_penalty).astype(np.float32)
    return logits


def _draw_on_cpu(
    logits: NDArray[np.float32],
    highest: np.float32,
    params: SamplingParams,
    number: float,
    allowed: NDArray[np.uint32] | None,
) -> int:
    """A token at a temperature above 0. highest: of the logits that are allowed."""
    temperature = np.float32(max(params.temperature, _LOWEST_TEMPERATURE))
    reach = temperature * np.float32(math.log(_ROUNDING / len(logits)))
    tokens = np.flatnonzero(logits >= highest + reach)  # the others together are lost in the rounding of fp32
    if allowed is not None:
        tokens = tokens[_has(allowed, tokens)]
    weights = np.exp((logits[tokens] - highest) / temperature)
    if 0 < params.top_k < len(weights):
        likeliest = weights >= np.partition(weights, -params.top_k)[-params.top_k]
        tokens, weights = tokens[likeliest], weights[likeliest]
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
    return int(tokens[np.searchsorted(sums, number * sums[last], side="right")])


def _has(bits: NDArray[np.uint32], tokens: Any) -> Any:
    """Whether the bits of a token or of an array of tokens are set."""
    return bits[tokens >> 5] >> (tokens & 31) & 1 != 0


def _sample_on_device(logits: Tensor, inputs: Sequence[Inputs]) -> list[Sampled]:
    """As _sample_on_cpu, for all rows of `logits`, [N, vocab_size]. Waits for the device once, at its end."""
    lowest, logprobs = logits.amin(-1), logits.log_softmax(-1)  # all NaN where a logit is NaN or +inf
    if any(one.changes for one in inputs):
        logits = _changed_on_device(logits, inputs)
    if any(one.allowed is not None for one in inputs):
        logits = _masked(logits, [one.allowed for one in inputs])
    tokens = logits.argmax(-1)
    if tempered := [row for row, one in enumerate(inputs) if one.params.temperature > 0]:
        size = logits.shape[1]
        settings = [
            (p.temperature, p.top_p, p.min_p, min(p.top_k or size, size), number)  # sizes are exact in fp32
            for p, number, *_ in (inputs[row] for row in tempered)
        ]
        index = to_device(tempered, logits.device)
        tokens[index] = _draw(logits[index], *to_device(settings, logits.device, torch.float32).split(1, dim=1))
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].where(lowest > -torch.inf, torch.nan)
    columns = [tokens.float()[:, None], chosen[:, None]]  # fp32 holds tokens up to 2^24 exactly
    if most := min(max(one.top for one in inputs), logits.shape[1]):
        chosen_from = logits.log_softmax(-1)
        top = chosen_from.topk(most)
        columns += [chosen_from.gather(1, tokens[:, None]), top.indices.float(), top.values]
    found: list[Sampled] = []
    for one, (token, logprob, *rest) in zip(inputs, torch.cat(columns, dim=1).tolist(), strict=True):
        ranked = None
        if one.top:
            ids, values = rest[1:][: one.top], rest[1 + most :][: one.top]
            count = sum(value > -math.inf for value in values)
            ranked = Ranked(rest[0], [int(i) for i in ids[:count]], values[:count])
        sampled = SampledToken(int(token), logprob, ranked)
        found.append(FloatingPointError(_NOT_FINITE) if math.isnan(logprob) else sampled)
    return found


def _changed_on_device(logits: Tensor, inputs: Sequence[Inputs]) -> Tensor:
    """As _changed, of all rows of `logits`, [N, vocab_size]."""
    width, device = logits.shape[1], logits.device
    found = logits.flatten().clone()

    def add(values: list[tuple[int, float]]) -> None:
        if values:
            index, numbers = zip(*values, strict=True)
            found.index_add_(0, to_device(index, device), to_device(numbers, device, torch.float32))

    add([(row * width + i, bias) for row, one in enumerate(inputs) for i, bias in one.params.logit_bias])
    places = np.concatenate([row * width + one.penalised for row, one in enumerate(inputs)])
    index = to_device(places.tolist(), device, torch.int64)
    penalties = [one.params.repetition_penalty for one in inputs]
    penalty = to_device(penalties, device, torch.float32)[index // width]
    values = found[index]
    found[index] = torch.where(values < 0, values * penalty, values / penalty)
    counted = []
    for row, one in enumerate(inputs):
        for i, count in zip(*np.unique(one.written, return_counts=True), strict=True):
            penalty_of = one.params.frequency_penalty * count + one.params.presence_penalty
            counted.append((row * width + int(i), -penalty_of))
    add(counted)
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
