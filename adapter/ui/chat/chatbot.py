"""A Chatbot that renders Markdown but no HTML, pictures or diagrams. It is an output only; edits come as events.
Gradio's Chatbot renders all of these: text that looks like a tag would vanish, and a picture's address would make
the browser request it. An invisible character (WORD_JOINER) after each character that begins such markup prevents
that. It is removed from an edit, and by page.js from what is copied. LaTeX is rendered in answers only.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from adapter.ui import conversation
from adapter.ui.conversation import Entry, History
from adapter.ui.gradio_internals import Unconverted, subclass_component
from adapter.ui.json_table import escape, table_html

WORD_JOINER = "\u2060"  # invisible, and allows no line break
# The beginning of a tag, an entity, a picture, a Mermaid diagram or LaTeX. A character that is already followed by
# a WORD_JOINER gets another one, so that unescaping removes only those that were added.
_UNSAFE = re.compile(
    rf"<(?=[A-Za-z/!?{WORD_JOINER}])|&(?=[A-Za-z#{WORD_JOINER}])|!(?=[\[{WORD_JOINER}])"
    rf"|\\(?=[()\[\]{WORD_JOINER}])|`(?=mermaid|{WORD_JOINER})|\$(?=[${WORD_JOINER}])"
)
_ESCAPED = re.compile(rf"([<&!\\`$]){WORD_JOINER}")
# Not `$`, which is mostly money. Each delimiter has two characters.
_CLOSING = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}
LATEX = [{"left": left, "right": right, "display": left != r"\("} for left, right in _CLOSING.items()]
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
            before, formula = text[escaped : found.start()], text[start:end]
            parts += [escape_markup(before), opening, escape_markup(formula), closing]
            escaped = end + len(closing)
        start = end + len(closing)
    return "".join([*parts, escape_markup(text[escaped:])])


def unescape_markup(text: str) -> str:
    """The text that `escape_markup` was given."""
    return _ESCAPED.sub(r"\1", text)


Row = dict[str, Any]  # a message as the browser gets it


class Shown(NamedTuple):
    """An entry as it is shown: the line above it, the buttons below it, and the rows of all that."""

    entry: Entry
    above: str
    buttons: tuple[tuple[str, str], ...]
    rows: list[Row]


View = list[Shown]


def to_view(history: History, known: View) -> View:
    """The messages as they are sent. known: those of a former history, of which the same ones stay."""
    lines, last = conversation.dividers(history), len(history) - 1
    view = []
    for index, entry in enumerate(history):
        above, below = lines.get(index, ""), conversation.buttons(history) if index == last else ()
        old = known[index] if index < len(known) else None
        if old is None or old.entry is not entry or (old.above, old.buttons) != (above, below):
            old = Shown(entry, above, below, _to_rows(entry, above, below))
        view.append(old)
    return view


def entry_at(view: View, row: object) -> int:
    """The index of the message whose text is in this row; -1 for any other."""
    if isinstance(row, int):
        for index, shown in enumerate(view):
            if row == bool(shown.above):
                return index
            row -= len(shown.rows)
    return -1


def _to_rows(entry: Entry, above: str, below: Sequence[tuple[str, str]]) -> list[Row]:
    rows = [_row("assistant", _page_html(above, "divider"))] if above else []
    if (path := entry.picture) is not None:
        # Its address is below the page's own, whatever that is.
        name, url = Path(path).name, f"gradio_api/file={path}"
        file = {"path": path, "url": url, "orig_name": name, "mime_type": "image/jpeg"}
        rows.append(_row("user", ""))
        meta = {"_type": "gradio.FileData"}
        rows[-1]["content"] = [{"type": "file", "file": {**file, "meta": meta}, "alt_text": name}]
    elif entry.role == "user":
        rows.append(_row("user", escape_markup(entry.text)))
    elif entry.role == "assistant":
        rows.append(_row("assistant", table_html(entry.text) or escape_all_but_latex(entry.text)))
    else:
        kind = "offer" if entry.options else "note waiting" if entry.pending else "note"
        rows.append(_row("assistant", _page_html(entry.text, kind)))
    if entry.about:
        rows.append(_row("assistant", _page_html(entry.about, "stats")))
    rows[-1]["options"] = [{"label": label, "value": value} for label, value in below]
    return rows


def _row(role: str, text: str) -> Row:
    return {"role": role, "content": [{"type": "text", "text": text}], "metadata": {}, "options": []}


def _page_html(text: str, css_class: str) -> str:
    return f'<span class="aside {css_class}">{escape(text)}</span>'


def _postprocess(self: gr.Chatbot, value: View | None) -> Any:
    if value is None:
        return gr.Chatbot.postprocess(self, None)
    return Unconverted([row for shown in value for row in shown.rows])


VerbatimChatbot: Any = subclass_component("VerbatimChatbot", gr.Chatbot, {"postprocess": _postprocess})
