"""The Train tab, and training on the Chat tab's corrections: components, and which event calls which handler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from adapter.base.embedded import BASE
from adapter.method.config import MAX_NAME_LENGTH
from adapter.server.generation import AdapterCatalog, EngineProvider
from adapter.ui import theme
from adapter.ui.chat.corrections import BROWSER_SECRET
from adapter.ui.chat.tab import TabParts
from adapter.ui.status import PRIVATE, QUEUED, UNQUEUED
from adapter.ui.texts import page as page_texts
from train.ui import texts
from train.ui.data_upload import UPLOADS
from train.ui.events import LEAST, SLOW_TICK, TICK, TrainEvents
from train.ui.plan import (
    MAX_DESCRIPTION_LENGTH,
    MAX_LR,
    MAX_QUESTION_LENGTH,
    MAX_STEPS,
    MIN_LR,
    MIN_STEPS,
)
from train.ui.preview import notice_html
from train.ui.run_view import can_sign_in, connect, run_view
from train.ui.runs import TrainingRuns

STYLE_SHEET = Path(__file__).parent / "static" / "train.css"
# A preview takes seconds of a core: two at a time over all visitors.
PREVIEW = {"concurrency_id": "train-data", "concurrency_limit": 2}
MAX_TYPED = 100_000  # characters of rows
SETTINGS = ("name", "description", "question", "steps", "rate")  # in the order of RunPlan.with_settings
Parts = dict[str, Any]  # components by name


def train_tab(
    page: gr.Blocks,
    tabs: gr.Tabs,
    provider: EngineProvider,
    runs: TrainingRuns,
    store: AdapterCatalog,
    chat: TabParts,
    base: str = BASE,
    public: bool = False,
) -> None:
    """Lays the tab out inside the current Blocks and connects it.

    chat: the other tab, to which a button below a run switches. public: as TrainEvents has it.
    """
    handlers = TrainEvents(runs, store, provider, base, public, can_publish=not public or can_sign_in())
    assert chat.corrections is not None
    with chat.corrections.around:
        owner = gr.BrowserState("", storage_key="llama-adapter:owner", secret=BROWSER_SECRET)
    timer, plan = gr.Timer(SLOW_TICK, active=False), gr.State(None)
    with gr.Column(elem_id="train"):
        gr.Markdown(texts.HINT, elem_classes="hint")
        with gr.Row(equal_height=False, elem_id="steps"):
            with _step(1, texts.DATA):
                data = _data(handlers)
            with _step(2, texts.SETTINGS):
                settings = _settings()
            with _step(3, texts.RUN):
                start = gr.Button(texts.START, variant="primary", interactive=False, elem_id="train-start")
                which = gr.Dropdown([], label=texts.WHICH, visible=False, filterable=False, elem_id="train-which")
                view = run_view("train", notice_html(texts.NOTHING_YET), handlers, which, owner)
    _connect_data(handlers, data, settings, plan, start)
    inputs, outputs = [which, owner, plan], [which, *view, start, timer]
    values = [settings[key] for key in SETTINGS]
    started = start.click(
        handlers.start, [owner, plan, *values], owner, show_progress_on=view.html, **PREVIEW, **PRIVATE
    )
    started.then(handlers.newest, inputs[1:], outputs, **UNQUEUED)
    gr.on([timer.tick, which.input], handlers.tick, inputs, outputs, **UNQUEUED)

    def select_tab(
        event: gr.SelectData, name: str | None, owner: str, plan: Any, request: gr.Request
    ) -> tuple[Any, ...]:
        """Stops the timer while another tab is open."""
        if event.value != page_texts.TRAIN:
            return *[gr.skip()] * (len(outputs) - 1), gr.Timer(active=False)
        return handlers.panel(name, owner, plan, request)

    tabs.select(select_tab, inputs, outputs, **UNQUEUED)
    connect(view, [which, owner], (handlers.panel, inputs, outputs), tabs, chat)
    _teach(page, tabs, handlers, chat, owner)


def _step(number: int, title: str) -> gr.Column:
    column = gr.Column(min_width=320, elem_classes="step")
    with column:
        gr.HTML(f'<h2 class="step-title"><b>{number}</b>{title}</h2>')
    return column


def _data(handlers: TrainEvents) -> Parts:
    choices = [(f"{s.title}\n{s.description}", name) for name, s in handlers.samples.items()]
    parts: Parts = {
        "sample": gr.Radio(
            choices, label=texts.SAMPLES, elem_id="samples", elem_classes="cards", visible=bool(choices)
        ),
        "upload": gr.File(label=texts.UPLOAD, file_types=UPLOADS, height=132, elem_id="train-upload"),
        "hint": gr.Markdown(texts.UPLOAD_HINT, elem_classes="hint"),
    }
    with gr.Accordion(texts.TYPE_ROWS, open=False, elem_id="train-rows"):
        parts["rows"] = gr.Textbox(
            label=texts.ROWS, placeholder=texts.ROWS_HINT, lines=8, max_lines=8, max_length=MAX_TYPED
        )
        parts["use_rows"] = gr.Button(texts.USE_ROWS, size="sm")
    parts["preview"] = gr.HTML(notice_html(texts.NO_DATA), elem_id="train-preview")
    return parts


def _settings() -> Parts:
    parts: Parts = {
        key: gr.Textbox(label=label, placeholder=hint, max_length=longest, max_lines=2)
        for key, label, hint, longest in (
            ("name", texts.NAME, texts.NAME_HINT, MAX_NAME_LENGTH),
            ("description", texts.DESCRIPTION, texts.DESCRIPTION_HINT, MAX_DESCRIPTION_LENGTH),
            ("question", texts.WATCHED, texts.WATCHED_HINT, MAX_QUESTION_LENGTH),
        )
    }
    parts["steps"] = gr.Slider(MIN_STEPS, MAX_STEPS, 40, step=10, label=texts.STEPS, info=texts.STEPS_INFO)
    parts["rate"] = gr.Slider(MIN_LR, MAX_LR, 0.004, step=0.001, label=texts.RATE, info=texts.RATE_INFO)
    parts["command"] = theme.command_box(texts.NO_COMMAND, texts.COMMAND, "train-command")
    return parts


def _connect_data(handlers: TrainEvents, data: Parts, settings: Parts, plan: gr.State, start: gr.Button) -> None:
    sample, upload, preview = (data[key] for key in ("sample", "upload", "preview"))
    values = [settings[key] for key in SETTINGS]
    described = [settings["command"], start]
    outputs, before = [sample, upload, preview, plan, *values, *described], [plan, *values[:3]]
    event = {"show_progress": "minimal", "show_progress_on": preview, **PREVIEW, **PRIVATE}
    sample.input(handlers.choose_sample, [sample, *before], outputs, **event)
    gr.on([upload.upload, upload.clear], handlers.choose_upload, [upload, *before], outputs, **event)
    data["use_rows"].click(handlers.use_rows, [data["rows"], *before], outputs, **event)
    changes = [component.change for component in values]
    last = {"trigger_mode": "always_last", **UNQUEUED}
    gr.on(changes, handlers.describe, [plan, *values], described, **last)


def _teach(page: gr.Blocks, tabs: gr.Tabs, handlers: TrainEvents, chat: TabParts, owner: Any) -> None:
    """Adds training on the corrections to their panel."""
    corrections = chat.corrections
    assert corrections is not None
    with corrections.around:
        run, timer = gr.State(""), gr.Timer(2 * TICK, active=False)
    with corrections.panel:
        with gr.Accordion(texts.LESSON, open=False, elem_id="lesson-settings"):
            name = gr.Textbox(label=texts.NAME, placeholder=texts.TAUGHT_NAME, max_lines=1)
            question = gr.Textbox(texts.WATCHED_QUESTION, label=texts.WATCHED, max_length=200, max_lines=2)
        start = gr.Button(texts.train_on_these(LEAST), interactive=False, size="sm", elem_id="teach-start")
        view = run_view("teach", "", handlers, run, owner)
    inputs, outputs = [owner, corrections.known], [run, *view, start, timer]
    gr.on([page.load, corrections.known.change, timer.tick], handlers.lesson, inputs, outputs, **UNQUEUED)
    started = start.click(handlers.teach, [*inputs, name, question], owner, **QUEUED)
    started.then(handlers.lesson, inputs, outputs, **UNQUEUED)
    connect(view, [run, owner], (handlers.lesson, inputs, outputs), tabs, chat)
