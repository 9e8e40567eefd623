"""Words on their way to Gradio's Chatbot and back."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.ui import conversation as talk
from adapter.ui.chatbot import Conversation
from adapter.ui.verbatim import MARK, marked, unmarked

TEXTS = st.text(st.sampled_from([*"<>&![]()\\/ax1; \n", MARK]), max_size=40) | st.text(max_size=40)


@given(TEXTS)
def test_what_is_marked_is_there_again(text: str) -> None:
    assert unmarked(marked(text)) == text
    assert marked(text).replace(MARK, "") == text.replace(MARK, "")


@pytest.mark.parametrize(
    "text",
    ["<div>", "</p>", "<!-- x", "<?php", "&lt;", "&#60;", "![x](http://a.example/b.png)", r"\(x\)", r"\[x\]"],
)
def test_nothing_begins_as_a_tag_or_a_picture(text: str) -> None:
    assert text[:2] not in marked(f"a{text}b")


@pytest.mark.parametrize("text", ["1 < 2 & 3 > 2!", "a<1", "**bold** `code`", "Hello! [a](b)", "C:\\x"])
def test_other_words_stay_as_they_are(text: str) -> None:
    assert marked(text) == text


def test_the_chatbot_marks_what_people_say_and_not_the_pages_own_lines() -> None:
    history = [*talk.user_turn("Is <b> bold?"), talk.answer("Yes: <b>. ![x](http://a.example/x.png)")]
    history.append(talk.divider("the frozen base"))
    with gr.Blocks():
        chatbot = Conversation()
        shown: Any = chatbot.postprocess(history)
        asked, answered, divider = (message.content[0].text for message in shown.root)
        assert "<b" not in asked and "<b" not in answered and "![" not in answered
        assert divider == talk.words(history[2]) and divider.startswith("<span")
        back = chatbot.preprocess(shown)
    assert [talk.words(entry) for entry in back] == [talk.words(entry) for entry in history]
    assert Conversation().postprocess(None).root == []
