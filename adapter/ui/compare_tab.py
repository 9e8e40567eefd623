"""The compare tab: one message to two to four adapters, answered as rows of one batch with one seed.

Its components, its event handlers, and the marking of words that differ.
"""

from __future__ import annotations

import difflib
import html
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import BASE_ONLY, Settings, slider
from adapter.server.generation import (
    AdapterCatalog,
    EngineProvider,
    browser_text,
    client_of,
    wait_for,
)
from adapter.ui import theme
from adapter.ui.answer_stream import (
    AnswerProgress,
    build_request,
    uses_picture,
    with_seed,
)
from adapter.ui.chat_events import read_message
from adapter.ui.chat_tab import SettingsInputs, TabParts, message_box, sampling_inputs
from adapter.ui.conversation_states import Change, ConversationStates, StaleEvent
from adapter.ui.conversation_store import refuse
from adapter.ui.images import BadPicture, open_upload
from adapter.ui.json_table import differing_fields, read_object, table_html
from adapter.ui.status import MODEL, PRIVATE, REDRAW_SECONDS, UNQUEUED, Picker, toast
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from adapter.serve.request import Client, GenerationEvent, GenerationRequest

log = logging.getLogger(__name__)

MIN_PANES, MAX_PANES = 2, 4
MAX_EQUAL_PAIRS = 100_000  # of a word here and a word there; English of 1,500 words has 25,000
# Updates of the message box, of the comparison's number, and of each pane's answer.
Updates = tuple[Any, ...]


@dataclass
class Pane(AnswerProgress):
    """The answer of one pane."""

    message: str = "…"  # the page's own, shown as long as there is no text
    marked_html: str | None = None  # the text with its differences marked
    failed: bool = False

    def add(self, event: GenerationEvent | AdapterError) -> None:
        if isinstance(event, AdapterError):
            self.failed = True
            self.message = browser_text(event)
            self.notes.append(self.message)
        elif not event.is_output:
            self.message = texts.before_answer(event.position, event.progress)
        else:
            super().add(event)
            if event.finish_reason:
                cancelled = event.finish_reason == "cancelled"
                self.message = texts.STOPPED_BEFORE_TEXT if cancelled else texts.EMPTY_ANSWER

    def to_html(self) -> str:
        line = self.stats_line() if self.tokens else ""
        if not self.text.strip():
            return theme.pane_html(html.escape(self.message), line, muted=True)
        body = table_html(self.text) or html.escape(self.text.strip())
        return theme.pane_html(body if self.marked_html is None else self.marked_html, line)


class CompareEvents:
    """The event handlers of the tab. Thread-safe; each session has at most one comparison at a time.

    Comparisons have numbers as the conversation's states have, so that Stop ends the one that its visitor saw.
    """

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog) -> None:
        self.provider = provider
        self.catalog = catalog
        self._states = ConversationStates()

    def send(
        self, message: dict[str, Any] | None, number: str, count: int, request: gr.Request, **values: Any
    ) -> Iterator[Updates]:
        """values: sampling settings by name, and `adapter_0`, `strength_0` and so on of the panes."""
        try:
            with self._states.change(request.session_hash, number) as change:
                yield from self._compare(change, message, count, request, values)
        except StaleEvent as error:
            yield _updates(gr.skip(), refuse(error))

    def _compare(
        self,
        change: Change,
        message: dict[str, Any] | None,
        count: int,
        request: gr.Request,
        values: dict[str, Any],
    ) -> Iterator[Updates]:
        # None as long as nothing was answered: a message that is refused at once does not change the panes.
        shown: list[Pane] | None = None
        box: Any = gr.update(**theme.SHOW_SUBMIT_BUTTON)
        try:
            content = read_message(message)
            if content is None:
                yield _updates(gr.skip())
                return
            text, picture = content
            panes = _panes(count, values)
            # Sent with every update, because Gradio may drop one of two quick updates.
            answering = gr.update(**theme.SHOW_STOP_BUTTON), str(change.number)
            yield _updates(*answering)
            for _ in self._answer(change, panes, text, picture, client_of(request)):
                shown = []
                yield _updates(*answering, panes)
            shown = panes
        except AdapterError as error:
            toast(error)
            if isinstance(error, BadPicture):
                box = gr.update(value={**(message or {}), "files": []}, **theme.SHOW_SUBMIT_BUTTON)
        except Exception:
            log.exception("a comparison failed")
            toast(AdapterError(texts.FAILED))
        yield _updates(box, str(self._states.finish(change)), shown)

    def stop(self, number: str, request: gr.Request) -> tuple[Any, Any]:
        """Updates of the message box and the number."""
        ended = self._states.stop(request.session_hash, number)
        return (gr.skip(), gr.skip()) if ended is None else (gr.update(**theme.SHOW_SUBMIT_BUTTON), str(ended))

    def _answer(
        self, change: Change, panes: list[Pane], text: str, picture: str | None, client: Client
    ) -> Iterator[None]:
        """Adds the answers to the panes until all have ended; yields whenever there is something new to show."""
        for status in wait_for(self.provider):
            for pane in panes:
                pane.message = texts.waiting_for_model(status)
            if change.stopped:
                break
            yield
        if change.stopped:
            for pane in panes:
                pane.message = texts.STOPPED_BEFORE_TEXT
            return
        engine = self.provider.engine()
        assert engine is not None
        requests = self._requests(panes, text, picture, client)
        with ExitStack() as stack:
            answers, errors = {}, []
            for index, request in enumerate(requests):
                try:
                    answers[index] = stack.enter_context(closing(engine.submit(request)))
                except AdapterError as error:
                    errors.append(error)
                    panes[index].add(error)
                except Exception:
                    log.exception("an answer could not be begun")
                    errors.append(AdapterError(texts.FAILED))
                    panes[index].add(errors[-1])
            if not answers:
                raise errors[0]

            def cancel() -> None:
                for answer in answers.values():
                    answer.cancel()

            change.cancel = cancel
            if change.stopped:
                cancel()
            yield
            from adapter.serve.request import read_together

            for events in read_together(answers, REDRAW_SECONDS):
                for index, event in events:
                    panes[index].add(event)
                yield
        if not change.stopped:
            _mark_differences(panes)

    def _requests(
        self, panes: list[Pane], text: str, picture: str | None, client: Client
    ) -> list[GenerationRequest]:
        """One request for each pane, all with the same seed; visual adapters get the picture."""
        image = None if picture is None else open_upload(picture)
        visual = [uses_picture(self.catalog, pane.settings) for pane in panes]
        if image is not None and not any(visual):
            raise BadInput(texts.NO_PANE_SEES)
        seed = with_seed(panes[0].settings).seed
        requests = []
        for pane, is_visual in zip(panes, visual, strict=True):
            pane.note_unused_picture(image is not None, is_visual)
            settings = pane.settings.replace(seed=seed)
            requests.append(
                build_request((Message("user", text),), settings, image if is_visual else None, client)
            )
        return requests


def _panes(count: int, values: Mapping[str, Any]) -> list[Pane]:
    if count not in range(MIN_PANES, MAX_PANES + 1):
        raise BadInput(texts.wrong_panes(MIN_PANES, MAX_PANES, count))
    return [
        Pane(Settings.checked({**values, "adapter": values[f"adapter_{i}"], "strength": values[f"strength_{i}"]}))
        for i in range(count)
    ]


def _mark_differences(panes: Sequence[Pane]) -> None:
    """Marks in each of the other panes the words that differ from the first pane; of a JSON object the values, if
    the first pane has one too. Answers that failed are not whole: the rest of another one does not differ from
    them.
    """
    first, *others = panes
    if first.failed or not first.text.strip():
        return
    for pane in others:
        if not pane.text.strip() or pane.failed:
            continue
        if (fields := read_object(pane.text)) is None:
            pane.marked_html, changed, words = mark_differences(first.text, pane.text)
            pane.notes.append(texts.changed_words(changed, words))
        elif (other := read_object(first.text)) is not None:
            differing = differing_fields(fields, other)
            pane.marked_html = table_html(pane.text, differing)
            pane.notes.append(texts.changed_fields(len(differing), len(fields.pairs)))


def mark_differences(first: str, other: str) -> tuple[str, int, int]:
    """`other` as HTML in which words that `first` lacks at their place are marked.

    Also returns how many words are marked, and how many `other` has. Words are separated by white space.
    """
    pairs = re.findall(r"(\S+)(\s*)", other.strip())  # (word, white space after it)
    words = [word for word, _ in pairs]
    parts, changed = [], 0
    for operation, start, end in _operations(first.split(), words):
        if start == end:
            continue
        run = "".join(word + space for word, space in pairs[start:end])
        text, space = run.rstrip(), run[len(run.rstrip()) :]
        if operation == "equal":
            parts.append(html.escape(run))
        else:
            changed += end - start
            parts.append(f"<mark>{html.escape(text)}</mark>{space}")
    return "".join(parts), changed, len(words)


def _operations(first: Sequence[str], words: Sequence[str]) -> list[tuple[str, int, int]]:
    """What is equal and what is not in `words`, from where to where.

    Two texts that repeat themselves, as small models do, have so many equal words that to compare 2,000 of them
    takes 25 s of Python. Of these all between the equal beginning and the equal end counts as different.
    """
    count = Counter(first)
    if sum(count[word] for word in words) <= MAX_EQUAL_PAIRS:
        matcher = difflib.SequenceMatcher(None, first, words, autojunk=False)
        return [(operation, start, end) for operation, _, _, start, end in matcher.get_opcodes()]
    shorter = min(len(first), len(words))
    start = next((i for i in range(shorter) if first[i] != words[i]), shorter)
    rest = shorter - start
    tail = next((i for i in range(rest) if first[-1 - i] != words[-1 - i]), rest)
    end = len(words) - tail
    return [("equal", 0, start), ("replace", start, end), ("equal", end, len(words))]


def _updates(box: Any, number: Any = None, panes: Sequence[Pane] | None = None) -> Updates:
    """The box, the number and the updates of all panes. panes: those in use; the rest are emptied. None changes no
    pane, and no number.
    """
    number = gr.skip() if number is None else number
    if panes is None:
        return box, number, *[gr.skip()] * MAX_PANES
    empty = theme.pane_html(texts.EMPTY_PANE, muted=True)
    return box, number, *[pane.to_html() for pane in panes], *[empty] * (MAX_PANES - len(panes))


def compare_tab(provider: EngineProvider, catalog: AdapterCatalog) -> TabParts:
    """Lays the comparison out in the current Blocks and connects it."""
    choices = theme.short_choices(theme.picker_choices(catalog), texts.FROZEN_BASE)
    columns, answers, pickers = [], [], []
    inputs: SettingsInputs = {}
    with gr.Column(elem_id="compare"):
        gr.Markdown(texts.COMPARE_HINT, elem_id="hint")
        with gr.Row(elem_id="ask", equal_height=True):
            box = message_box(texts.COMPARE_PLACEHOLDER, "message")
            numbers = list(range(MIN_PANES, MAX_PANES + 1))
            count = gr.Radio(numbers, value=MIN_PANES, label=texts.PANES, elem_id="count")
        with gr.Row(elem_id="panes"):
            for i in range(MAX_PANES):
                with gr.Column(min_width=250, visible=i < MIN_PANES, elem_classes="pane") as column:
                    name = gr.Dropdown(choices, value=BASE_ONLY, label=texts.pane(i + 1), filterable=False)
                    label = texts.pane_strength(i + 1)
                    strength = gr.Slider(**slider("strength"), label=label, interactive=False)
                    answers.append(gr.HTML(theme.pane_html(texts.EMPTY_PANE, muted=True), elem_classes="answer"))
                columns.append(column)
                inputs |= {f"adapter_{i}": name, f"strength_{i}": strength}
                pickers.append(Picker(name, texts.FROZEN_BASE, i - 1 if i else None))
                # The frozen base has no strength.
                name.change(lambda chosen: gr.update(interactive=bool(chosen)), name, strength, **UNQUEUED)
        with gr.Accordion(texts.SAMPLING, open=False):
            inputs |= sampling_inputs()
    number = gr.Textbox("0", visible=False)
    events = CompareEvents(provider, catalog)
    box.submit(
        events.send,
        [box, number, count],
        [box, number, *answers],
        inputs_kwargs=inputs,
        show_progress="hidden",
        **MODEL,
        **PRIVATE,
    )
    box.stop(events.stop, number, [box, number], **UNQUEUED)
    count.change(lambda n: [gr.update(visible=i < n) for i in range(MAX_PANES)], count, columns, **UNQUEUED)
    return TabParts(pickers, box)
