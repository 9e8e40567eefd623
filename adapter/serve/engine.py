"""Generation for many callers on one base: GenerationRequest in, an Answer (the stream of its events) out.

One worker thread runs the base: it asks the scheduler for the next step, runs the forward pass, samples,
detokenises and sends the events. An answer never depends on the other requests. Knows nothing of HTTP or Gradio.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from adapter.base.llama import Base
from adapter.base.threads import set_threads
from adapter.errors import AdapterError, Busy
from adapter.method.adapter import Adapter
from adapter.method.vision import VisualEncoder
from adapter.serve.batch import DecodeBatch
from adapter.serve.detokenizer import Detokenizer
from adapter.serve.forward import Forward
from adapter.serve.inspection import CLOSED, Inspection, Inspector
from adapter.serve.kv_cache import CacheBudget, KVCache, PrefixCache, SlotAllocator
from adapter.serve.prompts import PromptKVBuilder
from adapter.serve.request import Answer, GenerationEvent, GenerationRequest
from adapter.serve.sampling import sample
from adapter.serve.scheduler import (
    MAX_ROWS,
    PREFILL_CHUNK,
    Adapters,
    Row,
    Scheduler,
    admit,
    any_visual,
    load_adapters,
)

log = logging.getLogger(__name__)

MAX_REQUESTS = 64  # running or waiting


class Engine:
    """Serves requests on `base` with the adapters of `store`. Thread-safe."""

    def __init__(
        self,
        base: Base,
        store: Adapters,
        encoders: Mapping[str, VisualEncoder] | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """encoders: image encoders that are loaded already, by name. cache_bytes: of the KV caches; the default
        follows from the memory that is free now. Raises BadInput if it is too small.
        """
        self.cache_budget = CacheBudget.choose(base, MAX_ROWS, cache_bytes)
        threads = set_threads(base.model.config) if base.device.type == "cpu" else None
        log.info("Serving with %s%s", f"{threads} threads and " * bool(threads), self.cache_budget.describe())
        self.base = base
        self.store = store
        self.prompts = PromptKVBuilder(base, encoders)
        self._changed = threading.Condition()  # the lock of the next three; notified when they change
        self._scheduler = Scheduler(base.stop_ids, SlotAllocator(self.cache_budget.tokens))
        self._open: set[Row] = set()  # from submit to the last event
        self._closed = False
        self._forward = Forward(base)  # this and the next three belong to the worker
        self._cache = KVCache(base, self.cache_budget.tokens)
        self._batch: DecodeBatch[Row] = DecodeBatch(self._cache, self._forward)
        self._prefix_cache = PrefixCache(self.cache_budget.prefix_bytes)
        self._inspector = Inspector(base, self.prompts)
        # Images are encoded beside the worker, so that they do not delay the decode steps.
        self._encoder = ThreadPoolExecutor(1, "encoder")
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    def submit(self, request: GenerationRequest) -> Answer:
        """Start one answer. Raises BadInput, LoadError or Busy for what can be checked at once.

        Later errors are raised to the reader of the Answer.
        """
        admitted = admit(request, self.base, self._load, self.cache_budget.tokens)
        row = Row(
            request,
            admitted.adapters,
            admitted.prompt_ids,
            admitted.max_new_tokens,
            Detokenizer(self.base.tokenizer, request.stop),
            time.perf_counter(),
        )
        with self._changed:
            if self._closed:
                raise Busy(CLOSED)
            if len(self._open) >= MAX_REQUESTS:
                raise Busy(f"{MAX_REQUESTS} requests are waiting already. Try again in a minute.")
            self._open.add(row)
        if request.image is None:
            self._prepare(row)
        else:
            self._encoder.submit(self._prepare, row)
        return Answer(row.mailbox, lambda: self._cancel(row))

    def compare(self, request: GenerationRequest, adapters: Sequence[str | None]) -> list[Answer]:
        """The same request with several adapters (None: the frozen base), as rows of one batch.

        Only visual adapters get an image. Without a seed in the request all answers share one random seed.
        """
        seed = request.sampling.seed
        sampling = replace(request.sampling, seed=secrets.randbelow(2**63) if seed is None else seed)
        requests = [replace(request, adapter=name, sampling=sampling) for name in adapters]
        if request.image is not None:
            visual = [any_visual(load_adapters(r, self._load)) for r in requests]
            requests = [r if v else replace(r, image=None) for r, v in zip(requests, visual, strict=True)]
        return [self.submit(r) for r in requests]

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        """Inspect an answer that `request` was given, beside the running requests; returns when it is done.

        Raises BadInput, LoadError or Busy, see Inspector.
        """
        ids = admit(request, self.base, self._load).prompt_ids
        adapters = load_adapters(request, self._load)
        return self._inspector.inspect(
            adapters, request.image, request.mute_layers, request.mute_heads, ids, answer_ids
        )

    def cancel(self, answer: Answer) -> None:
        """Cancel an answer; its last event has finish_reason "cancelled"."""
        answer.cancel()

    def close(self) -> None:
        """Stop the worker; open requests end with Busy."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._encoder.shutdown(cancel_futures=True)
        self._inspector.close()
        self._worker.join()

    # In the caller's thread.

    def _load(self, name: str) -> Adapter:
        return self.store.load(name, self.base)

    def _cancel(self, row: Row) -> None:
        with self._changed:
            was_waiting = self._scheduler.cancel(row)
            self._changed.notify()
        if was_waiting:
            self._end_cancelled(row)

    # In the caller's thread, or in the encoder's for a request with an image.

    def _prepare(self, row: Row) -> None:
        """Build the row's prompts, then let it wait for its turn."""
        request = row.request
        try:
            row.prompt_kv, row.prefix_key = self.prompts.build(
                row.adapters, request.image, request.mute_layers, request.mute_heads
            )
        except BaseException as error:  # whatever it is: the reader would wait for ever
            self._end(row, _for_caller(error))
            return
        with self._changed:
            if row in self._open and not self._closed and not row.cancelled:
                self._scheduler.add(row)
                self._changed.notify()
                return
        self._end_cancelled(row)

    # In the worker's thread.

    @torch.inference_mode()
    def _work(self) -> None:
        """Run steps until the engine is closed. No exception ends this thread: all readers would wait for ever."""
        failure: BaseException | None = None
        while True:
            try:
                if failure is not None:
                    self._restart(failure)
                    failure = None
                if not self._step():
                    break
            except BaseException as error:  # SystemExit and MemoryError too
                failure = error
        with self._changed:
            rows = list(self._open)
        for row in rows:
            self._end(row, Busy(CLOSED))

    def _restart(self, error: BaseException) -> None:
        """Fail all running rows: half a step leaves their KV undefined. Waiting rows keep waiting."""
        with self._changed:
            failed = [row for row in self._open if row.started_at is not None]
            self._scheduler.reset()
        self._batch = DecodeBatch(self._cache, self._forward)
        for row in failed:
            self._end(row, _for_caller(error))

    def _step(self) -> bool:
        """Wait for work and run the scheduler's next step; False when the engine has been closed."""
        with self._changed:
            while not (self._closed or self._scheduler.has_work):
                self._changed.wait()
            if self._closed:
                return False
            step = self._scheduler.schedule(time.perf_counter())
        for row, reason in step.finished:
            self._release(row)
            stats = row.stats(time.perf_counter())
            self._end(row, GenerationEvent(row.detokenizer.flush(), finish_reason=reason, stats=stats))
        for row in step.moved:
            row.mailbox.put(GenerationEvent(position=row.position))
        if step.prefill is not None:
            try:
                self._prefill(step.prefill)
            except Exception as error:  # the other rows' KV is untouched
                with self._changed:
                    self._scheduler.remove(step.prefill)
                self._end(step.prefill, _for_caller(error))
        elif rows := self._batch.rows:
            logits = self._batch.step([row.token_ids[-1] for row in rows])
            for row, row_logits in zip(rows, logits, strict=True):
                self._postprocess(row, row_logits)
        return True

    def _prefill(self, row: Row) -> None:
        """Read the next chunk of a prompt. After the last one the row gets its first token and joins the batch."""
        assert row.slot is not None
        if row.computed_tokens == 0:
            kv = self._prefix_cache.longest_prefix(row.prefix_key, row.token_ids)
            if kv is not None:
                self._cache.write(row.slot, kv)
                row.computed_tokens = row.cached_tokens = kv.shape[3]
        chunk = row.token_ids[row.computed_tokens : row.computed_tokens + PREFILL_CHUNK]
        logits = self._forward(self._cache, chunk, [row.slot], [row.computed_tokens], row.prompt_kv)
        row.computed_tokens += len(chunk)
        if row.computed_tokens == row.prompt_tokens and self._postprocess(row, logits[0]):
            self._batch.join(row, row.slot, row.computed_tokens, row.prompt_kv)

    def _postprocess(self, row: Row, logits: Tensor) -> bool:
        """Sample the row's next token and send it; False if the row has ended with it. logits: [vocab_size]."""
        token, logprob = sample(logits, row.request.sampling, row.generator)
        with self._changed:
            reason = self._scheduler.postprocess(row, token)
        now = time.perf_counter()
        if row.first_token_at is None:
            row.first_token_at = now
        text = "" if reason == "stop" else row.detokenizer.push(token)
        if reason is not None or row.detokenizer.stopped:
            text += row.detokenizer.flush()
        if row.detokenizer.stopped:
            reason = "stop"
        if reason is None:
            row.mailbox.put(GenerationEvent(text, token, logprob))
            return True
        self._end(row, GenerationEvent(text, token, logprob, reason, row.stats(now)))
        self._release(row)
        return False

    def _release(self, row: Row) -> None:
        """Take an ended row out of the scheduler and the batch; its KV goes to the prefix cache."""
        tokens = self._batch.leave(row) if row in self._batch.rows else row.computed_tokens
        try:
            if row.slot is not None and tokens:
                ids = row.token_ids[:tokens]
                if self._prefix_cache.make_room(row.prefix_key, ids, tokens * self._cache.token_bytes):
                    self._prefix_cache.add(row.prefix_key, ids, self._cache.read(row.slot, tokens))
        finally:
            with self._changed:
                self._scheduler.remove(row)

    # In any thread.

    def _end_cancelled(self, row: Row) -> None:
        self._end(row, GenerationEvent(finish_reason="cancelled", stats=row.stats(time.perf_counter())))

    def _end(self, row: Row, last: GenerationEvent | AdapterError) -> None:
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
