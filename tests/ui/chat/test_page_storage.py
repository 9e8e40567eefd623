"""The browser's storage, files and links in Chromium, over a fake engine."""

import threading
from typing import Any
from urllib.request import urlopen

import pytest

from adapter.errors import Busy
from adapter.ui.chat import conversation_json
from adapter.ui.texts import page as texts
from tests.app_process import PATIENCE, wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.ui.fake_page import closed_gate, url

__all__ = ["closed_gate", "url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_a_full_storage_keeps_what_it_has_and_says_so(browser, url, tmp_path):
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    # Before the first use: Chromium remembers the quota for a while.
    quota = {"origin": url.rstrip("/"), "quotaSize": 120_000}
    context.new_cdp_session(context.new_page()).send("Storage.overrideQuotaForOrigin", quota)
    visitor = Visitor(context, url)
    visitor.ask("Good morning.")
    for number in range(12):
        kept = visitor.rows()
        assert visitor.ask(f"{number} {'?' * 19_000}")
        if visitor.page.get_by_test_id("toast-body").count():
            break
    assert texts.STORAGE_FULL in visitor.toast() and visitor.complaints == []
    all_of_it = visitor.rows()
    visitor.new_conversation()
    visitor.ask("Hello.")  # which fits
    visitor.open_conversation("Good morning.")
    visitor.wait_for_rows(all_of_it)
    visitor.pick("poet")  # what is newer than what is stored would be gone with the setting
    visitor.open_conversation_panel()
    assert len(visitor.export(tmp_path / "all.json")["messages"]) == 2 * len(visitor.answers())
    visitor.reload()
    wait_until(lambda: visitor.rows()[:3] == kept[:3])
    context.close()


def test_a_storage_that_the_browser_has_closed_is_opened_again(visit):
    visitor = visit()
    visitor.page.evaluate(
        """(({ transaction }) => void (IDBDatabase.prototype.transaction = function (...asked) {
            this.close();
            return Object.assign(IDBDatabase.prototype, { transaction }) && this.transaction(...asked);
        }))(IDBDatabase.prototype)"""
    )
    visitor.ask("Good morning.")
    wait_until(lambda: "you said: Good morning." in str(visitor.stored()))


def test_without_any_storage_the_page_works(browser, url):
    context = browser.new_context()
    context.add_init_script(
        """for (const name of ["localStorage", "sessionStorage", "indexedDB"])
            Object.defineProperty(window, name,
                { configurable: true, get() { throw new DOMException("no", "SecurityError"); } })"""
    )
    visitor = Visitor(context, url)
    assert visitor.ask("Good morning.")
    visitor.new_conversation()
    assert visitor.ask("Good evening.")
    visitor.open_list()
    visitor.page.get_by_text(texts.NOTHING_IS_KEPT).wait_for()
    visitor.page.locator("#conversations li").get_by_text("Good morning.").click()
    visitor.page.locator("#chat").get_by_text("you said: Good morning.!").wait_for()
    assert visitor.complaints == []
    context.close()


def test_a_file_is_exported_and_imported(visit, tmp_path):
    visitor = visit()
    visitor.pick("see")
    visitor.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    rows = visitor.rows()
    visitor.open_conversation_panel()
    file = tmp_path / "a.json"
    found = visitor.export(file)
    assert found["version"] == 2 and found["messages"][2]["record"]["adapter"] == "see"
    visitor.delete()
    visitor.pick("poet")
    visitor.import_file(file)
    visitor.wait_for_rows(rows)
    wait_until(lambda: visitor.picked == "see" and visitor.loaded_picture())
    assert visitor.export(tmp_path / "b.json") == found
    # A file that is refused is a toast and changes nothing.
    (tmp_path / "c.json").write_text("{")
    visitor.import_file(tmp_path / "c.json")
    assert "not JSON" in visitor.toast()
    visitor.reload()
    visitor.wait_for_rows(rows)


def test_a_link_opens_elsewhere_and_replaces_nothing_until_one_goes_on(visit):
    sender = visit()
    sender.pick("see")
    sender.set("Strength", 0.5)
    sender.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    sender.open_conversation_panel()
    sender.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sender.page.get_by_role("button", name=texts.COPY_LINK).click()
    assert "Link copied" in sender.toast()
    link = sender.page.evaluate("() => navigator.clipboard.readText()")
    question, *answered = sender.rows()[1:]  # the answer at strength 0 stands above the adapter's
    rows = [texts.PICTURE_NOT_SENT, question, texts.at_strength_0("you said: What is this?!"), *answered]
    address = link.partition("#")[0]

    reader = visit()
    reader.ask("Good morning.")
    own = reader.rows()
    reader.page.goto(link)  # only the part after # is another one
    reader.wait_for_rows(rows)
    assert "came with the link" in reader.toast()
    strength = reader.page.get_by_label("number input for Strength")
    wait_until(lambda: (reader.picked, strength.input_value()) == ("see", "0.5"))
    reader.page.go_back()
    reader.wait_for_rows(own)
    reader.page.goto(link)
    reader.wait_for_rows(rows)
    reader.new_conversation()
    wait_until(lambda: (reader.picked, strength.input_value()) == ("", "1"))
    reader.open_conversation("Good morning.")
    reader.wait_for_rows(own)
    held = list[Any]()
    reader.page.route("**/heartbeat/**", lambda route: held.append(urlopen(route.request.url)))
    reader.page.goto(link)
    reader.wait_for_rows(rows)
    held.pop().close()  # the page sleeps
    reader.toast()  # which takes longer than the server takes to notice
    reader.page.evaluate("() => window.dispatchEvent(new Event('visibilitychange'))")
    assert "came with the link" in reader.toast() and "#chat=" in reader.page.url, "nobody has gone on yet"
    reader.ask("And the sea?")
    reader.page.wait_for_url(address)
    gone_on = reader.rows()
    assert gone_on[: len(rows)] == rows
    reader.reload()
    reader.wait_for_rows(gone_on)
    with reader.page.expect_event("load"):  # a page that is being left has toasts too: its connections end
        reader.page.goto(f"{address}#chat=broken")
    assert "no conversation" in reader.toast()
    reader.wait_for_rows(gone_on)
    assert reader.ask("And the moon?") == "you said: And the moon?!"
    assert not [u for u in reader.requested if "chat=" in u]


def test_a_message_during_the_restore_waits_for_it(visit, monkeypatch):
    visitor = visit()
    visitor.ask("Good morning.")
    rows = visitor.rows()
    restore, gate = conversation_json.read, threading.Event()
    monkeypatch.setattr(conversation_json, "read", lambda *of, **how: gate.wait(PATIENCE) and restore(*of, **how))
    visitor.page.reload()
    visitor.page.locator(".status.ready").wait_for()
    visitor.type("And now?")
    assert visitor.box.input_value() == "And now?" and visitor.rows() == []
    gate.set()
    visitor.await_answers(2)
    visitor.settle()
    assert visitor.rows()[: len(rows)] == rows


def test_a_failed_answer_leaves_the_adapter_that_was_chosen_meanwhile(visit, closed_gate):
    visitor = visit()
    visitor.pick("poet")
    closed_gate.error = Busy("Pulled.")
    visitor.type("Good morning.")
    visitor.await_answers(1)
    visitor.pick("see")
    closed_gate.gate.set()
    assert "Pulled." in visitor.toast()
    wait_until(lambda: (visitor.rows(), visitor.box.input_value(), visitor.picked) == ([], "Good morning.", "see"))


def test_deletion_while_an_answer_is_written(visit, closed_gate):
    visitor = visit()
    visitor.type("Good morning.")
    visitor.await_answers(1)
    visitor.delete()
    closed_gate.gate.set()
    visitor.page.locator("#box .submit-button").wait_for()
    assert visitor.ask("And now?") == "you said: And now?!" and len(visitor.answers()) == 1
    rows = visitor.rows()
    visitor.new_conversation()
    closed_gate.gate.clear()
    visitor.type("Good evening.")
    visitor.await_answers(1)
    visitor.open_list()
    visitor.page.get_by_label(texts.DELETE).last.click()
    closed_gate.gate.set()
    visitor.page.locator("#chat").get_by_text("Good evening.!").wait_for()
    wait_until(lambda: "Good evening.!" in str(visitor.stored()))
    visitor.page.locator("#conversations [name=undo]").click()  # an answer that ends leaves it there
    visitor.wait_for_rows(rows)
    visitor.reload()
    visitor.wait_for_rows(rows)
