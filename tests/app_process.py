"""`python app.py` as a process of its own, asked over HTTP; and how tests wait for other threads and programs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

if TYPE_CHECKING:
    from adapter.method.config import BaseFingerprint

ROOT = Path(__file__).parents[1]
# Seconds after which a wait fails, and a wait for a whole program, which may load a base: enough for a machine
# that is busy with other things. No test measures time.
PATIENCE, LONG_PATIENCE = 150.0, 300.0
APP, FAULTY_APP = ("app.py",), ("-m", "tests.faulty_app")
Found = TypeVar("Found")


def wait_until(
    condition: Callable[[], Found],
    why_not: Callable[[], Any] = lambda: "it did not happen",
    patience: float = PATIENCE,
) -> Found:
    """The condition's first true value. why_not: what the failure shows; it may fail earlier by itself."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        shown = why_not()
        assert time.monotonic() < deadline, shown
        time.sleep(0.02)
    return found


def free_port() -> int:
    """A free port below those that the system gives to outgoing connections, which could take it meanwhile."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", random.SystemRandom().randrange(12_000, 32_000)))
            return int(probe.getsockname()[1])


@dataclass
class AppProcess:
    """The process; its address without a slash at the end; the folder of its log and uploads."""

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
        """How many requests are open, and how many of them are in the batch. Of FAULTY_APP only."""
        opened, batched = json.loads((self.folder / "counts").read_text())
        return opened, batched

    @contextlib.contextmanager
    def steps_of(self, seconds: float) -> Iterator[None]:
        """Meanwhile a decode step takes so long. Of FAULTY_APP only."""
        file = self.folder / "step_seconds"
        before = file.read_text()
        file.write_text(str(seconds))
        yield
        file.write_text(before)

    def complete(
        self, text: Any = "hello", model: str = "base", tokens: int = 8, headers: Any = None, **more: Any
    ) -> httpx.Response:
        """One answer of OpenAI's endpoint, greedy."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        body |= {"temperature": 0, **more}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)

    def answer(self, text: str = "hello", model: str = "base", tokens: int = 8) -> str:
        """The answer's text; fails if there is none."""
        response = self.complete(text, model, tokens)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def get(self, path: str, headers: Any = None) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=PATIENCE)

    def client(self, **more: Any) -> Any:
        """Gradio's client of the page."""
        from gradio_client import Client

        return Client(self.url, verbose=False, httpx_kwargs={"timeout": PATIENCE}, **more)

    def check_alive(self) -> None:
        """Fails unless the program runs, the page is served and a request is answered."""
        self.check_running()
        assert "LLaMA-Adapter" in self.get("/").text
        assert self.answer()

    def check_running(self) -> None:
        assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log[-4000:]}"

    def wait_until(self, condition: Callable[[], Found], patience: float = PATIENCE) -> Found:
        def why_not() -> str:
            self.check_running()
            return self.log[-4000:]

        return wait_until(condition, why_not, patience)

    def answers_with(self, statuses: Sequence[int]) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            if not statuses:
                return httpx.get(f"{self.url}/", timeout=10).status_code == 200
            response = httpx.get(f"{self.url}/v1/models", timeout=10)
            return response.status_code in statuses and "model_loading" not in response.text
        return False


@contextlib.contextmanager
def app_process(
    folder: Path,
    *arguments: str,
    program: Sequence[str] = APP,
    environment: dict[str, str] | None = None,
    inherited: dict[str, str] | None = None,
    port: int | None = None,
    step_seconds: float = 0.0,
    ready: Sequence[int] = (200,),
) -> Iterator[AppProcess]:
    """A server that is ready; `folder` gets its log and, in `uploads`, what is sent to it.

    environment: changes to what it inherits, which is `inherited` or, if None, this process's environment.
    step_seconds: what a decode step takes at least. Of FAULTY_APP only.
    ready: the statuses of /v1/models of which one is waited for; 503 means that the model cannot be loaded, and no
    status at all that the page is enough.
    """
    port = port or free_port()
    (folder / "uploads").mkdir(parents=True, exist_ok=True)
    (folder / "step_seconds").write_text(str(step_seconds))
    (folder / "counts").write_text("[0, 0]")
    environment = environment or {}
    on_space = "SPACE_ID" in environment  # which names the port in the environment
    own = {
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "FAULTS": str(folder),
        "HTTP_PROXY": "http://127.0.0.1:9",  # a proxy that does not reach this machine hinders nothing
        **({"GRADIO_SERVER_PORT": str(port)} if on_space else {}),
    }
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments, *([] if on_space else ["--port", str(port)])],
            cwd=ROOT,
            env={**(os.environ if inherited is None else inherited), **own, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = AppProcess(process, f"http://127.0.0.1:{port}", folder)
    try:
        server.wait_until(lambda: server.answers_with(ready), LONG_PATIENCE)
        yield server
        # A test that ends the program waits for it; then `returncode` is there already.
        assert process.returncode is not None or process.poll() is None, f"the program died:\n{server.log[-4000:]}"
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def tiny_app_process(
    folder: Path, tiny_folder: Path, fingerprint: BaseFingerprint, step_seconds: float = 0.0
) -> Iterator[AppProcess]:
    """FAULTY_APP over the endless tiny base, with the adapters `one` and `two`."""
    from tests.tiny_models import endless_base, save_one_and_two

    save_one_and_two(fingerprint, folder / "adapters")
    base = endless_base(tiny_folder, folder / "base")
    arguments = ("--base", str(base), "--adapters", str(folder / "adapters"))
    with app_process(
        folder, *arguments, program=FAULTY_APP, environment={"OMP_NUM_THREADS": "1"}, step_seconds=step_seconds
    ) as server:
        yield server
