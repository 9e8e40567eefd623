"""The page's engine, which asks replicas of `Engine` in Ray Serve, see docs/cluster.md. Needs the extra `cluster`.

It holds no weights of the base: it tokenises, passes requests and their adapters to replicas, and relays events.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import socket
import threading
import time
import uuid
import weakref
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import count, takewhile
from typing import Any

# Ray reads them when it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here phones home
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine needs more than the default of 30
os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "1")  # in 0.1 s a busy replica is passed over
os.environ.setdefault("RAY_worker_niceness", "0")  # or replicas starve beside any other program, the page too

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus
from safetensors.torch import save

from adapter.base.llama import Base
from adapter.base.threads import available_cores
from adapter.cluster import replica as replicas_module
from adapter.cluster.replica import APP, STATUS_SECONDS, References, build
from adapter.errors import AdapterError, Closing, LoadError
from adapter.method.adapter import Adapter
from adapter.method.config import base_label
from adapter.serve.engine import MAX_REQUESTS, queue_full
from adapter.serve.form import NO_FORM
from adapter.serve.inspection import Inspection
from adapter.serve.request import MAX_SECONDS, Answer, GenerationEvent, GenerationRequest, RemoteAnswer
from adapter.serve.scheduler import MAX_ROWS, admit, in_turn
from adapter.serve.store import AdapterStore

log = logging.getLogger(__name__)

_POSITION_SECONDS = 0.25  # between the looks at who waits for a replica
_MAX_ATTEMPTS = 3  # replicas that one answer is begun on, where each is lost before its first token
_START_SECONDS = 600.0  # that a base may take to load
_FAILED = "The cluster failed on this request. Try again."
LOST = "The machine that wrote this answer is gone. Ask again: another one will answer."
NO_REPLICA = "No replica is up at the moment. Ask again in a minute."


def connect(
    address: str,
    base: str,
    quantization: str,
    cache_bytes: int | None,
    replicas: tuple[int, int],
    store: AdapterStore,
    keep_packed: bool = False,
) -> RayEngine:
    """Joins a cluster, deploys the replicas unless they are there, and waits until one answers.

    Replicas that a page deployed with other code are replaced one after the other; a Serve config's stay.
    address: "local" starts Ray on this machine, which ends with this process. Raises LoadError.
    """

    def deploy() -> None:
        share = _share(address == "local", replicas[1])
        application = build(base, quantization, cache_bytes, replicas, *share, keep_packed, by_page=True)
        target = serve.RunTarget(application, name=APP, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)

    # What Ray starts here ends with the thread that has started it: not with the one that calls this.
    starter = ThreadPoolExecutor(1, "ray")
    try:
        _join(address, starter)
        found = serve.status().applications.get(APP)
        ended = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING)
        there = found is not None and found.status not in ended  # also while Ray finds no room for all of them
        if not there:
            deploy()
        handle = serve.get_app_handle(APP)
        served, code = _wait_for_replica(handle)
        if served.fingerprint.name != base_label(base):
            raise LoadError(
                f"The cluster serves {served.fingerprint.name}, not {base_label(base)}. Ask for that base, or "
                "end what is there by `serve shutdown`."
            )
        if there and code not in ("", replicas_module.CODE):
            log.info("The replicas run other code than this page: they are replaced, with this page's settings")
            deploy()
        elif there:
            log.info("The replicas were there: they keep their own settings, until `serve shutdown` ends them")
    except Exception as error:  # Ray raises bare ones too
        _leave(starter)
        if isinstance(error, LoadError):
            raise
        local = "Ray cannot be started here. It needs room, and a home folder that it may write."
        sentence = local if address == "local" else "The cluster cannot be reached: `ray status` says more."
        raise LoadError(sentence, f"{type(error).__name__}: {error}") from error
    return RayEngine(handle, served, store, starter)


def _join(address: str, starter: Executor) -> None:
    """Connects this process to Ray and Ray Serve, which are started at the address "local"."""
    if (place := re.fullmatch(r"(.+):(\d+)", address)) is not None:
        # Ray itself would try for minutes.
        socket.create_connection((place[1].strip("[]"), int(place[2])), timeout=10.0).close()
    dashboard: Any = False if address == "local" else None
    about = {"include_dashboard": dashboard, "log_to_driver": False, "logging_level": logging.WARNING}
    cores = available_cores() if address == "local" else None  # Ray makes 0 of less than one
    starter.submit(ray.init, address, num_cpus=cores, **about).result()
    # Visitors come to the page, so Serve needs no server of its own.
    serve.start(proxy_location="Disabled")


def _wait_for_replica(handle: DeploymentHandle) -> tuple[Base, str]:
    """What the first one that is up says of itself."""
    answer, deadline = handle.describe.remote(), time.monotonic() + _START_SECONDS
    while True:
        try:
            return answer.result(timeout_s=STATUS_SECONDS)
        except TimeoutError:
            found = serve.status().applications[APP]
            if found.status == ApplicationStatus.DEPLOY_FAILED or time.monotonic() > deadline:
                trace = found.deployments["Replica"].message  # with what the replica raised at its end
                why = trace.rpartition("\n")[2].partition("Error: ")[2] or "`serve status` says more."
                raise LoadError(f"No replica came up. {why}", trace) from None


def _share(local: bool, replicas: int) -> tuple[float, float]:
    """CPUs and GPUs of each replica: one GPU where there are some; else the cores of this or of one machine."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("GPU", 0) >= 1 for node in nodes):
        return 1, 1
    cores = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
    if not local:
        return max(1.0, cores - 1), 0  # the page needs one
    return (cores / replicas if cores < replicas else cores // replicas), 0


def _leave(starter: Executor) -> None:
    """Ends the connection, and with it a cluster that this process started."""
    ray.shutdown()
    starter.shutdown()


class RayEngine:
    """An engine whose answers are computed by replicas. Thread-safe."""

    def __init__(self, handle: DeploymentHandle, base: Base, store: AdapterStore, starter: Executor) -> None:
        """starter: has the thread that has started Ray, and is shut down by `close`."""
        self.base, self.store = base, store
        self._handle, self._starter = handle, starter
        # Whatever changes _open holds the lock. The garbage collector's `_cancel` changes nothing by itself.
        self._lock = threading.Lock()
        self._open: dict[RemoteAnswer, Future[None]] = {}  # in the order in which they were asked
        self._turns: dict[RemoteAnswer, asyncio.Event] = {}  # set for those that a replica may be asked for
        self._closed = False
        self._name = uuid.uuid4().hex  # replicas send what has come of all answers of a page together
        self._arrivals: dict[str, _Arrivals] = {}
        self._machines: defaultdict[str, int] = defaultdict(count(1).__next__)
        self._references: weakref.WeakKeyDictionary[Adapter, tuple[str, Any]] = weakref.WeakKeyDictionary()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._watch_queue(), self._loop)

    @property
    def failure(self) -> str | None:
        """That no replica is up, which may pass: requests wait for one."""
        return None if replicas_module.known else NO_REPLICA

    def submit(self, request: GenerationRequest) -> Answer:
        admitted = admit(request, self.base, self._load)
        adapters = self._refer(request)
        request = replace(request, prompt_ids=tuple(admitted.prompt_ids))
        answer = RemoteAnswer(request)
        with self._lock:
            if self._closed:
                raise Closing()
            places = MAX_REQUESTS * max(1, len(replicas_module.known))
            if len(self._open) >= places:
                displaced = in_turn([*self._open, answer])[-1]
                if displaced is answer:
                    raise queue_full(places)
                displaced.end(queue_full(places))
                self._open.pop(displaced).cancel()
            self._open[answer] = asyncio.run_coroutine_threadsafe(self._relay(answer, adapters), self._loop)
        return Answer(answer.mailbox, lambda: self._cancel(answer))

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        request = replace(request, form=NO_FORM)
        request = replace(request, prompt_ids=tuple(admit(request, self.base, self._load).prompt_ids))
        handle: Any = self._handle.options(session_id=_conversation(request))
        try:
            response = handle.inspect.remote(request, answer_ids, self._refer(request))
            found = response.result(timeout_s=MAX_SECONDS)
        except RayTaskError as error:  # it was raised by the replica's own code, which is up
            log.exception("Inspecting an answer in the cluster failed")
            raise AdapterError(_FAILED) from error
        except (RayError, RayServeException, TimeoutError) as error:
            raise _lost(error) from error
        if isinstance(found, AdapterError):
            raise found
        return found

    def replicas(self) -> Mapping[str, Any]:
        """What each replica counts, by the number of its machine, which stays, and the end of its name."""
        return {
            f"machine {self._machines[replica.node_id]}/{name}": replica.routing_stats["statistics"]
            for name, replica in replicas_module.known.items()
            if "statistics" in replica.routing_stats
        }

    def describe(self) -> str:
        """One line: the base, and what runs where."""
        rows = "; ".join(f"{name}: {found.running}" for name, found in sorted(self.replicas().items()))
        running = f" (running {rows})" * bool(rows)
        about, count = f"{self.base.fingerprint.name}: {self.base.quantization}", len(replicas_module.known)
        return f"{about}, {count or 'no'} replica{'s' * (count > 1)}{running or ' is up' * (not count)}"

    def close(self) -> None:
        """Ends all open answers. Replicas of a cluster that was joined stay for the next page."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            rest = list(self._open)
        for answer in rest:
            answer.end(Closing())
        asyncio.run_coroutine_threadsafe(self._end_tasks(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        _leave(self._starter)

    def _load(self, name: str) -> Adapter:
        return self.store.load(name, self.base.fingerprint)

    def _refer(self, request: GenerationRequest) -> dict[str, tuple[str, Any]]:
        """Where replicas find the adapters of a request: in Ray's object store, put there once by this page."""
        found = {}
        for name, _ in request.parts:
            adapter = self._load(name)
            if adapter not in self._references:
                weights = {key: tensor.contiguous() for key, tensor in adapter.state_dict().items()}
                content = save(weights, {"config": adapter.config.to_json()})
                self._references[adapter] = hashlib.sha256(content).hexdigest(), ray.put(adapter)
            found[name] = self._references[adapter]
        return found

    def _cancel(self, answer: RemoteAnswer) -> None:
        """Takes no lock: the garbage collector may call it in a thread that holds it."""
        answer.cancel()
        self._loop.call_soon_threadsafe(self._leave_queue, answer)

    # In the event loop.

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _leave_queue(self, answer: RemoteAnswer) -> None:
        with self._lock:
            if (relay := self._open.pop(answer, None)) is not None:
                relay.cancel()

    async def _relay(self, answer: RemoteAnswer, adapters: References) -> None:
        """Asks for an answer and passes on its events; again elsewhere if the replica is lost before the first."""
        handle: Any = self._handle.options(stream=True, session_id=_conversation(answer.request))
        turn = self._turns[answer] = asyncio.Event()
        try:
            self._give_turns()
            await turn.wait()
            for attempt in range(1, _MAX_ATTEMPTS + 1):
                key = uuid.uuid4().hex
                events = handle.answer.remote(answer.request, adapters, self._name, key)
                self._arrivals[key] = _Arrivals(answer)
                try:
                    async for received in events:
                        answer.started_at = answer.started_at or time.perf_counter()
                        for name, (before, new) in received.items():
                            if (arrivals := self._arrivals.get(name)) is not None:
                                arrivals.add(before, new)
                except RayTaskError:
                    raise  # by the replica's own code: another replica would do the same
                except (RayError, RayServeException) as error:
                    with suppress(Exception):  # raised anew where no replica was reached
                        events.cancel()  # one that is only out of reach would go on
                    # The scores of a prompt come in pieces, too.
                    if answer.tokens or answer.request.prompt_logprobs or attempt == _MAX_ATTEMPTS:
                        answer.end(_lost(error))
                        return
                    answer.started_at = None
                    await asyncio.sleep(0.1 * attempt)
                except asyncio.CancelledError:
                    events.cancel()
                    raise
                else:
                    answer.end(AdapterError(LOST))  # unless its last event has come
                    return
                finally:
                    del self._arrivals[key]
        except asyncio.CancelledError:
            answer.end(Closing())
        except Exception:
            log.exception("An answer from the cluster failed")
            answer.end(AdapterError(_FAILED))
        finally:
            with self._lock:
                self._open.pop(answer, None)
            del self._turns[answer]
            self._give_turns()

    def _give_turns(self) -> None:
        """Lets as many ask as replicas have rows, in turn. One network leaves a quarter of the rows to others."""
        rows = MAX_ROWS * max(1, len(replicas_module.known))
        asked = Counter(a.request.client.network for a, turn in self._turns.items() if turn.is_set())
        for answer in in_turn(self._turns):
            client, turn = answer.request.client, self._turns[answer]
            has_share = client.is_local or asked[client.network] < rows * 3 // 4
            if not turn.is_set() and has_share and asked.total() < rows:
                turn.set()
                asked[client.network] += 1

    async def _watch_queue(self) -> None:
        """Tells those who wait for a replica how many are before them, and gives turns once another is up."""
        told: weakref.WeakKeyDictionary[RemoteAnswer, int] = weakref.WeakKeyDictionary()
        while True:
            await asyncio.sleep(_POSITION_SECONDS)
            self._give_turns()
            before = time.perf_counter() - _POSITION_SECONDS
            waiting = [answer for answer in in_turn(self._turns) if answer.submitted_at < before]
            for position, answer in enumerate(waiting):
                if told.get(answer) != position:
                    told[answer] = position
                    answer.deliver(GenerationEvent(position=position))


class _Arrivals:
    """Passes on an answer's events in order: lists come with several answers' streams, early, late or twice."""

    def __init__(self, answer: RemoteAnswer) -> None:
        self._answer, self._count = answer, 0
        self._lists: dict[int, list[GenerationEvent | AdapterError]] = {}

    def add(self, before: int, events: list[GenerationEvent | AdapterError]) -> None:
        """before: how many of the answer's events precede these."""
        self._lists[before] = events
        while (start := min(self._lists, default=self._count + 1)) <= self._count:
            for event in self._lists.pop(start)[self._count - start :]:
                self._answer.deliver(event)
                self._count += 1


def _conversation(request: GenerationRequest) -> str:
    """A name for the conversation: its page's, or else who asks and how the talk began."""
    if request.client.session:
        return request.client.session
    asked = takewhile(lambda message: message.role != "assistant", request.messages)
    began = "\n".join(m.text for m in [*asked] or request.messages[:2]) or repr(request.prompt_ids)[:200]
    return hashlib.sha256(f"{request.client.network}\n{began}".encode("utf-8", "replace")).hexdigest()


def _lost(error: BaseException) -> AdapterError:
    log.warning("A replica was lost: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
    return AdapterError(LOST if replicas_module.known else NO_REPLICA)
