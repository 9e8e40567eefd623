"""Incremental detokenisation of a streamed answer. Knows tokenizers; knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns the tokens of one answer into text: whole characters only, without stop strings.

    Text that may turn out to be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._held_back = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that `token` completes. At a stop string the text ends before it and `stopped` becomes True."""
        text = self._held_back + (self._stream.step(self._tokenizer, token) or "")
        starts = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if starts:
            self.stopped, self._held_back = True, ""
            return text[: min(starts)]
        overlaps = [n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        end = len(text) - max(overlaps, default=0)
        self._held_back = text[end:]
        return text[:end]

    def flush(self) -> str:
        """The text that is still held back when the answer ends."""
        return self._held_back
