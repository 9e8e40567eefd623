"""Every private name of Gradio's Python that the page depends on.

Nothing else in this project may use one, but for the routes in adapter/server/request_guard.py. requirements.txt
bounds Gradio's version because of this file, and of the class names in static/*.css and static/*.js.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import processing_utils, route_utils, routes, state_holder, tunneling
from gradio.components.base import Component
from gradio.context import LocalContext
from gradio.data_classes import GradioModel, GradioRootModel
from gradio.utils import LRUCache
from starlette.exceptions import HTTPException
from starlette.requests import Request

from adapter.server.generation import client_of
from adapter.server.limits import UNREAD_BYTES, Limits, RateLimited
from adapter.ui.texts import page as texts
from adapter.ui.toasts import refusal

# Photographs that come with Gradio; one of them is an example in the empty chat.
PHOTOGRAPHS = Path(gr.__file__).parent / "media_assets" / "images"

UNREAD_SECONDS = 300.0  # that results wait for a stream to fetch one: more than the largest takes to arrive
_MESSAGE_BYTES = 500  # of a message without its output
SESSION_CHARACTERS = 100  # Gradio's clients name theirs by at most 36


class StrictBlocks(gr.Blocks):
    """Blocks that answer malformed input values with one sentence, and do not log them.

    Gradio would put the values into its error message and its log.
    """

    def launch(self, *values: Any, **more: Any) -> Any:
        """As Gradio's, which gives up where its first page takes 3 seconds, as on a busy machine (6.31)."""
        return super().launch(*values, **more, _frontend=False)

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if len(inputs) < len(block_fn.inputs):
            raise refusal(texts.TOO_FEW_VALUES)

    async def preprocess_data(self, *values: Any, **more: Any) -> list[Any]:
        try:
            return await super().preprocess_data(*values, **more)
        except (gr.Error, TypeError, ValueError, LookupError, AttributeError) as error:
            if isinstance(error, gr.Error) and not error.print_exception:
                raise  # the page's own, a sentence for the visitor
            raise refusal(texts.WRONG_VALUE) from error

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """As Gradio's, which makes an update of an answer ten times as dear as its words are (6.31).

        For each output that an update skips it constructs the component and its schema anew, and each other value
        is converted in a thread of its own.
        """
        outputs = block_fn.outputs
        values = [predictions] if len(outputs) == 1 else predictions
        if block_fn.batch or not isinstance(values, list | tuple) or len(values) != len(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        updates: list[Any] = []
        for output, value in zip(outputs, values, strict=True):
            if value == gr.skip():
                updates.append(value)
                continue
            part = copy(block_fn)
            part.outputs = [output]
            if isinstance(output, _IN_LOOP) and isinstance(value, str | list):
                block = state[output._id] if state is not None and output._id in state else output
                value, part.postprocess = _to_json(block.postprocess(value)), False
            updates += await super().postprocess_data(part, value, state)
        return updates


# Components whose values are converted within microseconds.
_IN_LOOP = (gr.Chatbot, gr.Textbox, gr.HTML)


def _to_json(value: Any) -> Any:
    return value.model_dump() if isinstance(value, GradioModel | GradioRootModel) else value


@contextmanager
def without_early_applications() -> Iterator[None]:
    """Meanwhile Gradio makes no FastAPI application.

    By itself it makes one when a page is begun, one when it is built and one for its queue. `launch` makes the one
    that serves.
    """
    create_app = vars(routes.App)["create_app"]
    routes.App.create_app = staticmethod(lambda *_, **__: None)
    try:
        yield
    finally:
        routes.App.create_app = create_app


def subclass_component(name: str, parent: type, methods: dict[str, Any]) -> Any:
    """A subclass of a Gradio component that uses its parent's frontend.

    Bypasses Gradio's metaclass, which would write a .pyi file beside the module that defines the class.
    """
    return ABCMeta.__new__(type(parent), name, (parent,), {"is_template": True, **methods})


def refuse_remote_files() -> None:
    """Make Gradio refuse files that a request names by an http address; by itself it downloads them."""

    async def refuse(*_: object, **__: object) -> str:
        raise refusal(texts.NOTHING_IS_FETCHED)

    processing_utils.async_ssrf_protected_download = refuse


def set_upload_folder(folder: Path) -> None:
    """Makes Gradio keep all its files in `folder`. Call it before the page is built.

    Some of its modules have read the variable when they were imported, and one makes a folder there.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    routes.DEFAULT_TEMP_DIR = str(folder)


def remember_schemas() -> None:
    """Make Gradio derive the schema of a kind of value once.

    By itself it does so for every component, and constructs the message box anew when an answer begins and when it
    ends: 0.7 ms each (6.31).
    """
    derive, schemas = Component.api_info, dict[Any, dict[str, Any]]()

    def api_info(self: Component) -> dict[str, Any]:
        if self.data_model not in schemas:
            schemas[self.data_model] = derive(self)
        return schemas[self.data_model]

    Component.api_info = api_info  # type: ignore[method-assign]


def poll_disconnects_rarely() -> None:
    """Make Gradio ask every second, not with every message of a stream, whether the browser has left.

    Asking is a fifth of what an update of an answer costs (starlette 1.10), and a response that streams is told of
    it at once anyway.
    """
    ask = Request.is_disconnected

    async def is_disconnected(self: Any) -> bool:
        now = time.monotonic()
        if now < getattr(self, "next_poll", 0.0):
            return self._is_disconnected
        self.next_poll = now + 1.0
        return await ask(self)

    Request.is_disconnected = is_disconnected  # type: ignore[method-assign]


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
        size = _MESSAGE_BYTES + _memory(getattr(message, "output", None))
        self.size += size
        super()._put((message, size))

    def _get(self) -> Any:
        message, size = super()._get()
        self.size -= size
        self.fetched = time.monotonic()
        return message


def _memory(value: Any) -> int:
    """Bytes of a value of JSON."""
    total, rest = 0, [value]
    while rest:
        part = rest.pop()
        total += sys.getsizeof(part)
        rest += part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
    return total


class _PendingMessages(_RecentlyUsed):
    """Gradio deletes a session's messages when one of its streams is cut, even if another one reads them, which
    then ends with an error. Here they go with the least recently used session, or if nobody fetches them.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _Results())

    def __delitem__(self, key: str) -> None:
        if len(self) >= self.max_size:  # popitem deletes, too
            super().__delitem__(key)

    def drop(self, key: str) -> None:
        """Drop a session's messages. Its streams then end, its events when they have the next message for it."""
        with suppress(KeyError):
            super().__delitem__(key)

    def drop_excess(self, network: str, limit: int) -> None:
        """Drop messages until the network's sessions have `limit` bytes: first of who has long fetched none."""
        mine = sorted((r.fetched, key, r.size) for key, r in list(self.items()) if r.network == network)
        excess = sum(size for _, _, size in mine) - limit
        for _, key, size in mine:
            if excess > 0 and size:
                self.drop(key)
                excess -= size


class _Session(state_holder.SessionState):
    """A session without Gradio's record of all values that its components had, for links that are refused here.

    The record is all that makes sessions dear: 27 ms, 0.46 MB, and what visitors sent and got (6.31).
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


def limit_sessions(page: gr.Blocks, most: int, count_new: Callable[[str], None]) -> None:
    """Make the page keep at most `most` sessions, and call `count_new` with the address that begins a new one.

    A client names its sessions itself. By itself Gradio makes one for every name, keeps a part of each for ever,
    and cuts the answers of those that have been there longest. count_new: raises RateLimited for one too many.
    """
    state_holder.SessionState = _Session
    page._queue.pending_messages_per_session = _PendingMessages(most)
    page._queue.pending_event_ids_session = _RecentlyUsed(most)
    get_fn = route_utils.get_fn  # comes before all else that is done for a session

    def get_fn_of_session(blocks: gr.Blocks, api_name: str | None, body: Any) -> Any:
        request = getattr(body, "request", None)  # /call asks first without, and then from the queue
        if request is not None and (body.session_hash is None or body.session_hash not in blocks.state_holder):
            if body.session_hash == "" or len(body.session_hash or "") > SESSION_CHARACTERS:
                raise HTTPException(422, texts.WRONG_VALUE)
            try:
                count_new(client_of(request).address)
            except RateLimited as error:
                raise _too_many(error) from None
        try:
            return get_fn(blocks=blocks, api_name=api_name, body=body)
        except KeyError:  # no event has this number, and Gradio would log a traceback for each request
            raise HTTPException(422, texts.WRONG_VALUE) from None

    route_utils.get_fn = get_fn_of_session


def limit_events(page: gr.Blocks, count: Callable[[str, Iterable[str]], None]) -> None:
    """Make the page's queue call `count` with the addresses of each new event and of all that wait or run.

    By itself one visitor's events can fill it, and all others are told that it is full. count: raises RateLimited
    for one too many.
    """
    queue = page._queue
    push = queue.push

    async def push_of_address(body: Any, request: Request, username: str | None) -> Any:
        waiting = [event for events in queue.event_queue_per_concurrency_id.values() for event in events.queue]
        running = [event for events in queue.active_jobs for event in events or ()]
        try:
            count(client_of(request).address, [client_of(event.request).address for event in (*waiting, *running)])
        except RateLimited as error:
            raise _too_many(error) from None
        return await push(body=body, request=request, username=username)

    queue.push = push_of_address


def limit_unread_results(page: gr.Blocks, limits: Limits) -> None:
    """Bound the results that a launched page holds for sessions which do not fetch them, by address and time.

    By itself Gradio keeps all of them, for sessions too that nobody has opened a stream for.
    """
    queue, holder = page._queue, page.state_holder
    send, expire = queue.send_message, holder.delete_all_expired_state
    pending: _PendingMessages = queue.pending_messages_per_session

    def send_bounded(event: Any, message: Any) -> None:
        if (results := pending.get(event.session_hash)) is None:
            event.alive = False
            return
        send(event, message)
        if results.size and (network := limits.key(client_of(event.request).address)) is not None:
            results.network = network
            pending.drop_excess(network, UNREAD_BYTES)

    def expire_unread() -> None:
        expire()
        oldest = time.monotonic() - UNREAD_SECONDS
        for session, results in list(pending.items()):
            if results.size and results.fetched < oldest:
                pending.drop(session)

    queue.send_message = send_bounded
    holder.delete_all_expired_state = expire_unread  # called every second


def _too_many(error: RateLimited) -> HTTPException:
    return HTTPException(429, str(error), {"Retry-After": str(error.retry_after)})


def close_page(page: gr.Blocks) -> None:
    """Stop the server of a launched page at once, and its share link.

    `close` alone waits for the event streams of open pages, which never end.
    """
    if page.server is not None:
        page.server.force_exit = True
    page.close(verbose=False)
    for tunnel in tunneling.CURRENT_TUNNELS:
        tunnel.kill()


def set_current_request(request: Request, blocks: gr.Blocks) -> None:
    """Tell the package `spaces` whose GPU quota counts in this thread; Gradio does so for its own events only."""
    if LocalContext.request.get(None) is None:
        LocalContext.request.set(gr.Request(request))
        LocalContext.blocks.set(blocks)
