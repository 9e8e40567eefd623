"""The panel Inside: an inspection of the newest answer, and that rewritten with painted gates. Idle if closed."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
from pydantic import StrictInt, TypeAdapter, ValidationError

from adapter.errors import BadInput
from adapter.lru import LRU
from adapter.serve.request import Client, GenerationRequest
from adapter.server.generation import EngineProvider, ServingEngine, browser_text, client_of, wait_for
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import build_request
from adapter.ui.comparison import mark_differences
from adapter.ui.conversation import History, RecordedAnswer
from adapter.ui.gradio_internals import sent
from adapter.ui.images import open_upload
from adapter.ui.inside import charts
from adapter.ui.session import Conversations
from adapter.ui.status import MODEL, PRIVATE, REDRAW_SECONDS
from adapter.ui.texts import page as texts
from adapter.ui.toasts import readable

if TYPE_CHECKING:
    from adapter.serve.inspection import Inspection

MAX_INSPECTED_ANSWER = 512  # tokens of an answer that are inspected
Updates = tuple[str, str, str, str, str]  # of the message, the gates, the words, one word and the rewritten answer
_GATES = TypeAdapter(tuple[tuple[StrictInt, StrictInt, float], ...])  # layer, head, factor


class InspectedAnswer(NamedTuple):
    """The inspection of an answer, the names of its adapters, and how many tokens the whole answer has."""

    inspection: Inspection
    names: list[str]
    tokens: int


class InsideEvents:
    """The event handlers of the panel. Thread-safe. Caches the newest inspections by what they are of, so that a
    press on a word costs no forward pass. One on an answer that is no longer the newest changes nothing.
    """

    def __init__(self, provider: EngineProvider, conversations: Conversations) -> None:
        self.provider, self.conversations = provider, conversations
        self._cache: LRU[str, InspectedAnswer] = LRU(16)

    def play(self, id: str, event: gr.EventData, request: gr.Request) -> Iterator[str]:
        """Writes the newest answer with the gates of the event, compared with its beginning: it may be long."""
        history = self.conversations.history(request.session_hash, id)
        try:
            gates = _GATES.validate_python(sent(event).get("gates"))
            if not gates:
                yield ""
                return
            engine, asked, answered = newest_request(self.provider, history, client_of(request))
            after = ""
            with closing(engine.submit(replace(asked, gates=gates))) as answer:
                for arrived in answer.event_lists(REDRAW_SECONDS):
                    if self.conversations.history(request.session_hash, id) is not history:
                        yield ""  # the charts are another answer's by now
                        return
                    after += "".join(event.text for event in arrived)
                    marked, _, _ = mark_differences(answered.text[: 2 * len(after) + 1000], after)
                    said = f'<p>{html.escape(texts.REWRITTEN)}</p><div class="answer-text">{marked}</div>'
                    yield f'<div class="rewritten">{said}</div>'
        except ValidationError:
            yield _reason(BadInput(texts.WRONG_VALUE))
        except Exception as error:
            yield _reason(error)

    def show(self, id: str, request: gr.Request) -> Iterator[Updates]:
        """Inspects the newest answer and shows its charts, or a message why there are none."""
        history = self.conversations.history(request.session_hash, id)
        try:
            for status in wait_for(self.provider):
                yield charts.message_html(texts.waiting_for_model(status)), "", "", "", ""
            yield charts.message_html(texts.INSPECTING), "", "", "", ""
            inspection, names, tokens = self._inspect(history, request)
        except Exception as error:
            yield _reason(error), "", "", "", ""
            return
        words = charts.answer_html(inspection, _answer_id(history), tokens)
        yield "", charts.gates_html(inspection, names), words, charts.message_html(texts.CLICK_A_TOKEN), ""

    def show_token(self, id: str, event: gr.EventData, request: gr.Request) -> Any:
        """The numbers and the prompt map of a token that was pressed."""
        history = self.conversations.history(request.session_hash, id)
        index = sent(event).get("index")
        if sent(event).get("key") != _answer_id(history) or type(index) is not int:
            return gr.skip()
        try:
            inspection, names, tokens = self._inspect(history, request)
        except Exception as error:
            return _reason(error)
        inside = 0 <= index < len(inspection.tokens)
        return charts.token_html(inspection, index, names, tokens) if inside else gr.skip()

    def _inspect(self, history: History, request: gr.Request) -> InspectedAnswer:
        make = partial(inspect_newest, self.provider, history, client_of(request))
        return self._cache.compute(_answer_id(history), make)


def inspect_newest(provider: EngineProvider, history: History, client: Client) -> InspectedAnswer:
    """Raises AdapterError with the reason why the newest answer cannot be inspected."""
    engine, request, answered = newest_request(provider, history, client)
    inspection = engine.inspect(request, answered.record.token_ids[:MAX_INSPECTED_ANSWER])
    names = [texts.part(name, strength) for name, strength in request.parts]
    return InspectedAnswer(inspection, names, len(answered.record.token_ids))


def newest_request(
    provider: EngineProvider, history: History, client: Client
) -> tuple[ServingEngine, GenerationRequest, RecordedAnswer]:
    """The engine, the request that the newest answer was given, and that answer. Raises as `inspect_newest`."""
    if not any(entry.role == "assistant" or entry.about for entry in history):
        raise BadInput(texts.NO_ANSWER)
    answered = conversation.newest_recorded_answer(history)
    if answered is None or not answered.record.token_ids:
        raise BadInput(texts.NO_RECORD)
    record = answered.record
    if not record.settings.adapters:
        raise BadInput(texts.NO_GATES)
    if record.picture and answered.picture is None:
        raise BadInput(texts.PICTURE_GONE)
    if (engine := provider.engine()) is None:
        raise BadInput(provider.status().text)
    image = open_upload(answered.picture) if record.picture and answered.picture else None
    return engine, build_request(answered.messages, record.settings, image, client), answered


def _answer_id(history: History) -> str:
    """Tells the newest recorded answer from all others; nobody has it who has not all that was said before."""
    return hashlib.sha256(repr(conversation.newest_recorded_answer(history)).encode()).hexdigest()


def _reason(error: Exception) -> str:
    """Why there is nothing to show, in place of a chart."""
    return charts.message_html(browser_text(readable(error, "an inspection")))


def inside_panel(provider: EngineProvider, conversations: Conversations, id: gr.Textbox) -> None:
    """Lays the panel out in the current Blocks and connects it. inside.js asks for what it shows."""
    chart = {"js_on_load": (theme.STATIC / "inside.js").read_text(encoding="utf-8"), "apply_default_css": False}
    # Closed it is not seen: the button beside X-ray opens it.
    with gr.Accordion(texts.INSIDE, open=False, elem_id="inside"):
        message = gr.HTML(charts.message_html(texts.INSPECTING), elem_id="inside-message")
        with gr.Column(elem_id="inside-play"):
            gr.Radio(texts.BRUSHES, value=0, label=texts.BRUSH, elem_id="inside-brush")
            rewritten = gr.HTML("", elem_id="inside-rewritten")
        gates = gr.HTML("", **chart, elem_id="inside-gates")
        answer = gr.HTML("", **chart, elem_id="inside-answer")
        token = gr.HTML("", **chart, elem_id="inside-token")
    events = InsideEvents(provider, conversations)
    options = {"show_progress": "hidden", "trigger_mode": "always_last", **MODEL, **PRIVATE}
    gates.look(events.show, id, [message, gates, answer, token, rewritten], **options)
    answer.token(events.show_token, id, token, **options)
    gates.play(events.play, id, rewritten, **options)
