"""A real `python app.py` whose process one may hurt, and a tiny base for it. Knows nothing of what is asked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

ROOT = Path(__file__).parents[1]
# app.py, but that two signals strike the engine's worker in the middle of whatever it does, that a step takes PACE
# seconds at least, and that the file COUNTS tells how many requests are open and how many of them in the batch.
STRUCK = """
import ctypes, json, os, signal, sys, threading, time
from adapter import batch

def worker():
    return next((t for t in threading.enumerate() if t.name == "engine"), None)

def strike(number, frame):
    error = SystemExit if number == signal.SIGUSR1 else MemoryError
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker().ident), ctypes.py_object(error))

def count():
    while True:
        if (thread := worker()) is not None:
            engine = thread._target.__self__
            with open(os.environ["COUNTS"] + ".new", "w") as file:
                json.dump([len(engine._open), len(engine._batch)], file)
            os.replace(os.environ["COUNTS"] + ".new", os.environ["COUNTS"])
        time.sleep(0.05)

def at_a_pace(self, *arguments, step=batch.DecodeBatch.step):
    time.sleep(float(os.environ["PACE"]))
    return step(self, *arguments)

batch.DecodeBatch.step = at_a_pace
signal.signal(signal.SIGUSR1, strike)
signal.signal(signal.SIGUSR2, strike)
threading.Thread(target=count, daemon=True).start()
import app
sys.exit(app.main(sys.argv[1:]))
"""
READY_SECONDS = 120


@dataclass
class Server:
    """The process, its address without a slash at the end, and the folder that its uploads and log lie in."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests are open, and how many of them are in the batch."""
        opened, batched = json.loads((self.folder / "counts").read_text())
        return opened, batched

    def strike(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def complete(self, text: Any = "hello", model: str = "base", tokens: int = 8, **more: Any) -> httpx.Response:
        """One answer, greedy."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        return httpx.post(f"{self.url}/v1/chat/completions", json={**body, "temperature": 0, **more}, timeout=120)

    def said(self, text: str = "hello", model: str = "base", tokens: int = 8) -> str:
        """The answer's words; fails if there is none."""
        response = self.complete(text, model, tokens)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def alive(self) -> None:
        """The page is there, and answers."""
        assert self.process.poll() is None, self.log[-2000:]
        assert "LLaMA-Adapter" in httpx.get(f"{self.url}/", timeout=60).text
        assert self.said()


@contextlib.contextmanager
def running(
    folder: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
    pace: float = 0.0,
    until: tuple[int, ...] = (200,),
) -> Iterator[Server]:
    """A server that is ready to answer; `folder` gets its log and, in `uploads`, what is sent to it.

    until: statuses of /v1/models of which one is waited for, 503 only once the model cannot be loaded.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "uploads").mkdir(parents=True, exist_ok=True)
    own = {
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "OMP_NUM_THREADS": "1",
        "COUNTS": str(folder / "counts"),
        "PACE": str(pace),
    }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", STRUCK, "--port", str(port), *arguments],
            cwd=ROOT,
            env={**os.environ, **own, **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=preexec,
        )
    server = Server(process, f"http://127.0.0.1:{port}", folder)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _ready(server, until):
            assert process.poll() is None and time.monotonic() < deadline, server.log[-4000:]
            time.sleep(0.2)
        yield server
        assert process.poll() is None, f"it ended with {process.returncode}:\n{server.log[-4000:]}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(server: Server, until: tuple[int, ...]) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        response = httpx.get(f"{server.url}/v1/models", timeout=10)
        return response.status_code in until and "model_loading" not in response.text
    return False


@contextlib.contextmanager
def running_tiny(folder: Path, tiny_folder: Path, fingerprint: Any, pace: float = 0.0) -> Iterator[Server]:
    """A server over the endless tiny base, with the adapters `one` and `two`."""
    from adapter.method.checkpoint import save_adapter
    from conftest import random_adapter

    for seed, name in enumerate(("one", "two")):
        save_adapter(random_adapter(fingerprint, seed), folder / "adapters" / name)
    base = endless_base(tiny_folder, folder / "base")
    with running(folder, "--base", str(base), "--adapters", str(folder / "adapters"), pace=pace) as found:
        yield found


def endless_base(tiny_folder: Path, folder: Path) -> Path:
    """The tiny base with a context that no answer fills, and which never says that it has finished."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.max_position_embeddings = 100_000
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight[95:] = 0  # <pad> and <end>
    model.save_pretrained(folder)
    return folder
