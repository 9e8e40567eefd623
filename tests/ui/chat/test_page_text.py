"""What is written in the chat, in Chromium over a fake engine: words, Markdown, tables; nothing of a stranger."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.server import transcript
from adapter.ui.chat.chatbot import WORD_JOINER
from tests.browser import Visitor, findings
from tests.ui.fake_page import ENGINE, runs_folder, url

__all__ = ["runs_folder", "url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]
STRANGER = "http://stranger.example/x.png"
ANSWER = rf"""Some **bold** words.

```python
def double(x):
    return 2 * x  # <b> \(x\)
```

| Planet | Moons |
|--------|-------|
| Mars   | 2     |

Inline \(x^2\), $5 and $10, \(\rule{{900em}}{{2em}}\), and

$$\frac{{a}}{{b}} < c \href{{javascript:window.hacked=1}}{{x}} \includegraphics{{{STRANGER}}}$$

[a](javascript:window.hacked=1) [b](data:text/html,x) ![c]({STRANGER}) [![d]({STRANGER})](x) ![e][f] <{STRANGER}>
<img src="{STRANGER}" onerror="window.hacked=1"><script>window.hacked=1</script><svg onload="window.hacked=1">

[f]: {STRANGER}

```mermaid
flowchart TD
  A@{{ img: "{STRANGER}", label: "x", pos: "t", w: 60, h: 60 }}
```
"""
ASKED = rf"Is $$x$$ or \(y\) in ```mermaid ![c]({STRANGER})?"
HOSTILE = {
    "name": f'<img src="{STRANGER}" onerror="window.hacked = 1"><script>window.hacked = 1</script></code></pre>',
    "note": f"**bold** _x_ `y` ![x]({STRANGER}) &lt;\n\n# heading",
    "to": {"street": "Main St. 5", "floors": [1, 2], "more": [{"a": None}]},
    "long": "x" * 5000 + " word" * 1000,
}


def imported(visit: Callable[..., Visitor], asked: str, answer: str, folder: Path) -> Visitor:
    """A visitor on a dark phone who has imported a conversation."""
    visitor = visit(390, 844)  # which sees to it that nothing asks another machine
    visitor.page.emulate_media(color_scheme="dark")
    messages = [{"role": "user", "text": asked}, {"role": "assistant", "text": answer}]
    (folder / "c.json").write_text(json.dumps(transcript.to_document(messages)))
    visitor.open_conversation_panel()
    visitor.import_file(folder / "c.json")
    visitor.page.locator('#chat [data-testid="bot"]').first.wait_for()
    return visitor


def test_what_is_rendered_and_what_never_is(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = imported(visit, ASKED, ANSWER, tmp_path)
    page = visitor.page
    answer = page.locator('#chat [data-testid="bot"]').first
    answer.locator(".katex-display").wait_for()
    assert answer.locator("strong").inner_text() == "bold"
    assert "2 * x  # <b> \\(x\\)" in answer.locator("code.language-python").inner_text().replace(WORD_JOINER, "")
    assert answer.locator("td").all_inner_texts() == ["Mars", "2"]
    assert answer.locator(".katex").count() == 3 and "$5 and $10" in answer.inner_text()
    assert answer.locator(":is(img, svg[id], script, iframe, .katex a)").count() == 0
    for link in answer.locator("a").all():
        assert not (link.get_attribute("href") or "").startswith(("javascript", "data"))
        assert link.get_attribute("rel") == "noopener noreferrer"
    for link in answer.locator("a:not([href])").all():
        link.click()
    asked = page.locator('#chat [data-testid="user"]').first
    assert asked.locator(":is(.katex, img)").count() == 0
    assert r"$$x$$ or \(y\)" in asked.inner_text().replace(WORD_JOINER, "")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert findings(page) == []
    assert [m["text"] for m in visitor.export(tmp_path / "d.json")["messages"]] == [ASKED, ANSWER]


def test_a_hostile_object_is_shown_as_it_is(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    text = json.dumps(HOSTILE)
    visitor = imported(visit, "hi", text, tmp_path)
    page = visitor.page
    page.locator("#chat .json-answer table").first.wait_for()
    shown = visitor.table()
    assert all(shown[name] == HOSTILE[name] for name in ("name", "note", "long"))
    assert shown["to"].split() == ["street", "Main", "St.", "5", "floors", "1", "2", "more", "a", "null"]
    assert page.locator("#chat .json-answer :is(img, script, h1, strong, em)").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert findings(page) == []
    assert [m["text"] for m in visitor.export(tmp_path / "d.json")["messages"]] == ["hi", text]


def test_words_are_shown_as_they_were_written(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    written = f'What is <div>, <img src="{STRANGER}"> or &lt;? ![x]({STRANGER}) \\(y\\)\n\nשלום.'
    visitor.ask(written)
    message = visitor.page.locator('#chat [data-testid="user"]').last
    shown = written.replace(f"[x]({STRANGER})", "x")  # a link, that nothing is fetched from
    assert message.inner_text().replace(WORD_JOINER, "") == shown and message.locator("img").count() == 0
    # What is copied, edited or taken back is what was written.
    visitor.page.locator("#chat .user-row").last.hover()
    visitor.page.locator('#chat .message-buttons-right [title*="opy"]').last.click()
    assert visitor.page.evaluate("() => navigator.clipboard.readText()") == written
    message.select_text()
    visitor.page.keyboard.press("ControlOrMeta+c")
    assert visitor.page.evaluate("() => navigator.clipboard.readText()") == shown
    # Hebrew begins on the right.
    indent = """e => { const range = document.createRange(); range.selectNodeContents(e);
        return range.getBoundingClientRect().left - e.getBoundingClientRect().left; }"""
    english, hebrew = (paragraph.evaluate(indent) for paragraph in message.locator("p").all())
    assert english < 2 and hebrew > 20
    field = visitor.open_edit()
    field.fill(field.input_value() + " <i>")
    visitor.answering(visitor.button("Submit").click)
    visitor.button("Undo").click()
    visitor.page.locator("#chat .example").first.wait_for()
    assert visitor.box.input_value() == written + " <i>"


def test_a_cut_answer_goes_on_and_a_retry_keeps_the_former_one(
    visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visit(390, 844)
    page = visitor.page

    def press(name: str) -> None:
        page.get_by_role("button", name=name, exact=True).click()

    monkeypatch.setattr(ENGINE, "ending", "length")
    answer = visitor.ask("Hello")
    assert visitor.answering(lambda: press("Continue")) == answer and "6 tokens" in visitor.stats()
    assert visitor.answering(visitor.button("Retry").click) == answer and "3 tokens" in visitor.stats()
    press("‹")
    page.get_by_role("button", name="1/2", exact=True).wait_for()
    assert visitor.answers() == [answer] and "6 tokens" in visitor.stats() and findings(page) == []
    visitor.reload()
    page.get_by_role("button", name="1/2", exact=True).wait_for()
    press("›")
    page.get_by_role("button", name="2/2", exact=True).wait_for()
    assert "3 tokens" in visitor.stats()
    # How full the context is, from half of it on.
    script = """log => window.chatPage.contextLine([{metadata: {log}}, {}], ["TOKENS", "TOKENS of LENGTH!"])"""
    for tokens, line in (
        (9, ""),
        (5000, '<span class="">5,000</span>'),
        (7000, '<span class="full">7,000 of 8,192!</span>'),
    ):
        assert page.evaluate(script, f'{{"context_tokens": {tokens}, "context_length": 8192}}') == line
    assert page.evaluate(script, "x") == ""


COMMAND = r"""test "$$" && echo '<b>' '&amp;' '\(' '![x]' '```' """.strip()
MERMAID = "A --> B & C"
COPIED = (
    f"Use `echo $$` && ![see]:\n\n````bash\n{COMMAND}\n````\n\n```mermaid\n{MERMAID}\n```\n\nThat is <b> \\(x\\)."
)


def test_copies_are_exact(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = imported(visit, COPIED, COPIED, tmp_path)
    page = visitor.page
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator('#chat [data-testid="bot"] pre').nth(1).wait_for()

    def copied(act: Callable[[], Any]) -> str:
        page.evaluate("() => navigator.clipboard.writeText('')")
        act()
        page.wait_for_function("async () => await navigator.clipboard.readText()")
        return page.evaluate("() => navigator.clipboard.readText()")

    for role, row in (("user", ".user-row"), ("bot", ".bot-row")):
        page.locator(f"#chat {row}").last.hover()
        assert copied(page.locator(f"#chat {row} ~ * [title='Copy message']").first.click) == COPIED, role
        buttons = page.locator(f'#chat [data-testid="{role}"] .copy_code_button')
        codes = [copied(button.click) for button in buttons.all()]
        assert codes == [COMMAND, MERMAID], role
        said = subprocess.run(["sh", "-c", codes[0]], capture_output=True, text=True).stdout
        assert said == "<b> &amp; \\( ![x] ```\n", role
    visitor.open_edit().select_text()
    assert copied(lambda: page.keyboard.press("ControlOrMeta+c")) == COPIED
