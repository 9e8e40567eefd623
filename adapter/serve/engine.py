"""Generation for many callers over one base: GenerationRequest -> an Answer, the stream of its events.

One worker thread owns the base. Requests join and leave the batch between steps; a newcomer's prompt is read in
chunks between the others' steps. An answer never depends on who else is asking. Knows nothing of Gradio.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from adapter.base.llama import Base
from adapter.errors import AdapterError, Busy
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.vision import VisualEncoder
from adapter.serve.admission import Adapters, admit, named_adapters, see
from adapter.serve.batch import DecodeBatch
from adapter.serve.detokenizer import TextStream
from adapter.serve.forward import Forward
from adapter.serve.inspection import Inspection
from adapter.serve.kv_cache import KVCache, PrefixCache
from adapter.serve.prompts import Inspector, PromptMaker, digest
from adapter.serve.request import (
    Answer,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    GenerationStats,
    Mailbox,
)
from adapter.serve.sampling import choose
from adapter.serve.scheduler import FairQueue

log = logging.getLogger(__name__)

MAX_ROWS = 16  # answered at once
MAX_REQUESTS = 64  # answered or waiting
CHUNK = 64  # prompt tokens that are read between two steps of the others
_PREFIX_CACHE_BYTES = 256 * 2**20
_CLOSED = "The engine has been closed. Start the program again."


class _Row:
    """A request on its way: what the worker needs, and where its events go."""

    def __init__(
        self,
        base: Base,
        request: GenerationRequest,
        adapters: list[tuple[Adapter, float]],
        ids: list[int],
        limit: int,
    ) -> None:
        self.request = request
        self.adapters = adapters
        self.ids = ids
        self.prompt_tokens = len(ids)
        self.limit = limit
        self.prompts: PromptKV | None = None
        self.key: Hashable = ()  # of what the prompts are made
        self.cache: KVCache | None = None  # while the prompt is being read
        self.read = self.cached = 0
        self.generator = request.sampling.generator()
        self.text = TextStream(base.tokenizer, request.stop)
        self.mailbox = Mailbox()
        self.taken = self.cancelled = False  # taken: out of the queue
        self.position: int | None = None
        self.submitted = self.started = self.first = time.perf_counter()

    @property
    def new_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    def stats(self) -> GenerationStats:
        now = time.perf_counter()
        first = self.first if self.new_tokens else now
        return GenerationStats(
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            queue_s=self.started - self.submitted,
            prefill_s=first - self.started,
            decode_s=now - first,
            cached_tokens=self.cached,
        )


class Engine:
    """Answers requests on `base` with the adapters of `store`. Thread-safe."""

    def __init__(self, base: Base, store: Adapters, encoders: Mapping[str, VisualEncoder] | None = None) -> None:
        """encoders: of pictures, those that are loaded already, by name."""
        self.base = base
        self.store = store
        self._changed = threading.Condition()  # guards the next three
        self._queue: FairQueue[_Row] = FairQueue()
        self._open: set[_Row] = set()  # from submit to the last event
        self._closed = False
        self._reading: list[_Row] = []  # whose prompts are being read, in order of arrival
        self._forward = Forward(base)
        self._batch: DecodeBatch[_Row] = DecodeBatch(base, self._forward)
        self._prefix_cache = PrefixCache(_PREFIX_CACHE_BYTES)
        self.prompts = PromptMaker(base, encoders)
        self._inspector = Inspector(base, self.prompts)
        # Pictures are encoded beside the worker, so that they do not hold up its steps.
        self._encoding = ThreadPoolExecutor(1, "encoder")
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    def submit(self, request: GenerationRequest) -> Answer:
        """Ask for one answer. Raises BadInput, LoadError or Busy for what can be known now.

        What is found out later is raised to the reader of the Answer.
        """
        row = self._checked(request)
        with self._changed:
            if self._closed:
                raise Busy(_CLOSED)
            if len(self._open) >= MAX_REQUESTS:
                raise Busy(f"{MAX_REQUESTS} requests are waiting already. Try again in a minute.")
            self._open.add(row)
        if request.image is None:
            self._prepare(row, b"")
        else:
            self._encoding.submit(self._prepare, row, digest(request.image))
        return Answer(row.mailbox, lambda: self._cancel(row))

    stream = submit

    def compare(self, request: GenerationRequest, adapters: Sequence[str | None]) -> list[Answer]:
        """The same request through several adapters (None: the frozen base), as rows of one batch.

        An image goes to those that see. Without a seed in the request all get the same one.
        """
        seed = request.sampling.seed
        sampling = replace(request.sampling, seed=secrets.randbelow(2**63) if seed is None else seed)
        requests = [replace(request, adapter=name, sampling=sampling) for name in adapters]
        if request.image is not None:
            requests = [r if see(named_adapters(r, self._load)) else replace(r, image=None) for r in requests]
        return [self.submit(r) for r in requests]

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        """Look into an answer that `request` was given, beside what is being answered; returns when it is done.

        Raises BadInput, LoadError or Busy, see Inspector.
        """
        ids = admit(request, self.base, self._load).ids
        mute = request.mute_layers, request.mute_heads
        return self._inspector(named_adapters(request, self._load), request.image, *mute, ids, answer_ids)

    def cancel(self, answer: Answer) -> None:
        """End an answer; its last event says "cancelled"."""
        answer.cancel()

    def close(self) -> None:
        """Stop the worker; open requests end with Busy."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._encoding.shutdown(cancel_futures=True)
        self._inspector.close()
        self._worker.join()

    # In the caller's thread.

    def _checked(self, request: GenerationRequest) -> _Row:
        admitted = admit(request, self.base, self._load)
        return _Row(self.base, request, admitted.adapters, admitted.ids, admitted.limit)

    def _load(self, name: str) -> Adapter:
        return self.store.load(name, self.base)

    def _cancel(self, row: _Row) -> None:
        row.cancelled = True
        with self._changed:
            waiting = self._queue.remove(row)
            self._changed.notify()
        if waiting:
            self._end(row, GenerationEvent(finish_reason="cancelled", stats=row.stats()))

    # In the caller's thread, or the encoder's for a picture.

    def _prepare(self, row: _Row, digest: bytes) -> None:
        """Make the row's prompts, and let it wait for its turn."""
        try:
            asked = row.request
            row.prompts, row.key = self.prompts.of(
                row.adapters, asked.image, digest, asked.mute_layers, asked.mute_heads
            )
        except BaseException as error:  # its reader would wait for ever
            self._end(row, _for_caller(error))
            return
        with self._changed:
            if row in self._open and not self._closed and not row.cancelled:
                client = row.request.client
                self._queue.put(row, client.session or client.address)
                self._changed.notify()
                return
        self._end(row, GenerationEvent(finish_reason="cancelled", stats=row.stats()))

    # In the worker's thread.

    @torch.inference_mode()
    def _work(self) -> None:
        """Take turns until the engine is closed. Nothing else ends this thread: everybody would wait for ever."""
        failed: BaseException | None = None
        while True:
            try:
                if failed is not None:
                    self._start_anew(failed)
                    failed = None
                if not self._wait_for_work():
                    break
                self._turn()
            except BaseException as error:  # SystemExit and MemoryError too
                failed = error
        with self._changed:
            rows = list(self._open)
        for row in rows:
            self._end(row, Busy(_CLOSED))

    def _wait_for_work(self) -> bool:
        """True if there is some; False if the engine has been closed."""
        with self._changed:
            while not (self._closed or self._queue or self._reading or self._batch):
                self._changed.wait()
            if not self._closed:
                self._take_in()
            return not self._closed

    def _start_anew(self, error: BaseException) -> None:
        """Fail all that is in flight: after half a step nothing of it can be trusted. Who waits still waits."""
        with self._changed:
            rows = [row for row in self._open if row.taken]
        self._reading, self._batch = [], DecodeBatch(self.base, self._forward)
        for row in rows:
            self._end(row, _for_caller(error))

    def _take_in(self) -> None:
        """Begin with those whose turn it is, and tell the others how many are before them."""
        while self._queue and len(self._reading) + len(self._batch) < MAX_ROWS:
            row = next(iter(self._queue))
            row.taken = True
            self._queue.pop()
            row.started = time.perf_counter()
            self._reading.append(row)
        for position, row in enumerate(self._queue):
            if row.position != position:
                row.position = position
                row.mailbox.put(GenerationEvent(position=position))

    def _turn(self) -> None:
        """One chunk of one prompt, and one token for every row of the batch."""
        now = time.perf_counter()
        for row in [*self._reading, *self._batch.rows]:
            late = now - row.started > row.request.max_seconds
            if late or row.cancelled:
                reason: FinishReason = "cancelled" if row.cancelled else "time"
                self._retire(row)
                event = GenerationEvent(row.text.rest(), finish_reason=reason, stats=row.stats())
                self._end(row, event)
        if self._reading:
            row = self._reading[0]
            try:
                self._read_chunk(row)
            except Exception as error:
                self._reading.remove(row)
                self._end(row, _for_caller(error))
        if self._batch:
            rows = self._batch.rows
            logits = self._batch.step([row.ids[-1] for row in rows])
            for row, scores in zip(rows, logits, strict=True):
                if not self._advance(row, scores):
                    self._retire(row)

    def _read_chunk(self, row: _Row) -> None:
        """Read the next tokens of a prompt; after the last of them give the first token and join the batch."""
        if row.cache is None:
            row.cache = KVCache(self.base, tokens=len(row.ids))
            if (kv := self._prefix_cache.longest_prefix(row.key, row.ids)) is not None:
                row.cache.set_row(0, kv)
                row.read = row.cached = kv.shape[3]
        chunk = row.ids[row.read : row.read + CHUNK]
        logits = self._forward(row.cache, chunk, [row.read], row.prompts)
        row.read += len(chunk)
        if row.read < len(row.ids):
            return
        if self._advance(row, logits[0]):
            self._batch.join(row, row.cache.copy_row(0, row.read), row.prompts)
            self._reading.remove(row)
            row.cache = None
        else:
            self._retire(row)

    def _advance(self, row: _Row, logits: Tensor) -> bool:
        """Choose and send a row's next token; False if it was the last."""
        token, logprob = choose(logits, row.request.sampling, row.generator)
        row.ids.append(token)
        if row.new_tokens == 1:
            row.first = time.perf_counter()
        reason: FinishReason | None = None
        if token in self.base.stop_ids:
            text, reason = row.text.rest(), "stop"
        else:
            text = row.text.push(token)
            if row.text.stopped:
                reason = "stop"
            elif row.new_tokens >= row.limit:
                text, reason = text + row.text.rest(), "length"
        event = GenerationEvent(text, token, logprob, reason, None if reason is None else row.stats())
        if reason is None:
            row.mailbox.put(event)
        else:
            self._end(row, event)
        return reason is None

    def _retire(self, row: _Row) -> None:
        """Take a row out; what it has read stays for the conversation's next turn."""
        if row in self._reading:
            self._reading.remove(row)
            kv = None if row.cache is None or not row.read else row.cache.copy_row(0, row.read)
            row.cache = None
        else:
            kv = self._batch.leave(row)
        if kv is not None:
            tokens = kv.shape[3]
            self._prefix_cache.add(row.key, row.ids[:tokens], kv)

    # In any thread.

    def _end(self, row: _Row, last: GenerationEvent | AdapterError) -> None:
        """Send a request's last event, once."""
        with self._changed:
            if row not in self._open:
                return
            self._open.remove(row)
        row.mailbox.put(last)


def _for_caller(error: BaseException) -> AdapterError:
    if isinstance(error, AdapterError):
        return error
    log.error("A request failed", exc_info=error)
    return AdapterError(f"The model failed on this request ({type(error).__name__}). Try again.")
