"""Teach by chatting: trains on the corrections of the Chat tab, and lets one watch how the answers change."""

from __future__ import annotations

import html
import json
import logging
import secrets
from contextlib import closing
from typing import Any

import gradio as gr
from pydantic import BaseModel, ValidationError

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.serve.request import Client
from adapter.serve.settings import Settings
from adapter.server.generation import EngineProvider, client_of
from adapter.ui.answer_stream import build_request
from adapter.ui.chat.corrections import BROWSER_SECRET, FILE_NAME, CorrectionsPanel, checked
from adapter.ui.status import MODEL, PRIVATE, QUEUED, UNQUEUED
from adapter.ui.texts import page as page_texts
from adapter.ui.theme import ellipsize
from adapter.ui.toasts import errors_as_toasts
from train.ui import texts
from train.ui.charts import progress_html
from train.ui.events import TrainEvents, write_rows
from train.ui.plan import free_name
from train.ui.runs import TrainingRun

log = logging.getLogger(__name__)

LEAST = 8  # corrections
TICK = 2.0
MAX_TOKENS = 48  # of an answer that is watched
_SHOWN_CHARACTERS = 160
Updates = tuple[Any, ...]


class Lesson(BaseModel):
    """A run that was started here, as the browser keeps it.

    answers: (step, text) of the question, asked again whenever an adapter was saved; saved: when, of the latest.
    """

    run: str
    question: str
    answers: list[tuple[int, str]] = []
    saved: str = ""


class TeachEvents:
    def __init__(self, handlers: TrainEvents, provider: EngineProvider) -> None:
        self.handlers, self.runs, self.provider = handlers, handlers.runs, provider

    def count(self, known: object) -> Any:
        """Update of the start button."""
        missing = LEAST - len(checked(known))
        return gr.update(interactive=missing <= 0, value=texts.train_on_these(missing))

    def start(self, owner: str, known: object, name: str | None, question: str | None) -> Updates:
        """Updates of (owner, lesson, timer). name, question: None while their fields were never shown."""
        owner = owner or secrets.token_urlsafe(16)
        with errors_as_toasts("the start of a lesson"):
            rows = [json.dumps(row) for row in checked(known)]
            if len(rows) < LEAST:
                raise BadInput(texts.train_on_these(LEAST - len(rows)))
            name = (name or "").strip() or free_name(texts.TAUGHT_NAME, self.handlers.taken_names())
            run = self.handlers.launch(owner, None, write_rows(rows, FILE_NAME), name, texts.TAUGHT)
            lesson = Lesson(run=run, question=(question or "").strip() or texts.WATCHED_QUESTION)
            return owner, lesson.model_dump(), gr.Timer(active=True)
        return owner, gr.skip(), gr.skip()

    def stop(self, owner: str, lesson: object) -> None:
        with errors_as_toasts("the stop of a lesson"):
            if (followed := _checked_lesson(lesson)) is not None:
                self.runs.stop(self.handlers.own(followed.run, owner))

    def follow(self, owner: str, lesson: object, request: gr.Request) -> Updates:
        """Updates of (lesson, run, stop, chat, the run's name, timer)."""
        followed = _checked_lesson(lesson)
        run = None if followed is None else self.runs.get(followed.run)
        if followed is None or run is None:
            return gr.skip(), "", *[gr.update(visible=False)] * 2, "", gr.Timer(active=False)
        answered = self._answer(followed, run, client_of(request))
        return (
            gr.skip() if answered == followed else answered.model_dump(),
            _lesson_html(answered, run),
            gr.update(visible=run.alive and self.handlers.may_change(run, owner)),
            gr.update(visible=bool(run.adapter) and not run.alive),
            run.name,
            gr.Timer(active=run.alive or answered != followed),
        )

    def _answer(self, lesson: Lesson, run: TrainingRun, client: Client) -> Lesson:
        """The lesson with the base's answer first, then with the adapter's as often as a better one is saved."""
        answers, adapter, step = lesson.answers, "", 0
        if answers:
            if not run.adapter or run.adapter == lesson.saved:
                return lesson
            adapter, (step, _) = run.name, run.progress.kept(run.recipe.train.save)
        if not answers or step > answers[-1][0]:
            try:
                answers = [*answers, (step, self._ask(lesson.question, adapter, client))]
            except Exception as error:  # the next tick asks again
                if not isinstance(error, AdapterError):
                    log.exception("a watched question was not answered")
                return lesson
        return lesson.model_copy(update={"answers": answers, "saved": run.adapter if adapter else ""})

    def _ask(self, question: str, adapter: str, client: Client) -> str:
        if (engine := self.provider.engine()) is None:
            raise BadInput(page_texts.FAILED)
        settings = Settings().replace(adapter=adapter, temperature=0.0, max_tokens=MAX_TOKENS)
        request = build_request((Message("user", question),), settings, None, client)
        with closing(engine.submit(request)) as events:
            return "".join(event.text for arrived in events.event_lists(TICK) for event in arrived)


def teach_panel(
    page: gr.Blocks, handlers: TrainEvents, provider: EngineProvider, corrections: CorrectionsPanel, owner: Any
) -> tuple[gr.Textbox, gr.Button]:
    """Adds to the corrections' panel. Returns the run's name and the button that chats with it."""
    events = TeachEvents(handlers, provider)
    with corrections.around:
        lesson = gr.BrowserState(None, storage_key="llama-adapter:lesson", secret=BROWSER_SECRET)
        run, timer = gr.Textbox(visible=False), gr.Timer(TICK, active=False)
    with corrections.panel:
        with gr.Accordion(texts.LESSON, open=False, elem_id="lesson-settings"):
            name = gr.Textbox(label=texts.NAME, placeholder=texts.TAUGHT_NAME, max_lines=1)
            question = gr.Textbox(texts.WATCHED_QUESTION, label=texts.WATCHED, max_length=200, max_lines=2)
        start = gr.Button(texts.train_on_these(LEAST), interactive=False, size="sm", elem_id="teach-start")
        shown = gr.HTML(elem_id="teach-run", padding=False)
        with gr.Row():
            stop = gr.Button(texts.STOP, size="sm", visible=False, min_width=60, elem_id="teach-stop")
            chat = gr.Button(
                texts.CHAT_WITH, size="sm", variant="primary", visible=False, min_width=60, elem_id="teach-chat"
            )
    outputs = [lesson, shown, stop, chat, run, timer]
    followed = {"show_progress": "hidden", **MODEL, **PRIVATE}
    gr.on([page.load, corrections.known.change], events.count, corrections.known, start, **UNQUEUED)
    started = start.click(
        events.start, [owner, corrections.known, name, question], [owner, lesson, timer], **QUEUED
    )
    stop.click(events.stop, [owner, lesson], None, **QUEUED)
    gr.on([page.load, timer.tick], events.follow, [owner, lesson], outputs, **followed)
    started.then(events.follow, [owner, lesson], outputs, **followed)
    return run, chat


def _checked_lesson(lesson: object) -> Lesson | None:
    """The lesson that a browser holds; None for anything else."""
    try:
        return Lesson.model_validate(lesson)
    except ValidationError:
        return None


def _lesson_html(lesson: Lesson, run: TrainingRun) -> str:
    answers = [(texts.watched_step(step), ellipsize(text, _SHOWN_CHARACTERS)) for step, text in lesson.answers]
    items = "".join(f"<li><b>{html.escape(when)}</b> {html.escape(text)}</li>" for when, text in answers)
    question = html.escape(f"“{lesson.question}”")
    return (
        f'<div class="run {run.state}">{progress_html(run)}<p class="watched">{question}</p>'
        f'<ol tabindex="0">{items}</ol></div>'
    )
