"""The Train tab and the way to it from the chat's corrections: components, and which event calls which handler."""

from pathlib import Path
from typing import Any

import gradio as gr

from adapter.method.config import MAX_NAME_LENGTH
from adapter.ui.chat.tab import TabParts
from adapter.ui.status import NEWEST, PRIVATE, QUEUED, UNQUEUED
from adapter.ui.texts import page as page_texts
from train.ui import plan, texts
from train.ui.events import LEAST, MAX_TYPED, SLOW_TICK, TICK, TrainEvents
from train.ui.preview import UPLOADS, notice_html
from train.ui.runs import TrainingRuns

STYLE_SHEET = Path(__file__).parent / "static" / "train.css"
# A preview takes seconds of a core: two at a time over all visitors.
PREVIEW = {"concurrency_id": "train-data", "concurrency_limit": 2, "trigger_mode": "always_last"}
_OPEN_TAB = "(...values) => { document.querySelector('#tabs [data-tab-id=train]').click(); return values; }"
_OWNER = """() => {
  const key = "llama-adapter:owner";
  const secret = localStorage.getItem(key) || crypto.getRandomValues(new Uint32Array(4)).join("-");
  try { localStorage.setItem(key, secret); } catch {} // one for all tabs; without room, this page's
  return secret;
}"""
Parts = dict[str, Any]  # components by name


def train_tab(page: gr.Blocks, tabs: gr.Tabs, runs: TrainingRuns, chat: TabParts, base: str, public: bool) -> None:
    """Lays the tab out inside the current Blocks and connects it.

    chat: the other tab, to which a button below a run switches. public: as TrainEvents has it.
    """
    handlers = TrainEvents(runs, chat.store, base, public)
    owner = gr.Textbox(visible=False)
    page.load(None, None, owner, js=_OWNER, **UNQUEUED)
    with chat.corrections.panel:
        teach = gr.Button(texts.train_on_these(LEAST), interactive=False, size="sm", elem_id="teach-start")
    planned = gr.State(None)
    with gr.Column(elem_id="train"):
        gr.Markdown(texts.HINT, elem_classes="hint")
        with gr.Row(equal_height=False, elem_id="steps"):
            with _step(1, texts.DATA):
                data = _data(handlers)
            with _step(2, texts.SETTINGS):
                settings = _settings()
                shown = {"interactive": False, "buttons": ["copy"], "elem_id": "train-command"}
                command = gr.Textbox(texts.NO_COMMAND, label=texts.COMMAND, lines=2, max_lines=8, **shown)
            with _step(3, texts.RUN):
                start = gr.Button(texts.START, variant="primary", interactive=False, elem_id="train-start")
                run = {**_run(handlers, owner), "command": command, "start": start}
    prepared = [data["sample"], data["upload"], data["preview"], planned, *settings, command, start]
    event = {"show_progress": "minimal", "show_progress_on": data["preview"], **PREVIEW, **PRIVATE}
    before = [planned, *settings]
    data["sample"].input(handlers.choose_sample, [data["sample"], *before], prepared, **event)
    uploads = [data["upload"].upload, data["upload"].clear]
    gr.on(uploads, handlers.choose_upload, [data["upload"], *before], prepared, **event)
    data["use_rows"].click(handlers.use_rows, [data["rows"], *before], prepared, **event)
    known = chat.corrections.known
    teach.click(handlers.use_corrections, [known, *before], prepared, js=_OPEN_TAB, **event)
    gr.on([page.load, known.change], handlers.count_corrections, known, teach, **NEWEST)
    gr.on([component.change for component in settings], handlers.describe, before, [command, start], **NEWEST)
    _connect_run(handlers, run, [owner, planned, *settings], tabs, chat)


def _connect_run(handlers: TrainEvents, run: Parts, given: list[Any], tabs: gr.Tabs, chat: TabParts) -> None:
    """given: the visitor's secret, the plan and the settings."""
    timer, name = gr.Timer(SLOW_TICK, active=False), run["which"]
    inputs, shown = [name, *given], [*run.values(), timer]
    event = {"show_progress_on": run["html"], **PREVIEW, **PRIVATE, "trigger_mode": "once"}
    run["start"].click(handlers.start, given, shown, **event)
    run["stop"].click(handlers.stop_or_go_on, [run["stop"], *inputs], shown, **QUEUED)
    gr.on([timer.tick, name.input], handlers.panel, inputs, shown, **NEWEST)

    def select(event: gr.SelectData, owner: str, plan: Any, request: gr.Request, *values: Any) -> tuple[Any, ...]:
        """Stops the timer while another tab is open."""
        if event.value != page_texts.TRAIN:
            return *[gr.skip()] * (len(shown) - 1), gr.Timer(active=False)
        return *handlers.panel(None, owner, plan, request, *values)[:-1], gr.Timer(TICK, active=True)

    tabs.select(select, given, shown, trigger_mode="multiple", **UNQUEUED)
    opened = [tabs, timer, *chat.store.opened]
    run["chat"].click(handlers.chat_with, [name, given[0], chat.message_box], opened, **QUEUED)


def _step(number: int, title: str) -> gr.Column:
    with gr.Column(min_width=320, elem_classes="step") as column:
        gr.HTML(f'<h2 class="step-title"><b>{number}</b>{title}</h2>')
    return column


def _data(handlers: TrainEvents) -> Parts:
    choices = [(sample.label, name) for name, sample in handlers.samples.items()]
    parts: Parts = {
        "sample": gr.Radio(
            choices, label=texts.SAMPLES, elem_id="samples", elem_classes="cards", visible=bool(choices)
        ),
        "upload": gr.File(label=texts.UPLOAD, file_types=UPLOADS, height=132, elem_id="train-upload"),
        "hint": gr.Markdown(texts.UPLOAD_HINT, elem_classes="hint"),
    }
    with gr.Accordion(texts.TYPE_ROWS, open=False, elem_id="train-rows"):
        parts["rows"] = gr.Textbox(
            label=texts.ROWS, placeholder=texts.ROWS_HINT, lines=8, max_lines=8, max_length=MAX_TYPED + 1
        )
        parts["use_rows"] = gr.Button(texts.USE_ROWS, size="sm")
    parts["preview"] = gr.HTML(notice_html(texts.NO_DATA), elem_id="train-preview")
    return parts


def _settings() -> list[Any]:
    """Lays out the settings, in the order of RunPlan.with_settings."""
    fields = (
        (texts.NAME, texts.NAME_HINT, MAX_NAME_LENGTH),
        (texts.DESCRIPTION, texts.DESCRIPTION_HINT, plan.MAX_DESCRIPTION_LENGTH),
        (texts.WATCHED, texts.WATCHED_HINT, plan.MAX_QUESTION_LENGTH),
    )
    return [
        *[gr.Textbox(label=n, placeholder=hint, max_length=most, max_lines=2) for n, hint, most in fields],
        gr.Slider(plan.MIN_STEPS, plan.MAX_STEPS, 40, step=10, label=texts.STEPS, info=texts.STEPS_INFO),
        gr.Slider(plan.MIN_LR, plan.MAX_LR, 0.004, step=0.001, label=texts.RATE, info=texts.RATE_INFO),
    ]


def _run(handlers: TrainEvents, owner: gr.Textbox) -> Parts:
    """Lays out a run, in the order of the updates of TrainEvents.panel."""
    small = {"size": "sm", "visible": False, "min_width": 80}
    which = gr.Dropdown([], label=texts.WHICH, visible=False, filterable=False, elem_id="train-which")
    shown = gr.HTML(notice_html(texts.NOTHING_YET), elem_id="train-run", padding=False)
    with gr.Row(elem_classes="actions"):
        stop = gr.Button(texts.STOP, elem_id="train-stop", **small)
        chat = gr.Button(texts.CHAT_WITH, elem_id="train-chat", **small)
        download = gr.DownloadButton(texts.DOWNLOAD, elem_id="train-download", **small)
    with gr.Accordion(texts.PUBLISH, open=False, visible=False, elem_id="train-publish") as publish:
        gr.Markdown(texts.PUBLISH_SIGNED_IN if handlers.sign_in else texts.PUBLISH_HINT, elem_classes="hint")
        if handlers.sign_in:
            gr.LoginButton(size="sm")
        repo = gr.Textbox(label=texts.REPOSITORY, placeholder=texts.REPOSITORY_HINT, max_length=96, max_lines=1)
        button = gr.Button(texts.PUBLISH_BUTTON, size="sm")
        result = gr.Markdown()
    one = {"concurrency_limit": 1, "concurrency_id": "publish", "show_progress_on": result, **PRIVATE}
    button.click(handlers.publish, [which, owner, repo], result, **one)
    return {
        "which": which, "html": shown, "stop": stop, "chat": chat, "download": download, "publish": publish
    }  # fmt: skip
