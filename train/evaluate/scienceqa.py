"""ScienceQA's table: its nine columns, and the letter that a generated answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from train.formats.scienceqa import COLUMNS, LETTERS, Problem, columns

T = TypeVar("T")


def by_column(problems: Sequence[Problem], values: Sequence[T]) -> dict[str, list[T]]:
    """The values of the problems of each of COLUMNS that has problems. values: one for each problem."""
    found: dict[str, list[T]] = {name: [] for name in COLUMNS}
    for problem, value in zip(problems, values, strict=True):
        for name in columns(problem):
            found[name].append(value)
    return {name: part for name, part in found.items() if part}


def table_row(problems: Sequence[Problem], right: Sequence[float]) -> dict[str, float]:
    """Percent right in each of COLUMNS that has problems. right: 0 to 1 for each problem."""
    return {name: 100 * sum(part) / len(part) for name, part in by_column(problems, right).items()}


def chance(problems: Sequence[Problem]) -> dict[str, float]:
    """The table_row of random guesses."""
    return table_row(problems, [1 / len(p.choices) for p in problems])


def extract_letter(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that an answer names; None if it names none, or several.

    As in the field: "The answer is B." anywhere, else an answer that begins with a letter alone ("B", "(B) ...",
    "B. ..."), else an answer that is a choice's text.
    """
    letters = LETTERS[: len(choices)]
    small = letters.lower()
    # A small letter that words follow is the article: "the answer is a magnet" names no letter.
    letter = rf"(?:\(([{letters}{small}])\)|([{letters}])\b|([{small}])(?=[.!]?\s*$))"
    stated = re.findall(rf"\b(?i:answer(?: is)?):? *{letter}", text, re.MULTILINE)
    named = {"".join(groups).upper() for groups in stated}
    if not named:
        begins = re.match(rf"\s*(?:\(?([{letters}])(?:[).:,]|\s*$|\s*\n))", text)
        named = {begins[1]} if begins else set()
    if len(named) == 1:
        return letters.index(named.pop())
    plain = text.strip().rstrip(".").casefold()
    same = [i for i, choice in enumerate(choices) if choice.strip().rstrip(".").casefold() == plain]
    return same[0] if len(same) == 1 and not named else None
