"""X-ray of the answers in the chat: its switch, its colours' key and its script; and the button that opens Inside.

The engine sends what the frozen base gives each token; answer_stream.py writes that into the answer's message, and
xray.js draws it.
"""

from __future__ import annotations

import gradio as gr

from adapter.ui import theme
from adapter.ui.compare.filmstrip import XRAY_KEY
from adapter.ui.status import UNQUEUED
from adapter.ui.texts import inside as texts

_JS = (theme.STATIC / "xray.js").read_text(encoding="utf-8")
LOGS_JS = """history => [(history ?? []).filter(entry => entry.role === 'assistant' && !entry.metadata?.id)
  .map(entry => entry.metadata?.log ?? '')]"""


# The line of a conversation that says what is read of others' answers.
_READ_ALL_JS = (
    "document.addEventListener('click', ({target}) => target.closest?.('#chat .divider') && trigger('all'))"
)


def about_line(page: gr.Blocks, chat: gr.Chatbot) -> tuple[gr.Checkbox, gr.HTML, gr.HTML]:
    """Lays out the line above the message: the adapter's description, which composer.js writes, and the X-ray.

    It is on until somebody turns it off, which xray.js notes in the browser. Returns its switch, what begins
    another branch of the newest answer (its event `branch`), and what lets all of others' answers be read (`all`).
    """
    with gr.Row(elem_id="about-line"):
        line = gr.HTML('<p id="description"></p>', padding=False, js_on_load=_READ_ALL_JS, elem_id="describes")
        switch = gr.Checkbox(True, label=texts.XRAY, container=False, elem_id="xray-switch")
        drawing = gr.HTML(
            [],
            html_template=XRAY_KEY,
            js_on_load=_JS,
            both=texts.BOTH,
            instead=texts.INSTEAD,
            own=texts.COULD,
            padding=False,
            elem_id="xray",
        )
        gr.Button(texts.LOOK_INSIDE, size="sm", elem_id="inside-open")  # xray.js opens the panel
    chat.change(None, chat, drawing, js=LOGS_JS, **UNQUEUED)
    page.load(None, None, switch, js="() => localStorage.getItem('llama-adapter:xray') !== 'off'", **UNQUEUED)
    return switch, drawing, line
