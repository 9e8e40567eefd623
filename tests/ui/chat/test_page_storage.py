"""The page in Chromium over a fake engine: the browser's storage, files and links, and dividers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware import Middleware

import app
from adapter.errors import Busy
from adapter.server.request_guard import RequestGuard
from adapter.server.transcript import FORGOTTEN
from adapter.ui import theme
from adapter.ui.chat import conversation_json
from adapter.ui.texts import page as texts
from tests.app_process import PATIENCE, wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider

pytestmark = [pytest.mark.slow, pytest.mark.browser]


class GatedEngine(EchoEngine):
    """An engine whose answers wait after their first piece while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def submit(self, request: Any) -> Any:
        answer = super().submit(request)
        events = answer.mailbox.events

        def gated() -> Iterator[Any]:
            yield next(events)
            assert self.gate.wait(PATIENCE)
            yield from events

        answer.mailbox.events = gated()
        return answer


ENGINE = GatedEngine()


@pytest.fixture
def closed_gate() -> Iterator[GatedEngine]:
    ENGINE.gate.clear()
    yield ENGINE
    ENGINE.error = None
    ENGINE.gate.set()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page in this process whose engine echoes what it is told."""
    with pytest.MonkeyPatch.context() as environment:
        uploads = tmp_path_factory.mktemp("uploads")
        environment.setenv("GRADIO_TEMP_DIR", str(uploads))
        page = app.build_page(ReadyProvider(ENGINE), FakeCatalog())
        _, address, _ = page.launch(
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            theme=theme.gradio_theme(),
            css_paths=theme.STYLE_SHEETS,
            head=theme.HEAD,
            favicon_path=theme.ICON,
            app_kwargs={"middleware": [Middleware(RequestGuard, public=False, files=uploads)]},
        )
        yield address
        page.close(verbose=False)


def open_conversation_panel(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name=texts.THIS_CONVERSATION).click()
    visitor.page.get_by_role("button", name=texts.EXPORT).wait_for()


def clear(visitor: Visitor) -> None:
    visitor.page.locator('#chat [title="Clear"]').click()
    visitor.page.locator("#chat .example").first.wait_for()


def open_list(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name=texts.CONVERSATIONS).click()
    visitor.page.locator("#conversations dialog[open]").wait_for()


def titles(visitor: Visitor) -> list[str]:
    return visitor.page.locator("#conversations li button[name=open] span:first-child").all_inner_texts()


def new_conversation(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name=texts.NEW_CONVERSATION).click()
    visitor.page.locator("#chat .example").first.wait_for()


def stored(visitor: Visitor) -> list[dict[str, Any]]:
    """The conversations in the browser's storage."""
    return visitor.page.evaluate(
        """() => new Promise(done => {
            indexedDB.open("llama-adapter").onsuccess = ({ target: { result } }) => {
                const all = result.transaction("conversations").objectStore("conversations").getAll();
                all.onsuccess = () => done(all.result);
            };
        })"""
    )


def wait_for_rows(visitor: Visitor, rows: list[str]) -> None:
    expected = (
        "rows => JSON.stringify([...document.querySelectorAll('#chat .message')].map(e => e.innerText.trim())"
    )
    visitor.page.wait_for_function(f"{expected}) === JSON.stringify(rows)", arg=[row.strip() for row in rows])


def export(visitor: Visitor, to: Path) -> dict[str, Any]:
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("button", name=texts.EXPORT).click()
    assert download.value.suggested_filename == "conversation.json"
    download.value.save_as(to)
    return json.loads(to.read_text(encoding="utf-8"))


def import_file(visitor: Visitor, file: Path) -> None:
    visitor.page.locator("#this-conversation input[type=file]").set_input_files(file)


def ask_about(visitor: Visitor, picture: Path, question: str) -> str:
    visitor.attach(picture)
    return visitor.ask(question)


def loaded_picture(visitor: Visitor) -> str:
    """The address of the conversation's picture, once it is shown."""
    picture = visitor.page.locator("#chat .user-row img")
    picture.wait_for()
    assert picture.evaluate("async e => { await e.decode(); return e.naturalWidth; }") > 100
    return picture.get_attribute("src")


def test_each_tab_keeps_its_own_conversation(visit: Callable[..., Visitor], url: str) -> None:
    one = visit()
    one.ask("Good morning.")
    two = Visitor(one.context, url)
    wait_for_rows(two, one.rows())  # what was changed last
    one.ask("And now?")
    two.reload()
    wait_for_rows(two, one.rows())  # a tab that has changed nothing has no conversation of its own
    clear(two)
    two.ask("Why is the sky blue?")
    for tab in (one, two):
        rows = tab.rows()
        tab.reload()
        wait_for_rows(tab, rows)
    assert one.rows() != two.rows() and two.complaints == []
    one.page.get_by_role("button", name="Sampling").click()
    one.ask("And good night.")
    three = Visitor(one.context, url)
    wait_for_rows(three, one.rows())


def test_a_new_tab_finds_the_pictures_of_the_tab_that_was_changed_last(
    visit: Callable[..., Visitor], url: str
) -> None:
    one = visit()
    one.pick("see")
    ask_about(one, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    two = Visitor(one.context, url)
    wait_for_rows(two, one.rows())
    clear(two)
    ask_about(two, PHOTOGRAPHS / "logo.png", "And this?")
    one.ask("Really?")
    three = Visitor(one.context, url)
    wait_for_rows(three, one.rows())
    assert loaded_picture(three) == loaded_picture(one)


def test_a_full_storage_keeps_what_it_has_and_says_so(browser: Any, url: str) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    quota = {
        "origin": url.rstrip("/"),
        "quotaSize": 120_000,
    }  # before the first use: Chromium remembers for a while
    context.new_cdp_session(context.new_page()).send("Storage.overrideQuotaForOrigin", quota)
    visitor = Visitor(context, url)
    visitor.ask("Good morning.")
    for number in range(12):
        kept = visitor.rows()
        assert visitor.ask(f"{number} {'?' * 19_000}")
        if visitor.page.get_by_test_id("toast-body").count():
            break
    assert texts.STORAGE_FULL in visitor.toast() and visitor.complaints == []
    visitor.reload()
    wait_until(lambda: visitor.rows()[:3] == kept[:3])
    context.close()


def test_without_any_storage_the_page_works(browser: Any, url: str) -> None:
    context = browser.new_context()
    context.add_init_script(
        """for (const name of ["localStorage", "sessionStorage", "indexedDB"])
            Object.defineProperty(window, name,
                { configurable: true, get() { throw new DOMException("no", "SecurityError"); } })"""
    )
    visitor = Visitor(context, url)
    assert visitor.ask("Good morning.")
    new_conversation(visitor)
    assert visitor.ask("Good evening.")
    open_list(visitor)
    visitor.page.get_by_text(texts.NOTHING_IS_KEPT).wait_for()
    visitor.page.locator("#conversations li").get_by_text("Good morning.").click()
    visitor.page.locator("#chat").get_by_text("you said: Good morning.!").wait_for()
    assert visitor.complaints == []
    context.close()


def test_broken_storage_is_an_empty_conversation(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    visitor.page.evaluate(
        """() => new Promise(done => {
            [localStorage, sessionStorage].forEach(
                storage => Object.keys(storage).forEach(key => storage.setItem(key, '{broken')));
            indexedDB.open("llama-adapter").onsuccess = ({ target: { result } }) => {
                const put = result.transaction("conversations", "readwrite").objectStore("conversations");
                const messages = [null, 7, { role: "user", text: [] }];
                const document = { format: "llama-adapter conversation", version: 2, messages };
                put.put({ id: "{broken", document }).onsuccess = done;
            };
        })"""
    )
    visitor.reload()
    visitor.page.get_by_text("cannot be read any more").first.wait_for()
    open_list(visitor)
    assert visitor.page.locator("#conversations li").count() == 2
    visitor.page.keyboard.press("Escape")
    assert visitor.ask("Good evening.")
    # Gradio notes each broken BrowserState in the console and goes on with its default.
    visitor.complaints[:] = [c for c in visitor.complaints if not c.startswith("Error reading from localStorage:")]


def test_what_an_earlier_version_has_stored_is_taken_over_once(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    visitor = visit()
    visitor.pick("see")
    ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    rows = visitor.rows()
    open_conversation_panel(visitor)
    document = export(visitor, tmp_path / "a.json")
    pictures = document.pop("pictures")
    visitor = visit()
    visitor.page.evaluate(
        """([words, pictures]) => [localStorage, sessionStorage].forEach(storage => {
            storage.setItem("llama-adapter:words", JSON.stringify(words));
            storage.setItem("llama-adapter:pictures", JSON.stringify(pictures));
        })""",
        [document, pictures],
    )
    visitor.reload()
    wait_for_rows(visitor, rows)
    assert loaded_picture(visitor)
    visitor.reload()
    wait_for_rows(visitor, rows)
    open_list(visitor)
    assert visitor.page.locator("#conversations li").count() == 1


def test_export_clear_import(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    visitor.ask("Why is the sky blue?")
    visitor.pick("see")
    ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    rows = visitor.rows()
    open_conversation_panel(visitor)
    file = tmp_path / "a.json"
    found = export(visitor, file)
    assert [m["role"] for m in found["messages"]] == ["user", "assistant", "user", "user", "assistant"]
    assert found["version"] == 2 and found["settings"]["adapter"] == "see"
    assert found["pictures"][found["messages"][2]["picture"]].startswith("data:image/jpeg;base64,")
    assert found["messages"][4]["record"]["adapter"] == "see"
    clear(visitor)
    visitor.pick("poet")
    import_file(visitor, file)
    wait_for_rows(visitor, rows)
    assert visitor.picked == "see" and loaded_picture(visitor)
    assert export(visitor, tmp_path / "b.json") == found
    visitor.reload()
    wait_for_rows(visitor, rows)


def test_an_invalid_import_is_a_toast_and_changes_nothing(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    rows = visitor.rows()
    open_conversation_panel(visitor)
    head = {"format": "llama-adapter conversation", "version": 1}
    wrong = [
        ("{", "not JSON"),
        (json.dumps({**head, "version": 9}), "version"),
        (json.dumps({**head, "messages": [{"role": "user", "picture": "/etc/hosts"}]}), "data URL"),
        (json.dumps({**head, "messages": [{"role": "user", "picture": "data:image/png;base64,AAAA"}]}), "picture"),
    ]
    for number, (text, sentence) in enumerate(wrong):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        import_file(visitor, file)
        assert sentence in visitor.toast()
        wait_until(lambda: visitor.rows() == rows)


def test_a_link_opens_elsewhere_and_replaces_nothing_until_one_goes_on(
    visit: Callable[..., Visitor], tmp_path: Path, closed_gate: GatedEngine
) -> None:
    closed_gate.gate.set()
    sender = visit()
    sender.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sender.ask("Why is the sky blue?")
    rows = sender.rows()
    open_conversation_panel(sender)
    sender.page.get_by_role("button", name=texts.COPY_LINK).click()
    assert "Link copied" in sender.toast()
    link = sender.page.evaluate("() => navigator.clipboard.readText()")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#chat=[\w-]+", link)

    reader = visit()
    reader.ask("Good morning.")
    own = reader.rows()
    reader.page.goto(link)  # only the part after # is another one
    wait_for_rows(reader, rows)
    assert "came with the link" in reader.toast()
    reader.page.goto(link.partition("#")[0])
    wait_for_rows(reader, own)
    reader.page.goto(link)
    wait_for_rows(reader, rows)
    reader.toast()
    reader.page.get_by_role("button", name="Sampling").click()
    closed_gate.gate.clear()
    reader.type("And the sea?")
    reader.page.wait_for_url(link.partition("#")[0])  # while it is being answered
    closed_gate.gate.set()
    reader.await_answers(2)
    reader.settle()
    gone_on = reader.rows()
    assert gone_on[: len(rows)] == rows
    reader.reload()
    wait_for_rows(reader, gone_on)
    reader.page.goto(link.partition("#")[0] + "#chat=broken")
    assert "no conversation" in reader.toast() and reader.rows() == []
    open_list(reader)
    reader.page.locator("#conversations li button").first.click()
    wait_for_rows(reader, gone_on)
    # A file that is brought in is the reader's own, and leaves the link.
    open_conversation_panel(reader)
    export(reader, tmp_path / "own.json")
    reader.page.goto(link)
    wait_for_rows(reader, rows)
    reader.toast()
    open_conversation_panel(reader)
    import_file(reader, tmp_path / "own.json")
    wait_for_rows(reader, gone_on)
    reader.page.wait_for_url(link.partition("#")[0])
    reader.reload()
    wait_for_rows(reader, gone_on)
    assert not [u for u in reader.requested if "chat=" in u]


def test_dividers_through_retry_edit_and_undo(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    dividers = visitor.page.locator("#chat .divider")
    visitor.ask("Why is the sky blue?")
    visitor.pick("poet")
    visitor.ask("And the sea?")
    assert dividers.all_inner_texts() == ["poet"] and visitor.rows()[3] == "poet"
    visitor.pick("")
    visitor.answering(visitor.button("Retry").click)
    assert dividers.count() == 0
    visitor.pick("see")
    visitor.answering(visitor.button("Retry").click)
    assert dividers.all_inner_texts() == ["see"]
    visitor.page.locator("#chat .user-row").last.hover()
    visitor.button("Edit").click()
    visitor.page.locator("#chat textarea.edit-textarea").fill("And the moon?")
    visitor.pick("poet")
    visitor.answering(visitor.button("Submit").click)
    assert dividers.all_inner_texts() == ["poet"] and len(visitor.answers()) == 2
    visitor.button("Undo").click()
    dividers.wait_for(state="detached")
    assert visitor.box.input_value() == "And the moon?" and len(visitor.rows()) == 3


def test_after_a_switch_the_last_message_can_be_answered_alone(
    visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visit()
    lines, alone = visitor.page.locator("#chat .divider"), visitor.page.get_by_role("button", name=texts.ALONE)
    visitor.ask("Where shall I go in May?")
    assert alone.count() == 0
    visitor.pick("poet")
    monkeypatch.setattr(ENGINE, "ending", "repetition")
    visitor.ask("Who are you?")
    visitor.reload()
    visitor.answering(alone.click)
    assert [message.text for message in ENGINE.requests[-1].messages] == ["Who are you?"]
    assert lines.all_inner_texts() == [FORGOTTEN, "poet"] and alone.count() == 0
    visitor.reload()
    wait_until(lambda: lines.all_inner_texts() == [FORGOTTEN, "poet"], visitor.rows)
    visitor.ask("And then?")
    assert len(ENGINE.requests[-1].messages) == 3


def test_a_message_and_a_choice_during_the_restore_replace_nothing(
    visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    visitor.pick("poet")
    rows = visitor.rows()
    restore, gate = conversation_json.from_browser, threading.Event()
    monkeypatch.setattr(
        conversation_json, "from_browser", lambda *stored: gate.wait(PATIENCE) and restore(*stored)
    )
    visitor.page.reload()
    visitor.page.locator(".status.ready").wait_for()
    visitor.pick("see")
    visitor.type("And now?")
    assert texts.STILL_RESTORING in visitor.toast()
    assert visitor.box.input_value() == "And now?" and visitor.rows() == []
    gate.set()
    wait_for_rows(visitor, rows)
    visitor.page.wait_for_function("() => window.chatPage.restored")
    assert visitor.picked == "see"
    visitor.box.press("Enter")
    visitor.await_answers(2)
    visitor.settle()
    gone_on = visitor.rows()
    assert gone_on[: len(rows)] == rows
    visitor.reload()
    wait_for_rows(visitor, gone_on)
    assert visitor.picked == "see"


def test_a_stop_that_is_on_its_way_when_the_answer_ends_changes_nothing(
    visit: Callable[..., Visitor], closed_gate: GatedEngine
) -> None:
    visitor = visit()
    held: list[Any] = []
    visitor.type("Good morning.")
    visitor.await_answers(1)
    arrived = threading.Event()

    def hold(route: Any) -> None:
        route.continue_() if arrived.is_set() else held.append(route)

    visitor.page.route("**/gradio_api/run/**", hold)
    visitor.page.locator("#box .stop-button").click()
    wait_until(
        lambda: (
            visitor.page.wait_for_timeout(20)
            or any("Good morning." in (route.request.post_data or "") for route in held)
        )
    )
    closed_gate.gate.set()
    assert visitor.settle() == "you said: Good morning.!"
    rows = visitor.rows()
    arrived.set()
    with visitor.page.expect_response("**/gradio_api/run/**"):
        for route in held:
            route.continue_()
    visitor.page.wait_for_function("() => window.chatPage.restored")
    assert visitor.ask("And now?") == "you said: And now?!"
    assert visitor.rows()[: len(rows)] == rows and not any("stopped" in row for row in visitor.rows())
    rows = visitor.rows()
    visitor.reload()
    wait_for_rows(visitor, rows)


# What the server streams arrives a tenth of a second late, as from far away.
FAR_AWAY = """(() => {
    const { fetch } = window;
    window.fetch = async (...asked) => {
        const response = await fetch(...asked);
        if (!String(asked[0]?.url ?? asked[0]).includes('/queue/data')) return response;
        const late = new TransformStream({
            transform: async (part, stream) => {
                await new Promise(done => setTimeout(done, 100));
                stream.enqueue(part);
            },
        });
        return new Response(response.body.pipeThrough(late), response);
    };
})()"""


def test_no_event_waits_for_ever_for_a_stream_that_the_server_has_ended(browser: Any, url: str) -> None:
    for _ in range(5):  # without the guard three of four pages wait
        context = browser.new_context()
        context.add_init_script(FAR_AWAY)
        visitor = Visitor(context, url)  # waits until the page is ready
        assert visitor.ask("Good morning.") == "you said: Good morning.!"
        new_conversation(visitor)
        assert visitor.ask("And now?") == "you said: And now?!", "sent while the conversation was being opened"
        new_conversation(visitor)
        visitor.page.locator("#chat .example").nth(1).click()
        visitor.await_answers(1)
        context.close()


def test_a_failed_answer_leaves_the_adapter_that_was_chosen_meanwhile(
    visit: Callable[..., Visitor], closed_gate: GatedEngine
) -> None:
    visitor = visit()
    visitor.pick("poet")
    for choice, adapter in (("see", "see"), ("poet", "poet")):
        closed_gate.gate.clear()
        closed_gate.error = Busy("Pulled.")
        visitor.type("Good morning.")
        visitor.await_answers(1)
        visitor.pick(choice)
        closed_gate.gate.set()
        assert "Pulled." in visitor.toast()
        wait_until(lambda: visitor.rows() == [] and visitor.box.input_value() == "Good morning.")
        assert visitor.picked == adapter
    # What the answer itself has chosen is put back.
    closed_gate.gate.clear()
    visitor.page.get_by_label("What is this animal?").click()
    visitor.await_answers(1)
    assert visitor.picked == "see"
    closed_gate.gate.set()
    assert "Pulled." in visitor.toast()
    visitor.page.locator('#picker input[value="poet"]:checked').wait_for()


def test_clear_while_an_answer_is_written(visit: Callable[..., Visitor], closed_gate: GatedEngine) -> None:
    visitor = visit()
    visitor.type("Good morning.")
    visitor.await_answers(1)
    clear(visitor)
    closed_gate.gate.set()
    visitor.page.locator("#box .submit-button").wait_for()
    assert visitor.ask("And now?") == "you said: And now?!" and len(visitor.answers()) == 1
    rows = visitor.rows()
    visitor.reload()
    wait_for_rows(visitor, rows)
