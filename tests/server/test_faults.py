"""Faults while the page is served: each is reported in one sentence, and the server recovers without a restart.

Real processes on a tiny base.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.responses import PlainTextResponse

from adapter.base.template import Message
from adapter.errors import AdapterError, LoadError
from adapter.method.checkpoint import CONFIG, WEIGHTS, load_adapter, save_adapter
from adapter.serve.batch import DecodeBatch
from adapter.serve.engine import Engine
from adapter.serve.forward import TorchForward
from adapter.serve.prompts import PromptKVBuilder
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.scheduler import MAX_ROWS, FairQueue
from adapter.serve.store import AdapterStore
from adapter.server.middleware import PartialUploads
from tests.app_process import PATIENCE, AppProcess, app_process, tiny_app_process, wait_until
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


# The engine's worker.


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize(
    "of, name",
    [
        (DecodeBatch, "step"),
        (TorchForward, "__call__"),
        (FairQueue, "take"),
        (PromptKVBuilder, "build"),
        (DecodeBatch, "join"),
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
    sampling = SamplingParams(temperature=0, max_new_tokens=6)
    request = GenerationRequest((Message("user", "hello"),), sampling=sampling)
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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=["SystemExit", "MemoryError"])
def test_worker_survives_exceptions(server, number):
    before = server.answer()
    with streaming(server) as events:
        server.process.send_signal(number)
        last = list(events)[-1]
    assert "Try again" in last["error"]["message"]
    assert server.answer() == before
    server.check_alive()


# An adapter's files.


def truncated(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 100)


def emptied(folder: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        os.truncate(folder / name, 0)


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def invalid_json(folder: Path) -> None:
    (folder / CONFIG).write_text('{"base": ' + "[" * 20_000)


def of_another_base(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"hidden_size": 32', '"hidden_size": 64'))


def nan_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["gates"][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def noise_of_same_size_and_time(folder: Path) -> None:
    about = (folder / WEIGHTS).stat()
    with open(folder / WEIGHTS, "r+b") as file:
        file.write(b"\xff" * about.st_size)
    os.utime(folder / WEIGHTS, ns=(about.st_atime_ns, about.st_mtime_ns))


def folder_in_its_place(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def symlink_to_itself(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


DAMAGES = [
    truncated,
    emptied,
    without_weights,
    deleted,
    invalid_json,
    of_another_base,
    nan_weights,
    noise_of_same_size_and_time,
    folder_in_its_place,
    symlink_to_itself,
]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_adapter_is_reported_until_it_is_repaired(server, tmp_path, damage):
    folder = server.folder / "adapters" / "one"
    shutil.copytree(folder, tmp_path / "whole")
    before = {name: server.answer(model=name) for name in ("base", "one", "two")}
    try:
        with streaming(server, "one", tokens=40) as events:
            damage(folder)
            assert (
                list(events)[-1]["choices"][0]["finish_reason"] == "length"
            )  # an answer keeps the adapter that it began with
        refused = server.complete(model="one")
        said = refused.json()["error"]["message"]
        assert refused.status_code >= 400 and "one" in said and said.endswith(".")
        assert str(server.folder) not in refused.text and "Traceback" not in refused.text
        for name in ("base", "two"):
            assert server.answer(model=name) == before[name]
        listed = server.get("/v1/models").json()["data"]
        assert {"base", "two"} <= {model["id"] for model in listed}
        assert "LLaMA-Adapter" in server.get("/").text
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
    assert server.answer(model="one") == before["one"]  # without a restart


@pytest.mark.slow
def test_replaced_adapter_is_noticed_despite_old_times(server):
    """`cp -p` and tar keep old times, and the size is the same."""
    one, two = (server.folder / "adapters" / name / WEIGHTS for name in ("one", "two"))
    first, second = server.answer(model="one"), server.answer(model="two")
    assert first != second and one.stat().st_size == two.stat().st_size
    kept, about = one.read_bytes(), one.stat()
    for data, answer in ((two.read_bytes(), second), (kept, first)):
        one.write_bytes(data)
        os.utime(one, ns=(about.st_atime_ns, about.st_mtime_ns))
        assert server.answer(model="one") == answer


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


def test_store_evicts_adapters(tiny_base, tiny_fingerprint, tmp_path, monkeypatch):
    monkeypatch.setattr("adapter.serve.store._MAX_LOADED", 3)
    store = AdapterStore(tmp_path)
    for seed in range(6):
        save_adapter(random_adapter(tiny_fingerprint, seed), tmp_path / f"a{seed}")
        store.load(f"a{seed}", tiny_base)
    assert len(store._loaded) == 3
    with pytest.raises(LoadError):
        store.load("gone", tiny_base)


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


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), None], ids=["full", "gone"])
def test_partial_upload_is_deleted(tmp_path, error):
    """Gradio's own parser never deletes it. What another upload is writing meanwhile stays."""

    async def upload(scope: Any, receive: Any, send: Any) -> None:
        if scope["query_string"] == b"whole":
            (tmp_path / "tmpgrowing").write_bytes(b"half")
            half.set()
            await ended.wait()
            os.replace(tmp_path / "tmpgrowing", tmp_path / "kept")
            await PlainTextResponse("kept")(scope, receive, send)
            return
        (tmp_path / "tmpabcd").write_bytes(b"half")
        if error is not None:
            raise error
        await PlainTextResponse("the client went away", 400)(scope, receive, send)

    async def run() -> list[int]:
        page = PartialUploads(upload, tmp_path)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url="http://here") as client:
            whole = asyncio.create_task(client.post("/gradio_api/upload?whole"))
            await half.wait()
            broken = await client.post("/gradio_api/upload")
            assert (tmp_path / "tmpgrowing").exists()
            ended.set()
            return [(await whole).status_code, broken.status_code]

    half, ended = asyncio.Event(), asyncio.Event()
    assert asyncio.run(asyncio.wait_for(run(), PATIENCE)) == [200, 507 if error else 400]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# Clients that disconnect.


def leave_v1(server: AppProcess) -> None:
    with streaming(server):
        pass


def leave_page(server: AppProcess) -> None:
    """As a browser: join the queue for an event, and leave its stream of updates."""
    config = server.get("/config").json()
    event = next(d for d in config["dependencies"] if d["api_name"] == "chat")
    held = {c["id"]: c["props"].get("value") for c in config["components"]}
    data = ["go on", None, None, 1, 0, 1, LONG]
    data += [held[number] for number in event["inputs"][len(data) :]]
    join = {"data": data, "fn_index": event["id"], "session_hash": f"gone{time.monotonic_ns()}"}
    httpx.post(f"{server.url}/gradio_api/queue/join", json=join, timeout=PATIENCE).raise_for_status()
    address = f"{server.url}/gradio_api/queue/data?session_hash={join['session_hash']}"
    with httpx.stream("GET", address, timeout=PATIENCE) as updates:
        next(line for line in updates.iter_lines() if "process_generating" in line)


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
