"""The Train tab: its components, and which event calls which handler."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from adapter.base.embedded import BASE
from adapter.method.config import MAX_NAME_LENGTH
from adapter.server.generation import AdapterCatalog, EngineProvider
from adapter.ui import theme
from adapter.ui.chat.corrections import BROWSER_SECRET
from adapter.ui.chat.tab import TabParts
from adapter.ui.compare.tab import SIDE_BY_SIDE
from adapter.ui.status import PRIVATE, QUEUED, UNQUEUED
from adapter.ui.texts import page as page_texts
from train.ui import texts
from train.ui.data_upload import UPLOADS
from train.ui.events import SLOW_TICK, TrainEvents
from train.ui.plan import (
    MAX_DESCRIPTION_LENGTH,
    MAX_LR,
    MAX_STEPS,
    MIN_LR,
    MIN_STEPS,
)
from train.ui.preview import nothing_html
from train.ui.runs import TrainingRuns
from train.ui.teach import teach_panel

STYLE_SHEET = Path(__file__).parent / "static" / "train.css"
# A preview takes seconds of a core: two at a time over all visitors.
PREVIEW = {"concurrency_id": "train-data", "concurrency_limit": 2}
TYPED_ROWS = 8  # that the table begins with; more are added in it
SETTINGS = ("name", "description", "steps", "rate")  # in the order of RunPlan.with_settings
Parts = dict[str, Any]  # components by name


def train_tab(
    page: gr.Blocks,
    tabs: gr.Tabs,
    provider: EngineProvider,
    runs: TrainingRuns,
    store: AdapterCatalog,
    chat: TabParts,
    compare: TabParts,
    base: str = BASE,
    public: bool = False,
) -> None:
    """Lays the tab out inside the current Blocks and connects it.

    chat, compare: the other tabs, to which buttons below a run switch. public: as TrainEvents has it.
    """
    handlers = TrainEvents(runs, store, base, public)
    with gr.Column(elem_id="train"):
        gr.Markdown(texts.HINT, elem_classes="hint")
        parts: Parts = {}
        with gr.Row(equal_height=False, elem_id="steps"):
            for number, (title, lay_out) in enumerate(
                ((texts.DATA, _data), (texts.SETTINGS, _settings), (texts.RUN, _run)), 1
            ):
                with gr.Column(min_width=320, elem_classes="step"):
                    gr.HTML(f'<h2 class="step-title"><b>{number}</b>{title}</h2>')
                    parts |= lay_out(handlers)
    assert chat.corrections is not None
    with chat.corrections.around:
        owner = gr.BrowserState("", storage_key="llama-adapter:owner", secret=BROWSER_SECRET)
    timer, plan = gr.Timer(SLOW_TICK, active=False), gr.State(None)
    _connect_data(handlers, parts, plan)
    _connect_run(handlers, parts, plan, owner, timer, tabs)
    _connect_chat(handlers, parts["chat"], parts["which"], timer, tabs, chat)
    message, panes = compare.message_box, [picker.component for picker in compare.pickers[:2]]
    compared = {"queue": True, "show_progress": "hidden", **PRIVATE}
    parts["compare"].click(
        handlers.compare_with, [parts["which"], message], [tabs, *panes, message, timer], **compared
    )
    parts["compare"].click(None, None, compare.view, js=f"() => '{SIDE_BY_SIDE}'", **PRIVATE)
    taught, chat_with_taught = teach_panel(page, handlers, provider, chat.corrections, owner)
    _connect_chat(handlers, chat_with_taught, taught, timer, tabs, chat)


def _data(handlers: TrainEvents) -> Parts:
    choices = [(f"{s.title}\n{s.description}", s.name) for s in handlers.samples.values()]
    return {
        "sample": gr.Radio(
            choices, label=texts.SAMPLES, elem_id="samples", elem_classes="cards", visible=bool(choices)
        ),
        "upload": gr.File(label=texts.UPLOAD, file_types=UPLOADS, height=132, elem_id="train-upload"),
        "hint": gr.Markdown(texts.UPLOAD_HINT, elem_classes="hint"),
        **_typed_rows(),
        "preview": gr.HTML(nothing_html(texts.NO_DATA), elem_id="train-preview"),
    }


def _typed_rows() -> Parts:
    table = io.StringIO()
    csv.writer(table).writerows(texts.TEMPLATE_ROWS)
    address = f"data:text/csv;charset=utf-8,{quote(table.getvalue())}"
    link = f'<a class="template" download="{texts.TEMPLATE_NAME}" href="{address}">{texts.TEMPLATE}</a>'
    gr.HTML(link, padding=False)
    with gr.Accordion(texts.TYPE_ROWS, open=False, elem_id="train-rows"):
        rows = gr.Dataframe(
            [["", ""]] * TYPED_ROWS,
            headers=[texts.QUESTION, texts.ANSWER_COLUMN],
            type="array",
            interactive=True,
            wrap=True,
            show_row_numbers=True,
            buttons=[],
            show_label=False,
            label=texts.TYPE_ROWS,
        )
        return {"rows": rows, "use_rows": gr.Button(texts.USE_ROWS, size="sm")}


def _settings(_: TrainEvents) -> Parts:
    return {
        "name": gr.Textbox(label=texts.NAME, placeholder=texts.NAME_HINT, max_length=MAX_NAME_LENGTH, max_lines=1),
        "description": gr.Textbox(
            label=texts.DESCRIPTION,
            placeholder=texts.DESCRIPTION_HINT,
            max_length=MAX_DESCRIPTION_LENGTH,
            max_lines=1,
        ),
        "steps": gr.Slider(MIN_STEPS, MAX_STEPS, 40, step=10, label=texts.STEPS, info=texts.STEPS_INFO),
        "rate": gr.Slider(MIN_LR, MAX_LR, 0.004, step=0.001, label=texts.RATE, info=texts.RATE_INFO),
        "takes": gr.Markdown(elem_id="train-takes"),
        "command": theme.command_box(texts.NO_COMMAND, texts.COMMAND, "train-command"),
    }


def _run(_: TrainEvents) -> Parts:
    panel: Parts = {
        "start": gr.Button(texts.START, variant="primary", interactive=False, elem_id="train-start"),
        "which": gr.Dropdown([], label=texts.WHICH, visible=False, filterable=False, elem_id="train-which"),
        "run": gr.HTML(nothing_html(texts.NOTHING_YET), elem_id="train-run"),
    }
    with gr.Row(elem_classes="actions"):
        for key, text, variant in (
            ("stop", texts.STOP, "secondary"),
            ("go_on", texts.GO_ON, "secondary"),
            ("chat", texts.CHAT_WITH, "primary"),
            ("compare", texts.COMPARE_WITH, "secondary"),
        ):
            panel[key] = gr.Button(text, variant=variant, visible=False, min_width=80, elem_id=f"train-{key}")
        panel["download"] = gr.DownloadButton(
            texts.DOWNLOAD, visible=False, min_width=80, elem_id="train-download"
        )
    with gr.Accordion(texts.LOG, open=False, elem_id="train-log"):
        panel["log"] = gr.Textbox(show_label=False, label=texts.LOG, lines=8, max_lines=8, interactive=False)
    return panel


def _connect_data(handlers: TrainEvents, parts: Parts, plan: gr.State) -> None:
    sample, upload, preview, start = (parts[key] for key in ("sample", "upload", "preview", "start"))
    values = [parts[key] for key in SETTINGS]
    described = [parts["takes"], parts["command"], start]
    outputs, inputs = [preview, plan, *values, *described], [plan, parts["name"], parts["description"]]
    event = {"show_progress": "minimal", "show_progress_on": preview, **PREVIEW, **PRIVATE}
    sample.input(handlers.choose_sample, [sample, *inputs], [upload, *outputs], **event)
    upload.upload(handlers.choose_upload, [upload, *inputs], [sample, *outputs], **event)
    upload.clear(handlers.clear_data, inputs, [sample, *outputs], **UNQUEUED)
    typed = parts["use_rows"].click(handlers.use_rows, parts["rows"], upload, **QUEUED)
    typed.success(handlers.choose_upload, [upload, *inputs], [sample, *outputs], **event)
    changes = [component.change for component in values]
    last = {"trigger_mode": "always_last", **UNQUEUED}
    gr.on(changes, handlers.describe_settings, [plan, *values], described, **last)


def _connect_run(
    handlers: TrainEvents, parts: Parts, plan: gr.State, owner: gr.BrowserState, timer: gr.Timer, tabs: gr.Tabs
) -> None:
    known_names, launched, which = gr.State([]), gr.State(None), parts["which"]
    shown = [parts[key] for key in ("run", "start", "stop", "go_on", "chat", "compare", "download", "log")]
    outputs = [which, known_names, launched, *shown, timer]
    parts["start"].click(
        handlers.start,
        [owner, parts["sample"], parts["upload"], plan, *[parts[key] for key in SETTINGS]],
        [owner, *outputs],
        show_progress="minimal",
        show_progress_on=parts["run"],
        **PREVIEW,
        **PRIVATE,
    )
    visitor = [plan, parts["name"], owner]
    parts["stop"].click(handlers.stop, [which, launched, *visitor], outputs, **QUEUED)
    parts["go_on"].click(handlers.resume, [which, *visitor], outputs, **QUEUED)
    gr.on([timer.tick, which.input], handlers.panel, [which, *visitor, known_names], outputs, **UNQUEUED)

    def select_tab(
        name: str | None, plan: Any, new_name: str, owner: str, event: gr.SelectData
    ) -> tuple[Any, ...]:
        """Stops the timer while another tab is open."""
        if event.value != page_texts.TRAIN:
            return *[gr.skip()] * (len(outputs) - 1), gr.Timer(active=False)
        return handlers.panel(name, plan, new_name, owner, None)

    tabs.select(select_tab, [which, *visitor], outputs, **UNQUEUED)


def _connect_chat(
    handlers: TrainEvents, button: gr.Button, run: Any, timer: gr.Timer, tabs: gr.Tabs, chat: TabParts
) -> None:
    box = chat.message_box
    outputs = [tabs, *[picker.component for picker in chat.pickers], box, timer]
    fresh = button.click(None, js="() => window.chatPage.openNew()", **UNQUEUED)
    fresh.then(handlers.chat_with, [run, box], outputs, queue=True, show_progress="hidden", **PRIVATE)
