"""The comparison over fake engines: requests, answers that grow side by side, the film, and words that differ."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from adapter.errors import Busy, LoadError
from adapter.serve.request import Answer, Client, GenerationEvent, GenerationStats, Mailbox
from adapter.serve.settings import Settings
from adapter.server.limits import ANSWERS_PER_MINUTE, CountedProvider, Limits
from adapter.ui import comparison, conversation
from adapter.ui.compare.tab import MAX_PANES, SIDE_BY_SIDE, STRENGTHS, CompareEvents
from adapter.ui.comparison import mark_differences
from adapter.ui.texts import page as texts
from tests.app_process import PATIENCE, wait_until
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request

REQUEST = event_request()
SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 32, "seed": None}
TWO = (("", 1.0), ("poet", 1.0))
NEWER = map(str, itertools.count(10, 10))  # numbers, each newer than all that the server has seen


def compare(
    tab: Any,
    *panes: tuple[str, float],
    text: str = "hello",
    files: Any = (),
    count: int = 0,
    number: str = "",
    view: str = SIDE_BY_SIDE,
    **sampling: Any,
) -> Iterator[Any]:
    """The updates of one message; tab: the event handlers, or an engine for them."""
    if not isinstance(tab, CompareEvents):
        tab = CompareEvents(ReadyProvider(tab), FakeCatalog())
    padded = [*panes, *[("", 1.0)] * (MAX_PANES - len(panes))]
    values = {f"adapter_{i}": name for i, (name, _) in enumerate(padded)}
    values |= {f"strength_{i}": strength for i, (_, strength) in enumerate(padded)}
    values["film_adapter"] = padded[0][0]
    message = {"text": text, "files": list(files)}
    return tab.send(
        message, number or next(NEWER), view, count or len(panes), REQUEST, **values, **{**SAMPLING, **sampling}
    )


class ScriptedEngine:
    """An engine whose answers consist of what a test emits."""

    def __init__(self) -> None:
        self.answers: list[ScriptedAnswer] = []

    def submit(self, request: Any) -> ScriptedAnswer:
        self.answers.append(ScriptedAnswer())
        return self.answers[-1]


class ScriptedAnswer(Answer):
    def __init__(self) -> None:
        super().__init__(Mailbox(), self.emit_cancelled)
        self.cancelled = False
        self.tokens = 0

    def emit(self, text: str, reason: Any = None) -> None:
        self.tokens += 1
        stats = GenerationStats(5, self.tokens, 0.0, 0.0, 0.1) if reason else None
        self.mailbox.put(GenerationEvent(text, 7, -0.1, reason, stats))

    def emit_cancelled(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            stats = GenerationStats(5, self.tokens, 0.0, 0.0, 0.1)
            self.mailbox.put(GenerationEvent(finish_reason="cancelled", stats=stats))


def test_all_panes_have_the_same_seed() -> None:
    engine = EchoEngine()
    updates = list(compare(engine, ("", 1.0), ("poet", 0.5), ("poet", 1.0)))
    assert [(r.adapter, r.strength) for r in engine.requests] == [(None, 1.0), ("poet", 0.5), ("poet", 1.0)]
    assert len({r.sampling.seed for r in engine.requests}) == 1 and engine.requests[0].sampling.seed is not None
    assert {r.client for r in engine.requests} == {Client("192.0.2.1", "me")} and engine.closed == 3
    box, _, _, *panes = updates[-1]
    assert box["submit_btn"] is True and texts.EMPTY_PANE in panes[3]
    assert all("you said: hello!" in pane and "20 tokens/s" in pane for pane in panes[:3])
    same = "word for word as in pane 1"
    assert same not in panes[0] and same in panes[1]
    list(compare(engine, *TWO, seed="5"))
    assert [r.sampling.seed for r in engine.requests[3:]] == [5, 5]


def test_panes_grow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "REDRAW_SECONDS", 0.0)
    engine = ScriptedEngine()
    updates = compare(engine, *TWO)
    first, second = next(updates), next(updates)
    assert first[0]["stop_btn"] is True and first[3] == gr.skip()  # it may still be refused
    assert "…" in second[3]  # the last comparison is gone
    received: list[Any] = []
    reader = threading.Thread(target=lambda: received.extend(updates))
    reader.start()
    for index, text, pane in [(1, "yo ", "yo"), (0, "a ", "a"), (1, "ho", "yo ho"), (0, "b", "a b")]:
        engine.answers[index].emit(text)
        wait_until(lambda: received and f">{pane}<" in received[-1][3 + index])  # noqa: B023
    assert "<mark>" not in received[-1][4]
    engine.answers[0].emit("!", "stop")
    engine.answers[1].emit("!", "length")
    reader.join(PATIENCE)
    _, _, _, *panes = received[-1]
    assert "a b!" in panes[0] and "<mark>yo ho!</mark>" in panes[1]
    assert "cut at max tokens" in panes[1] and "2 of 2 words" in panes[1]


def test_an_error_ends_its_own_pane_only() -> None:
    class FailingEngine(EchoEngine):
        def submit(self, request: Any) -> Any:
            if request.adapter == "see":
                raise LoadError("Adapter 'see' is broken. <b>", "/home/me/x/see/config.json")
            if request.strength == 0.25:
                raise RuntimeError("/secret")
            answer = super().submit(request)
            if request.adapter == "poet":
                answer.mailbox.events = failing(answer.mailbox.events)
            return answer

    def failing(events: Any) -> Any:
        yield next(events)
        raise Busy("Somebody pulled the plug. Try again.")

    *_, (_, _, _, *panes) = compare(FailingEngine(), ("", 1.0), ("poet", 1.0), ("see", 1.0), ("", 0.25))
    assert "you said: hello!" in panes[0] and texts.FAILED in panes[3]
    assert "you said:" in panes[1] and "pulled the plug" in panes[1]
    assert "is broken. &lt;b&gt;" in panes[2] and "/home" not in panes[2]


@pytest.mark.parametrize(
    ("wrong", "adapter", "message"),
    [
        ({"text": "x" * 100_000}, "poet", "100,000"),
        ({"count": 9}, "poet", "2 to 4 panes"),
        ({"temperature": None}, "poet", "needs a number"),
        ({}, "gone", "no adapter 'gone'"),
    ],
)
def test_what_is_wrong_for_all_panes_is_a_toast(
    wrong: dict[str, Any], adapter: str, message: str, toasts: list[str]
) -> None:
    engine = EchoEngine()
    updates = list(compare(engine, ("", 1.0), (adapter, 1.0), **wrong))
    assert len(toasts) == 1 and message in toasts[0] and not engine.requests
    assert updates[-1][0]["submit_btn"] is True
    assert all(panes == [gr.skip()] * MAX_PANES for _, _, _, *panes in updates), "the last comparison is gone"


@pytest.mark.parametrize(("error", "message"), [(Busy("Full. Wait."), "Full"), (ValueError("/secret"), "its log")])
def test_a_failed_submit_of_all_panes_is_a_toast(error: Exception, message: str, toasts: list[str]) -> None:
    class ClosedEngine:
        def submit(self, request: Any) -> Any:
            raise error

    list(compare(ClosedEngine(), *TWO))
    assert len(toasts) == 1 and message in toasts[0] and "secret" not in toasts[0]


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def test_an_unreadable_picture_leaves_the_box_and_the_text_stays(uploads: Path, toasts: list[str]) -> None:
    (uploads / "a.png").write_bytes(b"no picture")
    picture = str(uploads / "a.png")
    *_, (box, _, _, *panes) = compare(EchoEngine(), ("", 1.0), ("see", 1.0), text="What is it?", files=[picture])
    assert box["value"] == {"text": "What is it?", "files": []} and box["submit_btn"] is True
    assert panes == [gr.skip()] * MAX_PANES and len(toasts) == 1


def test_the_picture_goes_to_visual_adapters(uploads: Path, toasts: list[str]) -> None:
    Image.new("RGB", (8, 8)).save(uploads / "a.png")
    picture = str(uploads / "a.png")
    engine = EchoEngine()
    *_, (_, _, _, *panes) = compare(engine, ("", 1.0), ("see", 1.0), text="", files=[picture])
    assert [r.image is not None for r in engine.requests] == [False, True]
    assert engine.requests[0].messages[0].text == "What is in this picture?"
    assert "picture not used" in panes[0] and "picture not used" not in panes[1]
    list(compare(engine, *TWO, text="", files=[picture]))
    assert len(engine.requests) == 2 and "No pane" in toasts[0]


def test_stop_cancels_all_panes() -> None:
    engine = ScriptedEngine()
    tab = CompareEvents(ReadyProvider(engine), FakeCatalog())
    updates = compare(tab, ("", 1.0), ("poet", 1.0), ("see", 1.0))
    _, number, *_ = next(updates)
    next(updates)
    engine.answers[0].emit("a"), engine.answers[1].emit("b")
    next(updates)
    assert tab.stop(number, REQUEST) == (gr.skip(), gr.skip())
    assert all(answer.cancelled for answer in engine.answers)
    *_, (box, _, _, *panes) = updates
    assert box["submit_btn"] is True and "stopped" in panes[0] and "first word" in panes[2]
    assert not any("<mark>" in pane for pane in panes)


def test_a_late_stop_ends_no_later_comparison() -> None:
    engine = ScriptedEngine()
    tab = CompareEvents(ReadyProvider(engine), FakeCatalog())
    first = compare(tab, *TWO, number="0")
    seen = next(first)[1]
    next(first)
    for answer in engine.answers:
        answer.emit("a", "stop")
    *_, (_, number, *_) = first
    assert tab.stop(seen, REQUEST) == (gr.skip(), gr.skip())
    second = compare(tab, *TWO, number=number)
    next(second), next(second)
    assert tab.stop(seen, REQUEST) == (gr.skip(), gr.skip())
    assert not any(answer.cancelled for answer in engine.answers[2:])
    second.close()
    # A server that was restarted knows nothing of it: the page gets its button back.
    assert CompareEvents(ReadyProvider(engine), FakeCatalog()).stop(seen, REQUEST)[0]["submit_btn"] is True


@pytest.mark.parametrize("failed", [0, 1])
def test_an_answer_that_failed_is_not_compared(failed: int) -> None:
    """Words after the place where it failed do not differ from it."""
    engine = ScriptedEngine()
    updates = compare(engine, *TWO)
    next(updates), next(updates)
    engine.answers[1 - failed].emit("the sea is blue", "stop")
    engine.answers[failed].emit("a")
    engine.answers[failed].mailbox.put(Busy("Pulled."))
    *_, (_, _, _, *panes) = updates
    assert not any("<mark>" in pane or "not in pane 1" in pane for pane in panes)
    assert "the sea is blue" in panes[1 - failed] and "Pulled." in panes[failed]


def test_one_comparison_at_a_time(toasts: list[str]) -> None:
    tab = CompareEvents(ReadyProvider(EchoEngine()), FakeCatalog())
    first = compare(tab, *TWO, number="5")
    next(first)
    assert list(compare(tab, *TWO, number="5")) == [(gr.skip(),) * (3 + MAX_PANES)]
    assert "still being written" in toasts[0]
    first.close()


def test_an_empty_message_changes_nothing(toasts: list[str]) -> None:
    assert list(compare(EchoEngine(), *TWO, text=" ")) == [(gr.skip(),) * (3 + MAX_PANES)]
    assert toasts == [texts.NOTHING_TO_SEND]


def test_answers_are_inert() -> None:
    *_, (_, _, _, *panes) = compare(EchoEngine(), *TWO, text="<img src=x onerror=alert(1)> & ${1+1}")
    assert all("<img" not in pane and "&lt;img" in pane for pane in panes[:2])


@pytest.mark.parametrize(
    ("first", "other", "marked"),
    [
        ("the sea is blue", "the sea is blue", ("the sea is blue", 0, 4)),
        ("the sea is blue", "the sky is  blue", ("the <mark>sky</mark> is  blue", 1, 4)),
        ("a b", "a\nb c d", ("a\nb <mark>c d</mark>", 2, 4)),
        ("a b c", "b", ("b", 0, 1)),
        ("x", "<b>x</b> & y", ("<mark>&lt;b&gt;x&lt;/b&gt; &amp; y</mark>", 3, 3)),
        ("<i> x", "<i> y", ("&lt;i&gt; <mark>y</mark>", 1, 2)),
    ],
)
def test_words_that_differ_are_marked(first: str, other: str, marked: tuple[str, int, int]) -> None:
    assert mark_differences(first, other) == marked


def test_texts_that_repeat_themselves_are_not_compared_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's matcher would take 25 s, while all others' answers are slow."""
    first, other = ["a", "b"] * 1000, ["b", "a", "a"] * 600
    compared = []
    monkeypatch.setattr(comparison.difflib, "SequenceMatcher", lambda *given, **_: compared.append(given))
    marked, changed, words = mark_differences(
        " ".join(["Yes", *first, "the", "end"]), " ".join(["Yes", *other, "the", "end"])
    )
    assert not compared and (changed, words) == (1800, 1803)
    assert marked.startswith("Yes <mark>b a a b") and marked.endswith("a a</mark> the end")
    same = " ".join(first)
    assert mark_differences(same, same) == (same, 0, 2000)
    assert mark_differences(same, same + " a b") == (f"{same} <mark>a b</mark>", 2, 2002)


# The film.


def film_frames(film: str) -> list[str]:
    return film.split('<div class="frame">')[1:]


def test_a_film_is_one_adapter_at_five_strengths() -> None:
    engine = EchoEngine()
    *_, (box, _, film, *panes) = compare(engine, ("poet", 0.3), view=STRENGTHS)
    assert [(r.adapter, r.strength) for r in engine.requests] == [("poet", s) for s in (0, 0.5, 1, 1.5, 2)]
    assert len({r.sampling.seed for r in engine.requests}) == 1 and engine.closed == 5
    assert box["submit_btn"] is True and panes == [gr.skip()] * MAX_PANES
    first, *others = film_frames(film)
    assert "at strength" not in first and all("word for word as at strength" in frame for frame in others)


def test_words_that_differ_from_the_next_lower_strength_are_marked() -> None:
    engine = ScriptedEngine()
    updates = compare(engine, ("poet", 1.0), view=STRENGTHS)
    next(updates), next(updates)
    for answer, text in zip(engine.answers, ["the sea", "the sea", "the sky", "<b> sky", "<b> sky"], strict=True):
        answer.emit(text, "stop")
    *_, (_, _, film, *_) = updates
    marked = [">the sea<", ">the sea<", "the <mark>sky</mark>", "<mark>&lt;b&gt;</mark> sky", ">&lt;b&gt; sky<"]
    for frame, expected in zip(film_frames(film), marked, strict=True):
        assert expected in frame and frame.count("<mark>") == expected.count("<mark>")


def test_the_frozen_base_has_no_film(toasts: list[str]) -> None:
    engine = EchoEngine()
    list(compare(engine, ("", 1.0), view=STRENGTHS))
    assert toasts == [texts.FILM_NEEDS_ADAPTER] and not engine.requests


class CancelledEngine(EchoEngine):
    """Remembers its answers, to see which were closed."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Any] = []

    def submit(self, request: Any) -> Any:
        self.answers.append(super().submit(request))
        return self.answers[-1]


@pytest.mark.parametrize(("left", "begun"), [(5, True), (4, False)])
def test_a_film_counts_as_five_answers_and_is_written_whole_or_not_at_all(
    left: int, begun: bool, toasts: list[str]
) -> None:
    now = [0.0]
    limits, engine = Limits(public=True, clock=lambda: now[0]), CancelledEngine()
    for _ in range(ANSWERS_PER_MINUTE - left):
        limits.hold("answer", "192.0.2.1")()
    tab = CompareEvents(CountedProvider(ReadyProvider(engine), limits), FakeCatalog())
    *_, (_, _, film, *_) = compare(tab, ("poet", 1.0), view=STRENGTHS)
    assert engine.closed == len(engine.answers) == left
    if begun:
        assert film_frames(film) and not toasts
        return
    assert film == gr.skip() and toasts == [texts.all_refused(5, 10)]
    now[0] += 10  # as the sentence says
    *_, (_, _, film, *_) = compare(tab, ("poet", 1.0), view=STRENGTHS)
    assert film_frames(film) and len(toasts) == 1


def answered(adapter: str) -> conversation.History:
    """A conversation whose answer was written at strength 0.7 with seed 5."""
    settings = Settings.checked({"adapter": adapter, "strength": 0.7, "seed": 5})
    record = conversation.AnswerRecord(settings, (1, 2), False).to_json()
    return [*conversation.user_turn("hello"), conversation.answer("ho"), conversation.stats("", record=record)]


def press(engine: Any, history: conversation.History, value: str) -> list[Any]:
    tab = CompareEvents(ReadyProvider(engine), FakeCatalog())
    return list(tab.film_of_chat(history, next(NEWER), SimpleNamespace(value=value), REQUEST))  # type: ignore[arg-type]


def test_the_button_under_an_answer_opens_the_tab_and_writes_it_at_five_strengths() -> None:
    engine, history = EchoEngine(), answered("poet")
    [button] = conversation.with_buttons(history)[-1]["options"]
    first, *others = press(engine, history, button["value"])
    tabs, view, adapter, box, *_ = first
    assert (tabs.selected, view, adapter) == ("compare", STRENGTHS, "poet")
    assert box["value"] == {"text": "hello", "files": []}
    assert len(film_frames(others[-1][5])) == 5 and others[-1][3]["submit_btn"] is True
    assert [(r.strength, r.sampling.seed) for r in engine.requests] == [(s, 5) for s in (0, 0.5, 1, 1.5, 2)]
    assert {r.messages[-1].text for r in engine.requests} == {"hello"}
    assert conversation.with_buttons(answered(""))[-1]["options"] == [], "the base has no strengths"


@pytest.mark.parametrize(
    ("history", "value"),
    [(answered("poet"), "see"), ([], conversation.FILM), (conversation.user_turn("hello"), conversation.FILM)],
)
def test_other_buttons_of_the_chat_make_no_film(history: conversation.History, value: str) -> None:
    engine = EchoEngine()
    assert press(engine, history, value) == [(gr.skip(),) * (6 + MAX_PANES)] and not engine.requests


def test_a_film_of_an_adapter_that_is_gone_is_a_toast(toasts: list[str]) -> None:
    engine = EchoEngine()
    engine.submit = lambda request: FakeCatalog().card(request.adapter)  # type: ignore[method-assign]
    *_, (_, _, _, box, _, film, *_) = press(engine, answered("gone"), conversation.FILM)
    assert film == gr.skip() and len(toasts) == 1 and box["submit_btn"] is True
