"""A replica of `Engine` in Ray Serve, its deployment, and which ones a page knows. Needs the extra `cluster`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import RunningReplica

from adapter.base import embedded
from adapter.base.llama import AdaptedLlama, Base, load_base
from adapter.errors import AdapterError, Busy
from adapter.lru import LRU
from adapter.method.adapter import Adapter
from adapter.serve.engine import Engine
from adapter.serve.inspection import Inspection
from adapter.serve.request import MAX_SECONDS, GenerationEvent, GenerationRequest, async_event_lists
from adapter.serve.scheduler import MAX_ROWS

APP = "llama-adapter"
STATUS_SECONDS = 1.0  # between a replica's reports to the pages
_EVENT_SECONDS = 0.1  # between the lists of an answer's events, each of which is a message of Ray
_CACHED_ADAPTERS = 32  # of a replica; a row keeps its own alive

# A digest of the code that this process runs, as far as replicas need it.
_ROOMS = [Path(__file__).parents[1] / room for room in ("base", "cluster", "method", "serve")]
CODE = hashlib.sha256(b"".join(f.read_bytes() for room in _ROOMS for f in sorted(room.rglob("*.py")))).hexdigest()

known: Mapping[str, RunningReplica] = {}  # the replicas that are up, by the ends of their names
# Adapters by name: the digest of each, and where it is in Ray's object store.
References = Mapping[str, tuple[str, "ray.ObjectRef[Adapter]"]]


class Replica:
    """The deployment: an engine, and its store: adapters come with requests, and those used lately are kept."""

    def __init__(
        self, base: str, quantization: str, cache_bytes: int | None, keep_packed: bool, by_page: bool
    ) -> None:
        """by_page: whether a page has deployed it, which then replaces it where its code is another."""
        if base == embedded.BASE:
            embedded.base_folder()
        self._base, self._by_page = load_base(base, quantization, keep_packed=keep_packed), by_page
        self._adapters: LRU[str, Adapter] = LRU(_CACHED_ADAPTERS)
        self._engine = Engine(self._base, self, cache_bytes=cache_bytes)

    async def _fetch(self, request: GenerationRequest, references: References) -> GenerationRequest:
        """Gets the adapters that are missing. Returns the request with the names that they have here."""
        names: dict[str | None, str | None] = {None: None}
        for name, (digest, reference) in references.items():
            names[name] = key = f"{name} ({digest[:12]})"
            if self._adapters.get(key) is None:
                self._adapters.put(key, (await reference).to(self._base.device).requires_grad_(False).eval())
        mix = tuple((str(names[name]), strength) for name, strength in request.mix)
        return replace(request, adapter=names[request.adapter], mix=mix)

    def load(self, name: str, base: Base) -> Adapter:
        if (adapter := self._adapters.get(name)) is None:  # so many others have come since it was fetched
            raise Busy("Too many adapters are asked for at once. Try again.")
        return adapter

    def describe(self) -> tuple[Base, str]:
        """The base without its weights: it tokenises and knows its sizes; the code, if pages replace it."""
        with torch.device("meta"):
            model = AdaptedLlama(self._base.model.config)
        model.generation_config = self._base.model.generation_config
        return replace(self._base, model=model), CODE * self._by_page

    async def answer(
        self, request: GenerationRequest, adapters: References
    ) -> AsyncIterator[list[GenerationEvent | AdapterError]]:
        """Yields an empty list once the request is accepted, then lists of events; an error ends the answer."""
        try:
            request = await self._fetch(request, adapters)
            answer = await asyncio.to_thread(self._engine.submit, request)
            yield []
            with closing(answer):
                async for _, events in async_event_lists({0: answer}, _EVENT_SECONDS):
                    yield list(events)
        except AdapterError as error:
            yield [error]

    async def inspect(
        self, request: GenerationRequest, answer_ids: Sequence[int], adapters: References
    ) -> Inspection | AdapterError:
        """As Engine.inspect; an error is returned."""
        try:
            request = await self._fetch(request, adapters)
            return await asyncio.to_thread(self._engine.inspect, request, answer_ids)
        except AdapterError as error:
            return error

    def record_routing_stats(self) -> dict[str, Any]:
        """What the pages are told of this replica every second."""
        return {"statistics": self._engine.statistics()}

    def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises."""
        if self._engine.failure is not None:
            raise RuntimeError(self._engine.failure)


class Router(ConsistentHashRouter):
    """Keeps a conversation on a replica. Ray makes it in the process that asks."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        # By its name: Ray passes the class on with a copy of the module's variables.
        from adapter.cluster import replica as module

        super().update_replicas(replicas)
        module.known = {replica.replica_id.unique_id: replica for replica in replicas}


def build(
    base: str = embedded.BASE,
    quantization: str = "auto",
    cache_bytes: int | None = None,
    replicas: tuple[int, int] = (1, 1),
    cpus: float = 1,
    gpus: float = 0,
    keep_packed: bool = False,
    by_page: bool = False,
) -> serve.Application:
    """The application of `serve.run`. replicas: least and most; cpus, gpus: of each; by_page: see Replica."""
    least, most = replicas
    # Ray counts requests that run on a replica and those that wait for one.
    scaling: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least, max_replicas=most, target_ongoing_requests=MAX_ROWS / 2, upscale_delay_s=10
            )
        }
    deployment = serve.deployment(
        name="Replica",
        max_ongoing_requests=MAX_ROWS,  # one more overflows to another replica, or waits for one
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # A replica that goes ends its answers first.
        graceful_shutdown_timeout_s=MAX_SECONDS,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=5.0,
        request_router_config={
            "request_router_class": "adapter.cluster.replica:Router",
            "request_routing_stats_period_s": STATUS_SECONDS,
            "request_routing_stats_timeout_s": 10.0,
        },
        **scaling,
    )(Replica)
    return deployment.bind(base, quantization, cache_bytes, keep_packed, by_page)


def app(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file, whose `args` are those of `build`. See docs/cluster.md."""
    return build(**{**args, "replicas": tuple(args.get("replicas", (1, 1)))})
