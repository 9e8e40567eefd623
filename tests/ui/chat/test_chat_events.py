"""The chat's events over a fake engine: what they ask of it, what a page shows then, and in which order they come.

`Page` is the browser's part: an event takes the id of what is shown along, updates are applied as they come.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from adapter.base.template import Message
from adapter.errors import Busy
from adapter.serve.request import Client
from adapter.serve.settings import Settings
from adapter.ui import conversation, session, theme
from adapter.ui.answer_stream import TEXT_ONLY, USE
from adapter.ui.chat import conversation_json
from adapter.ui.chat.chatbot import View
from adapter.ui.chat.conversation_store import ConversationStore, Updates
from adapter.ui.chat.events import ChatEvents
from adapter.ui.conversation import Entry, History, user_turn
from adapter.ui.session import Conversations, Forgotten, NotOpen, StillAnswering
from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.fake_engine import EchoEngine, FakeCard, FakeCatalog, ReadyProvider, event_request
from tests.ui.test_conversation import displayed

DEFAULTS = {**Settings().model_dump(), "temperature": 0.0, "top_p": 1.0, "max_tokens": 32}
WHOLE = ["one", "you said: one!"]


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    Image.new("RGB", (8, 8), "white").save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def event(**values: Any) -> Any:
    return gr.EventData(None, values)


class Page:
    """A page that shows a conversation. server: of another page, to share."""

    def __init__(
        self, engine: Any = None, history: History | None = None, name: str = "me", server: Page | None = None
    ) -> None:
        self.request = event_request(name)
        if server is None:
            self.engine = engine or EchoEngine()
            with gr.Blocks():
                self.store = ConversationStore(ReadyProvider(self.engine), FakeCatalog())
            self.events = ChatEvents(theme.examples(self.store.catalog), self.store)
        else:
            self.engine, self.store, self.events = server.engine, server.store, server.events
        self.view: View = []
        self.box: Any = None
        self.panel: dict[str, Any] = {}
        self.kept: dict[str, dict[str, Any]] = {}  # by id, what the browser has of a conversation
        self.asked_to_open = False
        self.open("first", history)

    def open(self, id: str, history: History | None = None) -> None:
        """Opens what the browser has of it, or a history."""
        kept = (self.kept.get(id) if history is None else None) or conversation_json.pack(history or []).document
        sent = {"id": id, "text": json.dumps(kept)}
        self.apply(Updates(*self.store.open(gr.EventData(None, sent), self.request)[: len(Updates._fields)]))

    def act(self, name: str, *values: Any, **settings: Any) -> Any:
        """Fires an event; a handler that is an iterator begins with the first `next`."""
        rows = [row for shown in self.view for row in shown.rows]
        questions = [i for i, row in enumerate(rows) if row["role"] == "user"]
        pressed = event(index=questions[-1] if questions else 0, value="again")
        if name == "retry":
            name, values = "send", (pressed,)
        handler, id = getattr(self.events, name), self.id
        if name == "undo":
            draft = {"text": values[0], "files": [*values[1:]]} if values else None
            return handler(draft, id, pressed, self.request)
        if name == "stop":
            return handler(id, self.request)
        if name == "send" and isinstance(values[0], gr.EventData):
            return handler(None, id, [], values[0], self.request, **{**DEFAULTS, **settings})
        if name == "send":
            message = values[0] if isinstance(values[0], dict) else {"text": values[0], "files": []}
            return handler(message, id, [], event(), self.request, **{**DEFAULTS, **settings})
        return handler(id, *values, self.request, **{**DEFAULTS, **settings})

    def apply(self, updates: Updates) -> None:
        if isinstance(updates.chat, list):
            self.view = updates.chat
        if isinstance(updates.id, str):
            self.id = updates.id
        if updates.box != gr.skip():
            self.box = updates.box
        for name in ("adapter", "mix", "strength", "others"):
            if isinstance(value := getattr(updates, name), str | float):
                self.panel[name] = value
        self.sent = sent = json.loads(updates.to_browser) if isinstance(updates.to_browser, str) else {}
        if "keep" in sent:
            self.kept[sent["keep"]["id"]] = sent["keep"]["document"]
        self.asked_to_open |= "open" in sent

    def run(self, event: Any) -> Page:
        for updates in [event] if isinstance(event, Updates) else event:
            self.apply(updates)
        return self

    def do(self, name: str, *values: Any, **settings: Any) -> Page:
        return self.run(self.act(name, *values, **settings))

    def send(self, text: str, files: Any = (), **settings: Any) -> Page:
        return self.do("send", {"text": text, "files": list(files)}, **settings)

    def choose(self, value: str, **settings: Any) -> Page:
        return self.do("send", event(value=value, index=0), **settings)

    def edit(self, text: str, index: int = 0, **settings: Any) -> Page:
        return self.do("send", event(index=index, value=text, previous_value=""), **settings)

    def send_until_words(self, text: str = "one", act: str = "send", **settings: Any) -> Iterator[Updates]:
        """Applies the updates until a part of the answer is there; returns the rest of them."""
        answering = self.act(act, text, **settings)
        for updates in answering:
            self.apply(updates)
            if conversation.is_streaming(self.chat) and "you said: " in self.words():
                break
        return answering

    @property
    def chat(self) -> History:
        return [shown.entry for shown in self.view]

    @property
    def shown(self) -> list[str]:
        return displayed(self.view)

    def words(self) -> list[str]:
        """What was said, by either side."""
        return [entry.text for entry in self.chat if entry.role != "page" and not entry.picture]

    def kept_words(self) -> list[str]:
        messages = self.kept.get(self.id, {}).get("messages", [])
        return [message["text"] for message in messages if message["role"] != "page"]

    def buttons(self) -> dict[str, str]:
        """Labels and values of the buttons below the newest answer, that of the filmstrip aside."""
        return {label: value for label, value in self.view[-1].buttons if value != conversation.FILM}

    @property
    def record(self) -> conversation.AnswerRecord:
        """Of the newest answer."""
        record = self.chat[-1].record
        assert record is not None
        return record


def test_send_streams_and_closes(toasts):
    page = Page()
    updates = list(page.act("send", " hello "))
    page.run(updates)
    assert page.shown[:2] == ["hello", "you said: hello!"]
    assert page.chat[1].about == "frozen base · 3 tokens · 20 tokens/s"
    assert updates[0].box["value"] == {"text": "", "files": []}
    assert len(updates) > 2 and all(u.box["stop_btn"] is True for u in updates[:2]), "the first may get lost"
    assert page.box["submit_btn"] is True
    assert page.engine.closed == 1 and not toasts
    request = page.engine.requests[0]
    assert request.messages == (Message("user", "hello"),)
    assert (request.adapter, request.strength, request.sampling.max_new_tokens) == (None, 1.0, 32)
    assert request.client == Client("192.0.2.1", "me")


def test_an_answer_that_goes_in_circles_ends_with_a_note_and_can_be_reproduced():
    page = Page(EchoEngine(ending="repetition")).send("hello")
    assert page.engine.requests[0].end_repetition
    assert page.shown[2].endswith("· it began to repeat itself</span>")
    assert page.record.settings.max_tokens == len(page.record.token_ids) == 3


def test_a_retry_keeps_the_former_answers_to_page_through():
    page = Page().send("hello")
    assert page.buttons() == {}
    for strength in (0.5, 0.25):
        page.do("retry", adapter="poet", strength=strength)
    newest = page.shown[-1]
    for label in ("‹", "‹"):
        assert page.choose(page.buttons()[label]).shown[-1] != newest
    assert list(page.buttons()) == ["‹", "1/3", "›"]
    # The conversation goes on from the one that is shown, and a stored one has them all.
    before = page.buttons()
    page.open(page.id)
    assert page.buttons() == before
    asked = page.act("retry")
    page.apply(next(asked))
    page.do("stop")  # before a word has come
    page.run(asked).open(page.id)
    assert page.buttons() == before
    page.send("and?")
    assert page.shown[1] == "you said: hello!" and page.buttons() == {}
    page.send_until_words(act="retry")
    page.store.conversations.__init__()  # the server has forgotten it
    page.open(page.id)
    assert list(page.buttons()) == ["‹", "2/2", "›", "Continue"]


def test_a_cut_answer_goes_on_with_its_own_settings(toasts):
    page = Page()
    answering = page.send_until_words("hello", adapter="poet", strength=0.5)
    page.do("stop")
    page.run(answering)
    assert "stopped" in page.shown[2] and page.box["submit_btn"] is True and page.engine.closed == 1
    seed, cut = page.engine.requests[0].sampling.seed, page.chat
    assert page.buttons() == {"Continue": conversation.CONTINUE}
    page.engine.error = Busy("Try again.")  # a failure loses nothing
    assert page.choose(conversation.CONTINUE).chat == cut and len(toasts) == 1
    page.engine.error = None
    page.choose(conversation.CONTINUE, strength=2.0, max_tokens=16)
    request = page.engine.requests[-1]
    assert request.answer_ids == (7,) and request.messages == (Message("user", "hello"),)
    assert (request.strength, request.sampling.seed, request.sampling.max_new_tokens) == (0.5, seed, 16)
    assert page.record.token_ids == (7,) * 4 and page.record.settings.max_tokens == 16
    assert (page.record.context_tokens, page.record.context_length) == (8, 90)
    assert " 4 tokens " in page.chat[-1].about and page.buttons() == {}


def test_another_word_begins_a_branch_and_the_former_answers_stay():
    page = Page().send("hello", adapter="poet", strength=0.5)
    for forged in (
        {"token": 9},
        {"index": 3, "token": 9},
        {"index": 1, "token": 100},
        {"index": True, "token": "9"},
    ):
        page.do("send", event(**forged))
    assert len(page.engine.requests) == 1
    page.do("send", event(index=1, token=9), strength=2.0)
    request = page.engine.requests[-1]
    assert request.answer_ids == (7, 9) and request.strength == 0.5 and request.messages[-1].text == "hello"
    assert list(page.buttons()) == ["‹", "2/2", "›"]
    assert page.record.token_ids == (7, 9, 7, 7, 7) and page.record.settings.max_tokens == 32
    page.choose(page.buttons()["‹"])
    assert page.record.token_ids == (7, 7, 7)


def test_a_picture_goes_to_the_visual_adapter(picture, toasts):
    page = Page().send("", [picture], adapter="see")
    requests = page.engine.requests
    assert page.shown[:2] == ["<picture>", "What is in this picture?"] and requests[0].image.size == (8, 8)
    page.send("really?", adapter="see")
    assert requests[1].image is not None
    assert [m.role for m in requests[1].messages] == ["user", "assistant", "user"]
    page.send("How many are there?", adapter="see")
    assert texts.CANNOT_TELL in requests[2].form and requests[2].adapter is None
    page.send("Where does it live?", adapter="see")
    assert requests[3].image is None and requests[3].adapter is None and "frozen base" in page.shown[-1]
    page.send("and you?", adapter="poet")
    assert requests[4].image is None and "picture not used" in page.shown[-1]
    page.send("How many are there?", adapter="see", strength=0.0)
    assert requests[5].form is None and requests[5].adapter == "see", "strength 0 is the base as it is"
    page.edit("who?", 1, adapter="see")
    assert page.shown[:3] == ["<picture>", "who?", "you said: who?!"] and requests[6].image is not None
    page.do("undo", "a draft")
    assert page.chat == [] and page.box["value"]["text"] == "who?\n\na draft"
    assert [Path(file).name for file in page.box["value"]["files"]] == ["picture.png"]
    page.send("what?", [picture, "another"], adapter="poet", mix="see")
    assert requests[7].image is not None and toasts == [texts.ONE_PICTURE], "one that is mixed in sees too"
    page.send("one").send("two").do("undo")
    assert page.do("undo", "two", "new").box["value"] == {"text": "one", "files": ["new"]}, "Undo's text goes"
    page.send("one").send("two").do("undo", "a draft")
    assert page.do("undo", "two\n\na draft").box["value"] == {"text": "one\n\na draft", "files": []}
    assert not page.send("1").send("2", [picture]).do("undo").do("undo", "2", "its").box["value"]["files"]
    assert Page().send("one").do("undo", "", "new").box["value"] == {"text": "one", "files": ["new"]}


def test_a_picture_for_a_text_adapter_leads_to_an_offer_and_nothing_mixed_follows(picture, toasts):
    page = Page()
    page.events.catalog.cards["bard"] = FakeCard("bard")
    page.send("what?", [picture], adapter="poet")
    offered = page.chat
    assert not page.engine.requests and "reads text only" in page.shown[-1]
    assert [value for _, value in page.view[-1].buttons] == [USE + "see", TEXT_ONLY]
    for choice, kept in ((TEXT_ONLY, ("poet", (("bard", 1.1),))), (USE + "see", ("see", ()))):
        page.store.conversations.shown("me", page.id).history = offered
        page.choose(choice, adapter="poet", mix="bard", strength=1.7, others="all")
        asked = page.engine.requests[-1]
        assert (asked.adapter, asked.mix, asked.image is not None) == (*kept, choice != TEXT_ONLY)
        assert asked.strength == (1.7 if choice == TEXT_ONLY else 1.0)
    switched = {"adapter": "see", "mix": "", "strength": 1.0, "others": "first sentence"}
    assert page.panel == switched and "“bard” is no longer mixed in" in toasts[0]


def test_a_model_is_told_who_gave_the_earlier_answers():
    page = Page().send("of travel").send("who are you?", adapter="poet", others="all")
    assert [(message.role, message.name) for message in page.engine.requests[1].messages] == [
        ("user", None), ("assistant", ""), ("user", None)
    ]  # fmt: skip
    assert [request.others for request in page.engine.requests] == ["first sentence", "all"]
    page.send("no adapter?", adapter="poet", strength=0.0).send("and now?", adapter="poet")
    assert [m.name for m in page.engine.requests[3].messages if m.role == "assistant"] == ["", "poet", ""]


def test_a_history_that_is_too_long_is_not_sent_again_and_again(toasts):
    page = Page()
    page.store.conversations.shown("me", "first").history = [Entry("page", "x" * 10_000)] * 250
    page.send("hi")
    assert page.engine.requests == [] and "too long to go on" in toasts[-1] and len(page.chat) == 250
    assert page.box["value"] == {"text": "hi", "files": []}


@pytest.mark.parametrize(
    ("error", "settings", "message"),
    [
        (None, {"adapter": "nobody"}, "no adapter 'nobody'"),
        (None, {"adapter": "poet", "mix": "poet"}, "mixed with itself"),
        (Busy("The queue is full. Try again."), {}, "queue is full"),
        (RuntimeError("secret /home/me/x.py"), {}, "went wrong on the server"),
    ],
)
def test_a_failure_is_a_toast_and_restores_everything(error, settings, message, toasts):
    page = Page(EchoEngine(error), [*user_turn("before"), Entry("assistant", "yes")]).send("hi", **settings)
    assert len(toasts) == 1 and message in toasts[0] and "secret" not in toasts[0]
    assert page.box["value"] == {"text": "hi", "files": []} and page.box["submit_btn"] is True
    assert page.words() == page.kept_words() == ["before", "yes"]
    assert page.edit("after", **settings).box["value"]["text"].startswith("after")


@pytest.mark.parametrize(("text", "sentence"), [("x" * 100_000, "100,000 characters"), ("  ", "Type a message")])
def test_a_message_that_cannot_be_sent_is_a_toast(text, sentence, toasts):
    page = Page(history=user_turn("a"))
    page.box = "untouched"
    assert page.send(text).words() == ["a"] and page.box == "untouched"
    assert len(toasts) == 1 and sentence in toasts[0]
    assert text.isspace() or page.edit(text).box["value"]["text"] == text


def test_an_unreadable_picture_leaves_the_text(picture, toasts):
    Path(picture).write_text("not a picture")
    page = Page().send("what?", [picture], adapter="see")
    assert len(toasts) == 1 and str(Path(picture).parent) not in toasts[0]
    assert page.chat == [] and page.box["value"] == {"text": "what?", "files": []}


def test_forged_events_change_nothing(toasts):
    page = Page(history=user_turn("a"))
    for forged in (
        event(index=99, value="x", previous_value=""),
        event(index="0", value="x", previous_value=""),
        event(value=USE + "see", index=0),
        event(index=99, value={"text": "x"}),
    ):
        assert page.do("send", forged).words() == ["a"]
    assert page.edit(" ").words() == ["a"] and toasts == [texts.EMPTY_EDIT]
    assert Page().do("retry").chat == []
    for data in (None, [], {}, {"name": 7}, {"name": "x"}, {"address": 7}, {"address": "x" * 100_000}):
        page.store.act(gr.EventData(None, data), page.request)
    assert len(toasts) == 1
    for sent in (None, [], {"id": 7, "text": {}}, {"id": "x", "text": "!", "source": "link"}):
        assert page.store.open(gr.EventData(None, sent), page.request)[0] == gr.skip() and len(toasts) > 1
    assert page.store.open(gr.EventData(None, {"id": "x", "text": "{"}), page.request)[0] == []


@pytest.mark.parametrize("act", ["retry", "undo"])
def test_a_page_that_is_behind_changes_nothing_that_it_does_not_show(act):
    page = Page().send("one")
    other = Page(name="other", server=page)
    other.kept = page.kept
    other.open("first")
    page.send("two")
    assert other.words() == WHOLE and other.do(act).words() == page.words() == [*WHOLE, "two", "you said: two!"]
    assert other.do("send", event(index=0, value="one", previous_value="one")).words() == page.words()


@pytest.mark.parametrize("act", ["send", "retry", "edit", "undo"])
def test_what_meets_an_answer_changes_nothing(act, toasts):
    page = Page()
    answering = page.send_until_words()
    values = {"send": ["two"], "edit": [event(index=0, value="other", previous_value="")]}.get(act, [])
    page.do("send" if values else act, *values)
    assert toasts == [texts.STILL_ANSWERING] and (act != "send" or page.box["value"]["text"] == "two")
    page.run(answering)
    assert page.words() == page.kept_words() == WHOLE
    assert page.send("two").words() == [*WHOLE, "two", "you said: two!"]


def test_stop_ends_the_answer_that_is_written_and_no_later_one():
    page = Page()
    page.run(page.send_until_words())
    page.do("stop")
    assert page.words() == WHOLE and page.box["submit_btn"] is True
    other = Page(name="other", server=page)
    other.open("second")
    answering = page.send_until_words("two")
    other.do("stop")
    page.run(answering)
    assert page.words() == [*WHOLE, "two", "you said: two!"] and "stopped" not in page.shown[-1]


def test_an_edit_that_is_stopped_before_its_first_word_comes_back_into_the_box():
    page = Page().send("one").send("two")
    before, edited = page.words(), page.act("send", event(index=0, value="three", previous_value=""))
    page.apply(next(edited))
    page.do("stop")
    assert page.run(edited).words() == page.kept_words() == before and page.box["value"]["text"] == "three"


def test_an_answer_that_is_stopped_while_its_page_leaves_is_kept_as_far_as_it_is():
    page = Page()
    answering = page.send_until_words()
    page.do("stop")
    answering.close()
    assert [entry.text for entry in page.store.conversations.history("me")] == ["one", "you said: "]


def test_another_conversation_is_opened_while_an_answer_is_written(monkeypatch):
    monkeypatch.setattr(session, "RELEASE_SECONDS", 0.0)  # nobody reads the answer meanwhile
    page = Page()
    answering = page.send_until_words()
    late = page.act("send", "late")
    page.open("second", [*user_turn("old"), Entry("assistant", "kept")])
    page.run(answering).run(late)
    assert page.words() == ["old", "kept"] and page.box["submit_btn"] is True
    assert page.send("new").words() == page.kept_words() == ["old", "kept", "new", "you said: new!"]
    page.open("first")
    page.do("follow")
    assert page.words() == page.kept_words() == WHOLE, "it went on meanwhile"


def test_what_the_server_has_forgotten_the_browser_sends_again(toasts):
    page = Page().send("one")
    page.store.conversations.__init__()
    page.send("two")
    assert page.asked_to_open and page.box["value"]["text"] == "two" and toasts == [texts.STILL_RESTORING]
    page.open("first")
    assert page.send("two").words() == [*WHOLE, "two", "you said: two!"]


def test_an_answer_goes_on_after_a_reload_and_can_be_stopped():
    page = Page()
    page.send_until_words().close()
    assert page.engine.closed == 0, "it waits for the page"
    other, again = Page(name="other", server=page), Page(name="again", server=page)
    for reloaded in (other, again):
        reloaded.kept = page.kept
        reloaded.open("first")
        assert reloaded.words() == ["one", "you said: "] and not conversation.is_streaming(reloaded.chat)
    follow = again.act("follow")
    again.apply(next(follow))
    assert conversation.is_streaming(again.chat) and again.sent["keep"]["begins"] is False
    assert page.store.conversations.shown("again", "first").change.timer.finished.is_set(), "it is read again"
    again.do("stop")
    again.run(follow)
    assert "stopped" in again.shown[-1] and page.engine.closed == 1 and again.box["submit_btn"] is True
    other.do("follow")
    assert other.words() == ["one", "you said: "], "one page goes on with it"
    assert again.send("two").words()[-1] == "you said: two!"
    assert other.do("follow").words() == again.words(), "a page that is behind catches up"


def test_an_answer_that_nobody_reads_ends_and_one_that_is_read_stays(monkeypatch):
    monkeypatch.setattr(session, "UNREAD_SECONDS", 0.0)
    monkeypatch.setattr(session, "HANDOVER_SECONDS", 0.0)
    page = Page()
    answering = page.send_until_words()
    other = Page(name="other", server=page)
    other.kept = {**page.kept}
    other.open("first")
    assert other.do("follow").words() == ["one", "you said: "] and other.kept["first"] is not page.kept["first"]
    answering.close()
    wait_until(lambda: page.engine.closed == 1)
    assert page.do("follow").words() == ["one", "you said: "] and "Continue" in page.buttons()


def test_where_the_xray_makes_a_conversation_too_long_it_goes():
    page = Page().send("a")
    shown = page.store.conversations.shown("me", "first")
    shown.history[1:] = [replace(shown.history[1], xray="x" * conversation.MAX_HISTORY)]
    page.open("first")  # a reload: what another tab has deleted stays so
    assert page.sent["keep"]["begins"] is False and page.send("on").words()[-1] == "you said: on!"


def test_where_the_xray_cannot_colour_an_answer_it_says_why(toasts):
    page = Page(history=[conversation.Entry("user", "a"), conversation.Entry("assistant", "b", about="of a link")])
    page.events.xray(True, page.id, page.request)
    assert toasts == [texts.NO_RECORD]


def test_conversations_have_a_bounded_place(monkeypatch):
    monkeypatch.setattr(session, "MAX_SESSIONS", 3)
    conversations = Conversations()
    conversations.open("writing", "a", [])
    with conversations.change("writing", "a") as change:
        for number in range(10):
            conversations.open(f"session {number}", f"{number}", user_turn("x" * 1000))
        with pytest.raises(StillAnswering):
            conversations.change("writing", "a").__enter__()
        change.ended = True
    monkeypatch.setattr(session, "MAX_BYTES", 3000)
    conversations.open("last", "z", user_turn("x" * 1000))
    kept = [name for name in ("writing", "session 8", "session 9", "last") if conversations.history(name)]
    assert kept == ["session 9", "last"]
    with pytest.raises(Forgotten):
        conversations.shown("session 0", "0")
    with pytest.raises(NotOpen):
        conversations.shown("last", "b")


def test_the_conversation_of_a_page_that_is_closed_is_forgotten(monkeypatch):
    page = Page().send("one")
    page.store.close(page.request)
    assert page.store.conversations.history("me") == []
    assert page.store.conversations.history("me", "first") and page.do("undo").words() == [], "it may only sleep"
    awake = gr.EventData(None, {"name": "awake", "id": "first"})
    assert "open" in page.store.act(awake, page.request)[0]
    page.open("first", page.send("one").chat)
    assert page.store.act(awake, page.request)[0] == gr.skip()
    page.store.close(page.request)
    page.open("first", user_turn("not this"))
    assert page.words() == WHOLE, "a page may be reloading"
    page.store.close(page.request)
    monkeypatch.setattr(session, "UNREAD_SECONDS", -1.0)
    Page(name="other", server=page).open("second")
    page.open("first", user_turn("anew"))
    assert page.words() == ["anew"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_in_no_order_of_events_a_word_is_lost(seed, monkeypatch):
    """Of one page, interleaved: what it shows, what the server holds and what the browser keeps is the same."""
    monkeypatch.setattr(session, "RELEASE_SECONDS", 0.0)
    monkeypatch.setattr(session, "HANDOVER_SECONDS", 0.0)
    choose, page, running = random.Random(seed), Page(), list[Iterator[Updates]]()
    for number in range(60):
        kind = choose.choice(["send", "send", "retry", "undo", "stop", "open", *["step"] * 8])
        page.engine.error = choose.choice([None, None, None, Busy("The queue is full.")])
        if kind == "step" and running:
            answering = choose.choice(running)
            if (updates := next(answering, None)) is None:
                running.remove(answering)
            else:
                page.apply(updates)
        elif kind in ("send", "retry"):
            running.append(page.act(kind, *([str(number)] if kind == "send" else [])))
        elif kind in ("undo", "stop"):
            page.do(kind)
        elif kind == "open":
            page.open(choose.choice(["first", "second"]))
            running.append(page.act("follow"))
    for answering in running:
        page.run(answering)
    assert page.store.conversations.history("me") == page.chat and not conversation.is_streaming(page.chat)
    page.engine.error = None
    page.send("end")
    assert page.words() == page.kept_words() and page.words()[-2] == "end" and page.words()[-1].endswith("end!")
