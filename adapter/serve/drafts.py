"""Drafts: guesses of a row's next tokens, from what the row has read and written before (prompt lookup)."""

from bisect import bisect_right
from collections.abc import Iterable

MAX_DRAFT = 15  # tokens
# A pass over n tokens takes as long as n + 4 tokens at their marginal cost. Measured, see docs/log.md.
_FIXED_COST = 4.0
# Hit rate of guesses, in bins by the least number of equal tokens before a guess: the prior rate of each bin, the
# number of guesses that it counts as, and the factor by which older guesses lose weight with each new one.
_LENGTHS = (1, 2, 3, 5, 9)
_PRIOR = (0.3, 0.4, 0.6, 0.8, 0.9)
_PRIOR_WEIGHT = 8.0
_DECAY = 0.97


class Drafter:
    """Guesses a row's next tokens by prompt lookup: those that followed its last two tokens, or else its last one,
    where these last occurred. While guesses are right, it goes on from there. It tracks its recent hit rate.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._followers: dict[int | tuple[int, int], int] = {}  # the last position after one or two tokens
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
        """At most `limit` guesses, while one more raises the expected tokens per cost. rows: that share a pass."""
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
