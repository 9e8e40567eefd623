"""Where the page is served: the command line, Spaces without and with a GPU, and how the program ends.

A Space is imitated by a real `python app.py` with the environment that Hugging Face gives it, and the package
`spaces`, where there is a GPU to be had, by tests/fake_spaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
import yaml
from packaging.requirements import Requirement

from adapter.base import embedded
from adapter.base.template import Message
from adapter.errors import AdapterError, Busy, LoadError
from adapter.method.checkpoint import save_adapter
from adapter.method.config import VisionConfig
from adapter.serve.engine import Engine
from adapter.serve.request import Answer, GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.settings import PAGE_PENALTY
from adapter.serve.store import AdapterStore
from adapter.server.deployment import Place, describe_access, find_place, parse
from adapter.server.limits import ANSWERS_PER_MINUTE
from adapter.server.zero_gpu import MAX_SECONDS, ZeroGpuEngine, _PendingAnswer, load_for_zero_gpu
from tests.app_process import PATIENCE, AppProcess, app_process, free_port, wait_until
from tests.tiny_models import endless_base, random_adapter

ROOT = Path(__file__).parents[2]
COFFEE = Path(sysconfig.get_path("purelib")) / "skimage/data/coffee.png"
SPACE = {"SYSTEM": "spaces", "SPACE_ID": "me/page", "GRADIO_SERVER_NAME": "0.0.0.0"}
GREEDY = {"temperature": 0, "max_tokens": 12}
EMBEDDED_FEATURES = json.loads((ROOT / "assets/adapters/see/config.json").read_text())["vision"]["feature_size"]


# The front matter, and the command line.


def test_readme_front_matter_is_valid_for_spaces() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])
    needs = {r.name: r for r in map(Requirement, requirements())}
    assert front["sdk"] == "gradio" and needs["gradio"].specifier.contains(front["sdk_version"])
    assert (ROOT / front["app_file"]).is_file()
    assert tuple(map(int, front["python_version"].split("."))) >= (3, 10)
    assert re.fullmatch(r"\d+[mh]", front["startup_duration_timeout"])
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colours
    assert len(front["short_description"]) <= 60, "the Hub refuses longer ones"
    assert "spaces" not in needs, "Spaces installs it by itself"


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def place(*argv: str, **environment: str) -> Place:
    return find_place(parse(list(argv)), environment)


def test_host_and_port_on_a_space() -> None:
    here = place()
    assert (here.host, here.port, here.space, here.public) == ("127.0.0.1", None, False, False)
    there = place("--share", SPACE_ID="me/page")
    assert (there.host, there.port, there.share, there.public) == ("0.0.0.0", 7860, False, True)
    assert place(SPACE_ID="me/page", GRADIO_SERVER_PORT="7000").port == 7000
    assert place("--port", "7001", SPACE_ID="me/page", GRADIO_SERVER_PORT="7000").port == 7001


@pytest.mark.parametrize(
    ("argv", "environment", "training"),
    [
        ([], {}, True),
        (["--host", "::1"], {}, True),
        (["--no-train"], {}, False),
        ([], {"LLAMA_ADAPTER_TRAIN": "0"}, False),
        (["--share"], {}, False),
        (["--host", "0.0.0.0"], {}, False),
        (["--public"], {}, False),
        (["--public", "--train"], {}, True),
        (["--host", "192.168.1.2"], {}, False),
        ([], {"SPACE_ID": "me/page"}, False),
        ([], {"SPACE_ID": "me/page", "LLAMA_ADAPTER_TRAIN": "1"}, True),
        (["--train"], {"SPACE_ID": "me/page"}, True),
        (["--no-train"], {"SPACE_ID": "me/page", "LLAMA_ADAPTER_TRAIN": "1"}, False),
    ],
)
def test_training_is_local_by_default(argv: list[str], environment: dict[str, str], training: bool) -> None:
    assert place(*argv, **environment).training is training


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            [],
            "Only this machine may ask: it may chat, send pictures, train and bring adapters, without",
        ),
        (["--no-train"], "Only this machine may ask: it may chat and send pictures, without limits."),
        (
            ["--public"],
            "Whoever reaches this address may chat and send pictures. One address gets 30 answers",
        ),
        (
            ["--share", "--train"],
            "Whoever reaches this address may chat, send pictures, train and bring",
        ),
        (["--host", "0.0.0.0"], "60 uploads an hour. --auth USER:PASS asks for a password."),
        (["--public", "--auth", "me:secret"], "Who knows the password may chat and send pictures."),
    ],
)
def test_a_line_at_start_says_what_strangers_may(argv: list[str], sentence: str) -> None:
    line = describe_access(place(*argv))
    assert sentence in line and "secret" not in line
    assert ("--public" in line) == (not place(*argv).public)
    assert ("--auth" in line) == (place(*argv).public and place(*argv).auth is None)


def test_password_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMA_ADAPTER_AUTH", "me:secret")
    assert place().auth == "me:secret" and place("--auth", "you:other").auth == "you:other"
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "secret" not in capsys.readouterr().out
    monkeypatch.setenv("LLAMA_ADAPTER_AUTH", "secret")
    with pytest.raises(SystemExit):
        parse([])
    assert "secret" not in capsys.readouterr().err


def test_replicas_are_a_number_or_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--cluster", "local"]).replicas == (1, 1)
    assert parse(["--cluster", "auto", "--replicas", "3"]).replicas == (3, 3)
    assert parse(["--cluster", "auto", "--replicas", "1-4"]).replicas == (1, 4)
    for wrong in ("0", "4-1", "-1", "a", "1-", "-", ""):
        with pytest.raises(SystemExit):
            parse(["--cluster", "auto", f"--replicas={wrong}"])
        assert "replicas are a number" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["--replicas", "2"])
    assert "--replicas needs --cluster" in capsys.readouterr().err


def test_a_cluster_without_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import app

    monkeypatch.delitem(sys.modules, "adapter.cluster.engine", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LoadError, match=r"pip install '\.\[cluster\]'"):
        app.import_cluster()


# ZeroGPU without a process: outside of its Spaces the decorator does nothing.


def undecorated(task: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    return task


@pytest.fixture
def store(tmp_path: Path, tiny_fingerprint: Any) -> AdapterStore:
    save_adapter(random_adapter(tiny_fingerprint, 1), tmp_path / "one")
    save_adapter(random_adapter(tiny_fingerprint, 2), tmp_path / "two")
    return AdapterStore(tmp_path)


def request_for(text: str = "hello", tokens: int = 12, penalty: float = 1.0, **more: Any) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_new_tokens=tokens, repetition_penalty=penalty)
    return GenerationRequest((Message("user", text),), sampling=sampling, **more)


def answer_ids(engine: Any, request: GenerationRequest) -> list[int]:
    return [event.token_id for event in engine.submit(request) if event.token_id is not None]


def test_zero_gpu_engine_equals_engine(tiny_base: Any, store: AdapterStore) -> None:
    engine, zero_engine = Engine(tiny_base, store), ZeroGpuEngine(tiny_base, store, undecorated, gr.Error)
    try:
        for request in [
            request_for(),
            request_for(adapter="one"),
            request_for(adapter="two", strength=0.5, mix=(("one", 1.5),)),
        ]:
            given = answer_ids(zero_engine, request)
            assert given == answer_ids(engine, request) and len(given) == 12
            if request.adapter:
                mine, theirs = engine.inspect(request, given), zero_engine.inspect(request, given)
                torch.testing.assert_close(mine.logprobs, theirs.logprobs)
                torch.testing.assert_close(mine.shares, theirs.shares)
        *_, last = zero_engine.submit(request_for())
        assert last.finish_reason == "length" and last.stats is not None
        assert (last.stats.new_tokens, last.stats.prompt_tokens) == (12, 10)
    finally:
        engine.close()
        zero_engine.close()


def test_a_form_about_the_message_reaches_the_worker(tiny_base: Any, store: AdapterStore) -> None:
    with closing(ZeroGpuEngine(tiny_base, store, undecorated, gr.Error)) as zero_engine:
        for message in ("x", "yes, z"):
            events = list(zero_engine.submit(request_for(message, form='start: MESSAGE_WORDS "."')))
            answer = "".join(event.text for event in events)
            assert answer.endswith(".") and answer[:-1] in message


def test_invalid_requests_start_no_worker(tiny_base: Any, store: AdapterStore) -> None:
    engine = Engine(tiny_base, store)

    def no_worker(*_: Any) -> Iterator[Any]:
        raise AssertionError("a worker was asked for")
        yield

    zero_engine = ZeroGpuEngine(tiny_base, store, lambda task, **_: no_worker, gr.Error)
    from PIL import Image

    picture = Image.new("RGB", (8, 8))
    wrong = [
        request_for(adapter="three"),
        request_for("x" * 500),
        request_for(""),
        request_for(adapter="one", image=picture),
    ]
    for request in wrong:
        with pytest.raises(AdapterError) as here:
            engine.submit(request)
        with pytest.raises(type(here.value), match=re.escape(str(here.value))):
            zero_engine.submit(request)
        with pytest.raises(type(here.value), match=re.escape(str(here.value))):
            zero_engine.inspect(request, [1])
    engine.close()


def test_requested_gpu_time_follows_max_tokens(tiny_base: Any, store: AdapterStore) -> None:
    gpu_seconds: list[float] = []

    def gpu(task: Callable[..., Any], duration: Callable[..., float]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Iterator[Any]:
            gpu_seconds.append(duration(*arguments))
            yield from task(*arguments)

        return run

    zero_engine = ZeroGpuEngine(tiny_base, store, gpu, gr.Error)
    for tokens in (1, 100, 2000):
        list(zero_engine.submit(request_for(tokens=tokens)))
    zero_engine.close()
    assert (
        gpu_seconds == sorted(gpu_seconds) and gpu_seconds[0] < gpu_seconds[1] and gpu_seconds[-1] <= MAX_SECONDS
    )


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (gr.Error("Your quota is spent. Try again in 1:00:00.", title="ZeroGPU quota exceeded"), Busy, "1:00:00"),
        (gr.Error("GPU task aborted", title="ZeroGPU worker error"), AdapterError, "taken away"),
        (RuntimeError("secret /home/x"), AdapterError, "went wrong"),
    ],
)
def test_gpu_errors_are_reported(
    tiny_base: Any, store: AdapterStore, error: Exception, kind: type[Exception], words: str
) -> None:
    def fails(*_: Any) -> Iterator[Any]:
        raise error
        yield

    zero_engine = ZeroGpuEngine(tiny_base, store, lambda task, **_: fails, gr.Error)
    with pytest.raises(kind, match=words) as raised:
        list(zero_engine.submit(request_for()))
    assert "secret" not in str(raised.value) and type(raised.value) is kind
    with pytest.raises(kind, match=words):
        zero_engine.inspect(request_for(adapter="one"), [1])
    zero_engine.close()


def test_cancel_ends_reader_and_worker(tiny_base: Any, store: AdapterStore) -> None:
    ended = threading.Event()

    def gpu(task: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(*arguments: Any) -> Iterator[Any]:
            try:
                yield from task(*arguments)
            finally:
                ended.set()

        return run

    zero_engine = ZeroGpuEngine(tiny_base, store, gpu, gr.Error)
    answer = zero_engine.submit(request_for(tokens=100))
    next(answer)
    answer.cancel()
    *_, last = answer
    assert last.finish_reason == "cancelled" and ended.wait(PATIENCE)
    zero_engine.close()
    with pytest.raises(Busy):
        zero_engine.submit(request_for())


def test_overflow_in_a_worker_is_told(tiny_base: Any, store: AdapterStore, tiny_fingerprint: Any) -> None:
    bomb = random_adapter(tiny_fingerprint, 3)
    with torch.no_grad():
        bomb.prompts.copy_(bomb.prompts.sign() * 1e38)
    save_adapter(bomb, store.folders[0] / "bomb")
    with closing(ZeroGpuEngine(tiny_base, store, undecorated, gr.Error)) as zero_engine:
        with pytest.raises(AdapterError, match="'bomb' makes the model's numbers overflow"):
            list(zero_engine.submit(request_for(adapter="bomb")))
        with pytest.raises(AdapterError, match="'bomb' makes the model's numbers overflow"):
            zero_engine.inspect(request_for(adapter="bomb"), [1])


def test_answer_may_be_freed_while_its_event_is_delivered(tiny_base: Any, store: AdapterStore) -> None:
    """By the garbage collector, in the thread that delivers and holds the answer's lock."""
    pending = _PendingAnswer(GenerationRequest(), 1)
    answers = [Answer(pending.mailbox, pending.cancel)]

    def deliver() -> None:
        with pending._lock:
            answers.clear()

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive() and pending.ended


def test_base_is_loaded_in_bfloat16_only(tiny_folder: Path) -> None:
    with pytest.raises(LoadError, match="leave --quantization out"):
        load_for_zero_gpu(str(tiny_folder), "nf4")
    assert load_for_zero_gpu(str(tiny_folder), "auto").model.dtype == torch.bfloat16


# The stand-in, which has to be as strict as the package that it stands for.

FAKE_SPACES_PROGRAM = """
import spaces, os, threading
state = []
@spaces.GPU
def work(value):
    state.append(value)
    yield os.getpid(), list(state)
    yield threading.Lock() if value == "lock" else value
    if value == "fail":
        raise ValueError("no")
first = list(work("a"))
second = list(work("b"))
assert first[0][0] != os.getpid() != second[0][0] and not state, "it runs elsewhere, and nothing comes back"
assert first[0][1] == ["a"] and second[0][1] == ["b"], "each from what was zero_engine at the fork"
def outcome(value):
    try:
        list(work(value))
    except Exception as error:
        return type(error).__name__, getattr(error, "title", "")
assert outcome(lambda: 0)[0] == "PicklingError"
assert outcome("lock") == ("Error", "ZeroGPU worker error") == outcome("fail")
print("right")
"""


@pytest.mark.slow
def test_fake_spaces_forks_and_pickles() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/fake_spaces"), "SPACES_ZERO_GPU": "true"}
    done = subprocess.run(
        [sys.executable, "-c", FAKE_SPACES_PROGRAM], env=environment, capture_output=True, timeout=PATIENCE
    )
    assert done.stdout == b"right\n", done.stderr.decode()


# Real processes.


@contextlib.contextmanager
def space(folder: Path, base: Path, *arguments: str, **environment: str) -> Iterator[AppProcess]:
    """The program over a tiny base, with an empty home folder and just this environment."""
    cache = folder / "cache"
    cache.mkdir()
    encoder = embedded.encoder_weights().parent
    (cache / encoder.name).symlink_to(encoder)
    inherited = {"PATH": os.environ["PATH"], "HOME": str(folder), "LLAMA_ADAPTER_CACHE": str(cache)}
    environment |= {"FAKE_SPACES_LOG": str(folder / "spaces"), "OMP_NUM_THREADS": "1"}
    with app_process(
        folder, "--base", str(base), *arguments, inherited=inherited, environment=environment
    ) as server:
        yield server


def events(server: AppProcess) -> list[dict[str, Any]]:
    """The log of the fake `spaces`."""
    log = server.folder / "spaces"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.slow
def test_space_without_gpu(tmp_path: Path, tiny_folder: Path) -> None:
    from gradio_client.exceptions import AppError

    with space(tmp_path, tiny_folder, **SPACE) as server:
        # Behind the proxy: https, the Space's own name, and visitors with addresses.
        proxied = {
            "Host": "me-page.hf.space",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "me-page.hf.space",
        }
        response = server.get("/config", headers=proxied)
        assert "frame-ancestors 'self' https://huggingface.co" in response.headers["content-security-policy"]
        config = response.json()
        assert config["root"] == "https://me-page.hf.space"
        parts = {component["props"].get("elem_id") for component in config["components"]}
        assert "compare" in parts and not parts & {"adapter-upload", "train", "train-start", "train-upload"}
        # The address that counts is the last one that no proxy of the Space's network has.
        mine = {"X-Forwarded-For": "8.8.8.8, 203.0.113.7, 10.1.2.3"}
        crowd = ANSWERS_PER_MINUTE + 8
        with ThreadPoolExecutor(crowd) as pool:
            done = list(pool.map(lambda _: server.complete(headers=mine, tokens=1), range(crowd)))
        refused = [r for r in done if r.status_code == 429]
        assert 0 < len(refused) < crowd and int(refused[0].headers["retry-after"]) >= 1
        there = server.client(headers=mine)
        jobs = [there.submit(message="hi", max_tokens=1, api_name="/chat") for _ in range(crowd)]
        errors = [str(error) for job in jobs if (error := job.exception()) is not None]
        assert errors and all("address" in error for error in errors), "the page's answers are counted, too"
        assert server.complete(headers={"X-Forwarded-For": "203.0.113.8"}, tokens=1).status_code == 200
        # A file that is only named is not fetched.
        named = {"path": "https://example.com/x.png", "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(AppError, match="nothing is fetched"):
            server.client().predict(message="hi", image=named, api_name="/chat")


@pytest.fixture(scope="module")
def zero_base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_base(tiny_folder, tmp_path_factory.mktemp("base") / "endless")


@pytest.fixture(scope="module")
def zero(zero_base: Path, tiny_fingerprint: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppProcess]:
    """A ZeroGPU Space whose workers are reused, with the adapters `one`, `two` and the visual `sees`."""
    folder = tmp_path_factory.mktemp("zero")
    vision = VisionConfig(embedded.ENCODER, feature_size=EMBEDDED_FEATURES, hidden=8)
    for seed, (name, sees) in enumerate((("one", None), ("two", None), ("sees", vision))):
        save_adapter(random_adapter(tiny_fingerprint, seed, vision=sees), folder / "more" / name)
    environment = {"SPACES_ZERO_GPU": "true", "PYTHONPATH": str(ROOT / "tests/fake_spaces")}
    arguments = zero_base, "--adapters", str(folder / "more")
    with space(folder, *arguments, FAKE_SPACES_REUSE="1", **environment, **SPACE) as server:
        yield server


@pytest.fixture(scope="module")
def plain(zero: AppProcess, zero_base: Path) -> Iterator[Engine]:
    """The engine in this process, on the same base."""
    engine = Engine(load_for_zero_gpu(str(zero_base), "auto"), AdapterStore(zero.folder / "more"))
    yield engine
    engine.close()


def answer_without_cache(engine: Engine, request: GenerationRequest) -> str:
    """The answer of a new engine: a cached prefix would come from another order of summation."""
    fresh = Engine(engine.base, engine.store)
    try:
        return "".join(event.text for event in fresh.submit(request))
    finally:
        fresh.close()


@pytest.mark.slow
def test_zero_gpu_space_equals_engine(zero: AppProcess, plain: Engine) -> None:
    from gradio_client import handle_file

    from adapter.base.image_file import open_image

    launch = events(zero)[0]
    assert launch == {"event": "launch", "decorated": 1, "loaded": True}, "all is on the GPU before the launch"
    client = zero.client()
    for name, more in [("", {}), ("one", {"strength": 0.7}), ("sees", {"image": handle_file(str(COFFEE))})]:
        given = client.predict(message="What is this?", adapter=name, api_name="/chat", **GREEDY, **more)
        picture = open_image(COFFEE) if name == "sees" else None
        strength = more.get("strength", 1.0)
        request = request_for(
            "What is this?", penalty=PAGE_PENALTY, adapter=name or None, image=picture, strength=strength
        )
        assert given == answer_without_cache(plain, request)
    begun = [event for event in events(zero) if event["event"] == "begin"]
    assert [e["event"] for e in events(zero)].count("fork") < len(begun), "a worker was used again"
    assert begun[0]["bytes"] + 1000 < begun[1]["bytes"], "adapters travel with the question"


@pytest.mark.slow
def test_zero_gpu_concurrent_visitors_have_their_own_adapters(zero: AppProcess) -> None:
    def answer_of(name: str) -> str:
        return zero.answer("Who are you?", name, tokens=600)  # time enough for both to be under way

    alone = [answer_of("base"), answer_of("one")]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(answer_of, ("base", "one")))
    assert together == alone and alone[0] != alone[1]
    order = [e["event"] for e in events(zero) if e["event"] in ("begin", "end")]
    latest = len(order) - 1 - order[::-1].index("begin")
    assert order[latest - 1] == "begin", "the second began before the first had ended"


@pytest.mark.slow
def test_zero_gpu_adapter_added_after_the_fork_is_found(zero: AppProcess) -> None:
    zero.complete()  # there is a worker now
    before = len(events(zero))
    shutil.copytree(zero.folder / "more/one", zero.folder / "more/late")
    assert zero.answer(model="late") == zero.answer(model="one")
    assert not [e for e in events(zero)[before:] if e["event"] == "fork"]


@pytest.mark.slow
def test_zero_gpu_invalid_requests_take_no_gpu(zero: AppProcess) -> None:
    def scheduled() -> int:
        return sum(event["event"] == "schedule" for event in events(zero))

    before = scheduled()
    assert zero.complete(model="nobody").status_code == 404
    assert zero.complete("9 " * 10_001).status_code == 400
    assert zero.complete(temperature=9).status_code == 400
    assert scheduled() == before


@pytest.mark.slow
def test_zero_gpu_exhausted_quota_is_reported(zero: AppProcess) -> None:
    from gradio_client.exceptions import AppError

    refused = zero.complete(headers={"X-IP-Token": "spent"})
    assert refused.status_code == 429 and "exceeded your free ZeroGPU quota" in refused.text
    with pytest.raises(AppError, match="no GPU for this answer now.*1:00:00"):
        zero.client(headers={"X-IP-Token": "spent"}).predict(message="hi", api_name="/chat")
    assert zero.client(headers={"X-IP-Token": "rich"}).predict(message="hi", max_tokens=1, api_name="/chat")
    assert events(zero)[-1]["event"] in ("begin", "end")
    assert [e for e in events(zero) if e.get("token") == "rich"], "spaces is told who asks"


def streaming(server: AppProcess, seen: list[str]) -> None:
    body = {"model": "base", "stream": True, "max_tokens": 800, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "Tell me a very long story about a fox and a bear."}]
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE) as response:
        for line in response.iter_lines():
            seen.append(line)
            if len(seen) > 400 or "error" in line or "[DONE]" in line:
                return


@pytest.mark.slow
def test_zero_gpu_recovers_from_a_dead_worker(zero: AppProcess) -> None:
    expected = zero.complete().json()["choices"][0]["message"]["content"]
    seen: list[str] = []
    reader = threading.Thread(target=streaming, args=(zero, seen))
    reader.start()
    zero.wait_until(lambda: len(seen) > 8)
    worker = next(e["pid"] for e in reversed(events(zero)) if e["event"] == "begin")
    os.kill(worker, signal.SIGKILL)
    reader.join(PATIENCE)
    assert not reader.is_alive() and "taken away" in next(line for line in reversed(seen) if line)
    assert zero.complete().json()["choices"][0]["message"]["content"] == expected
    assert [e for e in events(zero) if e["event"] == "abort" and e["pid"] == worker]


@pytest.mark.slow
def test_zero_gpu_disconnect_frees_the_gpu(zero: AppProcess) -> None:
    body = {"model": "base", "stream": True, "max_tokens": 2000}
    body["messages"] = [{"role": "user", "content": "Tell me a very long story about a fox and a bear."}]
    before = len(events(zero))
    with httpx.stream("POST", f"{zero.url}/v1/chat/completions", json=body, timeout=PATIENCE) as response:
        lines = response.iter_lines()
        for _ in range(8):
            next(lines)
    zero.wait_until(lambda: [e for e in events(zero)[before:] if e["event"] == "end"])
    last = [e for e in events(zero)[before:] if e["event"] == "begin"][-1]
    assert zero.complete().status_code == 200
    assert Path(f"/proc/{last['pid']}").exists(), "it waits for the next question"


@pytest.mark.slow
def test_ctrl_c_ends_zero_gpu_workers(zero: AppProcess) -> None:
    seen: list[str] = []
    reader = threading.Thread(target=_quietly, args=(streaming, zero, seen))
    reader.start()
    zero.wait_until(lambda: len(seen) > 8)
    pids = {e["pid"] for e in events(zero) if "pid" in e}
    zero.process.send_signal(signal.SIGINT)
    assert zero.process.wait(PATIENCE) == 0
    wait_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])
    log = zero.log.replace("`spaces` package is required to run hot-reloading", "")
    assert "Traceback" not in log.split("Open http")[-1]


def _quietly(work: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(httpx.HTTPError):
        work(*arguments)


# The end.


@pytest.mark.slow
def test_ctrl_c_while_streaming_exits_cleanly(tiny_folder: Path, tmp_path: Path) -> None:
    base = endless_base(tiny_folder, tmp_path / "base")
    with space(tmp_path, base) as server:
        seen: list[str] = []
        threading.Thread(target=_quietly, args=(streaming, server, seen), daemon=True).start()
        job = server.client().submit(message="hello", max_tokens=2000, api_name="/chat")
        server.wait_until(lambda: len(seen) > 3 and len(job.outputs()) > 1)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        ours = server.log.split("Open http")[1]
        assert not re.search("Traceback|terminate|Error|Exception", ours), ours


@pytest.mark.slow
def test_sigterm_while_loading_exits_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, "app.py", "--port", str(free_port())]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = b""
    while b"Open http" not in said:
        said += process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and b"Traceback" not in rest and b"terminate" not in rest, rest.decode()


# The log.

PROGRAM = r"""
import logging
from adapter.server.deployment import set_up_logs
attack = "nobody\nERROR adapter: forged\r\x1b[2J\u202e\ud800"
logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
set_up_logs()
log = logging.getLogger("adapter.server")
log.warning("There is no '%s'", attack)
try:
    raise ValueError(attack)
except ValueError:
    log.exception("failed")
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.propagate = True
    logging.getLogger("uvicorn").propagate = False
    uvicorn.exception("failed")
"""


def test_the_log_is_not_forged() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, timeout=PATIENCE)
    lines = ended.stderr.decode().splitlines()
    assert ended.returncode == 0 and [line for line in lines if not line.startswith("  ")] == [
        r"WARNING adapter.server: There is no 'nobody\nERROR adapter: forged\r\x1b[2J\u202e\ud800'",
        "ERROR adapter.server: failed",
        "ERROR uvicorn.error: failed",
    ]
    assert all(line.isprintable() for line in lines) and sum("forged" in line for line in lines) == 3
