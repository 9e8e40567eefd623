"""The cache of the most recently used values."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRU(Generic[K, V]):
    """The most recently used values, none of them None, whose `size` sums up to at most `limit`. Thread-safe."""

    def __init__(self, limit: int, size: Callable[[V], int] = lambda value: 1) -> None:
        self.limit, self._size_of = limit, size
        self.size = 0  # of all values
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.RLock()
        self._computing: dict[K, threading.Lock] = {}

    def __iter__(self) -> Iterator[K]:
        with self._lock:
            return iter(list(self._values))

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value, unless it is larger than the limit: then the others stay."""
        size = self._size_of(value)
        with self._lock:
            self.pop(key)
            if self.make_room(size):
                self._values[key] = value
                self.size += size

    def pop(self, key: K) -> None:
        with self._lock:
            if key in self._values:
                self.size -= self._size_of(self._values.pop(key))

    def make_room(self, size: int) -> bool:
        """Forget values until `size` more fit; False, without forgetting any, if they never would."""
        with self._lock:
            if size > self.limit:
                return False
            while self.size + size > self.limit:
                self.size -= self._size_of(self._values.popitem(last=False)[1])
            return True

    def compute(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, made on a miss by one of its callers. Callers with other keys do not wait."""
        if (value := self.get(key)) is not None:
            return value
        with self._lock:
            lock = self._computing.setdefault(key, threading.Lock())
        try:
            with lock:
                if (value := self.get(key)) is None:
                    value = make()
                    self.put(key, value)
                return value
        finally:
            with self._lock:
                self._computing.pop(key, None)
