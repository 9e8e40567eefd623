"""Corrections: answers as a visitor would have them, kept in the browser alone as records to train on."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from adapter.errors import BadInput
from adapter.ui import conversation
from adapter.ui.conversation import Entry
from adapter.ui.status import NEWEST, UNQUEUED
from adapter.ui.texts import page as texts
from adapter.ui.theme import ellipsize

# A record as `train.formats` reads it, OpenAI's: {"messages": [{"role", "content", perhaps "weight"}]}.
Correction = dict[str, Any]

FILE_NAME = "corrections.jsonl"
MAX_CORRECTIONS = 200
MAX_CHARACTERS = 1_500  # of one record: the trainer cuts at 512 tokens, and a cut would take the answer
# Gradio encrypts with it what the browser keeps. A random one, its default, would lose that with each restart.
BROWSER_SECRET = "llama-adapter"


class CorrectionsPanel(NamedTuple):
    """panel: hidden while there are no corrections; others may add to it. known: the corrections."""

    panel: gr.Column
    known: gr.BrowserState


def corrections_panel(page: gr.Blocks) -> CorrectionsPanel:
    known = gr.BrowserState([], storage_key="llama-adapter:corrections", secret=BROWSER_SECRET)
    with gr.Column(visible=False, elem_id="teach") as panel:
        shown = gr.HTML(elem_id="corrections", padding=False)
        with gr.Row():
            export = gr.Button(texts.EXPORT_CORRECTIONS, size="sm", min_width=60)
            forget = gr.Button(texts.FORGET_CORRECTION, size="sm", min_width=60)
    gr.on([page.load, known.change], _show, known, [panel, shown], **NEWEST)
    lines = "rows.map(row => JSON.stringify(row) + '\\n').join('')"
    export.click(None, known, None, js=f"rows => window.chatPage.save('{FILE_NAME}', {lines})", **UNQUEUED)
    forget.click(None, known, known, js="rows => [rows.slice(0, -1)]", **UNQUEUED)
    return CorrectionsPanel(panel, known)


def checked(known: object) -> list[Correction]:
    """The corrections that a browser holds, without what is none."""
    rows = [row for row in known if isinstance(row, dict)] if isinstance(known, list) else []
    return [
        row for row in rows if isinstance(m := row.get("messages"), list) and all(isinstance(x, dict) for x in m)
    ]


def add_correction(known: object, history: Sequence[Entry], index: int, text: str) -> list[Correction]:
    """The corrections with that of the answer at `index`, in place of one of the same, with the newest exchanges
    before it that a record has room for, not learnt. Raises BadInput where a picture came before.
    """
    before = conversation.to_messages(history[:index])
    if conversation.picture_index(history[:index]) >= 0:
        raise BadInput(texts.NOT_ABOUT_PICTURES)
    size = len(text) + len(before[-1].text)
    start = len(before) - 1
    while start >= 2 and (size := size + sum(len(m.text) for m in before[start - 2 : start])) <= MAX_CHARACTERS:
        start -= 2
    messages = [
        {"role": m.role, "content": m.text, **({"weight": 0} if m.role == "assistant" else {})}
        for m in before[start:]
    ]
    others = [row for row in checked(known) if row["messages"][:-1] != messages]
    return [*others, {"messages": [*messages, {"role": "assistant", "content": text}]}][-MAX_CORRECTIONS:]


def _show(known: object) -> tuple[Any, str]:
    rows, items = checked(known), ""
    for row in reversed(rows):
        pair = [ellipsize(str(message.get("content", "")), 90) for message in row["messages"][-2:]]
        items += f"<li>{' '.join(f'<p>{html.escape(text)}</p>' for text in pair)}</li>"
    listed = f'<ol class="corrections" tabindex="0">{items}</ol>'
    summary = html.escape(texts.corrections(len(rows)))
    return gr.update(visible=bool(rows)), f"<details><summary>{summary}</summary>{listed}</details>"
