"""The real page's program, asked by 1, 4 and 16 people at once on connections of their own."""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gradio_client import Client

from tests.app_process import app_process

PEOPLE = (1, 4, 16)
ROUNDS = 3
TOKENS = 48
ADAPTERS = ("", "pirate", "extract", "")


def run() -> None:
    with tempfile.TemporaryDirectory() as folder, app_process(Path(folder)) as server:
        clients = [server.client() for _ in range(max(PEOPLE))]
        clients[0].predict(message="Hello!", max_tokens=4, api_name="/chat")
        print("| people at once | first words, s | whole answer, s | answers a minute in all |")
        print("| --- | --- | --- | --- |")
        for people in PEOPLE:
            _measure(clients[:people])


def _measure(clients: list[Client]) -> None:
    def ask(number: int) -> tuple[float, float]:
        start, first = time.perf_counter(), 0.0
        question = {"message": f"{number}. Tell me about the sea.", "adapter": ADAPTERS[number % len(ADAPTERS)]}
        job = clients[number % len(clients)].submit(**question, temperature=0, max_tokens=TOKENS, api_name="/chat")
        for _ in job:
            first = first or time.perf_counter() - start
        return first, time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as crowd:
        times = list(crowd.map(ask, range(ROUNDS * len(clients))))
    rate = 60 * len(times) / (time.perf_counter() - start)
    first, whole = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"| {len(clients)} | {first:.2f} | {whole:.2f} | {rate:.0f} |")
