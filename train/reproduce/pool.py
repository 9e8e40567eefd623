"""Runs side by side, each in a process of its own on a core of its own. Knows processes; what a run is comes from
beside it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pydoc_data.topics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapter.errors import AdapterError
from train.reproduce.benchmark import Benchmark, open_benchmark
from train.reproduce.runs import Run, perform, result_path

_UNRELATED = ("assignment", "class", "conversions", "dynamic-features", "exceptions", "execmodel", "import", "try")


def perform_all(runs: Sequence[Run], benchmark: Benchmark, out: Path, jobs: int, text: str) -> dict[str, Any]:
    """The results by the runs' names. What is in `out` already is not done again. text: of no relation."""
    paths = {run.name: result_path(run, benchmark, out) for run in runs}
    left = [run for run in runs if not paths[run.name].exists()]
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before; {jobs} at a time", flush=True)
    started = time.perf_counter()
    if left:
        context = multiprocessing.get_context("spawn")
        cores: Any = context.Queue()
        for number in range(jobs):
            cores.put(number)
        pool = ProcessPoolExecutor(jobs, context, _settle, (cores, jobs, out))
        try:
            waiting = {
                pool.submit(_perform, run, benchmark.folder, benchmark.counts, out, text): run for run in left
            }
            for done in as_completed(waiting):
                done.result()
                minutes = (time.perf_counter() - started) / 60
                print(f"{waiting[done].name} is finished after {minutes:.1f} minutes", flush=True)
        except BrokenProcessPool as error:
            raise AdapterError(
                f"A run's process died, probably for want of memory. The logs are in '{out}'. Try --jobs 1: "
                "finished runs are not done again."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def available_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def unrelated_text() -> str:
    """Prose that has nothing to do with the benchmark, and is there without a download."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in _UNRELATED if name in topics)


def _perform(run: Run, folder: Path, counts: dict[str, int], out: Path, text: str) -> None:
    # Opened anew: thousands of tensors do not go well through a pipe.
    perform(run, open_benchmark(folder, out, counts), out, text)


def _settle(cores: Any, jobs: int, out: Path) -> None:
    """Take a share of the cores, and write what runs say to a file.

    Two processes with a thread each are faster than one after the other with two.
    """
    import torch

    mine = cores.get()
    sys.stdout = sys.stderr = open(out / f"log-{mine}.txt", "a", buffering=1)  # noqa: SIM115 - till the end
    torch.set_num_threads(max(1, available_cores() // jobs))
    if hasattr(os, "sched_setaffinity") and available_cores() >= jobs:
        with suppress(OSError):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[mine::jobs])
