"""What one address may ask of a public server: how often, and how much at once.

Knows addresses, counts and ASGI; knows no Gradio and no models. Whoever sits at the server itself is not limited.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter.errors import Busy
from adapter.server.openai_api import error_response
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from adapter.serve.inspection import Inspection
    from adapter.serve.request import Answer, GenerationRequest
    from adapter.server.generation import EngineProvider
    from adapter.server.loader import LoadStatus, ServingEngine

ANSWERS_PER_MINUTE = 30
ANSWERS_AT_ONCE = 24  # the engine's other places are left to other addresses
INSPECTIONS_PER_MINUTE = 60
UPLOADS_PER_HOUR = 60
STREAMS_AT_ONCE = 64  # each open page holds one; a school may share an address
CALLS_AT_ONCE = 24  # to /v1, half of its places
LOGINS_PER_MINUTE = 20
MESSAGE_BYTES = 8 * 2**20  # of a request that is no upload: a conversation with its kept pictures is the largest
LARGE_BYTES, LARGE_PER_HOUR = 2**20, 240  # Gradio keeps what an answer was asked with until somebody fetches it
UPLOAD_BYTES = 40 * 2**20
FOLDER_BYTES, FOLDER_FILES = 4 * 2**30, 20_000  # of a day's uploads
_FOLDER_SECONDS = 10.0
_MOST_ADDRESSES = 10_000

# The request that is being served, for those who are called further inside; Gradio's events run elsewhere.
SCOPE: ContextVar[Scope | None] = ContextVar("scope", default=None)


class TooOften(Busy):
    """An address has asked for more than its share. `retry_after` seconds later it may again."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = math.ceil(retry_after)


class Buckets:
    """A bucket of `size` tokens for each key, which fills in `seconds`. Thread-safe, and of bounded size."""

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.size, self._rate, self._clock = size, size / seconds, clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when that was

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, count: int = 1) -> float:
        """Take `count` tokens and return 0; or take none, and return the seconds until there is one."""
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.pop(key, (float(self.size), now))
            tokens = min(self.size, tokens + (now - then) * self._rate)
            wait = max(0.0, (1 - tokens) / self._rate)
            self._buckets[key] = (tokens - count * (not wait), now)  # behind all others
            while self._buckets:
                tokens, then = next(iter(self._buckets.values()))
                if tokens + (now - then) * self._rate < self.size and len(self._buckets) <= _MOST_ADDRESSES:
                    break
                self._buckets.popitem(last=False)  # full again, as one that was never here
            return wait


class Places:
    """`size` places for each key. Thread-safe; `leave` may be called from anywhere, even by the collector."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        self._left: deque[str] = deque()  # not a lock: the collector may come while this thread holds it

    def take(self, key: str) -> bool:
        with self._lock:
            while self._left:
                left = self._left.popleft()
                self._taken[left] -= 1
                if not self._taken[left]:
                    del self._taken[left]
            if self._taken.get(key, 0) >= self.size:
                return False
            self._taken[key] = self._taken.get(key, 0) + 1
            return True

    def leave(self, key: str) -> None:
        self._left.append(key)


class Limits:
    """All limits of one server. public: whether visitors from elsewhere come without a proxy that names them."""

    def __init__(self, public: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._public = public
        self._answers = Buckets(ANSWERS_PER_MINUTE, 60, clock)
        self._inspections = Buckets(INSPECTIONS_PER_MINUTE, 60, clock)
        self._uploads = Buckets(UPLOADS_PER_HOUR, 3600, clock)
        self._large = Buckets(LARGE_PER_HOUR, 3600, clock)
        self._logins = Buckets(LOGINS_PER_MINUTE, 60, clock)
        self._answering = Places(ANSWERS_AT_ONCE)
        self._streams = Places(STREAMS_AT_ONCE)
        self._calls = Places(CALLS_AT_ONCE)

    def key(self, address: str) -> str | None:
        """Under which an address is counted: networks as small as one person may own. None: it is not limited."""
        try:
            ip = ip_address(address)
        except ValueError:
            return address[:100] or None
        if isinstance(ip, IPv6Address):
            ip = ip.ipv4_mapped or ip
        if ip.is_loopback and not self._public:
            return None
        return str(ip) if ip.version == 4 else str(ip_address(int(ip) >> 64 << 64))

    def answer(self, address: str) -> Callable[[], None]:
        """Count an answer that begins; what comes back is to be called when it has ended. Raises TooOften."""
        if (key := self.key(address)) is None:
            return lambda: None
        if not self._answering.take(key):
            raise TooOften(texts.too_many_at_once(ANSWERS_AT_ONCE), 5)
        if wait := self._answers.take(key):
            self._answering.leave(key)
            raise TooOften(texts.too_many_answers(ANSWERS_PER_MINUTE, wait), wait)
        return lambda: self._answering.leave(key)

    def inspection(self, address: str) -> None:
        """Raises TooOften."""
        if (key := self.key(address)) is not None and (wait := self._inspections.take(key)):
            raise TooOften(texts.too_many_inspections(INSPECTIONS_PER_MINUTE, wait), wait)

    def upload(self, address: str) -> None:
        """Raises TooOften."""
        if (key := self.key(address)) is not None and (wait := self._uploads.take(key)):
            raise TooOften(texts.too_many_uploads(UPLOADS_PER_HOUR, wait), wait)

    def message(self, address: str, size: int) -> None:
        """Count a request of so many bytes. Raises TooOften."""
        if size > LARGE_BYTES and (key := self.key(address)) is not None and (wait := self._large.take(key)):
            raise TooOften(texts.too_many_large(LARGE_PER_HOUR, wait), wait)

    def login(self, address: str, count: int = 1) -> None:
        """Count tries at the password; 0 only looks whether there may be another. Raises TooOften."""
        if (key := self.key(address)) is not None and (wait := self._logins.take(key, count)):
            raise TooOften(texts.too_many_logins(LOGINS_PER_MINUTE, wait), wait)

    def stream(self, address: str) -> Callable[[], None]:
        """Count a connection of a page that stays open, as `answer` does. Raises TooOften."""
        return self._connection(self._streams, address)

    def call(self, address: str) -> Callable[[], None]:
        """Count a program's request, whose body may be long in coming. Raises TooOften."""
        return self._connection(self._calls, address)

    def _connection(self, places: Places, address: str) -> Callable[[], None]:
        if (key := self.key(address)) is None:
            return lambda: None
        if not places.take(key):
            raise TooOften(texts.too_many_streams(places.size), 30)
        return lambda: places.leave(key)


class LimitedEngine:
    """An engine that counts who asks it. address: of whoever is being served in this thread, "" for nobody."""

    def __init__(self, engine: ServingEngine, limits: Limits, address: Callable[[], str]) -> None:
        self._engine, self._limits, self._address = engine, limits, address
        self.base = engine.base

    def submit(self, request: GenerationRequest) -> Answer:
        """As the engine's. Raises TooOften too."""
        leave = self._limits.answer(self._address())
        try:
            answer = self._engine.submit(request)
        except BaseException:
            leave()
            raise
        # Its reader has let go of it, by whatever way.
        weakref.finalize(answer, leave).atexit = False
        return answer

    def inspect(self, request: GenerationRequest, answer_ids: Any) -> Inspection:
        """As the engine's. Raises TooOften too."""
        self._limits.inspection(self._address())
        return self._engine.inspect(request, answer_ids)

    def close(self) -> None:
        self._engine.close()


class LimitedProvider:
    """A provider whose engine counts who asks it."""

    def __init__(self, provider: EngineProvider, limits: Limits, address: Callable[[], str]) -> None:
        self._provider, self._limits, self._address = provider, limits, address

    def engine(self) -> LimitedEngine | None:
        engine = self._provider.engine()
        return None if engine is None else LimitedEngine(engine, self._limits, self._address)

    def status(self) -> LoadStatus:
        return self._provider.status()


class Gate:
    """ASGI middleware before the whole page: what is sent, and connections that stay open, are counted here."""

    def __init__(self, app: ASGIApp, limits: Limits, folder: Path, most: int = UPLOAD_BYTES) -> None:
        """folder: of the uploads; most: bytes of one."""
        self._app, self._limits, self._most = app, limits, most
        self._folder = _Folder(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = SCOPE.set(scope)
        leave: Callable[[], None] | None = None
        try:
            if "/v1/" in scope["path"]:
                leave = self._limits.call(address_of(scope))
                self._limits.login(address_of(scope), 0)
                send = self._counting_wrong_keys(address_of(scope), send)
            else:
                if _stays_open(scope["path"]):
                    leave = self._limits.stream(address_of(scope))
                if scope["method"] == "POST":
                    await self._check_body(scope)
            await self._app(scope, receive, send)
        except _Refused as refused:
            await refused.response(scope, receive, send)
        except TooOften as error:
            await _too_often(scope["path"], error)(scope, receive, send)
        finally:
            SCOPE.reset(token)
            if leave is not None:
                leave()

    def _counting_wrong_keys(self, address: str, send: Send) -> Send:
        async def counting(message: Message) -> None:
            if message.get("status") == 401:
                with suppress(TooOften):
                    self._limits.login(address)
            await send(message)

        return counting

    async def _check_body(self, scope: Scope) -> None:
        """/v1 reads its own bodies with care; those of Gradio's routes are read whole."""
        address = address_of(scope)
        if self._limits.key(address) is None:
            return
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if not length.isdecimal():
            raise _Refused(411, texts.REQUEST_WITHOUT_LENGTH)
        if scope["path"].endswith("/gradio_api/upload"):
            if int(length) > self._most + 2**16:  # the form around the file
                raise _Refused(413, texts.upload_too_large(self._most))
            self._limits.upload(address)
            if await self._folder.is_full(int(length)):
                raise _Refused(507, texts.UPLOADS_FULL)
            return
        if int(length) > MESSAGE_BYTES:
            raise _Refused(413, texts.message_too_large(MESSAGE_BYTES))
        self._limits.message(address, int(length))
        if scope["path"].endswith("/login"):
            self._limits.login(address)


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = PlainTextResponse(text, status)


class _Folder:
    """How full the folder of uploads is, measured anew every few seconds."""

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
            try:
                total += os.lstat(os.path.join(root, name)).st_size
                count += 1
            except OSError:  # just deleted
                continue
    return total, count


def address_of(scope: Scope) -> str:
    """Of whoever sends a request: the connection's, or what a proxy that uvicorn trusts says of it."""
    client = scope.get("client")
    return client[0] if client else ""


def _stays_open(path: str) -> bool:
    tail = path.partition("/gradio_api")[2]
    return tail.startswith(("/queue/data", "/call/", "/heartbeat/", "/upload"))


def _too_often(path: str, error: TooOften) -> Response:
    if "/v1/" in path:
        return error_response(error)
    return PlainTextResponse(str(error), 429, {"Retry-After": str(error.retry_after)})  # as Gradio's page shows it
