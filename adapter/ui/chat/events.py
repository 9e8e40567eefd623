"""Event handlers of the chat: send, retry, edit, stop and the others.

An event brings what is new and the id of the conversation that its visitor saw; the conversation itself is in
adapter/ui/session.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from adapter.errors import AdapterError, BadInput, Busy
from adapter.serve.settings import BASE_ONLY, Settings
from adapter.server.generation import AdapterCatalog, EngineProvider, check_length, client_of, wait_for
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import TEXT_ONLY, ChatAnswers, Turn, with_small_picture, xray_line
from adapter.ui.chat.chatbot import unescape_markup
from adapter.ui.chat.conversation_store import ConversationStore, Updates
from adapter.ui.chat.corrections import add_correction
from adapter.ui.conversation import History, Variant
from adapter.ui.images import BadPicture
from adapter.ui.inside.panel import inspect_newest
from adapter.ui.session import Change, Forgotten, NotOpen, StillAnswering
from adapter.ui.status import FRAME_SECONDS
from adapter.ui.texts import page as texts
from adapter.ui.theme import ExampleCard
from adapter.ui.toasts import errors_as_toasts, toast

if TYPE_CHECKING:
    from adapter.serve.request import Client

log = logging.getLogger(__name__)

# Between two times that the browser keeps an answer while it is written; longer in a long conversation.
SECONDS, BYTES_PER_SECOND = 2.0, 100_000
_STOP, _SUBMIT = gr.update(**theme.SHOW_STOP_BUTTON), gr.update(**theme.SHOW_SUBMIT_BUTTON)
_NO_CHANGE = Updates()

Ask = Callable[[History], Turn | None]  # of what is shown; None for nothing to answer. Raises BadInput


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
        store: ConversationStore,
    ) -> None:
        self.provider = provider
        self.catalog = catalog
        self.examples = examples
        self.store, self.conversations = store, store.conversations
        self._answers = ChatAnswers(provider, catalog)

    # What is answered.

    def send(
        self, message: dict[str, Any] | None, id: str, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        def ask(history: History) -> Turn | None:
            content = read_message(message)
            return content and Turn([*history, *conversation.user_turn(*content)], message)

        yield from self._turn(ask, id, request, settings, message)

    def retry(self, id: str, request: gr.Request, **settings: Any) -> Iterator[Updates]:
        def ask(history: History) -> Turn | None:
            if conversation.last_turn(history) is None:
                return None
            return Turn(conversation.without_last_answer(history), variants=conversation.variants(history))

        yield from self._turn(ask, id, request, settings)

    def edit(self, id: str, event: gr.EditData, request: gr.Request, **settings: Any) -> Iterator[Updates]:
        def ask(history: History) -> Turn | None:
            index, text = event.index, unescape_markup(str(event.value)).strip()
            if not isinstance(index, int) or not 0 <= index < len(history) or history[index]["role"] != "user":
                return None
            if not text:
                raise BadInput(texts.EMPTY_EDIT)
            check_length(text)
            return Turn([*history[:index], *conversation.user_turn(text)])

        yield from self._turn(ask, id, request, settings)

    def choose_option(
        self, id: str, event: gr.SelectData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        """Handles a button below the last message: of an offer, or of an answer."""
        choice = str(event.value)
        if choice in (conversation.PREVIOUS, conversation.NEXT):
            step = 1 if choice == conversation.NEXT else -1
            yield self._replace(lambda history: conversation.with_variant(history, step), id, request)
        elif choice == conversation.FILM:
            yield _NO_CHANGE
        else:
            yield from self._turn(lambda history: _chosen(history, choice), id, request, settings)

    def branch(self, id: str, event: gr.EventData, request: gr.Request, **settings: Any) -> Iterator[Updates]:
        """Writes the newest answer anew up to a word, with another word there, as a further variant."""
        data = event._data if isinstance(event._data, dict) else {}
        index, token = data.get("index"), data.get("token")

        def ask(history: History) -> Turn | None:
            record, engine = conversation.last_record(history), self.provider.engine()
            if record is None or engine is None or type(index) is not int or type(token) is not int:
                return None
            if not (0 <= index < len(record.token_ids) and 0 <= token < engine.base.fingerprint.vocab_size):
                return None
            begun = replace(record, token_ids=(*record.token_ids[:index], token), before=(), after=())
            asked, others = conversation.without_last_answer(history), conversation.variants(history)
            return Turn(asked, variants=others, begun=Variant("", "", begun.to_json()), offers=False)

        yield from self._turn(ask, id, request, settings)

    def send_example(
        self, id: str, event: gr.SelectData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        def ask(history: History) -> Turn | None:
            if not isinstance(event.index, int) or not 0 <= event.index < len(self.examples):
                return None
            example = self.examples[event.index]
            asked = [*history, *conversation.user_turn(example.text, example.picture)]
            return Turn(asked, switch_to=lambda: self._answers.adapter_for(example))

        yield from self._turn(ask, id, request, settings)

    def follow(self, id: str, request: gr.Request, **settings: Any) -> Iterator[Updates]:
        """Goes on with an answer that is being written, once the page that showed it has left."""
        with suppress(Forgotten, NotOpen), self.conversations.taken_over(request.session_hash, id) as change:
            if change is not None:
                yield from self._read(Turn(change.shown), change, settings)
                return
        yield _NO_CHANGE

    # What is changed at once.

    def undo(self, id: str, request: gr.Request) -> Updates:
        """Moves the last turn back into the message box."""
        box: Any = gr.skip()

        def change(history: History) -> History:
            nonlocal box
            if (turn := conversation.last_turn(history)) is None:
                return history
            message = {"text": turn.text, "files": [turn.picture] if turn.picture else []}
            box = gr.update(value=message, **theme.SHOW_SUBMIT_BUTTON)
            return history[: turn.start]

        return self._replace(change, id, request)._replace(box=box)

    def correct(self, id: str, known: object, event: gr.EditData, request: gr.Request) -> tuple[Any, ...]:
        """Puts the visitor's words in place of an answer. Updates, and one of the corrections."""
        index, corrections = event.index, gr.skip()

        def change(history: History) -> History:
            nonlocal corrections
            if not (
                isinstance(index, int) and 0 < index < len(history) and conversation.is_answer(history[index])
            ):
                return history
            text, before = (unescape_markup(str(value)).strip() for value in (event.value, event.previous_value))
            if not text:
                raise BadInput(texts.EMPTY_CORRECTION)
            check_length(text)
            if text == before:
                return history
            with errors_as_toasts("a correction"):  # one about a picture is not collected
                corrections = add_correction(known, history, index, text)
            return conversation.with_correction(history, index, text)

        return *self._replace(change, id, request), corrections

    def stop(self, id: str, request: gr.Request) -> Updates:
        with suppress(Forgotten, NotOpen):
            if (shown := self.conversations.stop(request.session_hash, id)) is not None:
                return self.store.show(shown)._replace(box=_SUBMIT)  # the page has missed the end
        return _NO_CHANGE

    def xray(self, on: bool, id: str, request: gr.Request) -> Any:
        """Adds to the newest answer what the frozen base gives its tokens, if it was written without.

        An update of the chatbot; none if the conversation goes on meanwhile, or the answer is the base's own.
        """
        history = self.conversations.history(request.session_hash)
        if not on:
            return gr.skip()
        with errors_as_toasts("an X-ray"), suppress(Busy, NotOpen, BadInput):
            xrayed = self._xrayed(history, client_of(request))
            with self.conversations.change(request.session_hash, id) as change:
                if change.conversation.history is history:
                    change.conversation.history = xrayed
                    return self.store.show(change.conversation).chat
        return gr.skip()

    def _xrayed(self, history: History, client: Client) -> History:
        """The history with what the frozen base gives the tokens of its newest answer. Raises AdapterError."""
        lines_at = [i for i, entry in enumerate(history) if conversation.kind(entry) == conversation.STATS]
        newest = lines_at[-1] - 1 if lines_at else -1
        if newest < 1 or conversation.xray_of(history[newest]):
            return history
        inspection = inspect_newest(self.provider, history, client).inspection
        tokens = zip(inspection.tokens, inspection.answer, inspection.base, strict=True)
        lines = "\n".join(xray_line(text, own.logprob, base, own.top) for text, own, base in tokens)
        return [
            *history[:newest],
            conversation.answer(conversation.text_of(history[newest]), lines),
            *history[newest + 1 :],
        ]

    def _replace(self, act: Callable[[History], History], id: str, request: gr.Request) -> Updates:
        """Shows the conversation as `act` changes it, which may raise BadInput."""
        try:
            with self.conversations.change(request.session_hash, id) as change:
                with errors_as_toasts("a change of a conversation"):
                    change.conversation.history = act(change.conversation.history)
                change.ended = True
                return self.store.keep(change.conversation)
        except (StillAnswering, Forgotten, NotOpen) as error:
            return self._refused(error)

    def _refused(self, error: Exception, message: dict[str, Any] | None = None) -> Updates:
        """What an event that changes nothing shows. message: which stays in its box."""
        if isinstance(error, NotOpen):
            return _NO_CHANGE
        assert isinstance(error, StillAnswering | Forgotten)
        toast(error)
        # The answer that is in the way empties the box. What it answers was sent twice.
        twice = message is None or (isinstance(error, StillAnswering) and message == error.answered)
        box = gr.skip() if twice else gr.update(value=message)
        return Updates(box=box, to_browser=self.store.reopen() if isinstance(error, Forgotten) else gr.skip())

    # An answer.

    def _turn(
        self,
        ask: Ask,
        id: str,
        request: gr.Request,
        settings: dict[str, Any],
        message: dict[str, Any] | None = None,
    ) -> Iterator[Updates]:
        """Answers a question; on failure shows the error and what was before."""
        try:
            with self.conversations.change(request.session_hash, id, message) as change:
                turn = None
                with errors_as_toasts("a message"):
                    turn = ask(change.conversation.history)
                if turn is None:
                    yield self.store.show(change.conversation)  # an edit is in the browser's chat already
                else:
                    change.updates, change.shown = self._answer(turn, change, request, settings), _waiting(turn)
                    yield from self._read(turn, change, settings)
        except (StillAnswering, Forgotten, NotOpen) as error:
            yield self._refused(error, message)

    def _read(self, turn: Turn, change: Change, settings: dict[str, Any]) -> Iterator[Updates]:
        """Shows an answer to its end, or until its page has left it: then another one may go on with it."""
        shown, session, switched, end = change.conversation, change.session, dict[str, str](), Updates(box=_SUBMIT)
        box = (
            _STOP if turn.message is None else gr.update(value={"text": "", "files": []}, **theme.SHOW_STOP_BUTTON)
        )
        assert change.updates is not None
        due = 0.0
        try:
            yield self.store.keep(shown, change.shown)._replace(box=box)
            for update in change.updates:
                if isinstance(update, dict):
                    switched = update
                    yield Updates(**switched) if self.conversations.shows(session, shown.id) else _NO_CHANGE
                    time.sleep(FRAME_SECONDS)
                    continue
                change.shown = update
                if not self.conversations.shows(session, shown.id):
                    break
                # The button with every update: a page that is being loaded may lose the first one (Gradio 6.31).
                if time.monotonic() < due:
                    yield self.store.show(shown, update)._replace(box=_STOP)
                else:
                    due = time.monotonic() + max(SECONDS, shown.bytes / BYTES_PER_SECOND)
                    yield self.store.keep(shown, update, begins=False)._replace(box=_STOP)
        except AdapterError as error:
            end = self._restored(turn, switched, settings, error)
        except Exception:
            log.exception("a chat turn failed")
            end = self._restored(turn, switched, settings, AdapterError(texts.FAILED))
        else:
            shown.history = conversation.ended(change.shown)
        finally:
            if change.unread:  # the page has left
                shown.history = conversation.ended(change.shown)
        if change.unread or not self.conversations.shows(session, shown.id):
            yield _NO_CHANGE
        else:
            change.ended = True
            yield self.store.keep(shown, begins=False)._replace(box=end.box, adapter=end.adapter, mix=end.mix)

    def _answer(
        self, turn: Turn, change: Change, request: gr.Request, panel: dict[str, Any]
    ) -> Generator[History | dict[str, str], None, None]:
        """Yields the history with more and more of the answer, and what changes in the side panel, by name."""
        settings = Settings.checked(panel)
        conversation.check_size(turn.history)
        for status in wait_for(self.provider):
            if change.stopped:
                yield conversation.mark_stopped(turn.history)
                return
            yield [*turn.history, conversation.note(texts.waiting_for_model(status), waiting=True)]
        turn = replace(turn, history=with_small_picture(turn.history))
        if turn.switch_to is not None and (name := turn.switch_to()) is not None:
            switched = {"adapter": name}
            if name != settings.adapter and settings.mix:
                toast(texts.not_taken_along(settings.mix), 6)
                switched["mix"] = BASE_ONLY
            settings = settings.replace(**switched)
            yield switched
        if turn.offers and (offer := self._answers.offer(turn.history, settings)):
            yield [*turn.history, offer]
            return
        if turn.begun is None:
            turn = replace(turn, history=conversation.with_dividers(turn.history, settings))
        xray, client = panel.get("xray") is True, client_of(request)
        for history in self._answers.stream(turn, change, settings, client, xray):
            yield history
        if xray and turn.begun is not None:  # whose beginning was not read by the base
            with suppress(AdapterError):
                time.sleep(FRAME_SECONDS)
                yield self._xrayed(history, client)
                time.sleep(FRAME_SECONDS)

    def _restored(
        self, turn: Turn, switched: dict[str, str], settings: dict[str, Any], error: AdapterError
    ) -> Updates:
        """Shows an error, and puts the message back and what the turn has changed in the side panel."""
        toast(error)
        message = turn.message
        if message is not None and isinstance(error, BadPicture):
            # The file is removed, so that the text can be sent again.
            message = {**message, "files": []}
        value = {} if message is None else {"value": message}
        before = {name: settings.get(name) or BASE_ONLY for name in switched}
        if before.get("adapter") not in self.catalog.names():
            before = {name: BASE_ONLY if name == "adapter" else value for name, value in before.items()}
        return Updates(box=gr.update(**value, **theme.SHOW_SUBMIT_BUTTON), **before)


def _chosen(history: History, choice: str) -> Turn | None:
    """The turn that a button below the last message begins."""
    if choice == conversation.CONTINUE:  # goes on with an answer that was cut, where it ended
        record = conversation.last_record(history)
        if record is None or not (found := conversation.variants(history)):
            return None
        asked, others = conversation.without_last_answer(history), (*record.before, *record.after)
        return Turn(asked, variants=others, begun=found[len(record.before)], offers=False)
    if not conversation.ends_with_options(history):
        return None
    turn = Turn(history[:-1])
    return replace(turn, offers=False) if choice == TEXT_ONLY else replace(turn, switch_to=lambda: choice)


def _waiting(turn: Turn) -> History:
    begun = [] if turn.begun is None else [conversation.answer(turn.begun.text)]
    return [*turn.history, *begun, conversation.note("…", waiting=True)]
