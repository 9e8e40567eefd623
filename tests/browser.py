"""A visitor of the page in headless Chromium."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio

from adapter.ui.texts import page as texts
from tests.app_process import PATIENCE, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
PHOTOGRAPHS = Path(gradio.__file__).parent / "media_assets" / "images"
PATIENCE_MS = 1000 * PATIENCE  # a wait that is longer is a fault
SERIOUS = {"serious", "critical"}
LEAVING = re.compile("AbortError|Connection errored out")
# The browser itself notes what happens: an answer can be shorter than the way to a question about it and back.
WATCH = """() => {
    window.began = false;
    window.before = window.chatPage.kept;
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
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"

# What the server streams arrives so many milliseconds late, as from far away.
LATE_STREAM = """(() => {
    const { fetch } = window;
    window.fetch = async (...asked) => {
        const response = await fetch(...asked);
        if (!String(asked[0]?.url ?? asked[0]).includes('/queue/data')) return response;
        const late = new TransformStream({
            transform: async (part, stream) => {
                await new Promise(done => setTimeout(done, MILLISECONDS));
                stream.enqueue(part);
            },
        });
        return new Response(response.body.pipeThrough(late), response);
    };
})()"""


def findings(page: Any, context: str | None = None) -> list[str]:
    """What axe-core calls serious or critical, and headings out of order, everywhere or below `context`."""
    from axe_playwright_python.sync_playwright import Axe

    wait_for_fades(page)  # a half faded text has half its contrast
    report = Axe().run(page, context=context).response
    assert len(report["passes"]) > 10, "the rules were not run"
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}"
        for rule in report["violations"]
        if rule["impact"] in SERIOUS or rule["id"] == "heading-order"
        for node in rule["nodes"]
    ]


def wait_for_fades(page: Any) -> None:
    """Until nothing moves but what moves for ever."""
    page.wait_for_function(
        """() => document.getAnimations().every(
            a => a.playState !== 'running' || a.effect.getComputedTiming().iterations === Infinity)"""
    )


class Visitor:
    """One browser context on the page. Answers are greedy and short unless a test says otherwise."""

    def __init__(self, context: Any, url: str) -> None:
        self.context = context
        context.set_default_timeout(PATIENCE_MS)
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requested: set[str] = set()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("framenavigated", self._left)
        self.page.on("request", lambda request: self.requested.add(request.url))
        self.page.goto(url)
        self.page.locator(".status.ready").wait_for()
        self.page.wait_for_function("() => window.chatPage?.restored")
        self.open_drawer()
        self.page.get_by_role("button", name="Sampling").click()
        self.set("Temperature", 0)
        self.set("Max tokens", 16)
        self.close_drawer()
        self.first_picked = self.picked
        self.pick("")

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} {message.location['url']}")

    def _left(self, frame: Any) -> None:
        """Forget what Gradio says in a page that is being left: that its connections end."""
        if frame == self.page.main_frame:
            self.complaints[:] = [c for c in self.complaints if not LEAVING.search(c)]

    def open_drawer(self) -> None:
        if not self.page.locator("#more > .label-wrap.open").is_visible():
            self.page.locator("#more > .label-wrap").click()

    def close_drawer(self) -> None:
        self.page.locator("#more > .label-wrap.open").click()

    def set(self, label: str, value: float, within: Any = None) -> None:
        """Sets a slider of the page, or of the part `within` of it. What is sent afterwards has the value."""
        field = (within or self.page).get_by_label(f"number input for {label}")
        if within is None and not field.is_visible():
            self.open_drawer()
        field.wait_for()

        def is_set() -> bool:
            # When an accordion opens, Gradio (6.31) gives its fields their first values again in the next frame.
            self.page.evaluate(TWO_FRAMES)
            field.fill(f"{value:g}")
            field.blur()
            self.page.evaluate(TWO_FRAMES)
            return field.input_value() == f"{value:g}"

        wait_until(is_set, lambda: f"{label} does not take {value:g}")

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

    def reload(self) -> None:
        self.page.reload()
        self.page.locator(".status.ready").wait_for()
        self.page.wait_for_function("() => window.chatPage?.restored")

    def button(self, title: str) -> Any:
        return self.page.locator(f'#chat .message-buttons [title="{title}"]').last

    def settle(self) -> str:
        """Wait until the answer is there and return its text."""
        self.page.locator("#box .stop-button").wait_for(state="hidden")
        self.page.locator("#box .submit-button").wait_for()
        self.page.evaluate(TWO_FRAMES)  # in which the scripts of the page keep and colour what came
        return self.answers()[-1]

    def answering(self, act: Callable[[], None]) -> str:
        """Do what starts an answer; wait for its beginning and its end, and return its text."""
        self.page.evaluate(WATCH)
        act()
        # A short answer may end before the page draws its beginning.
        self.page.wait_for_function("() => window.began || window.chatPage.kept > window.before")
        return self.settle()

    def ask(self, text: str) -> str:
        before = len(self.answers())
        self.type(text)
        self.await_answers(before + 1)
        return self.settle()

    def await_answers(self, count: int) -> None:
        wait_until(lambda: len(self.answers()) >= count, self.rows)

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
        text = toast.inner_text()  # which waits for it
        # Not locator.click(): it would wait for a button that has gone by itself meanwhile.
        self.page.evaluate("""() => document.querySelector('[data-testid="toast-close"]')?.click()""")
        toast.wait_for(state="hidden")
        return text

    def wait_for_rows(self, rows: list[str]) -> None:
        """Until the conversation has exactly these messages, in a page that may be loaded anew meanwhile."""
        expected = [row.strip() for row in rows]
        from playwright.sync_api import TimeoutError

        with contextlib.suppress(TimeoutError):  # the assertion shows what is there instead
            self.page.wait_for_function(
                """expected => JSON.stringify(expected) === JSON.stringify(
                    [...document.querySelectorAll('#chat .message')].map(row => row.innerText.trim()))""",
                arg=expected,
            )
        assert [row.strip() for row in self.rows()] == expected

    def ask_about(self, picture: Path, question: str) -> str:
        self.page.locator("#box input[type=file]").set_input_files(picture)
        self.page.locator("#box .thumbnail-item").wait_for()
        return self.ask(question)

    def loaded_picture(self) -> str:
        """The address of the conversation's picture, once it is shown."""
        picture = self.page.locator("#chat .user-row img")
        picture.wait_for()
        assert picture.evaluate("async e => { await e.decode(); return e.naturalWidth; }") > 100
        return picture.get_attribute("src")

    def open_edit(self) -> Any:
        """The editor of the newest message."""
        self.page.locator("#chat .user-row").last.hover()
        self.button("Edit").click()
        return self.page.locator("#chat textarea.edit-textarea")

    def edit(self, text: str) -> Any:
        """Writes into the editor of the newest message, and returns it."""
        field = self.open_edit()
        field.fill(text)
        return field

    def delete(self) -> None:
        """Deletes the conversation that is shown."""
        self.open_list()
        self.page.locator("#conversations li:has([aria-current]) [name=delete]").click()
        self.page.locator("#chat .example").first.wait_for()

    def new_conversation(self) -> None:
        self.page.get_by_role("button", name=texts.NEW_CONVERSATION).click()
        self.page.locator("#chat .example:visible").first.wait_for()

    def open_list(self) -> None:
        self.page.get_by_role("button", name=texts.CONVERSATIONS).click()
        self.page.locator("#conversations dialog[open]").wait_for()

    def titles(self) -> list[str]:
        return self.page.locator("#conversations li button[name=open] span:first-child").all_inner_texts()

    def open_conversation(self, title: str) -> None:
        self.open_list()
        self.page.locator("#conversations li button[name=open]").get_by_text(title, exact=True).click()

    def stored(self) -> list[dict[str, Any]]:
        """The conversations in the browser's storage."""
        return self.page.evaluate(
            """() => new Promise(done => {
                indexedDB.open("llama-adapter").onsuccess = ({ target: { result } }) => {
                    const all = result.transaction("conversations").objectStore("conversations").getAll();
                    all.onsuccess = () => done(all.result);
                };
            })"""
        )

    def open_conversation_panel(self) -> None:
        self.open_drawer()
        self.page.get_by_role("button", name=texts.THIS_CONVERSATION).click()
        self.page.get_by_role("button", name=texts.EXPORT).wait_for()

    def export(self, to: Path) -> dict[str, Any]:
        self.open_drawer()
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=texts.EXPORT).click()
        assert download.value.suggested_filename == "conversation.json"
        download.value.save_as(to)
        return json.loads(to.read_text(encoding="utf-8"))

    def import_file(self, file: Path) -> None:
        self.page.locator("#this-conversation input[type=file]").set_input_files(file)
