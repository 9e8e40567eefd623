"""The engine of a ZeroGPU Space: each answer is computed by a process of its own, which has the GPU for a while.

The package `spaces` decorates the work and forks such a worker. It inherits the base, already on the GPU; adapters
and request are passed to it as bytes, and events come back as plain values. No state outlives an answer.
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
from adapter.errors import AdapterError, Busy, Closing, LoadError
from adapter.method.adapter import Adapter
from adapter.method.vision import VisualEncoder
from adapter.serve.engine import MAX_REQUESTS, Engine, queue_full
from adapter.serve.form import NO_FORM
from adapter.serve.inspection import Inspection
from adapter.serve.request import Answer, Client, GenerationEvent, GenerationRequest, RemoteAnswer
from adapter.serve.scheduler import admit
from adapter.serve.store import AdapterStore
from adapter.server.generation import FAILED

log = logging.getLogger(__name__)

# GPU time that an answer takes of a visitor's quota: start-up, and tokens at a rate that any GPU there exceeds. At
# most the default of 60 seconds, because not every visitor may use more.
START_SECONDS, TOKENS_PER_SECOND, MAX_SECONDS = 15, 15, 60
INSPECTION_SECONDS = 20
_MARGIN_SECONDS = 4  # between the end of the answer and that of its worker
_TAKEN_AWAY = "The GPU was taken away before the answer was complete. Ask again, or for fewer max tokens."
# The title of an error of the worker; all others of `spaces` are about getting a GPU.
_WORKER_ERROR = "ZeroGPU worker error"


def load_for_zero_gpu(name: str, quantization: str) -> Base:
    """Loads the base in bfloat16, the fastest there, onto the GPU that `spaces` emulates until a worker has one:
    before the launch, in the main thread. Raises LoadError.
    """
    if quantization not in ("auto", "none"):
        raise LoadError("On ZeroGPU the base stays in bfloat16: leave --quantization out.")
    base = load_base(name, "none", "cpu")
    base.model.to("cuda" if torch.cuda.is_available() else "cpu")  # `spaces` reports one
    return base


class ZeroGpuEngine:
    """An engine whose answers workers compute, each with a GPU for as long as it takes. Thread-safe. To be made
    before the launch, in the main thread. gpu: `spaces.GPU`; gpu_error: Gradio's error.
    """

    def __init__(
        self, base: Base, store: AdapterStore, gpu: Callable[..., Any], gpu_error: type[Exception]
    ) -> None:
        self.base = base
        self._gpu_error = gpu_error
        self.store = store
        encoders: dict[str, VisualEncoder] = {}
        for name in store.names():
            with contextlib.suppress(LoadError):  # one that cannot be loaded is an error when it is needed
                vision = store.card(name).config.vision
                if vision is not None and vision.encoder not in encoders:
                    encoders[vision.encoder] = load_encoder(vision.encoder).to(base.device)
        self._work = gpu(_worker_task(base, encoders), duration=lambda job, seconds: seconds)
        self._lock = threading.Lock()
        self.failure = None  # a worker that fails is followed by another
        self._open: set[_PendingAnswer] = set()
        self._closed = False

    def describe(self) -> str:
        return self.base.describe()

    def submit(self, request: GenerationRequest) -> Answer:
        """As Engine.submit. A request that cannot be served is refused before a worker is started."""
        pending = self._begin(request)
        return Answer(pending.mailbox, pending.cancel)

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        pending = self._begin(replace(request, form=NO_FORM), answer_ids)
        last = pending.mailbox.get()
        if isinstance(last, AdapterError):
            raise last
        if pending.inspection is None:
            raise Closing()
        return pending.inspection

    def replicas(self) -> Mapping[str, Any]:
        """Always empty: a worker lives for one answer only, so it has no lasting figures."""
        return {}

    def close(self) -> None:
        """End all open answers, and the workers."""
        with self._lock:
            self._closed = True
            rest = list(self._open)
        for pending in rest:
            pending.end(Closing())
        for worker in multiprocessing.active_children():
            worker.kill()
        deadline = time.monotonic() + 3.0
        while self._open and time.monotonic() < deadline:
            time.sleep(0.02)

    def _begin(self, request: GenerationRequest, answer_ids: Sequence[int] | None = None) -> _PendingAnswer:
        """Has a worker answer, or inspect the answer that is given."""

        def load(name: str) -> Adapter:
            return self.store.load(name, self.base.fingerprint)

        admitted = admit(request, self.base, load)
        seconds = min(START_SECONDS + admitted.max_new_tokens / TOKENS_PER_SECOND, MAX_SECONDS)
        seconds = seconds if answer_ids is None else INSPECTION_SECONDS
        request = replace(  # with its messages: the form of the answer may be about them
            request,
            prompt_ids=tuple(admitted.prompt_ids),
            client=Client(),
            max_seconds=min(request.max_seconds, seconds - _MARGIN_SECONDS),
        )
        pending = _PendingAnswer(request)
        # As bytes: multiprocessing would move each tensor into shared memory and a file of its own.
        job = pickle.dumps((request, {name: load(name) for name, _ in request.parts}, answer_ids))
        with self._lock:
            if self._closed:
                raise Closing()
            if len(self._open) >= MAX_REQUESTS:
                raise queue_full(MAX_REQUESTS)
            self._open.add(pending)
        run = contextvars.copy_context().run  # spaces finds in it whose quota counts
        threading.Thread(
            target=run, args=(self._relay, pending, job, seconds), name="zero-gpu", daemon=True
        ).start()
        return pending

    def _relay(self, pending: _PendingAnswer, job: bytes, seconds: float) -> None:
        """Runs the job in a worker and passes on its events; in a thread of its own for each answer."""
        try:
            if pending.ended:
                return
            with closing(self._work(job, seconds)) as events:
                for item in events:
                    if pending.ended:
                        break
                    if isinstance(item, bytes):
                        pending.inspection = pickle.loads(item)
                        item = GenerationEvent(finish_reason="stop", stats=pending.stats())
                    pending.deliver(item)
            pending.end(Closing())
        except self._gpu_error as error:
            if getattr(error, "title", "") == _WORKER_ERROR:
                pending.end(AdapterError(_TAKEN_AWAY))
            else:  # the message of a gr.Error, which spaces writes for people
                reason = str(getattr(error, "message", "")).strip()
                pending.end(Busy(f"There is no GPU for this answer now. {reason}"))
        except Exception as error:
            log.error("A worker of ZeroGPU failed", exc_info=error)
            pending.end(AdapterError(FAILED))
        finally:
            with self._lock:
                self._open.discard(pending)


class _PendingAnswer(RemoteAnswer):
    """An answer or an inspection that a worker computes."""

    inspection: Inspection | None = None


def _worker_task(base: Base, encoders: Mapping[str, VisualEncoder]) -> Callable[[bytes, float], Iterator[Any]]:
    """The function that runs in a worker, with base and encoders as they were when it was forked."""

    def work(job: bytes, seconds: float) -> Iterator[Any]:
        torch.set_num_threads(1)  # more would wait for threads of the parent, which do not exist after a fork
        request, adapters, answer_ids = pickle.loads(job)
        store: Any = SimpleNamespace(load=lambda name, _, device: adapters[name].to(device))
        engine = Engine(base, store, encoders)
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
            yield AdapterError(FAILED)
        finally:
            engine.close()

    return work
