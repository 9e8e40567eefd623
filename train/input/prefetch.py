"""Items made in a thread, ahead of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
_AHEAD = 2  # items


class Prefetch(Iterator[T], Generic[T]):
    """An iterator whose next items are made in a thread while the caller works on the present one.

    What making an item raises is raised where that item would be used; what lies beyond the last item used has no
    effect. Leaving the context ends the thread.
    """

    def __init__(self, make: Callable[[Callable[[], bool]], Iterator[T]]) -> None:
        """make: returns the items; gets a function that says whether nobody waits for them any more."""
        self._stopped = threading.Event()
        self._items = make(self._stopped.is_set)
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._ahead: deque[Future[T]] = deque()

    def __next__(self) -> T:
        while len(self._ahead) <= _AHEAD:
            self._ahead.append(self._thread.submit(next, self._items))
        return self._ahead.popleft().result()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.shutdown(cancel_futures=True)
