"""Generation for many callers on one base, which one worker thread runs. No answer depends on other requests (but
for rounding in torch's pass)."""

import logging
import math
import re
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import starmap
from queue import SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

import torch

from adapter.base.llama import Base
from adapter.base.threads import set_threads
from adapter.errors import AdapterError, Busy, Closing, EngineBroken
from adapter.method.adapter import Adapter
from adapter.serve.detokenizer import TokenTexts
from adapter.serve.drafts import MAX_DRAFT, Drafter
from adapter.serve.form import NO_FORM
from adapter.serve.forward import make_forward
from adapter.serve.inspection import Inspection, Inspector, token_logprobs
from adapter.serve.kv_cache import BLOCK, CacheBudget, KVCache, PrefixCache, Slot, SlotAllocator, round_to_blocks
from adapter.serve.prompts import Encoders, PromptKVBuilder, Prompts
from adapter.serve.request import Answer, EngineStatistics, GenerationEvent, GenerationRequest, TokenLogprobs
from adapter.serve.sampling import Sampled, check_finite, sample
from adapter.serve.scheduler import MAX_ROWS, Adapters, Row, Scheduler, Step, admit, in_turn
from adapter.serve.settings import TOP_LOGPROBS

log = logging.getLogger(__name__)

MAX_REQUESTS = 64  # running or waiting
# Prompt tokens that are read between two decode steps: as many as the device reads in the time of a few steps.
PREFILL_CHUNK, CUDA_PREFILL_CHUNK = 64, 512
BASE_CHUNK = 32  # tokens the base may lag behind before it reads them: fewer at first, twice that beside others
_ENCODING_SECONDS = 2.0  # that closing waits for the picture that is being encoded
MAX_FAILURES = 3  # of the forward pass in a row, after which the engine is broken
BROKEN = "The model has failed several times in a row and stopped. Whoever runs this server must start it again."


class Engine:
    """Serves requests on `base` with the adapters of `store`. Thread-safe. Its threads keep it until `close`."""

    def __init__(
        self, base: Base, store: Adapters, encoders: Encoders | None = None, cache_bytes: int | None = None
    ) -> None:
        """encoders: image encoders that are loaded already, by name. cache_bytes: of the KV caches; the default
        follows from the memory that is free now. Raises BadInput if it is too small.
        """
        self.cache_budget = CacheBudget.choose(base, MAX_ROWS, cache_bytes)
        threads = set_threads(base.model.config) if base.device.type == "cpu" else 0
        size, tokens = self.cache_budget.bytes / 1e9, self.cache_budget.tokens
        about = f"a KV cache of {size:.2g} GB: {tokens:,} tokens of running rows (--cache-gb)"
        log.info("Serving with %s%s", f"{threads} threads and " if threads else "", about)
        self.base = base
        self.store = store
        prompt_kv_bytes = self.cache_budget.prefix_bytes // 4  # of kept prompts, and as many of running rows
        self.prompt_builder = PromptKVBuilder(base, encoders, prompt_kv_bytes)
        # Not a Condition, whose `notify` needs its lock: the garbage collector may free an answer, and so wake the
        # worker, in a thread that holds the lock. Putting into a SimpleQueue is safe there.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()  # of writes to the next four
        self._slots = SlotAllocator(self.cache_budget.tokens)
        self._scheduler = Scheduler(self._slots, prompt_kv_bytes)
        self._open: set[Row] = set()  # from submit to the last event
        self._refusal: AdapterError | None = None  # why the worker stops and nothing is accepted any more
        self._forward = make_forward(base, threads)  # from here to _prefill_chunk, and _texts: the worker's
        self._scheduler.shares_prompts = self._forward.reads_ragged
        self._no_prompts = self._forward.prepare(None)
        self._prepared: WeakValueDictionary[Any, Any] = WeakValueDictionary()  # of running rows, by their prompts
        self._cache = KVCache(base, self.cache_budget.tokens)
        self._stacked: Any = None  # the prompts of the rows that decode, from Forward.stack, once they are known
        self._prefix_cache = PrefixCache(self.cache_budget.prefix_bytes)
        self._failures = 0
        self._done = EngineStatistics()  # the counts of steps; replaced as a whole, read by any thread
        self._prefill_chunk = CUDA_PREFILL_CHUNK if base.device.type == "cuda" else PREFILL_CHUNK
        self._inspector = Inspector(base, self.prompt_builder)
        self._texts = TokenTexts(base.tokenizer)
        # Images are encoded beside the worker, so that they do not delay the decode steps. Daemons, which no exit
        # of the program waits for: the second may be downloading an encoder.
        self._with_images: SimpleQueue[Row | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._image_thread = threading.Thread(target=self._encode_images, name="encoder", daemon=True)
        for thread in (self._worker, self._image_thread):
            thread.start()

    def describe(self) -> str:
        return self.base.describe()

    def submit(self, request: GenerationRequest) -> Answer:
        """Start one answer. Raises BadInput, LoadError, Busy or EngineBroken; later errors are its reader's."""
        admitted = admit(request, self.base, self._load, self.cache_budget.tokens)
        row = Row(request, admitted, self.base)
        has_room = 2 * round_to_blocks(row.most_tokens) <= self._slots.capacity
        row.reads_base = request.base_logprobs and bool(admitted.adapters) and has_room
        with self._lock:
            self._check_serving()
            unfinished = [other for other in self._open if not other.cancelled]
            displaced = in_turn([*unfinished, row])[-1]  # here, so that a wrong client fails its request alone
            if len(unfinished) >= MAX_REQUESTS:
                if displaced is row:
                    raise queue_full(MAX_REQUESTS)
                displaced.cancelled = True  # the scheduler takes it out
                displaced.mailbox.put(queue_full(MAX_REQUESTS))
                self._open.remove(displaced)
            if request.image is not None:
                self._with_images.put(row)
            self._open.add(row)
        if request.image is None:
            self._build_and_enqueue(row)
        return Answer(row.mailbox, lambda: self._cancel(row))

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        """Inspect an answer that `request` was given, see Inspector. Raises AdapterError."""
        self._check_serving()
        ids = admit(replace(request, form=NO_FORM), self.base, self._load).prompt_ids
        adapters = [(self._load(name), strength) for name, strength in request.parts]
        try:
            return self._inspector.inspect(adapters, request, ids, answer_ids)
        except Exception as error:
            _log(error)
            raise _for_reader(error, request) from None

    def close(self) -> None:
        """Stop the worker; open requests end with Busy."""
        self._refuse(Closing())
        self._with_images.put(None)
        self._inspector.close()
        self._worker.join()
        self._image_thread.join(_ENCODING_SECONDS)
        self._forward.close()

    @property
    def failure(self) -> str | None:
        """Why the engine answers nothing any more, if it has failed again and again."""
        return str(self._refusal) if isinstance(self._refusal, EngineBroken) else None

    def statistics(self) -> EngineStatistics:
        with self._lock:
            started = sum(row.started_at is not None for row in self._open)
            return replace(
                self._done,
                running=started,
                waiting=len(self._open) - started,
                cache_tokens=self._slots.tokens,
                cache_capacity=self._slots.capacity,
            )

    def replicas(self) -> Mapping[str, EngineStatistics]:
        return {"": self.statistics()}

    # In the caller's thread.

    def _load(self, name: str) -> Adapter:
        return self.store.load(name, self.base.fingerprint, self.base.device)

    def _check_serving(self) -> None:
        if self._refusal is not None:
            raise copy(self._refusal)

    def _cancel(self, row: Row) -> None:
        """The scheduler ends a row that has this flag. Takes no lock, see `_wake`."""
        row.cancelled = True
        self._wake.put(None)

    def _encode_images(self) -> None:
        while (row := self._with_images.get()) is not None:
            self._build_and_enqueue(row)

    # In the caller's thread, or in the encoder's for a request with an image.

    def _build_and_enqueue(self, row: Row) -> None:
        """Build the row's prompts, then let it wait for its turn."""
        request = row.request
        try:
            if not row.cancelled and self._refusal is None:
                row.prompts = self.prompt_builder.build(row.admitted.adapters, request.image, request.gates)
        except BaseException as error:  # whatever it is: the reader would wait for ever
            _log(error)
            self._end(row, _for_reader(error, request))
            return
        with self._lock:
            if row in self._open:
                self._scheduler.waiting.append(row)
        self._wake.put(None)

    # In the worker's thread.

    @torch.inference_mode()
    def _work(self) -> None:
        """Run steps until the engine is closed or broken. No exception ends it before all readers are told."""
        failure: BaseException | None = None
        while True:
            try:
                if failure is not None:
                    log.error("The engine failed", exc_info=failure)
                if self._failures >= MAX_FAILURES:
                    self._refuse(EngineBroken(BROKEN))
                elif failure is not None:
                    with self._lock:
                        failed = [row for row in self._open if row.started_at is not None or row.cancelled]
                    for row in failed:  # half a step leaves their KV undefined; the others keep waiting
                        self._end(row, _for_reader(failure, row.request))
                    with self._lock:
                        self._scheduler.reset()
                    self._stacked = None
                failure = None
                while self._step():  # within the try: an exception from outside may come between two steps
                    pass
                with self._lock:
                    rest = list(self._open)
                for row in rest:
                    assert self._refusal is not None
                    self._end(row, copy(self._refusal))
                return
            except BaseException as error:  # SystemExit and MemoryError too
                failure = error  # which ends rows; memory may be there again for the next ones
                self._failures += not isinstance(error, torch.OutOfMemoryError)

    def _step(self) -> bool:
        """Wait for work and run the scheduler's next step; False when no more are to be run."""
        while (step := self._schedule()) is None:
            if self._refusal is not None:
                return False
            self._wake.get()
        for row, reason in step.aborted:
            try:
                text = row.pending_text + row.detokenizer.flush()
            except Exception as error:
                self._fail(row, error)
                continue
            stats = row.stats(time.perf_counter())
            self._complete(row, GenerationEvent(text, finish_reason=reason, stats=stats))
        for row in step.moved:
            row.mailbox.put(GenerationEvent(position=row.position))
        began = time.perf_counter()
        if step.prefill is not None:
            try:
                self._prefill(step.prefill)
            except Exception as error:  # the other rows' KV is untouched
                self._fail(step.prefill, error)
            more: dict[str, float] = {"prefill_steps": 1, "prefill_seconds": time.perf_counter() - began}
        elif rows := list(self._scheduler.decoding):
            self._decode(rows)
            seconds = time.perf_counter() - began
            more = {"decode_steps": 1, "decode_seconds": seconds, "decode_rows": len(rows)}
        else:
            return True
        self._done = replace(self._done, **{name: getattr(self._done, name) + n for name, n in more.items()})
        self._failures = 0
        return True

    def _schedule(self) -> Step | None:
        """The next step, or None if there is nothing to do."""
        while not self._wake.empty():
            self._wake.get()  # before looking, so that what comes afterwards wakes the worker again
        with self._lock:
            left = [row for row in self._open if row.cancelled and row not in self._scheduler.rows]
        for row in left:  # whose picture waits for the encoder
            self._end(row, GenerationEvent(finish_reason="cancelled", stats=row.stats(time.perf_counter())))
        with self._lock:
            if self._refusal is not None or not self._scheduler.rows:
                return None
            return self._scheduler.schedule(time.perf_counter())

    def _prefill(self, row: Row) -> None:
        """Read the next chunk of a prompt. After the last one the row gets its first token and joins the batch."""
        assert row.slot is not None
        if row.prepared is None:  # not earlier: it may be a copy of a V2 adapter, and many rows may wait
            row.prepared = self._prepare_prompt_kv(row.prompts)
        scored = row.request.prompt_logprobs
        if row.computed_tokens == 0 and not scored:
            row.cached_tokens = self._load_prefix(row.prefix_key(), row.token_ids, row.slot)
            row.computed_tokens = row.cached_tokens
        # With nobody's next token to delay, more at once: attention reads the earlier tokens fewer times.
        count = PREFILL_CHUNK if scored else self._prefill_chunk * (1 if self._scheduler.decoding else 4)
        start = row.computed_tokens
        chunk = row.token_ids[start : start + count]
        prompts = self._forward.stack([row.prepared])
        logits = self._forward(self._cache, [chunk], [row.slot], [start], prompts, scored)
        row.computed_tokens += len(chunk)
        given: tuple[TokenLogprobs, ...] = ()
        if scored:
            following = row.token_ids[start + 1 : row.computed_tokens + 1]
            top = max(1, row.request.top_logprobs)
            given = token_logprobs(self._texts, logits[: len(following)], following, top)
            if start == 0:  # no token precedes the first one, so no logits score it
                given = (TokenLogprobs(self._texts.logprob(chunk[0], math.nan), ()), *given)
        unread = row.prompt_tokens - row.computed_tokens
        if unread or given:
            check_finite(logits)  # or later requests would find it in the prefix cache
            progress = 1 - unread / (row.prompt_tokens - row.cached_tokens)
            row.mailbox.put(GenerationEvent(progress=progress, prompt_logprobs=given))
        if unread:
            return
        [sampled] = sample(logits[-1:], [row.sampler])
        if self._forward.reads_ragged:
            row.drafter = Drafter(row.token_ids)
        if self._postprocess(row, sampled):
            # Here and not in the step, whose failure would be that of all rows: prompts may not fit together.
            self._stacked = None  # first: both together may not fit
            self._stacked = self._forward.stack([row.prepared for row in self._scheduler.decoding])

    def _load_prefix(self, key: Hashable, ids: Sequence[int], slot: Slot) -> int:
        """Write the cached KV of the longest common prefix into a slot; returns its length in tokens."""
        if (kv := self._prefix_cache.longest_prefix(key, ids)) is None:
            return 0
        self._cache.write(slot, kv)
        return kv.shape[3]

    def _prepare_prompt_kv(self, prompts: Prompts | None) -> Any:
        """What the forward pass reads of the prompts: one copy for all running rows that have the same."""
        with self._lock:
            held = self._scheduler.prompt_kv_bytes()
        self._prefix_cache.reserve(held + self.prompt_builder.cache.size)  # may also be less than before
        if prompts is None:
            return self._no_prompts
        prepared = self._prepared.get(prompts.key)
        if prepared is None:
            prepared = self._prepared[prompts.key] = self._forward.prepare(prompts.mixed())
        return prepared

    def _decode(self, rows: Sequence[Row]) -> None:
        """Read the newest token of each row, and a draft of those after it where that is worth it."""
        drafts = {}
        for row in rows:
            try:
                drafts[row] = _draft(row, len(rows))
            except Exception as error:
                self._fail(row, error)
        if not drafts:
            return
        tokens = [[row.token_ids[-1], *draft] for row, draft in drafts.items()]
        slots, starts = [row.slot for row in drafts if row.slot is not None], [row.kv_tokens for row in drafts]
        if self._stacked is None:
            self._stacked = self._forward.stack([row.prepared for row in drafts])
        logits = self._forward(self._cache, tokens, slots, starts, self._stacked, every=True)
        tokens_by_row = sample(logits, [row.sampler for row in drafts], list(drafts.values()))
        for row, sampled in zip(drafts, tokens_by_row, strict=True):
            self._postprocess(row, sampled)
        # A pass of its own over several tokens delays the others less than a row in each step would.
        chunk = BASE_CHUNK * min(2, len(drafts))
        behind = [
            row
            for row in self._scheduler.decoding
            if row.base_behind >= min(chunk, max(8, row.base_tokens - row.prompt_tokens))
        ]
        if behind:
            row = max(behind, key=lambda row: row.base_behind)
            if found := self._run_base(row):
                row.mailbox.put(GenerationEvent(base_logprobs=found))

    def _run_base(self, row: Row) -> tuple[TokenLogprobs, ...]:
        """Run the frozen base on the row's next tokens; returns its log-probabilities for those of the answer."""
        assert row.base_slot is not None
        try:
            if row.base_tokens == 0:
                prompt = row.token_ids[: row.prompt_tokens]
                row.base_tokens = self._load_prefix(row.prefix_key(of_base=True), prompt, row.base_slot)
            start, of_prompt = row.base_tokens, row.base_tokens < row.prompt_tokens - 1
            end = min(row.prompt_tokens - 1 if of_prompt else row.kv_tokens, start + self._prefill_chunk)
            nothing, ids = self._forward.stack([self._no_prompts]), [row.token_ids[start:end]]
            logits = self._forward(self._cache, ids, [row.base_slot], [start], nothing, not of_prompt)
            check_finite(logits)
            row.base_tokens = end
            if of_prompt:
                return ()
            top = row.request.top_logprobs or TOP_LOGPROBS
            return token_logprobs(self._texts, logits, row.token_ids[start + 1 : end + 1], top)
        except Exception as error:  # the answer goes on without
            _log(error)
            row.reads_base = False
            self._check_base()
            return ()

    def _complete(self, row: Row, last: GenerationEvent) -> None:
        """End a row, with the base's log-probabilities that are missing unless others would wait long for them."""
        found: tuple[TokenLogprobs, ...] = ()
        if row.prompt_tokens - row.base_tokens <= self._prefill_chunk:
            while row.base_behind > 0 and not row.cancelled:
                found += self._run_base(row)
        self._end(row, replace(last, base_logprobs=found))
        self._release(row)

    def _check_base(self) -> None:
        """Raises if the base cannot read a token: then a failure was not that of one row."""
        nothing = self._forward.stack([self._no_prompts])
        if not self._forward(KVCache(self.base, BLOCK), [[0]], [Slot(0, BLOCK)], [0], nothing).isfinite().all():
            raise RuntimeError("the base's own numbers overflow")

    def _postprocess(self, row: Row, sampled: Sequence[Sampled]) -> bool:
        """Send the row's next tokens, as from `sample`; False if the row has ended with one of them."""
        events: list[GenerationEvent] = []
        for number, token in enumerate(sampled, start=1):
            try:
                complete = number == len(sampled) and row.form is not None and row.form.complete
                events.append(self._next_event(row, token, complete))
            except Exception as error:  # nothing of it is shared with other rows
                row.mailbox.put(*events)
                self._fail(row, error)
                return False
            if events[-1].finish_reason is not None:
                row.mailbox.put(*events[:-1])
                self._complete(row, events[-1])
                return False
        row.mailbox.put(*events)
        return True

    def _next_event(self, row: Row, sampled: Sampled, complete: bool) -> GenerationEvent:
        """complete: whether nothing can follow the token in the row's form."""
        if isinstance(sampled, Exception):
            raise sampled
        token, logprob, ranked = sampled
        choices = None
        if ranked is not None:
            chosen, *top = starmap(self._texts.logprob, ranked)
            choices = TokenLogprobs(chosen, tuple(top))
        with self._lock:
            reason = self._scheduler.postprocess(row, token)
        if row.drafter is not None:
            row.drafter.append(token)
        now = time.perf_counter()
        if row.first_token_at is None:
            row.first_token_at = now
        text, row.pending_text = row.pending_text, ""
        text += "" if reason == "stop" else row.detokenizer.push(token)
        if complete:
            reason = "stop"
        if reason is not None or row.detokenizer.stopped:
            text += row.detokenizer.flush()
        if row.detokenizer.stopped:
            reason = "stop"
        stats = None if reason is None else row.stats(now)
        return GenerationEvent(text, token, logprob, reason, stats, choices=choices)

    def _fail(self, row: Row, error: Exception) -> None:
        """End a row with its error and drop its KV. Raises if the base fails too: then all rows are affected."""
        _log(error)
        self._end(row, _for_reader(error, row.request))
        self._release(row, keep=False)
        self._check_base()

    def _release(self, row: Row, keep: bool = True) -> None:
        """Take an ended row out of the scheduler. keep: its KV goes to the prefix cache."""
        self._stacked = None
        tokens = row.kv_tokens
        try:
            if keep and row.slot is not None and tokens:
                kv = self._cache.read(row.slot, tokens)
                self._prefix_cache.add(row.prefix_key(), row.token_ids[:tokens], kv)
                if row.base_slot is not None and row.reads_base and (tokens := row.base_tokens):
                    kv = self._cache.read(row.base_slot, tokens)
                    self._prefix_cache.add(row.prefix_key(of_base=True), row.token_ids[:tokens], kv)
        except Exception:  # no memory for the copy: the row has its answer, and the others need none of this
            log.exception("The KV of an answer was not kept")
        finally:
            with self._lock:
                self._scheduler.remove(row)
            row.prompts = row.prepared = None  # a reader that keeps its Answer keeps the row alive

    # In any thread.

    def _refuse(self, refusal: AdapterError) -> None:
        """Accept nothing any more, and stop the worker."""
        with self._lock:
            self._refusal = self._refusal or refusal
        self._wake.put(None)

    def _end(self, row: Row, last: GenerationEvent | AdapterError) -> None:
        """Send a request's last event and close the request; does nothing if it is closed already."""
        with self._lock:
            if row in self._open:
                row.mailbox.put(last)  # before it is forgotten: an exception from outside may come in between
                self._open.remove(row)


def _draft(row: Row, rows: int) -> list[int]:
    """A draft for a row in a step of so many rows. The answer would have room for it and one more token."""
    if row.drafter is None:
        return []
    limit = min(MAX_DRAFT, row.admitted.max_new_tokens - row.new_tokens - 1)
    guesses = row.drafter.propose(limit, rows)
    return guesses if row.form is None else row.form.draft(guesses, limit)


def queue_full(places: int) -> Busy:
    return Busy(f"{places} requests are running or waiting already. Try again in a minute.")


def _log(error: BaseException) -> None:
    if not isinstance(error, AdapterError | FloatingPointError):  # whose reader is told everything
        log.error("A request failed", exc_info=error)


def _for_reader(error: BaseException, request: GenerationRequest) -> AdapterError:
    """The error as a sentence about this request."""
    if isinstance(error, AdapterError):
        return error
    if isinstance(error, FloatingPointError):
        return _overflow(request)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Busy("There is not enough memory for this answer now. Try again in a minute.")
    return AdapterError(f"The model failed on this request ({type(error).__name__}). Try again.")


def _overflow(request: GenerationRequest) -> AdapterError:
    parts = [name for name, strength in request.parts if strength > 0]
    names = [f"'{re.sub(r' [(][0-9a-f]{12}[)]$', '', name)}'" for name in parts]  # a replica adds digests
    if not names:
        return AdapterError("The base's numbers overflow on this conversation. Start a new one.")
    who = f"Adapter {names[0]} makes" if len(names) == 1 else f"Adapters {' and '.join(names)} together make"
    return AdapterError(f"{who} the model's numbers overflow. Choose another adapter or a lower strength.")
