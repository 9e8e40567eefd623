"""What a caller asks of the engine and what comes back. Knows no models."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.serve.sampling import SamplingParams

MAX_STRENGTH = 2.0
MAX_SECONDS = 600.0
FinishReason = Literal["stop", "length", "time", "cancelled"]


@dataclass(frozen=True)
class Client:
    """Who asks: the network address of the caller and the session of its page, each "" where it is not known.

    The address is what limits count by; clients take turns in the scheduler's queue by session, else by address.
    """

    address: str = ""
    session: str = ""


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to give. `prompt_ids` replaces `messages`; `raw` skips the chat template.

    mix: further adapters with their strengths, whose gated terms add to the first one's; the first one gives the
    template, and every one that sees gets the image. mute_layers, mute_heads: where all adapters' gates are shut,
    by the base's count of layers, and of heads in every layer. stop: texts that end the answer, not part of it.
    client: who asks. max_seconds: limit of the wall clock from the start of the answer.
    Raises BadInput when made with values out of their ranges.
    """

    messages: tuple[Message, ...] = ()
    adapter: str | None = None
    image: Image.Image | None = None
    strength: float = 1.0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    raw: bool = False
    prompt_ids: tuple[int, ...] | None = None
    mix: tuple[tuple[str, float], ...] = ()
    mute_layers: tuple[int, ...] = ()
    mute_heads: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    client: Client = Client()
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        for strength in (self.strength, *(strength for _, strength in self.mix)):
            if not 0 <= strength <= MAX_STRENGTH:  # also refuses NaN
                raise BadInput(f"Strength must lie between 0 and {MAX_STRENGTH:g}, got {strength}.")
        if not 0 < self.max_seconds <= MAX_SECONDS:
            raise BadInput(f"Seconds must lie above 0 and be at most {MAX_SECONDS:g}, got {self.max_seconds}.")
        if not all(type(number) is int for number in (*self.mute_layers, *self.mute_heads)):
            raise BadInput("Layers and heads to mute are whole numbers.")
        if "" in self.stop:
            raise BadInput("A stop text must not be empty.")

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """Every adapter that is named, with its strength, the first one first."""
        return (*(() if self.adapter is None else ((self.adapter, self.strength),)), *self.mix)


@dataclass(frozen=True)
class GenerationStats:
    """Counts and seconds of one answer. prefill_s runs from the request's turn to its first token.

    cached_tokens: those of the prompt that an earlier answer had left in the cache.
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
    """One decoding step, or news of the queue: then `position` says how many are served before.

    `text` may be empty; the last event has finish_reason and stats.
    """

    text: str = ""
    token_id: int | None = None
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None
    position: int | None = None


class Mailbox:
    """Where the engine puts a request's events, from any thread; it does not keep the Answer alive."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[GenerationEvent | AdapterError] = queue.SimpleQueue()
        self.arrived: Callable[[], None] | None = None

    def put(self, event: GenerationEvent | AdapterError) -> None:
        self.events.put(event)
        if (arrived := self.arrived) is not None:
            arrived()


class Answer:
    """The events of one request, in order, for one reader: `for` or `async for`. Errors are raised in their place.

    Dropping it, `close()` and leaving `contextlib.closing` cancel what is not finished.
    """

    def __init__(self, mailbox: Mailbox, cancel: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._cancel = cancel
        self._ended = False

    def cancel(self) -> None:
        """Ask for the end: the last event then says "cancelled"."""
        if not self._ended:
            self._cancel()

    def close(self) -> None:
        """Cancel, and read no further."""
        self.cancel()
        self._ended = True

    __del__ = close

    def __iter__(self) -> Iterator[GenerationEvent]:
        return self

    def __next__(self) -> GenerationEvent:
        if self._ended:
            raise StopIteration
        return self._checked(self._mailbox.events.get())

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(arrived.set)

        self._mailbox.arrived = notify
        try:
            while not self._ended:
                try:
                    event = self._mailbox.events.get_nowait()
                except queue.Empty:
                    await arrived.wait()
                    arrived.clear()
                else:
                    yield self._checked(event)
        finally:
            self.close()

    def _checked(self, event: GenerationEvent | AdapterError) -> GenerationEvent:
        self._ended = isinstance(event, AdapterError) or event.finish_reason is not None
        if isinstance(event, AdapterError):
            raise event
        return event
