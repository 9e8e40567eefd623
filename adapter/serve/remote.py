"""This process's side of answers that another one computes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from adapter.base.llama import Base
from adapter.errors import AdapterError
from adapter.serve.request import GenerationEvent, GenerationRequest, GenerationStats, Mailbox


class RemoteAnswer:
    """Passes on the events of an answer. After its last event the reader gets no other.

    submitted_at, started_at: on the clock `time.perf_counter`. The second is None until the other process says
    that it has begun.
    """

    def __init__(self, request: GenerationRequest, prompt_tokens: int) -> None:
        self.request = request
        self.mailbox = Mailbox()
        self.ended = False
        self.tokens = 0
        self.submitted_at = self._first = time.perf_counter()
        self.started_at: float | None = None
        self._prompt_tokens = prompt_tokens
        # Reentrant: the garbage collector may free and so cancel the answer while this thread delivers an event.
        self._lock = threading.RLock()

    def deliver(self, event: GenerationEvent | AdapterError) -> None:
        """Passes on an event of the process that computes."""
        if isinstance(event, AdapterError) or event.finish_reason is not None:
            self.end(event)
            return
        with self._lock:
            if not self.ended:
                self._first = self._first if self.tokens else time.perf_counter()
                self.tokens += event.token_id is not None
                self.mailbox.put(event)

    def end(self, last: GenerationEvent | AdapterError) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = True
        if isinstance(last, GenerationEvent) and last.stats is not None:
            # Only this process knows how long the other one took to begin.
            waited = time.perf_counter() - self.submitted_at - last.stats.prefill_s - last.stats.decode_s
            last = replace(last, stats=replace(last.stats, queue_s=max(0.0, waited)))
        self.mailbox.put(last)

    def cancel(self) -> None:
        """Ends the answer for its reader at once; the other process ends it after its next step."""
        self.end(GenerationEvent(finish_reason="cancelled", stats=self.stats()))

    def stats(self) -> GenerationStats:
        """The counts as far as this process knows them."""
        now = time.perf_counter()
        first = self._first if self.tokens else now
        return GenerationStats(self._prompt_tokens, self.tokens, 0.0, 0.0, now - first)


def stand_in(base: Base) -> Any:
    """What a store needs of `base` to load adapters that stay on the CPU of this process."""
    return SimpleNamespace(fingerprint=base.fingerprint, device=torch.device("cpu"))
