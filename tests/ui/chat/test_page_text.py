"""What is written in the chat, in Chromium over a fake engine: Markdown, copies; nothing of a stranger."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.server import transcript
from adapter.ui.chat.chatbot import WORD_JOINER
from tests.browser import Visitor, findings
from tests.ui.fake_page import url

__all__ = ["url"]  # fixtures
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


def imported(visit: Callable[..., Visitor], asked: str, answer: str, folder: Path) -> Visitor:
    """A visitor on a dark phone who has imported a conversation."""
    visitor = visit(390, 844)  # which sees to it that nothing asks another machine
    visitor.page.emulate_media(color_scheme="dark")
    messages = [{"role": "user", "text": asked}, {"role": "assistant", "text": answer}]
    (folder / "c.json").write_text(json.dumps(transcript.to_document(messages)))
    visitor.open_conversation_panel()
    visitor.import_file(folder / "c.json")
    visitor.page.locator('#chat [data-testid="bot"]').first.wait_for()
    visitor.close_drawer()
    return visitor


def test_what_is_rendered_and_what_never_is(visit, tmp_path):
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


COMMAND = r"""test "$$" && echo '<b>' '&amp;' '\(' '![x]' '```' """.strip()
MERMAID = "A --> B & C"
COPIED = (
    f"Use `echo $$` && ![see]:\n\n````bash\n{COMMAND}\n````\n\n```mermaid\n{MERMAID}\n```\n\nThat is <b> \\(x\\)."
)


def test_copies_are_exact(visit, tmp_path):
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
