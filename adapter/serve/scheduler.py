"""The queue before the engine: whoever asks much waits behind whoever asks little. Knows nothing of what waits."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Clients take turns, each with its own requests in order. Not thread-safe."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def __iter__(self) -> Iterator[T]:
        """All that waits, in the order in which `pop` would give it."""
        for turn in range(max(map(len, self._clients.values()), default=0)):
            yield from (items[turn] for items in self._clients.values() if turn < len(items))

    def put(self, item: T, client: str) -> None:
        self._clients.setdefault(client, deque()).append(item)

    def pop(self) -> T:
        """The next item. Raises IndexError if there is none."""
        if not self._clients:
            raise IndexError("the queue is empty")
        client, items = self._clients.popitem(last=False)
        item = items.popleft()
        if items:
            self._clients[client] = items  # behind the others
        return item

    def remove(self, item: T) -> bool:
        """Take an item out; False if it is not there."""
        for client, items in self._clients.items():
            if item in items:
                items.remove(item)
                if not items:
                    del self._clients[client]
                return True
        return False
