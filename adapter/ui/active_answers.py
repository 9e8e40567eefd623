"""The answers that are being written, by session. Knows threads; knows nothing of Gradio or of models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# A run ends just after its last update, which may bring the next message at once.
ENDING_SECONDS = 1.0


@dataclass
class Run:
    """An answer that is being written, and what its reader wants of it meanwhile."""

    stopped: bool = False
    cleared: bool = False  # the conversation around it is gone
    cancel: Callable[[], None] | None = None  # ends the answer, once it is asked for

    def stop(self) -> None:
        self.stopped = True
        if self.cancel is not None:
            self.cancel()


class Runs:
    """One run at a time in a session: two would write over each other in one conversation.

    Stop is a word to the run, which then ends with a last update of its own. Gradio's own cancelling would
    leave the browser with whichever update comes last, that of Stop or one under way.
    """

    def __init__(self) -> None:
        self._runs: dict[str | None, Run] = {}
        self._changed = threading.Condition()

    def of(self, session: str | None) -> Run | None:
        return self._runs.get(session)

    @contextmanager
    def start(self, session: str | None) -> Iterator[Run | None]:
        """A new run, or None if another one of this session does not end now."""
        with self._changed:
            free = self._changed.wait_for(lambda: session not in self._runs, ENDING_SECONDS)
            run = self._runs.setdefault(session, Run()) if free else None
        try:
            yield run
        finally:
            if run is not None:
                with self._changed:
                    del self._runs[session]
                    self._changed.notify_all()
