"""What strangers wrote, in a real browser: a link and a card load nothing and lie over nothing."""

import base64
import json
import shutil
import zlib

import pytest

from adapter.serve.store import SHIPPED
from adapter.server import transcript
from adapter.ui.texts import page as texts
from tests.app_process import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.browser]
STRANGER = "http://stranger.example/x.png"
NAME = f'<img src="{STRANGER}"><a href="{STRANGER}" style="position:fixed;inset:0">x</a>'
CARD = f"""# A card
![x]({STRANGER}) [![y]({STRANGER})]({STRANGER}) {NAME} [z](javascript:window.hacked=1)

| measure | value |
|---------|-------|
| score   | 1     |

```mermaid
flowchart TD
  A@{{ img: "{STRANGER}", label: "x", pos: "t", w: 60, h: 60 }}
```
"""
# Whatever may load something, or lie over the page.
MARKUP = ":is(img, svg, form, iframe, [style])"


def test_the_browser_refuses_what_the_page_would_load_from_elsewhere(visit):
    """The control of what `visit` asserts of every visitor."""
    visitor = visit()
    visitor.page.evaluate(f"document.body.insertAdjacentHTML('beforeend', '<img src={STRANGER}>')")
    # Events come while the browser is asked something.
    wait_until(lambda: visitor.page.title() and visitor.complaints and STRANGER in visitor.requested)
    assert "Content Security Policy" in visitor.complaints.pop()
    visitor.requested.clear()  # it was refused


def test_an_adapters_name_is_text(visit, url):
    visitor = visit()
    messages = [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "ho"}]
    document = {**transcript.to_document(messages), "settings": {"adapter": NAME}}
    packed = base64.urlsafe_b64encode(zlib.compress(json.dumps(document).encode(), 9)).decode()
    visitor.page.goto(f"{url}#chat={packed.rstrip('=')}")
    toast = visitor.page.get_by_test_id("toast-text").filter(has_text=texts.adapter_missing(NAME))
    toast.wait_for()
    assert toast.locator(f":scope {MARKUP}, :scope a").count() == 0


def test_a_card_is_text_and_tables(visit, real_page):
    adapters = real_page.folder / "adapters"
    shutil.copytree(SHIPPED / "pirate", adapters / "guest")
    (adapters / "guest" / "README.md").write_text(CARD)
    try:
        visitor = visit()
        visitor.page.locator('#picker input[value="guest"]').wait_for()
        visitor.pick("guest")
        visitor.open_drawer()
        visitor.page.get_by_role("button", name=texts.ABOUT).click()
        card = visitor.page.locator("#about .prose").filter(has_text="A card")
        card.locator("td").first.wait_for()
        assert card.locator("h2").inner_text() == "A card" and card.locator("code.language-mermaid").count() == 1
        assert card.locator(MARKUP).count() == 0
        for link in card.locator("a").all():
            assert link.get_attribute("href") == STRANGER and link.get_attribute("rel") == "noopener noreferrer"
    finally:
        shutil.rmtree(adapters / "guest")
