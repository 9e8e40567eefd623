"""Gradio's Chatbot, for words and pictures and nothing else that a browser may send. Knows Gradio's classes."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr

from adapter.ui.texts import page as texts


def _preprocess(self: gr.Chatbot, payload: Any) -> Any:
    """The history of the browser. Raises gr.Error for one that holds more than words and files.

    Gradio would make any component of its own from a message that asks for one, with whatever arguments stand in
    it: a file's copies a file out of the program's folder to where uploads are served from (6.31).
    """
    for message in payload.root if payload is not None else ():
        if any(block.type not in ("text", "file") for block in message.content):
            raise gr.Error(texts.NOT_A_CONVERSATION, print_exception=False)
    return gr.Chatbot.preprocess(self, payload)


# Past Gradio's own metaclass, whose only other work is to write a .pyi file beside this one. is_template: the
# browser's part is that of the parent.
Conversation: Any = ABCMeta.__new__(
    type(gr.Chatbot),
    "Conversation",
    (gr.Chatbot,),
    {"__module__": __name__, "is_template": True, "preprocess": _preprocess},
)
