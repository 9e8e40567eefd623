"""Conversations as data: the Chatbot's messages, the model's messages, and markup on its way to a browser."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from adapter.base.template import Message
from adapter.ui import conversation
from adapter.ui.chat.chatbot import (
    WORD_JOINER,
    escape_all_but_latex,
    escape_markup,
    to_rows,
    unescape_markup,
)
from adapter.ui.conversation import History, answer, note, stats, user_turn

MARKUP = st.text(st.sampled_from([*"<>&![]()\\/ax1; \n`$", WORD_JOINER]), max_size=40) | st.text(max_size=40)


def displayed(history: History) -> list[str]:
    return [block.get("text", "<picture>") for entry in history for block in entry["content"]]


def test_only_words_reach_the_model() -> None:
    history = [
        *user_turn("what is this?", "/tmp/cat.png"),
        answer("a cat"),
        stats("see · strength 1 · 3 tokens"),
        *user_turn("and now?"),
        conversation.offer("reads text only", [("Use see", "see")]),
        *user_turn("never mind"),
        note("…"),
    ]
    assert conversation.to_messages(history) == (
        Message("user", "what is this?"),
        Message("assistant", "a cat"),
        Message("user", "and now?\n\nnever mind"),
    )


def test_messages_by_the_page_are_inert() -> None:
    text = displayed([stats("<img src=x>_a_*b*")])[0]
    assert text.startswith('<span class="aside stats">') and text.endswith("</span>")
    assert not set("<*_") & set(text[len('<span class="aside stats">') : -len("</span>")])


# Markup.


@given(MARKUP)
def test_unescaping_is_the_inverse_of_escaping(text: str) -> None:
    assert unescape_markup(escape_markup(text)) == text
    assert escape_markup(text).replace(WORD_JOINER, "") == text.replace(WORD_JOINER, "")


@given(MARKUP)
def test_an_answer_differs_in_its_latex_only(text: str) -> None:
    escaped = escape_all_but_latex(text)
    assert unescape_markup(escaped) == text
    assert not re.search(r"<[A-Za-z/!?]|&[A-Za-z#]|!\[|`mermaid", escaped)


def test_the_chatbot_escapes_all_but_messages_by_the_page() -> None:
    history = [*user_turn("Is <b> bold?"), answer("Yes: <b>. ![x](http://a.example/x.png)")]
    history.append(conversation.divider("the frozen base"))
    rows = to_rows(history, [])
    question, reply, divider = displayed([row for _, row in rows])
    assert "<b" not in question and "<b" not in reply and "![" not in reply
    assert divider == conversation.text_of(history[2]) and divider.startswith("<span")
    again = to_rows([*history, *user_turn("And now?")], rows)
    assert [new is old for (_, new), (_, old) in zip(again, rows, strict=False)] == [True] * 3
