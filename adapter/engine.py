"""Generation for many callers over one base: GenerationRequest -> a stream of GenerationEvent.

One worker thread owns the base. Rows that are being answered take turns token by token, each with its own
cache, prompts and random source, so an answer never depends on who else is asking. Knows nothing of Gradio.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache

from adapter.attention import PromptKV
from adapter.chat import Message, encode_prompt
from adapter.errors import AdapterError, BadInput, Busy
from adapter.llama import Base
from adapter.modules import Adapter
from adapter.sampling import SamplingParams, choose
from adapter.store import AdapterStore
from adapter.vision import VisualEncoder, VisualFeatures

log = logging.getLogger(__name__)

MAX_STRENGTH = 2.0
MAX_REQUESTS = 64
_CACHED_IMAGES = 32
T = TypeVar("T")


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to give. `prompt_ids` replaces `messages`; `raw` skips the chat template."""

    messages: tuple[Message, ...] = ()
    adapter: str | None = None
    image: Image.Image | None = None
    strength: float = 1.0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    raw: bool = False
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class GenerationStats:
    """Counts and seconds of one answer. prefill_s runs from the request's turn to its first token."""

    prompt_tokens: int
    new_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed after the first token; 0 for an answer of one token."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 and self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class GenerationEvent:
    """One decoding step. `text` may be empty; the last event has finish_reason and stats."""

    text: str = ""
    token_id: int | None = None
    logprob: float | None = None
    finish_reason: str | None = None  # "stop" or "length"
    stats: GenerationStats | None = None


class _Row:
    """A request being answered: what the worker needs, and the queue to its caller."""

    def __init__(self, request: GenerationRequest, adapter: Adapter | None, ids: list[int], limit: int) -> None:
        self.request = request
        self.adapter = adapter
        self.ids = ids
        self.limit = limit
        self.events: queue.SimpleQueue[GenerationEvent | AdapterError] = queue.SimpleQueue()
        self.cancelled = False
        self.cache = DynamicCache()
        self.prompts: PromptKV | None = None
        self.generator = request.sampling.generator()
        self.text = DecodeStream(skip_special_tokens=True)
        self.new = 0
        self.submitted = self.started = self.first = time.perf_counter()


class _Recent:
    """A small cache of the most recently used values."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)
        return self._values[key]


class Engine:
    """Answers requests on `base` with the adapters of `store`. Thread-safe."""

    def __init__(self, base: Base, store: AdapterStore) -> None:
        self.base = base
        self.store = store
        self._waiting: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._open = 0
        self._lock = threading.Lock()
        self._closed = False
        self._encoders: dict[str, VisualEncoder] = {}
        self._features = _Recent(_CACHED_IMAGES)
        self._prompts = _Recent(_CACHED_IMAGES)
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    def stream(self, request: GenerationRequest) -> Iterator[GenerationEvent]:
        """Events of one answer as they come. Closing the iterator cancels the request.

        Raises BadInput, LoadError or Busy at the call for what can be known then, else while iterating.
        """
        return self._events(self._admit(request))

    def close(self) -> None:
        """Stop the worker; requests in flight end with Busy."""
        with self._lock:
            self._closed = True
        self._waiting.put(None)
        self._worker.join()

    def encode_image(self, adapter: Adapter, image: Image.Image) -> VisualFeatures:
        """Features of one picture by the adapter's encoder; remembered for the pictures seen last."""
        assert adapter.config.vision is not None
        name = adapter.config.vision.encoder
        if name not in self._encoders:
            self._encoders[name] = VisualEncoder(name, self.base.device)
        return self._features.get((name, _digest(image)), lambda: self._encoders[name].encode([image]))

    def _admit(self, request: GenerationRequest) -> _Row:
        """Check a request in the caller's thread and hand it to the worker."""
        if not 0 <= request.strength <= MAX_STRENGTH:
            raise BadInput(f"Strength must lie between 0 and {MAX_STRENGTH:g}, got {request.strength}.")
        adapter = None if request.adapter is None else self.store.load(request.adapter, self.base)
        if request.image is not None and (adapter is None or not adapter.config.is_visual):
            which = f"Adapter '{request.adapter}'" if request.adapter else "The frozen base"
            raise BadInput(f"{which} reads text only. Choose an adapter that reads images.")
        ids = self._prompt_ids(request, adapter)
        room = self.base.context_length - len(ids)
        if room < 1:
            raise BadInput(
                f"The conversation has {len(ids)} tokens and this base reads {self.base.context_length}. "
                "Shorten the message or start a new conversation."
            )
        row = _Row(request, adapter, ids, min(room, request.sampling.max_new_tokens))
        with self._lock:
            if self._closed:
                raise Busy("The engine has been closed. Start the program again.")
            if self._open >= MAX_REQUESTS:
                raise Busy(f"{MAX_REQUESTS} requests are waiting already. Try again in a minute.")
            self._open += 1
        self._waiting.put(row)
        return row

    def _prompt_ids(self, request: GenerationRequest, adapter: Adapter | None) -> list[int]:
        if request.prompt_ids is not None:
            vocabulary = self.base.fingerprint.vocab_size
            if not request.prompt_ids or not all(0 <= i < vocabulary for i in request.prompt_ids):
                raise BadInput(f"Prompt ids must be numbers from 0 to {vocabulary - 1}, and at least one.")
            return list(request.prompt_ids)
        if request.raw:
            template = "raw"
        elif adapter is not None:
            template = adapter.config.template
        else:
            template = "chat" if self.base.tokenizer.chat_template else "alpaca"
        return encode_prompt(self.base.tokenizer, request.messages, template)

    def _events(self, row: _Row) -> Iterator[GenerationEvent]:
        try:
            while True:
                event = row.events.get()
                if isinstance(event, AdapterError):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            row.cancelled = True

    def _work(self) -> None:
        """The worker: take in newcomers, give every open row one step, repeat."""
        active: deque[_Row] = deque()
        while True:
            while not active or not self._waiting.empty():
                newcomer = self._waiting.get()
                if newcomer is None:
                    for row in active:
                        row.events.put(Busy("The engine has been closed. Start the program again."))
                    return
                active.append(newcomer)
            row = active.popleft()
            if self._step(row):
                active.append(row)
            else:
                with self._lock:
                    self._open -= 1

    def _step(self, row: _Row) -> bool:
        """One token for `row`; False when it is done, cancelled or failed."""
        if row.cancelled:
            return False
        try:
            event = self._next(row)
        except AdapterError as error:
            row.events.put(error)
            return False
        except Exception as error:  # a fault in one row must not end the others
            log.exception("A request failed")
            row.events.put(AdapterError(f"The model failed on this request ({type(error).__name__}). Try again."))
            return False
        row.events.put(event)
        return event.finish_reason is None

    @torch.inference_mode()
    def _next(self, row: _Row) -> GenerationEvent:
        if row.new == 0:
            row.started = time.perf_counter()
            row.prompts = self._prompts_for(row)
            step = row.ids
        else:
            step = row.ids[-1:]
        logits = self.base.model(
            input_ids=torch.tensor([step], device=self.base.device),
            cache=row.cache,
            use_cache=True,
            logits_to_keep=1,
            prompt_kv=row.prompts,
        ).logits[0, -1]
        token, logprob = choose(logits, row.request.sampling, row.generator)
        row.ids.append(token)
        row.new += 1
        now = time.perf_counter()
        if row.new == 1:
            row.first = now
        stopped = token in self.base.stop_ids
        text = "" if stopped else row.text.step(self.base.tokenizer.backend_tokenizer, token) or ""
        reason = "stop" if stopped else "length" if row.new >= row.limit else None
        stats = None
        if reason is not None:
            stats = GenerationStats(
                prompt_tokens=len(row.ids) - row.new,
                new_tokens=row.new,
                queue_s=row.started - row.submitted,
                prefill_s=row.first - row.started,
                decode_s=now - row.first,
            )
        return GenerationEvent(text, token, logprob, reason, stats)

    def _prompts_for(self, row: _Row) -> PromptKV | None:
        """The row's prompt keys and values; kept for the (adapter, picture) pairs seen last."""
        adapter, image, strength = row.adapter, row.request.image, row.request.strength
        if adapter is None or strength == 0:
            return None

        def project() -> tuple[Adapter, PromptKV]:
            features = None if image is None else self.encode_image(adapter, image)
            return adapter, adapter(self.base.model, features)

        # The adapter stays in the value, so its id cannot be taken by another object meanwhile.
        key = (id(adapter), None if image is None else _digest(image))
        return self._prompts.get(key, project)[1].scaled(strength)


def _digest(image: Image.Image) -> bytes:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
