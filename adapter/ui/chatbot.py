"""Gradio's Chatbot, for words that are shown as written, and for nothing that a browser may send but words
and pictures. Knows Gradio's classes.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from typing import Any

import gradio as gr

from adapter.ui import conversation as talk
from adapter.ui.texts import page as texts
from adapter.ui.verbatim import marked, unmarked


def _preprocess(self: gr.Chatbot, payload: Any) -> Any:
    """The history of the browser. Raises gr.Error for one that holds more than words and files.

    Gradio would make any component of its own from a message that asks for one, with whatever arguments stand in
    it: a file's copies a file out of the program's folder to where uploads are served from (6.31).
    """
    for message in payload.root if payload is not None else ():
        if any(block.type not in ("text", "file") for block in message.content):
            raise gr.Error(texts.NOT_A_CONVERSATION, print_exception=False)
    return _with_texts(gr.Chatbot.preprocess(self, payload), unmarked)


def _postprocess(self: gr.Chatbot, value: Any) -> Any:
    """The history for the browser: the page's own lines are HTML, what somebody said is shown as it is."""
    return gr.Chatbot.postprocess(self, value and _with_texts(value, marked))


def _with_texts(history: talk.History, change: Callable[[str], str]) -> talk.History:
    """The history with other texts, but for the page's own."""
    return [
        entry
        if talk.kind(entry)
        else {
            **entry,
            "content": [
                {**block, "text": change(block["text"])} if block["type"] == "text" else block
                for block in entry["content"]
            ],
        }
        for entry in history
    ]


# Past Gradio's own metaclass, whose only other work is to write a .pyi file beside this one. is_template: the
# browser's part is that of the parent.
Conversation: Any = ABCMeta.__new__(
    type(gr.Chatbot),
    "Conversation",
    (gr.Chatbot,),
    {"__module__": __name__, "is_template": True, "preprocess": _preprocess, "postprocess": _postprocess},
)
