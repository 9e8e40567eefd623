"""`make soak`: many people for many minutes on the real base, and whether the server grows meanwhile.

Page sessions and programs, all adapters, pictures, answers that are broken off, garbage in between. Every half
minute a line of figures. Ends non-zero if an answer fails that should not, or if memory, threads or files grow.
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

from tests.app_process import ROOT, AppProcess, app_process

QUESTIONS = (
    "What is the sun?",
    "How do I bake bread?",
    "Name three colours.",
    "Who are you?",
    "Write about the sea.",
)
PICTURE = ROOT / "assets" / "examples" / "traffic-light.png"
ADAPTERS = ("base", "pirate", "extract", "see")
REPORT_SECONDS = 30.0
# Growth allowed from the end of the warm-up to the end. Sessions that Gradio keeps: 0.2 MB each, up to its bound.
GROWTH_MB, GROWTH_THREADS, GROWTH_FILES = 80, 16, 40


class Crowd:
    """People who ask one thing after the other until `over`, each in a thread of its own."""

    def __init__(self, server: AppProcess, people: int) -> None:
        self.server, self.over = server, threading.Event()
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        work = [self.program, self.page, self.leaver, self.vandal]
        share = [work[0]] * 7 + [work[1]] * 5 + [work[2]] * 3 + [work[3]]
        self.threads = [
            threading.Thread(target=self._live, args=(share[i % len(share)], i), daemon=True)
            for i in range(people)
        ]

    def _live(self, work: Any, number: int) -> None:
        chance = random.Random(number)
        session: dict[str, Any] = {}
        while not self.over.is_set():
            try:
                work(chance, session)
                with self._lock:
                    self.done[work.__name__] += 1
            except Exception as error:  # whatever it is, it is a failure of the server's
                with self._lock:
                    self.failures.append(f"{work.__name__}: {type(error).__name__}: {str(error)[:200]}")
                time.sleep(1)

    def body(self, chance: random.Random) -> dict[str, Any]:
        model = chance.choice(ADAPTERS)
        content: Any = chance.choice(QUESTIONS)
        if model == "see":
            url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
            content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": url}}]
        tokens = chance.choice((4, 16, 48))
        return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens}

    def program(self, chance: random.Random, session: dict[str, Any]) -> None:
        response = httpx.post(f"{self.server.url}/v1/chat/completions", json=self.body(chance), timeout=300)
        if response.status_code != 429:  # the queue may be full
            response.raise_for_status()
            assert response.json()["choices"][0]["message"]["content"]

    def page(self, chance: random.Random, session: dict[str, Any]) -> None:
        """A session of the page through Gradio's own client, kept for a while."""
        from gradio_client import Client, handle_file

        if not session or chance.random() < 0.02:
            session["client"] = Client(self.server.url, verbose=False)
        model = chance.choice(ADAPTERS)
        asked = {
            "message": chance.choice(QUESTIONS),
            "adapter": "" if model == "base" else model,
            "max_tokens": 16,
        }
        if model == "see":
            asked["image"] = handle_file(str(PICTURE))
        job = session["client"].submit(**asked, api_name="/chat")
        if chance.random() < 0.2:
            time.sleep(0.5)
            job.cancel()
        else:
            assert job.result(timeout=300)

    def leaver(self, chance: random.Random, session: dict[str, Any]) -> None:
        body = {**self.body(chance), "stream": True, "max_tokens": 400}
        with httpx.stream("POST", f"{self.server.url}/v1/chat/completions", json=body, timeout=300) as response:
            if response.status_code != 429:
                next(line for line in response.iter_lines() if '"content"' in line)

    def vandal(self, chance: random.Random, session: dict[str, Any]) -> None:
        place = chance.choice(
            ("queue/join", "upload", "run/chat", "call/chat", "component_server", "file=/etc/passwd")
        )
        body = chance.choice((chance.randbytes(500), b"{}", b'{"data": [1], "fn_index": 0, "session_hash": "x"}'))
        httpx.post(f"{self.server.url}/gradio_api/{place}", content=body, timeout=60)
        httpx.post(f"{self.server.url}/v1/chat/completions", content=body, timeout=60)
        time.sleep(0.3)


def soak(minutes: float, people: int, folder: Path) -> int:
    with app_process(folder) as server:
        process = psutil.Process(server.process.pid)
        crowd = Crowd(server, people)

        def now() -> tuple[float, int, int]:
            return process.memory_info().rss / 2**20, process.num_threads(), process.num_fds()

        for thread in crowd.threads:
            thread.start()
        began, warm = time.monotonic(), None
        print("seconds   RSS MB  threads  files  answers  left  failures", flush=True)
        while (elapsed := time.monotonic() - began) < 60 * minutes:
            time.sleep(min(REPORT_SECONDS, 60 * minutes - elapsed + 0.1))
            answers = crowd.done["program"] + crowd.done["page"]
            figures = now()
            shown = f"{figures[0]:9.0f}{figures[1]:9}{figures[2]:7}{answers:9}{crowd.done['leaver']:6}"
            print(f"{time.monotonic() - began:7.0f}{shown}{len(crowd.failures):10}", flush=True)
            # A third of the time is for caches to fill: prefixes, features, sessions.
            if warm is None and time.monotonic() - began >= 20 * minutes:
                warm = figures
        crowd.over.set()
        for thread in crowd.threads:
            thread.join(300)
        server.check_alive()
        time.sleep(5)
        last, open_now = now(), server.counts
    assert warm is not None
    grown = [f"{b - a:+.0f}" for a, b in zip(warm, last, strict=True)]
    print(
        f"Since the warm-up: {grown[0]} MB, {grown[1]} threads, {grown[2]} files; {open_now[0]} requests are open."
    )
    for failure, count in Counter(crowd.failures).most_common(10):
        print(f"{count} x {failure}")
    allowed = zip(warm, last, (GROWTH_MB, GROWTH_THREADS, GROWTH_FILES), strict=True)
    flat = all(b - a <= most for a, b, most in allowed) and open_now[0] == 0
    print("It stayed flat." if flat else "IT GREW.")
    return 0 if flat and not crowd.failures else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10)
    parser.add_argument("--people", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return soak(arguments.minutes, arguments.people, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
