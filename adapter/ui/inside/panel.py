"""The panel Inside: an inspection of the newest answer, and that answer written once more with painted gates.

Its components and event handlers. The engine computes the numbers, charts.py draws them, inside.js is the part of
the browser. Nothing is computed or requested while the panel is closed.
"""

from __future__ import annotations

import hashlib
import html
import logging
import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.lru import LRU
from adapter.server.generation import EngineProvider, browser_text, client_of, wait_for
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import build_request
from adapter.ui.comparison import mark_differences
from adapter.ui.conversation import AnswerRecord, History, RecordedAnswer
from adapter.ui.images import open_upload
from adapter.ui.inside import charts as inside_charts
from adapter.ui.session import MAX_SESSIONS, Conversations
from adapter.ui.status import MODEL, PRIVATE, REDRAW_SECONDS, UNQUEUED
from adapter.ui.texts import inside as texts
from adapter.ui.texts import page as page_texts

if TYPE_CHECKING:
    from adapter.serve.inspection import Inspection
    from adapter.serve.request import Client, GenerationRequest

log = logging.getLogger(__name__)

MAX_TOKENS = 512  # of an answer that are inspected
CACHE_SIZE = 16
COLOURS = [(texts.INFLUENCE, "influence"), (texts.GROUNDING, "grounding")]
# Updates of the message, the gates, the tokens, the choice of colours and the details of one token.
Updates = tuple[Any, ...]
Gates = tuple[tuple[int, int, float], ...]  # as in GenerationRequest

_CHARTS_JS = (theme.STATIC / "inside.js").read_text(encoding="utf-8")
# A hidden field asks for an inspection when its value changes, to a hash of the conversation. It stays as it is
# while an answer is being streamed or the panel is closed.
_HASH_JS = """(history, before) => {
  history = history ?? [];
  if (%s || history.at(-1)?.metadata?.status === 'pending') return before;
  const text = JSON.stringify(history);
  let sum = 0;
  for (let i = 0; i < text.length; i++) sum = (sum * 31 + text.charCodeAt(i)) | 0;
  return history.length + ':' + text.length + ':' + sum;
}"""
_IS_CLOSED_JS = "!document.querySelector('#inside .label-wrap.open')"


class InspectedAnswer(NamedTuple):
    """The inspection of an answer, the names of its adapters, and how many tokens the whole answer has."""

    inspection: Inspection
    names: list[str]
    tokens: int


class InsideEvents:
    """The event handlers of the panel. Thread-safe.

    Caches the newest inspections, so that a click on a token costs no forward pass. A click on an answer that is
    no longer cached repeats its inspection; one on an answer that is no longer the newest, or no longer shown when
    the inspection ends, changes nothing.
    """

    def __init__(self, provider: EngineProvider) -> None:
        self.provider = provider
        self._cache: LRU[str, InspectedAnswer] = LRU(CACHE_SIZE)
        self._shown: LRU[str | None, str] = LRU(MAX_SESSIONS)  # the key in each session's panel

    def play(self, history: History, event: gr.EventData, request: gr.Request) -> Iterator[str]:
        """Writes the newest answer with the gates of the event."""
        try:
            gates = parse_gates(_event_value(event, "gates"))
            if not gates:
                yield ""
                return
            asked, before, _ = newest_request(self.provider, history, client_of(request))
            engine, after = self.provider.engine(), ""
            assert engine is not None
            with closing(engine.submit(replace(asked, gates=gates))) as answer:
                for arrived in answer.event_lists(REDRAW_SECONDS):
                    after += "".join(event.text for event in arrived)
                    yield _rewritten(before, after)
        except Exception as error:
            yield _reason(error)

    def show(self, history: History, colour: str, request: gr.Request) -> Iterator[Updates]:
        """Inspects the newest answer and shows its charts, or a message why there are none."""
        self._shown.put(request.session_hash, "")
        try:
            _recorded_answer(history)
            for status in wait_for(self.provider):
                yield _message_only(page_texts.waiting_for_model(status))
            yield _message_only(texts.INSPECTING)
            inspected = inspect_newest(self.provider, history, client_of(request))
        except Exception as error:
            yield _reason(error), "", "", gr.update(visible=False), ""
            return
        inspection, names, tokens = inspected
        key = f"{_answer_id(history)}.{secrets.token_urlsafe(12)}"
        self._cache.put(key, inspected)  # the key is random, and sent to this page only
        self._shown.put(request.session_hash, key)
        grounded = inspection.grounding is not None
        selected = colour if grounded and colour == "grounding" else "influence"
        yield (
            "",
            inside_charts.gates_html(inspection, names),
            inside_charts.answer_html(inspection, key, tokens),
            gr.update(value=selected, visible=grounded),
            inside_charts.message_html(texts.CLICK_A_TOKEN),
        )

    def show_token(self, history: History, event: gr.EventData, request: gr.Request) -> Any:
        """The numbers and the prompt map of a token that was clicked."""
        index, key = _event_value(event, "index"), _event_value(event, "key")
        key = key if isinstance(key, str) else ""
        if key and key.partition(".")[0] != _answer_id(history):
            return gr.skip()
        try:
            inspected = self._cache.get(key) or inspect_newest(self.provider, history, client_of(request))
        except Exception as error:
            return _reason(error)
        if key and self._shown.get(request.session_hash) not in (None, key):
            return gr.skip()
        if type(index) is not int or not 0 <= index < len(inspected.inspection.tokens):
            return gr.skip()
        return inside_charts.token_html(inspected.inspection, index, inspected.names)


def inspect_newest(provider: EngineProvider, history: History, client: Client) -> InspectedAnswer:
    """Raises AdapterError with the reason why the newest answer cannot be inspected."""
    request, _, record = newest_request(provider, history, client)
    engine = provider.engine()
    assert engine is not None
    inspection = engine.inspect(request, record.token_ids[:MAX_TOKENS])
    names = [texts.part(name, strength) for name, strength in request.parts]
    return InspectedAnswer(inspection, names, len(record.token_ids))


def newest_request(
    provider: EngineProvider, history: History, client: Client
) -> tuple[GenerationRequest, str, AnswerRecord]:
    """The request that the newest answer was given, its text and its record. Raises as `inspect_newest`."""
    answered, record = _recorded_answer(history)
    if provider.engine() is None:
        raise BadInput(provider.status().text)
    image = open_upload(answered.picture) if record.picture and answered.picture else None
    newest = max(i for i, entry in enumerate(history) if conversation.record_of(entry))
    request = build_request(answered.messages, record.settings, image, client)
    return request, conversation.text_of(history[newest - 1]), record


def parse_gates(value: Any) -> Gates:
    """Factors as the browser sends them. Raises BadInput for anything else."""
    try:
        gates = tuple((layer, head, float(factor)) for layer, head, factor in value)
    except (TypeError, ValueError):
        raise BadInput(page_texts.WRONG_VALUE) from None
    if any(type(i) is not int for gate in gates for i in gate[:2]):
        raise BadInput(page_texts.WRONG_VALUE)
    return gates


def _rewritten(before: str, after: str) -> str:
    """The answer with the words marked that the one before has not."""
    marked, _, _ = mark_differences(before, after)
    said = html.escape(texts.REWRITTEN)
    return f'<div class="rewritten"><p>{said}</p><div class="answer-text">{marked}</div></div>'


def _event_value(event: gr.EventData, name: str) -> Any:
    """A value that the browser sent with an event; None where it sent anything else."""
    try:
        return getattr(event, name)
    except (AttributeError, TypeError, LookupError):
        return None


def _answer_id(history: History) -> str:
    """Tells the newest recorded answer from all others."""
    return hashlib.sha256(repr(conversation.last_recorded_answer(history)).encode()).hexdigest()[:16]


def _recorded_answer(history: History) -> tuple[RecordedAnswer, AnswerRecord]:
    """The newest answer and its record. Raises BadInput if it has none, or no adapter."""
    lines = [entry for entry in history if conversation.kind(entry) == conversation.STATS]
    if not lines and not any(message.role == "assistant" for message in conversation.to_messages(history)):
        raise BadInput(texts.NO_ANSWER)
    answered = conversation.last_recorded_answer(history)
    record = None if answered is None else conversation.parse_record(answered.record)
    # An older answer may have a record where the newest has none.
    if answered is None or record is None or not conversation.record_of(lines[-1]):
        raise BadInput(texts.NO_RECORD)
    if not record.settings.adapters:
        raise BadInput(texts.NO_GATES)
    if record.picture and answered.picture is None:
        raise BadInput(texts.NO_PICTURE)
    return answered, record


def _reason(error: Exception) -> str:
    """Why there is nothing to show, in place of a chart."""
    if isinstance(error, AdapterError):
        return inside_charts.message_html(browser_text(error))
    log.error("an answer could not be inspected", exc_info=error)
    return inside_charts.message_html(page_texts.FAILED)


def _message_only(text: str) -> Updates:
    return inside_charts.message_html(text), "", "", gr.update(visible=False), ""


def inside_panel(provider: EngineProvider, chat: gr.Chatbot, conversations: Conversations) -> None:
    """Lays the panel out in the current Blocks and connects it."""
    # Outside of the accordion, because its content does not exist before it is first opened.
    conversation_hash = gr.Textbox(visible="hidden", show_label=False, elem_id="inside-request")
    # Closed it is not seen: the button beside X-ray opens it.
    with gr.Accordion(texts.INSIDE, open=False, elem_id="inside") as accordion:
        message = gr.HTML(inside_charts.message_html(texts.INSPECTING), elem_id="inside-message")
        with gr.Row(elem_id="inside-maps"):
            with gr.Column(scale=7, min_width=300):
                colour = gr.Radio(
                    COLOURS, value="influence", label=texts.COLOUR_OF, elem_id="inside-colour", visible=False
                )
                answer = gr.HTML("", js_on_load=_CHARTS_JS, apply_default_css=False, elem_id="inside-answer")
                token = gr.HTML("", js_on_load=_CHARTS_JS, apply_default_css=False, elem_id="inside-token")
            with gr.Column(scale=4, min_width=300):
                with gr.Column(elem_id="inside-play"):
                    gr.Radio(texts.BRUSHES, value=0, label=texts.BRUSH, elem_id="inside-brush")
                    rewritten = gr.HTML("", elem_id="inside-rewritten")
                gates = gr.HTML("", js_on_load=_CHARTS_JS, apply_default_css=False, elem_id="inside-gates")
    events = InsideEvents(provider)

    def show(colour: str, request: gr.Request) -> Iterator[Updates]:
        yield from events.show(conversations.history(request.session_hash), colour, request)

    def show_token(event: gr.EventData, request: gr.Request) -> Any:
        return events.show_token(conversations.history(request.session_hash), event, request)

    def play(event: gr.EventData, request: gr.Request) -> Iterator[str]:
        yield from events.play(conversations.history(request.session_hash), event, request)

    in_browser = {"inputs": [chat, conversation_hash], "outputs": conversation_hash, **UNQUEUED}
    accordion.expand(None, js=_HASH_JS % "false", **in_browser)
    chat.change(None, js=_HASH_JS % _IS_CLOSED_JS, **in_browser)
    on_server = {"show_progress": "hidden", **MODEL, **PRIVATE}
    conversation_hash.change(show, colour, [message, gates, answer, colour, token], **on_server)
    answer.token(show_token, None, token, **on_server)
    gates.play(play, None, rewritten, trigger_mode="always_last", **on_server)
    conversation_hash.change(None, None, rewritten, js="() => ''", **UNQUEUED)
