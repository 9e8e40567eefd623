"""Several answers read as one stream. Knows threads; knows nothing of Gradio or of models."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from adapter.errors import AdapterError
from adapter.ui.texts.page import FAILED

if TYPE_CHECKING:
    from adapter.serve.request import Answer, GenerationEvent

log = logging.getLogger(__name__)


def together(
    answers: Mapping[int, Answer], seconds: float
) -> Iterator[list[tuple[int, GenerationEvent | AdapterError]]]:
    """What comes of the answers, as it comes, in lists that are at least `seconds` apart: (key, event).

    An error ends its own answer only. Ends when all have ended. Whoever stops reading before that has to close
    the answers; their threads end with them.
    """
    inbox: queue.SimpleQueue[tuple[int, GenerationEvent | AdapterError | None]] = queue.SimpleQueue()

    def read(key: int, answer: Answer) -> None:
        try:
            for event in answer:
                inbox.put((key, event))
        except AdapterError as error:
            inbox.put((key, error))
        except Exception:
            log.exception("an answer failed")
            inbox.put((key, AdapterError(FAILED)))
        inbox.put((key, None))

    for key, answer in answers.items():
        threading.Thread(target=read, args=(key, answer), name=f"pane-{key}", daemon=True).start()
    open_, due = len(answers), 0.0
    while open_:
        news = [inbox.get()]
        time.sleep(max(0.0, due - time.monotonic()))
        due = time.monotonic() + seconds
        while not inbox.empty():
            news.append(inbox.get())
        open_ -= sum(event is None for _, event in news)
        if found := [(key, event) for key, event in news if event is not None]:
            yield found
