"""Bounds for what strangers ask of Gradio's sessions and of its queue, and what an idle queue costs.

Like gradio_internals.py it uses private names of Gradio's Python.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import gradio as gr
import orjson
from gradio import route_utils, state_holder
from gradio.queueing import Queue
from gradio.utils import LRUCache
from starlette.exceptions import HTTPException

from adapter.server.generation import client_of
from adapter.server.limits import UNREAD_BYTES, Limits, RateLimited
from adapter.ui.texts import page as texts

UNREAD_SECONDS = 300.0  # that results wait for a stream to fetch one: more than the largest takes to arrive
IDLE_SECONDS = 0.02  # between two looks for a new event; Gradio's 0.001 takes 5 % of a core (6.31)
SESSION_CHARACTERS = 100  # Gradio's clients name theirs by at most 36


class _RecentlyUsed(LRUCache[str, Any]):
    """Gradio's cache forgets what was added first, even if it is in use."""

    def __getitem__(self, key: str) -> Any:
        self.move_to_end(key)
        return super().__getitem__(key)


class _Results(asyncio.Queue[Any]):
    """The messages for one session. size: bytes of those that nobody has fetched; network: of who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.fetched, self.network = 0, time.monotonic(), ""

    def _put(self, message: Any) -> None:
        size = 500 + len(orjson.dumps(getattr(message, "output", None), default=str))
        self.size += size
        super()._put((message, size))

    def _get(self) -> Any:
        message, size = super()._get()
        self.size -= size
        self.fetched = time.monotonic()
        return message


class _PendingMessages(_RecentlyUsed):
    """Gradio deletes a session's messages when one of its streams is cut, even if another one reads them, which
    then ends with an error. Here they go with the least recently used session, or if nobody fetches them.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _Results())

    def __delitem__(self, key: str) -> None:
        if len(self) >= self.max_size:  # popitem deletes, too
            super().__delitem__(key)

    def drop_unread(self, network: str | None) -> None:
        """Drop what waits for a fetch too long, and what the network's sessions have beyond UNREAD_BYTES: first of
        who has long fetched none. The sessions' streams then end, their events with the next message.
        """
        unread = sorted((r.fetched, key, r.size, r.network) for key, r in list(self.items()) if r.size)
        excess = sum(size for *_, size, other in unread if other == network) - UNREAD_BYTES
        for fetched, key, size, other in unread:
            beyond = other == network is not None and excess > 0
            if beyond or fetched < time.monotonic() - UNREAD_SECONDS:
                excess -= size * beyond
                with suppress(KeyError):
                    super().__delitem__(key)


class _Session(state_holder.SessionState):
    """A session without Gradio's record of all values that its components had, for links that are refused here.

    The record is all that makes sessions dear: 27 ms, 0.46 MB, and what visitors sent and got (6.31).
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))

    _update_config = _update_value_in_config = lambda *_: None


class _BoundedQueue(Queue):
    """Gradio's queue, bounded for each address: by itself one visitor's events can fill it, and all others are
    told that it is full; and it keeps all results for sessions that nobody has opened a stream for.
    """

    limits: Limits
    pending_messages_per_session: Any

    async def push(self, body: Any, request: Any, username: str | None) -> Any:
        waiting = [event for events in self.event_queue_per_concurrency_id.values() for event in events.queue]
        running = [event for events in self.active_jobs for event in events or ()]
        addresses = [client_of(event.request).address for event in (*waiting, *running)]
        try:
            self.limits.event(client_of(request).address, addresses)
        except RateLimited as error:
            raise _too_many(error) from None
        return await super().push(body=body, request=request, username=username)

    def send_message(self, event: Any, event_message: Any) -> None:
        if (results := self.pending_messages_per_session.get(event.session_hash)) is None:
            event.alive = False
            return
        super().send_message(event, event_message)
        if results.size:
            results.network = self.limits.key(client_of(event.request).address)
            self.pending_messages_per_session.drop_unread(results.network)


def guard(page: gr.Blocks, most: int, limits: Limits) -> None:
    """Bound what clients ask of the page's sessions and queue. most: sessions that it keeps.

    A client names its sessions itself. By itself Gradio makes one for every name, keeps a part of each for ever,
    and cuts the answers of those that have been there longest.
    """
    state_holder.SessionState = _Session
    queue: Any = page._queue
    queue.__class__, queue.limits = _BoundedQueue, limits
    queue.pending_messages_per_session = _PendingMessages(most)
    queue.pending_event_ids_session = _RecentlyUsed(most)
    queue.sleep_when_free, queue.progress_update_sleep_when_free = IDLE_SECONDS, 1.0
    get_fn = route_utils.get_fn  # comes before all else that is done for a session

    def get_fn_of_session(blocks: gr.Blocks, api_name: str | None, body: Any) -> Any:
        request = getattr(body, "request", None)  # /call asks first without, and then from the queue
        if request is not None and (body.session_hash is None or body.session_hash not in blocks.state_holder):
            if body.session_hash == "" or len(body.session_hash or "") > SESSION_CHARACTERS:
                raise HTTPException(422, texts.WRONG_VALUE)
            try:
                limits.count("session", client_of(request).address)
            except RateLimited as error:
                raise _too_many(error) from None
        try:
            return get_fn(blocks=blocks, api_name=api_name, body=body)
        except (KeyError, route_utils.FnIndexInferError):  # Gradio would log a traceback for each such request
            raise HTTPException(422, texts.WRONG_VALUE) from None

    route_utils.get_fn = get_fn_of_session


def _too_many(error: RateLimited) -> HTTPException:
    return HTTPException(429, str(error), {"Retry-After": str(error.retry_after)})
