"""What one address may ask of a public server: how often, and how much at once.

Knows addresses, counts and the engine's interface; knows no HTTP (middleware.py) and no Gradio.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from adapter.errors import Busy
from adapter.serve.client import Client
from adapter.server import texts
from adapter.server.generation import WrappedEngine, WrappedProvider

if TYPE_CHECKING:
    from adapter.serve.inspection import Inspection
    from adapter.serve.request import Answer, GenerationRequest
    from adapter.server.generation import EngineProvider
    from adapter.server.loader import ServingEngine

ANSWERS_PER_MINUTE = 30
ANSWERS_AT_ONCE = 24  # the engine's other slots are left to other addresses
INSPECTIONS_PER_MINUTE = 60
INSPECTIONS_AT_ONCE = 6  # of the eight that the engine lets wait and run
UPLOADS_PER_HOUR = 60
STREAMS_AT_ONCE = 64  # each open page holds one; a school may share an address
CALLS_AT_ONCE, CALLS_PER_MINUTE = 24, 600  # to /v1, which takes twice as many at once
REQUESTS_PER_MINUTE = 6000  # of pages: one asks for a hundred files when it opens, and every second after
SESSIONS_PER_MINUTE = 120  # new ones, which take the place of older ones in Gradio
# Of JSON, whose making and checking lasts 1 to 4 s a million, while nothing else is served.
VALUES_AT_ONCE, VALUES_PER_MINUTE = 200_000, 1_000_000
EVENTS_AT_ONCE = 48  # of pages, that wait or run; the page runs 64 that need the model, and 64 may wait
BODIES_AT_ONCE = 24  # messages and uploads that are on their way
LOGINS_PER_MINUTE = 20
UNREAD_BYTES = 64 * 2**20  # of results that nobody has fetched; an export has up to 20 MB
_MAX_ADDRESSES = 10_000


class RateLimited(Busy):
    """An address has used up its share. It may ask again after `retry_after` seconds."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = math.ceil(retry_after)


class TokenBuckets:
    """A token bucket for each key: `size` tokens, refilled within `seconds`. Thread-safe, of bounded size.

    Not the package `limits`: it has windows without a steady refill, and keeps every key until a timer expires it.
    """

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
            self._buckets[key] = (tokens - count * (not wait), now)  # now the most recently used
            while self._buckets:
                tokens, then = next(iter(self._buckets.values()))
                if tokens + (now - then) * self._rate < self.size and len(self._buckets) <= _MAX_ADDRESSES:
                    break
                self._buckets.popitem(last=False)  # full again, like one that was never used
            return wait


class Slots:
    """`size` slots for each key. Thread-safe; `release` may be called from anywhere, even by the collector.

    Not semaphores: there would be one for each address, and the collector may run while this thread holds a lock.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        self._released: deque[str] = deque()

    def acquire(self, key: str) -> bool:
        """Whether there was a slot left."""
        with self._lock:
            while self._released:
                released = self._released.popleft()
                self._taken[released] -= 1
                if not self._taken[released]:
                    del self._taken[released]
            if self._taken.get(key, 0) >= self.size:
                return False
            self._taken[key] = self._taken.get(key, 0) + 1
            return True

    def release(self, key: str) -> None:
        self._released.append(key)


class Limits:
    """All limits of one server. public: whether others than its own machine may ask; if not, there are none.

    Every method raises RateLimited for an address that has used up its share.
    """

    def __init__(self, public: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._public = public
        self._answers = TokenBuckets(ANSWERS_PER_MINUTE, 60, clock)
        self._inspections = TokenBuckets(INSPECTIONS_PER_MINUTE, 60, clock)
        self._uploads = TokenBuckets(UPLOADS_PER_HOUR, 3600, clock)
        self._requests = TokenBuckets(REQUESTS_PER_MINUTE, 60, clock)
        self._programs = TokenBuckets(CALLS_PER_MINUTE, 60, clock)
        self._sessions = TokenBuckets(SESSIONS_PER_MINUTE, 60, clock)
        self._values = TokenBuckets(VALUES_PER_MINUTE, 60, clock)
        self._logins = TokenBuckets(LOGINS_PER_MINUTE, 60, clock)
        self._answering = Slots(ANSWERS_AT_ONCE)
        self._inspecting = Slots(INSPECTIONS_AT_ONCE)
        self._streams = Slots(STREAMS_AT_ONCE)
        self._calls = Slots(CALLS_AT_ONCE)
        self._bodies = Slots(BODIES_AT_ONCE)

    def key(self, address: str) -> str | None:
        """What an address is counted under; unknown ones are one. None: nobody is limited here."""
        return Client(address).network if self._public else None

    def answer(self, address: str) -> Callable[[], None]:
        """Count an answer that begins. Returns what is to be called when it has ended."""
        sentence = texts.too_many_answers_at_once
        return self._begin(self._answering, self._answers, address, sentence, "answers a minute")

    def inspection(self, address: str) -> Callable[[], None]:
        """Count a look inside, as `answer` does."""
        sentence = texts.too_many_inspections_at_once
        return self._begin(self._inspecting, self._inspections, address, sentence, "looks inside a minute")

    def upload(self, address: str) -> None:
        self._count(self._uploads, address, "uploads an hour")

    def request(self, address: str) -> None:
        """Count a request of a page, whatever it asks for."""
        self._count(self._requests, address, "requests a minute")

    def program(self, address: str) -> None:
        """Count a program's request, whatever it asks for."""
        self._count(self._programs, address, "requests a minute")

    def values(self, address: str, count: int) -> None:
        """Count the values of a JSON body that is about to be parsed."""
        self._count(self._values, address, "values a minute", count)

    def session(self, address: str) -> None:
        """Count a page that is opened, or a program that begins to ask."""
        self._count(self._sessions, address, "new pages a minute")

    def event(self, address: str, open_events: Iterable[str]) -> None:
        """Count an event of a page that begins. open_events: the addresses of those that wait or run."""
        key = self.key(address)
        if key is not None and sum(self.key(other) == key for other in open_events) >= EVENTS_AT_ONCE:
            raise RateLimited(texts.too_many_events(EVENTS_AT_ONCE), 5)

    def login(self, address: str, count: int = 1) -> None:
        """Count tries at the password; 0 only checks whether there may be another."""
        self._count(self._logins, address, "tries a minute", count)

    def stream(self, address: str) -> Callable[[], None]:
        """Count a connection of a page that stays open, as `answer` does."""
        return self._hold(self._streams, address, texts.too_many_connections, 30)

    def call(self, address: str) -> Callable[[], None]:
        """Count a program's request, whose body may be long in coming, as `answer` does."""
        return self._hold(self._calls, address, texts.too_many_connections, 30)

    def body(self, address: str) -> Callable[[], None]:
        """Count a page's message or upload that is on its way, as `answer` does."""
        return self._hold(self._bodies, address, texts.too_many_connections, 5)

    def _begin(
        self, slots: Slots, buckets: TokenBuckets, address: str, sentence: Callable[[int], str], what: str
    ) -> Callable[[], None]:
        """Hold a slot, and count a beginning."""
        release = self._hold(slots, address, sentence, 5)
        try:
            self._count(buckets, address, what)
        except RateLimited:
            release()
            raise
        return release

    def _count(self, buckets: TokenBuckets, address: str, what: str, count: int = 1) -> None:
        if (key := self.key(address)) is not None and (wait := buckets.take(key, count)):
            raise RateLimited(texts.too_often(buckets.size, what, wait), wait)

    def _hold(
        self, slots: Slots, address: str, sentence: Callable[[int], str], retry_after: float
    ) -> Callable[[], None]:
        if (key := self.key(address)) is None:
            return lambda: None
        if not slots.acquire(key):
            raise RateLimited(sentence(slots.size), retry_after)
        return lambda: slots.release(key)


class LimitedEngine(WrappedEngine):
    """An engine that counts by the address of a request's client."""

    def __init__(self, engine: ServingEngine, limits: Limits) -> None:
        super().__init__(engine)
        self._limits = limits

    def submit(self, request: GenerationRequest) -> Answer:
        """As the engine's. Raises RateLimited too."""
        release = self._limits.answer(request.client.address)
        try:
            answer = super().submit(request)
        except BaseException:
            release()
            raise
        weakref.finalize(answer, release).atexit = False  # its reader has dropped it, however that came about
        return answer

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        """As the engine's. Raises RateLimited too."""
        release = self._limits.inspection(request.client.address)
        try:
            return super().inspect(request, answer_ids)
        finally:
            release()


class LimitedProvider(WrappedProvider[LimitedEngine]):
    """A provider whose engine is a LimitedEngine."""

    def __init__(self, provider: EngineProvider, limits: Limits) -> None:
        super().__init__(provider, lambda engine: LimitedEngine(engine, limits))
