"""The page's program under 1, 4 and 16 clients at once, each on a connection of its own."""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gradio_client import Client

from tests.app_process import app_process

CLIENTS = (1, 4, 16)
ROUNDS = 3
TOKENS = 48
ADAPTERS = ("", "pirate", "extract", "")


def run() -> None:
    with tempfile.TemporaryDirectory() as folder, app_process(Path(folder)) as server:
        clients = [server.client() for _ in range(max(CLIENTS))]
        clients[0].predict(message="Hello!", max_tokens=4, api_name="/chat")
        print("| clients at once | first text, s | whole answer, s | answers a minute in all |")
        print("| --- | --- | --- | --- |")
        for count in CLIENTS:
            _measure(clients[:count])


def _measure(clients: list[Client]) -> None:
    def request(number: int) -> tuple[float, float]:
        start, first = time.perf_counter(), 0.0
        question = {"message": f"{number}. Tell me about the sea.", "adapter": ADAPTERS[number % len(ADAPTERS)]}
        job = clients[number % len(clients)].submit(**question, temperature=0, max_tokens=TOKENS, api_name="/chat")
        for _ in job:
            first = first or time.perf_counter() - start
        return first, time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        times = list(pool.map(request, range(ROUNDS * len(clients))))
    rate = 60 * len(times) / (time.perf_counter() - start)
    first, whole = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"| {len(clients)} | {first:.2f} | {whole:.2f} | {rate:.0f} |")
