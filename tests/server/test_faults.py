"""Faults while the page is served: each is reported in one sentence, and the server recovers."""

import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from adapter.errors import AdapterError
from adapter.method.checkpoint import CONFIG, WEIGHTS, load_adapter, save_adapter
from adapter.serve.engine import Engine
from adapter.serve.prompts import PromptKVBuilder
from adapter.serve.scheduler import MAX_ROWS
from adapter.serve.store import AdapterStore
from tests.app_process import PATIENCE, AppProcess, wait_until
from tests.server.test_zero_gpu import request_for
from tests.soak.people import Connection
from tests.tiny_models import random_adapter, save_one_and_two

STEP_SECONDS = 0.02
LONG = 2000  # tokens of an answer
# Seconds a step, with which a long answer takes longer than any wait: an answer that ends earlier was cancelled.
SLOW = 2 * PATIENCE / LONG


# The engine's worker.


@pytest.mark.parametrize(
    "error, of, name",
    [
        (RuntimeError, Engine, "_decode"),
        (SystemExit, Engine, "_decode"),
        (KeyboardInterrupt, PromptKVBuilder, "build"),
    ],
)
def test_every_request_ends_after_an_exception_in_the_worker(tiny_base, monkeypatch, tmp_path, error, of, name):
    engine, calls, whole = Engine(tiny_base, AdapterStore(tmp_path)), itertools.count(), getattr(of, name)

    def once(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 0:
            raise error("struck")
        return whole(*arguments, **named)

    monkeypatch.setattr(of, name, once)
    request = request_for()
    ends: list[str] = []

    def ask() -> None:
        try:
            ends.append(str(list(engine.submit(request))[-1].finish_reason))
        except AdapterError as failed:
            ends.append(str(failed))

    crowd = [threading.Thread(target=ask, daemon=True) for _ in range(MAX_ROWS + 8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(PATIENCE)
    assert len(ends) == len(crowd)  # no request hangs
    failures = [end for end in ends if "Try again" in end]
    assert 0 < len(failures) <= MAX_ROWS < len(crowd) and set(ends) <= {"length", *failures}
    assert list(engine.submit(request))[-1].finish_reason == "length"
    engine.close()


# An adapter's files.


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def noise_of_same_size_and_time(folder: Path) -> None:
    about = (folder / WEIGHTS).stat()
    (folder / WEIGHTS).write_bytes(b"\xff" * about.st_size)
    os.utime(folder / WEIGHTS, ns=(about.st_atime_ns, about.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": edit(WEIGHTS, lambda data: data[:100]),
    "deleted": shutil.rmtree,
    "no JSON": edit(CONFIG, lambda data: b'{"base": ' + b"[" * 20_000),
    "noise of the same size and time": noise_of_same_size_and_time,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_adapter_is_reported_until_it_is_repaired(tiny_base, tiny_fingerprint, tmp_path, damage):
    save_one_and_two(tiny_fingerprint, tmp_path / "adapters")
    folder = tmp_path / "adapters" / "one"
    shutil.copytree(folder, tmp_path / "whole")
    with closing(Engine(tiny_base, AdapterStore(tmp_path / "adapters"))) as engine:

        def ids(name: str | None) -> list[int | None]:
            return [event.token_id for event in engine.submit(request_for(adapter=name))]

        before = {name: ids(name) for name in (None, "one", "two")}
        running = engine.submit(request_for(adapter="one"))
        next(running)
        DAMAGES[damage](folder)
        assert [event.token_id for event in running][-11:] == before["one"][-11:]  # it keeps what it began with
        with pytest.raises(AdapterError) as refused:
            ids("one")
        said = str(refused.value)
        assert "one" in said and said.endswith(".") and str(tmp_path) not in said
        assert [ids(None), ids("two")] == [before[None], before["two"]] and "two" in engine.store.names()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        assert ids("one") == before["one"]  # without a restart


def test_loaded_adapter_outlives_its_file(tiny_fingerprint, tmp_path):
    """A mapped file that is shortened ends the process with SIGBUS: nothing of an adapter may be mapped."""
    saved = random_adapter(tiny_fingerprint)
    save_adapter(saved, tmp_path / "a")
    loaded = load_adapter(tmp_path / "a", tiny_fingerprint)
    os.truncate(tmp_path / "a" / WEIGHTS, 0)
    assert torch.equal(loaded.prompts, saved.prompts)


# Clients that disconnect.


def leave_v1(server: AppProcess) -> None:
    """As a program: leave a streamed answer after its first text."""
    body = {"model": "base", "messages": [{"role": "user", "content": "go on"}], "stream": True}
    body |= {"max_tokens": LONG, "temperature": 0}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE) as response:
        assert response.status_code == 200
        events = (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))
        next(event for event in events if event["choices"][0]["delta"].get("content"))
        wait_until(lambda: server.counts == (1, 1))


def leave_page(server: AppProcess) -> None:
    """As a browser: join the queue for an event, and leave its stream of updates."""
    with closing(Connection(server.url, "127.0.0.1", signed_in=False)) as visitor:
        data = visitor.defaults("chat")
        data[:7] = ["go on", None, None, 1, 0, 1, LONG]
        visitor.join("chat", data).raise_for_status()
        wait_until(lambda: server.counts == (1, 1))
        next(message for message in visitor.updates() if message["msg"] == "process_generating")  # and leaves it


@pytest.mark.slow
@pytest.mark.parametrize("leave", [leave_v1, leave_page])
def test_disconnect_frees_the_row(server, leave):
    wait_until(lambda: server.counts == (0, 0))
    with server.steps_of(SLOW):
        leave(server)
        wait_until(lambda: server.counts == (0, 0))
    server.check_alive()
