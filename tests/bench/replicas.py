"""A replica on Ray against one engine in its own process, with the same requests in turn."""

import atexit
from dataclasses import replace
from functools import partial

from adapter.base.embedded import BASE
from adapter.serve.request import Client
from adapter.serve.store import AdapterStore
from tests.bench.engine import greedy_requests, run_rows, start_engine
from tests.bench.programs import ProgramProcess, Run, Task, measure_in_turn, print_programs, print_speeds
from tests.bench.serving import TOKENS, Tasks

QUESTION = "Tell me a long story about the sea."


def run() -> None:
    tasks, programs = Tasks(), {"replica": ProgramProcess("tests.bench.replicas"), "engine": start_engine()}
    print_programs("rows", programs)
    for rows in (1, 8, 16):
        for what, tokens in (("first token, ms", 1), ("tokens/s", TOKENS)):

            def figure(program: ProgramProcess, rows: int = rows, tokens: int = tokens) -> float:
                seconds, made = program.run(tasks([QUESTION], tokens, [""] * rows))
                return 1000 * seconds if tokens == 1 else made / seconds

            figures = {name: partial(figure, program) for name, program in programs.items()}
            print_speeds(f"{rows}: {what}", measure_in_turn(figures))
    for program in programs.values():
        program.close()


def start() -> Run:
    """What the process answers tasks by."""
    from adapter.cluster.engine import connect

    engine = connect("local", BASE, "auto", None, (1, 1), AdapterStore())
    atexit.register(engine.close)

    def run(task: Task) -> tuple[float, int]:
        # Rows are conversations of their own, as Ray keeps one at one replica.
        requests = enumerate(greedy_requests(task))
        return run_rows(engine.submit, [replace(each, client=Client("", str(row))) for row, each in requests])

    return run
