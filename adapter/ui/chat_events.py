"""Event handlers of the chat: send, retry, edit, stop and the others.

Knows Gradio's updates and toasts, the engine and the adapter catalog; knows no layout. The only state of a
session is whether an answer is being written: all else arrives with the event and is returned with the updates.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import BASE_ONLY, Settings
from adapter.server.generation import AdapterCatalog, EngineProvider, check_length, client_of, wait_for
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import (
    TEXT_ONLY,
    ActiveAnswer,
    ActiveAnswers,
    ChatAnswers,
    with_small_picture,
)
from adapter.ui.chatbot import unescape_markup
from adapter.ui.conversation import History
from adapter.ui.images import BadPicture
from adapter.ui.status import FRAME_SECONDS, toast
from adapter.ui.texts import page as texts
from adapter.ui.theme import ExampleCard

log = logging.getLogger(__name__)

# Updates of (chatbot, message box, adapter picker).
Updates = tuple[Any, Any, Any]
# An adapter to switch to; called when the model is loaded, because the catalog is empty before.
ChooseAdapter = Callable[[], str | None]


class _Before(NamedTuple):
    """What to restore if a turn fails: the conversation, and the message if it came from the message box."""

    history: History
    message: dict[str, Any] | None = None


def read_message(message: dict[str, Any] | None) -> tuple[str, str | None] | None:
    """The text and the picture's path in a message box; None, after a toast, if it is empty. Raises BadInput."""
    message = message or {}
    text, files = (message.get("text") or "").strip(), message.get("files") or []
    if not text and not files:
        gr.Info(texts.NOTHING_TO_SEND, duration=4)
        return None
    check_length(text)
    return text or texts.DEFAULT_QUESTION, files[-1] if files else None


class ChatEvents:
    """The event handlers of one page. Thread-safe. `settings`: the side panel's values by their names."""

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog, examples: list[ExampleCard]) -> None:
        self.provider = provider
        self.catalog = catalog
        self.examples = examples
        self._answers = ChatAnswers(provider, catalog)
        self._active = ActiveAnswers()

    def is_answering(self, session: str | None) -> bool:
        """Whether an answer is being written in this session."""
        return self._active.get(session) is not None

    def send(
        self, message: dict[str, Any] | None, history: History, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        try:
            content = read_message(message)
        except BadInput as error:
            toast(error)
            content = None
        if content is None:
            yield _no_change()
            return
        turn = conversation.user_turn(*content)
        yield from self._turn([*history, *turn], settings, _Before(history, message), request)

    def retry(self, history: History, request: gr.Request, **settings: Any) -> Iterator[Updates]:
        if conversation.last_turn(history) is None:
            yield _no_change()
        else:
            shortened = conversation.without_last_answer(history)
            yield from self._turn(shortened, settings, _Before(history), request)

    def edit(
        self, history: History, event: gr.EditData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        index = event.index
        if not isinstance(index, int) or not 0 <= index < len(history) or history[index]["role"] != "user":
            yield _no_change()
            return
        # The browser's history holds the new text already; the old one is needed if this fails.
        before = [*history]
        before[index] = conversation.user_turn(unescape_markup(str(event.previous_value)))[0]
        text = unescape_markup(str(event.value)).strip()
        try:
            if not text:
                raise BadInput(texts.EMPTY_EDIT)
            check_length(text)
        except BadInput as error:
            toast(error)
            yield before, gr.skip(), gr.skip()
            return
        edited = [*history[:index], *conversation.user_turn(text)]
        yield from self._turn(edited, settings, _Before(before), request)

    def choose_option(
        self, history: History, event: gr.SelectData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        """Handles a button of an offer: switches to its adapter, or answers without the picture."""
        if not conversation.ends_with_offer(history):
            yield _no_change()
            return
        choice = str(event.value)
        if choice == TEXT_ONLY:
            yield from self._turn(history[:-1], settings, _Before(history), request, offers=False)
        else:
            yield from self._turn(history[:-1], settings, _Before(history), request, switch_to=lambda: choice)

    def send_example(
        self, history: History, event: gr.SelectData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        if not isinstance(event.index, int) or not 0 <= event.index < len(self.examples):
            yield _no_change()
            return
        example = self.examples[event.index]
        yield from self._turn(
            [*history, *conversation.user_turn(example.text, example.picture)],
            settings,
            _Before(history),
            request,
            switch_to=lambda: self._answers.adapter_for(example),
        )

    def stop(self, history: History, request: gr.Request) -> tuple[Any, Any]:
        active = self._active.get(request.session_hash)
        if active is not None:
            active.stop()
            return gr.skip(), gr.skip()
        # No answer is running: the server was restarted, for example.
        return conversation.mark_stopped(history), gr.update(**theme.SHOW_SUBMIT_BUTTON)

    def clear(self, request: gr.Request) -> Any:
        active = self._active.get(request.session_hash)
        if active is not None:
            active.cleared = True
            active.stop()
        return gr.update(**theme.SHOW_SUBMIT_BUTTON)

    def undo(self, history: History) -> tuple[Any, Any]:
        """Moves the last turn back into the message box."""
        turn = conversation.last_turn(history)
        if turn is None:
            return gr.skip(), gr.skip()
        message = {"text": turn.text, "files": [turn.picture] if turn.picture else []}
        return history[: turn.start], gr.update(value=message, **theme.SHOW_SUBMIT_BUTTON)

    def _turn(
        self,
        history: History,
        settings: dict[str, Any],
        before: _Before,
        request: gr.Request,
        *,
        offers: bool = True,
        switch_to: ChooseAdapter | None = None,
    ) -> Iterator[Updates]:
        """Answers the last user turn of `history`; on failure shows the error and restores `before`.

        offers: whether a picture that the adapter cannot see leads to an offer instead of an answer.
        """
        session = request.session_hash
        if conversation.is_streaming(before.history) and self.is_answering(session):
            yield _still_answering()
            return
        with self._active.start(session) as active:
            if active is None:
                yield _still_answering()
                return
            cleared = {} if before.message is None else {"value": {"text": "", "files": []}}
            box = gr.update(**cleared, **theme.SHOW_STOP_BUTTON)
            yield [*history, conversation.note("…", waiting=True)], box, gr.skip()
            try:
                last: Any = gr.skip()
                answer = self._answer(active, history, settings, request, offers, switch_to)
                with closing(answer) as updates:
                    for update in updates:
                        last = update[0]
                        yield update
                # The history is sent again, because the page drops the first of two updates within one frame.
                end = last, gr.update(**theme.SHOW_SUBMIT_BUTTON), gr.skip()
            except AdapterError as error:
                end = self._restore(before, settings, error)
            except Exception:
                log.exception("a chat turn failed")
                end = self._restore(before, settings, AdapterError(texts.FAILED))
            yield ([], gr.update(**theme.SHOW_SUBMIT_BUTTON), gr.skip()) if active.cleared else end

    def _answer(
        self,
        active: ActiveAnswer,
        history: History,
        values: dict[str, Any],
        request: gr.Request,
        offers: bool,
        switch_to: ChooseAdapter | None,
    ) -> Generator[Updates, None, None]:
        settings = Settings.checked(values)
        conversation.check_size(history)
        for status in wait_for(self.provider):
            if active.stopped:
                yield conversation.mark_stopped(history), gr.skip(), gr.skip()
                return
            waiting = conversation.note(texts.waiting_for_model(status), waiting=True)
            yield [*history, waiting], gr.skip(), gr.skip()
        history = with_small_picture(history)
        if switch_to is not None and (name := switch_to()) is not None:
            settings = settings.replace(adapter=name)
            yield gr.skip(), gr.skip(), gr.update(value=name)
            time.sleep(FRAME_SECONDS)
        if offers and (offer := self._answers.offer(history, settings)):
            yield [*history, offer], gr.skip(), gr.skip()
            return
        history = conversation.with_dividers(history, settings)
        for messages in self._answers.stream(active, history, settings, client_of(request)):
            yield [*history, *messages], gr.skip(), gr.skip()

    def _restore(self, before: _Before, settings: dict[str, Any], error: AdapterError) -> Updates:
        """Shows an error, and updates that put everything back as it was before the turn."""
        toast(error)
        message = before.message
        if message is not None and isinstance(error, BadPicture):
            # The file is removed, so that the text can be sent again.
            message = {**message, "files": []}
        value = {} if message is None else {"value": message}
        name = settings.get("adapter")
        selected = name if name in self.catalog.names() else BASE_ONLY
        picker = gr.update(choices=theme.picker_choices(self.catalog), value=selected)
        return before.history, gr.update(**value, **theme.SHOW_SUBMIT_BUTTON), picker


def _no_change() -> Updates:
    # Gradio empties the outputs of a generator that ends without a yield.
    return gr.skip(), gr.skip(), gr.skip()


def _still_answering() -> Updates:
    gr.Info(texts.STILL_ANSWERING, duration=6)
    return _no_change()
