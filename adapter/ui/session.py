"""What the server holds of each open page: the conversation that it shows, and what is being made of it."""

from __future__ import annotations

import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Any

from adapter.errors import Busy
from adapter.ui.conversation import History, ended, size_of
from adapter.ui.texts import page as texts

MAX_BYTES = 256 * 2**20  # of all conversations; one has at most conversation.MAX_HISTORY
MAX_SESSIONS = 10_000
# How long a conversation stays without a page, and a second page waits for an answer: as long as one may take.
UNREAD_SECONDS, HANDOVER_SECONDS = 30.0, 600.0
# How long to wait for what the page was shown before: its last update may still be on its way.
RELEASE_SECONDS = 1.0
TWICE_SECONDS = 0.1  # Gradio sends an event's last update twice, the second time within this


class StillAnswering(Busy):
    """The conversation is being changed. answered: the message that is answered."""

    def __init__(self, answered: object) -> None:
        super().__init__(texts.STILL_ANSWERING)
        self.answered = answered


class Forgotten(Busy):
    """The server has no conversation of the page: it was restarted, or others needed the room."""


class NotOpen(Exception):
    """The event is about a conversation that its page does not show any more."""


@dataclass
class Change:
    """A change that is under way. session: of the page that reads it, None once it has left; message: the one that
    it answers, as it was in the box; updates: of an answer; shown: the newest history of these; rewrites: whether
    it replaces the end of the history; cancel: set once generation begins; ended: whether its last update is made.
    """

    conversation: Conversation
    session: str | None
    message: object = None
    updates: Generator[Any, None, None] | None = None
    shown: History = field(default_factory=list)
    rewrites: bool = False
    stopped: bool = False
    ended: bool = False
    cancel: Callable[[], None] = lambda: None
    timer: Any = None  # ends an answer that nobody reads

    @property
    def unread(self) -> bool:
        """Whether it is an answer that another page may go on with."""
        open_states = (inspect.GEN_CREATED, inspect.GEN_SUSPENDED)
        return self.updates is not None and inspect.getgeneratorstate(self.updates) in open_states

    @property
    def result(self) -> History:
        """What the conversation becomes if nothing more is read."""
        last = self.shown[-1]
        is_empty = last.record is not None and not last.pending and not last.record.before  # no text, no variants
        stays = self.rewrites and last.role == "page" and not last.options and not is_empty
        return self.conversation.history if stays else ended(self.shown)


@dataclass
class Conversation:
    """A conversation that a page shows, or has just shown. Its id is as secret as the browser's storage. history:
    replaced, never changed; view: how it was last sent; kept: keys of the pictures that the browser has; dropped:
    what it does not keep; changed, left: when the last change ended and the last page left, of time.monotonic.
    """

    id: str
    history: History = field(default_factory=list)
    change: Change | None = None
    view: Any = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    dropped: object = None
    undone: tuple[str, int] = ("", 0)  # the text, and how many pictures, that Undo has put into the box last
    bytes: int = 0
    changed: float = 0.0
    left: float | None = None

    @property
    def newest(self) -> History:
        """The history, with what there is of an answer that is being written."""
        change = self.change
        return change.result if change is not None and change.shown else self.history


class Conversations:
    """The conversations of open pages by their ids, and which of them each session shows. Thread-safe.

    - An event names the conversation that its visitor saw: about one that its page has left it is ignored.
    - One change of a conversation at a time. What comes meanwhile is refused, and changes nothing.
    - A page gets no update of a conversation that it has left, and another one is shown after the last of these.
    - Where there are too many, those that were not used for the longest time are forgotten. The browser has them.

    Stop is a flag, not Gradio's `cancels`: the answer's own event handler then sends the last update.
    """

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Conversation] = OrderedDict()
        self._shown: dict[str | None, str] = {}
        self._changed = threading.Condition()

    def open(self, session: str | None, id: str, history: History) -> Conversation:
        """Shows a conversation in place of the page's: as the server has it, or else `history`."""
        with self._changed:
            old = self._by_id.get(self.close(session))
            shown = self._by_id.setdefault(id, Conversation(id, history))
            shown.left = time.monotonic() if session is None else None
            if session is not None:  # what a program sends without one is nobody's
                self._shown[session] = id
            if len(self._shown) > 10 * MAX_SESSIONS:
                self.close(next(iter(self._shown)))
            if old is not None:
                self._changed.wait_for(lambda: (c := old.change) is None or c.session != session, RELEASE_SECONDS)
        if old is not None and time.monotonic() - old.changed < TWICE_SECONDS:
            time.sleep(TWICE_SECONDS)
        self._measure_and_evict(shown)
        return shown

    def close(self, session: str | None) -> str:
        """Forgets a page. Its conversation, whose id it returns, stays for a while: the page may be reloading."""
        with self._changed:
            if (id := self._shown.pop(session, "")) in self._by_id and id not in self._shown.values():
                self._by_id[id].left = time.monotonic()
            return id

    def shows(self, session: str | None, id: str) -> bool:
        """Whether a page shows this conversation. An unknown one is believed: Gradio closes idle pages (6.31)."""
        return self._shown.get(session, id) == id

    def shown(self, session: str | None, id: str) -> Conversation:
        """The page's conversation. Raises Forgotten and NotOpen."""
        with self._changed:
            return self._find(session, id)

    def history(self, session: str | None, id: str = "") -> History:
        """What the page shows, `id` if it has slept; empty if the server has nothing of it."""
        with self._changed:
            found = self._by_id.get(self._shown.get(session, id))
            return [] if found is None else found.history

    @contextmanager
    def change(self, session: str | None, id: str, message: object = None) -> Iterator[Change]:
        """Begins a change of the page's conversation. Raises StillAnswering, Forgotten and NotOpen."""
        with self._changed:
            shown = self._find(session, id)
            before = shown.change
            if before is not None and not (
                before.ended and self._changed.wait_for(lambda: shown.change is None, RELEASE_SECONDS)
            ):
                raise StillAnswering(before.message)
            change = shown.change = Change(shown, session, message)
        try:
            yield change
        finally:
            self._release(change)

    @contextmanager
    def taken_over(self, session: str | None, id: str) -> Iterator[Change]:
        """The answer that is being written, once no other page reads it. Raises Forgotten, or NotOpen for none."""
        with self._changed:
            change = self._find(session, id).change
            if change is None or change.updates is None:
                raise NotOpen

            def has_left() -> bool:
                return self._shown.get(session) != id

            self._changed.wait_for(lambda: change.session is None or has_left(), HANDOVER_SECONDS)
            if has_left() or change.session is not None or change.conversation.change is not change:
                raise NotOpen
            change.session = session
            change.timer.cancel()
        try:
            yield change
        finally:
            self._release(change)

    def stop(self, session: str | None, id: str) -> Conversation | None:
        """Stops the answer that is being written. Returns the conversation if there is none."""
        shown = self.shown(session, id)
        if (change := shown.change) is None or change.ended:
            return shown
        change.stopped = True
        change.cancel()
        return None

    def _find(self, session: str | None, id: str) -> Conversation:
        if not self.shows(session, id):
            raise NotOpen
        if (shown := self._by_id.get(id)) is None or session is None:
            raise Forgotten(texts.STILL_RESTORING)
        self._by_id.move_to_end(id)
        return shown

    def _release(self, change: Change) -> None:
        """Ends a change; an answer that is unread only if no other page takes it over in time."""
        shown = change.conversation
        if change.unread:
            shown.history = change.result
            if not change.stopped:
                with self._changed:
                    change.session = None
                    change.timer = threading.Timer(UNREAD_SECONDS, self._abandon, (change,))
                    change.timer.daemon = True
                    change.timer.start()
                    self._changed.notify_all()
                return
        if change.updates is not None:
            change.updates.close()
        with self._changed:
            change.session = None
            if shown.change is change:
                shown.change, shown.changed = None, time.monotonic()
            self._changed.notify_all()
        self._measure_and_evict(shown)

    def _abandon(self, change: Change) -> None:
        with self._changed:
            if change.session is not None or change.conversation.change is not change:
                return
            change.session, change.stopped = "", True  # nobody takes it from now on
        change.cancel()
        with suppress(Exception):  # an engine that has failed: nobody is there to be told
            for update in change.updates or ():
                if isinstance(update, list):
                    change.shown = update
        change.conversation.history = change.result  # what was written meanwhile stays
        self._release(change)

    def _measure_and_evict(self, shown: Conversation) -> None:
        """Forgets what no page shows any more, and the oldest beyond the limits; nothing that is being changed."""
        rows = (row["content"][0].get("text", "") for one in shown.view for row in one.rows)
        size = size_of(shown.history) + sum(map(getsizeof, rows))  # takes a millisecond: nobody else waits for it
        with self._changed:
            shown.bytes = size
            total, count = sum(other.bytes for other in self._by_id.values()), len(self._by_id)
            late = time.monotonic() - UNREAD_SECONDS
            for id, other in list(self._by_id.items()):
                is_over = total > MAX_BYTES or count > MAX_SESSIONS
                if (is_over or (other.left or late + 1) < late) and other is not shown and other.change is None:
                    del self._by_id[id]
                    total, count = total - other.bytes, count - 1
