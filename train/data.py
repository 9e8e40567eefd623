"""Examples and the batches made of them: template, tokens, labels, grouping by length. Knows no models."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapter.chat import Message, encode_answer, encode_prompt
from adapter.vision import VisualFeatures

IGNORED = -100
_GROUP = 16  # batches that are sorted by length together


@dataclass(frozen=True)
class Example:
    """A conversation that ends in the user's turn, the answer to learn, and what the user showed, encoded."""

    messages: tuple[Message, ...]
    answer: str
    features: VisualFeatures | None = None  # of one picture


@dataclass(frozen=True)
class Batch:
    """input_ids, labels: [B, T], padded at the end; labels are -100 before the answer and in the padding.

    features: of the pictures in this batch, in order; rows: [B] index among [no picture, picture 0, ...], and
    None if all rows have a picture or none has.
    """

    input_ids: Tensor
    labels: Tensor
    features: VisualFeatures | None
    rows: Tensor | None

    tokens: int  # without padding


def tokenise(example: Example, tokenizer: Any, template: str, max_length: int) -> tuple[list[int], list[int]]:
    """(ids, labels) of one example, cut at `max_length`."""
    prompt = encode_prompt(tokenizer, example.messages, template)
    answer = encode_answer(tokenizer, example.answer)
    ids = (prompt + answer)[:max_length]
    labels = ([IGNORED] * len(prompt) + answer)[:max_length]
    return ids, labels


def batches(
    examples: Iterable[Example],
    tokenizer: Any,
    template: str,
    batch_size: int,
    max_length: int,
    rng: random.Random | None = None,
) -> Iterator[Batch]:
    """Batches of rows of similar length. Examples without a supervised token left are passed over.

    rng: shuffles the order of batches within each group; without it the order is by length.
    """
    source = iter(examples)
    while group := list(itertools.islice(source, batch_size * (_GROUP if rng else 10**6))):
        rows = [(*tokenise(e, tokenizer, template, max_length), e.features) for e in group]
        # A row cut within its prompt has no label, and a mean over none is where NaNs come from.
        rows = [row for row in rows if any(label != IGNORED for label in row[1])]
        rows.sort(key=lambda row: len(row[0]))
        chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        if rng:
            rng.shuffle(chunks)
        for chunk in chunks:
            yield _collate(chunk, tokenizer.pad_token_id or 0)


def gathered(features: Sequence[VisualFeatures | None]) -> tuple[VisualFeatures | None, Tensor | None]:
    """The pictures of several rows as one, and `rows` as in Batch."""
    shown = [f for f in features if f is not None]
    if not shown:
        return None, None
    counter = itertools.count(1)
    rows = torch.tensor([0 if f is None else next(counter) for f in features])
    return VisualFeatures.cat(shown), rows if len(shown) < len(features) else None


def _collate(rows: list[tuple[list[int], list[int], VisualFeatures | None]], pad: int) -> Batch:
    length = max(len(ids) for ids, _, _ in rows)
    input_ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _, _ in rows])
    labels = torch.tensor([lab + [IGNORED] * (length - len(lab)) for _, lab, _ in rows])
    features, index = gathered([f for _, _, f in rows])
    return Batch(
        input_ids,
        labels,
        features,
        index,
        sum(len(ids) for ids, _, _ in rows),
    )
