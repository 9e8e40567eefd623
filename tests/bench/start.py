"""How soon the page's program answers, started on a warm cache by a visitor who asks once the page is there."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.app_process import app_process
from tests.bench.programs import ROUNDS, print_head, print_row
from tests.soak.people import Connection, Question

FIRST = Question("Hello! Who are you?", through="chat", settings={"temperature": 0.0, "max_tokens": 1})


def run() -> None:
    _measure()  # fills the caches
    times = [_measure() for _ in range(ROUNDS)]
    page, words = (f"{statistics.median(column):.1f}" for column in zip(*times, strict=True))
    print_head("seconds from the start of `python app.py`", "to the page", "to the first words")
    print_row("warm cache", page, words)


def _measure() -> tuple[float, float]:
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        with app_process(Path(folder), ready=()) as server:
            page = time.perf_counter() - start
            visitor = Connection(server.url, "127.0.0.1", signed_in=False)
            visitor.ask(FIRST)
            return page, time.perf_counter() - start
