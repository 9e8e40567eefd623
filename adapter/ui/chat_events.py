"""What happens when somebody sends, retries, edits, stops: one method per event of the chat.

Knows Gradio's updates and toasts, the engine and the store; knows nothing of layout. Keeps nothing of a
session but that it is being answered: everything else comes with the event and goes out with the updates.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import BASE_ONLY, Settings
from adapter.server.settings import (
    EngineProvider,
    check_length,
    public_text,
    wait_for,
)
from adapter.ui import conversation as talk
from adapter.ui import theme as look
from adapter.ui.active_answers import Run, Runs
from adapter.ui.answer_stream import TEXT_ONLY, Answers, with_small_picture
from adapter.ui.conversation import History
from adapter.ui.dividers import divided
from adapter.ui.images import BadPicture
from adapter.ui.texts import page as texts
from adapter.ui.theme import Cards, Example
from adapter.ui.verbatim import unmarked

log = logging.getLogger(__name__)

FRAME_SECONDS = 0.1


class _Before(NamedTuple):
    """What to put back if a turn fails: the conversation, and the message if the box held one."""

    history: History
    message: dict[str, Any] | None = None


# Updates of (chatbot, message box, adapter picker).
Updates = tuple[Any, Any, Any]


class ChatTurns:
    """The handlers of one page; safe for any number of sessions at once."""

    def __init__(
        self,
        provider: EngineProvider,
        store: Cards,
        examples: list[Example],
        fields: Sequence[str] = tuple(Settings.model_fields),
    ) -> None:
        """fields: of Settings, in the order in which events get their values."""
        self.provider = provider
        self.store = store
        self.examples = examples
        self._fields = fields
        self._answers = Answers(provider, store)
        self._runs = Runs()

    def busy(self, session: str | None) -> bool:
        """Whether an answer is being written in this session."""
        return self._runs.of(session) is not None

    # Events of the page. Each takes the component values and yields updates.

    def send(
        self, message: dict[str, Any] | None, history: History, request: gr.Request, *values: Any
    ) -> Iterator[Updates]:
        message = message or {"text": "", "files": []}
        text, files = (message.get("text") or "").strip(), message.get("files") or []
        if not text and not files:
            gr.Info(texts.NOTHING_TO_SEND, duration=4)
            yield _no_change()
            return
        try:
            check_length(text)
        except BadInput as error:
            toast(error)
            yield _no_change()
            return
        turn = talk.user_turn(text or texts.DEFAULT_QUESTION, files[-1] if files else None)
        yield from self._turn([*history, *turn], values, _Before(history, message), request)

    def retry(self, history: History, request: gr.Request, *values: Any) -> Iterator[Updates]:
        if talk.last_turn(history) is None:
            yield _no_change()
        else:
            yield from self._turn(talk.without_answer(history), values, _Before(history), request)

    def edit(self, history: History, event: gr.EditData, request: gr.Request, *values: Any) -> Iterator[Updates]:
        index = event.index
        if not isinstance(index, int) or not 0 <= index < len(history) or history[index]["role"] != "user":
            yield _no_change()
            return
        # The browser has put the new text in place already; what was there is needed if this fails.
        before = [*history]
        before[index] = talk.user_turn(unmarked(str(event.previous_value)))[0]
        text = unmarked(str(event.value)).strip()
        try:
            if not text:
                raise BadInput(texts.EMPTY_EDIT)
            check_length(text)
        except BadInput as error:
            toast(error)
            yield before, gr.skip(), gr.skip()
            return
        yield from self._turn([*history[:index], *talk.user_turn(text)], values, _Before(before), request)

    def choose(
        self, history: History, event: gr.SelectData, request: gr.Request, *values: Any
    ) -> Iterator[Updates]:
        """A button of an offer: switch to the adapter it names, or go on without the picture."""
        if not talk.pending_offer(history):
            yield _no_change()
            return
        before, choice = _Before(history), str(event.value)
        if choice == TEXT_ONLY:
            yield from self._turn(history[:-1], values, before, request, text_only=True)
        else:
            yield from self._turn(history[:-1], values, before, request, switch_to=lambda: choice)

    def example(
        self, history: History, event: gr.SelectData, request: gr.Request, *values: Any
    ) -> Iterator[Updates]:
        if not isinstance(event.index, int) or not 0 <= event.index < len(self.examples):
            yield _no_change()
            return
        example = self.examples[event.index]
        turn = talk.user_turn(example.text, example.picture)
        yield from self._turn(
            [*history, *turn],
            values,
            _Before(history),
            request,
            switch_to=lambda: self._answers.adapter_of(example),
        )

    def stop(self, history: History, request: gr.Request) -> tuple[Any, Any]:
        run = self._runs.of(request.session_hash)
        if run is not None:
            run.stop()
            return gr.skip(), gr.skip()
        # The run was lost, with the server that it ran on for example.
        return talk.stopped(history), gr.update(**look.IDLE)

    def clear(self, request: gr.Request) -> Any:
        run = self._runs.of(request.session_hash)
        if run is not None:
            run.cleared = True
            run.stop()
        return gr.update(**look.IDLE)

    def undo(self, history: History) -> tuple[Any, Any]:
        """Take the last turn back into the message box."""
        turn = talk.last_turn(history)
        if turn is None:
            return gr.skip(), gr.skip()
        message = {"text": turn.text, "files": [turn.picture] if turn.picture else []}
        return history[: turn.start], gr.update(value=message, **look.IDLE)

    # One turn.

    def _turn(
        self,
        history: History,
        values: Sequence[Any],
        before: _Before,
        request: gr.Request,
        *,
        text_only: bool = False,
        switch_to: Callable[[], str | None] | None = None,
    ) -> Iterator[Updates]:
        """Answer the last user turn of `history`; if that fails, say so and put `before` back.

        switch_to is asked for an adapter to change to once the model is there: before that none is known.
        """
        if talk.being_answered(before.history) and self._runs.of(request.session_hash):
            yield _still_answering()
            return
        with self._runs.start(request.session_hash) as run:
            if run is None:
                yield _still_answering()
                return
            cleared = {} if before.message is None else {"value": {"text": "", "files": []}}
            yield [*history, talk.note("…", waiting=True)], gr.update(**cleared, **look.ANSWERING), gr.skip()
            client = request.session_hash or ""
            try:
                last: Any = gr.skip()
                with closing(self._answer(run, history, values, text_only, switch_to, client)) as updates:
                    for update in updates:
                        last = update[0]
                        yield update
                # Once more with the end: of two updates within one frame the page drops the first.
                end = last, gr.update(**look.IDLE), gr.skip()
            except AdapterError as error:
                end = self._restore(before, values, error)
            except Exception:
                log.exception("a chat turn failed")
                unknown = AdapterError(texts.FAILED)
                end = self._restore(before, values, unknown)
            yield ([], gr.update(**look.IDLE), gr.skip()) if run.cleared else end

    def _answer(
        self,
        run: Run,
        history: History,
        values: Sequence[Any],
        text_only: bool,
        switch_to: Callable[[], str | None] | None,
        client: str,
    ) -> Generator[Updates, None, None]:
        settings = Settings.checked(dict(zip(self._fields, values, strict=False)))
        for status in wait_for(self.provider):
            if run.stopped:
                yield talk.stopped(history), gr.skip(), gr.skip()
                return
            wait = talk.note(texts.waiting_for_model(status), waiting=True)
            yield [*history, wait], gr.skip(), gr.skip()
        history = with_small_picture(history)
        if switch_to is not None and (name := switch_to()) is not None:
            settings = settings.replace(adapter=name)
            yield gr.skip(), gr.skip(), gr.update(value=name)
            # Of two updates that reach a browser within one frame Gradio's page drops the first (6.31).
            time.sleep(FRAME_SECONDS)
        if not text_only and (offer := self._answers.offered(history, settings)):
            yield [*history, *offer], gr.skip(), gr.skip()
            return
        history = divided(history, settings)
        for entries in self._answers.stream(run, history, settings, client):
            yield [*history, *entries], gr.skip(), gr.skip()

    def _restore(self, before: _Before, values: Sequence[Any], error: AdapterError) -> Updates:
        """Say what is wrong, and put everything back as it was before the turn."""
        toast(error)
        message = before.message
        if message is not None and isinstance(error, BadPicture):
            # The file leaves the box, so that the words can be sent again without it.
            message = {**message, "files": []}
        value = {} if message is None else {"value": message}
        adapter = values[self._fields.index("adapter")]
        there = adapter in self.store.names()
        picker = gr.update(choices=look.picker_choices(self.store), value=adapter if there else BASE_ONLY)
        return before.history, gr.update(**value, **look.IDLE), picker


def _no_change() -> Updates:
    # A generator that ends without a yield would empty its outputs.
    return gr.skip(), gr.skip(), gr.skip()


def _still_answering() -> Updates:
    gr.Info(texts.STILL_ANSWERING, duration=6)
    return _no_change()


def toast(error: AdapterError) -> None:
    gr.Warning(public_text(error), duration=12)
