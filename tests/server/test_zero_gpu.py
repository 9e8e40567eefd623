"""The engine of a ZeroGPU Space: in this process without a decorator, and once as a real program."""

import itertools
import json
import os
import signal
import sysconfig
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch

from adapter.base import embedded
from adapter.base.image_file import open_image
from adapter.base.template import Message
from adapter.errors import AdapterError, Busy
from adapter.method.checkpoint import save_adapter
from adapter.method.config import VisionConfig
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.settings import PAGE_PENALTY
from adapter.serve.store import AdapterStore
from adapter.server.zero_gpu import ZeroGpuEngine, load_for_zero_gpu
from tests.app_process import PATIENCE, ROOT, AppProcess, wait_until
from tests.server.test_deployment import SPACE, space, stream
from tests.tiny_models import endless_base, random_adapter, save_one_and_two

COFFEE = Path(sysconfig.get_path("purelib")) / "skimage/data/coffee.png"


@pytest.fixture
def store(tmp_path: Path, tiny_fingerprint: Any) -> AdapterStore:
    save_one_and_two(tiny_fingerprint, tmp_path)
    return AdapterStore(tmp_path)


@pytest.fixture
def on_gpu(tiny_base: Any, store: AdapterStore) -> Iterator[Callable[..., ZeroGpuEngine]]:
    """Makes the engine; gpu: the decorator, by default none."""
    made: list[ZeroGpuEngine] = []

    def make(gpu: Callable[..., Any] = lambda task, **_: task) -> ZeroGpuEngine:
        made.append(ZeroGpuEngine(tiny_base, store, gpu, gr.Error))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def request_for(text: str = "hello", tokens: int = 12, penalty: float = 1.0, **more: Any) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_new_tokens=tokens, repetition_penalty=penalty)
    return GenerationRequest((Message("user", text),), sampling=sampling, **more)


def test_zero_gpu_engine_equals_engine(tiny_base, store, on_gpu):
    zero_engine = on_gpu()
    with closing(Engine(tiny_base, store)) as engine:
        for request in (
            request_for(),
            request_for(adapter="one", top_logprobs=3),
            request_for(adapter="two", strength=0.5, mix=(("one", 1.5),)),
            request_for("yes, z", form='start: MESSAGE_WORDS "."'),  # a form about the message
        ):
            events, here = list(zero_engine.submit(request)), list(engine.submit(request))
            ids = [event.token_id for event in events]
            assert ids == [event.token_id for event in here] and events[-1].finish_reason == here[-1].finish_reason
            assert [event.choices for event in events] == [event.choices for event in here]
            mine, theirs = events[-1].stats, here[-1].stats
            assert (mine.new_tokens, mine.prompt_tokens) == (theirs.new_tokens, theirs.prompt_tokens)
            if request.adapter:
                given = [number for number in ids if number is not None]
                mine, theirs = engine.inspect(request, given), zero_engine.inspect(request, given)
                torch.testing.assert_close(mine.logprobs, theirs.logprobs)
                torch.testing.assert_close(mine.influence, theirs.influence)


def test_cancel_ends_reader_and_worker(on_gpu):
    ended = threading.Event()

    def gpu(task: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(*arguments: Any) -> Iterator[Any]:
            try:
                yield from itertools.repeat(next(task(*arguments)))  # never ends by itself
            finally:
                ended.set()

        return run

    zero_engine = on_gpu(gpu)
    answer = zero_engine.submit(request_for(tokens=100))
    next(answer)
    answer.cancel()
    *_, last = answer
    assert last.finish_reason == "cancelled" and ended.wait(PATIENCE)
    zero_engine.close()
    with pytest.raises(Busy):
        zero_engine.submit(request_for())


def test_overflow_in_a_worker_is_told(store, tiny_fingerprint, on_gpu):
    bomb = random_adapter(tiny_fingerprint, 3)
    with torch.no_grad():
        bomb.prompts.copy_(bomb.prompts.sign() * 1e38)
    save_adapter(bomb, store.folders[0] / "bomb")
    zero_engine, request = on_gpu(), request_for(adapter="bomb")
    for ask in (lambda: list(zero_engine.submit(request)), lambda: zero_engine.inspect(request, [1])):
        with pytest.raises(AdapterError, match="'bomb' makes the model's numbers overflow"):
            ask()


def events(server: AppProcess, kind: str) -> list[dict[str, Any]]:
    """The log of the fake `spaces`."""
    lines = map(json.loads, (server.folder / "spaces").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


@pytest.mark.slow
def test_zero_gpu_space(tmp_path, tiny_folder, tiny_fingerprint):
    """What a Space on ZeroGPU does from its launch to Ctrl-C. Its workers are used again."""
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    base = endless_base(tiny_folder, tmp_path / "base")
    features = json.loads((ROOT / "assets/adapters/see/config.json").read_text())["vision"]["feature_size"]
    vision = VisionConfig(embedded.ENCODER, feature_size=features, hidden=8)
    for seed, (name, sees) in enumerate((("one", None), ("sees", vision))):
        save_adapter(random_adapter(tiny_fingerprint, seed, vision=sees), tmp_path / "more" / name)
    environment = {"SPACES_ZERO_GPU": "true", "PYTHONPATH": str(ROOT / "tests/fake_spaces"), **SPACE}
    environment |= {"FAKE_SPACES_LOG": str(tmp_path / "spaces")}
    with space(tmp_path, base, "--adapters", str(tmp_path / "more"), **environment) as server:
        [launch] = events(server, "launch")
        assert launch["decorated"] == 1 and launch["loaded"], "all is on the GPU before the launch"

        # Each adapter's answer is that of the engine in this process.
        here = load_for_zero_gpu(str(base), "auto")
        assert here.model.dtype == torch.bfloat16
        client, store = server.client(), AdapterStore(tmp_path / "more")
        for name, more in [("", {}), ("one", {"strength": 0.7}), ("sees", {"image": handle_file(str(COFFEE))})]:
            settings = {"temperature": 0, "max_tokens": 12, **more}
            given = client.predict(message="What is this?", adapter=name, api_name="/chat", **settings)
            about = {"adapter": name or None, "strength": more.get("strength", 1.0)}
            about["image"] = open_image(COFFEE) if name == "sees" else None
            with closing(Engine(here, store)) as engine:  # a new one: it has no prefix of another question
                asked = engine.submit(request_for("What is this?", penalty=PAGE_PENALTY, **about))
                assert given == "".join(event.text for event in asked)
        begun = events(server, "begin")
        assert len(events(server, "fork")) < len(begun), "a worker was used again"
        assert begun[0]["bytes"] + 1000 < begun[1]["bytes"], "adapters travel with the question"

        # Two visitors at once, each with an adapter.
        alone = [server.answer("Who are you?", name, tokens=60) for name in ("base", "one")]
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda name: server.answer("Who are you?", name, tokens=60), ("base", "one")))
        assert both == alone and alone[0] != alone[1]

        # A visitor without quota; spaces is told who asks. What is wrong takes no GPU.
        scheduled = len(events(server, "schedule"))
        assert server.complete(model="nobody").status_code == 404
        assert server.complete("9 " * 10_001).status_code == 400
        assert len(events(server, "schedule")) == scheduled
        refused = server.complete(headers={"X-IP-Token": "spent"})
        assert refused.status_code == 429 and "exceeded your free ZeroGPU quota" in refused.text
        with pytest.raises(AppError, match="no GPU for this answer now.*1:00:00"):
            server.client(headers={"X-IP-Token": "spent"}).predict(message="hi", api_name="/chat")
        assert server.complete(headers={"X-IP-Token": "rich"}, tokens=1).status_code == 200
        assert "rich" in {event["token"] for event in events(server, "begin")}

        # A worker that is killed ends its answer, and no other. Ctrl-C ends the program and its workers.
        seen: list[str] = []
        reader = threading.Thread(target=stream, args=(server, seen))
        reader.start()
        server.wait_until(lambda: len(seen) > 8)
        os.kill(events(server, "begin")[-1]["pid"], signal.SIGKILL)
        reader.join(PATIENCE)
        assert not reader.is_alive() and any("taken away" in line for line in seen)
        assert server.answer("Who are you?", tokens=60) == alone[0]
        seen.clear()
        reader = threading.Thread(target=stream, args=(server, seen))
        reader.start()
        server.wait_until(lambda: len(seen) > 8)
        workers = {event["pid"] for event in events(server, "fork")}
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        wait_until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])
        assert "Traceback" not in server.log
