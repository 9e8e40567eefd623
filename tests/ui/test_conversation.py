"""Conversations as data: the Chatbot's messages, the model's messages, and markup on its way to a browser."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from adapter.base.template import Message
from adapter.ui import conversation
from adapter.ui.chat import conversation_json
from adapter.ui.chat.chatbot import (
    WORD_JOINER,
    View,
    entry_at,
    escape_all_but_latex,
    escape_markup,
    to_view,
    unescape_markup,
)
from adapter.ui.conversation import AnswerRecord, Entry, user_turn
from tests.ui.chat.test_conversation_json import SETTINGS, to_file

MARKUP = st.text(st.sampled_from([*"<>&![]()\\/ax1; \n`$", WORD_JOINER]), max_size=40) | st.text(max_size=40)


def displayed(view: View) -> list[str]:
    rows = [row for shown in view for row in shown.rows]
    return [block.get("text", "<picture>") for row in rows for block in row["content"]]


def test_only_words_reach_the_model():
    history = [
        *user_turn("what is this?", "/tmp/cat.png"),
        Entry("assistant", "a cat", about="see · strength 1 · 3 tokens"),
        *user_turn("and now?"),
        Entry("page", "reads text only", options=(("Use see", "see"),)),
        *user_turn("never mind"),
        Entry("page", "…"),
    ]
    assert conversation.to_messages(history) == (
        Message("user", "what is this?"),
        Message("assistant", "a cat"),
        Message("user", "and now?\n\nnever mind"),
    )


def test_messages_by_the_page_are_inert():
    text = displayed(to_view([Entry("page", "<img src=x>_a_*b*")], []))[0]
    assert text.startswith('<span class="aside note">') and text.endswith("</span>")
    assert not set("<*_") & set(text[len('<span class="aside note">') : -len("</span>")])


def test_a_film_of_a_picture_needs_the_picture():
    answer = Entry("assistant", "a cat", record=AnswerRecord(SETTINGS, (1,), picture=True))
    shown = [conversation.buttons([*user_turn("what?", picture), answer]) for picture in ("/tmp/cat.png", None)]
    assert [value for buttons in shown for _, value in buttons] == [conversation.FILM]


def test_paging_loses_no_answer_however_long_and_passes_over_what_is_none():
    """The others are as long as a record has room for; that of the newest, which is shown, is not in it."""
    record = AnswerRecord(SETTINGS, (1, 2))
    for number in range(7):
        others = conversation.variants([Entry("assistant", f"{number}" * 25_000, record=record)])
        record = replace(record, before=others).fitted()
    history = [Entry("assistant", "x" * 25_000, record=record)]
    answers = {variant.text for variant in conversation.variants(history)}
    for step in (-1, 1, 1, 1):
        history = conversation_json.read(to_file(conversation.with_variant(history, step))[0])[0]
        assert {variant.text for variant in conversation.variants(history)} == answers
    assert len(answers) == 4
    broken = [Entry("assistant", "now", record=replace(record, before=(conversation.Variant("old", "", "[1]"),)))]
    assert conversation.with_variant(broken, -1) == broken


@given(MARKUP)
def test_unescaping_is_the_inverse_of_escaping(text):
    assert unescape_markup(escape_markup(text)) == text
    assert escape_markup(text).replace(WORD_JOINER, "") == text.replace(WORD_JOINER, "")


@given(MARKUP)
def test_an_answer_differs_in_its_latex_only(text):
    escaped = escape_all_but_latex(text)
    assert unescape_markup(escaped) == text
    assert not re.search(r"<[A-Za-z/!?]|&[A-Za-z#]|!\[|`mermaid", escaped)


def test_the_chatbot_escapes_all_but_messages_by_the_page():
    answer = Entry("assistant", "Yes: <b>. ![x](http://a.example/x.png)", about="<b>")
    history = [*user_turn("Is <b> bold?"), replace(answer, record=AnswerRecord(SETTINGS))]
    history += [*user_turn("And?"), Entry("assistant", "No.", record=AnswerRecord(SETTINGS.replace(adapter="")))]
    view = to_view(history, [])
    question, reply, about, divider, *_ = displayed(view)
    assert "<b" not in question and "<b" not in reply and "![" not in reply
    assert "&#60;b" in about and divider.startswith('<span class="aside divider">frozen base')
    rows = (-1, 0, 1, 2, 3, 4, 5, 6, "0", None)
    assert [entry_at(view, row) for row in rows] == [-1, 0, 1, -1, -1, 2, 3, -1, -1, -1]
    again = to_view([*history, *user_turn("And now?")], view)
    assert [new is old for new, old in zip(again, view, strict=False)] == [True] * 4
