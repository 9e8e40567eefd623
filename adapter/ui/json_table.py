"""An answer that is a JSON object as a table in HTML. The text stays what the model is told and what is stored."""

import json
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from pydantic_core import from_json

from adapter.ui.texts import page as texts

MOST_CHARACTERS = 20_000  # of a text that is made a table; an imported one may be a hundred times as long
_MOST_LEVELS = 4  # of tables in tables
_MOST_NESTED = 300  # objects and lists, if each were in the one before: Python's own levels end at a thousand
_MARKUP = re.compile(r"[\x00-\x1f!-'*;-?\[-`{-\x7f]")  # whatever HTML or Markdown may read, in ASCII


class _Number(float):
    """A number with a fraction or an exponent. written: as the text has it, 12.50 for one."""

    def __init__(self, written: str) -> None:
        self.written = written


class Fields(NamedTuple):
    """Names and values of an object in their order; complete: whether its closing brace is there."""

    pairs: list[tuple[str, Any]]
    complete: bool


def read_object(text: str) -> Fields | None:
    """The object that a text is, or what is complete of one that it begins to be. None for any other text."""
    text = text.strip()
    if not text.startswith("{") or len(text) > MOST_CHARACTERS or text.count("{") + text.count("[") > _MOST_NESTED:
        return None
    try:
        whole, end = json.JSONDecoder(parse_float=_Number, parse_constant=int).raw_decode(text)  # NaN is no int
        return Fields(list(whole.items()), True) if end == len(text) else None
    except ValueError:
        pass
    try:
        begun = from_json(text, allow_partial="trailing-strings", allow_inf_nan=False)
    except ValueError:
        return None
    return Fields(list(begun.items())[:-1], False)  # the last one may go on


def table_html(text: str, marked: Collection[str] = ()) -> str | None:
    """The table of a text that is an object or begins to be one, with a field at least; None for any other text.
    It is one line without a character that Markdown or HTML would read. marked: fields whose values are marked.
    """
    fields = read_object(text)
    if fields is None or not fields.pairs:
        return None
    rest = "" if fields.complete else '<tr><td colspan="2">…</td></tr>'
    head = f'<thead><tr><th scope="col">{texts.FIELD}</th><th scope="col">{texts.VALUE}</th></tr></thead>'
    behind = f"<details><summary>{texts.JSON}</summary><pre><code>{escape(text)}</code></pre></details>"
    rows = _rows(fields.pairs, 1, marked)
    return f'<div class="json-answer"><table>{head}<tbody>{rows}{rest}</tbody></table>{behind}</div>'


def differing_fields(fields: Fields, others: Fields) -> list[str]:
    """Names of fields that the others have not, or with another value."""
    known = {name: json.dumps(value) for name, value in others.pairs}  # as JSON: 1 equals true in Python
    return [name for name, value in fields.pairs if known.get(name) != json.dumps(value)]


def _rows(pairs: list[tuple[str, Any]], level: int, marked: Collection[str] = ()) -> str:
    rows = []
    for name, value in pairs:
        cell = _cell(value, level)
        cell = f"<mark>{cell}</mark>" if name in marked else cell
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{cell}</td></tr>')
    return "".join(rows)


def _cell(value: Any, level: int) -> str:
    if isinstance(value, str) and value.strip():
        return escape(value)
    if value and isinstance(value, dict | list) and level < _MOST_LEVELS:
        if isinstance(value, dict):
            return f"<table><tbody>{_rows(list(value.items()), level + 1)}</tbody></table>"
        return f"<ul>{''.join(f'<li>{_cell(item, level + 1)}</li>' for item in value)}</ul>"
    return escape(value.written if isinstance(value, _Number) else json.dumps(value, ensure_ascii=False))


def escape(text: str) -> str:
    """Escapes what HTML or Markdown would read. Half of a surrogate pair becomes U+FFFD."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)
