"""Incremental detokenisation of a streamed answer."""

import re
from collections.abc import Sequence
from typing import Any

from adapter.serve.request import TokenLogprob

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are not, or not yet, a character


class TokenTexts:
    """The texts of single tokens as they stand after others, control tokens by their names. Thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if (text := self._texts.get(token)) is None:
            # Some decoders take the first token's space away.
            once, twice = (self._tokenizer.decode([token] * n, skip_special_tokens=False) for n in (1, 2))
            text = self._texts[token] = twice[len(once) :] if twice.startswith(once) else once
        return text

    def logprob(self, token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token, self(token), logprob)


class Detokenizer:
    """The text of one answer's tokens: whole characters only, without stop strings. All texts together are what
    the tokenizer decodes from all tokens at once; what may begin a stop string is held back until that is
    decided. before: tokens of the text that the answer continues.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._stop = stop
        # A decoder may treat the first token of a text differently, so the pending tokens are decoded after those
        # decoded before. Not tokenizers' DecodeStream: it fails where later bytes change what earlier ones gave.
        self._decoded = list(before[-64:])
        self._pending: list[int] = []
        self._held_back = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that `token` completes. At a stop string the text ends before it and `stopped` becomes True."""
        piece = self._tokenizer.id_to_token(token)
        if self.stopped or piece is None or token in self._special:
            return ""
        self._pending.append(token)
        # Byte fallback decodes a run of bytes as a whole: one that does not fit breaks the characters before it.
        text = self._decode_pending()
        stops = any(stop in self._held_back + text for stop in self._stop)
        if text.endswith(_BROKEN) or (_BYTE_TOKEN.fullmatch(piece) and not stops):
            return ""
        self._decoded, self._pending = self._pending, []
        return self._without_stop(text)

    def flush(self) -> str:
        """The text that is still held back when the answer ends, without half a character at its end."""
        while self._pending and not self._decode_pending().rstrip(_BROKEN):  # one half breaks a whole run of bytes
            self._pending.pop()
        text = "" if self.stopped else self._without_stop(self._decode_pending().rstrip(_BROKEN))
        text, self._held_back, self._pending = text + self._held_back, "", []
        return text

    def _decode_pending(self) -> str:
        before = self._tokenizer.decode(self._decoded, skip_special_tokens=True)
        return self._tokenizer.decode(self._decoded + self._pending, skip_special_tokens=True)[len(before) :]

    def _without_stop(self, new: str) -> str:
        """The text up to a stop string, or up to what may be the beginning of one."""
        text = self._held_back + new
        starts = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if starts:
            self.stopped, self._held_back = True, ""
            return text[: min(starts)]
        overlaps = [n for s in self._stop for n in range(1, len(s[: len(text) + 1])) if text.endswith(s[:n])]
        end = len(text) - max(overlaps, default=0)
        self._held_back = text[end:]
        return text[:end]
