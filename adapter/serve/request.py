"""The vocabulary of serving: what a caller asks the engine for and what comes back. Knows no models."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.serve.client import Client
from adapter.serve.sampling import SamplingParams
from adapter.serve.settings import Settings

MAX_SECONDS = 600.0
FinishReason = Literal["stop", "length", "time", "cancelled"]


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate. `prompt_ids` replaces `messages`; `raw` skips the chat template.

    mix: further adapters with their strengths; their gated terms are added to those of `adapter`, which chooses
    the template. Every visual adapter gets the image. mute_layers, mute_heads: where the gates of all adapters are
    set to zero; indices of the base's layers, and of the heads in every layer. stop: strings that end the answer
    and are not part of it. max_seconds: wall-clock limit from the start of prefill.
    Raises BadInput when a value is out of range.
    """

    messages: tuple[Message, ...] = ()
    adapter: str | None = None
    image: Image.Image | None = None
    strength: float = Settings().strength
    sampling: SamplingParams = field(default_factory=SamplingParams)
    raw: bool = False
    prompt_ids: tuple[int, ...] | None = None
    mix: tuple[tuple[str, float], ...] = ()
    mute_layers: tuple[int, ...] = ()
    mute_heads: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    client: Client = field(default_factory=Client)
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        Settings.checked(
            {"strength": self.strength, "mute_layers": self.mute_layers, "mute_heads": self.mute_heads}
        )
        for _, strength in self.mix:
            Settings.checked({"strength": strength})
        if not 0 < self.max_seconds <= MAX_SECONDS:
            raise BadInput(f"Seconds must lie above 0 and be at most {MAX_SECONDS:g}, got {self.max_seconds}.")
        if "" in self.stop:
            raise BadInput("A stop text must not be empty.")

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """All adapters of the request with their strengths: `adapter` first, then `mix`."""
        return (*(() if self.adapter is None else ((self.adapter, self.strength),)), *self.mix)


@dataclass(frozen=True)
class GenerationStats:
    """Token counts and seconds of one answer.

    prefill_s runs from the start of prefill to the first new token. cached_tokens: prompt tokens whose KV came
    from the prefix cache.
    """

    prompt_tokens: int
    new_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    cached_tokens: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed after the first token; 0 for an answer of one token."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 and self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class GenerationEvent:
    """One decoded token, or a change of the place in the queue: `position` requests are ahead.

    `text` may be empty. The last event has finish_reason and stats.
    """

    text: str = ""
    token_id: int | None = None
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None
    position: int | None = None


class Mailbox:
    """The queue of one request's events, filled by the engine from any thread. Does not keep the Answer alive."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[GenerationEvent | AdapterError] = queue.SimpleQueue()
        self.on_put: Callable[[], object] | None = None

    def put(self, event: GenerationEvent | AdapterError) -> None:
        self.events.put(event)
        if (on_put := self.on_put) is not None:
            with contextlib.suppress(RuntimeError):  # the reader's event loop has been closed
                on_put()


class Answer:
    """The events of one request in order, for one reader, by `for` or `async for`. Raises errors in their place.

    Deleting the object, `close()` and leaving `contextlib.closing` cancel an unfinished answer.
    """

    def __init__(self, mailbox: Mailbox, cancel: Callable[[], None]) -> None:
        """cancel: the garbage collector may call it, in any thread, whatever locks that thread holds."""
        self._mailbox = mailbox
        self._cancel = cancel
        self._ended = False

    def cancel(self) -> None:
        """Cancel the request; its last event then has finish_reason "cancelled"."""
        if not self._ended:
            self._cancel()

    def close(self) -> None:
        """Cancel, and stop iterating."""
        self.cancel()
        self._ended = True

    __del__ = close

    def __iter__(self) -> Iterator[GenerationEvent]:
        return self

    def __next__(self) -> GenerationEvent:
        if self._ended:
            raise StopIteration
        return self._receive(self._mailbox.events.get())

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        self._mailbox.on_put = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            while not self._ended:
                try:
                    event = self._mailbox.events.get_nowait()
                except queue.Empty:
                    await arrived.wait()
                    arrived.clear()
                else:
                    yield self._receive(event)
        finally:
            self.close()

    def _receive(self, event: GenerationEvent | AdapterError) -> GenerationEvent:
        self._ended = isinstance(event, AdapterError) or event.finish_reason is not None
        if isinstance(event, AdapterError):
            raise event
        return event
