"""Replicas on Ray against one engine in its own process, with the same requests in turn; how soon a cancelled
answer makes room for the next, and how soon the next answer of a conversation comes after its replica was killed.
"""

from __future__ import annotations

import sys
import time

from tests.bench.engine import start_engine
from tests.bench.programs import (
    Program,
    ProgramProcess,
    Task,
    measure_in_turn,
    median,
    print_head,
    print_row,
    ratio,
    serve,
)
from tests.bench.serving import Tasks

ROWS = (1, 8, 16)
TOKENS = 96
QUESTION = "Tell me a long story about the sea."
# In place of a question: do this, and say how long the next answer took.
_CANCEL, _KILL = "cancel one of a full batch", "kill the replica"
_CANCELS, _KILLS = 9, 3


def run() -> None:
    tasks = Tasks()
    programs: dict[str, Program] = {
        "engine": start_engine(),
        "one replica": ProgramProcess("tests.bench.cluster", "1"),
        "two replicas": ProgramProcess("tests.bench.cluster", "2"),
    }
    print_head("rows", "", "engine", "one replica", "two replicas", "one / engine", "two / engine")
    for rows in ROWS:
        for what, tokens in (("first token, ms", 1), ("tokens/s in all", TOKENS)):

            def figure(program: Program, rows: int = rows, tokens: int = tokens) -> float:
                seconds, made = program.run(tasks([QUESTION], tokens, [""] * rows))
                return 1000 * seconds if tokens == 1 else made / seconds

            found = measure_in_turn({name: lambda p=p: figure(p) for name, p in programs.items()})  # type: ignore[misc]
            one, two = (ratio(found[name], found["engine"]) for name in ("one replica", "two replicas"))
            print_row(rows, what, *(median(found[name]) for name in programs), one, two)
    cancelled = [programs["one replica"].run(Task([_CANCEL], [[]], 1, [""]))[0] for _ in range(_CANCELS)]
    longest = f"{1000 * max(cancelled):.0f} ms at most (of {_CANCELS})"
    print(f"\nfrom cancelling one row of a full batch to the first token of who waited: {longest}")
    killed = [programs["two replicas"].run(Task([_KILL], [[]], 1, [""]))[0] for _ in range(_KILLS)]
    print(
        f"\nfrom kill -9 of a replica to the next answer of its conversation: {median(killed, 2)} s (of {_KILLS})"
    )
    for program in programs.values():
        program.close()  # type: ignore[attr-defined]


def _serve_cluster(replicas: int) -> None:
    import ray

    from adapter.base.embedded import BASE
    from adapter.cluster.engine import RayEngine, connect
    from adapter.cluster.replica import APP
    from adapter.serve.request import Answer, Client, GenerationRequest
    from adapter.serve.sampling import SamplingParams
    from adapter.serve.scheduler import MAX_ROWS
    from adapter.serve.store import AdapterStore

    engine: RayEngine = connect("local", BASE, "auto", None, (replicas, replicas), AdapterStore())

    def submit(prompt: list[int], adapter: str, tokens: int, session: str) -> Answer:
        sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
        client = Client("", session)
        request = GenerationRequest(
            adapter=adapter or None, sampling=sampling, prompt_ids=tuple(prompt), client=client
        )
        return engine.submit(request)

    def cancel() -> tuple[float, int]:
        answers = [submit([1] * 20, "", 2000, str(row)) for row in range(MAX_ROWS)]
        for answer in answers:
            while next(answer).token_id is None:
                pass
        waiting = submit([1] * 20, "", 1, "waits")
        while next(waiting).position is None:
            pass
        start = time.perf_counter()
        answers[0].cancel()
        while next(waiting).token_id is None:
            pass
        seconds = time.perf_counter() - start
        for answer in answers:
            answer.cancel()
        while any(found.running for found in engine.replicas().values()):
            time.sleep(0.1)
        return seconds, 0

    killed: set[str] = set()  # which the router knows for a while

    def kill() -> tuple[float, int]:
        """The replica that answers the conversation "0", in the middle of an answer."""
        while len(engine.replicas().keys() - killed) < replicas:
            time.sleep(0.1)
        answer = submit([1] * 20, "", 2000, "0")
        while not (busy := [n for n, found in engine.replicas().items() if found.running and n not in killed]):
            time.sleep(0.1)
        killed.add(busy[0])
        name = f"SERVE_REPLICA::{APP}#Replica#{busy[0].rpartition('/')[2]}"
        start = time.perf_counter()
        ray.kill(ray.get_actor(name, namespace="serve"))
        while not answer.mailbox.complete:
            time.sleep(0.001)
        list(submit([1] * 20, "", 1, "0"))
        return time.perf_counter() - start, 0

    def run(task: Task) -> tuple[float, int]:
        if list(task.texts) == [_CANCEL]:
            return cancel()
        if list(task.texts) == [_KILL]:
            return kill()
        start = time.perf_counter()
        rows = zip(task.prompts, task.adapters, strict=True)
        answers = [
            submit(list(prompt), adapter, task.tokens, str(row)) for row, (prompt, adapter) in enumerate(rows)
        ]
        ends = [list(answer)[-1] for answer in answers]
        seconds = time.perf_counter() - start
        return seconds, sum(end.stats.new_tokens for end in ends if end.stats is not None)

    serve(run)
    engine.close()


if __name__ == "__main__":
    _serve_cluster(int(sys.argv[1]))
