"""Recipe of the `extract` adapter: a message about a person, a meeting or an order becomes one JSON object.

The object has its "type" first, then only the fields that the text gives, in the order of `FIELDS`. A value is a span
of the text, letter for letter, without a leading article or preposition; "quantity" alone is a number ("a dozen" is
12, "a red mug" is 1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from adapter.base.template import Message
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, ratio, share
from train.formats.dataset import open_records
from train.input.history import with_unseen_history
from train.recipes.recipe import MeasuredSets, Recipe, card_text
from train.recipes.sealed_sets import (
    SEALED,
    SHARED,
    after_others,
    conversation_of,
    off_task_scores,
    percent,
    some,
)
from train.recipes.text_data import read_yaml

Fields = dict[str, str | int]

FIELDS = {
    "person": ("name", "role", "company", "city", "email", "phone"),
    "meeting": ("topic", "with", "date", "time", "place"),
    "order": ("item", "quantity", "price", "customer", "date"),
}
_INSTRUCTION_FOR_BASE = (
    'Turn this message into one JSON object. Its first field is "type": person, meeting or order. The other fields, '
    "only those that the message gives: "
    + "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in FIELDS.items())
    + ".\n\n"
)


class ObjectTest(NamedTuple):
    """A conversation whose last message should become the object, "type" first."""

    messages: Conversation
    fields: Fields


class Mark(NamedTuple):
    """Of an answer: whether it is the whole object, how many expected fields are right, and out of how many."""

    whole: bool
    right: int
    expected: int


def recipe(_: Any) -> Recipe:
    """The recipe."""
    sealed = (*SHARED, "sealed/extract_hand_written.yaml")
    generated, by_hand = (f"extract/development_{part}.jsonl" for part in ("generated", "hand_written"))
    return Recipe(
        card_text("extract"), MeasuredSets(development, (generated, by_hand)), MeasuredSets(scores, sealed)
    )


def development_tests(part: str) -> list[ObjectTest]:
    """The 200 "generated" messages, or the 60 "hand_written" ones, that the recipe was developed on."""
    rows = open_records(Path(__file__).with_name(f"development_{part}.jsonl"))
    return [ObjectTest(row.messages[:-1], json.loads(row.messages[-1].text)) for row in rows]


def sealed_tests(part: str) -> list[ObjectTest]:
    """The 200 "generated" messages, or the 100 "hand_written" ones, that are sealed."""
    tests = read_yaml(SEALED / f"extract_{part}.yaml")
    return [ObjectTest(conversation_of([test["text"]]), test["fields"]) for test in tests]


def development(answerer: Answerer) -> dict[str, Figure]:
    """Shares, in percent, of whole objects and of single fields that are right, on both development sets."""
    result: dict[str, Figure] = {}
    for name, part, other_talk in (
        ("unseen phrasings", "generated", False),
        ("hand-written", "hand_written", False),
        ("hand-written, after other talk", "hand_written", True),
    ):
        tests = development_tests(part)
        asked = _conversations(answerer, tests)
        whole, single = _figures(
            _marks(answerer.generate(with_unseen_history(asked) if other_talk else asked), tests)
        )
        result |= {f"{name}: whole object, %": whole, f"{name}: single fields, %": single}
    return result


def scores(answerer: Answerer) -> dict[str, Figure]:
    """Whole objects and single fields of 300 messages; its manner in mid-conversation and on messages of no kind.

    An adapter with a form is measured as it is served, and without its form, which is its own merit.
    """
    generated, by_hand = sealed_tests("generated"), sealed_tests("hand_written")
    everything = [*generated, *by_hand]
    late = some(everything)
    after = after_others(answerer.base, "extract", _conversations(answerer, late))
    figures: dict[str, Figure] = {}

    def count(where: str, marks: Sequence[Mark]) -> None:
        for measure, figure in zip(("whole objects", "single fields"), _figures(marks), strict=True):
            figures[f"{measure}, {where} ({len(marks)}), %"] = figure

    for form, measured in _with_and_without_form(answerer):
        marks = _marks(measured.generate(_conversations(answerer, everything)), everything)
        count(f"all{form}", marks)
        count(f"generated{form}", marks[: len(generated)])
        count(f"hand-written{form}", marks[len(generated) :])
        answers = measured.generate(after)
        figures |= percent(f"an object of a known type, after other adapters{form}", [*map(is_object, answers)])
        count(f"after other adapters{form}", _marks(answers, late))
        figures |= off_task_scores(measured, form)
    return figures


def _conversations(answerer: Answerer, tests: Sequence[ObjectTest]) -> list[Conversation]:
    """The bare base gets the last message alone, after what it should write."""
    if answerer.adapter is not None:
        return [test.messages for test in tests]
    return [(Message("user", _INSTRUCTION_FOR_BASE + test.messages[-1].text),) for test in tests]


def _with_and_without_form(answerer: Answerer) -> list[tuple[str, Answerer]]:
    """What to add to the names of measures, and the answerer: twice for an adapter that has a form."""
    if answerer.adapter is None or answerer.adapter.config.form is None:
        return [("", answerer)]
    return [("", replace(answerer, with_form=True)), (", without its form", replace(answerer, with_form=False))]


def _marks(answers: Sequence[str], tests: Sequence[ObjectTest]) -> list[Mark]:
    return [score_answer(answer, test.fields) for answer, test in zip(answers, tests, strict=True)]


def _figures(marks: Sequence[Mark]) -> tuple[Figure, Figure]:
    """Of whole objects and of single fields, in percent."""
    whole, right, expected = zip(*marks, strict=True)
    return share(whole), ratio(right, expected, 0, lambda part: 100 * part)


def score_answer(answer: str, expected: Fields) -> Mark:
    """Compares an answer with the expected object.

    Values are compared after `strip`, with case; a number also when written as a string of digits is wrong. A field
    too many spoils the whole object but no single field; "type" counts as a field.
    """
    try:
        found = json.loads(answer.strip())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return Mark(False, 0, len(expected))

    def same(left: object, right: object) -> bool:
        if isinstance(left, str) and isinstance(right, str):
            return left.strip() == right.strip()
        return type(left) is type(right) and left == right

    right = sum(name in found and same(found[name], value) for name, value in expected.items())
    return Mark(right == len(expected) == len(found), right, len(expected))


def is_object(answer: str) -> bool:
    """Whether the answer is one JSON object of a known type with no fields but those of the type."""
    try:
        found = json.loads(answer)
    except ValueError:
        return False
    kind = found.get("type") if isinstance(found, dict) else None
    return isinstance(kind, str) and kind in FIELDS and set(found) <= {"type", *FIELDS[kind]}
