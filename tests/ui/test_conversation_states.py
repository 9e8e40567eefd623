"""Events of one page in every order: none of them overwrites what another one has made of the conversation.

`Page` is the browser's part in Python: an event takes the chat and its number along when it is fired, updates
arrive in the order of their channel, and the storage drops what is older than what it has, as in the browser.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch

from adapter.errors import Busy
from adapter.serve.settings import PANEL, Settings
from adapter.ui import answer_stream, conversation, conversation_states, theme
from adapter.ui.answer_stream import answer_key
from adapter.ui.chat import conversation_json, events
from adapter.ui.chat.conversation_store import ConversationStore
from adapter.ui.chat.events import ChatEvents
from adapter.ui.conversation import History
from adapter.ui.conversation_states import CLEAR_STEP, ConversationStates, StaleEvent
from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request
from tests.ui.test_conversation import displayed

SETTINGS = {**Settings().model_dump(), "temperature": 0.0, "max_tokens": 32}
PANEL_VALUES = [Settings().model_dump()[name] for name in PANEL]


@functools.cache
def components() -> ConversationStore:
    with gr.Blocks():
        return ConversationStore(ReadyProvider(None), FakeCatalog(), ConversationStates())  # type: ignore[arg-type]


class Page:
    """One page and its server, which a test may exchange. `number` is "" until its conversation is restored."""

    def __init__(self, number: str = "1", session: str = "me", engine: Any = None) -> None:
        self.request = event_request(session)
        self.engine = engine or EchoEngine()
        self.chat: History = []
        self.number = number
        self.box: Any = None
        self.stored: tuple[int, str] = (0, "")
        self.start_server()

    def start_server(self) -> None:
        provider, catalog, states = ReadyProvider(self.engine), FakeCatalog(), ConversationStates()
        self.store = copy.copy(components())
        self.store.provider, self.store.states = provider, states
        self.events = ChatEvents(provider, catalog, theme.examples(), states)  # type: ignore[arg-type]

    def send(self, text: str) -> Iterator[Any]:
        """Fires the event; its handler begins with the first `next`, as a request that is still on its way."""
        send = self.store.saving_stream(self.events.send)
        return send({"text": text, "files": []}, self.chat, self.number, self.request, **SETTINGS)

    def send_until_words(self, text: str) -> Iterator[Any]:
        """Applies the updates until a part of the answer is there; returns the rest of them."""
        event = self.send(text)
        for updates in event:
            self.apply(updates)
            if conversation.is_streaming(self.chat) and "you said: " in self.texts():
                break
        return event

    def retry(self) -> Iterator[Any]:
        return self.store.saving_stream(self.events.retry)(self.chat, self.number, self.request, **SETTINGS)

    def edit(self, text: str) -> Iterator[Any]:
        event: Any = SimpleNamespace(index=0, value=text, previous_value="one")
        edit = self.store.saving_stream(self.events.edit)
        return edit(self.chat, self.number, event, self.request, **SETTINGS)

    def undo(self) -> Callable[[], Any]:
        chat, number = self.chat, self.number
        return lambda: self.short(self.store.saving(self.events.undo)(chat, number, self.request))

    def stop(self) -> Callable[[], Any]:
        chat, number = self.chat, self.number
        return lambda: self.short(self.store.saving(self.events.stop)(chat, number, self.request))

    def clear(self) -> Callable[[], Any]:
        """The browser's part at once; returns the server's."""
        self.number = number = str(max(int(self.number), self.stored[0]) + CLEAR_STEP)
        self.chat, self.stored = [], (int(number), "")
        return lambda: self.short(self.store.saving(self.events.clear)(number, self.request))

    def restore(self, history: History) -> Callable[[], Any]:
        """Loads the page with `history` in the browser's storage."""
        stored = json.dumps(conversation_json.to_browser(history, {})[0])

        def restore() -> tuple[Any, ...]:
            _, chat, _, number, *_ = self.store.restore(stored, *[""] * 4, "0", self.request, *PANEL_VALUES)
            return chat, gr.skip(), gr.skip(), number, gr.skip()

        return restore

    def open(self, history: History) -> Callable[[], Any]:
        """Another conversation is chosen from the list: the browser makes its number and sends it along."""
        number = str(max(int(self.number), self.stored[0]) + CLEAR_STEP)
        self.chat, self.number, self.stored = [], "", (int(number), "")
        stored = json.dumps(conversation_json.to_browser(history, {})[0]) if history else ""

        def restore() -> tuple[Any, ...]:
            _, chat, _, new, _, box, *_ = self.store.restore(
                stored, "", "", "", "", number, self.request, *PANEL_VALUES
            )
            return chat, box, gr.skip(), new, gr.skip()

        return restore

    def follow(self, key: str) -> Iterator[Any]:
        follow = self.store.saving_stream(self.events.follow)
        return follow(key, self.chat, self.number, self.request, **SETTINGS)

    def import_file(self, file: Path) -> Callable[[], Any]:
        number = self.number

        def import_file() -> tuple[Any, ...]:
            updates = self.store.import_file(str(file), number, self.request, *PANEL_VALUES)
            return updates[0], gr.skip(), gr.skip(), updates[1], updates[2]

        return import_file

    @staticmethod
    def short(updates: tuple[Any, ...]) -> tuple[Any, ...]:
        """The updates of an event without a panel in the order of those with one."""
        chat, box, number, stored, *_ = updates
        return chat, box, gr.skip(), number, stored

    def apply(self, updates: tuple[Any, ...]) -> None:
        chat, box, _, number, stored, *_ = updates
        if isinstance(chat, list):
            self.chat = chat
        if isinstance(number, str):
            self.number = number
        if box != gr.skip():
            self.box = box
        if isinstance(stored, str):
            count, _, text = stored.partition("\n")
            if int(count) >= self.stored[0]:
                self.stored = int(count), text

    def run(self, event: Any) -> None:
        """Applies the rest of an event's updates."""
        for updates in [event()] if callable(event) else event:
            self.apply(updates)

    def texts(self) -> list[str]:
        return words(self.chat)

    def stored_texts(self) -> list[str]:
        messages = json.loads(self.stored[1])["messages"] if self.stored[1] else []
        return [message["text"] for message in messages if message["role"] != "page"]


def words(history: History) -> list[str]:
    """What was said, by either side."""
    return [text for entry, text in zip(history, displayed(history), strict=True) if not conversation.kind(entry)]


WHOLE = ["one", "you said: one!"]


def test_a_stop_that_comes_after_the_end_changes_nothing() -> None:
    page = Page()
    answer = page.send_until_words("one")
    stop = page.stop()
    page.run(answer)
    page.run(stop)
    assert page.texts() == page.stored_texts() == WHOLE
    assert "stopped" not in displayed(page.chat)[-1]


def test_a_stop_ends_the_answer_that_was_seen_and_no_later_one() -> None:
    page = Page()
    first = page.send_until_words("one")
    stop = page.stop()
    page.run(first)
    second = page.send("two")
    next(second)
    page.run(stop)
    page.run(second)
    assert page.texts() == [*WHOLE, "two", "you said: two!"]


@pytest.mark.parametrize("act", ["send", "retry", "edit", "undo", "import"])
@pytest.mark.parametrize("arrives", ["while the answer is written", "after its end"])
def test_who_saw_a_part_of_an_answer_does_not_replace_the_whole(
    act: str, arrives: str, toasts: list[str], tmp_path: Path
) -> None:
    page = Page()
    (tmp_path / "a.json").write_text(conversation_json.to_file(conversation.user_turn("x"), Settings())[0])
    answer = page.send_until_words("one")
    event: Any = {
        "send": lambda: page.send("two"),
        "retry": page.retry,
        "edit": lambda: page.edit("other"),
        "undo": page.undo,
        "import": lambda: page.import_file(tmp_path / "a.json"),
    }[act]()
    if arrives == "after its end":
        page.run(answer)
    page.run(event)
    page.run(answer)
    assert page.texts() == page.stored_texts() == WHOLE
    assert toasts == [texts.CHANGED_MEANWHILE if arrives == "after its end" else texts.STILL_ANSWERING]
    page.run(page.send("two"))  # the page has the newest state now
    assert page.texts() == [*WHOLE, "two", "you said: two!"]


def test_a_message_before_the_conversation_is_restored_is_refused_and_replaces_nothing(toasts: list[str]) -> None:
    old = [*conversation.user_turn("old"), conversation.answer("kept")]
    page = Page(number="")
    restore = page.restore(old)
    page.run(page.send("new"))
    assert page.box["value"]["text"] == "new", "the message stays in its box"
    assert toasts == [texts.STILL_RESTORING] and not page.engine.requests
    page.run(restore)
    page.run(page.send("new"))
    assert page.texts() == page.stored_texts() == ["old", "kept", "new", "you said: new!"]


def test_who_has_nothing_stored_need_not_wait() -> None:
    page = Page(number="1")
    page.run(page.send("new"))
    _, chat, _, number, _, _, panel, *_ = page.store.restore(
        "", "", '{"strength": 0.5}', "", "", "0", page.request, *PANEL_VALUES
    )
    assert chat == number == gr.skip() and json.loads(panel)[1] == {"strength": [1.0, 0.5]}
    page.run(page.send("and more"))
    assert page.texts()[-1] == "you said: and more!"


def test_a_restore_that_is_under_way_is_not_overtaken(toasts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even by a page that thinks it is restored."""
    page = Page(number="1")

    def meanwhile(*_: Any) -> History:
        page.run(page.send("new"))
        return conversation.user_turn("old")

    monkeypatch.setattr(conversation_json, "from_browser", meanwhile)
    page.run(page.restore(conversation.user_turn("old")))
    assert page.texts() == ["old"] and toasts == [texts.STILL_RESTORING]


def test_clear_ends_the_answer_and_nothing_of_it_comes_back() -> None:
    page = Page()
    answer = page.send_until_words("one")
    late = next(answer)  # on its way when the visitor clears
    clear = page.clear()
    page.apply(late)
    page.run(clear)
    page.run(answer)
    assert page.chat == [] and page.stored_texts() == [] and page.engine.closed == 1
    assert page.box["submit_btn"] is True
    page.run(page.send("two"))
    assert page.texts() == page.stored_texts() == ["two", "you said: two!"]


def test_a_restarted_server_takes_what_the_page_has() -> None:
    page = Page()
    page.send_until_words("one")
    page.start_server()
    page.run(page.stop())
    assert not conversation.is_streaming(page.chat) and page.box["submit_btn"] is True
    page.run(page.send("two"))
    assert page.texts() == page.stored_texts() == ["one", "you said: ", "two", "you said: two!"]


def test_an_answer_goes_on_after_a_reload() -> None:
    page = Page()
    answer = page.send_until_words("one")
    document = json.loads(page.stored[1])
    assert document["answer"] == answer_key("me", page.number)
    answer.close()  # type: ignore[attr-defined]
    assert page.engine.closed == 0, "it waits for the page"
    again, other = Page(session="again"), Page(session="other")
    for reloaded in (again, other):
        reloaded.events, reloaded.store = page.events, page.store
        reloaded.run(reloaded.open([*conversation.user_turn("one"), conversation.answer("you said: ")]))
    again.run(again.follow(document["answer"]))
    assert again.texts() == again.stored_texts() == WHOLE and page.engine.closed == 1
    assert "answer" not in json.loads(again.stored[1]) and again.box["submit_btn"] is True
    other.run(other.follow(document["answer"]))
    assert other.texts() == ["one", "you said: "], "one page goes on with it"
    again.run(again.send("two"))
    assert again.texts() == [*WHOLE, "two", "you said: two!"]


def test_an_answer_that_has_been_followed_can_be_stopped_and_followed_again() -> None:
    page = Page()
    page.send_until_words("one").close()  # type: ignore[attr-defined]
    again = Page(session="again")
    again.events, again.store = page.events, page.store
    again.run(again.open(conversation.user_turn("one")))
    follow = again.follow(json.loads(page.stored[1])["answer"])
    again.apply(next(follow))
    assert again.texts() == ["one", "you said: "] and conversation.is_streaming(again.chat)
    again.apply(again.stop()())
    again.run(follow)
    assert "stopped" in displayed(again.chat)[-1] and again.texts() == ["one", "you said: "]


def test_an_answer_that_has_ended_keeps_no_thread_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page()
    waiting = threading.active_count()
    page.run(page.send("one"))
    assert page.texts() == WHOLE and threading.active_count() == waiting
    running = page.events._running
    monkeypatch.setattr(answer_stream, "UNREAD_SECONDS", -1.0)
    page.run(page.send("two"))
    assert len(running._by_key) == 2  # a page that is being loaded may still ask for them
    page.run(page.send("three"))
    assert len(running._by_key) == 2, "what has waited long enough is forgotten"


def test_a_message_that_meets_an_answer_stays_in_the_box(toasts: list[str]) -> None:
    page = Page()
    again, second = page.send("one"), page.send("two")  # before the page knows that the first one is received
    answer = page.send_until_words("one")
    page.run(again)
    assert "value" not in page.box, "it was sent twice"
    page.run(second)
    assert page.box["value"] == {"text": "two", "files": []} and toasts == [texts.STILL_ANSWERING] * 2
    page.run(answer)
    assert page.texts() == WHOLE


@pytest.mark.parametrize("order", ["the message first", "X-ray first", "X-ray beside the answer"])
def test_xray_and_a_message_at_once_are_no_conflict(
    order: str, toasts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page()
    page.run(page.send("one"))
    inspected = SimpleNamespace(tokens=[" you"], logprobs=torch.tensor([-0.5]), base=[(-1.0, [])])
    monkeypatch.setattr(events, "inspect_newest", lambda *_: SimpleNamespace(inspection=inspected))
    monkeypatch.setattr(events, "xray_line", lambda *_: "a line")
    seen = page.chat, page.number, page.request
    message = page.send("two")
    if order == "X-ray first":
        shown = page.events.xray(True, *seen)
        assert conversation.xray_of(shown[1]) == "a line"
        page.chat = shown
    elif order == "X-ray beside the answer":
        page.apply(next(message))
        assert page.events.xray(True, *seen) == gr.skip()
    page.run(message)
    if order == "the message first":
        assert page.events.xray(True, *seen) == gr.skip()
    assert toasts == [] and page.texts() == [*WHOLE, "two", "you said: two!"]


def test_an_answer_that_no_page_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_stream, "UNREAD_SECONDS", 0.0)
    page = Page()
    page.send_until_words("one").close()  # type: ignore[attr-defined]
    wait_until(lambda: page.engine.closed == 1)
    page.run(page.follow(json.loads(page.stored[1])["answer"]))
    assert page.texts() == ["one", "you said: "]


def test_an_answer_that_another_page_reads_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_stream, "HANDOVER_SECONDS", 0.0)
    page = Page()
    answer = page.send_until_words("one")
    other = Page(session="other")
    other.events, other.store = page.events, page.store
    other.run(other.follow(json.loads(page.stored[1])["answer"]))
    assert other.chat == []
    page.run(answer)
    assert page.texts() == WHOLE


def test_another_conversation_is_opened_while_an_answer_is_written() -> None:
    page = Page()
    answer = page.send_until_words("one")
    key, late = json.loads(page.stored[1])["answer"], next(answer)
    opening = page.open([*conversation.user_turn("old"), conversation.answer("kept")])
    assert page.chat == [] and page.number == ""
    page.apply(late)
    page.run(opening)
    page.run(answer)
    assert page.texts() == ["old", "kept"] and page.stored_texts() == [], (
        "nothing of it comes to another conversation"
    )
    assert page.box["submit_btn"] is True
    page.run(page.send("new"))
    assert page.texts() == page.stored_texts() == ["old", "kept", "new", "you said: new!"]
    page.run(page.open(conversation.user_turn("one")))
    page.run(page.follow(key))
    assert page.texts() == page.stored_texts() == WHOLE, "it went on meanwhile"


def test_a_message_on_its_way_when_another_conversation_is_opened_changes_neither(toasts: list[str]) -> None:
    page = Page()
    page.run(page.send("one"))
    send = page.send("two")
    page.run(page.open(conversation.user_turn("old")))
    page.run(send)
    assert page.texts() == ["old"] and toasts == [texts.CHANGED_MEANWHILE]


def test_an_empty_edit_does_not_put_an_old_state_back(toasts: list[str]) -> None:
    page = Page()
    answer = page.send_until_words("one")
    edit = page.edit(" ")
    page.run(answer)
    page.run(edit)
    assert page.texts() == WHOLE and texts.EMPTY_EDIT in toasts[0]


def test_pages_do_not_stop_each_other() -> None:
    one = Page(session="one")
    other = Page(session="two")
    other.events, other.store = one.events, one.store
    answer = one.send_until_words("one")
    other.number = one.number
    other.run(other.stop())
    other.run(other.clear())
    one.run(answer)
    assert one.texts() == WHOLE


def test_the_server_keeps_the_numbers_of_so_many_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_states, "MAX_SESSIONS", 3)
    states = ConversationStates()
    with states.change("first", "5") as change:
        for number in range(10):
            with states.change(f"session {number}", "1"):
                pass
        with pytest.raises(StaleEvent):
            states.change("first", "5").__enter__()
        assert not change.is_stale and len(states._by_session) == 3


@pytest.mark.parametrize("number", ["", None, "x", "-1", "²", "9" * 5000, [], 1.5])
def test_what_is_no_number_changes_nothing(number: Any) -> None:
    states = ConversationStates()
    with pytest.raises(StaleEvent):
        states.change("me", number).__enter__()
    assert states.stop("me", number) is None and states.clear("me", number) is False


class World:
    """A page on a slow network: what it sends arrives in any order, and answers come on two channels.

    Checks that every event that is accepted builds on the newest state.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.page = Page()
        self.states: dict[int, list[str]] = {1: []}  # by number: what the server sent, or the browser cleared
        self.sent: list[tuple[str, Any, int, list[str]]] = []
        self.running: list[tuple[Iterator[Any], int, list[str]]] = []
        self.queued: deque[Any] = deque()
        self.direct: deque[Any] = deque()
        self.accepted = 0

    def act(self) -> None:
        page = self.page
        kinds = ["send", "send", "retry", "undo", "clear"]
        kinds += ["stop"] * 5 if conversation.is_streaming(page.chat) else []
        kind = self.random.choice(kinds)
        event: Any = page.send(str(self.random.randrange(1000))) if kind == "send" else getattr(page, kind)()
        if kind == "clear":
            self.states[int(page.number)] = []
        self.sent.append((kind, event, int(page.number), page.texts()))

    def arrive(self) -> None:
        kind, event, number, seen = self.sent.pop(self.random.randrange(len(self.sent)))
        self.page.engine.error = self.random.choice([None, None, None, Busy("The queue is full.")])
        if callable(event):
            updates = event()
            (self.direct if kind == "stop" else self.queued).append(updates)
            self.sends(updates)
            if kind == "undo" and isinstance(updates[0], list):
                self.accepts(number, seen)
        else:
            self.running.append((event, number, seen))

    def step(self) -> None:
        place = self.random.randrange(len(self.running))
        event, number, seen = self.running[place]
        begins = inspect.getgeneratorstate(event) == inspect.GEN_CREATED  # type: ignore[arg-type]
        with suppress(StopIteration):
            updates = next(event)
            self.queued.append(updates)
            self.sends(updates)
            if begins and isinstance(updates[0], list):
                self.accepts(number, seen)
            return
        del self.running[place]

    def sends(self, updates: Any) -> None:
        chat, _, _, number, *_ = updates
        if isinstance(chat, list):
            self.states[int(number)] = words(chat)

    def accepts(self, number: int, seen: list[str]) -> None:
        self.accepted += 1
        assert self.states[number] == seen, f"an event that saw {seen} has replaced {self.states[number]}"

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.move(self.act)
        while self.sent or self.running or self.queued or self.direct:
            self.move(None)

    def move(self, act: Callable[[], None] | None) -> None:
        moves: list[Callable[[], None]] = [act] if act else []
        moves += [self.arrive] * 2 if self.sent else []
        moves += [self.step] * 4 if self.running else []
        moves += [lambda: self.page.apply(self.queued.popleft())] * 4 if self.queued else []
        moves += [lambda: self.page.apply(self.direct.popleft())] if self.direct else []
        self.random.choice(moves)()


def test_in_no_order_of_events_a_state_is_lost(monkeypatch: pytest.MonkeyPatch, toasts: list[str]) -> None:
    monkeypatch.setattr(conversation_states, "RELEASE_SECONDS", 0.0)
    accepted = 0
    for seed in range(150):
        world = World(seed)
        world.run(100)
        newest = max(world.states)
        assert world.page.texts() == world.states[newest], f"seed {seed}"
        assert world.page.stored_texts() == world.states[newest], f"seed {seed}"
        accepted += world.accepted
    assert accepted > 500
