"""Mixing and the comparison without a browser: requests, streams side by side, differences, live pickers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

import app
from adapter.errors import AdapterError, Busy, LoadError
from adapter.serve.request import GenerationEvent, GenerationStats
from adapter.serve.settings import Settings
from adapter.server.settings import make_request
from adapter.ui import compare_tab as compare
from adapter.ui import conversation as talk
from adapter.ui import theme as look
from adapter.ui.compare_tab import MOST, Comparison
from adapter.ui.merged_streams import together
from adapter.ui.status import Picker
from adapter.ui.text_diff import difference
from adapter.ui.texts import page as words
from tests.ui.test_page_parts import DEFAULTS, ME, Echo, Ready, Shelf, asked, last_history, page_with, texts

SAMPLING = (0.7, 1.0, 32, None)


def sent(*panes: tuple[str, float], count: int | None = None, sampling: Any = SAMPLING) -> tuple[Any, ...]:
    """The values of an event: those of the count, all the panes and the sampling."""
    padded = [*panes, *[("", 1.0)] * (MOST - len(panes))]
    return count or len(panes), ME, *[value for pane in padded for value in pane], *sampling


def compared(engine: Any, *panes: tuple[str, float], text: str = "hello", **more: Any) -> list[Any]:
    return list(Comparison(Ready(engine), Shelf()).send(asked(text), *sent(*panes, **more)))


class Piano:
    """An engine whose answers say what a test plays on them, and no more."""

    def __init__(self) -> None:
        self.answers: list[Key] = []

    def submit(self, request: Any) -> Key:
        self.answers.append(Key(request))
        return self.answers[-1]


class Key:
    def __init__(self, request: Any) -> None:
        self.request = request
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.cancelled = False
        self.tokens = 0

    def play(self, text: str, reason: Any = None) -> None:
        self.tokens += 1
        stats = GenerationStats(5, self.tokens, 0.0, 0.0, 0.1) if reason else None
        self.inbox.put(GenerationEvent(text, 7, -0.1, reason, stats))

    def __iter__(self) -> Iterator[GenerationEvent]:
        while True:
            event = self.inbox.get(timeout=10)
            if isinstance(event, Exception):
                raise event
            yield event
            if event.finish_reason:
                return

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            stats = GenerationStats(5, self.tokens, 0.0, 0.0, 0.1)
            self.inbox.put(GenerationEvent(finish_reason="cancelled", stats=stats))

    close = cancel


# Mixing.


def test_a_second_adapter_goes_into_the_request() -> None:
    engine = Echo()
    updates = list(page_with(engine).send(asked("hi"), [], ME, "poet", 0.8, *DEFAULTS[2:], "see", 0.5))
    assert engine.requests[0].parts == (("poet", 0.8), ("see", 0.5))
    line = texts(last_history(updates))[-1]
    assert "poet · strength 0.8 · with see at 0.5 · 3 tokens" in line and "no image" in line


def test_without_a_second_adapter_nothing_is_mixed() -> None:
    for none in ("", None):
        assert (
            make_request(
                talk.user_turn("hi"), Settings.checked({"adapter": "poet", "mix": none}), "poet", None
            ).mix
            == ()
        )


@pytest.mark.parametrize(
    ("adapter", "mix", "strength", "words"),
    [
        ("poet", "poet", 0.5, "mixed with itself"),
        ("poet", "gone", 0.5, "no adapter"),
        ("poet", "see", 3.0, "Second strength"),
        ("poet", "see", None, "needs a number"),
    ],
)
def test_what_cannot_be_mixed_is_a_toast(
    adapter: str, mix: str, strength: Any, words: str, toasts: list[str]
) -> None:
    engine = Echo()
    message = asked("hi")
    updates = list(page_with(engine).send(message, [], ME, adapter, *DEFAULTS[1:], mix, strength))
    assert len(toasts) == 1 and words in toasts[0]
    assert not engine.requests and updates[-1][1]["value"] == message


def test_a_mixed_in_adapter_that_sees_gets_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    engine = Echo()
    message = asked("what?", files=[str(tmp_path / "a.png")])
    list(page_with(engine).send(message, [], ME, "poet", *DEFAULTS[1:], "see", 1.0))
    assert engine.requests[0].image is not None


def test_the_chat_endpoint_takes_a_mix_at_its_end() -> None:
    page = app.build_page(Ready(Echo()), Shelf())
    parameters = page.get_api_info()["named_endpoints"]["/chat"]["parameters"]
    names = [parameter["parameter_name"] for parameter in parameters]
    assert names[:3] == ["message", "image", "adapter"] and names[-2:] == ["mix", "mix_strength"]
    assert all(parameter["parameter_has_default"] for parameter in parameters[1:])


# The comparison.


def test_every_pane_asks_with_one_seed() -> None:
    engine = Echo()
    updates = compared(engine, ("", 1.0), ("poet", 0.5), ("poet", 1.0))
    assert [(r.adapter, r.strength) for r in engine.requests] == [(None, 1.0), ("poet", 0.5), ("poet", 1.0)]
    assert len({r.sampling.seed for r in engine.requests}) == 1 and engine.requests[0].sampling.seed is not None
    assert {r.client.session for r in engine.requests} == {"me"} and engine.closed == 3
    box, *panes = updates[-1]
    assert box["submit_btn"] is True and words.EMPTY_PANE in panes[3]
    assert all("you said: hello!" in pane and "20 tokens/s" in pane for pane in panes[:3])
    assert words.SAME_WORDS not in panes[0] and words.SAME_WORDS in panes[1]


def test_a_given_seed_is_taken() -> None:
    engine = Echo()
    compared(engine, ("", 1.0), ("poet", 1.0), sampling=(*SAMPLING[:3], 5))
    assert [r.sampling.seed for r in engine.requests] == [5, 5]


def test_panes_grow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "REDRAW_SECONDS", 0.0)
    engine = Piano()
    updates = Comparison(Ready(engine), Shelf()).send(asked("hi"), *sent(("", 1.0), ("poet", 1.0)))
    first, second = next(updates), next(updates)
    assert first[0]["stop_btn"] is True and first[1] == gr.skip()  # it may be refused yet
    assert "…" in second[1]  # what was there is gone
    pulled: list[Any] = []
    reader = threading.Thread(target=lambda: pulled.extend(updates))
    reader.start()
    for index, text, grown in [(1, "yo ", "yo"), (0, "a ", "a"), (1, "ho", "yo ho"), (0, "b", "a b")]:
        wait_for(lambda: len(engine.answers) == 2)
        engine.answers[index].play(text)
        wait_for(lambda: pulled and f">{grown}<" in pulled[-1][1 + index])  # noqa: B023
    halfway = pulled[-1]
    assert "a b" in halfway[1] and "yo ho" in halfway[2] and "<mark>" not in halfway[2]
    engine.answers[0].play("!", "stop")
    engine.answers[1].play("!", "length")
    reader.join(10)
    _, *panes = pulled[-1]
    assert "a b!" in panes[0] and "<mark>yo ho!</mark>" in panes[1]
    assert "cut at max tokens" in panes[1] and "2 of 2 words" in panes[1]


def wait_for(true: Any) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_error_of_a_pane_does_not_end_the_others() -> None:
    class Limping(Echo):
        def submit(self, request: Any) -> Any:
            if request.adapter == "see":
                raise LoadError("Adapter 'see': /home/me/x/see/config.json is broken. <b>")
            answer = super().submit(request)
            if request.adapter == "poet":
                answer.events = failing(answer.events)
            return answer

    def failing(events: Any) -> Any:
        yield next(events)
        raise Busy("Somebody pulled the plug. Try again.")

    _, *panes = compared(Limping(), ("", 1.0), ("poet", 1.0), ("see", 1.0), ("", 0.5))[-1]
    assert "you said: hello!" in panes[0] and "you said: hello!" in panes[3]
    assert "you said:" in panes[1] and "pulled the plug" in panes[1]
    assert "config.json is broken. &lt;b&gt;" in panes[2] and "/home" not in panes[2]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"text": "x" * 100_000}, "100,000"),
        ({"count": 9}, "2 to 4 panes"),
        ({"sampling": (None, 1.0, 32, None)}, "needs a number"),
        ({"engine": Echo(), "adapter": "gone"}, "no adapter 'gone'"),
    ],
)
def test_what_is_wrong_for_all_is_a_toast(case: dict[str, Any], words: str, toasts: list[str]) -> None:
    name = case.pop("adapter", "poet")
    engine = case.pop("engine", Echo())
    updates = compared(engine, ("", 1.0), (name, 1.0), **case)
    assert len(toasts) == 1 and words in toasts[0] and not engine.requests
    assert updates[-1][0]["submit_btn"] is True
    assert all(panes == [gr.skip()] * 4 for _, *panes in updates), "the last comparison is gone"


def test_a_file_that_is_no_picture_leaves_the_box_and_the_words_stay(tmp_path: Path, toasts: list[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    message = asked("What is it?", files=[str(tmp_path / "a.png")])
    updates = list(Comparison(Ready(Echo()), Shelf()).send(message, *sent(("", 1.0), ("see", 1.0))))
    box, *panes = updates[-1]
    assert box["value"] == {"text": "What is it?", "files": []} and box["submit_btn"] is True
    assert panes == [gr.skip()] * 4 and len(toasts) == 1


@pytest.mark.parametrize(("error", "words"), [(Busy("Full. Wait."), "Full"), (ValueError("/secret"), "its log")])
def test_a_failed_submit_of_all_is_a_toast(error: Exception, words: str, toasts: list[str]) -> None:
    class Closed(Echo):
        def submit(self, request: Any) -> Any:
            raise error

    compared(Closed(), ("", 1.0), ("poet", 1.0))
    assert len(toasts) == 1 and words in toasts[0] and "secret" not in toasts[0]


def test_stop_cancels_all() -> None:
    engine = Piano()
    tab = Comparison(Ready(engine), Shelf())
    updates = tab.send(asked("hi"), *sent(("", 1.0), ("poet", 1.0), ("see", 1.0)))
    next(updates), next(updates)
    threading.Timer(0.1, lambda: [engine.answers[0].play("a"), engine.answers[1].play("b")]).start()
    next(updates)
    assert tab.stop(ME) == gr.skip()  # type: ignore[arg-type]
    assert all(answer.cancelled for answer in engine.answers)
    box, *panes = list(updates)[-1]
    assert box["submit_btn"] is True and "stopped" in panes[0] and "first word" in panes[2]
    assert not any("<mark>" in pane for pane in panes)
    assert tab.stop(ME)["submit_btn"] is True  # type: ignore[arg-type]


def test_leaving_cancels_all() -> None:
    engine = Piano()
    updates = Comparison(Ready(engine), Shelf()).send(asked("hi"), *sent(("", 1.0), ("poet", 1.0)))
    next(updates), next(updates)
    threading.Timer(0.1, lambda: engine.answers[0].play("a")).start()
    next(updates)
    updates.close()
    assert all(answer.cancelled for answer in engine.answers)


def test_one_comparison_at_a_time(toasts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapter.ui.active_answers.ENDING_SECONDS", 0.05)
    tab = Comparison(Ready(Echo()), Shelf())
    first = tab.send(asked("one"), *sent(("", 1.0), ("poet", 1.0)))
    next(first)
    assert list(tab.send(asked("two"), *sent(("", 1.0), ("poet", 1.0)))) == [(gr.skip(),) * 5]
    assert "still being written" in toasts[0]
    first.close()


def test_the_picture_goes_to_those_that_see(tmp_path: Path, toasts: list[str]) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    message = asked("", files=[str(tmp_path / "a.png")])
    engine = Echo()
    tab = Comparison(Ready(engine), Shelf())
    _, *panes = list(tab.send(message, *sent(("", 1.0), ("see", 1.0))))[-1]
    assert [r.image is not None for r in engine.requests] == [False, True]
    assert engine.requests[0].messages[0].text == "What is in this picture?"
    assert "picture not used" in panes[0] and "picture not used" not in panes[1]
    list(tab.send(message, *sent(("", 1.0), ("poet", 1.0))))
    assert len(engine.requests) == 2 and "No pane" in toasts[0]


def test_nothing_to_send_changes_nothing(toasts: list[str]) -> None:
    assert compared(Echo(), ("", 1.0), ("poet", 1.0), text=" ") == [(gr.skip(),) * 5]
    assert toasts == [words.NOTHING_TO_SEND]


def test_answers_are_inert() -> None:
    _, *panes = compared(Echo(), ("", 1.0), ("poet", 1.0), text="<img src=x onerror=alert(1)> & ${1+1}")[-1]
    assert all("<img" not in pane and "&lt;img" in pane for pane in panes[:2])


def test_together_ends_with_the_last_and_reports_what_is_not_ours() -> None:
    one, two = Key(None), Key(None)
    one.inbox.put(ValueError("/secret"))
    two.play("x")
    two.play("y", "stop")
    events = [event for news in together({0: one, 1: two}, 0.0) for event in news]  # type: ignore[dict-item]
    (error,) = [event for key, event in events if key == 0]
    assert isinstance(error, AdapterError) and "secret" not in str(error)
    assert [event.text for key, event in events if key == 1] == ["x", "y"]


# Differences.


@pytest.mark.parametrize(
    ("first", "other", "shown"),
    [
        ("the sea is blue", "the sea is blue", ("the sea is blue", 0, 4)),
        ("the sea is blue", "the sky is  blue", ("the <mark>sky</mark> is  blue", 1, 4)),
        ("a b", "a\nb c d", ("a\nb <mark>c d</mark>", 2, 4)),
        ("a b c", "b", ("b", 0, 1)),
        ("x", "<b>x</b> & y", ("<mark>&lt;b&gt;x&lt;/b&gt; &amp; y</mark>", 3, 3)),
        ("<i> x", "<i> y", ("&lt;i&gt; <mark>y</mark>", 1, 2)),
    ],
)
def test_words_that_differ_are_marked(first: str, other: str, shown: tuple[str, int, int]) -> None:
    assert difference(first, other) == shown


def test_a_babbling_model_holds_nothing_up() -> None:
    began = time.monotonic()
    difference("the sea and the sea or " * 170, "the sea or the sea and " * 170)
    assert time.monotonic() - began < 5


# Pickers.


def test_dropdowns_begin_with_what_shows_most() -> None:
    box = gr.Dropdown([""])
    assert Picker(box, "None", 0).first_value(["extract", "mine", "pirate"], "") == "pirate"
    assert Picker(box, "None", 2).first_value(["extract", "mine", "pirate"], "") == "mine"
    assert Picker(box, "None", 2).first_value(["extract"], "") == "extract"
    assert Picker(box, "None", 0).first_value(["pirate", "see"], "see") == "see"
    assert Picker(box, "None").first_value(["pirate"], "") == ""
    assert look.short_choices([("None\nlong", ""), ("see\nlong", "see")], "Base") == [("Base", ""), ("see", "see")]
