"""Perplexity of plain text, and the text that forgetting is measured on."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Sequence

from adapter.base.llama import Base
from train.evaluate.answerer import Answerer
from train.input.rows import IGNORED

WINDOW = 256  # tokens that are read together
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
# Of Python's language reference.
_UNRELATED_TOPICS = (
    "assignment", "class", "conversions", "dynamic-features", "exceptions", "execmodel", "import", "try",
)  # fmt: skip


def unrelated_text() -> str:
    """Prose that no adapter here was trained on and that needs no download."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in _UNRELATED_TOPICS if name in topics)


def text_windows(base: Base, text: str) -> list[list[int]]:
    """A text's tokens in windows of at most WINDOW, each after the token that the tokenizer begins texts with."""
    tokenizer = base.tokenizer
    begin = list(tokenizer("").input_ids)
    begin = begin[:1] if begin[:1] == [tokenizer.bos_token_id] else []
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    size = min(WINDOW, base.context_length) - len(begin)
    windows = [begin + ids[start : start + size] for start in range(0, len(ids), size)]
    return [window for window in windows if len(window) > 1]


def window_losses(answerer: Answerer, windows: Sequence[Sequence[int]]) -> tuple[list[float], list[int]]:
    """The summed loss of each window in nats, read on its own, and how many tokens it is the loss of."""
    labels = [[IGNORED, *window[1:]] for window in windows]
    scores = answerer.token_scores(windows, labels)
    return [-float(s.logprobs.sum()) for s in scores], [len(s.logprobs) for s in scores]
