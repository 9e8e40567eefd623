"""Answers that are JSON objects as tables: what becomes one, what it holds, and the text behind it."""

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.serve.settings import Settings
from adapter.ui.comparison import Pane, mark
from adapter.ui.json_table import MOST_CHARACTERS, Fields, read_object, table_html

HOSTILE = [
    "</code></pre></details></div><script>alert(1)</script>", "&lt;", "&#60;", "**b** _c_ `d` ~e~", r"\(x\) $$x$$",
    "![x](http://a.example/b.png)", "| a | b |\n|---|---|", "\n\n# heading\n\n<div>", "\0", "\ud800", "x" * 2000,
]  # fmt: skip
TAGS = {
    *("div", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"),
    *("details", "summary", "button", "pre", "code"),
}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), ANY_JSON, min_size=1, max_size=4)


def text_behind(table: str) -> str:
    """What page.js copies."""
    [code] = re.findall(r"<code>([^<]*)</code></pre></details></div>\Z", table)
    return re.sub(r"&#(\d{1,3});", lambda found: chr(int(found[1])), code)


class Shown(HTMLParser):
    """What a browser makes of HTML: its tags, and the text of each cell and of the code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        assert {name for name, _ in attrs} <= {"class", "scope", "colspan"}
        if tag in ("th", "td", "code"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td", "code"} & set(self.open):
            self.cells[-1] += data


@pytest.mark.parametrize(
    "text",
    [
        "", "Hello", "[1]", '"x"', '{"a": 1,}', '{"a": 1} and more', '{"a" "b"}', '{"a": NaN}',
        "{'a': 1}", '{"a": ' * 5000, json.dumps({"a": "x" * MOST_CHARACTERS}),
        '```json\n{"a": 1}\n```',
    ],
)  # fmt: skip
def test_other_text_is_no_object(text):
    assert read_object(text) is None and table_html(text) is None
    assert table_html('{"type": "per') is None, "an object without a field stays text"
    assert not any(table_html('{"a": ' * levels + "1" + "}" * levels) for levels in range(301, 1000))


@settings(max_examples=40, deadline=None)
@given(OBJECTS, st.data(), st.booleans(), st.sampled_from([None, 1]))
def test_an_object_only_grows_and_its_text_comes_back_as_it_was(value, data, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert read_object(text) == Fields(list(value.items()), True)
    begun = read_object(text[: data.draw(st.integers(1, len(text) - 1))])
    assert read_object('{"a": "x", "b": "y", "c": "z') == Fields([("a", "x"), ("b", "y")], False)
    assert begun is not None and not begun.complete and begun.pairs == list(value.items())[: len(begun.pairs)]
    table = table_html(f"{text}\n")
    assert table is not None and "\n" not in table and text_behind(table) == f"{text}\n"


@pytest.mark.parametrize("value", HOSTILE)
def test_whatever_a_value_holds_is_text(value):
    for text in (json.dumps({"field": value}), json.dumps({value[:99]: {"inner": [value]}})):
        table = table_html(text)
        assert table is not None and text_behind(table) == text
        assert set(Shown(table).tags) <= TAGS
        assert not set("*_`~[]$\\|#!\n") & set(table.replace("&#", ""))  # nothing for Markdown to read
        table.encode()  # half a pair of surrogates would break the stream
    if value.isprintable():
        shown = Shown(table_html(json.dumps({"field": value})) or "").cells
        assert shown[:-1] == ["Field", "Value", "field", value]  # the last is the text behind the table


def test_of_two_objects_the_values_that_differ_are_marked():
    first, same, other, prose = (Pane(Settings(), token_ids=[1]) for _ in range(4))
    first.text = '{"name": "Maria", "city": "Leeds", "ok": true}'
    same.text = first.text.replace("{", "{ ")
    other.text = '{"name": "Maria", "city": "<York>", "ok": 1, "phone": "555"}'
    prose.text = "Maria"
    for pane in (same, other, prose):
        mark(pane, first, "in pane 1")
    assert "<mark>" not in same.to_html() and "field for field as in pane 1" in same.to_html()
    for value in ("&#60;York&#62;", "1", "555"):
        assert f"<td><mark>{value}</mark></td>" in other.to_html()
    assert "<td>Maria</td>" in other.to_html() and "3 of 4 fields not as in pane 1" in other.to_html()
    assert "1 of 1 word not as in pane 1" in prose.to_html()
