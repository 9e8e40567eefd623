"""Faults while the page is served: each is reported in one sentence, and the server recovers without a restart.

Real processes on a tiny base.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter.base.template import Message
from adapter.errors import AdapterError
from adapter.method.checkpoint import CONFIG, WEIGHTS, load_adapter, save_adapter
from adapter.serve.batch import DecodeBatch
from adapter.serve.engine import Engine
from adapter.serve.forward import TorchForward
from adapter.serve.prompts import PromptKVBuilder
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.scheduler import MAX_ROWS, FairQueue
from adapter.serve.store import AdapterStore
from tests.app_process import PATIENCE, AppProcess, app_process, tiny_app_process, wait_until
from tests.soak.people import Connection
from tests.tiny_models import random_adapter

STEP_SECONDS = 0.02
LONG = 2000  # tokens of an answer
# Seconds a step, with which a long answer takes longer than any wait: an answer that ends earlier was cancelled.
SLOW = 2 * PATIENCE / LONG


@pytest.fixture(scope="module")
def server(
    tiny_folder: Path, tiny_fingerprint: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AppProcess]:
    with tiny_app_process(tmp_path_factory.mktemp("faults"), tiny_folder, tiny_fingerprint, STEP_SECONDS) as found:
        yield found


@contextlib.contextmanager
def streaming(server: AppProcess, model: str = "base", tokens: int = LONG) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a streamed answer after its first text."""
    body = {"model": model, "messages": [{"role": "user", "content": "go on"}], "stream": True}
    body |= {"max_tokens": tokens, "temperature": 0}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE) as response:
        assert response.status_code == 200
        lines = (line[6:] for line in response.iter_lines() if line.startswith("data: {"))
        events = (json.loads(line) for line in lines)
        next(event for event in events if event["choices"][0]["delta"].get("content"))
        yield events


def request_for(adapter: str | None = None) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_new_tokens=12)
    return GenerationRequest((Message("user", "hello"),), adapter=adapter, sampling=sampling)


# The engine's worker.


@pytest.mark.parametrize(
    "error, of, name",
    [
        (RuntimeError, DecodeBatch, "step"),
        (MemoryError, TorchForward, "__call__"),
        (SystemExit, FairQueue, "take"),
        (KeyboardInterrupt, PromptKVBuilder, "build"),
        (GeneratorExit, DecodeBatch, "join"),
    ],
)
def test_every_request_ends_after_an_exception_in_the_worker(tiny_base, monkeypatch, tmp_path, error, of, name):
    engine, calls, whole = Engine(tiny_base, AdapterStore(tmp_path)), [], getattr(of, name)

    def once(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
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
    assert failures and set(ends) <= {"length", *failures}
    assert list(engine.submit(request))[-1].finish_reason == "length"
    engine.close()


# An adapter's files.


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def nan_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["gates"][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def noise_of_same_size_and_time(folder: Path) -> None:
    about = (folder / WEIGHTS).stat()
    (folder / WEIGHTS).write_bytes(b"\xff" * about.st_size)
    os.utime(folder / WEIGHTS, ns=(about.st_atime_ns, about.st_mtime_ns))


def link_to_itself(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": edit(WEIGHTS, lambda data: data[:100]),
    "empty": edit(CONFIG, lambda data: b""),
    "deleted": shutil.rmtree,
    "weights deleted": lambda folder: (folder / WEIGHTS).unlink(),
    "no JSON": edit(CONFIG, lambda data: b'{"base": ' + b"[" * 20_000),
    "of another base": edit(CONFIG, lambda data: data.replace(b'"hidden_size": 32', b'"hidden_size": 64')),
    "NaN": nan_weights,
    "noise of the same size and time": noise_of_same_size_and_time,
    "link to itself": link_to_itself,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_adapter_is_reported_until_it_is_repaired(tiny_base, tiny_fingerprint, tmp_path, damage):
    for seed, name in enumerate(("one", "two")):
        save_adapter(random_adapter(tiny_fingerprint, seed), tmp_path / "adapters" / name)
    folder = tmp_path / "adapters" / "one"
    shutil.copytree(folder, tmp_path / "whole")
    with closing(Engine(tiny_base, AdapterStore(tmp_path / "adapters"))) as engine:

        def ids(name: str | None) -> list[int | None]:
            return [event.token_id for event in engine.submit(request_for(name))]

        before = {name: ids(name) for name in (None, "one", "two")}
        running = engine.submit(request_for("one"))
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


def test_change_within_one_clock_tick_is_noticed(tiny_base, tiny_fingerprint, tmp_path):
    """File times have ticks of some milliseconds; a store that trusts them alone serves the old weights."""
    store = AdapterStore(tmp_path)
    weights = []
    for seed in range(2):
        save_adapter(random_adapter(tiny_fingerprint, seed), tmp_path / "a")
        weights.append((tmp_path / "a" / WEIGHTS).read_bytes())
    for i in range(40):
        (tmp_path / "a" / WEIGHTS).write_bytes(weights[i % 2])
        served = store.load("a", tiny_base)
        assert torch.equal(served.gates, load_adapter(tmp_path / "a").gates), i


def test_change_between_stat_and_load_is_noticed(tiny_base, tiny_fingerprint, tmp_path, monkeypatch):
    save_adapter(random_adapter(tiny_fingerprint, 0), tmp_path / "a")
    store = AdapterStore(tmp_path)

    def late(folder: Path, *rest: Any) -> Any:
        found = load_adapter(folder, *rest)
        save_adapter(random_adapter(tiny_fingerprint, 1), folder)
        monkeypatch.undo()
        return found

    monkeypatch.setattr("adapter.serve.store.load_adapter", late)
    first = store.load("a", tiny_base)
    assert not torch.equal(store.load("a", tiny_base).gates, first.gates)


def test_loaded_adapter_outlives_its_file(tiny_fingerprint, tmp_path):
    """A mapped file that is shortened ends the process with SIGBUS: nothing of an adapter may be mapped."""
    saved = random_adapter(tiny_fingerprint)
    save_adapter(saved, tmp_path / "a")
    loaded = load_adapter(tmp_path / "a", tiny_fingerprint)
    os.truncate(tmp_path / "a" / WEIGHTS, 0)
    assert torch.equal(loaded.prompts, saved.prompts)


# The disk.


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options of `app_process` that leave 2 MB of disk: a small file system, or a limit of every file's size."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0 if shutil.which("mount") else False

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    places = {"GRADIO_TEMP_DIR": "uploads", "TMPDIR": "", "LLAMA_ADAPTER_RUNS": "runs"}
    (small / "uploads").mkdir()
    yield {
        "environment": {variable: str(small / below) for variable, below in places.items()},
        "preexec": None if mounted else limited,
    }
    if mounted:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.slow
def test_full_disk_is_reported_and_chat_continues(server, full_disk, tmp_path):
    base, adapters = server.folder / "base", server.folder / "adapters"
    with app_process(tmp_path / "run", "--base", str(base), "--adapters", str(adapters), **full_disk) as small:
        before = small.answer(model="one")
        for _ in range(2):
            files = {"files": ("a.png", os.urandom(4_000_000))}
            sent = httpx.post(f"{small.url}/gradio_api/upload", files=files, timeout=PATIENCE)
            assert sent.status_code == 507 and "disk may be full" in sent.text
            assert str(tmp_path) not in sent.text
        assert small.answer(model="one") == before
        small.check_alive()


# Clients that disconnect.


def leave_v1(server: AppProcess) -> None:
    with streaming(server):
        pass


def leave_page(server: AppProcess) -> None:
    """As a browser: join the queue for an event, and leave its stream of updates."""
    with closing(Connection(server.url, "127.0.0.1", signed_in=False)) as visitor:
        data = visitor.defaults("chat")
        data[:7] = ["go on", None, None, 1, 0, 1, LONG]
        visitor.join("chat", data).raise_for_status()
        next(message for message in visitor.updates() if message["msg"] == "process_generating")


def leave_gradio_client(server: AppProcess) -> None:
    from gradio_client import Client

    client = Client(server.url, verbose=False)
    job = client.submit(message="go on", temperature=0, max_tokens=LONG, api_name="/chat")
    wait_until(lambda: bool(job.outputs()))
    job.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("leave", [leave_v1, leave_page, leave_gradio_client])
def test_disconnect_frees_the_row(server, leave):
    wait_until(lambda: server.counts == (0, 0))
    with server.steps_of(SLOW):
        leave(server)
        wait_until(lambda: server.counts == (0, 0))
    server.check_alive()


@pytest.mark.slow
def test_disconnect_of_all_clients_frees_all_rows(server):
    """A full batch of clients disconnects; the next request does not wait for their answers."""
    with server.steps_of(SLOW):
        with contextlib.ExitStack() as crowd:
            list(map(crowd.enter_context, [streaming(server) for _ in range(MAX_ROWS)]))
            wait_until(lambda: server.counts[1] == MAX_ROWS)
        assert server.answer()
