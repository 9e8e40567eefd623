"""The page in a real browser, on the real embedded base with the shipped adapters: what a visitor does."""

from __future__ import annotations

import base64
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio
import pytest

from adapter.serve.store import SHIPPED
from adapter.ui.texts import page as texts
from adapter.ui.verbatim import MARK
from tests.ui.test_page_parts import serving

pytestmark = [pytest.mark.slow, pytest.mark.browser]
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
PHOTOGRAPHS = Path(gradio.__file__).parent / "media_assets" / "images"
STATS = re.compile(r"(frozen base|\w+ · strength [\d.]+) · \d+ tokens? · [\d.]+ tokens/s")
ANSWER_MS = 120_000
LEAVING = re.compile("AbortError|Connection errored out")
# The browser itself notes what happens: an answer can be shorter than the way to a question about it and back.
WATCH = """() => {
    window.began = false;
    window.shown = [];
    const look = () => {
        window.began ||= Boolean(document.querySelector('#box .stop-button'));
        const answer = [...document.querySelectorAll('#chat [data-testid="bot"]:not(:has(.aside))')].at(-1);
        const text = answer?.innerText;
        if (text && window.began && text !== window.shown.at(-1)) window.shown.push(text);
    };
    window.watch?.disconnect();
    window.watch = new MutationObserver(look);
    window.watch.observe(document.body, {childList: true, subtree: true, characterData: true, attributes: true});
}"""


class Visitor:
    """One browser context on the page. Answers are greedy and short unless a test says otherwise."""

    def __init__(self, context: Any, url: str) -> None:
        self.context = context
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requested: set[str] = set()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("framenavigated", self._left)
        self.page.on("request", lambda request: self.requested.add(request.url))
        self.page.goto(url)
        self.page.locator(".status.ready").wait_for(timeout=ANSWER_MS)
        self.page.get_by_role("button", name="Sampling").click()
        self.set("Temperature", 0)
        self.set("Max tokens", 16)

    def _left(self, frame: Any) -> None:
        """Forget what Gradio says in a page that is being left: that its connections end."""
        if frame == self.page.main_frame:
            self.complaints[:] = [c for c in self.complaints if not LEAVING.search(c)]

    def set(self, label: str, value: float) -> None:
        field = self.page.get_by_label(f"number input for {label}")
        for _ in range(100):
            field.fill(str(value))
            field.blur()
            self.page.wait_for_timeout(30)  # a field that is just being made forgets what it is told
            if field.input_value() == str(value):
                return
        raise AssertionError(f"{label} does not take {value}")

    def pick(self, name: str) -> None:
        self.page.locator(f'#picker input[value="{name}"]').check()

    @property
    def picked(self) -> str:
        return self.page.locator("#picker input:checked").get_attribute("value") or ""

    @property
    def box(self) -> Any:
        return self.page.locator("#box textarea")

    def type(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def attach(self, path: Path) -> None:
        self.page.locator("#box input[type=file]").set_input_files(path)
        self.page.locator("#box .thumbnail-item").wait_for()

    def reload(self) -> None:
        self.page.reload()
        self.page.locator(".status.ready").wait_for(timeout=ANSWER_MS)
        self.page.wait_for_function("() => window.talkPage?.restored")

    def button(self, title: str) -> Any:
        return self.page.locator(f'#chat .message-buttons [title="{title}"]').last

    def settle(self) -> str:
        """Wait until the answer is there and return its text."""
        self.page.locator("#box .stop-button").wait_for(state="hidden", timeout=ANSWER_MS)
        self.page.locator("#box .submit-button").wait_for(timeout=ANSWER_MS)
        return self.answers()[-1]

    def answering(self, act: Callable[[], None]) -> str:
        """Do what starts an answer; wait for its beginning and its end, and return its text."""
        self.page.evaluate(WATCH)
        act()
        self.page.wait_for_function("() => window.began", timeout=ANSWER_MS)
        return self.settle()

    def ask(self, text: str) -> str:
        before = len(self.answers())
        self.type(text)
        self.await_answers(before + 1)
        return self.settle()

    def await_answers(self, count: int) -> None:
        deadline = time.monotonic() + ANSWER_MS / 1000
        while len(self.answers()) < count:
            assert time.monotonic() < deadline, self.rows()
            self.page.wait_for_timeout(50)

    def answers(self) -> list[str]:
        """The model's own words: bot messages without the page's lines."""
        return self.page.locator('#chat [data-testid="bot"]:not(:has(.aside))').all_inner_texts()

    def rows(self) -> list[str]:
        return self.page.locator("#chat .message").all_inner_texts()

    def stats(self) -> str:
        return self.page.locator("#chat .stats").last.inner_text()

    def toast(self) -> str:
        """Read the toast that is there or is about to come, and close it."""
        toast = self.page.get_by_test_id("toast-body").first
        toast.wait_for(timeout=20_000)
        text = toast.inner_text()
        self.page.get_by_test_id("toast-close").first.click()
        toast.wait_for(state="hidden")
        return text


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second folder of adapters, which the tests may write to."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def url(adapters: Path) -> Iterator[str]:
    with serving("--adapters", str(adapters)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *CAMERA])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Callable[..., Visitor]]:
    """Open the page as somebody new; afterwards nobody may have seen an error or left this machine."""
    visitors: list[Visitor] = []

    def new(width: int = 1440, height: int = 900) -> Visitor:
        context = browser.new_context(viewport={"width": width, "height": height})
        visitors.append(Visitor(context, url))
        return visitors[-1]

    yield new
    for visitor in visitors:
        visitor.context.close()
        assert visitor.complaints == []
        assert [u for u in visitor.requested if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", u)] == []


def test_text_answer_streams(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    final = visitor.answering(lambda: visitor.type("Write one sentence about the sea."))
    seen = visitor.page.evaluate("() => window.shown")
    assert len(seen) >= 3 and final.startswith(seen[0].rstrip())
    assert STATS.match(visitor.stats()) and visitor.stats().startswith("frozen base")


def test_the_swap_changes_the_answer_in_mid_conversation(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    plain = visitor.ask("Why is the sky blue?")
    visitor.pick("pirate")
    assert visitor.answering(visitor.button("Retry").click) != plain
    assert visitor.stats().startswith("pirate · strength 1 ·")
    visitor.set("Strength", 0)
    assert visitor.answering(visitor.button("Retry").click) == plain  # strength 0 is the frozen base
    assert len(visitor.answers()) == 1


def test_stop_stops_and_the_conversation_goes_on(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.set("Max tokens", 512)
    visitor.type("Tell me a very long story about a dragon, in many chapters.")
    visitor.await_answers(1)
    visitor.page.locator("#box .stop-button").click()
    text = visitor.settle()
    assert "stopped" in visitor.stats()
    visitor.page.wait_for_timeout(800)
    assert visitor.answers() == [text]
    visitor.set("Max tokens", 16)
    assert visitor.ask("Thank you.")
    assert len(visitor.answers()) == 2


def test_edit_and_undo(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    first = visitor.ask("Say the word apple.")
    visitor.page.locator("#chat .user-row").last.hover()
    visitor.button("Edit").click()
    visitor.page.locator("#chat textarea.edit-textarea").fill("Say the word river.")
    assert visitor.answering(visitor.button("Submit").click) != first
    assert len(visitor.answers()) == 1 and "river" in visitor.rows()[0]
    visitor.button("Undo").click()
    visitor.page.locator("#chat .example").first.wait_for()
    assert visitor.box.input_value() == "Say the word river."


def test_words_are_shown_as_they_were_written(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    stranger = "http://stranger.example/x.png"
    written = f'What is <div>, <img src="{stranger}"> or &lt;? ![x]({stranger}) \\(y\\)\n\nשלום.'
    visitor.ask(written)
    message = visitor.page.locator('#chat [data-testid="user"]').last
    shown = written.replace(f"[x]({stranger})", "x")  # a link, that nothing is fetched from
    assert message.inner_text().replace(MARK, "") == shown and message.locator("img").count() == 0
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
    visitor.button("Edit").click()
    field = visitor.page.locator("#chat textarea.edit-textarea")
    field.fill(field.input_value() + " <i>")
    visitor.answering(visitor.button("Submit").click)
    visitor.button("Undo").click()
    visitor.page.locator("#chat .example").first.wait_for()
    assert visitor.box.input_value() == written + " <i>"


def test_example_photograph_is_seen(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.page.get_by_label("What is this animal?").click()
    visitor.await_answers(1)
    assert re.search("cheetah|leopard|cat", visitor.settle(), re.IGNORECASE)
    assert visitor.picked == "see" and visitor.stats().startswith("see ·")


def test_photograph_for_a_text_adapter_is_offered_to_the_other(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.pick("pirate")
    visitor.attach(PHOTOGRAPHS / "cheetah1.jpg")
    visitor.type("What is in this picture?")
    visitor.page.get_by_role("button", name="Use see for this picture").click()
    visitor.await_answers(1)
    assert re.search("cheetah|leopard|cat", visitor.settle(), re.IGNORECASE)
    assert visitor.picked == "see"
    # An edit keeps the picture.
    visitor.page.locator("#chat .user-row").last.hover()
    visitor.button("Edit").click()
    visitor.page.locator("#chat textarea.edit-textarea").fill("Which animal is this?")
    assert visitor.answering(visitor.button("Submit").click) and "no image" not in visitor.stats()
    assert visitor.page.locator("#chat .user-row img").count() == 1


def test_pictures_can_be_pasted_and_dropped(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    data = base64.b64encode((PHOTOGRAPHS / "logo.png").read_bytes()).decode()
    transfer = """data => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], 'logo.png', {type: 'image/png'}));
        return transfer;
    }"""
    visitor.page.evaluate(
        f"""data => document.querySelector('#box textarea').dispatchEvent(
            new ClipboardEvent('paste', {{clipboardData: ({transfer})(data), bubbles: true}}))""",
        data,
    )
    visitor.page.locator("#box .thumbnail-item").wait_for()
    visitor.page.locator("#box .thumbnail-item .delete-button").click()
    visitor.page.locator("#box .thumbnail-item").wait_for(state="hidden")
    dropped = visitor.page.evaluate_handle(transfer, data)
    visitor.page.locator("#box .full-container").dispatch_event("drop", {"dataTransfer": dropped})
    visitor.page.locator("#box .thumbnail-item").wait_for()


def test_bad_input_is_a_toast_and_the_conversation_stays(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    before = visitor.rows()
    renamed = tmp_path / "cat.png"
    renamed.write_text("not a picture")
    visitor.attach(renamed)
    visitor.type("What is this?")
    said = visitor.toast()
    assert "picture" in said and str(tmp_path) not in said and "Traceback" not in said
    assert visitor.rows() == before and visitor.box.input_value() == "What is this?"
    visitor.type("x" * 100_000)
    assert "100,000" in visitor.toast()
    assert visitor.rows() == before and len(visitor.box.input_value()) == 100_000
    visitor.type("")
    assert "Type a message" in visitor.toast()
    assert visitor.ask("And good night.") and len(visitor.answers()) == 2


def test_two_people_at_once_get_what_each_gets_alone(visit: Callable[..., Visitor]) -> None:
    question = "What should I do on a rainy day?"
    alone = {}
    people = {name: visit() for name in ("", "pirate")}
    for name, visitor in people.items():
        visitor.pick(name)
        alone[name] = visitor.ask(question)
        visitor.page.locator('#chat [title="Clear"]').click()
        visitor.page.locator("#chat .example").first.wait_for()
    assert alone[""] != alone["pirate"]
    for visitor in people.values():
        visitor.type(question)
    for name, visitor in people.items():
        visitor.await_answers(1)
        assert visitor.settle() == alone[name]
        assert visitor.stats().startswith(name or "frozen base")


def test_adapters_come_and_go_while_the_page_is_open(visit: Callable[..., Visitor], adapters: Path) -> None:
    visitor = visit()
    shutil.copytree(SHIPPED / "pirate", adapters / "parrot")
    card = visitor.page.locator('#picker label:has(input[value="parrot"])')
    card.wait_for(timeout=15_000)
    visitor.pick("parrot")
    shutil.rmtree(adapters / "parrot")
    assert visitor.toast().endswith(texts.adapter_gone("parrot"))  # nobody has to send a message first
    card.wait_for(state="hidden", timeout=15_000)
    assert visitor.picked == ""


def test_phone_has_no_horizontal_scroll(visit: Callable[..., Visitor]) -> None:
    visitor = visit(390, 844)
    wide = "() => document.documentElement.scrollWidth"
    assert visitor.page.evaluate(wide) <= 390
    visitor.set("Max tokens", 16)
    visitor.ask("Say " + "averyverylongword" * 12)
    assert visitor.page.evaluate(wide) <= 390
    assert visitor.page.locator("#box .submit-button").bounding_box()["width"] >= 24
