"""The Train tab: its components, and which event calls which handler.

Logic is in handlers.py, looks are in adapter/ui/train.css.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.context import get_blocks_context

from adapter.base.embedded import BASE
from adapter.ui import theme as look
from adapter.ui.status import PRIVATE, QUICK, TELLING, Picker
from adapter.ui.texts import page as page_texts
from adapter.ui.texts import train as texts
from train.config import LONGEST_NAME
from train.ui.data_upload import UPLOADS
from train.ui.events import SLOW_TICK, TrainTab
from train.ui.plan import (
    FEWEST_STEPS,
    LEAST_LR,
    LONGEST_DESCRIPTION,
    MOST_LR,
    MOST_STEPS,
)
from train.ui.preview import nothing_html
from train.ui.runs import TrainingRuns

# Looking through data takes seconds of a core: two at a time, whoever asks.
DATA = {"concurrency_id": "train-data", "concurrency_limit": 2}


def train_tab(
    tabs: gr.Tabs,
    runs: TrainingRuns,
    store: look.Cards,
    chat: Sequence[Picker],
    compare: Sequence[Picker],
    base: str = BASE,
    enabled: bool = True,
) -> None:
    """Lay the tab out inside the current Blocks and connect it; without `enabled` there is nothing to be called.

    chat, compare: the pickers of those tabs, in their order.
    """
    if not enabled:
        gr.Markdown(texts.OFF, elem_id="train-off")
        return
    handlers = TrainTab(runs, store, base)
    with gr.Column(elem_id="train"):
        gr.Markdown(texts.HINT, elem_classes="hint")
        with gr.Row(equal_height=False, elem_id="steps"):
            with gr.Column(min_width=320, elem_classes="step"):
                data = _data(handlers)
            with gr.Column(min_width=320, elem_classes="step"):
                settings = _settings()
            with gr.Column(min_width=320, elem_classes="step"):
                panel = _run()
    timer = gr.Timer(SLOW_TICK, active=False)
    found, known = gr.State(None), gr.State([])
    _connect_data(handlers, data, settings, found, panel["start"])
    _connect_run(handlers, data, settings, found, known, panel, timer, tabs)
    _connect_afterwards(handlers, panel, timer, tabs, chat, compare)


def _data(handlers: TrainTab) -> dict[str, Any]:
    gr.HTML(_step(1, texts.DATA))
    choices = [(f"{s.title}\n{s.description}", s.name) for s in handlers.samples.values()]
    return {
        "sample": gr.Radio(
            choices, label=texts.SAMPLES, elem_id="samples", elem_classes="cards", visible=bool(choices)
        ),
        "upload": gr.File(label=texts.UPLOAD, file_types=UPLOADS, height=132, elem_id="train-upload"),
        "hint": gr.Markdown(texts.UPLOAD_HINT, elem_classes="hint"),
        "preview": gr.HTML(nothing_html(texts.NO_DATA), elem_id="train-preview"),
    }


def _settings() -> dict[str, Any]:
    gr.HTML(_step(2, texts.SETTINGS))
    return {
        "name": gr.Textbox(label=texts.NAME, placeholder=texts.NAME_HINT, max_length=LONGEST_NAME, max_lines=1),
        "description": gr.Textbox(
            label=texts.DESCRIPTION,
            placeholder=texts.DESCRIPTION_HINT,
            max_length=LONGEST_DESCRIPTION,
            max_lines=1,
        ),
        "steps": gr.Slider(FEWEST_STEPS, MOST_STEPS, 40, step=10, label=texts.STEPS, info=texts.STEPS_INFO),
        "rate": gr.Slider(LEAST_LR, MOST_LR, 0.004, step=0.001, label=texts.RATE, info=texts.RATE_INFO),
        "takes": gr.Markdown(elem_id="train-takes"),
        "command": look.command_box(texts.NO_COMMAND, texts.COMMAND, "train-command"),
    }


def _run() -> dict[str, Any]:
    gr.HTML(_step(3, texts.RUN))
    panel: dict[str, Any] = {
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


def _connect_data(
    handlers: TrainTab, data: dict[str, Any], settings: dict[str, Any], found: gr.State, start: gr.Button
) -> None:
    sample, upload, preview = (data[key] for key in ("sample", "upload", "preview"))
    outputs = [preview, found, *settings.values(), start]
    given = [found, settings["name"], settings["description"]]
    event = {"show_progress": "minimal", "show_progress_on": preview, **DATA, **PRIVATE}
    sample.input(handlers.choose_sample, [sample, *given], [upload, *outputs], **event)
    upload.upload(handlers.choose_upload, [upload, *given], [sample, *outputs], **event)
    upload.clear(handlers.no_data, given, [sample, *outputs], **QUICK)
    typed = [settings[key] for key in ("name", "description", "steps", "rate")]
    gr.on(
        [component.change for component in typed],
        handlers.told,
        [found, *typed],
        [settings["takes"], settings["command"]],
        trigger_mode="always_last",
        **QUICK,
    )


def _connect_run(
    handlers: TrainTab,
    data: dict[str, Any],
    settings: dict[str, Any],
    found: gr.State,
    known: gr.State,
    panel: dict[str, Any],
    timer: gr.Timer,
    tabs: gr.Tabs,
) -> None:
    which = panel["which"]
    order = ("which", "run", "start", "stop", "go_on", "chat", "compare", "download", "log")
    first, *others = (panel[key] for key in order)
    outputs = [first, known, *others, timer]
    typed = [settings[key] for key in ("name", "description", "steps", "rate")]
    panel["start"].click(
        handlers.start,
        [data["sample"], data["upload"], found, *typed],
        outputs,
        show_progress="minimal",
        show_progress_on=panel["run"],
        **DATA,
        **PRIVATE,
    )
    panel["stop"].click(handlers.stop, [which, found], outputs, **TELLING)
    panel["go_on"].click(handlers.go_on, [which, found], outputs, **TELLING)
    gr.on([timer.tick, which.input], handlers.panel, [which, found, known], outputs, **QUICK)

    def shown(chosen: str | None, seen: Any, event: gr.SelectData) -> tuple[Any, ...]:
        """Nothing is asked for while another tab is open."""
        if event.value != page_texts.TRAIN:
            return *[gr.skip()] * (len(outputs) - 1), gr.Timer(active=False)
        return handlers.panel(chosen, seen, None)

    tabs.select(shown, [which, found], outputs, **QUICK)


def _connect_afterwards(
    handlers: TrainTab,
    panel: dict[str, Any],
    timer: gr.Timer,
    tabs: gr.Tabs,
    chat: Sequence[Picker],
    compare: Sequence[Picker],
) -> None:
    event = {"queue": True, "show_progress": "hidden", **PRIVATE}
    box, message = _by_id("box"), _by_id("message")
    panel["chat"].click(handlers.chat_with, [panel["which"], box], [tabs, chat[0].component, box, timer], **event)
    panes = [picker.component for picker in compare[:2]]
    panel["compare"].click(
        handlers.compare_with, [panel["which"], message], [tabs, *panes, message, timer], **event
    )


def _by_id(elem_id: str) -> Any:
    """A component of another tab."""
    page = get_blocks_context()
    assert page is not None
    return next(block for block in page.blocks.values() if getattr(block, "elem_id", None) == elem_id)


def _step(number: int, title: str) -> str:
    return f'<h2 class="step-title"><b>{number}</b>{title}</h2>'
