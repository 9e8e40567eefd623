"""What one address may ask of a public server: how often, and how much at once."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

from adapter.errors import Busy
from adapter.lru import LRU
from adapter.serve.request import Client

ANSWERS_PER_MINUTE, ANSWERS_AT_ONCE = 30, 24  # the engine's other slots are left to other addresses
UPLOADS_PER_HOUR = 60
VALUES_AT_ONCE = 200_000  # of JSON, in one request
EVENTS_AT_ONCE = 30  # of pages, that wait or run; the page runs 64 that need the model, and 64 may wait
UNREAD_BYTES = 64 * 2**20  # of results that nobody has fetched
# What one address may do: how often, within how many seconds, and in words.
RATES = {
    "answer": (ANSWERS_PER_MINUTE, 60, "answers a minute"),
    "inspection": (60, 60, "looks inside a minute"),
    "upload": (UPLOADS_PER_HOUR, 3600, "uploads an hour"),
    "megabyte": (1024, 86_400, "MB of uploads a day"),  # a quarter of what the folder holds
    "request": (6000, 60, "requests a minute"),  # of a page: a hundred files when it opens, and every second after
    "program": (600, 60, "requests a minute"),  # to /v1
    "kilobyte": (300_000, 60, "kB of files a minute"),  # Gradio compresses each anew: 20 to 40 ms a MB
    "session": (360, 60, "new pages a minute"),  # three for each: page, first event, heartbeat
    # Of JSON, whose making and checking lasts 1 to 4 s a million, while nothing else is served.
    "value": (1_000_000, 60, "values a minute"),
    "login": (20, 60, "tries a minute"),
}
_ANSWERS = "answers are being {} for your address already. Wait for one of them to end"
_CONNECTIONS = "connections are open from your address already. Close some of them"
# What one address may hold at once, in words, and the seconds until it may ask again.
PLACES = {
    "answer": (ANSWERS_AT_ONCE, _ANSWERS.format("written"), 5),
    "inspection": (6, _ANSWERS.format("looked into"), 5),  # of eight that the engine lets wait and run
    "page": (128, _CONNECTIONS, 30),  # each holds one while it is open; a school may share an address
    "file": (1024, _CONNECTIONS, 5),  # a page asks for a hundred at once where its proxy speaks HTTP/2
    "stream": (64, _CONNECTIONS, 30),  # of pages that are being answered
    "call": (24, _CONNECTIONS, 30),  # to /v1, which takes twice as many at once
    "body": (24, _CONNECTIONS, 5),  # messages and uploads that are on their way
}


class RateLimited(Busy):
    """An address has used up its share. It may ask again after `retry_after` seconds."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = math.ceil(retry_after)


class TokenBuckets:
    """A token bucket for each key: `size` tokens, refilled within `seconds`. Thread-safe, of bounded size."""

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.size, self._rate, self._clock = size, size / seconds, clock
        self._lock = threading.Lock()
        self._buckets: LRU[str, tuple[float, float]] = LRU(10_000)  # tokens, and when that was

    def take(self, key: str, count: int = 1) -> float:
        """Take `count` tokens (give, below 0) and return 0; or take none: the seconds until there is one."""
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.get(key) or (float(self.size), now)
            tokens = min(self.size, tokens + (now - then) * self._rate)
            wait = max(0.0, (1 - tokens) / self._rate)
            self._buckets.put(key, (tokens - count * (count < 0 or not wait), now))
            return wait


class Slots:
    """`size` slots for each key. Thread-safe; `release` may be called even by the collector, while this thread
    holds a lock, so that these are no semaphores.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()
        self._released: deque[str] = deque()

    def acquire(self, key: str) -> bool:
        """Whether there was a slot left."""
        with self._lock:
            while self._released:
                self._taken[self._released.popleft()] -= 1
            self._taken = +self._taken  # without those that hold none
            if self._taken[key] >= self.size:
                return False
            self._taken[key] += 1
            return True

    def release(self, key: str) -> None:
        self._released.append(key)


class Limits:
    """All limits of one server, none unless it is `public`. Its methods raise RateLimited."""

    def __init__(self, public: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.public = public
        self._rates = {name: TokenBuckets(size, seconds, clock) for name, (size, seconds, _) in RATES.items()}
        self._places = {name: Slots(size) for name, (size, _, _) in PLACES.items()}

    def key(self, address: str) -> str | None:
        """What an address is counted under; unknown ones are one. None: nobody is limited here."""
        return Client(address).network if self.public else None

    def count(self, name: str, address: str, count: int = 1) -> None:
        """Count something that happens now; 0 only checks whether it may happen again."""
        most, _, what = RATES[name]
        if (key := self.key(address)) is not None and (wait := self._rates[name].take(key, count)):
            whole = max(1, math.ceil(wait))
            again = f"{whole} second{'s' * (whole > 1)}" if wait < 90 else f"{math.ceil(wait / 60)} minutes"
            raise RateLimited(f"{most} {what} are the limit for one address. Try again in {again}.", wait)

    def hold(self, name: str, address: str, count: int = 1) -> Callable[[], None]:
        """Take a place of `name`; returns the function that frees it. count: for the rate, 0 if counted before."""
        if (key := self.key(address)) is None:
            return lambda: None
        slots = self._places[name]
        if not slots.acquire(key):
            _, what, retry_after = PLACES[name]
            raise RateLimited(f"{slots.size} {what}.", retry_after)
        try:
            if count and name in self._rates:
                self.count(name, address, count)
        except RateLimited:
            slots.release(key)
            raise
        return lambda: slots.release(key)

    def event(self, address: str, open_events: Iterable[str]) -> None:
        """Raises RateLimited where an address has too many events open. open_events: the addresses of all."""
        key = self.key(address)
        if key is not None and sum(self.key(other) == key for other in open_events) >= EVENTS_AT_ONCE:
            what = "actions of your address are under way already. Wait for some of them to end."
            raise RateLimited(f"{EVENTS_AT_ONCE} {what}", 5)
