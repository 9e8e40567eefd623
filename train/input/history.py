"""Earlier exchanges before an example, so that an adapter works when it is chosen in mid-conversation.

An adapter that was only trained on first turns falls back into the style of the earlier answers. The exchanges in
history.tsv have many styles on purpose, those of the shipped adapters among them; their answers carry no loss.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from adapter.base.template import Message


def sample_history(rng: random.Random, use: str = "train") -> tuple[Message, ...]:
    """One or two exchanges of those for `use`: "train", or "score" for those that no adapter was trained on."""
    chosen = rng.sample(_exchanges(use), rng.choice((1, 1, 2)))
    return tuple(message for exchange in chosen for message in exchange)


def with_unseen_history(conversations: Sequence[tuple[Message, ...]]) -> list[tuple[Message, ...]]:
    """Each conversation after earlier exchanges, for scores: always the same ones, none of them from training."""
    rng = random.Random(0)
    return [(*sample_history(rng, "score"), *conversation) for conversation in conversations]


@cache
def _exchanges(use: str) -> list[tuple[Message, Message]]:
    with open(Path(__file__).with_name("history.tsv"), encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            # A line break is written as \n, as a row is one line.
            (Message("user", row["user"]), Message("assistant", row["assistant"].replace("\\n", "\n")))
            for row in rows
            if row["use"] == use
        ]
