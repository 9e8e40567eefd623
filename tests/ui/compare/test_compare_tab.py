"""The comparison over a fake engine: requests, answers that grow side by side, the film, and words that differ."""

import re
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from adapter.errors import Busy, LoadError
from adapter.serve.request import Client
from adapter.serve.settings import Settings
from adapter.server.limits import ANSWERS_PER_MINUTE, Limits
from adapter.server.metrics import CountedEngine, Metrics
from adapter.ui import conversation
from adapter.ui.compare.tab import FILM, MAX_PANES, SIDE_BY_SIDE, CompareEvents
from adapter.ui.comparison import mark_differences
from adapter.ui.conversation import AnswerRecord, Entry, user_turn
from adapter.ui.session import Conversations
from adapter.ui.texts import page as texts
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request

REQUEST = event_request()
SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 32, "seed": None}
TWO = (("", 1.0), ("poet", 1.0))


def compare_events(engine: Any, conversations: Conversations | None = None) -> CompareEvents:
    return CompareEvents(ReadyProvider(engine), FakeCatalog(), conversations or Conversations())


def compare(
    tab: Any,
    *panes: tuple[str, float],
    text: str = "hello",
    files: Any = (),
    view: str = SIDE_BY_SIDE,
    words: str = "",
    **sampling: Any,
) -> Iterator[Any]:
    """The updates of one message; tab: the event handlers, or an engine for them."""
    if not isinstance(tab, CompareEvents):
        tab = compare_events(tab)
    padded = [*panes, *[("", 1.0)] * (MAX_PANES - len(panes))]
    values = {f"adapter_{i}": name for i, (name, _) in enumerate(padded)}
    values |= {f"strength_{i}": strength for i, (_, strength) in enumerate(padded)}
    values |= {f"words_{i}": words for i in range(MAX_PANES)}
    values["film_adapter"] = padded[0][0]
    message = {"text": text, "files": list(files)}
    return tab.send(message, view, len(panes), REQUEST, **values, **{**SAMPLING, **sampling})


def panes_of(html: str) -> list[str]:
    """The panes or frames of an update."""
    return re.split(r'<div>(?=<div class="answer-text)', html)[1:]


def test_all_panes_have_the_same_seed_and_no_markup():
    engine = EchoEngine()
    updates = list(compare(engine, ("", 1.0), ("poet", 0.5), ("poet", 1.0), text="<img src=x>"))
    assert [(r.adapter, r.strength) for r in engine.requests] == [(None, 1.0), ("poet", 0.5), ("poet", 1.0)]
    assert len({r.sampling.seed for r in engine.requests}) == 1 and engine.requests[0].sampling.seed is not None
    assert {r.client for r in engine.requests} == {Client("192.0.2.1", "me")} and engine.closed == 3
    box, panes = updates[-1][0], panes_of(updates[-1][1])
    assert box["submit_btn"] is True and len(panes) == 3
    assert all("you said: &lt;img src=x&gt;!" in pane and "20 tokens/s" in pane for pane in panes)
    assert ["word for word as in pane 1" in pane for pane in panes] == [False, True, True]
    *_, (_, told) = compare(engine, *TWO, seed="5", words="Answer like a pirate.")
    assert [[m.role for m in r.messages] for r in engine.requests[3:]] == [["system", "user"], ["user"]]
    assert "told “Answer like a pirate.”" in told
    assert [r.sampling.seed for r in engine.requests[3:]] == [5, 5]
    assert "told" not in list(compare(engine, *TWO, words=" \n"))[-1][1], "nothing was"


def test_an_error_ends_its_own_pane_only():
    """Words after the place where an answer failed do not differ from it."""

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

    asked = ("", 1.0), ("poet", 1.0), ("see", 1.0), ("", 0.25)
    *grown, (_, html) = compare(FailingEngine(), *asked)
    panes = panes_of(html)
    assert any(str(update[1]).count(">you said:<") == 2 for update in grown), "they grow together"
    assert "you said: hello!" in panes[0] and texts.FAILED in panes[3]
    assert "you said:" in panes[1] and "pulled the plug" in panes[1]
    assert "is broken. &lt;b&gt;" in panes[2] and "/home" not in panes[2]
    assert not any("<mark>" in pane or "as in pane 1" in pane for pane in panes)
    *_, (_, html) = compare(FailingEngine(), *asked[1::-1])
    first, second = panes_of(html)
    assert "pulled the plug" in first and "you said: hello!" in second and "<mark>" not in second


@pytest.mark.parametrize(
    ("adapter", "wrong", "message"),
    [
        ("poet", {"text": " "}, texts.NOTHING_TO_SEND),
        ("gone", {}, "no adapter 'gone'"),
        ("", {"view": FILM}, texts.FILM_NEEDS_ADAPTER),
    ],
)
def test_what_is_wrong_for_all_panes_is_a_toast(adapter, wrong, message, toasts):
    updates = list(compare(EchoEngine(), ("", 1.0), (adapter, 1.0), **wrong))
    assert len(toasts) == 1 and message in toasts[0]
    assert all(shown == gr.skip() for _, shown in updates), "the last comparison is gone"
    assert updates[-1][0] == gr.skip() or updates[-1][0]["submit_btn"] is True


def test_the_picture_goes_to_visual_adapters(tmp_path, monkeypatch, toasts):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    picture, engine, sees = str(tmp_path / "a.png"), EchoEngine(), (("", 1.0), ("see", 1.0))
    Image.new("RGB", (8, 8)).save(picture)
    *_, (_, html) = compare(engine, *sees, text="", files=[picture])
    panes = panes_of(html)
    assert [r.image is not None for r in engine.requests] == [False, True]
    assert engine.requests[0].messages[0].text == "What is in this picture?"
    assert "picture not used" in panes[0] and "picture not used" not in panes[1]
    list(compare(engine, *TWO, text="", files=[picture]))
    assert len(engine.requests) == 2 and "No pane" in toasts.pop()


def test_one_comparison_at_a_time_and_stop_ends_the_one_that_is_written(toasts):
    tab = compare_events(EchoEngine())
    first = compare(tab, *TWO)
    next(first)
    assert list(compare(tab, *TWO)) == [(gr.skip(),) * 2]
    assert "still being written" in toasts[0]
    record = AnswerRecord(Settings(adapter="see", strength=0, mix="poet", seed=1), (7,))
    tab.conversations.open("me", "id", [*user_turn("why?"), Entry("assistant", "So.", record=record)])
    asked = {"index": 0, "value": conversation.FILM}
    begun, *refused = tab.film_of_chat("id", gr.SelectData(None, asked), REQUEST)
    assert begun[1:] == (gr.skip(),) * 4 and refused == [(gr.skip(),) * 5], "the other one's words stay"
    list(first)
    begun, accepted, *_ = tab.film_of_chat("id", gr.SelectData(None, asked), REQUEST)
    assert accepted[1:3] == (FILM, "poet"), "who has answered"
    assert accepted[3]["value"] == {"text": "why?", "files": []}
    assert tab.stop(REQUEST)["submit_btn"] is True, "it has ended, or the server was restarted"
    second = compare(tab, *TWO)
    next(second)
    assert "…" in next(second)[1], "the first one is gone"
    next(second)
    assert tab.stop(REQUEST) == gr.skip()
    *_, (box, html) = second
    assert html.count("stopped") == 2 and box["submit_btn"] is True
    assert "hello!" in list(compare(tab, *TWO))[-1][1]


@pytest.mark.parametrize(
    ("first", "other", "marked"),
    [
        ("the sea is blue", "the sky is  blue", ("the <mark>sky</mark> is  blue", 1, 4)),
        ("a b", "a\nb c d", ("a\nb <mark>c d</mark>", 2, 4)),
        ("a b c", "b", ("b", 0, 1)),
        ("<i> x", "<i> <b>x</b> & y", ("&lt;i&gt; <mark>&lt;b&gt;x&lt;/b&gt; &amp; y</mark>", 3, 4)),
    ],
)
def test_words_that_differ_are_marked(first, other, marked):
    assert mark_differences(first, other) == marked


def test_texts_that_repeat_themselves_are_not_compared_word_by_word():
    """With all their words Python's matcher would take 25 s, while all others' answers are slow."""
    first, other = ["a", "b"] * 1000, ["b", "a", "a"] * 600
    begun = time.thread_time()
    marked, _, words = mark_differences(" ".join(["Yes", *first]), " ".join(["Yes", *other]))
    assert time.thread_time() - begun < 1 and words == 1801 and marked.startswith("Yes <mark>")


def test_a_film_counts_as_five_answers_and_is_written_whole_or_not_at_all(toasts):
    now = [0.0]
    limits, engine = Limits(public=True, clock=lambda: now[0]), EchoEngine()
    for _ in range(ANSWERS_PER_MINUTE - 4):
        limits.hold("answer", "192.0.2.1")()
    tab = compare_events(CountedEngine(engine, limits, Metrics(FakeCatalog())))
    *_, (_, film) = compare(tab, ("poet", 1.0), view=FILM)
    assert engine.closed == len(engine.requests) == 4
    assert film == gr.skip() and toasts == [texts.all_refused(5, 10)]
    now[0] += 10  # as the sentence says
    *_, (_, film) = compare(tab, ("poet", 1.0), view=FILM)
    assert len(panes_of(film)) == 5 and len(toasts) == 1
