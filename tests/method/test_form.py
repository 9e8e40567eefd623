"""Forms as text: which can be used, and what a hostile one does."""

from __future__ import annotations

import json

import pytest

from adapter.errors import BadInput
from adapter.method import form as form_module
from adapter.method.form import JSON_OBJECT, MAX_FORM_BYTES, check_form, json_schema_form, with_message


def rules_in_a_chain(count: int) -> str:
    """A schema whose definitions refer to one another, each to the next."""
    definitions = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(count)}
    return json_schema_form({"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "null"}}})


def nested(levels: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "form",
    [
        JSON_OBJECT,
        'start: "yes" | "no"',
        'start: "{" MESSAGE_WORDS "}"',
        json_schema_form({"$schema": "https://json-schema.org/draft/2020-12/schema", **nested(60)}),
        json_schema_form({"enum": [f"value {i}" for i in range(900)]}),
        json_schema_form({"type": "object", "properties": {"child": {"$ref": "#"}}}),
        json_schema_form({"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}),
        rules_in_a_chain(200),
    ],
)
def test_forms_that_can_be_used(form):
    check_form(form)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("start: (", r"cannot be used: 1\(9\): Expected token"),
        ("", "cannot be used: Empty grammar"),
        ('answer: "x"', "cannot be used: no start rule found"),
        ("start: <|im_start|>", "unknown special token"),
        (json_schema_form({"$ref": "#"}), "cannot be used: no text has it"),
        (json_schema_form({"uniqueItems": True}), "Unimplemented keys"),
        (json_schema_form({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (json_schema_form({"const": "\ud800"}), "half a character"),
        ('start: "' + "x" * MAX_FORM_BYTES + '"', f"bytes; {MAX_FORM_BYTES} are the limit"),
        # Each rule is twice the next: 2^40 letters.
        ("start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(40)) + 'A40: "x"', "too big"),
    ],
)
def test_a_form_that_cannot_be_used_is_refused_with_its_reason(form, reason):
    with pytest.raises(BadInput, match=reason):
        check_form(form)


def test_what_would_take_for_ever_or_the_whole_stack_is_refused(monkeypatch):
    """Both would end or hold this process, if another one had not tried them first."""
    patterns = json_schema_form({"allOf": [{"pattern": f".*{i}.*"} for i in range(300)]})
    with pytest.raises(BadInput, match="too complex"):
        check_form(patterns)
    monkeypatch.setattr(form_module, "MAX_FORM_BYTES", 2**20)
    with pytest.raises(BadInput, match="too complex"):
        check_form(rules_in_a_chain(3000))


def test_a_schema_fetches_nothing_and_has_few_levels():
    with pytest.raises(BadInput, match=r"\$ref may point into its own schema only"):
        json_schema_form({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    with pytest.raises(BadInput, match="more than 64 levels"):
        json_schema_form(nested(5000))


def test_a_schema_cannot_free_the_white_space():
    form = json_schema_form({"type": "object", "x-guidance": {"whitespace_flexible": True}})
    assert json.loads(form.removeprefix("start: %json "))["x-guidance"] == form_module._SPACING


def test_the_message_is_defined_where_the_form_uses_it_only():
    assert with_message('start: "x"', "some words") == 'start: "x"'
    own = "start: MESSAGE_WORDS\nMESSAGE_WORDS: /[a-z]/"
    assert with_message(own, "some words") == own
    used = with_message("start: MESSAGE_WORDS", 'He said "no",\n\\ 日本')
    chunks = json.loads(used[used.index("{") : used.rindex("}") + 1])["substring_chunks"]
    assert json.loads('"' + "".join(chunks) + '"') == 'He said "no",\n\\ 日本'
    assert chunks == ["He", " ", "said", " ", '\\"', "no", '\\"', ",", "\\n", "\\\\", " ", "日", "本"]
