"""`make soak`: many clients for many minutes on the real base; does the server's memory grow?

The load is page sessions and API clients with all adapters and with images, answers that are cancelled, and
garbage. Prints figures every half minute. Exits non-zero if an answer fails that should not, or if memory, threads
or open files grow.
"""

from __future__ import annotations

import argparse
import base64
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.app_process import FAULTY_APP, PATIENCE, ROOT, AppProcess, app_process

PROMPTS = (
    "What is the sun?",
    "How do I bake bread?",
    "Name three colours.",
    "Who are you?",
    "Write about the sea.",
)
PICTURE = ROOT / "assets" / "examples" / "traffic-light.png"
ADAPTERS = ("base", "pirate", "extract", "see")
REPORT_SECONDS = 30.0
# Growth that is allowed after the warm-up. Gradio keeps sessions, of 0.2 MB each, up to a limit.
GROWTH_MB, GROWTH_THREADS, GROWTH_FILES = 80, 16, 40


class Load:
    """Clients that send one request after the other until `stop` is set, each in a thread of its own."""

    def __init__(self, server: AppProcess, clients: int) -> None:
        self.server, self.stop = server, threading.Event()
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        kinds = [self.program] * 7 + [self.page] * 5 + [self.leaver] * 3 + [self.vandal]
        self.threads = [
            threading.Thread(target=self._run, args=(kinds[i % len(kinds)], i), daemon=True)
            for i in range(clients)
        ]

    def _run(self, send: Any, number: int) -> None:
        chance = random.Random(number)
        session: dict[str, Any] = {}
        while not self.stop.is_set():
            try:
                send(chance, session)
                with self._lock:
                    self.done[send.__name__] += 1
            except Exception as error:  # every error is the server's
                with self._lock:
                    self.failures.append(f"{send.__name__}: {type(error).__name__}: {str(error)[:200]}")
                time.sleep(1)

    def body(self, chance: random.Random) -> dict[str, Any]:
        model = chance.choice(ADAPTERS)
        content: Any = chance.choice(PROMPTS)
        if model == "see":
            url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
            content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": url}}]
        tokens = chance.choice((4, 16, 48))
        return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens}

    def program(self, chance: random.Random, session: dict[str, Any]) -> None:
        response = httpx.post(f"{self.server.url}/v1/chat/completions", json=self.body(chance), timeout=PATIENCE)
        if response.status_code != 429:  # the queue may be full
            response.raise_for_status()
            assert response.json()["choices"][0]["message"]["content"]

    def page(self, chance: random.Random, session: dict[str, Any]) -> None:
        """A session of the page by Gradio's client, used for about fifty requests."""
        from gradio_client import handle_file

        if not session or chance.random() < 0.02:
            session["client"] = self.server.client()
        model = chance.choice(ADAPTERS)
        request = {
            "message": chance.choice(PROMPTS),
            "adapter": "" if model == "base" else model,
            "max_tokens": 16,
        }
        if model == "see":
            request["image"] = handle_file(str(PICTURE))
        job = session["client"].submit(**request, api_name="/chat")
        if chance.random() < 0.2:
            time.sleep(0.5)
            job.cancel()
        else:
            assert job.result(timeout=PATIENCE)

    def leaver(self, chance: random.Random, session: dict[str, Any]) -> None:
        body = {**self.body(chance), "stream": True, "max_tokens": 400}
        with httpx.stream(
            "POST", f"{self.server.url}/v1/chat/completions", json=body, timeout=PATIENCE
        ) as response:
            if response.status_code != 429:
                next(line for line in response.iter_lines() if '"content"' in line)

    def vandal(self, chance: random.Random, session: dict[str, Any]) -> None:
        place = chance.choice(
            ("queue/join", "upload", "run/chat", "call/chat", "component_server", "file=/etc/passwd")
        )
        body = chance.choice((chance.randbytes(500), b"{}", b'{"data": [1], "fn_index": 0, "session_hash": "x"}'))
        httpx.post(f"{self.server.url}/gradio_api/{place}", content=body, timeout=PATIENCE)
        httpx.post(f"{self.server.url}/v1/chat/completions", content=body, timeout=PATIENCE)
        time.sleep(0.3)


def soak(minutes: float, clients: int, folder: Path) -> int:
    with app_process(folder, program=FAULTY_APP) as server:
        process = psutil.Process(server.process.pid)
        load = Load(server, clients)

        def measure() -> tuple[float, int, int]:
            return process.memory_info().rss / 2**20, process.num_threads(), process.num_fds()

        for thread in load.threads:
            thread.start()
        began, warm = time.monotonic(), None
        print("seconds   RSS MB  threads  files  answers  left  failures", flush=True)
        while (elapsed := time.monotonic() - began) < 60 * minutes:
            time.sleep(min(REPORT_SECONDS, 60 * minutes - elapsed + 0.1))
            answers = load.done["program"] + load.done["page"]
            figures = measure()
            shown = f"{figures[0]:9.0f}{figures[1]:9}{figures[2]:7}{answers:9}{load.done['leaver']:6}"
            print(f"{time.monotonic() - began:7.0f}{shown}{len(load.failures):10}", flush=True)
            # For a third of the time caches fill: prefixes, features, sessions.
            if warm is None and time.monotonic() - began >= 20 * minutes:
                warm = figures
        load.stop.set()
        for thread in load.threads:
            thread.join(PATIENCE)
        server.check_alive()
        server.wait_until(lambda: server.counts == (0, 0))
        last = measure()
    assert warm is not None
    grown = [f"{b - a:+.0f}" for a, b in zip(warm, last, strict=True)]
    print(f"Since the warm-up: {grown[0]} MB, {grown[1]} threads, {grown[2]} open files.")
    for failure, count in Counter(load.failures).most_common(10):
        print(f"{count} x {failure}")
    allowed = zip(warm, last, (GROWTH_MB, GROWTH_THREADS, GROWTH_FILES), strict=True)
    flat = all(b - a <= most for a, b, most in allowed)
    print("It stayed flat." if flat else "IT GREW.")
    return 0 if flat and not load.failures else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return soak(arguments.minutes, arguments.clients, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
