"""What the server holds of each open page: the conversation that it shows, and what is being made of it."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from adapter.errors import Busy
from adapter.ui.conversation import History
from adapter.ui.texts import page as texts

MAX_BYTES = 256 * 2**20  # of all conversations as JSON; one has at most conversation.MAX_HISTORY
MAX_SESSIONS = 10_000
# How long to wait for what the page was shown before: its last update may still be on its way.
RELEASE_SECONDS = 1.0
TWICE_SECONDS = 0.1  # after which Gradio has sent an event's last update the second time


class Refused(Busy):
    """An event that may not change the conversation now. answered: the message that is being answered."""

    def __init__(self, text: str, answered: object = None) -> None:
        super().__init__(text)
        self.answered = answered


class Forgotten(Busy):
    """The server has no conversation of the page: it was restarted, or others needed the room."""


class NotOpen(Exception):
    """The event is about a conversation that its page does not show any more."""


@dataclass
class Change:
    """A change of a conversation that is under way, mostly an answer.

    message: that is answered, as the box had it; stopped: whether the visitor has stopped it; cancel: set once
    generation has begun; ended: whether its last update has been made.
    """

    conversation: Conversation
    message: object = None
    stopped: bool = False
    ended: bool = False
    cancel: Callable[[], None] | None = None

    @property
    def left(self) -> bool:
        """Whether its page shows another conversation, so that it sends no updates any more."""
        return self.conversation.left

    def stop(self) -> None:
        self.stopped = True
        if self.cancel is not None:
            self.cancel()


@dataclass
class Conversation:
    """A conversation that a page shows.

    history: replaced, never changed; change: under way; left: whether the page shows another one by now; closed:
    whether the page is gone; pictures: a cache of `conversation_json.pack`; kept: keys of the pictures that the
    browser has; dropped: what it does not keep; answer: the key of the one that is being written, or was when the
    browser kept the conversation; bytes: of the history as JSON.
    """

    id: str
    history: History = field(default_factory=list)
    change: Change | None = None
    left: bool = False
    closed: bool = False
    pictures: dict[str, tuple[str, int] | None] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    dropped: object = None
    answer: str = ""
    bytes: int = 0
    changed: float = 0.0  # when the last change ended, of time.monotonic


class Conversations:
    """The conversation of each open page, by its session. Thread-safe.

    - A page shows one conversation. An event names the one that its visitor saw: about another one it is ignored.
    - One change of a conversation at a time. What comes meanwhile is refused, and changes nothing.
    - What a page has left sends no updates any more, and another one is shown after the last of these.
    - Where there are too many, those that were not used for the longest time are forgotten. The browser has them.

    Stop is a flag, and the answer's own event handler then sends the last update: with Gradio's `cancels` the
    browser would show whichever update came last, that of Stop or one of the answer.
    """

    def __init__(self) -> None:
        self._by_session: OrderedDict[str | None, Conversation] = OrderedDict()
        self._changed = threading.Condition()

    def open(self, session: str | None, id: str, history: History) -> Conversation:
        """Shows another conversation in place of the page's."""
        shown = Conversation(id, history)
        with self._changed:
            before = self._by_session.pop(session, None)
            if session is not None:  # what a program sends without one is nobody's
                self._by_session[session] = shown
            if before is not None:
                before.left = True
                self._changed.wait_for(lambda: before.change is None, RELEASE_SECONDS)
        if before is not None and time.monotonic() - before.changed < TWICE_SECONDS:
            time.sleep(TWICE_SECONDS)
        self._weigh(shown)
        return shown

    def ensure(self, session: str | None, id: str) -> None:
        """Opens an empty conversation if the page has none."""
        with self._changed:
            if session is not None:
                self._by_session.setdefault(session, Conversation(id))

    def forget(self, session: str | None) -> None:
        """Forgets the conversation of a page that was closed, once nothing is made of it any more."""
        with self._changed:
            found = self._by_session.get(session)
            if found is not None and found.change is None:
                del self._by_session[session]
            elif found is not None:
                found.closed = True

    def shown(self, session: str | None, id: str) -> Conversation:
        """The page's conversation. Raises Forgotten and NotOpen."""
        with self._changed:
            return self._shown(session, id)

    def history(self, session: str | None) -> History:
        """What the page shows; empty if the server has nothing of it."""
        with self._changed:
            found = self._by_session.get(session)
            return [] if found is None else found.history

    @contextmanager
    def change(self, session: str | None, id: str, message: object = None) -> Iterator[Change]:
        """Begins a change of the page's conversation. Raises Refused, Forgotten and NotOpen."""
        with self._changed:
            shown = self._shown(session, id)
            before = shown.change
            if before is not None and not (
                before.ended and self._changed.wait_for(lambda: shown.change is None, RELEASE_SECONDS)
            ):
                raise Refused(texts.STILL_ANSWERING, before.message)
            change = shown.change = Change(shown, message)
        try:
            yield change
        finally:
            with self._changed:
                shown.change, shown.changed = None, time.monotonic()
                if shown.closed and self._by_session.get(session) is shown:
                    del self._by_session[session]
                self._changed.notify_all()
            self._weigh(shown)

    def stop(self, session: str | None, id: str) -> Conversation | None:
        """Stops the answer that is being written. Returns the conversation if there is none."""
        shown = self.shown(session, id)
        if (change := shown.change) is None or change.ended:
            return shown
        change.stop()
        return None

    def _shown(self, session: str | None, id: str) -> Conversation:
        shown = self._by_session.get(session)
        if shown is None:
            raise Forgotten(texts.STILL_RESTORING)
        if shown.id != id:
            raise NotOpen
        self._by_session.move_to_end(session)
        return shown

    def _weigh(self, shown: Conversation) -> None:
        """Forgets the oldest conversations beyond the limits, but for those that are being changed."""
        size = len(json.dumps(shown.history))  # takes milliseconds: nobody else waits for it
        with self._changed:
            shown.bytes = size
            total, count = sum(other.bytes for other in self._by_session.values()), len(self._by_session)
            for session, other in list(self._by_session.items()):
                if total <= MAX_BYTES and count <= MAX_SESSIONS:
                    return
                if other is not shown and other.change is None:
                    del self._by_session[session]
                    total, count = total - other.bytes, count - 1
