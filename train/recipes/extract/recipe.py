"""Recipe of the `extract` adapter: a message about a person, a meeting or an order becomes one JSON object.

The object has its "type" first, then only the fields that the text gives, in the order of `_FIELDS`. A value is a
span of the text, letter for letter, without a leading article or preposition; "quantity" alone is a number ("a dozen"
is 12, "a red mug" is 1).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from adapter.serve.form import NO_FORM
from adapter.serve.others import as_read
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, ratio
from train.formats.dataset import open_records
from train.input.examples import with_unseen_history
from train.recipes import sealed_sets
from train.recipes.recipe import MeasuredSets, Recipe, recipe_of
from train.recipes.sealed_sets import after_others, conversation_of, off_task_scores, percent, some

_FIELDS = {
    "person": ("name", "role", "company", "city", "email", "phone"),
    "meeting": ("topic", "with", "date", "time", "place"),
    "order": ("item", "quantity", "price", "customer", "date"),
}


class ObjectTest(NamedTuple):
    """A conversation whose last message should become the object, "type" first."""

    messages: Conversation
    fields: dict[str, str | int]


def recipe(_: Any) -> Recipe:
    files = tuple(f"extract/development_{part}.jsonl" for part in ("messages", "sentences"))
    sealed = ["extract_messages.yaml", "long_talk.yaml"]
    return recipe_of("extract", MeasuredSets(development, files), scores, sealed)


def development_tests(part: str) -> list[ObjectTest]:
    """The 300 "messages", or the 160 "sentences", that the recipe was developed on."""
    rows = open_records(Path(__file__).with_name(f"development_{part}.jsonl"))
    return [ObjectTest(row.messages[:-1], json.loads(row.messages[-1].text)) for row in rows]


def sealed_tests(part: str) -> list[ObjectTest]:
    """The 300 "messages", or the 200 "generated" ones, that are sealed."""
    tests = sealed_sets.read_yaml(sealed_sets.SEALED / f"extract_{part}.yaml")
    return [ObjectTest(conversation_of(test["text"]), test["fields"]) for test in tests]


def development(answerer: Answerer) -> dict[str, Figure]:
    """Whole objects, single fields and objects of the right type of both development sets, without a form."""
    answerer = replace(answerer, form=NO_FORM)
    figures: dict[str, Figure] = {}
    for part in ("messages", "sentences"):
        tests = development_tests(part)
        asked = [test.messages for test in tests]
        figures |= _object_scores(part, answerer.generate(asked), tests)
    later = answerer.generate(with_unseen_history(asked))
    return figures | _object_scores("sentences, after other talk", later, tests)


def scores(answerer: Answerer) -> dict[str, Figure]:
    """Whole objects, single fields and objects of the right type of both sealed sets, and of 60 messages after other
    adapters and after long talk; its manner on messages of no kind.

    An adapter with a form is measured as it is served, and without its form, which is its own merit.
    """
    sets = {part: sealed_tests(part) for part in ("messages", "generated")}
    late = some(sets["messages"])
    messages = [test.messages for test in late]
    talked, _ = sealed_sets.after_long_talk(answerer.base, messages, sealed=True)
    places = {
        "after other adapters": after_others(answerer.base, "extract", messages),
        "after long talk": talked,
        "after long talk, first sentences": [as_read(one, {"extract"}, "first sentence") for one in talked],
    }
    measured = {"": answerer}
    if answerer.adapter is not None and answerer.adapter.config.form is not None:
        measured[", without its form"] = replace(answerer, form=NO_FORM)
    figures: dict[str, Figure] = {}
    for form, one in measured.items():
        for part, tests in sets.items():
            figures |= _object_scores(f"{part}{form}", one.generate([test.messages for test in tests]), tests)
        for where, asked in places.items():
            figures |= _object_scores(f"{where}{form}", one.generate(asked), late)
        figures |= off_task_scores(one, form)
    return figures


def _object_scores(where: str, answers: Sequence[str], tests: Sequence[ObjectTest]) -> dict[str, Figure]:
    """Of whole objects, of single fields and of objects of the right type, in percent."""
    marks = [score_answer(answer, test.fields) for answer, test in zip(answers, tests, strict=True)]
    whole, right, expected = zip(*marks, strict=True)
    single = ratio(right, expected, 0, lambda part: 100 * part)
    of_type = [is_object(answer, str(test.fields["type"])) for answer, test in zip(answers, tests, strict=True)]
    return {
        **percent(f"whole objects, {where}", whole),
        f"single fields, {where} ({len(marks)}), %": single,
        **percent(f"objects of the right type, {where}", of_type),
    }


def score_answer(answer: str, expected: dict[str, str | int]) -> tuple[bool, int, int]:
    """Whether an answer is the whole object, how many expected fields are right, and out of how many.

    Texts are compared after `strip`, with case; a number written as a text ("12") is wrong. A field too many makes
    the whole object wrong, but no single field; "type" counts as a field.
    """

    def same(left: object, right: object) -> bool:
        if isinstance(left, str) and isinstance(right, str):
            return left.strip() == right.strip()
        return type(left) is type(right) and left == right

    found = _object_in(answer)
    right = sum(name in found and same(found[name], value) for name, value in expected.items())
    return right == len(expected) == len(found), right, len(expected)


def is_object(answer: str, kind: str) -> bool:
    """Whether the answer is one JSON object of the type `kind` with fields of that type, and no others."""
    found = _object_in(answer)
    return found.get("type") == kind and {"type"} < set(found) <= {"type", *_FIELDS[kind]}


def _object_in(answer: str) -> dict[str, Any]:
    """The JSON object that an answer is, without fields if it is none."""
    try:
        found = json.loads(answer.strip())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
