"""Rows: examples as tokens and labels."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from adapter.base.template import Message, encode_conversation
from adapter.errors import BadInput
from train.input.examples import Example, SkippedExamples

IGNORED = -100


class TokenisedRow(NamedTuple):
    """A tokenised example; labels are -100 where there is no loss."""

    ids: list[int]
    labels: list[int]
    example: Example


class Tokeniser:
    """Turns examples into rows, truncated at `max_length` tokens."""

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        max_length: int,
        skipped: SkippedExamples | None = None,
        vocab_size: float = float("inf"),
    ) -> None:
        """vocab_size: of the base, where its tokenizer may have tokens that the base does not embed."""
        self.tokenizer, self.template, self._max_length = tokenizer, template, max_length
        self._skipped, self._vocab_size = skipped or SkippedExamples(), vocab_size

    def rows(self, examples: Iterable[Example | None]) -> list[TokenisedRow]:
        """Rows of all examples that have a label left, shortest first."""
        rows = []
        for example in examples:
            if example is None:
                continue
            try:
                row = self.row(example)
            except BadInput as error:
                self._skipped.add(example.where, f"{example.where or 'an example'}: {error}")
                continue
            # A row that is truncated within its prompt has no label, and a mean over no labels is NaN.
            if any(label != IGNORED for label in row.labels[1:]):
                rows.append(row)
            elif example.where:
                self._skipped.add(
                    example.where, f"{example.where}: no token to learn is left within {self._max_length} tokens"
                )
        return sorted(rows, key=lambda row: len(row.ids))

    def row(self, example: Example, truncate: bool = True) -> TokenisedRow:
        """Tokens and labels of one example. Raises BadInput if its messages cannot be templated or embedded."""
        messages = (*example.history, *example.messages, Message("assistant", example.answer))
        all_turns = example.all_turns and not example.history
        ids, supervised = encode_conversation(
            self.tokenizer, messages, self.template, all_turns, example.unlearnt, self._max_length
        )
        if example.history and len(ids) > self._max_length:
            return self.row(replace(example, history=()), truncate)
        if max(ids[: self._max_length], default=0) >= self._vocab_size:
            raise BadInput("it holds a token that this base does not have")
        labels = [token if has_loss else IGNORED for token, has_loss in zip(ids, supervised, strict=True)]
        end = self._max_length if truncate else None
        return TokenisedRow(ids[:end], labels[:end], example)


def num_supervised(rows: Sequence[TokenisedRow]) -> int:
    """Positions with loss; a row's first token is not predicted."""
    return sum(label != IGNORED for row in rows for label in row.labels[1:])
