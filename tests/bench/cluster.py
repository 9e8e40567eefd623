"""Replicas on Ray against one engine in its own process, with the same requests in turn."""

from __future__ import annotations

import atexit
from dataclasses import replace
from functools import partial

from adapter.base.embedded import BASE
from adapter.cluster.engine import RayEngine, connect
from adapter.serve.request import Client
from adapter.serve.store import AdapterStore
from tests.bench.engine import greedy_requests, run_rows, start_engine
from tests.bench.programs import ProgramProcess, Run, Task, measure_in_turn, print_programs, print_speeds
from tests.bench.serving import Tasks

ROWS = (1, 8, 16)
TOKENS = 96
QUESTION = "Tell me a long story about the sea."


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
    for program in programs.values():
        program.close()


def start(replicas: str) -> Run:
    """What the process answers tasks by."""
    count = int(replicas)
    engine: RayEngine = connect("local", BASE, "auto", None, (count, count), AdapterStore())
    atexit.register(engine.close)

    def run(task: Task) -> tuple[float, int]:
        # Rows are conversations of their own, as Ray keeps one at one replica.
        requests = enumerate(greedy_requests(task))
        return run_rows(engine.submit, [replace(each, client=Client("", str(row))) for row, each in requests])

    return run
