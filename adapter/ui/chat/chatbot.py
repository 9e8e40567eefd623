"""A Chatbot that renders Markdown but no HTML, pictures or diagrams. Nothing of it comes back from a browser.

Gradio's Chatbot renders all of these. Text that looks like a tag would vanish, and the address of a picture, which
a Mermaid diagram may hold too, would make the browser request it. An invisible character (WORD_JOINER) after each
character that begins such markup prevents that. It is added to what is sent to the browser, and removed from an
edit; page.js removes it from what is copied. LaTeX is rendered in answers only. An answer that is a JSON object is
sent as a table (json_table.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gradio as gr

from adapter.ui import conversation
from adapter.ui.conversation import History
from adapter.ui.gradio_internals import subclass_component
from adapter.ui.json_table import table_html

WORD_JOINER = "\u2060"  # invisible, and allows no line break
# The beginning of a tag, an entity, a picture, a Mermaid diagram or LaTeX. A character that is already followed by
# a WORD_JOINER gets another one, so that unescaping removes only those that were added.
_UNSAFE = re.compile(
    rf"<(?=[A-Za-z/!?{WORD_JOINER}])|&(?=[A-Za-z#{WORD_JOINER}])|!(?=[\[{WORD_JOINER}])"
    rf"|\\(?=[()\[\]{WORD_JOINER}])|`(?=mermaid|{WORD_JOINER})|\$(?=[${WORD_JOINER}])"
)
_ESCAPED = re.compile(rf"([<&!\\`$]){WORD_JOINER}")
# Not `$`, which is mostly money. Each delimiter has two characters.
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
]
_CLOSING = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}
_OPENING = re.compile(r"`+|~~~+|\$\$|\\[\[(]")  # of code, or of LaTeX


def escape_markup(text: str) -> str:
    return _UNSAFE.sub(rf"\g<0>{WORD_JOINER}", text)


def escape_all_but_latex(text: str) -> str:
    """As `escape_markup`, with the delimiters of LaTeX left as they are outside code."""
    if WORD_JOINER in text:
        return escape_markup(text)
    parts, escaped, start = [], 0, 0
    unclosed: set[str] = set()  # searched for once only: a text may be one long row of opening ones
    while found := _OPENING.search(text, start):
        opening, start = found[0], found.end()
        closing = _CLOSING.get(opening, opening)
        end = -1 if closing in unclosed else text.find(closing, start)
        if end < 0:
            unclosed.add(closing)
            continue
        if opening in _CLOSING:
            parts += [
                escape_markup(text[escaped : found.start()]),
                opening,
                escape_markup(text[start:end]),
                closing,
            ]
            escaped = end + len(closing)
        start = end + len(closing)
    return "".join([*parts, escape_markup(text[escaped:])])


def unescape_markup(text: str) -> str:
    """The text that `escape_markup` was given."""
    return _ESCAPED.sub(r"\1", text)


def _postprocess(self: gr.Chatbot, value: Any) -> Any:
    return gr.Chatbot.postprocess(self, value and _map_texts(conversation.with_buttons(value), _to_browser))


def _to_browser(role: str, text: str) -> str:
    table = table_html(text) if role == "assistant" else None
    if table is not None:
        return table
    return escape_all_but_latex(text) if role == "assistant" else escape_markup(text)


def _map_texts(history: History, change: Callable[[str, str], str]) -> History:
    """The history with `change` applied to the role and each of its texts, except the page's own messages, which
    are HTML already.
    """
    return [
        entry
        if conversation.kind(entry)
        else {
            **entry,
            "content": [
                {**block, "text": change(entry["role"], block["text"])} if block["type"] == "text" else block
                for block in entry["content"]
            ],
        }
        for entry in history
    ]


VerbatimChatbot: Any = subclass_component(
    "VerbatimChatbot",
    gr.Chatbot,
    {"__module__": __name__, "postprocess": _postprocess},
)
