"""The chat's event handlers over a fake engine: what they send to it and which updates they yield."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from adapter.base.template import Message
from adapter.errors import BadInput, Busy
from adapter.serve.request import Client, GenerationEvent
from adapter.serve.settings import Settings
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import TEXT_ONLY, AnswerProgress
from adapter.ui.chat import conversation_json
from adapter.ui.chat.events import ChatEvents, Updates
from adapter.ui.conversation import History, answer, stats, user_turn
from adapter.ui.conversation_states import ConversationStates
from tests.fake_engine import EchoEngine, FakeCard, FakeCatalog, ReadyProvider, event_request
from tests.ui.test_conversation import displayed

REQUEST = event_request()
DEFAULTS = {**Settings().model_dump(), "temperature": 0.0, "top_p": 1.0, "max_tokens": 32}
NO_CHANGE = (gr.skip(), gr.skip(), gr.skip(), gr.skip())
# Numbers of states, each newer than all that the server has seen: for tests that are not about them.
NEWER = map(str, itertools.count(10, 10))


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    Image.new("RGB", (8, 8), "white").save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def events_of(engine: Any) -> ChatEvents:
    return ChatEvents(ReadyProvider(engine), FakeCatalog(), theme.examples(), ConversationStates())


def send(
    events: ChatEvents,
    text: str,
    history: History | None = None,
    request: Any = REQUEST,
    files: Any = (),
    number: str = "",
    **settings: Any,
) -> Iterator[Updates]:
    message = {"text": text, "files": list(files)}
    return events.send(message, history or [], number or next(NEWER), request, **{**DEFAULTS, **settings})


def event(**values: Any) -> Any:
    return SimpleNamespace(**values)


def last_history(updates: list[Any]) -> History:
    return next(chat for chat, *_ in reversed(updates) if isinstance(chat, list))


def test_send_streams_and_closes(toasts: list[str]) -> None:
    engine = EchoEngine()
    updates = list(send(events_of(engine), " hello "))
    line = displayed([stats("frozen base · 3 tokens · 20 tokens/s")])[0]
    assert displayed(last_history(updates)) == ["hello", "you said: hello!", line]
    assert updates[0][1]["value"] == {"text": "", "files": []}
    assert len(updates) > 2 and all(box["stop_btn"] is True for _, box, *_ in updates[:-1]), "some may get lost"
    assert updates[-1][1]["submit_btn"] is True
    assert engine.closed == 1 and not toasts
    request = engine.requests[0]
    assert request.messages == (Message("user", "hello"),)
    assert (request.adapter, request.strength, request.sampling.max_new_tokens) == (None, 1.0, 32)
    assert request.client == Client("192.0.2.1", "me")


def test_system_prompt_and_stop_texts_go_with_every_turn() -> None:
    engine = EchoEngine()
    history = [*conversation.user_turn("hi"), conversation.answer("ho")]
    list(send(events_of(engine), "hello", history, system=" Be brief. ", stop="###\nThe end", top_k=5))
    request = engine.requests[0]
    roles = [("system", "Be brief."), ("user", "hi"), ("assistant", "ho"), ("user", "hello")]
    assert [(message.role, message.text) for message in request.messages] == roles
    assert request.stop == ("###", "The end") and request.sampling.top_k == 5


def test_an_answer_that_goes_in_circles_ends_with_a_note_and_can_be_reproduced() -> None:
    engine = EchoEngine(ending="repetition")
    history = last_history(list(send(events_of(engine), "hello")))
    assert engine.requests[0].end_repetition
    assert displayed(history)[2].endswith("· it began to repeat itself</span>")
    record = conversation.parse_record(conversation.record_of(history[-1]))
    assert record is not None and record.settings.max_tokens == len(record.token_ids) == 3


def test_one_answer_at_a_time_in_a_session(toasts: list[str]) -> None:
    events = events_of(EchoEngine())
    first = send(events, "one", number="5")
    next(first)
    (chat, box, *rest), *more = send(events, "two", number="5")
    assert (chat, *rest) == NO_CHANGE[1:] and box["value"]["text"] == "two" and not more
    assert len(toasts) == 1 and "still being written" in toasts[0]
    assert len(list(send(events, "three", request=event_request("you")))) > 1
    first.close()
    assert len(list(send(events, "two", number="5"))) > 1


def test_stop_ends_the_answer_with_what_was_written() -> None:
    engine = EchoEngine()
    events = events_of(engine)
    updates = send(events, "hello")
    number = next(number for chat, *_, number in updates if "you said: " in displayed(chat))
    assert events.stop([], number, REQUEST) == (gr.skip(),) * 3
    rest = list(updates)
    assert displayed(last_history(rest))[:2] == ["hello", "you said: "]
    assert "stopped" in displayed(last_history(rest))[2] and rest[-1][1]["submit_btn"] is True
    assert engine.closed == 1


def buttons(history: History) -> dict[str, str]:
    """Labels and values of the buttons below the newest answer, that of the filmstrip aside."""
    options = conversation.with_buttons(history)[-1]["options"]
    return {o["label"]: o["value"] for o in options if o["value"] != conversation.FILM}


def choose(events: ChatEvents, history: History, value: str, **settings: Any) -> list[Updates]:
    chosen = event(value=value, index=0)
    return list(events.choose_option(history, next(NEWER), chosen, REQUEST, **{**DEFAULTS, **settings}))


def test_a_retry_keeps_the_former_answers_to_page_through() -> None:
    events = events_of(EchoEngine())
    history = last_history(list(send(events, "hello")))
    assert buttons(history) == {}
    for strength in (0.5, 0.25):
        settings = {**DEFAULTS, "adapter": "poet", "strength": strength}
        history = last_history(list(events.retry(history, next(NEWER), REQUEST, **settings)))
    assert list(buttons(history)) == ["‹", "3/3", "›"]
    lines = []
    for label in ("‹", "‹", "‹", "›"):  # from the first one back to the last one, and forth again
        lines.append(displayed(history)[-1])
        history = last_history(choose(events, history, buttons(history)[label]))
    assert lines[0] == lines[3] and len(set(lines)) == 3 and displayed(history)[-1] == lines[2]
    assert list(buttons(history)) == ["‹", "1/3", "›"]
    # The conversation goes on from the one that is shown, and a stored one has them all.
    stored = conversation_json.to_browser(history, {})[0]
    assert buttons(conversation_json.from_browser(json.dumps(stored), "{}")) == buttons(history)
    history = last_history(list(send(events, "and?", history)))
    assert displayed(history)[1] == "you said: hello!" and buttons(history) == {}
    edited = event(index=0, value="bye", previous_value="hello")
    history = last_history(list(events.edit(history, next(NEWER), edited, REQUEST, **DEFAULTS)))
    assert buttons(history) == {}


def test_a_cut_answer_goes_on_with_its_own_settings(toasts: list[str]) -> None:
    engine = EchoEngine()
    events = events_of(engine)
    updates = send(events, "hello", adapter="poet", strength=0.5)
    number = next(number for chat, *_, number in updates if "you said: " in displayed(chat))
    events.stop([], number, REQUEST)
    cut = last_history(list(updates))
    seed = engine.requests[0].sampling.seed
    assert buttons(cut) == {"Continue": conversation.CONTINUE}
    updates_of_rest = choose(events, cut, conversation.CONTINUE, strength=2.0, max_tokens=16)
    assert displayed(updates_of_rest[0][0])[:2] == ["hello", "you said: "]  # it stays while the rest is waited for
    request = engine.requests[-1]
    assert request.answer_ids == (7,) and request.messages == (Message("user", "hello"),)
    assert (request.strength, request.sampling.seed, request.sampling.max_new_tokens) == (0.5, seed, 16)
    rest = last_history(updates_of_rest)
    record = conversation.parse_record(conversation.record_of(rest[-1]))
    assert record is not None and record.token_ids == (7,) * 4 and record.settings.max_tokens == 4
    assert (record.context_tokens, record.context_length) == (8, 100)
    assert " 4 tokens " in conversation.page_text(rest[-1]) and buttons(rest) == {}
    # A failure loses nothing.
    engine.error = Busy("Try again.")
    assert last_history(choose(events, cut, conversation.CONTINUE)) == cut and len(toasts) == 1


def test_a_waiting_visitor_sees_how_many_are_before_and_how_far_the_message_is_read(toasts: list[str]) -> None:
    updates = list(send(events_of(EchoEngine(queue_length=3)), "hello"))
    last_lines = [displayed(chat)[-1] for chat, *_ in updates if isinstance(chat, list)]
    assert "2 before you" in last_lines[1] and "1 before you" in last_lines[2]
    assert "You are next" in last_lines[3] and "Reading your message, 40 %" in last_lines[4]
    assert displayed(last_history(updates))[1] == "you said: hello!" and not toasts


def test_the_speed_while_an_answer_is_written_is_that_after_its_first_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tokens of a list have come at once, for example those of a draft."""
    progress, now = AnswerProgress(Settings()), 1.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for count, rate in ((6, None), (10, 10.0), (20, 15.0)):
        for token in range(count):
            progress.add(GenerationEvent("a", token))
        assert progress.rate == rate
        now += 1.0


def test_a_picture_goes_to_the_visual_adapter(picture: str) -> None:
    engine = EchoEngine()
    events = events_of(engine)
    first = last_history(list(send(events, "", files=[picture], adapter="see")))
    assert displayed(first)[:2] == ["<picture>", "What is in this picture?"]
    assert engine.requests[0].image.size == (8, 8)
    second = last_history(list(send(events, "really?", first, adapter="see")))
    assert engine.requests[1].image is not None
    assert [m.role for m in engine.requests[1].messages] == ["user", "assistant", "user"]
    text_only = list(send(events, "and you?", second, adapter="poet"))
    assert engine.requests[2].image is None
    assert "picture not used" in displayed(last_history(text_only))[-1]
    list(send(events, "what?", files=[picture], adapter="poet", mix="see"))
    assert engine.requests[3].image is not None, "a visual adapter that is mixed in sees too"


def test_a_picture_for_a_text_adapter_leads_to_an_offer(picture: str) -> None:
    engine = EchoEngine()
    events = events_of(engine)
    history = last_history(list(send(events, "what?", files=[picture], adapter="poet")))
    assert not engine.requests and "reads text only" in displayed(history)[-1]
    assert [option["value"] for option in history[-1]["options"]] == ["see", TEXT_ONLY]
    settings = {**DEFAULTS, "adapter": "poet"}

    updates = list(events.choose_option(history, next(NEWER), event(value="see", index=0), REQUEST, **settings))
    assert [json.loads(panel)[1] for *_, panel, _ in updates if isinstance(panel, str)] == [
        {"adapter": ["poet", "see"]}
    ]
    assert engine.requests[0].adapter == "see" and engine.requests[0].image is not None

    updates = list(
        events.choose_option(history, next(NEWER), event(value=TEXT_ONLY, index=1), REQUEST, **settings)
    )
    assert engine.requests[1].adapter == "poet" and engine.requests[1].image is None
    assert "picture not used" in displayed(last_history(updates))[-1]


def test_nothing_mixed_follows_to_another_adapter(picture: str, toasts: list[str]) -> None:
    engine = EchoEngine()
    events = events_of(engine)
    events.catalog.cards["bard"] = FakeCard("bard")
    history = last_history(list(send(events, "what?", files=[picture], adapter="poet")))
    settings = {**DEFAULTS, "adapter": "poet", "mix": "bard"}
    for choice, kept in ((TEXT_ONLY, ("poet", (("bard", 1.0),))), ("see", ("see", ()))):
        pressed = event(value=choice, index=0)
        updates = list(events.choose_option(history, next(NEWER), pressed, REQUEST, **settings))
        asked = engine.requests[-1]
        assert (asked.adapter, asked.mix) == kept
    assert [json.loads(panel)[1] for *_, panel, _ in updates if isinstance(panel, str)] == [
        {"adapter": ["poet", "see"], "mix": ["bard", ""]}
    ]
    assert any("“bard” is no longer mixed in" in text for text in toasts)
    engine.error = Busy("Pulled.")
    updates = list(events.choose_option(history, next(NEWER), pressed, REQUEST, **settings))
    assert json.loads(updates[-1][2])[1] == {"adapter": ["see", "poet"], "mix": ["", "bard"]}


def test_an_answer_that_went_wrong_after_a_switch_is_given_again_without_what_went_before() -> None:
    engine = EchoEngine()
    events = events_of(engine)
    first = last_history(list(send(events, "of travel")))
    assert not first[-1]["options"]
    history = last_history(list(send(events, "who are you?", first, adapter="poet")))
    assert history[-1]["options"] == []
    engine.ending = "repetition"
    history = last_history(list(events.retry(history, next(NEWER), REQUEST, **{**DEFAULTS, "adapter": "poet"})))
    [option] = history[-1]["options"]
    pressed, settings = event(value=option["value"], index=1), {**DEFAULTS, "adapter": "poet"}
    alone = last_history(list(events.choose_option(history, next(NEWER), pressed, REQUEST, **settings)))
    assert [len(request.messages) for request in engine.requests] == [1, 3, 3, 1]
    assert [kind for entry in alone if (kind := conversation.kind(entry))] == [
        conversation.STATS, conversation.FORGOTTEN, conversation.DIVIDER, conversation.STATS
    ]  # fmt: skip
    assert alone[-1]["options"] == []


def test_an_edit_keeps_the_picture_and_drops_what_followed(picture: str) -> None:
    engine = EchoEngine()
    events = events_of(engine)
    history = last_history(list(send(events, "what?", files=[picture], adapter="see")))
    edit = event(index=1, value="who?", previous_value="what?")
    updates = list(events.edit(history, next(NEWER), edit, REQUEST, **{**DEFAULTS, "adapter": "see"}))
    assert displayed(last_history(updates))[:3] == ["<picture>", "who?", "you said: who?!"]
    assert engine.requests[1].image is not None


def test_a_history_that_is_too_long_is_not_sent_again_and_again(toasts: list[str]) -> None:
    engine = EchoEngine()
    remark = conversation.note("x" * 10_000)  # no model reads it, so that the context does not limit it
    history = [remark] * 250
    updates = list(send(events_of(engine), "hi", history))
    assert engine.requests == [] and "too long to go on" in toasts[0]
    assert last_history(updates) == history and updates[-1][1]["value"] == {"text": "hi", "files": []}
    list(send(events_of(engine), "hi", history[:100]))
    assert len(engine.requests) == 1


def test_undo_returns_the_message_to_the_box(picture: str) -> None:
    events = events_of(EchoEngine())
    history = last_history(list(send(events, "what?", files=[picture], adapter="see")))
    rest, box, _ = events.undo(history, next(NEWER), REQUEST)
    assert rest == [] and box["value"]["text"] == "what?"
    assert [Path(file).name for file in box["value"]["files"]] == ["picture.png"]


def test_a_second_adapter_goes_into_the_request() -> None:
    engine = EchoEngine()
    updates = list(send(events_of(engine), "hi", adapter="poet", strength=0.8, mix="see", mix_strength=0.5))
    assert engine.requests[0].parts == (("poet", 0.8), ("see", 0.5))
    line = displayed(last_history(updates))[-1]
    assert "poet · strength 0.8 · with see at 0.5 · 3 tokens" in line and "no image" in line
    list(send(events_of(engine), "hi", adapter="poet", mix=None, mix_strength=0.5))
    assert engine.requests[1].mix == ()


@pytest.mark.parametrize(
    ("error", "settings", "message"),
    [
        (None, {"adapter": "nobody"}, "no adapter 'nobody'"),
        (None, {"strength": 3.0}, "Strength"),
        (None, {"temperature": -1}, "Temperature"),
        (None, {"seed": 1.5}, "whole number"),
        (None, {"max_tokens": None}, "needs a whole number"),
        (None, {"adapter": "poet", "mix": "poet"}, "mixed with itself"),
        (None, {"adapter": "poet", "mix": "gone"}, "no adapter 'gone'"),
        (None, {"adapter": "poet", "mix": "see", "mix_strength": 3.0}, "strength"),
        (Busy("The queue is full. Try again."), {}, "queue is full"),
        (BadInput("The conversation has 9000 tokens."), {}, "9000 tokens"),
        (RuntimeError("secret /home/me/x.py"), {}, "went wrong on the server"),
    ],
)
def test_a_failure_is_a_toast_and_restores_everything(
    error: Exception | None, settings: dict[str, Any], message: str, toasts: list[str]
) -> None:
    history = [*user_turn("before"), answer("yes")]
    updates = list(send(events_of(EchoEngine(error)), "hi", history, **settings))
    assert len(toasts) == 1 and message in toasts[0] and "secret" not in toasts[0]
    assert [box for _, box, *_ in updates if isinstance(box, dict) and "value" in box][-1]["value"] == {
        "text": "hi",
        "files": [],
    }
    assert last_history(updates) == history


@pytest.mark.parametrize(("text", "sentence"), [("x" * 100_000, "100,000 characters"), ("  ", "Type a message")])
def test_a_message_that_cannot_be_sent_is_a_toast(text: str, sentence: str, toasts: list[str]) -> None:
    assert list(send(events_of(EchoEngine()), text, user_turn("a"))) == [NO_CHANGE]
    assert len(toasts) == 1 and sentence in toasts[0]


@pytest.mark.parametrize("adapter", ["see", "poet"])
def test_an_unreadable_picture_leaves_the_text(adapter: str, picture: str, toasts: list[str]) -> None:
    Path(picture).write_text("not a picture")
    updates = list(send(events_of(EchoEngine()), "what?", files=[picture], adapter=adapter))
    assert len(toasts) == 1 and str(Path(picture).parent) not in toasts[0]
    assert last_history(updates) == []
    assert updates[-1][1]["value"] == {"text": "what?", "files": []}


def test_forged_events_change_nothing() -> None:
    events, history = events_of(EchoEngine()), user_turn("a")
    for updates in (
        events.edit(history, "1", event(index=99, value="x", previous_value=""), REQUEST, **DEFAULTS),
        events.choose_option(history, next(NEWER), event(value="see", index=0), REQUEST, **DEFAULTS),
        events.send_example(history, "1", event(index=99, value={}), REQUEST, **DEFAULTS),
        events.retry([], "1", REQUEST, **DEFAULTS),
    ):
        assert list(updates) == [NO_CHANGE]
