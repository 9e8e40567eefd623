"""The numbers of a conversation's states, which keep the events of one page from overwriting each other."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from adapter.errors import Busy
from adapter.ui.texts import page as texts

MAX_SESSIONS = 10_000  # whose newest number is kept; a session that is forgotten counts as a new one
# How long to wait for the previous answer: the user may send the next message as soon as the last update is shown.
RELEASE_SECONDS = 1.0
_MAX_DIGITS = 15
# What conversations.js adds when another conversation is shown: the change that is under way, which the page may
# not have heard of, and its end have the next two numbers.
CLEAR_STEP = 3


class StaleEvent(Busy):
    """An event that may not change the conversation. number: the newest state's, for the page to take over;
    answered: the message that is being answered.
    """

    def __init__(self, text: str, number: int | None = None, answered: object = None) -> None:
        super().__init__(text)
        self.number, self.answered = number, answered


@dataclass
class _State:
    """newest: the number of the session's newest state; change: the one that is under way."""

    newest: int
    change: Change | None = None


@dataclass
class Change:
    """A change of a conversation that is under way: an answer, a restored or an imported conversation.

    stopped: whether the user has stopped it; cancel: set once generation has begun; text: for events that meet it;
    answered: the message, as the box had it.
    """

    number: int = 0
    stopped: bool = False
    cancel: Callable[[], None] | None = None
    text: str = texts.STILL_ANSWERING
    answered: object = None
    _state: _State = field(default_factory=lambda: _State(0), repr=False)

    @property
    def is_stale(self) -> bool:
        """Whether the conversation has a newer state, so that this change's updates are to be dropped."""
        return self.number < self._state.newest

    def stop(self) -> None:
        self.stopped = True
        if self.cancel is not None:
            self.cancel()


class ConversationStates:
    """The newest state of every open page's conversation, as a number. The conversation is in the browser only.

    The rule:
    - A state has a number. It goes to the browser with every update of the chat, comes back with every event, and
      is stored with the conversation. Until its conversation is restored a page has none.
    - An event changes the conversation only if the state that its visitor saw is the newest one and no other
      change is under way; it begins the next state. Otherwise it is refused, and changes nothing.
    - An answer is one state while it is written and the next one when it is complete: an event of somebody who saw
      a part of it is stale afterwards.
    - What is older than the newest state is dropped: here the rest of an answer, in conversations.js a text to be
      stored.
    - Clear and opening another conversation act in the browser at once and take a number beyond all that is under
      way. A number that is newer than the server's is the newest.
    - After a restart the server knows no numbers, and the first event's state is the newest.

    Thread-safe. Stop is a flag, and the answer's own event handler then sends the last update: with Gradio's
    `cancels` the browser would show whichever update came last, that of Stop or one of the answer.
    """

    def __init__(self) -> None:
        self._by_session: OrderedDict[str | None, _State] = OrderedDict()
        self._changed = threading.Condition()

    @contextmanager
    def change(self, session: str | None, seen: object, text: str = texts.STILL_ANSWERING) -> Iterator[Change]:
        """Begins a change of the state `seen`. text: of the refusal of events meanwhile. Raises StaleEvent."""
        number = _parse(seen)
        if number is None:
            raise StaleEvent(texts.STILL_RESTORING)
        with self._changed:
            state = self._state(session, number)
            before = state.change
            if before is not None and number <= before.number:
                raise StaleEvent(before.text, answered=before.answered)
            state.newest = max(state.newest, number)
        if before is not None and before.is_stale:
            before.stop()
        with self._changed:
            if not self._changed.wait_for(lambda: state.change is None, RELEASE_SECONDS):
                raise StaleEvent(texts.STILL_ANSWERING)
            if number < state.newest:
                raise StaleEvent(texts.CHANGED_MEANWHILE, state.newest)
            state.newest = number + 1
            change = state.change = Change(state.newest, text=text, _state=state)
        try:
            yield change
        finally:
            with self._changed:
                state.change = None
                if not change.is_stale:  # it ended without a last update: the page shows a part of it, or nothing
                    state.newest = number
                self._changed.notify_all()

    def finish(self, change: Change) -> int:
        """Makes the last update of a change that is not stale the newest state; returns its number."""
        with self._changed:
            if not change.is_stale:
                change._state.newest += 1
            return change._state.newest

    def stop(self, session: str | None, seen: object) -> int | None:
        """Stops the answer whose state is `seen`.

        Returns None if it was there or has ended by itself. Otherwise the server does not know it, after a restart
        for example: returns the number of a new state, in which the page ends it.
        """
        number = _parse(seen)
        with self._changed:
            state = self._state(session, number or 0)
            change = state.change
            if number is None or number < state.newest:
                return None
            if change is None:
                state.newest = number + 1
                return state.newest
        change.stop()
        return None

    def clear(self, session: str | None, seen: object, stop: bool = True) -> bool:
        """Makes `seen`, an empty conversation, the newest state, and ends what is written to an older one.

        Returns whether it still is the newest one when that has ended. stop: whether its answer is stopped, too;
        otherwise the answer goes on without this page.
        """
        number = _parse(seen)
        if number is None:
            return False
        with self._changed:
            state = self._state(session, number)
            state.newest = max(state.newest, number)
            change = state.change
        if change is not None and change.is_stale:
            if stop:
                change.stop()
            with self._changed:
                self._changed.wait_for(lambda: state.change is not change, RELEASE_SECONDS)
                if not stop and state.change is change:  # it waits, and sends nothing any more
                    self._by_session[session] = _State(state.newest)
        return state.newest == number

    def _state(self, session: str | None, number: int) -> _State:
        state = self._by_session.setdefault(session, _State(number))
        self._by_session.move_to_end(session)
        if len(self._by_session) > MAX_SESSIONS:
            del self._by_session[next(key for key, other in self._by_session.items() if other.change is None)]
        return state


def _parse(seen: object) -> int | None:
    """A number as it comes back from a browser; None for anything else."""
    text = str(seen)
    return int(text) if len(text) <= _MAX_DIGITS and text.isascii() and text.isdigit() else None
