"""Sampling of the next tokens of many requests at once: on the CPU, by numpy, which wakes no other thread."""

import math
import random
from array import array
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapter.serve.form import FormState
from adapter.serve.request import SamplingParams

_ROUNDING = 2.0**-24  # of fp32, relative
_OVERFLOW = "the logits are not finite, or all equal"
_LOWEST_TEMPERATURE = 1e-30  # at which the likeliest token is sampled as at 0
_LINE = 1024  # width of the table that _likeliest arranges the logits in


class SampledToken(NamedTuple):
    """ranked: if asked for, the token and then the likeliest of all that it was chosen from, with their
    log-probabilities by the logits after penalties, biases and form, before the temperature.
    """

    token: int
    logprob: float  # by the model, before all that changes logits
    ranked: list[tuple[int, float]] | None = None


Sampled = SampledToken | Exception  # or why there is none: FloatingPointError where logits are not finite


def check_finite(logits: Tensor) -> None:
    """Raises FloatingPointError if a logit is infinite or no number: somewhere in the pass numbers overflowed."""
    if float((logits * 0).sum()) != 0:  # NaN then, in a twelfth of the time of isfinite().all()
        raise FloatingPointError(_OVERFLOW)


class Sampler:
    """Draws one request's tokens, with one random number each. begun: tokens that its answer starts with, whose
    random numbers are skipped; stop_ids: exempt from the repetition penalty; top: likeliest tokens asked for.
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
        if form is not None:
            params = replace(params, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
        self.params, self.form, self.top = params, form, top
        self._penalises = params.repetition_penalty > 1
        self._counts = bool(params.presence_penalty or params.frequency_penalty)
        shown = (*prompt, *begun) if self._penalises else ()
        self._penalised = array("q", (i for i in shown if i not in stop_ids))
        self._written = array("q", begun if self._counts else ())
        seed = params.seed  # Random takes -1 for 1
        self._random = random.Random(seed + 2**64 if seed is not None and seed < 0 else seed)
        for _ in begun:
            self._next_number()

    def sample(self, row: Tensor) -> SampledToken:
        """The next token, [vocab_size] -> token. Raises FloatingPointError if a logit is not finite, or if
        all are equal: a norm whose squares overflow gives zeros.
        """
        number, logits = self._next_number(), row.numpy()
        token = int(logits.argmax())  # the first NaN, if there is one
        if not -np.inf < logits.min() < logits[token] < np.inf:
            raise FloatingPointError(_OVERFLOW)
        changes = self._penalises or self._counts or bool(self.params.logit_bias)
        if changes:
            logits = self._changed(logits)
            token = int(logits.argmax())
        logprobs = row.log_softmax(-1).numpy()
        allowed = None if self.form is None else self.form.allowed()
        if isinstance(allowed, int):
            return SampledToken(allowed, float(logprobs[allowed]), [(allowed, 0.0)] * 2 if self.top else None)
        if allowed is not None and not _has(allowed, token):
            tokens = _tokens_of(allowed, len(logits))
            token = int(tokens[logits[tokens].argmax()])
        if self.params.temperature > 0:
            token = self._draw(logits, logits[token], number, allowed)
        if not self.top:
            return SampledToken(token, float(logprobs[token]))
        chosen_from = torch.from_numpy(logits).log_softmax(-1).numpy() if changes else logprobs
        if allowed is None:
            ids = _likeliest(logits, self.top)
        else:
            tokens = _tokens_of(allowed, len(logits))
            chosen_from = chosen_from - np.logaddexp.reduce(chosen_from[tokens])
            ids = tokens[_likeliest(logits[tokens], self.top)]
        ranked = [(int(one), float(chosen_from[one])) for one in (token, *ids)]
        return SampledToken(token, float(logprobs[token]), ranked)

    def accept(self, token: int) -> None:
        """The request's next token. Raises BadInput if the form cannot go on after it."""
        if self.form is not None and not self.form.complete:  # after it comes an end token
            self.form.accept(token)
        if self._penalises:
            self._penalised.append(token)
        if self._counts:
            self._written.append(token)

    def _next_number(self) -> float:
        """Above 0 and below 1, exact in fp32."""
        return (2 * self._random.getrandbits(23) + 1) * 2.0**-24

    def _draw(self, logits: NDArray[np.float32], highest: np.float32, number: float, allowed: Any) -> int:
        """A token at a temperature above 0. highest: of the logits that are allowed."""
        params = self.params
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
            heavy = np.flatnonzero(weights >= max((1 - params.top_p) * total / len(weights), params.min_p))
            order = heavy[np.argsort(-weights[heavy])]
            tokens, weights = tokens[order], weights[order]
        sums = weights.cumsum(dtype=np.float64)
        last = np.searchsorted(sums[:-1], reached)
        return int(tokens[np.searchsorted(sums, number * sums[last], side="right")])

    def _changed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy with the biases and the penalties, in vLLM's order."""
        params, logits = self.params, logits.copy()
        for token, bias in params.logit_bias:
            logits[token] += np.float32(bias)
        if self._penalised:
            penalised, penalty = np.array(self._penalised), np.float32(params.repetition_penalty)
            values = logits[penalised]
            logits[penalised] = np.where(values < 0, values * penalty, values / penalty)
        if self._written:
            tokens, counts = np.unique(np.array(self._written), return_counts=True)
            penalties = params.frequency_penalty * counts + params.presence_penalty
            logits[tokens] -= penalties.astype(np.float32)
        return logits


def sample(
    logits: Tensor, samplers: Sequence[Sampler], drafts: Sequence[Sequence[int]] | None = None
) -> list[list[Sampled]]:
    """The next tokens of several independent requests, as if one token at a time.

    logits: [N, vocab_size], for each request in order one row, or 1 + len(drafts[i]): each but the first after
    one more of the draft's guesses. Returns for each its new tokens, which its form has accepted: one, and
    another for each guess that equals the token sampled in its place. A failure stands in place of a token and
    ends the list.
    """
    logits = logits.float().cpu()
    found: list[list[Sampled]] = []
    first = 0
    for sampler, guesses in zip(samplers, drafts or [()] * len(samplers), strict=True):
        tokens: list[Sampled] = []
        for row, guess in enumerate((*guesses, None), start=first):
            try:
                token = sampler.sample(logits[row])
                sampler.accept(token.token)
                ends = sampler.form is not None and sampler.form.complete
            except Exception as error:  # lack of memory, too: it is this request's
                tokens.append(error)
                break
            tokens.append(token)
            if token.token != guess or ends:
                break
        found.append(tokens)
        first += 1 + len(guesses)
    return found


def _likeliest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest values, largest first. Values below the count-th column maximum are cut."""
    lines = len(values) // _LINE
    if count < _LINE and lines > 1:
        maxima = values[: lines * _LINE].reshape(lines, _LINE).max(axis=0)
        places = np.flatnonzero(values >= np.partition(maxima, -count)[-count])
    else:
        places = np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")][:count]


def _tokens_of(allowed: NDArray[np.uint32], size: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(allowed.view(np.uint8), count=size, bitorder="little"))


def _has(bits: NDArray[np.uint32], tokens: Any) -> Any:
    """Whether the bits of a token or of an array of tokens are set."""
    return bits[tokens >> 5] >> (tokens & 31) & 1 != 0
