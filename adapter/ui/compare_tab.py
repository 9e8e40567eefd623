"""The compare tab: one message through two to four panes, answered as rows of one batch from one seed.

Its components and what its events do. Knows Gradio and the engine's answers; which words differ is in words.py.
"""

from __future__ import annotations

import html
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import BASE_ONLY, Settings, slider
from adapter.server.settings import (
    REDRAW_SECONDS,
    EngineProvider,
    check_length,
    make_request,
    sees,
    wait_for,
    without_folders,
)
from adapter.ui import conversation as talk
from adapter.ui import theme as look
from adapter.ui.active_answers import Run, Runs
from adapter.ui.chat_events import toast
from adapter.ui.chat_tab import MODEL, message_box, sampling_controls
from adapter.ui.images import BadPicture, open_picture
from adapter.ui.merged_streams import together
from adapter.ui.status import PRIVATE, QUICK, Picker
from adapter.ui.text_diff import difference
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from adapter.serve.request import GenerationEvent, GenerationRequest

log = logging.getLogger(__name__)

FEWEST, MOST = 2, 4
_SAMPLING = ("temperature", "top_p", "max_tokens", "seed")
# Updates of the message box and of each pane's answer.
Updates = tuple[Any, ...]


@dataclass
class Pane:
    """One answer on its way: what answers, what has come of it, and how that is shown."""

    settings: Settings
    notes: list[str] = field(default_factory=list)
    said: str = "…"  # by the page, in the answer's place
    text: str = ""
    tokens: int = 0
    rate: float | None = None
    first: float = 0.0  # when the first token came
    marked: str | None = None  # the text as HTML, once its differences are known

    def take(self, event: GenerationEvent | AdapterError) -> None:
        if isinstance(event, AdapterError):
            self.said = without_folders(str(event))
            self.notes.append(self.said)
            return
        if event.position is not None:
            self.said = texts.waiting(event.position)
            return
        now = time.monotonic()
        self.first = self.first or now
        self.text += event.text
        self.tokens += event.token_id is not None
        self.rate = (self.tokens - 1) / (now - self.first) if self.tokens > 4 else None
        if event.stats is not None:
            self.tokens, self.rate = event.stats.new_tokens, event.stats.tokens_per_s or None
            cancelled = event.finish_reason == "cancelled"
            self.said = texts.STOPPED_AT_ONCE if cancelled else texts.EMPTY_ANSWER
            self.notes += texts.ENDINGS[event.finish_reason]

    def stop(self) -> None:
        """The end of a pane for which nothing was asked yet."""
        self.said = texts.STOPPED_AT_ONCE

    def html(self) -> str:
        name, strength = self.settings.adapter or None, self.settings.strength
        line = talk.stats_line(name, strength, self.tokens, self.rate, self.notes) if self.tokens else ""
        if not self.text.strip():
            return look.pane_html(html.escape(self.said), line, muted=True)
        return look.pane_html(html.escape(self.text.strip()) if self.marked is None else self.marked, line)


class Comparison:
    """The handlers of the tab; safe for any number of sessions at once, each with one comparison at a time."""

    def __init__(self, provider: EngineProvider, store: look.Cards) -> None:
        self.provider = provider
        self.store = store
        self._runs = Runs()

    def send(
        self, message: dict[str, Any] | None, count: int, request: gr.Request, *values: Any
    ) -> Iterator[Updates]:
        """values: adapter and strength of each pane, then temperature, top-p, max tokens and seed."""
        message = message or {}
        text, files = (message.get("text") or "").strip(), message.get("files") or []
        if not text and not files:
            gr.Info(texts.NOTHING_TO_SEND, duration=4)
            yield _updates(gr.skip())
            return
        with self._runs.start(request.session_hash) as run:
            if run is None:
                gr.Info(texts.STILL_ANSWERING, duration=6)
                yield _updates(gr.skip())
                return
            after_failure: list[Pane] | None = None  # what is refused at once leaves the last comparison alone
            try:
                check_length(text)
                panes = _panes(count, values)
                answering = gr.update(**look.ANSWERING)  # every time: one of two quick updates can get lost
                yield _updates(answering)
                picture = files[-1] if files else None
                turn = talk.user_turn(text or texts.DEFAULT_QUESTION)
                for _ in self._answer(run, panes, turn, picture, request.session_hash or ""):
                    after_failure = []
                    yield _updates(answering, panes)
                yield _updates(gr.update(**look.IDLE), panes)
            except BadPicture as error:
                toast(error)
                yield _updates(gr.update(value={**message, "files": []}, **look.IDLE), after_failure)
            except AdapterError as error:
                toast(error)
                yield _updates(gr.update(**look.IDLE), after_failure)
            except Exception:
                log.exception("a comparison failed")
                toast(AdapterError(texts.FAILED))
                yield _updates(gr.update(**look.IDLE), after_failure)

    def stop(self, request: gr.Request) -> Any:
        run = self._runs.of(request.session_hash)
        if run is None:  # lost, with the server that it ran on for example
            return gr.update(**look.IDLE)
        run.stop()
        return gr.skip()

    def _answer(
        self, run: Run, panes: list[Pane], turn: talk.History, picture: str | None, client: str
    ) -> Iterator[None]:
        """Let the panes grow until all have ended; yields when there is something new to be seen."""
        for status in wait_for(self.provider):
            for pane in panes:
                pane.said = without_folders(texts.waiting_for_model(status))
            if run.stopped:
                break
            yield
        if run.stopped:
            for pane in panes:
                pane.stop()
            return
        engine = self.provider.engine()
        assert engine is not None
        requests = self._requests(panes, turn, picture, client)
        with ExitStack() as stack:
            answers, errors = {}, []
            for index, request in enumerate(requests):
                try:
                    answers[index] = stack.enter_context(closing(engine.submit(request)))
                except AdapterError as error:
                    errors.append(error)
                    panes[index].take(error)
            if not answers:
                raise errors[0]

            def cancel() -> None:
                for answer in answers.values():
                    answer.cancel()

            run.cancel = cancel
            if run.stopped:
                cancel()
            yield
            for news in together(answers, REDRAW_SECONDS):
                for index, event in news:
                    panes[index].take(event)
                yield
        if not run.stopped:
            _mark(panes)

    def _requests(
        self, panes: list[Pane], turn: talk.History, picture: str | None, client: str
    ) -> list[GenerationRequest]:
        """One request for each pane, all with one seed; the picture goes to those that see."""
        image = None if picture is None else open_picture(picture)
        seeing = [sees(self.store, pane.settings) for pane in panes]
        if image is not None and not any(seeing):
            raise BadInput(texts.NO_PANE_SEES)
        chosen = panes[0].settings.seed
        seed = secrets.randbelow(2**31) if chosen is None else chosen
        requests = []
        for pane, visual in zip(panes, seeing, strict=True):
            if visual != (image is not None):
                pane.notes.append(texts.NO_IMAGE if visual else texts.PICTURE_NOT_USED)
            settings = pane.settings.replace(seed=seed)
            request = make_request(turn, settings, settings.adapter or None, None, client)
            requests.append(replace(request, image=image) if visual else request)
        return requests


def _panes(count: int, values: Sequence[Any]) -> list[Pane]:
    if count not in range(FEWEST, MOST + 1):
        raise BadInput(texts.wrong_panes(FEWEST, MOST, count))
    sampling = dict(zip(_SAMPLING, values[2 * MOST :], strict=True))
    chosen = [{"adapter": values[2 * i], "strength": values[2 * i + 1]} for i in range(count)]
    return [Pane(Settings.checked({**sampling, **pane})) for pane in chosen]


def _mark(panes: Sequence[Pane]) -> None:
    """Show in every pane which words the first one has not."""
    first, *others = panes
    if not first.text.strip():
        return
    for pane in others:
        if pane.text.strip():
            pane.marked, changed, words = difference(first.text, pane.text)
            pane.notes.append(texts.changed_words(changed, words))


def _updates(box: Any, panes: Sequence[Pane] | None = None) -> Updates:
    """panes: those in use, the others are emptied; None: all stay as they are."""
    if panes is None:
        return box, *[gr.skip()] * MOST
    empty = look.pane_html(texts.EMPTY_PANE, muted=True)
    return box, *[pane.html() for pane in panes], *[empty] * (MOST - len(panes))


def compare_tab(provider: EngineProvider, store: look.Cards) -> list[Picker]:
    """Lay the comparison out inside the current Blocks and connect it; returns the pickers to keep up to date."""
    choices = look.short_choices(look.picker_choices(store), texts.FROZEN_BASE)
    columns, values, answers, pickers = [], [], [], []
    with gr.Column(elem_id="compare"):
        gr.Markdown(texts.COMPARE_HINT, elem_id="hint")
        with gr.Row(elem_id="ask", equal_height=True):
            box = message_box(texts.COMPARE_PLACEHOLDER, "message")
            count = gr.Radio(list(range(FEWEST, MOST + 1)), value=FEWEST, label=texts.PANES, elem_id="count")
        with gr.Row(elem_id="panes"):
            for i in range(MOST):
                with gr.Column(min_width=250, visible=i < FEWEST, elem_classes="pane") as column:
                    name = gr.Dropdown(choices, value=BASE_ONLY, label=texts.pane(i + 1), filterable=False)
                    label = texts.pane_strength(i + 1)
                    strength = gr.Slider(**slider("strength"), label=label, interactive=False)
                    answers.append(gr.HTML(look.pane_html(texts.EMPTY_PANE, muted=True), elem_classes="answer"))
                columns.append(column)
                values += [name, strength]
                pickers.append(Picker(name, texts.FROZEN_BASE, i - 1 if i else None))
                # The base has no strength to set.
                name.change(lambda chosen: gr.update(interactive=bool(chosen)), name, strength, **QUICK)
        with gr.Accordion(texts.SAMPLING, open=False):
            sampling = sampling_controls()
    handlers = Comparison(provider, store)
    outputs = [box, *answers]
    inputs = [box, count, *values, *[sampling[name] for name in _SAMPLING]]
    box.submit(handlers.send, inputs, outputs, show_progress="hidden", **MODEL, **PRIVATE)
    box.stop(handlers.stop, None, box, **QUICK)
    count.change(lambda n: [gr.update(visible=i < n) for i in range(MOST)], count, columns, **QUICK)
    return pickers
