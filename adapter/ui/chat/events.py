"""Event handlers of the chat: send, retry, edit, stop and the others.

The only state of a session is the number of its conversation's newest state (conversation_states.py): all else
arrives with the event and is returned with the updates.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import BASE_ONLY, Settings
from adapter.server.generation import AdapterCatalog, EngineProvider, check_length, client_of, wait_for
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import (
    TEXT_ONLY,
    ChatAnswers,
    RunningAnswer,
    RunningAnswers,
    answer_key,
    with_small_picture,
    xray_line,
)
from adapter.ui.chat.chatbot import unescape_markup
from adapter.ui.chat.conversation_store import panel_change, refuse
from adapter.ui.chat.corrections import add_correction
from adapter.ui.conversation import History, Variant
from adapter.ui.conversation_states import Change, ConversationStates, StaleEvent
from adapter.ui.images import BadPicture
from adapter.ui.inside.panel import inspect_newest
from adapter.ui.status import FRAME_SECONDS
from adapter.ui.texts import page as texts
from adapter.ui.theme import ExampleCard
from adapter.ui.toasts import errors_as_toasts, toast

log = logging.getLogger(__name__)

# Updates of (chatbot, message box, changes of the side panel as `panel_change` writes them, number of the state).
Updates = tuple[Any, Any, Any, Any]
# An adapter to switch to; called when the model is loaded, because the catalog is empty before.
ChooseAdapter = Callable[[], str | None]


@dataclass(frozen=True)
class Turn:
    """A question that is answered, and what to restore if that fails.

    history: that ends with the question. before, message: what the visitor saw, and what was in the message box if
    the question comes from there; number: of that state. settings: the side panel's. variants, begun: as of
    ChatAnswers.stream. offers: whether a picture that the adapter cannot see leads to an offer, not to an answer.
    """

    history: History
    before: History
    number: object
    settings: dict[str, Any]
    request: gr.Request
    message: dict[str, Any] | None = None
    variants: tuple[Variant, ...] = ()
    begun: Variant | None = None
    offers: bool = True
    switch_to: ChooseAdapter | None = None


def read_message(message: dict[str, Any] | None) -> tuple[str, str | None] | None:
    """The text and the picture's path in a message box; None, after a toast, if it is empty. Raises BadInput."""
    message = message or {}
    text, files = (message.get("text") or "").strip(), message.get("files") or []
    if not text and not files:
        toast(texts.NOTHING_TO_SEND, 4)
        return None
    check_length(text)
    return text or texts.DEFAULT_QUESTION, files[-1] if files else None


class ChatEvents:
    """The event handlers of one page. Thread-safe. `settings`: the side panel's values by their names."""

    def __init__(
        self,
        provider: EngineProvider,
        catalog: AdapterCatalog,
        examples: list[ExampleCard],
        states: ConversationStates,
    ) -> None:
        self.provider = provider
        self.catalog = catalog
        self.examples = examples
        self.states = states
        self._answers = ChatAnswers(provider, catalog)
        self._running = RunningAnswers()

    def send(
        self,
        message: dict[str, Any] | None,
        history: History,
        number: str,
        request: gr.Request,
        **settings: Any,
    ) -> Iterator[Updates]:
        content = None
        with errors_as_toasts("a message"):
            content = read_message(message)
        if content is None:
            yield _no_change()
            return
        asked = [*history, *conversation.user_turn(*content)]
        yield from self._turn(Turn(asked, history, number, settings, request, message))

    def retry(self, history: History, number: str, request: gr.Request, **settings: Any) -> Iterator[Updates]:
        if conversation.last_turn(history) is None:
            yield _no_change()
        else:
            asked, variants = conversation.without_last_answer(history), conversation.variants(history)
            yield from self._turn(Turn(asked, history, number, settings, request, variants=variants))

    def edit(
        self, history: History, number: str, event: gr.EditData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        index = event.index
        if not isinstance(index, int) or not 0 <= index < len(history) or history[index]["role"] != "user":
            yield _no_change()
            return
        # The browser's history holds the new text already; the old one is needed if this fails.
        before = [*history]
        before[index] = conversation.user_turn(unescape_markup(str(event.previous_value)))[0]
        text = unescape_markup(str(event.value)).strip()
        with errors_as_toasts("an edit"):
            if not text:
                raise BadInput(texts.EMPTY_EDIT)
            check_length(text)
            edited = [*history[:index], *conversation.user_turn(text)]
            yield from self._turn(Turn(edited, before, number, settings, request))
            return
        yield from self._put_back(before, number, request)

    def correct(
        self, history: History, number: str, known: object, event: gr.EditData, request: gr.Request
    ) -> tuple[Any, Any, Any]:
        """Puts the visitor's words in place of an answer. Updates of (chatbot, corrections, number)."""
        index = event.index
        if not (isinstance(index, int) and 0 < index < len(history) and conversation.is_answer(history[index])):
            return gr.skip(), gr.skip(), gr.skip()
        text, before = (unescape_markup(str(value)).strip() for value in (event.value, event.previous_value))
        corrections: Any = gr.skip()
        try:
            with self.states.change(request.session_hash, number) as change:
                shown = [*history[:index], conversation.answer(before), *history[index + 1 :]]
                with errors_as_toasts("a correction"):
                    if not text:
                        raise BadInput(texts.EMPTY_CORRECTION)
                    check_length(text)
                    if text != before:
                        shown = conversation.with_correction(history, index, text)
                        corrections = add_correction(known, history, index, text)
                return shown, corrections, str(self.states.finish(change))
        except StaleEvent as error:
            return gr.skip(), gr.skip(), refuse(error)

    def choose_option(
        self, history: History, number: str, event: gr.SelectData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        """Handles a button below the last message: of an offer, or of an answer."""
        if event.value in (conversation.PREVIOUS, conversation.NEXT):
            step = 1 if event.value == conversation.NEXT else -1
            yield from self._put_back(conversation.with_variant(history, step), number, request)
            return
        if event.value == conversation.CONTINUE:
            yield from self._continue(history, number, request, settings)
            return
        if not conversation.ends_with_options(history) or event.value == conversation.FILM:
            yield _no_change()
            return
        choice = str(event.value)
        turn = Turn(history[:-1], history, number, settings, request)
        if choice == conversation.ALONE:
            turn = replace(turn, history=conversation.alone(history))
        elif choice == TEXT_ONLY:
            turn = replace(turn, offers=False)
        else:
            turn = replace(turn, switch_to=lambda: choice)
        yield from self._turn(turn)

    def _continue(
        self, history: History, number: str, request: gr.Request, settings: dict[str, Any]
    ) -> Iterator[Updates]:
        """Goes on with an answer that was cut, where it ended."""
        record = conversation.parse_record(conversation.record_of(history[-1])) if history else None
        if record is None or not (found := conversation.variants(history)):
            yield _no_change()
            return
        turn = Turn(conversation.without_last_answer(history), history, number, settings, request, offers=False)
        begun, variants = found[len(record.before)], (*record.before, *record.after)
        yield from self._turn(replace(turn, begun=begun, variants=variants))

    def send_example(
        self, history: History, number: str, event: gr.SelectData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        if not isinstance(event.index, int) or not 0 <= event.index < len(self.examples):
            yield _no_change()
            return
        example = self.examples[event.index]
        asked = [*history, *conversation.user_turn(example.text, example.picture)]
        turn = Turn(asked, history, number, settings, request)
        yield from self._turn(replace(turn, switch_to=lambda: self._answers.adapter_for(example)))

    def follow(
        self, key: str, history: History, number: str, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        """Goes on with the answer that was being written when the conversation was stored."""
        running = self._running.take(key) if key else None
        if running is None:
            yield _no_change()
            return
        try:
            with self.states.change(request.session_hash, number) as change:
                change.cancel = running.change.stop
                yield running.shown, gr.update(**theme.SHOW_STOP_BUTTON), gr.skip(), str(change.number)
                yield from self._read(Turn(history, history, number, settings, request), change, running)
        except StaleEvent:  # the visitor has gone on without it
            running.updates.close()
            yield _no_change()

    def stop(self, history: History, number: str, request: gr.Request) -> tuple[Any, Any, Any]:
        """Updates of (chatbot, message box, number), as those of `clear` and `undo`."""
        ended = self.states.stop(request.session_hash, number)
        if ended is None:
            return gr.skip(), gr.skip(), gr.skip()
        return conversation.mark_stopped(history), gr.update(**theme.SHOW_SUBMIT_BUTTON), str(ended)

    def clear(self, number: str, request: gr.Request) -> tuple[Any, Any, Any]:
        """Follows the browser, which has emptied the chat: an update of an answer may have filled it again."""
        if not self.states.clear(request.session_hash, number):
            return gr.skip(), gr.skip(), gr.skip()
        return [], gr.update(**theme.SHOW_SUBMIT_BUTTON), number

    def undo(self, history: History, number: str, request: gr.Request) -> tuple[Any, Any, Any]:
        """Moves the last turn back into the message box."""
        turn = conversation.last_turn(history)
        if turn is None:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            with self.states.change(request.session_hash, number) as change:
                message = {"text": turn.text, "files": [turn.picture] if turn.picture else []}
                box = gr.update(value=message, **theme.SHOW_SUBMIT_BUTTON)
                return history[: turn.start], box, str(self.states.finish(change))
        except StaleEvent as error:
            return gr.skip(), gr.skip(), refuse(error)

    def xray(self, on: bool, history: History, number: str, request: gr.Request) -> Any:
        """Adds to the newest answer what the frozen base gives its tokens, if it was written without.

        An update of the chatbot. Its words stay, so it is no new state: a message that is on its way is not stale.
        """
        lines_at = [i for i, entry in enumerate(history) if conversation.kind(entry) == conversation.STATS]
        newest = lines_at[-1] - 1 if lines_at else -1
        if not on or newest < 1 or conversation.is_streaming(history) or conversation.xray_of(history[newest]):
            return gr.skip()
        # Silent where the conversation goes on, or the answer is the frozen base's own.
        with errors_as_toasts("an X-ray"), suppress(StaleEvent, BadInput):
            inspection = inspect_newest(self.provider, history, client_of(request)).inspection
            tokens = zip(inspection.tokens, inspection.logprobs.tolist(), inspection.base, strict=True)
            lines = "\n".join(xray_line(*token) for token in tokens)
            answer = conversation.answer(conversation.text_of(history[newest]), lines)
            with self.states.change(request.session_hash, number):
                return [*history[:newest], answer, *history[newest + 1 :]]
        return gr.skip()

    def _put_back(self, history: History, number: str, request: gr.Request) -> Iterator[Updates]:
        try:
            with self.states.change(request.session_hash, number) as change:
                yield history, gr.skip(), gr.skip(), str(self.states.finish(change))
        except StaleEvent as error:
            yield gr.skip(), gr.skip(), gr.skip(), refuse(error)

    def _turn(self, turn: Turn) -> Iterator[Updates]:
        """Answers the question; on failure shows the error and restores what was before."""
        try:
            with self.states.change(turn.request.session_hash, turn.number) as change:
                change.answered = turn.message
                cleared = {} if turn.message is None else {"value": {"text": "", "files": []}}
                box = gr.update(**cleared, **theme.SHOW_STOP_BUTTON)
                begun = [] if turn.begun is None else [conversation.answer(turn.begun.text)]
                waiting = [*turn.history, *begun, conversation.note("…", waiting=True)]
                yield waiting, box, gr.skip(), str(change.number)
                running = RunningAnswer(self._answer(turn, change), change, waiting)
                yield from self._read(turn, change, running)
        except StaleEvent as error:
            # The answer that is in the way empties the box. What it answers was sent twice.
            box = gr.skip() if turn.message in (None, error.answered) else gr.update(value=turn.message)
            yield gr.skip(), box, gr.skip(), refuse(error)

    def _read(self, turn: Turn, change: Change, running: RunningAnswer) -> Iterator[Updates]:
        """Shows an answer to its end. If the page leaves before, another one may go on with it.

        change: this page's; that of `running` is another one where the page has taken the answer over.
        """
        number, switched = str(change.number), dict[str, Any]()
        # With every update: a page that is being loaded may lose the first one (Gradio 6.31).
        answering = gr.update(**theme.SHOW_STOP_BUTTON)
        key = answer_key(turn.request.session_hash, number)
        self._running.add(key, running)
        try:
            for update in running.updates:
                if isinstance(update, dict):
                    switched = update
                    if not change.is_stale:
                        changes = {name: (turn.settings.get(name), value) for name, value in switched.items()}
                        yield gr.skip(), gr.skip(), panel_change(changes, number), gr.skip()
                    time.sleep(FRAME_SECONDS)
                    continue
                running.shown = update
                if change.is_stale:
                    break
                yield update, answering, gr.skip(), number
            # The history is sent again, because the page drops the first of two updates within one frame.
            end: Any = _ended(running.shown), gr.update(**theme.SHOW_SUBMIT_BUTTON), gr.skip()
        except AdapterError as error:
            end = self._restore(turn, switched, error)
        except Exception:
            log.exception("a chat turn failed")
            end = self._restore(turn, switched, AdapterError(texts.FAILED))
        finally:
            self._running.leave(key, running)
        yield _no_change() if change.is_stale else (*end, str(self.states.finish(change)))

    def _answer(self, turn: Turn, change: Change) -> Generator[History | dict[str, Any], None, None]:
        """Yields the history with more and more of the answer, and what changes in the side panel, by name."""
        settings, history = Settings.checked(turn.settings), turn.history
        conversation.check_size(history)
        for status in wait_for(self.provider):
            if change.stopped:
                yield conversation.mark_stopped(history)
                return
            yield [*history, conversation.note(texts.waiting_for_model(status), waiting=True)]
        history = with_small_picture(history)
        if turn.switch_to is not None and (name := turn.switch_to()) is not None:
            switched = {"adapter": name}
            if name != settings.adapter and settings.mix:
                toast(texts.not_taken_along(settings.mix), 6)
                switched["mix"] = BASE_ONLY
            settings = settings.replace(**switched)
            yield switched
        if turn.offers and (offer := self._answers.offer(history, settings)):
            yield [*history, offer]
            return
        if turn.begun is None:
            history = conversation.with_dividers(history, settings)
        client, xray = client_of(turn.request), turn.settings.get("xray") is True
        stream = self._answers.stream(change, history, settings, client, xray, turn.variants, turn.begun)
        for messages in stream:
            yield [*history, *messages]

    def _restore(self, turn: Turn, switched: dict[str, Any], error: AdapterError) -> tuple[Any, Any, Any]:
        """Shows an error, and updates that put everything back as it was before the turn.

        switched: what the turn has changed in the side panel.
        """
        toast(error)
        message, settings = turn.message, turn.settings
        if message is not None and isinstance(error, BadPicture):
            # The file is removed, so that the text can be sent again.
            message = {**message, "files": []}
        value = {} if message is None else {"value": message}
        adapter = settings.get("adapter")
        if adapter not in self.catalog.names():
            adapter = BASE_ONLY
        seen, former = {"adapter": settings.get("adapter"), **switched}, {**settings, "adapter": adapter}
        panel = panel_change({name: (value, former.get(name)) for name, value in seen.items()}, turn.number)
        return turn.before, gr.update(**value, **theme.SHOW_SUBMIT_BUTTON), panel


def _ended(history: History) -> History:
    """The history of an answer that has ended, maybe by an error that no page has seen."""
    if not conversation.is_streaming(history):
        return history
    return conversation.mark_stopped(history, texts.CUT_OFF, texts.CUT_OFF_BEFORE_TEXT)


def _no_change() -> Updates:
    # Gradio empties the outputs of a generator that ends without a yield.
    return gr.skip(), gr.skip(), gr.skip(), gr.skip()
