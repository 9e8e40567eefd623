"""What whoever runs the server asks it: /healthz, /readyz, and /metrics in Prometheus' format.

Counts, seconds and the names of adapters are kept here; no message, address or session.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from adapter.errors import BadInput, Busy
from adapter.server.generation import AdapterCatalog, EngineProvider, ServingEngine, client_of, is_local
from adapter.server.limits import Limits
from adapter.server.openai_api import NO_KEY, find_key, shows_key

if TYPE_CHECKING:
    from adapter.serve.inspection import Inspection
    from adapter.serve.request import Answer, GenerationEvent, GenerationRequest, GenerationStats

MOST_NAMES = 100  # of adapters with figures of their own, which they keep as long as the server runs
OTHER = "other"  # the rest, and names that there are not
# Figures of each replica: kind, name, text, and fields of EngineStatistics by the step's phase.
_STEPS = {"prefill": "prefill_steps", "decode": "decode_steps"}
_SECONDS = {"prefill": "prefill_seconds", "decode": "decode_seconds"}
_ENGINE = (
    (CounterMetricFamily, "steps", "Steps of the engine, by what they read", _STEPS),
    (CounterMetricFamily, "step_seconds", "What these steps took", _SECONDS),
    (CounterMetricFamily, "decode_rows", "Rows of all decode steps together", "decode_rows"),
    (GaugeMetricFamily, "running_rows", "Rows that have started", "running"),
    (GaugeMetricFamily, "waiting_rows", "Rows that wait for their turn", "waiting"),
    (GaugeMetricFamily, "cache_tokens", "Tokens of the KV cache that running rows hold", "cache_tokens"),
    (GaugeMetricFamily, "cache_capacity_tokens", "Tokens that the KV cache has room for", "cache_capacity"),
)


def routes(provider: EngineProvider, metrics: Metrics, auth: str | None) -> list[Route]:
    """The three routes. auth: the page's USER:PASS, or None; see `openai_api.Api`. Probes wait for nothing, so
    that they are answered while all threads are busy.
    """
    key = find_key(auth)

    async def healthz(request: Request) -> Response:
        return JSONResponse({"state": "alive"})

    async def readyz(request: Request) -> Response:
        status = provider.status()
        if status.state == "ready":
            return JSONResponse({"state": "ready"})
        return JSONResponse({"state": status.state, "reason": status.text}, 503)

    async def figures(request: Request) -> Response:
        here = request.client is not None and client_of(request).is_local
        may_read = here and is_local(request.scope, request.headers)
        if not may_read and not (key is not None and shows_key(request, key)):
            if key is None or "authorization" not in request.headers:
                text = "The figures of this server are for its own machine, or for who shows the key of /v1."
                return PlainTextResponse(text, 403)
            return PlainTextResponse(NO_KEY, 401, {"WWW-Authenticate": "Bearer"})  # counted as a guess
        content = await asyncio.to_thread(metrics.render, provider)
        return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", figures)]


class Metrics:
    """The figures of one server: answers by adapter and by ending, and those of the engine's replicas."""

    def __init__(self, store: AdapterCatalog) -> None:
        self._store = store
        self._names: set[str] = set()
        # Endings may come from anywhere, even from the garbage collector while this thread holds a counter's lock.
        self._ended: deque[tuple[str, str, GenerationStats | None]] = deque()
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"llama_adapter_{name}", text, labels, registry=self._registry)

        self._requests = counter("requests", "Answers, by adapter and by how they ended", "adapter", "ending")
        self._prompt = counter("prompt_tokens", "Tokens of the prompts of answers", "adapter")
        self._cached = counter("cached_prompt_tokens", "Of these, tokens found in a prefix cache", "adapter")
        self._generated = counter("generated_tokens", "Tokens of answers", "adapter")
        self._first_token = Histogram(
            "llama_adapter_time_to_first_token_seconds",
            "From a request to the first token of its answer: the queue, then reading the prompt",
            buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=self._registry,
        )

    def label(self, request: GenerationRequest) -> str:
        """What a request is counted under: its adapter, "base", "mix" or OTHER, so that labels are few."""
        self._count_ended()
        names = [name for name, _ in request.parts]
        if len(names) != 1:
            return "mix" if names else "base"
        [name] = names
        if name not in self._names:
            if len(self._names) >= MOST_NAMES or name not in self._store.names():
                return OTHER
            self._names.add(name)
        return name

    def ended(self, label: str, last: GenerationEvent | Exception) -> None:
        """Count an answer by its last event, or by what was raised instead. Takes no lock."""
        if isinstance(last, Exception):
            refused = isinstance(last, (BadInput, Busy))
            self._ended.append((label, "refused" if refused else "error", None))
        else:
            self._ended.append((label, last.finish_reason or "error", last.stats))

    def render(self, provider: EngineProvider) -> bytes:
        """All figures, in Prometheus' format."""
        self._count_ended()
        engines: Any = SimpleNamespace(collect=lambda: _engine_figures(provider))
        return generate_latest(self._registry) + generate_latest(engines)

    def _count_ended(self) -> None:
        while True:
            try:  # several threads may be here
                label, ending, stats = self._ended.popleft()
            except IndexError:
                return
            self._requests.labels(label, ending).inc()
            if stats is not None:
                self._prompt.labels(label).inc(stats.prompt_tokens)
                self._cached.labels(label).inc(stats.cached_tokens)
                self._generated.labels(label).inc(stats.new_tokens)
                if stats.new_tokens:
                    self._first_token.observe(stats.queue_s + stats.prefill_s)


class CountedEngine:
    """An engine whose answers are counted by the client's address and for /metrics, whoever reads them."""

    def __init__(self, engine: ServingEngine, limits: Limits, metrics: Metrics) -> None:
        self._engine, self._limits, self._metrics = engine, limits, metrics

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: GenerationRequest) -> Answer:
        """As the engine's. Raises RateLimited too."""
        ended = partial(self._metrics.ended, self._metrics.label(request))
        try:
            release = self._limits.hold("answer", request.client.address, request.answers)
            try:
                answer = self._engine.submit(request)
            except BaseException:
                release()
                raise
        except Exception as error:
            ended(error)
            raise
        answer.mailbox.observe(lambda last: release())
        answer.mailbox.observe(ended)
        return answer

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        """As the engine's. Raises RateLimited too."""
        release = self._limits.hold("inspection", request.client.address)
        try:
            return self._engine.inspect(request, answer_ids)
        finally:
            release()


def _engine_figures(provider: EngineProvider) -> Iterator[Metric]:
    """The engine's state and its replicas' statistics."""
    ready = provider.status().state == "ready"
    yield GaugeMetricFamily("llama_adapter_ready", "1 if /readyz says so, else 0", ready)
    engine = provider.engine()
    replicas = {} if engine is None else engine.replicas()
    for family, name, text, fields in _ENGINE:
        labels = ["replica"] if isinstance(fields, str) else ["replica", "phase"]
        figure = family(f"llama_adapter_engine_{name}", text, labels=labels)
        for replica, found in replicas.items():
            for phase, field in ({"": fields} if isinstance(fields, str) else fields).items():
                figure.add_metric([replica, phase][: len(labels)], getattr(found, field))
        yield figure
