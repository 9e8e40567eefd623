"""The vocabulary of serving: what a caller asks an engine for, and what comes back. Imports no models."""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import groupby
from typing import Literal, NamedTuple

from PIL import Image

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import MAX_STRENGTH, SAMPLING, Others, Settings

_DEFAULTS = Settings()
MAX_SECONDS = 600.0
MAX_BIASES, MAX_TOP_LOGPROBS = 300, 20
MAX_GATES = 4096  # of one request that have a factor of their own
CROWD = 8  # readers that get lists at full rate; when more read, each gets them less often
_reading: set[object] = set()  # one object for each reader of lists that is running
FinishReason = Literal["stop", "length", "time", "cancelled", "repetition"]  # the last one as vLLM calls it


@dataclass(frozen=True)
class Client:
    """The network address and the page session of who sends a request, each "" where it is unknown."""

    address: str = ""
    session: str = ""  # by the client's own choice

    @cached_property
    def _ip(self) -> IPv4Address | IPv6Address | None:
        try:
            ip = ip_address(self.address)
        except ValueError:
            return None
        return getattr(ip, "ipv4_mapped", None) or ip

    @cached_property  # the scheduler asks for each waiting row in every step
    def is_local(self) -> bool:
        """Whether the request comes from this machine or straight from a program that uses the engine."""
        return not self.address or (self._ip is not None and self._ip.is_loopback)

    @cached_property
    def network(self) -> str:
        """One key for all addresses of one person: an IPv4 address, or the first half of an IPv6 one."""
        if isinstance(self._ip, IPv6Address):
            return str(IPv6Address(int(self._ip) >> 64 << 64))
        return self.address[:100] if self._ip is None else str(self._ip)


@dataclass(frozen=True)
class SamplingParams:
    """Ranges and defaults are those of Settings; raises BadInput. Applied in this order, as in transformers (vLLM
    has min_p before top_k): biases, penalties (none where there is a form), temperature, top_k, top_p, min_p.
    """

    temperature: float = _DEFAULTS.temperature  # 0 takes the likeliest token
    top_p: float = _DEFAULTS.top_p  # only the fewest tokens that together are as likely
    max_new_tokens: int = _DEFAULTS.max_tokens
    seed: int | None = None
    top_k: int = _DEFAULTS.top_k  # only the k likeliest tokens, and those as likely as the k-th
    min_p: float = _DEFAULTS.min_p  # only tokens at least so many times as likely as the likeliest
    # Divides the logits of tokens of prompt and answer, or multiplies negative ones; not of those that end one.
    repetition_penalty: float = _DEFAULTS.repetition_penalty
    presence_penalty: float = 0.0  # from -2 to 2, taken off the logits of the answer's own tokens
    frequency_penalty: float = 0.0  # the same, once for each time that the token stands there
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, number from -100 to 100), added to the logits

    def __post_init__(self) -> None:
        given = {"max_tokens": self.max_new_tokens, **{name: getattr(self, name) for name in SAMPLING}}
        for name, value in Settings.checked(given).model_dump(include=set(given)).items():  # 16.0 is 16 now
            object.__setattr__(self, "max_new_tokens" if name == "max_tokens" else name, value)


# Factors of gates: (layer by the base's count, head or None for all of the layer, factor).
GateFactors = tuple[tuple[int, int | None, float], ...]


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate. Raises BadInput when a value is out of range."""

    messages: tuple[Message, ...] = ()
    adapter: str | None = None  # which chooses the template, too
    image: Image.Image | None = None
    strength: float = _DEFAULTS.strength
    sampling: SamplingParams = field(default_factory=SamplingParams)
    raw: bool = False  # without the chat template
    prompt_ids: tuple[int, ...] | None = None  # in place of `messages`
    # The beginning of the answer, with which the first text begins; counts and limits are those of the new tokens.
    answer_ids: tuple[int, ...] = ()
    others: Others = _DEFAULTS.others  # what is read of answers that others gave, see `others.as_read`
    mix: tuple[tuple[str, float], ...] = ()  # further adapters with their strengths, see PromptKVBuilder.build
    gates: GateFactors = ()
    stop: tuple[str, ...] = ()  # strings that end the answer and are not part of it
    form: str | None = None  # None: that of the only adapter with a strength above 0; NO_FORM: none
    end_repetition: bool = False  # whether the answer ends as soon as it goes in circles, see `scheduler.repeats`
    client: Client = field(default_factory=Client)
    answers: int = 1  # that the limits count for this request; 0 if another carries the count
    max_seconds: float = MAX_SECONDS  # from the start of prefill
    base_logprobs: bool = False  # whether the frozen base reads the answer too, if the cache has room
    top_logprobs: int = 0  # of the likeliest tokens, how many are named with each token
    prompt_logprobs: bool = False  # whether the prompt's tokens are scored; it is then read whole

    def __post_init__(self) -> None:
        Settings.checked({"strength": self.strength, "others": self.others})
        if len(self.gates) > MAX_GATES or not all(0 <= factor <= MAX_STRENGTH for _, _, factor in self.gates):
            raise BadInput(f"Factors of gates lie between 0 and {MAX_STRENGTH:g}, at most {MAX_GATES} of them.")
        for _, strength in self.mix:
            Settings.checked({"strength": strength})
        if not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise BadInput(f"Likeliest tokens are asked for by a number from 0 to {MAX_TOP_LOGPROBS}.")
        if not self.max_seconds >= 0:
            raise BadInput("The seconds of an answer are 0 or more.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise BadInput("Stop texts are a tuple of strings, none of them empty.")

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """All adapters of the request with their strengths: `adapter` first, then `mix`."""
        return (*(() if self.adapter is None else ((self.adapter, self.strength),)), *self.mix)


@dataclass(frozen=True)
class GenerationStats:
    prompt_tokens: int
    new_tokens: int
    queue_s: float
    prefill_s: float  # to the first new token
    decode_s: float
    cached_tokens: int = 0  # prompt tokens whose KV came from the prefix cache

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed after the first token; 0 for an answer of one token."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 and self.decode_s > 0 else 0.0


class TokenLogprob(NamedTuple):
    """A token, its text in the middle of others, and its log-probability in nats."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs:
    """What a model gives a token in its place, and the likeliest tokens there, the likeliest first."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...]

    @property
    def logprob(self) -> float:
        return self.token.logprob


@dataclass(frozen=True)
class GenerationEvent:
    """One decoded token, a change of the place in the queue, or how far a long prompt is read."""

    text: str = ""
    token_id: int | None = None
    logprob: float | None = None  # by the model, before penalties, biases and form
    finish_reason: FinishReason | None = None  # of the last event, as stats
    stats: GenerationStats | None = None
    position: int | None = None  # so many requests are ahead
    progress: float | None = None  # the share of the prompt's uncached tokens that are read, 0 to 1
    choices: TokenLogprobs | None = None  # after penalties, biases and form, before the temperature
    base_logprobs: tuple[TokenLogprobs, ...] = ()  # of the answer's next tokens in order, some tokens late
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt's next tokens in order; the first has NaN

    @property
    def is_output(self) -> bool:
        """Whether it is a part of the answer."""
        return self.position is None and self.progress is None


@dataclass(frozen=True)
class EngineStatistics:
    """One engine at one moment: what it has done since it was made, and what it holds. Can be pickled."""

    prefill_steps: int = 0  # each of a chunk of one row's prompt
    prefill_seconds: float = 0.0  # sampling and sending included
    decode_steps: int = 0  # each of the next tokens of all rows in the batch
    decode_seconds: float = 0.0
    decode_rows: int = 0  # of all decode steps; divided by these it is the mean batch size
    running: int = 0  # rows
    waiting: int = 0
    cache_tokens: int = 0  # reserved for running rows (prompt and longest answer)
    cache_capacity: int = 0


class Mailbox:
    """The queue of one request's events, filled by the engine from any thread. Does not keep the Answer alive."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[GenerationEvent | AdapterError] = queue.SimpleQueue()
        self.wake: Callable[[], object] | None = None  # called with the last event and, while `waiting`, any other
        self.waiting = False
        self.last: GenerationEvent | AdapterError | None = None  # the last event, as soon as it is there
        self._observers: deque[Callable[[GenerationEvent | AdapterError], object]] = deque()

    def put(self, *events: GenerationEvent | AdapterError) -> None:
        last = next(filter(_is_last, events), None)
        if self.last is None and last is not None:
            self.last = last
            self._tell_observers()  # before the reader, who may ask for the figures next
        for event in events:
            self._events.put(event)
        if (wake := self.wake) is not None and (self.waiting or last is not None):
            with contextlib.suppress(RuntimeError):  # the reader's event loop has been closed
                wake()

    def observe(self, tell: Callable[[GenerationEvent | AdapterError], object]) -> None:
        """Calls `tell` once with the last event, from any thread; `tell` must take no lock."""
        self._observers.append(tell)
        self._tell_observers()

    def _tell_observers(self) -> None:
        with contextlib.suppress(IndexError):  # of two threads that come here at once, one gets an observer
            while self.last is not None:
                self._observers.popleft()(self.last)

    def get(self) -> GenerationEvent | AdapterError:
        return self._events.get()

    def empty(self) -> bool:
        return self._events.empty()

    def take(self) -> list[GenerationEvent | AdapterError]:
        """All events that have arrived. Nothing follows an event that ends the answer."""
        taken = []
        while not self._events.empty():
            taken.append(self._events.get())
            if _is_last(taken[-1]):
                break
        return taken


class Answer:
    """The events of one request in order, for one reader; errors are raised in their place. Deleting the object,
    `close()` and leaving `contextlib.closing` cancel an unfinished answer.
    """

    def __init__(self, mailbox: Mailbox, cancel: Callable[[], None]) -> None:
        """cancel: the garbage collector may call it, in any thread, whatever locks that thread holds."""
        self.mailbox, self._cancel = mailbox, cancel
        self.ended = False  # whether the last event has been read, or the reader has left

    def cancel(self) -> None:
        """Cancel the request; its last event then has finish_reason "cancelled"."""
        if not self.ended:
            self._cancel()

    def close(self) -> None:
        self.cancel()
        self.ended = True

    __del__ = close

    def __iter__(self) -> Iterator[GenerationEvent]:
        return self

    def __next__(self) -> GenerationEvent:
        if self.ended:
            raise StopIteration
        event = self.mailbox.get()
        self.ended = _is_last(event)
        if isinstance(event, AdapterError):
            raise event
        return event

    def event_lists(self, seconds: float) -> Iterator[list[GenerationEvent]]:
        """Lists of this answer's events, timed as `read_together`. Raises the answer's error."""
        for received in read_together({0: self}, seconds):
            for _, events in _by_answer(received):
                yield events

    def take(self) -> list[GenerationEvent | AdapterError]:
        """All events that have arrived; the last one may be an error."""
        taken = self.mailbox.take()
        self.ended = self.ended or any(map(_is_last, taken[-1:]))
        return taken


Received = list[tuple[int, GenerationEvent | AdapterError]]  # with the key of the answer


class RemoteAnswer:
    """Passes on the events of an answer of another process. After its last event the reader gets no other."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.mailbox = Mailbox()
        self.ended = False
        self.tokens = 0
        self.submitted_at = self._first = time.perf_counter()
        self.started_at: float | None = None  # None until the other process says that it has begun
        # Reentrant: the garbage collector may free and so cancel the answer while this thread delivers an event.
        self._lock = threading.RLock()

    def deliver(self, event: GenerationEvent | AdapterError) -> None:
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
        prompt_tokens = len(self.request.prompt_ids or ()) + len(self.request.answer_ids)
        return GenerationStats(prompt_tokens, self.tokens, 0.0, 0.0, now - first)


def read_together(answers: Mapping[int, Answer], seconds: float) -> Iterator[Received]:
    """Yields lists of (key, event) of all that has arrived of several answers, until all have ended. The first
    list and one with an answer's last event come at once, others every `seconds`, or less often in a crowd. An
    error ends its answer only.
    """
    woken: queue.SimpleQueue[None] = queue.SimpleQueue()  # safe where the garbage collector puts something in
    for found in _next_lists(answers, seconds, lambda: woken.put(None)):
        if isinstance(found, list):
            yield found
        else:
            with contextlib.suppress(queue.Empty):
                woken.get(timeout=found)


async def async_event_lists(
    answers: Mapping[int, Answer], seconds: float
) -> AsyncIterator[tuple[int, list[GenerationEvent]]]:
    """As `read_together`, in an event loop: the events of one answer at a time; raises the first error."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    for found in _next_lists(answers, seconds, lambda: loop.call_soon_threadsafe(woken.set)):
        if isinstance(found, list):
            for key_and_events in _by_answer(found):
                yield key_and_events
            continue
        timer = None if found is None else loop.call_later(found, woken.set)
        await woken.wait()
        woken.clear()
        if timer is not None:
            timer.cancel()


def _next_lists(
    answers: Mapping[int, Answer], seconds: float, wake: Callable[[], object]
) -> Iterator[Received | float | None]:
    """Yields the lists of `read_together`, and before them the seconds to wait for `wake`; None: for ever."""
    reader, unfinished, due = object(), dict(answers), 0.0
    for answer in answers.values():
        answer.mailbox.wake = wake
    _reading.add(reader)
    try:
        while unfinished:
            mailboxes = [answer.mailbox for answer in unfinished.values()]
            for mailbox in mailboxes:
                mailbox.waiting = True
            while all(mailbox.empty() for mailbox in mailboxes):
                yield None
            for mailbox in mailboxes:
                mailbox.waiting = False
            while (rest := due - time.monotonic()) > 0 and all(mailbox.last is None for mailbox in mailboxes):
                yield rest
            # All readers wake together: each waking takes a core from the engine, whose other threads then wait.
            period = seconds * max(1.0, len(_reading) / CROWD)
            due = (time.monotonic() // period + 1) * period if period else 0.0
            received = [(key, event) for key, answer in unfinished.items() for event in answer.take()]
            unfinished = {key: answer for key, answer in unfinished.items() if not answer.ended}
            yield received
    finally:
        _reading.discard(reader)


def _by_answer(received: Received) -> Iterator[tuple[int, list[GenerationEvent]]]:
    """The events of each answer; an error is raised after those before it."""
    for key, group in groupby(received, lambda pair: pair[0]):
        events = [event for _, event in group]
        if before := [event for event in events if isinstance(event, GenerationEvent)]:
            yield key, before
        if isinstance(events[-1], AdapterError):
            raise events[-1]


def _is_last(event: GenerationEvent | AdapterError) -> bool:
    return isinstance(event, AdapterError) or event.finish_reason is not None
