"""Corrections of answers: what becomes of the conversation, and which records they are."""

import json
from typing import Any

import gradio as gr
import pytest

from adapter.ui.chat.corrections import MAX_CHARACTERS, MAX_CORRECTIONS, _show, add_correction
from adapter.ui.conversation import Entry, user_turn
from adapter.ui.texts import page as texts
from tests.ui.chat.test_chat_events import Page, event
from tests.ui.chat.test_conversation_json import answered

HISTORY = [*user_turn("One?"), *answered("First."), *user_turn("Two?"), *answered("Second.")]
CORRECTED = [HISTORY[0], Entry("assistant", "Better."), *HISTORY[2:]]


def contents(correction: dict[str, Any]) -> list[Any]:
    return [(m["role"][0], m["content"], m.get("weight")) for m in correction["messages"]]


def test_a_correction_is_a_record_in_which_only_the_visitors_words_are_learnt(tmp_path):
    from train.formats.dataset import open_records

    both = add_correction(add_correction([], HISTORY, 1, "Better."), CORRECTED, 3, "Best.")
    assert contents(both[0]) == [("u", "One?", None), ("a", "Better.", None)]
    wanted = [("u", "One?", None), ("a", "Better.", 0), ("u", "Two?", None), ("a", "Best.", None)]
    assert contents(both[1]) == wanted
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
    assert [record.unlearnt for record in open_records(tmp_path / "c.jsonl")] == [(), (1,)]
    # The same answer corrected again replaces the correction, and of a long conversation the newest part is kept.
    assert [contents(row)[-1][1] for row in add_correction(both, HISTORY, 1, "Good.")] == ["Best.", "Good."]
    long = [*user_turn("x" * MAX_CHARACTERS), Entry("assistant", "y"), *HISTORY]
    assert contents(add_correction([], long, 5, "Best.")[0])[0] == ("u", "One?", None)
    assert len(add_correction(both * MAX_CORRECTIONS, HISTORY, 3, "Other.")) <= MAX_CORRECTIONS


@pytest.mark.parametrize("forged", [None, "x", {}, [1], [{}], [{"messages": "x"}], [{"messages": [1]}]])
def test_what_a_browser_forges_is_no_correction(forged):
    assert not _show(forged)[0]["visible"]
    assert len(add_correction(forged, HISTORY, 1, "Better.")) == 1
    shown = _show([{"messages": [{"role": [], "content": {"<b>": 1}}]}])[1]
    assert "<b>" not in shown and "1 correction" in shown


def corrected(page: Page, index: Any, value: str, before: str = "First.") -> tuple[list[str], Any]:
    """What is shown, and the corrections."""
    (updates,) = page.act("send", event(index=index, value=value, previous_value=before))
    page.apply(updates)
    return page.shown, updates.corrections


def test_a_corrected_answer_stays_in_the_conversation_without_a_record(toasts):
    page = Page()
    shown = page.store.conversations.shown("me", "first")
    shown.history = HISTORY
    page.apply(page.store.show(shown))
    rows = page.shown
    # An empty one is put back, and the same words change nothing. The page's own is no answer.
    for index, value in [(1, " "), (1, "First."), *[(index, "x") for index in (2, 7, -1, "1", None)]]:
        assert corrected(page, index, value) == (rows, gr.skip())
    assert toasts == [texts.EMPTY_CORRECTION]
    assert corrected(page, 1, "Better.", "Of another time.") == (rows, gr.skip()), "the page was behind"
    shown, corrections = corrected(page, 1, " Better. <\u2060b> ")
    assert shown[0] == "One?" and page.words()[1] == contents(corrections[0])[-1][1] == "Better. <b>"
    assert page.chat[1].about == texts.YOUR_WORDS and not page.chat[1].record
    assert page.chat[3].record and page.kept_words()[1] == "Better. <b>"
