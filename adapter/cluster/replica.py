"""A replica of `Engine` in Ray Serve, its deployment, and which ones a page knows. Needs the extra `cluster`."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import RunningReplica

from adapter.base import embedded
from adapter.base.llama import AdaptedLlama, Base, load_base
from adapter.errors import AdapterError, Busy, EngineBroken
from adapter.files import code_digest
from adapter.lru import LRU
from adapter.method.adapter import Adapter
from adapter.serve.engine import Engine
from adapter.serve.inspection import Inspection
from adapter.serve.request import MAX_SECONDS, Answer, GenerationEvent, GenerationRequest
from adapter.serve.scheduler import MAX_ROWS

APP = "llama-adapter"
STATUS_SECONDS = 1.0  # between a replica's reports to the pages
_EVENT_SECONDS = 0.1  # between the messages to a page
_AGAIN_SECONDS = 2.0  # events this recent are sent again if they may be lost; longer than a cancellation takes

# A digest of the code that this process runs, as far as replicas need it.
CODE = code_digest("adapter/*.py", *(f"adapter/{room}/**/*.py" for room in ("base", "cluster", "method", "serve")))

known: Mapping[str, RunningReplica] = {}  # the replicas that are up, by the ends of their names
# Adapters by name: the digest of each, and where it is in Ray's object store.
References = Mapping[str, tuple[str, "ray.ObjectRef[Adapter]"]]
# By each answer's key: how many of its events came before, and the new ones.
Lists = dict[str, tuple[int, list[GenerationEvent | AdapterError]]]


class _Row:
    """An answer with all of its events, and how many of them were sent."""

    def __init__(self, answer: Answer, page: str) -> None:
        self.answer, self.page, self.sent = answer, page, 0
        self.events: list[GenerationEvent | AdapterError] = []
        self._sends: list[tuple[float, str, int]] = []  # when, with whose stream, and how much was sent before
        self._woken, loop = asyncio.Event(), asyncio.get_running_loop()
        answer.mailbox.waiting = True  # for the first event, which is sent at once
        answer.mailbox.wake = lambda: loop.call_soon_threadsafe(self._woken.set)
        if not answer.mailbox.empty():  # it has come before anybody waited
            self._woken.set()

    async def wait(self) -> bool:
        """Until the moment at which all rows send; False as soon as the last event is there."""
        if self.answer.mailbox.last is None:
            rest = _EVENT_SECONDS - time.monotonic() % _EVENT_SECONDS
            timer = asyncio.get_running_loop().call_later(rest, self._woken.set)
            await self._woken.wait()
            self._woken.clear()
            timer.cancel()
        return self.answer.mailbox.last is None

    def take(self, carrier: str) -> tuple[int, list[GenerationEvent | AdapterError]]:
        """Returns how many events were sent before, and those that were not, which count as sent from now on.

        carrier: the key of the answer whose stream takes them to the page.
        """
        self.answer.mailbox.waiting = False
        self.events += self.answer.take()
        if self.events and isinstance(broken := self.events[-1], EngineBroken):
            raise broken  # which ends the process, so that the page is not told that it must be started again
        before, self.sent = self.sent, len(self.events)
        if self.sent > before:
            self._sends.append((time.monotonic(), carrier, before))
        return before, self.events[before:]

    def send_again(self, carrier: str | None = None) -> None:
        """Marks as unsent what the stream of `carrier`, or any, took lately: a cancelled one may lose it."""
        since = time.monotonic() - _AGAIN_SECONDS
        lost = (before for when, by, before in self._sends if when > since and carrier in (None, by))
        self.sent = min([self.sent, *lost])

    async def rest(self, carrier: str) -> tuple[int, list[GenerationEvent | AdapterError]]:
        """All that is left, and what was sent lately."""
        while not self.answer.ended:  # a mailbox has its `last` before the event can be taken
            self.take(carrier)
            await asyncio.sleep(0)
        self.send_again()
        return self.take(carrier)


class Replica:
    """The deployment: an engine, and its store: adapters come with requests, and those used lately are kept."""

    def __init__(
        self, base: str, quantization: str, cache_bytes: int | None, keep_packed: bool, by_page: bool
    ) -> None:
        """by_page: whether a page has deployed it, which then replaces it where its code is another."""
        self._base, self._by_page = load_base(base, quantization, keep_packed=keep_packed), by_page
        self._adapters: LRU[str, Adapter] = LRU(2 * MAX_ROWS)  # for a mix of two in each row
        self._rows: dict[str, _Row] = {}  # by the keys of their answers
        self._engine = Engine(self._base, self, cache_bytes=cache_bytes)
        self._looks = ThreadPoolExecutor(16)  # which wait for each other, and would take those of new answers

    async def _fetch(self, request: GenerationRequest, references: References) -> GenerationRequest:
        """Gets the adapters that are missing. Returns the request with the names that they have here."""
        names: dict[str | None, str | None] = {None: None}
        for name, (digest, reference) in references.items():
            names[name] = key = f"{name} ({digest[:12]})"
            if self._adapters.get(key) is None:
                self._adapters.put(key, (await reference).to(self._base.device).requires_grad_(False).eval())
        mix = tuple((str(names[name]), strength) for name, strength in request.mix)
        return replace(request, adapter=names[request.adapter], mix=mix)

    def load(self, name: str, *_: object) -> Adapter:
        if (adapter := self._adapters.get(name)) is None:  # so many others have come since it was fetched
            raise Busy("Too many adapters are asked for at once. Try again.")
        return adapter

    def describe(self) -> tuple[Base, str]:
        """The base without its weights: it tokenises and knows its sizes; the code, if pages replace it."""
        with torch.device("meta"):
            model = AdaptedLlama(self._base.model.config)
        model.generation_config = self._base.model.generation_config
        return replace(self._base, model=model), CODE if self._by_page else ""

    async def answer(
        self, request: GenerationRequest, adapters: References, page: str, key: str
    ) -> AsyncIterator[Lists]:
        """Yields an empty dict once the request is accepted; then what has come of all answers of this page, so
        that rows share a message; at the end the rest of this answer, of which some may come twice.
        """
        try:
            request = await self._fetch(request, adapters)
            row = self._rows[key] = _Row(await asyncio.to_thread(self._engine.submit, request), page)
            yield {}
            while await row.wait():
                rows = [(name, other) for name, other in self._rows.items() if other.page == page]
                # Of the rows that wake together, the first takes all.
                if found := {name: new for name, other in rows if (new := other.take(key))[1]}:
                    yield found
            yield {key: await row.rest(key)}
        except AdapterError as error:
            if self._engine.failure is not None:
                os._exit(1)  # the page asks another replica at once, and Serve starts one in its place
            yield {key: (0, [error])}
        finally:
            if (ended := self._rows.pop(key, None)) is not None:
                ended.answer.close()
                for other in self._rows.values():
                    if other.page == page:
                        other.send_again(key)

    async def inspect(
        self, request: GenerationRequest, answer_ids: Sequence[int], adapters: References
    ) -> Inspection | AdapterError:
        """As Engine.inspect; an error is returned."""
        try:
            request = await self._fetch(request, adapters)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._looks, self._engine.inspect, request, answer_ids)
        except AdapterError as error:
            return error

    def record_routing_stats(self) -> dict[str, Any]:
        """What the pages are told of this replica every second. Ends its process if the engine is broken."""
        if self._engine.failure is not None:
            os._exit(1)
        return {"statistics": self._engine.statistics()}


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
        max_ongoing_requests=MAX_ROWS,  # one more overflows to another replica, or waits for one
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # A replica that goes ends its answers first.
        graceful_shutdown_timeout_s=MAX_SECONDS,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=5.0,
        request_router_config={
            "request_router_class": "adapter.cluster.replica:Router",
            # Where the replica of a conversation is full, any other is asked.
            "request_router_kwargs": {"num_fallback_replicas": max(2, most - 1)},
            "request_routing_stats_period_s": STATUS_SECONDS,
            "request_routing_stats_timeout_s": 10.0,
        },
        **scaling,
    )(Replica)
    return deployment.bind(base, quantization, cache_bytes, keep_packed, by_page)


def app(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file, whose `args` are those of `build`. See docs/cluster.md."""
    return build(**{**args, "replicas": tuple(args.get("replicas", (1, 1)))})
