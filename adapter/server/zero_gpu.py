"""The engine of a ZeroGPU Space: each answer is computed by a process of its own, which has the GPU for a while.

The package `spaces` decorates the work and forks such a worker. It inherits the base, already on the GPU; adapters
and request are passed to it as bytes, and events come back as plain values. No state outlives an answer. Knows the
engine; knows no Gradio.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from adapter.base.encoder import load_encoder
from adapter.base.llama import Base, load_base
from adapter.errors import AdapterError, Busy, LoadError
from adapter.method.adapter import Adapter
from adapter.method.vision import VisualEncoder
from adapter.serve.engine import MAX_REQUESTS, Engine
from adapter.serve.inspection import Inspection
from adapter.serve.request import Answer, Client, GenerationEvent, GenerationRequest, GenerationStats, Mailbox
from adapter.serve.scheduler import admit
from adapter.serve.store import AdapterStore
from adapter.server import texts

log = logging.getLogger(__name__)

# What a visitor's quota must hold for an answer: a start, and tokens at a rate that any GPU there exceeds. Not
# everybody is given more than the default of 60 seconds.
START_SECONDS, TOKENS_PER_SECOND, MOST_SECONDS = 15, 15, 60
INSPECTION_SECONDS = 20
_SPARE_SECONDS = 4  # the answer ends before its worker is ended
_CLOSING_SECONDS = 3.0
# What spaces calls an error of the worker; all others are about getting a GPU.
_WORKER_ERROR = "ZeroGPU worker error"


def load_for_zero_gpu(name: str, quantization: str) -> Base:
    """The base on the GPU that `spaces` stands in for; to be called before the launch, in the main thread.

    In bfloat16: there is room, and it is quickest. Raises LoadError.
    """
    if quantization not in ("auto", "none"):
        raise LoadError("On ZeroGPU the base stays in bfloat16: leave --quantization out.")
    base = load_base(name, "none", "cpu")
    base.model.to(_device())
    return base


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"  # `spaces` says that there is one


class ZeroGpuEngine:
    """Answers as adapter.serve.engine.Engine does, on GPUs that come and go. Thread-safe.

    To be made before the launch, in the main thread. gpu: `spaces.GPU`; gpu_error: what it raises (Gradio's
    error).
    """

    def __init__(
        self, base: Base, store: AdapterStore, gpu: Callable[..., Any], gpu_error: type[Exception]
    ) -> None:
        self.base = base
        self._gpu_error = gpu_error
        self.store = store
        # Adapters stay on the CPU in this process.
        self._here: Any = SimpleNamespace(fingerprint=base.fingerprint, device=torch.device("cpu"))
        self._work = gpu(_work_on(base, _encoders(store)), duration=lambda job, seconds: seconds)
        self._lock = threading.Lock()
        self._open: set[_Asked] = set()
        self._closed = False

    def submit(self, request: GenerationRequest) -> Answer:
        """As the engine's, and as soon: what can be known now is known before there is a worker."""
        admitted = admit(request, self.base, self._load)
        seconds = min(START_SECONDS + admitted.max_new_tokens / TOKENS_PER_SECOND, MOST_SECONDS)
        request = replace(
            request,
            messages=(),
            prompt_ids=tuple(admitted.prompt_ids),
            client=Client(),
            max_seconds=min(request.max_seconds, seconds - _SPARE_SECONDS),
        )
        asked = _Asked(len(admitted.prompt_ids))
        self._begin(asked, self._job(request), seconds)
        return Answer(asked.mailbox, asked.cancel)

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        """As the engine's."""
        admitted = admit(request, self.base, self._load)
        request = replace(request, messages=(), prompt_ids=tuple(admitted.prompt_ids), client=Client())
        asked = _Asked(0)
        self._begin(asked, self._job(request, answer_ids), INSPECTION_SECONDS)
        found = asked.mailbox.events.get()
        if isinstance(found, AdapterError):
            raise found
        if asked.found is None:
            raise Busy(texts.GPU_CLOSED)
        return asked.found

    def close(self) -> None:
        """End all that is open, and the workers."""
        with self._lock:
            self._closed = True
            rest = list(self._open)
        for asked in rest:
            asked.end(Busy(texts.GPU_CLOSED))
        for worker in multiprocessing.active_children():
            worker.kill()
        deadline = time.monotonic() + _CLOSING_SECONDS
        while self._open and time.monotonic() < deadline:
            time.sleep(0.02)

    def _load(self, name: str) -> Adapter:
        return self.store.load(name, self._here)

    def _job(self, request: GenerationRequest, answer_ids: Sequence[int] | None = None) -> bytes:
        # Bytes of our own: handed over as tensors, each would be moved into shared memory and a file of its own.
        adapters = {name: self._load(name) for name, _ in request.parts}
        return pickle.dumps((request, adapters, answer_ids))

    def _begin(self, asked: _Asked, job: bytes, seconds: float) -> None:
        with self._lock:
            if self._closed:
                raise Busy(texts.GPU_CLOSED)
            if len(self._open) >= MAX_REQUESTS:
                raise Busy(texts.too_many_waiting(MAX_REQUESTS))
            self._open.add(asked)
        context = contextvars.copy_context()  # spaces finds in it whose quota counts
        threading.Thread(
            target=context.run, args=(self._follow, asked, job, seconds), name="zero-gpu", daemon=True
        ).start()

    def _follow(self, asked: _Asked, job: bytes, seconds: float) -> None:
        """Let a worker do the job, and pass on what it says; in a thread of the answer's own."""
        try:
            if asked.over:
                return
            with closing(self._work(job, seconds)) as said:
                for item in said:
                    if asked.over:
                        break
                    asked.take(item)
            asked.end(Busy(texts.GPU_CLOSED))
        except self._gpu_error as error:
            asked.end(_for_reader(error))
        except Exception as error:
            log.error("A worker of ZeroGPU failed", exc_info=error)
            asked.end(AdapterError(texts.FAILED))
        finally:
            with self._lock:
                self._open.discard(asked)


class _Asked:
    """An answer on its way, in the parent: what its reader gets, once it has ended nothing more."""

    def __init__(self, prompt_tokens: int) -> None:
        self.mailbox = Mailbox()
        self.found: Inspection | None = None
        self.over = False
        self._prompt_tokens, self._tokens = prompt_tokens, 0
        self._submitted = self._first = time.perf_counter()
        self._lock = threading.Lock()

    def take(self, item: Any) -> None:
        """Pass on what a worker has said."""
        if isinstance(item, bytes):
            item = pickle.loads(item)
        if isinstance(item, Inspection):
            self.found = item
            item = GenerationEvent(finish_reason="stop", stats=self._stats())
        if isinstance(item, AdapterError) or item.finish_reason is not None:
            self.end(item)
            return
        with self._lock:
            if not self.over:
                self._first = self._first if self._tokens else time.perf_counter()
                self._tokens += item.token_id is not None
                self.mailbox.put(item)

    def end(self, last: GenerationEvent | AdapterError) -> None:
        with self._lock:
            if self.over:
                return
            self.over = True
        if isinstance(last, GenerationEvent) and last.stats is not None:
            # Waiting is what the worker knows nothing of.
            waited = time.perf_counter() - self._submitted - last.stats.prefill_s - last.stats.decode_s
            last = replace(last, stats=replace(last.stats, queue_s=max(0.0, waited)))
        self.mailbox.put(last)

    def cancel(self) -> None:
        """The reader is told at once; the worker ends with its next step, or before its first."""
        self.end(GenerationEvent(finish_reason="cancelled", stats=self._stats()))

    def _stats(self) -> GenerationStats:
        now = time.perf_counter()
        first = self._first if self._tokens else now
        return GenerationStats(self._prompt_tokens, self._tokens, 0.0, 0.0, now - first)


def _encoders(store: AdapterStore) -> dict[str, VisualEncoder]:
    """The encoders of all adapters that see, on the GPU. One that cannot be loaded is missed when it is needed."""
    found: dict[str, VisualEncoder] = {}
    for name in store.names():
        with contextlib.suppress(LoadError):
            vision = store.card(name).config.vision
            if vision is not None and vision.encoder not in found:
                found[vision.encoder] = load_encoder(vision.encoder).to(_device())
    return found


def _work_on(base: Base, encoders: Mapping[str, VisualEncoder]) -> Callable[[bytes, float], Iterator[Any]]:
    """What a worker does. It finds base and encoders as they were when it was forked."""

    def work(job: bytes, seconds: float) -> Iterator[Any]:
        torch.set_num_threads(1)  # more would wait for threads of the parent, which a fork does not bring along
        request, adapters, answer_ids = pickle.loads(job)
        engine = Engine(base, _Passed(adapters), encoders)
        try:
            if answer_ids is not None:
                yield pickle.dumps(engine.inspect(request, answer_ids))
                return
            with closing(engine.submit(request)) as answer:
                yield from answer
        except AdapterError as error:
            yield error
        except Exception:
            log.exception("A worker of ZeroGPU failed")
            yield AdapterError(texts.FAILED)
        finally:
            engine.close()

    return work


class _Passed:
    """The adapters that came with a job."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self._adapters = adapters

    def load(self, name: str, base: Base) -> Adapter:
        return self._adapters[name].to(base.device)


def _for_reader(error: Exception) -> AdapterError:
    if getattr(error, "title", "") == _WORKER_ERROR:
        return AdapterError(texts.GPU_WORKER_ENDED)
    return Busy(texts.no_gpu(str(getattr(error, "message", error)).strip()))
