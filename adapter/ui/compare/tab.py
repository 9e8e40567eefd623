"""The compare tab: one message answered by one adapter at five strengths, or by two to four adapters side by side.

All are rows of one batch with one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from adapter.base.template import Message
from adapter.errors import BadInput
from adapter.serve.settings import BASE_ONLY, MAX_SYSTEM, Settings, slider
from adapter.server.generation import AdapterCatalog, EngineProvider, client_of
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import build_request, uses_picture, with_seed
from adapter.ui.chat.events import read_message
from adapter.ui.chat.tab import TabParts, message_box, sampling_inputs
from adapter.ui.compare import filmstrip
from adapter.ui.comparison import Pane, answer_together, mark
from adapter.ui.images import BadPicture, open_upload
from adapter.ui.session import Change, Conversations, Forgotten, StillAnswering
from adapter.ui.status import MODEL, PRIVATE, UNQUEUED, Picker
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_toasts, toast

if TYPE_CHECKING:
    from adapter.serve.request import Client, GenerationRequest

MIN_PANES, MAX_PANES = 2, 4
STRENGTHS, SIDE_BY_SIDE = "strengths", "side by side"  # values of the choice between views
# Updates of the message box and the film; then of each pane's answer.
Updates = tuple[Any, ...]


@dataclass(frozen=True)
class Question:
    """What all panes are asked. film: whether the panes are the frames of a film."""

    panes: list[Pane]
    messages: tuple[Message, ...]
    picture: str | None
    film: bool


class CompareEvents:
    """The event handlers of the tab. Thread-safe; each session has at most one comparison at a time.

    conversations: of the chat.
    """

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog, conversations: Conversations) -> None:
        self.provider = provider
        self.catalog = catalog
        self.conversations = conversations
        self._comparisons = Conversations()  # without messages

    def send(
        self,
        message: dict[str, Any] | None,
        view: str,
        count: int,
        request: gr.Request,
        **values: Any,
    ) -> Iterator[Updates]:
        """values: sampling settings, `film_adapter`, and `adapter_0`, `strength_0`, `words_0` and so on."""

        def read() -> Question | None:
            if (content := read_message(message)) is None:
                return None
            film = view == STRENGTHS
            panes = _frames(values) if film else _panes(count, values)
            return Question(panes, (Message("user", content[0]),), content[1], film)

        yield from self._compare(read, request, message)

    def film_of_chat(self, event: gr.SelectData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Writes the chat's newest answer as a film, if the button that was pressed is the one for it.

        Updates of the tabs, the view and the film's adapter, then of a comparison.
        """
        skip = gr.skip()
        answered = conversation.last_recorded_answer(self.conversations.history(request.session_hash))
        if event.value != conversation.FILM or answered is None:
            yield (skip,) * (3 + 2 + MAX_PANES)
            return
        record = answered.record
        picture = answered.picture if record.picture else None
        message = {"text": answered.messages[-1].text, "files": [picture] if picture else []}

        def read() -> Question:
            return Question(filmstrip.frames_of(record.settings), answered.messages, picture, film=True)

        yield gr.Tabs(selected="compare"), STRENGTHS, record.settings.adapter, *_updates(gr.update(value=message))
        for update in self._compare(read, request, message):
            yield skip, skip, skip, *update

    def _compare(
        self,
        read: Callable[[], Question | None],
        request: gr.Request,
        message: dict[str, Any] | None,
    ) -> Iterator[Updates]:
        """read: returns what is asked, None for nothing; message: in the box."""
        session = request.session_hash
        try:
            if session and not self._comparisons.shows(session, session):
                self._comparisons.open(session, session, [])
            with self._comparisons.change(session, session or "") as change:
                yield from self._answer(change, read, client_of(request), message)
        except (StillAnswering, Forgotten) as error:
            toast(error)
            yield _updates(gr.skip())

    def _answer(
        self,
        change: Change,
        read: Callable[[], Question | None],
        client: Client,
        message: dict[str, Any] | None,
    ) -> Iterator[Updates]:
        shown = None  # as long as nothing was answered: a message that is refused at once changes no pane
        box: Any = gr.update(**theme.SHOW_SUBMIT_BUTTON)
        with errors_as_toasts("a comparison"):
            if (question := read()) is None:
                yield _updates(gr.skip())
                return
            # Sent with every update, because Gradio may drop one of two quick updates.
            answering = gr.update(**theme.SHOW_STOP_BUTTON)
            yield _updates(answering)

            def requests() -> list[GenerationRequest]:
                nonlocal box
                try:
                    return self._requests(question, client)
                except BadPicture:
                    box = gr.update(value={**(message or {}), "files": []}, **theme.SHOW_SUBMIT_BUTTON)
                    raise

            panes, whole = question.panes, question.film
            for _ in answer_together(self.provider, change, panes, requests, all_or_none=whole):
                yield _updates(answering, shown := question)
            if question.film:
                filmstrip.mark_frames(panes)
            elif not change.stopped:
                for pane in panes[1:]:
                    mark(pane, panes[0], texts.IN_PANE_1)
        change.ended = True
        yield _updates(box, shown)

    def stop(self, request: gr.Request) -> Any:
        """An update of the message box, where the page has missed the end."""
        with suppress(Forgotten):
            if self._comparisons.stop(request.session_hash, request.session_hash or "") is None:
                return gr.skip()
        return gr.update(**theme.SHOW_SUBMIT_BUTTON)

    def _requests(self, question: Question, client: Client) -> list[GenerationRequest]:
        """One request for each pane, all with the same seed; visual adapters get the picture."""
        image = None if question.picture is None else open_upload(question.picture)
        visual = [uses_picture(self.catalog, pane.settings) for pane in question.panes]
        if image is not None and not any(visual):
            raise BadInput(texts.NO_PANE_SEES)
        seed = with_seed(question.panes[0].settings).seed
        requests = []
        for pane, is_visual in zip(question.panes, visual, strict=True):
            pane.note_unused_picture(image is not None, is_visual)
            pane.settings = pane.settings.replace(seed=seed)
            requests.append(build_request(question.messages, pane.settings, image if is_visual else None, client))
        return requests


def _frames(values: Mapping[str, Any]) -> list[Pane]:
    return filmstrip.frames_of(Settings.checked({**values, "adapter": values["film_adapter"]}))


def _panes(count: int, values: Mapping[str, Any]) -> list[Pane]:
    if count not in range(MIN_PANES, MAX_PANES + 1):
        raise BadInput(texts.wrong_panes(MIN_PANES, MAX_PANES, count))
    panes = []
    for i in range(count):
        name, strength, words = (values[f"{part}_{i}"] for part in ("adapter", "strength", "words"))
        own = {"adapter": name, "strength": strength, "system": "" if name else words}
        panes.append(
            Pane(
                Settings.checked({**values, **own}),
                [texts.told(theme.ellipsize(words, 60))] if own["system"] else [],
            )
        )
    return panes


def _updates(box: Any, question: Question | None = None) -> Updates:
    """question: whose panes are shown; of the panes the rest are emptied. None changes neither panes nor film."""
    skip = gr.skip()
    if question is None or question.film:
        film = skip if question is None else filmstrip.film_html(question.panes)
        return box, film, *[skip] * MAX_PANES
    empty = theme.pane_html(texts.EMPTY_PANE, muted=True)
    rest = [empty] * (MAX_PANES - len(question.panes))
    return box, skip, *[pane.to_html() for pane in question.panes], *rest


class PaneParts(NamedTuple):
    """The components of one pane. words: that the frozen base is told, which has no strength."""

    name: gr.Dropdown
    strength: gr.Slider
    words: gr.Textbox
    answer: gr.HTML


def _lay_out_pane(index: int, choices: list[tuple[str, str]], first: str) -> PaneParts:
    with gr.Column(min_width=250, elem_classes="pane"):
        name = gr.Dropdown(choices, value=first, label=texts.pane(index + 1), filterable=False)
        label = texts.pane_strength(index + 1)
        strength = gr.Slider(**slider("strength"), label=label, visible=bool(first))
        words = gr.Textbox(
            label=texts.pane_words(index + 1), placeholder=texts.WORDS_HINT, max_length=MAX_SYSTEM, max_lines=4
        )
        answer = gr.HTML(theme.pane_html(texts.EMPTY_PANE, muted=True), elem_classes="answer")
    return PaneParts(name, strength, words, answer)


def _of_pane(name: str) -> tuple[Any, Any]:
    """An adapter has a strength; the frozen base may be told in words."""
    return gr.update(visible=bool(name)), gr.update(visible=not name)


def compare_tab(provider: EngineProvider, catalog: AdapterCatalog, tabs: gr.Tabs, chat: TabParts) -> TabParts:
    """Lays the comparison out and connects it. A button below an answer of `chat` opens it."""
    assert chat.chat is not None and chat.conversations is not None
    choices = theme.short_choices(theme.picker_choices(catalog), texts.FROZEN_BASE)
    ranked = theme.preferred_first([name for _, name in choices if name]) or [BASE_ONLY]
    with gr.Column(elem_id="compare"):
        gr.Markdown(texts.COMPARE_HINT, elem_id="hint")
        with gr.Row(elem_id="ask", equal_height=True):
            box = message_box(texts.COMPARE_PLACEHOLDER, "message")
            view = gr.Radio(texts.VIEWS, value=STRENGTHS, label=texts.VIEW, elem_id="view")
        with gr.Row(elem_id="strengths"):
            label = texts.FILM_ADAPTER
            film_adapter = gr.Dropdown(choices, value=ranked[0], label=label, filterable=False, min_width=200)
            with gr.Column(scale=4):
                film = filmstrip.filmstrip("film")
        with gr.Column(elem_id="side-by-side"):  # page.css shows one of the two, and so many panes
            numbers = list(range(MIN_PANES, MAX_PANES + 1))
            count = gr.Radio(numbers, value=MIN_PANES, label=texts.PANES, elem_id="count")
            with gr.Row(elem_id="panes"):
                first = [BASE_ONLY, *ranked, *[ranked[-1]] * MAX_PANES]
                panes = [_lay_out_pane(i, choices, first[i]) for i in range(MAX_PANES)]
        with gr.Accordion(texts.SAMPLING, open=False):
            inputs = {"film_adapter": film_adapter, **sampling_inputs()}
    for i, pane in enumerate(panes):
        inputs |= {f"adapter_{i}": pane.name, f"strength_{i}": pane.strength, f"words_{i}": pane.words}
    for pane in panes:  # one listener each: while choices change, the others' values may be of before
        pane.name.change(_of_pane, pane.name, [pane.strength, pane.words], **UNQUEUED)
    events = CompareEvents(provider, catalog, chat.conversations)
    shown = [box, film, *(pane.answer for pane in panes)]
    options = {"show_progress": "hidden", **MODEL, **PRIVATE}
    box.submit(events.send, [box, view, count], shown, inputs_kwargs=inputs, **options)
    chat.chat.option_select(events.film_of_chat, None, [tabs, view, film_adapter, *shown], **options)
    box.stop(events.stop, None, box, **UNQUEUED)
    pickers = [Picker(part, texts.FROZEN_BASE) for part in (*(pane.name for pane in panes), film_adapter)]
    return TabParts(pickers, box)
