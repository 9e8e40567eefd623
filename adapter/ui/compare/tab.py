"""The compare tab: one message answered by one adapter at five strengths, or by several adapters side by side."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import gradio as gr

from adapter.base.template import Message
from adapter.errors import BadInput
from adapter.serve.request import Client, GenerationRequest
from adapter.serve.settings import BASE_ONLY, MAX_SYSTEM, Settings, slider
from adapter.server.generation import AdapterCatalog, EngineProvider, client_of, wait_for
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import build_request, uses_picture, with_seed
from adapter.ui.chat.events import read_message
from adapter.ui.chat.tab import TabParts, message_box, sampling_inputs
from adapter.ui.comparison import Pane, answer_together, mark
from adapter.ui.images import BadPicture, open_upload
from adapter.ui.session import Conversations, Forgotten
from adapter.ui.status import FRAME_SECONDS, MODEL, NEWEST, PRIVATE, UNQUEUED, Picker
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_toasts

MIN_PANES, MAX_PANES = 2, 4
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)  # of a film: one answer as the adapter gets stronger
FILM, SIDE_BY_SIDE = "strengths", "side by side"  # values of the choice between views
Updates = tuple[Any, Any]  # of the message box and the answers
# page.css shows the frame of this number.
_SHOW_JS = """element.dataset.frame = 2;
document.addEventListener('input', ({target}) => {
  const frame = Math.min(4, Math.max(0, Math.round(2 * target.value)));
  if (target.closest?.('#film-strength')) element.dataset.frame = frame;
});"""


class ComparedQuestion(NamedTuple):
    """What all panes are asked. film: whether the panes are the frames of a film."""

    panes: list[Pane]
    messages: tuple[Message, ...]
    picture: str | None
    film: bool

    def to_html(self) -> str:
        panes = "".join(f"<div>{pane.to_html()}</div>" for pane in self.panes)
        return f'<div class="{"strip" if self.film else "panes"}">{panes}</div>'


def frames_of(settings: Settings) -> list[Pane]:
    """An empty frame for each strength. Raises BadInput for the frozen base."""
    if not settings.adapter:
        raise BadInput(texts.FILM_NEEDS_ADAPTER)
    if settings.mix and settings.answerer == settings.mix:  # the second one alone has answered
        first = {"adapter": settings.mix, "strength": settings.mix_strength}
        settings = settings.replace(**first, mix=settings.adapter, mix_strength=0.0)
    second = settings.mix_strength / (settings.strength or 1)  # a mix gets stronger as a whole
    return [Pane(settings.replace(strength=s, mix_strength=min(2.0, s * second))) for s in STRENGTHS]


class CompareEvents:
    """Event handlers. Thread-safe; a session has one comparison at a time. conversations: of the chat."""

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog, conversations: Conversations) -> None:
        self.provider, self.catalog, self.conversations = provider, catalog, conversations
        self._comparisons = Conversations()  # without messages

    def send(
        self, message: dict[str, Any] | None, view: str, count: int, request: gr.Request, **values: Any
    ) -> Iterator[Updates]:
        """values: sampling settings, `film_adapter`, and `adapter_0`, `strength_0`, `words_0` and so on."""

        def read() -> ComparedQuestion | None:
            if (content := read_message(message)) is None:
                return None
            film = Settings.checked({**values, "adapter": values["film_adapter"]}) if view == FILM else None
            panes = _panes(count, values) if film is None else frames_of(film)
            return ComparedQuestion(panes, (Message("user", content[0]),), content[1], film is not None)

        yield from self._compare(read, request, message)

    def film_of_chat(self, id: str, event: gr.SelectData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Writes the chat's newest answer as a film, if the button that was pressed is the one for it. Updates of
        the tabs, the view and the film's adapter, then of a comparison.
        """
        skip = gr.skip()
        answered = conversation.newest_recorded_answer(self.conversations.history(request.session_hash, id))
        if event.value != conversation.FILM or answered is None:
            yield (skip,) * 5
            return
        settings, picture = answered.record.settings, answered.picture if answered.record.picture else None
        # A question that follows others is not put into the box: asked there alone, it would be another.
        alone = {"text": answered.messages[0].text, "files": [picture] if picture else []}
        message = alone if len(answered.messages) == 1 else None
        asked = {"value": message} if message else {}
        adapter = name if (name := settings.answerer or settings.adapter) in self.catalog.names() else skip
        yield gr.Tabs(selected="compare"), skip, skip, skip, skip
        time.sleep(FRAME_SECONDS)
        updates = self._compare(
            lambda: ComparedQuestion(frames_of(settings), answered.messages, picture, film=True), request, message
        )
        for number, (box, shown) in enumerate(updates):
            begins = not number and box == theme.STOP  # or another comparison is running, whose question stays
            yield skip, *((FILM, adapter, {**box, **asked}) if begins else (skip, skip, box)), shown

    def _compare(
        self, read: Callable[[], ComparedQuestion | None], request: gr.Request, message: dict[str, Any] | None
    ) -> Iterator[Updates]:
        """read: returns what is asked, None for nothing; message: in the box."""
        session, shown = request.session_hash or "", gr.skip()
        if self._comparisons.shows(session, ""):  # none yet
            self._comparisons.open(session, session, [])
        with errors_as_toasts("a comparison"), self._comparisons.change(session, session) as change:
            box = theme.SUBMIT
            with errors_as_toasts("a comparison"):  # one that is refused at once leaves what is shown
                if (question := read()) is None:
                    yield gr.skip(), gr.skip()
                    return
                panes = question.panes
                yield theme.STOP, shown  # with every update: Gradio may drop one of two quick updates
                for status in wait_for(self.provider):
                    said = texts.STOPPED_BEFORE_TEXT if change.stopped else texts.waiting_for_model(status)
                    for pane in panes:
                        pane.message = said
                    yield theme.STOP, question.to_html()
                    shown = ""  # not the waiting, if it comes to nothing
                    if change.stopped:
                        break
                engine = self.provider.engine()
                if engine is not None and not change.stopped:
                    try:
                        requests = self._requests(question, client_of(request))
                    except BadPicture:
                        box = {**theme.SUBMIT, **({"value": {**message, "files": []}} if message else {})}
                        raise
                    for _ in answer_together(engine, change, panes, requests):
                        yield theme.STOP, (shown := question.to_html())
                if question.film:
                    for lower, frame in pairwise(panes):
                        mark(frame, lower, texts.at_strength(lower.settings.strength))
                elif not change.stopped:
                    for pane in panes[1:]:
                        mark(pane, panes[0], texts.IN_PANE_1)
                shown = question.to_html()
            change.ended = True
            yield box, shown
            return
        yield gr.skip(), gr.skip()

    def stop(self, request: gr.Request) -> Any:
        """An update of the message box, where the page has missed the end."""
        with suppress(Forgotten):
            if self._comparisons.stop(request.session_hash, request.session_hash or "") is None:
                return gr.skip()
        return theme.SUBMIT

    def _requests(self, question: ComparedQuestion, client: Client) -> list[GenerationRequest]:
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


def _panes(count: int, values: Mapping[str, Any]) -> list[Pane]:
    panes = []
    for i in range(count):
        name, strength, words = (values[f"{part}_{i}"] for part in ("adapter", "strength", "words"))
        told = "" if name else (words or "").strip()
        settings = Settings.checked({**values, "adapter": name, "strength": strength, "system": told})
        panes.append(Pane(settings, [texts.told(theme.ellipsize(told, 60))] if told else []))
    return panes


def _lay_out_pane(number: int, choices: list[tuple[str, str]], first: str) -> dict[str, Any]:
    """An adapter has a strength; the frozen base may be told in words."""
    with gr.Column(min_width=220, elem_classes="pane"):
        return {
            "adapter": gr.Dropdown(choices, value=first, label=texts.pane(number), filterable=False),
            "strength": gr.Slider(**slider("strength"), label=texts.pane_strength(number), visible=bool(first)),
            "words": gr.Textbox(
                label=texts.pane_words(number),
                placeholder=texts.WORDS_HINT,
                max_length=MAX_SYSTEM,
                max_lines=4,
                visible=not first,
            ),
        }


def compare_tab(provider: EngineProvider, catalog: AdapterCatalog, tabs: gr.Tabs, chat: TabParts) -> list[Picker]:
    """Lays the comparison out and connects it. A button below an answer of `chat` opens it."""
    choices = theme.short_choices(theme.picker_choices(catalog), texts.FROZEN_BASE)
    names = [name for _, name in choices if name]
    ranked = sorted(names, key=lambda name: name != theme.FIRST_ADAPTER) or [BASE_ONLY]
    with gr.Column(elem_id="compare"):
        gr.Markdown(texts.COMPARE_HINT, elem_classes="hint")
        with gr.Row(elem_id="ask", equal_height=True):
            box = message_box(texts.COMPARE_PLACEHOLDER, "message")
            view = gr.Radio(texts.VIEWS, value=FILM if names else SIDE_BY_SIDE, label=texts.VIEW, elem_id="view")
        with gr.Row(elem_id="strengths"):  # page.css shows one of the two, and so many panes
            film = gr.Dropdown(choices, value=ranked[0], label=texts.FILM_ADAPTER, filterable=False, min_width=200)
            shown = {"label": texts.SHOWN_STRENGTH, "info": texts.STRENGTH_INFO, "elem_id": "film-strength"}
            gr.Slider(*STRENGTHS[::4], 1.0, step=0.5, buttons=[], interactive=True, scale=4, **shown)
        with gr.Column(elem_id="side-by-side"):
            count = gr.Radio(range(MIN_PANES, MAX_PANES + 1), value=MIN_PANES, label=texts.PANES, elem_id="count")
            with gr.Row(elem_id="panes"):
                first = [BASE_ONLY, *ranked, *[ranked[-1]] * MAX_PANES]
                panes = [_lay_out_pane(i + 1, choices, first[i]) for i in range(MAX_PANES)]
        answers = gr.HTML(elem_id="answers", js_on_load=_SHOW_JS)
        with gr.Accordion(texts.SAMPLING, open=False):
            inputs = {"film_adapter": film, **sampling_inputs()}
    for i, pane in enumerate(panes):
        inputs |= {f"{part}_{i}": component for part, component in pane.items()}
    pickers = [pane["adapter"] for pane in panes]
    of_panes = [pane[part] for pane in panes for part in ("strength", "words")]

    def show_parts(*names: str) -> list[Any]:
        return [gr.update(visible=shown) for name in names for shown in (bool(name), not name)]

    gr.on([picker.change for picker in pickers], show_parts, pickers, of_panes, **NEWEST)
    events = CompareEvents(provider, catalog, chat.store.conversations)
    more = {"show_progress": "hidden", "trigger_mode": "multiple", **MODEL, **PRIVATE}
    box.submit(events.send, [box, view, count], [box, answers], inputs_kwargs=inputs, **more)
    chat.chat.option_select(events.film_of_chat, chat.store.id, [tabs, view, film, box, answers], **more)
    box.stop(events.stop, None, box, **UNQUEUED)
    return [Picker(part, texts.FROZEN_BASE) for part in (*pickers, film)]
