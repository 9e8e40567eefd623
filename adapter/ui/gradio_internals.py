"""Private names of Gradio's Python that the page depends on; others: app.py, preload.py, server/request_guard.py.
requirements.txt bounds Gradio's version because of these, and of the class names in static/.
"""

import asyncio
import json
import os
import time
from abc import ABCMeta
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import orjson
from gradio import http_server, processing_utils, route_utils, routes, state_holder, tunneling
from gradio.context import LocalContext
from gradio.data_classes import _StaticFiles
from gradio.queueing import Queue
from gradio.utils import LRUCache
from starlette.exceptions import HTTPException
from starlette.requests import Request

from adapter.base.template import encodable
from adapter.server.generation import client_of
from adapter.server.limits import UNREAD_BYTES, Limits
from adapter.ui import images
from adapter.ui.texts import page as texts
from adapter.ui.toasts import refusal

PHOTOGRAPH = Path(gr.__file__).parent / "media_assets" / "images" / "cheetah1.jpg"  # an example in the empty chat
UNREAD_SECONDS = 300.0  # that results wait for a stream to fetch one: more than the largest takes to arrive
IDLE_SECONDS = 0.02  # between two looks for a new event; Gradio's 0.001 takes 5 % of a core (6.31)
SESSION_CHARACTERS = 100  # Gradio's clients name theirs by at most 36


@dataclass
class Unconverted:
    """A value that Gradio sends as it is: to convert and copy a long Chatbot's holds its event loop 50 ms."""

    value: list[Any]


def _converted(data: list[Any]) -> list[Any]:
    return [value.value if isinstance(value, Unconverted) else value for value in data]


class StrictBlocks(gr.Blocks):
    """Blocks that answer malformed input with a sentence, unlogged, and whose updates cost what is new in them."""

    def launch(self, *values: Any, **more: Any) -> Any:
        """As Gradio's, which gives up where its first page takes 3 seconds, as on a busy machine (6.31)."""
        return super().launch(*values, **more, _frontend=False)

    async def preprocess_data(self, *values: Any, **more: Any) -> list[Any]:
        try:
            return await super().preprocess_data(*values, **more)
        except (gr.Error, TypeError, ValueError, LookupError, AttributeError) as error:
            if isinstance(error, gr.Error) and not error.print_exception:
                raise  # the page's own, a sentence for the visitor
            raise refusal(texts.WRONG_VALUE) from error

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """As Gradio's (6.31), without two costs: it rebuilds the component and schema of each skipped output, and
        converts even texts in threads, each of which takes a core from the engine when it wakes.
        """
        outputs = block_fn.outputs
        values = [predictions] if len(outputs) == 1 else predictions
        if not isinstance(values, list | tuple) or len(values) != len(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        shown: list[Any] = list(values)
        rest: list[int] = []
        for i, (output, value) in enumerate(zip(outputs, values, strict=True)):
            is_text = isinstance(value, str | list | Unconverted)
            if is_text and isinstance(output, gr.Chatbot | gr.HTML | gr.Textbox):
                shown[i] = output.postprocess(value)
            elif value != gr.skip():
                rest.append(i)
        if rest:
            part, given = copy(block_fn), [values[i] for i in rest]
            part.outputs = [outputs[i] for i in rest]
            made = await super().postprocess_data(part, given[0] if len(rest) == 1 else given, state)
            for i, value in zip(rest, made, strict=True):
                shown[i] = value
        return shown

    def handle_streaming_diffs(self, block_fn: Any, data: list[Any], **of: Any) -> list[Any]:
        return super().handle_streaming_diffs(block_fn, _converted(data), **of)

    async def process_api(self, *values: Any, **more: Any) -> dict[str, Any]:
        output = await super().process_api(*values, **more)
        return {**output, "data": _converted(output["data"])}


def subclass_component(name: str, parent: type, methods: dict[str, Any]) -> Any:
    """A subclass with its parent's frontend, made past Gradio's metaclass, which writes a .pyi file beside it."""
    return ABCMeta.__new__(type(parent), name, (parent,), {"is_template": True, "__module__": __name__, **methods})


def sent(event: gr.EventData) -> dict[str, Any]:
    return event._data if isinstance(event._data, dict) else {}


def refuse_remote_files() -> None:
    """Make Gradio refuse files that a request names by an http address; by itself it downloads them."""

    async def refuse(*_: object, **__: object) -> str:
        raise refusal(texts.NOTHING_IS_FETCHED)

    processing_utils.async_ssrf_protected_download = refuse


def set_upload_folder(folder: Path) -> None:
    """Makes Gradio, which has read the variable, keep all its files in `folder`. Before the page is built."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    routes.DEFAULT_TEMP_DIR = str(folder)


def close_page(page: gr.Blocks) -> None:
    """Stop the server of a launched page at once, though event streams never end, and its share link."""
    if page.server is not None:
        page.server.force_exit = True
    try:
        page.close(verbose=False)
    except RuntimeError:  # it wakes the heartbeats of another thread's loop, one of which left meanwhile (6.31)
        page.server.close()
    for tunnel in tunneling.CURRENT_TUNNELS:
        tunnel.kill()


def set_current_request(request: Request, blocks: gr.Blocks) -> None:
    """Tell the package `spaces` whose GPU quota counts in this thread; Gradio does so for its own events only."""
    if LocalContext.request.get(None) is None:
        LocalContext.request.set(gr.Request(request))
        LocalContext.blocks.set(blocks)


class _RecentlyUsed(LRUCache[str, Any]):
    """A cache whose look-ups count as use; Gradio's forgets what was added first."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self.move_to_end(key)
        return value


class _Results(asyncio.Queue[Any]):
    """The messages for one session. size: bytes of those that nobody has fetched; network: of who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.fetched, self.network = 0, time.monotonic(), ""

    def _put(self, message: Any) -> None:
        output = getattr(message, "output", None)
        try:
            size = 500 + len(orjson.dumps(output, default=str))
        except TypeError:  # half of an emoji, which a message or a link may hold and no stream can carry
            message.output = json.loads(encodable(json.dumps(output, default=str, ensure_ascii=False)))
            size = 500 + len(orjson.dumps(message.output))
        self.size, self.fetched = self.size + size, self.fetched if self.size else time.monotonic()
        super()._put((message, size))

    def _get(self) -> Any:
        message, size = super()._get()
        self.size -= size
        self.fetched = time.monotonic()
        return message


class _PendingMessages(_RecentlyUsed):
    """Messages that outlive a stream that is cut, with which Gradio deletes them: they go with the session."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self and len(self) >= self.max_size:
            super().__delitem__(next(iter(self)))
        super().__setitem__(key, _Results())

    def __delitem__(self, key: str) -> None:
        pass

    def drop_unread(self, network: str | None) -> None:
        """Drop the unread messages of sessions that fetched none for UNREAD_SECONDS, and of the network's beyond
        its share of them, the longest idle first. Their streams then end, and their events at the next message.
        """
        unread = sorted((r.fetched, key, r.size, r.network) for key, r in list(self.items()) if r.size)
        share = max(UNREAD_BYTES * 3 // 8, 16 * UNREAD_BYTES // max(1, len({of for *_, of in unread})))
        excess = sum(size for *_, size, other in unread if other == network) - min(UNREAD_BYTES, share)
        for fetched, key, size, other in unread:
            beyond = other == network is not None and excess > 0
            if beyond or fetched < time.monotonic() - UNREAD_SECONDS:
                excess -= size * beyond
                with suppress(KeyError):
                    super().__delitem__(key)


class _Session(state_holder.SessionState):
    """A session without Gradio's record of its components' values: 27 ms, 0.46 MB and what visitors sent."""

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))
        self.STATE_TTL_WHEN_CLOSED = 21_600  # of a page whose connection was cut once, for good (6.31)
        self.blocks_config.config_for_block = lambda *_: {}  # a schema of the message box with every update


class _BoundedQueue(Queue):
    """Gradio's queue, bounded for each address, and in the results that nobody fetches."""

    limits: Limits
    pending_messages_per_session: Any

    async def push(self, body: Any, request: Any, username: str | None) -> Any:
        waiting = [event for events in self.event_queue_per_concurrency_id.values() for event in events.queue]
        running = [event for events in self.active_jobs for event in events or ()]
        addresses = [client_of(event.request).address for event in (*waiting, *running)]
        self.limits.event(client_of(request).address, addresses)
        return await super().push(body=body, request=request, username=username)

    def send_message(self, event: Any, event_message: Any) -> None:
        if (results := self.pending_messages_per_session.get(event.session_hash)) is None:
            event.alive = False
            return
        super().send_message(event, event_message)
        if results.size:
            results.network = self.limits.key(client_of(event.request).address)
            self.pending_messages_per_session.drop_unread(results.network)


class _Written(set[str]):
    """Paths that Gradio deletes by age. Iterates over a copy, as others add paths, and skips its static files."""

    def __iter__(self) -> Iterator[str]:
        return iter([path for path in list(super().__iter__()) if Path(path) not in _StaticFiles.all_paths])

    def add(self, path: str) -> None:
        super().update([path] if os.path.isfile(path) else [])  # visitors name any; what is none stays for ever

    def __isub__(self, gone: Any) -> Any:  # type: ignore[misc]
        for path in map(Path, gone):  # Gradio leaves the folder that it makes for each file
            with suppress(OSError):
                path.parent.rmdir()
        return super().__isub__(gone)


class _Signals(_RecentlyUsed):
    """Events that fire when an upload begins, by the name that a client gives it or asks for."""

    def __missing__(self, name: str) -> asyncio.Event:
        self[name] = event = asyncio.Event()
        return event


def guard(page: gr.Blocks, most: int, limits: Limits) -> None:
    """Patches Gradio in this process: bounds sessions, queue and uploads, and closes CORS. most: sessions that are
    kept. By itself Gradio makes one for every name that clients invent, keeps a part of it for ever, and cuts the
    answers of the oldest. What is too much raises RateLimited, which RequestGuard answers.
    """
    state_holder.SessionState, parser = _Session, route_utils.GradioMultiPartParser
    # Each of up to a thousand files would stay open until the last has come, and in memory what is no file.
    route_utils.GradioMultiPartParser = lambda *a, **k: parser(*a, **k | {"max_files": 16, "max_fields": 0})
    route_utils.CustomCORSMiddleware.is_valid_origin = lambda *_: False  # it fails without a Host
    http_server.LOCALHOST_NAME = "127.0.0.1"  # not GRADIO_SERVER_NAME, where it tries each port
    http_server.get_space = lambda: None  # on a Space it would watch the program's files and load them anew (6.31)
    images.written, page.upload_file_set = _Written(images.written), _Written(page.upload_file_set)
    for block in page.blocks.values():
        block.temp_files = _Written(block.temp_files)
    page.temp_file_sets = [images.written, page.upload_file_set, *(one.temp_files for one in page.blocks.values())]
    uploads: Any = routes.file_upload_statuses
    uploads._signals, uploads._statuses = _Signals(min(most, 100)), _RecentlyUsed(min(most, 100))
    queue: Any = page._queue
    queue.__class__, queue.limits = _BoundedQueue, limits
    queue.pending_messages_per_session = _PendingMessages(most)
    queue.pending_event_ids_session = _RecentlyUsed(most)
    queue.ANALYTICS_MAX_EVENTS = 0  # of which a table is made with every event that ends
    gr.File._process_single_file = lambda self, file: file.path  # by itself makes an empty file for each

    def count_upload(size: int = 0) -> None:
        if (request := LocalContext.request.get(None)) is not None:
            limits.count("upload", client_of(request).address)
            limits.count("megabyte", client_of(request).address, 1 + (size >> 20))

    images.count_upload = count_upload
    queue.sleep_when_free, queue.progress_update_sleep_when_free = IDLE_SECONDS, 1.0
    get_fn = route_utils.get_fn  # comes before all else that is done for a session

    def get_fn_of_session(blocks: gr.Blocks, api_name: str | None, body: Any) -> Any:
        request = getattr(body, "request", None)  # /call asks first without, and then from the queue
        if request is not None and (body.session_hash is None or body.session_hash not in blocks.state_holder):
            if body.session_hash == "" or len(body.session_hash or "") > SESSION_CHARACTERS:
                raise HTTPException(422, texts.WRONG_VALUE)
            limits.count("session", client_of(request).address)
        try:
            found = get_fn(blocks=blocks, api_name=api_name, body=body)
            if found.fn is None:
                raise KeyError("an event of browsers alone")
            return found
        except (KeyError, route_utils.FnIndexInferError):  # Gradio would log a traceback for each such request
            raise HTTPException(422, texts.WRONG_VALUE) from None

    route_utils.get_fn = get_fn_of_session
