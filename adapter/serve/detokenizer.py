"""From tokens to the text that is shown while they come. Knows tokenizers; knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """Tokens to text as it can be shown: whole characters, and nothing that may turn out to be a stop text."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that has become certain. Where a stop text is found it ends, and `stopped` is set."""
        text = self._held + (self._stream.step(self._tokenizer, token) or "")
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        lengths = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        keep = len(text) - max(lengths, default=0)
        self._held = text[keep:]
        return text[:keep]

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        return self._held
