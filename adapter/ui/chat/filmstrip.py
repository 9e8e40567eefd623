"""The filmstrip: one answer at five strengths of its adapter, written in one batch, and a slider between them.

All five are in the page; the slider shows another of them, and the words that differ from the next lower strength
glow. Knows the newest answer of the chat, which a button below it shows so.
"""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import Settings
from adapter.server.generation import AdapterCatalog, EngineProvider, client_of
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import build_request, uses_picture, with_seed
from adapter.ui.chat.conversation_store import refuse
from adapter.ui.comparison import Pane, answer_together, mark
from adapter.ui.conversation import History
from adapter.ui.conversation_states import Change, ConversationStates, StaleEvent
from adapter.ui.images import open_upload
from adapter.ui.status import MODEL, PRIVATE, UNQUEUED, toast
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from adapter.serve.request import Client, GenerationRequest

log = logging.getLogger(__name__)

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
# page.css shows the frame of this number.
_SHOW_JS = "strength => { document.querySelector('#%s').dataset.frame = Math.round(2 * strength); }"
CLOSE_JS = "() => document.querySelector('#film-close')?.click()"
# Updates of the sheet over the chat, of its film, and of the film's number.
Updates = tuple[Any, Any, Any]


def frames_of(settings: Settings) -> list[Pane]:
    """An empty frame for each strength. Raises BadInput for the frozen base."""
    if not settings.adapter:
        raise BadInput(texts.FILM_NEEDS_ADAPTER)
    settings = with_seed(settings)
    return [Pane(settings.replace(strength=strength)) for strength in STRENGTHS]


def mark_frames(frames: Sequence[Pane]) -> None:
    for lower, frame in pairwise(frames):
        mark(frame, lower, texts.at_strength(lower.settings.strength))


def film_html(frames: Sequence[Pane], caption: str = "") -> str:
    shown = f"<p>{html.escape(caption)}</p>" if caption else ""
    parts = "".join(f'<div class="frame">{frame.to_html()}</div>' for frame in frames)
    return f'{shown}<div class="frames">{parts}</div>'


def recorded_film() -> str:
    """The film of an example: what the shipped base and adapter once answered.

    Recorded by `python -m tests.ui.chat.test_filmstrip_example`, which checks it as well.
    """
    if not theme.FILM_EXAMPLE.is_file():
        return ""
    example = json.loads(theme.FILM_EXAMPLE.read_text(encoding="utf-8"))
    frames = frames_of(Settings.checked(example["settings"]))
    for frame, answer in zip(frames, example["answers"], strict=True):
        frame.text, frame.tokens, frame.notes = answer["text"], answer["tokens"], answer["notes"]
    mark_frames(frames)
    return film_html(frames, texts.film_example(example["message"], example["settings"]["adapter"]))


def filmstrip(elem_id: str, value: str = "") -> gr.HTML:
    """Lays out a slider and the film that it moves through."""
    with gr.Column(elem_id=elem_id, elem_classes="filmstrip"):
        slider = gr.Slider(
            *(STRENGTHS[0], STRENGTHS[-1], 1.0),
            step=0.5,
            label=texts.SHOWN_STRENGTH,
            info=texts.STRENGTH_INFO,
            buttons=[],
        )
        film = gr.HTML(value, elem_classes="answer")
    slider.change(None, slider, None, js=_SHOW_JS % elem_id, **UNQUEUED)
    return film


class FilmEvents:
    """The event handlers of the film over the chat. Thread-safe. Films have numbers as comparisons have."""

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog) -> None:
        self.provider = provider
        self.catalog = catalog
        self._states = ConversationStates()

    def show(self, history: History, number: str, event: gr.SelectData, request: gr.Request) -> Iterator[Updates]:
        """Writes the newest answer at all strengths, if the button that was pressed is the one for it."""
        if event.value != conversation.FILM:
            yield gr.update(visible=False), gr.skip(), gr.skip()
            return
        try:
            with self._states.change(request.session_hash, number) as change:
                yield from self._show(change, history, client_of(request))
        except StaleEvent as error:
            yield gr.skip(), gr.skip(), refuse(error)

    def _show(self, change: Change, history: History, client: Client) -> Iterator[Updates]:
        end: tuple[Any, Any] = gr.update(visible=False), gr.skip()
        try:
            answered = conversation.last_recorded_answer(history)
            settings = answered and conversation.parse_settings(answered.record)
            if answered is None or settings is None:
                raise BadInput(texts.NOTHING_TO_FILM)
            frames = frames_of(settings)

            def requests() -> list[GenerationRequest]:
                picture = answered.picture
                image = open_upload(picture) if picture and uses_picture(self.catalog, settings) else None
                return [build_request(answered.messages, frame.settings, image, client) for frame in frames]

            for _ in answer_together(self.provider, change, frames, requests, all_or_none=True):
                yield gr.update(visible=not change.stopped), film_html(frames), str(change.number)
            mark_frames(frames)
            end = gr.update(visible=not change.stopped), film_html(frames)
        except AdapterError as error:
            toast(error)
        except Exception:
            log.exception("a film failed")
            toast(AdapterError(texts.FAILED))
        yield *end, str(self._states.finish(change))

    def close(self, number: str, request: gr.Request) -> tuple[Any, Any]:
        """Ends a film and hides the sheet: updates of it and the number."""
        ended = self._states.stop(request.session_hash, number)
        return gr.update(visible=False), gr.skip() if ended is None else str(ended)


def film_sheet(provider: EngineProvider, catalog: AdapterCatalog, chat: gr.Chatbot) -> None:
    """Lays the film of the newest answer out over `chat` and connects it."""
    events, number = FilmEvents(provider, catalog), gr.Textbox("0", visible=False)
    with gr.Column(visible=False, elem_id="film-sheet") as sheet:
        close = gr.Button(texts.CLOSE_FILM, size="sm", elem_id="film-close")
        film = filmstrip("chat-film")
    outputs = [sheet, film, number]
    chat.option_select(events.show, [chat, number], outputs, show_progress="hidden", **MODEL, **PRIVATE)
    close.click(events.close, number, [sheet, number], **UNQUEUED)
