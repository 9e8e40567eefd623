"""Programs that are measured in turn, each in a process of its own that sleeps while the others are measured.

`python -m tests.bench.programs MODULE ARGUMENT ...` is such a process: it answers questions by what the module's
`start` returns. Imports nothing but Python's own: peers run it in virtual environments of their own.
"""

import atexit
import dataclasses
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ROUNDS = 5


@dataclass(frozen=True)
class Task:
    """Greedy answers that are generated together, of at most `tokens` tokens each.

    texts: one question for each answer; prompts: the same as token ids, for programs that take these.
    adapters: one for each answer, "" for the bare base, which is all that other programs know.
    """

    texts: Sequence[str]
    prompts: Sequence[Sequence[int]]
    tokens: int
    adapters: Sequence[str]


class ProgramEnded(RuntimeError):
    """A program has died, or could not be had."""


# Seconds until the last answer of a task has ended, and the tokens of all answers. Raises ProgramEnded.
Run = Callable[[Task], tuple[float, int]]


class ProgramProcess:
    """A module of this folder, waiting for the next question with one of its threads.

    python: of a peer's environment, in which the module itself calls `serve`, and which sees no other packages.
    """

    def __init__(self, module: str, *arguments: str, python: Path | None = None) -> None:
        self._module = module
        own = [sys.executable, "-m", "tests.bench.programs"]
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if python is not None:
            environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [*(own if python is None else [str(python), "-m"]), module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def ask(self, question: Any) -> Any:
        """What the module answers, both as JSON; None to None. Raises ProgramEnded."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise ProgramEnded(f"{self._module} has died; its error is printed above") from error

    def run(self, task: Task) -> tuple[float, int]:
        seconds, tokens = self.ask(dataclasses.asdict(task))
        return seconds, tokens

    def close(self) -> None:
        self._process.communicate()


def serve(answer: Callable[[Any], Any]) -> None:
    """Answers the questions on the input until it ends, tasks among them. What libraries print goes to stderr."""
    results, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        question = json.loads(line)
        if question is not None:
            question = answer(Task(**question) if isinstance(question, dict) else question)
        print(json.dumps(question), file=results, flush=True)


def start_peer(
    name: str, module: str, *requirements: str, prepare: Callable[[Path], None] = lambda folder: None
) -> Run:
    """A peer in a virtual environment of the cache folder, installed where it is missing, with this folder and the
    number of cores as its arguments. It ends with this process.

    prepare: called once after the installation, with the folder. Where the peer cannot be had, a line says why and
    its figures are "-".
    """
    from adapter.base.disk_cache import cache_dir
    from adapter.base.threads import available_cores

    folder = cache_dir() / f"bench-{name}-alone"
    python = folder / "bin" / "python"
    try:
        if not (folder / ".done").exists():
            print(f"installing {name} for the bench, some minutes", file=sys.stderr)
            venv.create(folder, with_pip=True, clear=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
            prepare(folder)
            (folder / ".done").touch()
        program = ProgramProcess(module, str(folder), str(available_cores()), python=python)
        atexit.register(program.close)
        program.ask(None)
        return program.run
    except (OSError, ValueError, subprocess.CalledProcessError, ProgramEnded) as error:
        reason = f"without {name}: {error}"
        print(reason, flush=True)

        def missing(task: Task) -> tuple[float, int]:
            raise ProgramEnded(reason)

        return missing


def timed(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def decode_speed(run: Run, tasks: Callable[[int], Iterable[Task]], shorter: int, longer: int) -> float:
    """Tokens per second of all answers together while all are decoded.

    Each task is run twice with nothing else changed than the length of its answers, so that what comes before
    cancels out. tasks: makes new ones for so many tokens an answer. shorter: enough for the last answer of a task
    to begin before its first ends.
    """
    seconds, tokens = 0.0, 0
    for sign, length in ((-1, shorter), (1, longer)):
        for task in tasks(length):
            took, made = run(task)
            seconds, tokens = seconds + sign * took, tokens + sign * made
    return tokens / seconds


def measure_in_turn(variants: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """The figures of each variant by round, after a round to warm up; nan where its program has ended."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1, rounds):
        for name, measure in variants.items():
            try:
                figure = measure()
            except ProgramEnded:
                figure = math.nan
            if number >= 0:
                figures[name].append(figure)
    return figures


def median(values: Iterable[float], digits: int = 1) -> str:
    value = statistics.median(values)
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def ratio(left: Sequence[float], right: Sequence[float]) -> str:
    """The median of the rounds' ratios."""
    return median((a / b for a, b in zip(left, right, strict=False)), 2)


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_head(*cells: str) -> None:
    print()
    print_row(*cells)
    print_row(*["---"] * len(cells))


def print_programs(what: str, names: Iterable[str]) -> None:
    """The head of a table of programs; the first is what the others are compared with."""
    first, *others = names
    print_head(what, first, *others, *(f"{first} against {other}" for other in others))


def print_speeds(what: object, speeds: Mapping[str, Sequence[float]], digits: int = 1) -> None:
    """A row of such a table."""
    first, *others = speeds.values()
    print_row(what, *(median(s, digits) for s in speeds.values()), *(ratio(first, other) for other in others))


def main() -> None:
    from adapter.base.threads import sleep_when_idle

    sleep_when_idle()  # as in the page's program and in the trainer, before torch is imported
    module, *arguments = sys.argv[1:]
    serve(importlib.import_module(module).start(*arguments))


if __name__ == "__main__":
    main()
