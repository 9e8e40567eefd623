"""ASGI middleware before the whole page: limits bodies and connections, and cleans up uploads that break off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import h11
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from adapter.serve.request import Client
from adapter.server import texts
from adapter.server.generation import client_of
from adapter.server.limits import VALUES_AT_ONCE, Limits, RateLimited
from adapter.server.openai_api import error_response
from adapter.server.openai_schema import ApiError
from adapter.server.request_guard import Kind, find_route

log = logging.getLogger(__name__)

MESSAGE_BYTES = 8 * 2**20  # of a request that is no upload: a conversation with its kept pictures is the largest
UPLOAD_BYTES = 40 * 2**20
ADAPTER_BYTES = 256 * 2**20  # of an upload where visitors may upload adapters
BODY_SECONDS, BODY_BYTES_PER_SECOND = 30.0, 2**15  # a body may take so long, and more by its length
FOLDER_BYTES, FOLDER_FILES = 4 * 2**30, 20_000  # of a day's uploads
# Each connection costs the server a file, of which a process has about a thousand.
HEAD_SECONDS = 20.0  # for the head of a request to arrive
CONNECTIONS_AT_ONCE = 256  # of one address; a browser opens six for each page
_FORM_BYTES = 2**16  # around an uploaded file
_FOLDER_SECONDS = 10.0


class RequestLimits:
    """Counts requests, uploads and open connections by address, and refuses what is too large or too slow.

    Comes after RequestGuard, so that a request has a route that is allowed.
    """

    def __init__(self, app: ASGIApp, limits: Limits, folder: Path, most: int = UPLOAD_BYTES) -> None:
        """folder: of the uploads; most: bytes of one."""
        self._app, self._limits, self._most = app, limits, most
        self._folder = _FolderSize(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = "" if scope["type"] != "http" else client_of(Request(scope)).address
        if scope["type"] != "http" or self._limits.key(address) is None:
            await self._app(scope, receive, send)
            return
        route = find_route(scope)
        kind = route.kind if route else ""
        if kind == "health":  # costs nothing; a probe that is refused would have the server started again
            await self._app(scope, receive, send)
            return
        release: Callable[[], None] = lambda: None  # noqa: E731
        try:
            if kind in ("v1", "figures"):  # which is shown to who has the key of /v1
                self._limits.count("program", address)
                if kind == "v1":
                    release = self._limits.hold("call", address)
                    receive = self._counting_values(kind, address, receive)
                self._limits.count("login", address, 0)
                send = self._counting_wrong_keys(address, send)
            else:
                self._limits.count("request", address)
                if kind == "stream":
                    release = self._limits.hold("stream", address)
                elif kind in ("body", "login", "upload"):
                    release = self._limits.hold("body", address)
                    receive = _bounded(receive, await self._check_length(kind, scope, address))
                if kind == "body":
                    receive = self._counting_values(kind, address, receive)
            await self._app(scope, receive, send)
        except _Refused as refused:
            await PlainTextResponse(refused.detail, refused.status_code)(scope, receive, send)
        except RateLimited as error:
            await _rate_limited(kind, error)(scope, receive, send)
        finally:
            release()

    def _counting_wrong_keys(self, address: str, send: Send) -> Send:
        async def counting(message: Message) -> None:
            if message.get("status") == 401:
                with contextlib.suppress(RateLimited):
                    self._limits.count("login", address)
            await send(message)

        return counting

    def _counting_values(self, kind: Kind, address: str, receive: Receive) -> Receive:
        """Receives a JSON body and counts its values before they are parsed."""
        count = 0

        async def counting() -> Message:
            nonlocal count
            message = await receive()
            if message["type"] == "http.request":
                count += sum(map(message.get("body", b"").count, b"[{,"))  # those in texts too
                if count > VALUES_AT_ONCE:
                    raise _refused(kind, 413, texts.too_many_values(VALUES_AT_ONCE))
                if not message.get("more_body", False):
                    try:
                        self._limits.count("value", address, count)
                    except RateLimited as error:
                        raise _refused(kind, 429, str(error)) from None
            return message

        return counting

    async def _check_length(self, kind: Kind, scope: Scope, address: str) -> int:
        """The body's length as the request states it, if it may be so long."""
        stated = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if not stated.isdecimal():
            raise _Refused(411, texts.REQUEST_WITHOUT_LENGTH)
        length = int(stated)
        if kind == "upload":
            if length > self._most + _FORM_BYTES:
                raise _Refused(413, texts.upload_too_large(self._most))
            self._limits.count("upload", address)
            if await self._folder.is_full(length):
                raise _Refused(507, texts.UPLOADS_FULL)
            return length
        if length > MESSAGE_BYTES:
            raise _Refused(413, texts.request_too_large(MESSAGE_BYTES))
        if kind == "login":
            self._limits.count("login", address)
        return length


def _bounded(receive: Receive, length: int) -> Receive:
    """Receives a body of at most `length` bytes, which arrive with at least the slowest speed that is waited for.

    A request can be longer than it states: a chunked one ends where it says so itself.
    """
    deadline = anyio.current_time() + BODY_SECONDS + length / BODY_BYTES_PER_SECOND
    left, complete = length, False

    async def receive_bounded() -> Message:
        nonlocal left, complete
        if complete:  # what comes now is that the client leaves, at any time
            return await receive()
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                message = await receive()
        except TimeoutError:
            raise _Refused(408, texts.REQUEST_TOO_SLOW) from None
        left -= len(message.get("body", b""))
        if left < 0:
            raise _Refused(413, texts.REQUEST_WITHOUT_LENGTH)
        complete = not message.get("more_body", False)
        return message

    return receive_bounded


class PartialUploads:
    """Answers with a sentence where the disk is full, and deletes what was written of uploads that broke off.

    Gradio 6.31 writes a file on its way as tmp* and forgets one that never becomes whole.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        """folder: of this process's uploads and nobody else's."""
        self._app, self._folder, self._under_way = app, folder, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = find_route(scope) if scope["type"] == "http" else None
        if route is None or route.kind != "upload":
            await self._app(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        except OSError as error:
            log.error("An upload cannot be kept: %s", error.strerror or error)
            await PlainTextResponse(texts.UPLOAD_NOT_KEPT, 507)(scope, receive, send)
        finally:
            self._under_way -= 1
            # In the event loop, so that none begins meanwhile.
            for file in self._folder.glob("tmp*") if not self._under_way else ():
                with contextlib.suppress(OSError):
                    file.unlink()


class _Refused(HTTPException):
    """Of Starlette's kind, which FastAPI lets pass where it reads a body."""


def _refused(kind: Kind, status: int, text: str) -> Exception:
    """What is raised inside an application that reads a body."""
    return ApiError(status, text) if kind == "v1" else _Refused(status, text)


class _FolderSize:
    """Bytes and files in the folder of uploads, measured anew every few seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = self._files = 0
        self._due = 0.0

    async def is_full(self, more: int) -> bool:
        """Whether `more` bytes do not fit; if they do, they count from now on."""
        if (now := time.monotonic()) >= self._due:
            self._due = now + _FOLDER_SECONDS
            self._bytes, self._files = await asyncio.to_thread(_measure, self._path)
        if self._bytes + more > FOLDER_BYTES or self._files >= FOLDER_FILES:
            return True
        self._bytes += more
        self._files += 1
        return False


def _measure(folder: Path) -> tuple[int, int]:
    total = count = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # just deleted
                total += os.lstat(os.path.join(root, name)).st_size
                count += 1
    return total, count


def _rate_limited(kind: Kind, error: RateLimited) -> Response:
    if kind == "v1":
        return error_response(error)
    return PlainTextResponse(str(error), 429, {"Retry-After": str(error.retry_after)})  # as Gradio's page shows it


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request does not begin, and those that one address has too many of.

    By itself uvicorn waits for ever. A proxy that is trusted to name its visitors may have any number.
    """

    network = ""  # of a client that is counted
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if address not in getattr(self.app, "trusted_hosts", ()):
            self.network = Client(address).network
            same = sum(getattr(other, "network", "") == self.network for other in self.connections)
            if same > CONNECTIONS_AT_ONCE:
                transport.abort()
                return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_deadline()

    def _await_head(self) -> None:
        """Between requests uvicorn has its own, shorter time limit, until the first byte of the next one."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
