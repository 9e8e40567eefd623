"""Programs that are measured in turn, each in a process of its own that sleeps while the others are measured.

Knows processes and seconds; a module that is a program answers by `serve`. Imports nothing but Python's own: peers
run it in virtual environments of their own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


class Program(Protocol):
    def run(self, task: Task) -> tuple[float, int]:
        """Seconds until the last answer has ended, and the tokens of all answers."""


class ProgramProcess:
    """A module of this folder that calls `serve`, with one of its threads waiting for the next task."""

    def __init__(self, module: str, *arguments: str, python: Path | str = sys.executable) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [str(python), "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )

    def run(self, task: Task) -> tuple[float, int]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._module} died; its error is printed above.")
        seconds, tokens = json.loads(answer)
        return seconds, tokens

    def close(self) -> None:
        self._process.communicate()


def serve(run: Callable[[Task], tuple[float, int]]) -> None:
    """Answers the tasks on the input until it ends. What libraries print goes to stderr."""
    results, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(run(Task(**json.loads(line)))), file=results, flush=True)


def start_peer(
    name: str, module: str, *requirements: str, prepare: Callable[[Path], None] = lambda folder: None
) -> ProgramProcess | None:
    """A peer in a virtual environment of the cache folder, installed where it is missing, with this folder and the
    number of cores as its arguments.

    prepare: called once after the installation, with the folder. None, with the reason on stderr, where the peer
    cannot be had.
    """
    from adapter.base.disk_cache import cache_dir
    from adapter.base.threads import available_cores

    folder = cache_dir() / f"bench-{name}"
    python = folder / "bin" / "python"
    try:
        if not (folder / ".done").exists():
            print(f"installing {name} for the bench, some minutes", file=sys.stderr)
            venv.create(folder, with_pip=True, clear=True)
            # What it lacks it finds in this environment: torch above all.
            [packages] = folder.glob("lib/python*/site-packages")
            (packages / "bench.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
            prepare(folder)
            (folder / ".done").touch()
        return ProgramProcess(module, str(folder), str(available_cores()), python=python)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"without {name}: {error}", file=sys.stderr)
        return None


def decode_speed(program: Program, tasks: Callable[[int], Iterable[Task]], shorter: int, longer: int) -> float:
    """Tokens per second of all answers together while all are decoded.

    Each task is run twice with nothing else changed than the length of its answers, so that what comes before
    cancels out. tasks: makes new ones for so many tokens an answer. shorter: enough for the last answer of a task
    to begin before its first ends.
    """
    seconds, tokens = 0.0, 0
    for sign, length in ((-1, shorter), (1, longer)):
        for task in tasks(length):
            took, made = program.run(task)
            seconds, tokens = seconds + sign * took, tokens + sign * made
    return tokens / seconds


def measure_in_turn(
    variants: Mapping[str, Callable[[], float] | None], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """The figures of each variant by round, after a round to warm up; nan for what is missing (None)."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1, rounds):
        for name, measure in variants.items():
            figure = measure() if measure is not None else math.nan
            if number >= 0:
                figures[name].append(figure)
    return figures


def median(values: Iterable[float], digits: int = 1) -> str:
    value = statistics.median(values)
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def ratio(left: Sequence[float], right: Sequence[float]) -> str:
    """The median of the rounds' ratios."""
    return median((a / b for a, b in zip(left, right, strict=True)), 2)


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_head(*cells: str) -> None:
    print()
    print_row(*cells)
    print_row(*["---"] * len(cells))
