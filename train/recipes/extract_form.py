"""The form of `extract`'s answers: an object of one of the types, or prose. Knows the fields; knows no phrases."""

from __future__ import annotations

import json

from train.recipes.extract_grammar import FIELDS


def answer_form() -> str:
    """The grammar of an answer: one object with its fields in order, or what does not begin with a brace.

    Values are words of the message, letter for letter; quantity is a number. Between the entries stands what
    `json.dumps` writes there, as in training.
    """
    objects = []
    for kind, fields in FIELDS.items():
        entries = "".join(
            f" ({_quoted(f', {json.dumps(name)}: ')} {'COUNT' if name == 'quantity' else 'VALUE'})?"
            for name in fields
        )
        start = json.dumps({"type": kind})[:-1]
        objects.append(f'{_quoted(start)}{entries} "}}"')
    alternatives = "\n    | ".join([*objects, "PROSE"])
    return f"""start: {alternatives}
VALUE: "\\"" MESSAGE_WORDS "\\""
COUNT: /[1-9][0-9]{{0,5}}/
PROSE: /[^{{\\s](?s:.*)/
"""


def _quoted(text: str) -> str:
    return json.dumps(text)
