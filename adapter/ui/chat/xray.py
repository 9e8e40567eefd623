"""X-ray of the answers in the chat: its switch, its colours' key and its script; and the button that opens Inside.

The engine sends what the frozen base gives each token; answer_stream.py writes that into the answer's message, and
xray.js draws it.
"""

from __future__ import annotations

import html

import gradio as gr

from adapter.ui import theme
from adapter.ui.status import UNQUEUED
from adapter.ui.texts import inside as texts

_JS = (theme.STATIC / "xray.js").read_text(encoding="utf-8")
_KEY = (
    f'<div id="xray-key"><span>{html.escape(texts.LESS_LIKELY)}</span><i></i>'
    f"<span>{html.escape(texts.MORE_LIKELY)}</span></div>"
)
LOGS_JS = """history => [(history ?? []).filter(entry => entry.role === 'assistant' && !entry.metadata?.id)
  .map(entry => entry.metadata?.log ?? '')]"""


def xray_bar(chat: gr.Chatbot) -> tuple[gr.Checkbox, gr.HTML]:
    """Lays the switch out in the current Blocks; what it shows follows the conversation.

    Returns the switch, and what begins another branch of the newest answer: its event `branch`.
    """
    with gr.Row(elem_id="xray-bar"):
        switch = gr.Checkbox(False, label=texts.XRAY, container=False, elem_id="xray-switch")
        drawing = gr.HTML(
            [],
            html_template=_KEY,
            js_on_load=_JS,
            both=texts.BOTH,
            instead=texts.INSTEAD,
            own=texts.COULD,
            elem_id="xray",
        )
        gr.Button(texts.LOOK_INSIDE, size="sm", elem_id="inside-open")  # xray.js opens the panel
    chat.change(None, chat, drawing, js=LOGS_JS, **UNQUEUED)
    return switch, drawing
