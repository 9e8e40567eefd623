"""A Chatbot that renders Markdown but no HTML, pictures or diagrams. Nothing of it comes back from a browser.

Gradio's Chatbot renders all of these. Text that looks like a tag would vanish, and the address of a picture, which
a Mermaid diagram may hold too, would make the browser request it. An invisible character (WORD_JOINER) after each
character that begins such markup prevents that. It is added to what is sent to the browser, and removed from an
edit; page.js removes it from what is copied. LaTeX is rendered in answers only. An answer that is a JSON object is
sent as a table (json_table.py).
"""

from __future__ import annotations

import re
from typing import Any

import gradio as gr

from adapter.ui import conversation
from adapter.ui.conversation import Entry, History
from adapter.ui.gradio_internals import Rows, subclass_component
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


Row = dict[str, Any]  # a message as the browser gets it
RowsOfEntries = list[tuple[Entry, Row]]


def to_rows(history: History, known: RowsOfEntries) -> RowsOfEntries:
    """The messages and how they are sent. known: those of a former history, of which the same ones stay."""
    history = conversation.with_buttons(history)
    pairs = enumerate(zip(history, known, strict=False))
    same = next((i for i, (entry, (old, _)) in pairs if entry is not old), min(len(history), len(known)))
    return [*known[:same], *((entry, _to_row(entry)) for entry in history[same:])]


def _to_row(entry: Entry) -> Row:
    (block,) = entry["content"]
    if block["type"] == "file":  # its address is below the page's own, whatever that is
        block = {**block, "file": {**block["file"], "url": f"gradio_api/file={block['file']['path']}"}}
    elif not conversation.kind(entry):  # the page's own messages are HTML already
        block = {**block, "text": _to_browser(entry["role"], block["text"])}
    return {**entry, "content": [block]}


def _to_browser(role: str, text: str) -> str:
    if role != "assistant":
        return escape_markup(text)
    return table_html(text) or escape_all_but_latex(text)


def _postprocess(self: gr.Chatbot, value: RowsOfEntries | None) -> Any:
    return gr.Chatbot.postprocess(self, None) if value is None else Rows([row for _, row in value])


VerbatimChatbot: Any = subclass_component(
    "VerbatimChatbot",
    gr.Chatbot,
    {"__module__": __name__, "postprocess": _postprocess},
)
