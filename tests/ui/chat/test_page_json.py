"""Answers that are JSON objects, in a real browser: a table, while it is written and later, and its text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.server import transcript
from tests.browser import Visitor
from tests.ui.chat.test_page_storage import export, import_file, open_conversation_panel
from tests.ui.compare.test_page_compare import CompareVisitor
from tests.ui.test_page_accessible import findings

pytestmark = [pytest.mark.slow, pytest.mark.browser]
MESSAGE = "Please save Maria Keller from Nordlicht Ltd, maria.keller@gmail.com"
STRANGER = "http://stranger.example/x.png"
HOSTILE = {
    "name": f'<img src="{STRANGER}" onerror="window.hacked = 1"><script>window.hacked = 1</script></code></pre>',
    "note": f"**bold** _x_ `y` ![x]({STRANGER}) &lt;\n\n# heading",
    "to": {"street": "Main St. 5", "floors": [1, 2], "more": [{"a": None}]},
    "long": "x" * 5000 + " word" * 1000,
}
# The browser notes each table that it shows, and what it shows in between.
WATCH = """() => {
    window.seen = [];
    new MutationObserver(() => {
        const answer = [...document.querySelectorAll('#chat [data-testid="bot"]:not(:has(.aside))')].at(-1);
        const rows = answer && [...answer.querySelectorAll('tbody > tr')].map(row => row.innerText.trim());
        const table = answer && Boolean(answer.querySelector('.json-answer table'));
        const last = JSON.stringify([table, rows]);
        if (answer && window.seen.at(-1) !== last) window.seen.push(last);
    }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def table(page: Any, where: str = "#chat") -> dict[str, str]:
    """Fields and values of the last table."""
    rows = page.locator(f"{where} .json-answer").last.locator("> table > tbody > tr").all()
    return {row.locator("th").first.inner_text(): row.locator("td").first.inner_text() for row in rows}


@pytest.mark.parametrize("width", [1440, 390])
def test_extract_answers_with_a_table(visit: Callable[..., Visitor], width: int, tmp_path: Path) -> None:
    visitor = visit(width, 844)
    page = visitor.page
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.pick("extract")
    visitor.set("Max tokens", 96)
    page.evaluate(WATCH)
    visitor.ask(MESSAGE)
    shown = table(page)
    assert shown["type"] == "person" and shown["name"] == "Maria Keller"
    # Rows are added while it is written; none is taken back, and no text stands between two tables.
    seen = [json.loads(state) for state in page.evaluate("window.seen")]
    tables = [rows for is_table, rows in seen if is_table]
    assert [is_table for is_table, _ in seen] == sorted(is_table for is_table, _ in seen) and tables
    for before, after in itertools.pairwise(tables):
        complete = [row for row in before if row != "…"]
        assert after[: len(complete)] == complete
    # Its text is behind it, is what is copied, and is what is kept.
    page.locator("#chat .json-answer summary").click()
    text = page.locator("#chat .json-answer code").inner_text()
    assert json.loads(text) == shown
    page.locator("#chat .json-answer button").click()
    page.locator("#chat .json-answer button.copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == text
    page.locator("#chat .message-row:has(.json-answer)").hover()
    page.locator('#chat .message-row:has(.json-answer) + .message-buttons [title="Copy message"]').click()
    assert page.evaluate("() => navigator.clipboard.readText()") == text
    open_conversation_panel(visitor)
    assert [m["text"] for m in export(visitor, tmp_path / "c.json")["messages"]] == [MESSAGE, text]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.reload()
    page.locator("#chat .json-answer table").wait_for()
    assert table(page) == shown
    assert findings(page) == []


def test_a_hostile_object_is_shown_as_it_is(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit(390, 844)
    page = visitor.page
    text = json.dumps(HOSTILE)
    messages = [{"role": "user", "text": "hi"}, {"role": "assistant", "text": text}]
    (tmp_path / "c.json").write_text(transcript.write(messages, {}, {}))
    open_conversation_panel(visitor)
    import_file(visitor, tmp_path / "c.json")
    page.locator("#chat .json-answer table").first.wait_for()
    shown = table(page)
    assert all(shown[name] == HOSTILE[name] for name in ("name", "note", "long"))
    assert shown["to"].split() == ["street", "Main", "St.", "5", "floors", "1", "2", "more", "a", "null"]
    assert page.locator("#chat .json-answer :is(img, script, h1, strong, em)").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [m["text"] for m in export(visitor, tmp_path / "d.json")["messages"]] == ["hi", text]


def test_the_comparison_shows_a_table_and_marks_what_differs(visit: Callable[..., Visitor]) -> None:
    comparer = CompareVisitor(visit(), tokens=96)
    for pane in (1, 2):
        comparer.choose(pane, "extract")
    comparer.send(MESSAGE)
    comparer.page.get_by_text("field for field as in pane 1").wait_for()
    comparer.settle()
    assert table(comparer.page, "#panes")["name"] == "Maria Keller"
    assert comparer.footers()[1].endswith("field for field as in pane 1")
    assert comparer.page.locator("#panes .json-answer table").count() == 2
