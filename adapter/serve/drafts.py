"""Drafts: guesses of a row's next tokens, from what the row has read and written before (prompt lookup)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

MAX_DRAFT = 15  # tokens
# A pass takes about the time of this many tokens, and that of its tokens. Measured, see docs/log.md.
_FIXED_COST = 4.0
# How often the token that followed equal tokens earlier is right, by the least number of equal tokens: how often
# in general, as if seen so many times, and the weight that remains of what was seen one guess earlier.
_LENGTHS = (1, 2, 3, 5, 9)
_PRIOR = (0.3, 0.4, 0.6, 0.8, 0.9)
_PRIOR_WEIGHT = 8.0
_DECAY = 0.97


class Drafter:
    """Guesses the next tokens of one row: what followed its last two tokens, or else its last one, when they last
    stood there; or, while guesses are right, what comes next there. It counts how often it has been right lately.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._followers: dict[int | tuple[int, int], int] = {}  # where what followed these stood last
        self._guess: int | None = None  # the place of the guess for the next token
        self._same = 0  # how many tokens before it equal the newest, as far as that has been counted
        self._right = [_PRIOR_WEIGHT * prior for prior in _PRIOR]
        self._seen = [_PRIOR_WEIGHT] * len(_PRIOR)
        for token in tokens:
            self._index(token)
        self._look_up()

    def append(self, token: int) -> None:
        """The row's next token, whoever has guessed it."""
        right = self._guess is not None and self._tokens[self._guess] == token
        if self._guess is not None:
            kind = bisect_right(_LENGTHS, self._same) - 1
            self._right[kind] = self._right[kind] * _DECAY + right
            self._seen[kind] = self._seen[kind] * _DECAY + 1
        self._index(token)
        if right and self._guess is not None and self._same >= 2:
            self._guess += 1
            self._same += 1
        else:
            self._look_up()

    def propose(self, limit: int, rows: int) -> list[int]:
        """At most `limit` tokens, as far as each raises the number expected for a row's share of the pass."""
        draft: list[int] = []
        if self._guess is None:
            return draft
        probability, expected, cost = 1.0, 1.0, _FIXED_COST / rows + 1
        while len(draft) < limit:
            kind = bisect_right(_LENGTHS, self._same + len(draft)) - 1
            probability *= self._right[kind] / self._seen[kind]
            if probability * cost <= expected:
                break
            expected += probability
            cost += 1
            place = self._guess + len(draft) - len(self._tokens)
            draft.append(self._tokens[place] if place < 0 else draft[place])  # a loop goes on in its own draft
        return draft

    def _index(self, token: int) -> None:
        tokens, place = self._tokens, len(self._tokens)
        if place > 0:
            self._followers[tokens[-1]] = place
        if place > 1:
            self._followers[tokens[-2], tokens[-1]] = place
        tokens.append(token)

    def _look_up(self) -> None:
        """Guess by the last two tokens, or else by the last one."""
        tokens = self._tokens
        self._guess = self._followers.get(tuple(tokens[-2:]))  # type: ignore[arg-type]
        if self._guess is None and tokens:
            self._guess = self._followers.get(tokens[-1])
        if self._guess is None:
            return
        self._same = 1
        most = min(_LENGTHS[-1], self._guess)
        while self._same < most and tokens[self._guess - 1 - self._same] == tokens[-1 - self._same]:
            self._same += 1
