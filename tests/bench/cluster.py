"""Replicas on Ray against one engine in its own process, with the same requests in turn; how soon a cancelled
answer makes room for the next, and how soon the next answer of a conversation comes after its replica was killed.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import ray

from adapter.base.embedded import BASE
from adapter.cluster.engine import RayEngine, connect
from adapter.cluster.replica import APP
from adapter.serve.request import Answer, Client, GenerationRequest
from adapter.serve.scheduler import MAX_ROWS
from adapter.serve.store import AdapterStore
from tests.bench.engine import greedy_requests, run_rows, start_engine
from tests.bench.programs import (
    ProgramProcess,
    Task,
    measure_in_turn,
    median,
    print_programs,
    print_speeds,
    timed,
)
from tests.bench.serving import Tasks

ROWS = (1, 8, 16)
TOKENS = 96
QUESTION = "Tell me a long story about the sea."
_CANCELS, _KILLS = 9, 3


def run() -> None:
    tasks = Tasks()
    one, two = (ProgramProcess("tests.bench.cluster", replicas) for replicas in "12")
    programs = {"engine": start_engine(), "one replica": one, "two replicas": two}
    print_programs("rows", programs)
    for rows in ROWS:
        for what, tokens in (("first token, ms", 1), ("tokens/s in all", TOKENS)):

            def figure(program: ProgramProcess, rows: int = rows, tokens: int = tokens) -> float:
                seconds, made = program.run(tasks([QUESTION], tokens, [""] * rows))
                return 1000 * seconds if tokens == 1 else made / seconds

            speeds = measure_in_turn({name: partial(figure, program) for name, program in programs.items()})
            print_speeds(f"{rows}: {what}", speeds)
    cancelled = max(one.ask("cancel") for _ in range(_CANCELS))
    longest = f"{1000 * cancelled:.0f} ms at most (of {_CANCELS})"
    print(f"\nfrom cancelling one row of a full batch to the first token of who waited: {longest}")
    killed = median([two.ask("kill") for _ in range(_KILLS)], 2)
    print(f"\nfrom kill -9 of a replica to the next answer of its conversation: {killed} s (of {_KILLS})")
    for program in programs.values():
        program.close()


def start(replicas: str) -> Callable[[Task | str], tuple[float, int] | float]:
    """What the process answers by: tasks, and "cancel" and "kill" by the seconds to the next answer."""
    count = int(replicas)
    engine: RayEngine = connect("local", BASE, "auto", None, (count, count), AdapterStore())
    atexit.register(engine.close)

    def in_sessions(requests: list[GenerationRequest]) -> list[GenerationRequest]:
        return [replace(each, client=Client("", str(row))) for row, each in enumerate(requests)]

    def submit(tokens: int, session: str) -> Answer:
        [request] = greedy_requests(Task([""], [[1] * 20], tokens, [""]))
        return engine.submit(replace(request, client=Client("", session)))

    def cancel() -> float:
        answers = [submit(2000, str(row)) for row in range(MAX_ROWS)]
        for answer in answers:
            while next(answer).token_id is None:
                pass
        waiting = submit(1, "waits")
        while next(waiting).position is None:
            pass

        def make_room() -> None:
            answers[0].cancel()
            while next(waiting).token_id is None:
                pass

        seconds = timed(make_room)
        for answer in answers:
            answer.cancel()
        while any(found.running for found in engine.replicas().values()):
            time.sleep(0.1)
        return seconds

    killed: set[str] = set()  # which the router knows for a while

    def kill() -> float:
        """The replica that answers the conversation "0", in the middle of an answer."""
        while len(engine.replicas().keys() - killed) < count:
            time.sleep(0.1)
        answer = submit(2000, "0")
        while not (busy := [n for n, found in engine.replicas().items() if found.running and n not in killed]):
            time.sleep(0.1)
        killed.add(busy[0])
        name = f"SERVE_REPLICA::{APP}#Replica#{busy[0].rpartition('/')[2]}"

        def answer_again() -> None:
            ray.kill(ray.get_actor(name, namespace="serve"))
            while not answer.mailbox.complete:
                time.sleep(0.001)
            list(submit(1, "0"))

        return timed(answer_again)

    def run(question: Task | str) -> tuple[float, int] | float:
        if isinstance(question, Task):
            return run_rows(engine.submit, in_sessions(greedy_requests(question)))
        return cancel() if question == "cancel" else kill()

    return run
