"""Conversations as data: the Chatbot's messages, the model's messages, and markup on its way to a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.base.template import Message
from adapter.serve.settings import Settings
from adapter.ui import conversation
from adapter.ui.chat.chatbot import (
    WORD_JOINER,
    VerbatimChatbot,
    escape_all_but_latex,
    escape_markup,
    unescape_markup,
)
from adapter.ui.conversation import History, UserTurn, answer, note, stats, user_turn

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


def test_what_stands_above_a_forgotten_line_reaches_no_model() -> None:
    before = [*user_turn("a", "/tmp/1.png"), answer("x"), stats("s"), conversation.divider("pirate")]
    history = [*before, *user_turn("b"), answer("y"), stats("s")]
    alone = conversation.alone(history)
    assert conversation.to_messages(alone) == (Message("user", "b"),)
    assert conversation.latest_picture(alone) is None
    later = [*alone, answer("z"), *user_turn("c")]
    assert [m.text for m in conversation.to_messages(later)] == ["b", "z", "c"]
    assert conversation.alone([*alone, answer("z")]) == alone, "asked twice, there is one line"
    assert conversation.last_turn(alone).start == len(before) - 1, "undo takes the line along"  # type: ignore


def test_an_answer_alone_is_offered_where_one_went_wrong_behind_another_adapter() -> None:
    first = [*user_turn("a"), answer("x"), stats("s")]
    circles = [answer("y"), stats("pirate · it began to repeat itself")]
    switched = [*first, conversation.divider("pirate"), *user_turn("b")]
    alone = [*first, conversation.forgotten(), conversation.divider("pirate"), *user_turn("b")]
    for history, offered in (
        ([*user_turn("a"), *circles], False),
        ([*first, *user_turn("b"), *circles], False),  # nobody else has answered
        ([*switched, answer("y"), stats("s")], False),  # nothing is wrong
        ([*switched, *circles], True),
        ([*switched, note("The answer was empty."), stats("s")], True),
        ([*switched, answer("y"), stats("s"), *user_turn("c"), *circles], True),
        ([*switched, note("no answer")], False),
        ([*alone, *circles], False),
        ([*alone, *circles, *user_turn("c"), *circles], False),
    ):
        assert bool(conversation.with_alone_option(history)[-1]["options"]) is offered


def test_the_newest_picture_is_in_effect() -> None:
    history = [*user_turn("a", "/tmp/1.png"), answer("x"), *user_turn("b", "/tmp/2.png")]
    assert conversation.latest_picture(history) == "/tmp/2.png"
    assert conversation.latest_picture([*history, answer("y"), *user_turn("c")]) == "/tmp/2.png"
    assert conversation.latest_picture(user_turn("c")) is None


def test_the_last_turn_holds_its_own_picture_only() -> None:
    with_picture = [*user_turn("a"), answer("x"), *user_turn("b", "/tmp/2.png")]
    assert conversation.last_turn(with_picture) == UserTurn(2, "b", "/tmp/2.png")
    later = [*with_picture, answer("y"), stats("s"), *user_turn("c")]
    assert conversation.last_turn(later) == UserTurn(6, "c", None)
    assert conversation.last_turn([]) is None
    assert conversation.without_last_answer(later[:6]) == with_picture


@pytest.mark.parametrize(
    ("settings", "arguments", "line"),
    [
        ({"adapter": "pirate"}, (12, 31.44), "pirate · strength 1 · 12 tokens · 31 tokens/s"),
        (
            {"adapter": "see", "strength": 0.35},
            (1, None, ["no image"]),
            "see · strength 0.35 · 1 token · no image",
        ),
        (
            {"adapter": "a", "mix": "b", "mix_strength": 0.5},
            (2, None),
            "a · strength 1 · with b at 0.5 · 2 tokens",
        ),
        ({}, (2, 8.26), "frozen base · 2 tokens · 8.3 tokens/s"),
    ],
)
def test_statistics_line(settings: dict[str, Any], arguments: tuple[Any, ...], line: str) -> None:
    assert conversation.stats_line(Settings(**settings), *arguments) == line


def test_messages_by_the_page_are_inert() -> None:
    text = displayed([stats("<img src=x>_a_*b*")])[0]
    assert text.startswith('<span class="aside stats">') and text.endswith("</span>")
    assert not set("<*_") & set(text[len('<span class="aside stats">') : -len("</span>")])


def test_stop_keeps_and_marks_what_was_written() -> None:
    line = conversation.stats_line(Settings(adapter="a_b"), 4, 20.0)
    stopped = conversation.mark_stopped([*user_turn("hi"), answer("Hello"), stats(line)])
    assert displayed(stopped)[:2] == ["hi", "Hello"] and "stopped" in displayed(stopped)[2]
    at_once = conversation.mark_stopped([*user_turn("hi"), note("…")])
    assert "first word" in displayed(at_once)[1]
    assert conversation.to_messages(at_once) == (Message("user", "hi"),)
    assert conversation.mark_stopped([]) == []


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


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"a \(x\) b \[y\] $$z$$", [r"\(", r"\)", r"\[", r"\]", "$$", "$$"]),
        (r"`\(a\)` \(b\)", [r"\(", r"\)"]),
        ("```sh\necho $$ \\(a\\)\n``` $5 and $10", []),
        (r"\(open", []),
    ],
)
def test_what_is_latex_in_an_answer(text: str, latex: list[str]) -> None:
    assert re.findall(r"\\[()\[\]]|\$\$", escape_all_but_latex(text)) == latex


@pytest.mark.parametrize(
    "text",
    ["<div>", "</p>", "<!-- x", "<?php", "&lt;", "&#60;", "![x](y)", r"\(x\)", r"\[x\]", "$$x$$", "`mermaid"],
)
def test_nothing_begins_as_a_tag_or_a_picture(text: str) -> None:
    assert text[:2] not in escape_markup(f"a{text}b")


@pytest.mark.parametrize("text", ["1 < 2 & 3 > 2!", "a<1", "**bold** `code`", "Hello! [a](b)", "C:\\x"])
def test_other_text_is_not_changed(text: str) -> None:
    assert escape_markup(text) == text


def test_the_chatbot_escapes_all_but_messages_by_the_page() -> None:
    history = [*user_turn("Is <b> bold?"), answer("Yes: <b>. ![x](http://a.example/x.png)")]
    history.append(conversation.divider("the frozen base"))
    with gr.Blocks():
        chatbot = VerbatimChatbot()
        sent = chatbot.postprocess(history)
        question, reply, divider = (message.content[0].text for message in sent.root)
        assert "<b" not in question and "<b" not in reply and "![" not in reply
        assert divider == conversation.text_of(history[2]) and divider.startswith("<span")
    assert VerbatimChatbot().postprocess(None).root == []


def test_a_record_has_room_for_its_variants_only() -> None:
    ids = tuple(range(10_000, 12_000))
    record = conversation.AnswerRecord(Settings(seed=1), ids, False)
    others = tuple(conversation.Variant(f"answer {i}", "poet", record.to_json()) for i in range(20))
    kept = conversation.parse_record(replace(record, before=others).to_json())
    assert kept is not None and kept.token_ids == ids
    assert 1 <= len(kept.before) < 8 and kept.before == others[-len(kept.before) :]
    for forged in (7, [7], [["a", "b", 3]], [["a", "b", "{}"]]):
        text = json.dumps({**json.loads(record.to_json()), "before": forged})
        assert conversation.parse_record(text) == record
