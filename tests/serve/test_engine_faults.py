"""What goes wrong in one row, one reader or one step: whom it reaches, and whom it must not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import linecache
import threading
import weakref
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from adapter.base.template import Message
from adapter.errors import AdapterError, Busy, EngineBroken, LoadError
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import save_adapter
from adapter.method.config import BaseFingerprint, TuningConfig, VisionConfig
from adapter.method.vision import VisualFeatures
from adapter.serve import engine as engine_module
from adapter.serve import prompts as prompts_module
from adapter.serve.batch import DecodeBatch
from adapter.serve.compiled.forward import CompiledForward
from adapter.serve.detokenizer import Detokenizer
from adapter.serve.engine import MAX_FAILURES, Engine
from adapter.serve.forward import TorchForward
from adapter.serve.inspection import CLOSED
from adapter.serve.kv_cache import PrefixCache
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import Sampler, SamplingParams
from adapter.serve.scheduler import Scheduler
from adapter.serve.store import AdapterStore
from tests.app_process import PATIENCE, wait_until
from tests.tiny_models import random_adapter

GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
HONEST = [
    GenerationRequest((Message("user", question),), name, sampling=replace(GREEDY, max_new_tokens=tokens))
    for question in ("hi", "a longer question than that")
    for name, tokens in ((None, 40), ("one", 30), ("two", 20))
]
ENDLESS = GenerationRequest((Message("user", "go on"),), sampling=replace(GREEDY, max_new_tokens=100))
PICTURE = Image.new("RGB", (8, 8))


def bombs(fingerprint: BaseFingerprint) -> dict[str, Adapter]:
    """Adapters with finite weights, from whose products infinite numbers come."""
    tuning = TuningConfig(64, norms=True, bias=True, scale=True, lora_rank=2)
    prompts, gates = random_adapter(fingerprint, 2), random_adapter(fingerprint, 2, gate_activation="identity")
    tuned = random_adapter(fingerprint, 2, tuning=tuning)
    visual = random_adapter(fingerprint, 2, vision=VisionConfig(encoder="any", feature_size=6, hidden=5))
    assert tuned.tuning is not None and visual.projection is not None
    large = [prompts.prompts, gates.gates, *tuned.tuning.parameters(), *visual.projection.parameters()]
    with torch.no_grad():
        for tensor in large:
            tensor.copy_((torch.rand_like(tensor) + 1) * 1e38)
    return {"bomb": prompts, "loud": gates, "tuned": tuned, "see": visual}


@pytest.fixture
def served_base(request, tiny_base):
    """fp32, or what a test asks for."""
    return request.getfixturevalue(request.param) if hasattr(request, "param") else tiny_base


@pytest.fixture
def engine(tmp_path, served_base, tiny_fingerprint):
    honest = {name: random_adapter(tiny_fingerprint, seed) for seed, name in enumerate(("one", "two"))}
    for name, adapter in {**honest, **bombs(tiny_fingerprint)}.items():
        save_adapter(adapter, tmp_path / name)
    encoder = SimpleNamespace(encode=lambda images, **_: VisualFeatures(torch.randn(1, 6)))
    with closing(Engine(served_base, AdapterStore(tmp_path), {"any": encoder})) as engine:
        yield engine


def tokens_of(answer):
    return [event.token_id for event in answer if event.token_id is not None]


@pytest.fixture
def alone(engine):
    """What each of HONEST gets with nobody beside it."""
    return [tokens_of(engine.submit(request)) for request in HONEST]


@pytest.fixture
def check_honest(engine, alone):
    """Submits HONEST with `attacks` in between; the honest must get what they get alone, then and afterwards.

    Returns the attacks' ends, in order: events or the error that was raised.
    """

    def check(*attacks: GenerationRequest) -> list[Any]:
        answers, ends, rest = [], [], list(attacks)
        for request in HONEST:
            answers.append(engine.submit(request))
            ends += [engine.submit(attack) for attack in rest[:2]]
            del rest[:2]
        ends += [engine.submit(attack) for attack in rest]
        assert [tokens_of(answer) for answer in answers] == alone
        for index, answer in enumerate(ends):
            try:
                ends[index] = list(answer)
            except AdapterError as error:
                ends[index] = error
        assert [tokens_of(engine.submit(request)) for request in HONEST] == alone
        wait_until(lambda: not engine._open and not engine._scheduler.has_work)
        assert engine.failure is None and not len(engine._batch) and not len(engine._scheduler._slots)
        return ends

    return check


def run_in_thread(work):
    """Fails if `work` does not end: it waits for a lock that it holds."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "deadlock"


# Numbers that overflow.


def cached_kv(engine):
    return [engine._prefix_cache._entries.get(key) for key in engine._prefix_cache._entries]


@pytest.mark.parametrize("served_base", ["tiny_base", "packed_base"], indirect=True)
def test_an_overflowing_adapter_reaches_no_other_row(engine, check_honest):
    bomb = replace(HONEST[0], adapter="bomb")
    attacks = [
        bomb,
        replace(bomb, messages=(), prompt_ids=tuple(range(90))),  # in two chunks
        replace(bomb, adapter="one", mix=(("bomb", 0.5),)),
        *(replace(bomb, adapter=name) for name in ("loud", "tuned")),
        replace(bomb, adapter="see", image=PICTURE),
    ]
    who = ["Adapter 'bomb' makes"] * 2 + ["Adapters 'one' and 'bomb' together make"]
    who += [f"Adapter '{name}' makes" for name in ("loud", "tuned", "see")]
    what = "the model's numbers overflow. Choose another adapter or a lower strength."
    assert [str(end) for end in check_honest(*attacks, *attacks)] == [f"{name} {what}" for name in who] * 2
    assert len(engine._prefix_cache) and all(kv.isfinite().all() for kv in cached_kv(engine))


def test_nothing_that_overflowed_is_kept_of_a_prompt_that_was_read_in_part(engine, monkeypatch):
    """Cancelled between two chunks, whose logits nobody samples from."""
    forward, answers = TorchForward.__call__, []

    def cancelling_forward(*arguments):
        answers[0].cancel()
        return forward(*arguments)

    monkeypatch.setattr(TorchForward, "__call__", cancelling_forward)
    request = replace(HONEST[0], messages=(), prompt_ids=tuple(range(90)), adapter="bomb")
    with engine._lock:  # the worker starts when the answer is in its place
        thread = threading.Thread(target=lambda: answers.append(engine.submit(request)), daemon=True)
        thread.start()
    wait_until(lambda: answers and not engine._open)
    assert all(kv.isfinite().all() for kv in cached_kv(engine))


def test_the_inspector_and_compare_tell_an_overflow(engine):
    with pytest.raises(AdapterError, match="'bomb' makes"):
        engine.inspect(replace(HONEST[0], adapter="bomb"), [5, 6])
    honest, bomb = engine.compare(HONEST[1], ["one", "bomb"])
    with pytest.raises(AdapterError, match="'bomb' makes"):
        list(bomb)
    assert tokens_of(honest) == tokens_of(engine.submit(HONEST[1]))


# Failures in what the worker does for one row.

MARKED = replace(ENDLESS, stop=("~mark~",), sampling=replace(ENDLESS.sampling, seed=77))  # the one that is struck
# Where a row is struck: what is called for it, and how the call of the marked row is told from others.
CALLS = itertools.count()
TEXT = Detokenizer, "push", lambda detokenizer, _: detokenizer._stop
STEP = Scheduler, "postprocess", lambda _, row, token: row.request.stop and row.new_tokens == 3
# Every third time, so in a decode step too.
SAMPLING = Sampler, "inputs", lambda sampler, *_: sampler.params.seed == 77 and next(CALLS) % 3 == 2
DRAFT = engine_module, "_draft", lambda row, rows: row.request.stop and row.new_tokens == 2
JOIN = DecodeBatch, "join", lambda batch, row: row.request.stop
PREFILL = Engine, "_prefill", lambda engine, row: row.request.stop


@pytest.mark.parametrize(
    "place, error, sentence",
    [
        (TEXT, RuntimeError("secret /home/x"), r"failed on this request \(RuntimeError\). Try again."),
        (STEP, FloatingPointError("secret"), "The base's numbers overflow"),
        (SAMPLING, MemoryError("secret"), "not enough memory"),
        (SAMPLING, IndexError("secret"), r"failed on this request \(IndexError\)"),
        (DRAFT, MemoryError("secret"), "not enough memory"),
        (JOIN, MemoryError("secret"), "not enough memory"),
        (PREFILL, torch.OutOfMemoryError("secret"), "not enough memory"),
        (PREFILL, Busy("no place"), "no place"),
    ],
)
def test_an_exception_in_one_row_ends_that_row(check_honest, monkeypatch, place, error, sentence):
    target, name, is_struck = place
    original = getattr(target, name)

    def struck(*arguments):
        if is_struck(*arguments):
            raise error
        return original(*arguments)

    monkeypatch.setattr(target, name, struck)
    for end in check_honest(*[MARKED] * (2 * MAX_FAILURES)):
        with pytest.raises(AdapterError, match=sentence):
            raise end
        assert "secret" not in str(end)


def test_rows_with_the_same_prompts_share_one_copy_which_is_counted(packed_base, tmp_path, monkeypatch):
    tuned = random_adapter(packed_base.fingerprint, 1, tuning=TuningConfig(64, norms=True, lora_rank=4))
    save_adapter(tuned, tmp_path / "tuned")
    reserved, prepare = [], CompiledForward.prepare
    requests = [replace(ENDLESS, adapter="tuned", strength=s) for s in (0.5, 0.5, 1.5, 0.5)]
    with closing(Engine(packed_base, AdapterStore(tmp_path))) as engine:
        monkeypatch.setattr(
            CompiledForward, "prepare", lambda *a: reserved.append(engine._prefix_cache._reserved) or prepare(*a)
        )
        expected = [tokens_of(engine.submit(request)) for request in requests]
        wait_until(lambda: not engine._prepared)  # a row that has ended holds none
        assert len(reserved) == 4
        with monkeypatch.context() as patched:
            patched.setattr("adapter.serve.scheduler.MAX_ROWS", 0)
            answers = [engine.submit(request) for request in requests]
        engine._wake.put(None)  # all four start at once
        assert [tokens_of(answer) for answer in answers] == expected
        assert len(reserved) == 6 and min(reserved[4:]) > max(reserved[:4])


def test_an_answer_whose_kv_cannot_be_kept_is_given(check_honest, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(PrefixCache, "add", no_memory)
    check_honest()


def test_a_reader_whose_event_loop_is_closed_disturbs_nobody(engine, check_honest):
    loop = asyncio.new_event_loop()
    left = engine.submit(ENDLESS)
    events = left.async_event_lists(0.0)
    loop.run_until_complete(anext(events))
    loop.close()
    check_honest()
    left.close()


# Failures that last.


@pytest.mark.parametrize(
    "of, name, error",
    [
        (TorchForward, "__call__", RuntimeError),
        (TorchForward, "__call__", SystemExit),
        (Scheduler, "schedule", MemoryError),
        (Scheduler, "reset", RuntimeError),
    ],
    ids=["pass", "exit", "schedule", "restart"],
)
def test_an_engine_that_fails_for_ever_says_so_at_once(engine, monkeypatch, of, name, error):
    calls = []

    def fail(*_):
        calls.append(None)
        raise error("secret")

    if name == "reset":
        monkeypatch.setattr(TorchForward, "__call__", fail)
    monkeypatch.setattr(of, name, fail)
    answers = []
    for request in (*HONEST, *HONEST):
        with contextlib.suppress(EngineBroken):
            answers.append(engine.submit(request))
    for answer in answers:
        with pytest.raises(AdapterError, match="Try again|start it again"):
            list(answer)
    for _ in range(MAX_FAILURES):  # rows that started together have failed together, perhaps all in one step
        with pytest.raises(AdapterError, match="Try again|start it again"):
            list(engine.submit(HONEST[0]))
    engine._worker.join(PATIENCE)
    assert not engine._worker.is_alive() and len(calls) <= 4 * MAX_FAILURES
    for again in (lambda: engine.submit(HONEST[0]), lambda: engine.inspect(HONEST[1], [5])):
        with pytest.raises(EngineBroken, match="start it again"):
            again()
    assert "start it again" in str(engine.failure) and not engine._open


def test_failures_that_pass_do_not_break_the_engine(engine, alone, monkeypatch):
    """Each time one fewer than break it: a prefill fails, and then the base itself that is asked in its place."""
    forward, left = TorchForward.__call__, []

    def failing(*arguments):
        if left:
            raise left.pop()
        return forward(*arguments)

    monkeypatch.setattr(TorchForward, "__call__", failing)
    for _ in range(3):
        left.extend([RuntimeError()] * 2 * (MAX_FAILURES - 1))
        for _ in range(MAX_FAILURES - 1):
            with pytest.raises(AdapterError, match="Try again"):
                list(engine.submit(HONEST[0]))
        wait_until(lambda: not left)
        assert [tokens_of(engine.submit(request)) for request in HONEST] == alone
    assert engine.failure is None


# Answers that the garbage collector frees.


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "running"])
def test_an_answer_may_be_freed_in_a_thread_that_holds_the_engines_lock(engine, monkeypatch, waits):
    monkeypatch.setattr("adapter.serve.scheduler.MAX_ROWS", 1)
    running = engine.submit(ENDLESS)
    next(running)
    waiting = engine.submit(ENDLESS)
    wait_until(lambda: len(engine._scheduler.waiting) == 1)
    freed = [waiting if waits else running]
    kept = [running if waits else waiting]
    del running, waiting

    def free():
        with engine._lock:
            freed.clear()
            assert len(engine._open) == 2  # nothing was changed under the one who holds the lock

    run_in_thread(free)
    assert tokens_of(kept.pop())
    wait_until(lambda: not engine._open and not engine._scheduler.has_work)


def test_an_answer_may_be_freed_in_the_worker(engine, monkeypatch):
    schedule, freed = Scheduler.schedule, []

    def collecting_schedule(scheduler, now):
        if len(freed) < 4:
            gc.collect()
        return schedule(scheduler, now)

    monkeypatch.setattr(Scheduler, "schedule", collecting_schedule)
    gc.disable()
    try:
        for _ in range(4):
            answer = engine.submit(ENDLESS)
            weakref.finalize(answer, lambda: freed.append(threading.current_thread()))
            cycle = [answer]
            cycle.append(cycle)  # only the garbage collector frees it
            del answer, cycle
        run_in_thread(lambda: tokens_of(engine.submit(HONEST[0])))
    finally:
        gc.enable()
    assert freed == [engine._worker] * 4
    wait_until(lambda: not engine._open and not engine._scheduler.has_work)


def test_a_cancelled_answer_frees_its_place_before_its_picture_is_encoded(engine, monkeypatch):
    """Requests with pictures wait for their encoding; those whose reader has gone are not encoded."""
    encoding, built = threading.Event(), []

    def slow_build(adapters, image, *rest):
        built.append(image)
        assert encoding.wait(PATIENCE)

    monkeypatch.setattr(engine.prompts, "build", slow_build)
    answers = [engine.submit(replace(HONEST[1], adapter="see", image=PICTURE)) for _ in range(4)]
    for answer in answers[1:]:
        answer.cancel()
    encoding.set()
    assert tokens_of(answers[0])
    for answer in answers[1:]:
        assert list(answer)[-1].finish_reason == "cancelled"
    assert len(built) == 1


def test_closing_does_not_wait_for_a_download(engine, monkeypatch):
    asked, downloaded = threading.Semaphore(0), threading.Event()

    def download(*_):
        asked.release()
        assert downloaded.wait(PATIENCE)
        raise LoadError("no encoder")

    monkeypatch.setattr(prompts_module, "load_encoder", download)
    monkeypatch.setattr(engine.prompts, "_loaded_encoders", {})
    request, ends = replace(HONEST[0], adapter="see", image=PICTURE), []

    def ask(read):
        with pytest.raises(AdapterError) as caught:
            read()
        ends.append(str(caught.value))

    readers = [
        threading.Thread(target=ask, args=[read], daemon=True)
        for read in (lambda: list(engine.submit(request)), lambda: engine.inspect(request, [5]))
    ]
    readers[0].start()
    asked.acquire()  # the inspection waits for the same encoder
    readers[1].start()
    run_in_thread(engine.close)
    readers[0].join(PATIENCE)
    assert ends == [CLOSED] and not downloaded.is_set()
    downloaded.set()
    readers[1].join(PATIENCE)
    assert len(ends) == 2


# Exceptions from outside, such as those of tests/faulty_app.py.


def test_an_exception_at_any_line_of_the_worker_leaves_no_reader_without_an_end(tmp_path, tiny_base):
    """A trace function raises it: before each line of the engine that the worker runs for two answers."""
    request = replace(HONEST[0], sampling=replace(GREEDY, max_new_tokens=2))

    def ends(engine: Engine) -> list[str]:
        answers, found = [engine.submit(request) for _ in range(2)], []

        def read() -> None:
            for answer in answers:
                try:
                    found.append(str(list(answer)[-1].finish_reason))
                except AdapterError as error:
                    found.append(str(error))

        run_in_thread(read)
        wait_until(lambda: not engine._open)
        return found

    def struck_at(target: int) -> bool:
        """Whether the worker came as far as its line number `target`."""
        lines, over = 0, False

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal lines
            if frame.f_code.co_filename != engine_module.__file__ or threading.current_thread().name != "engine":
                return None
            # Python takes and gives back a lock without room for an exception; a trace function would find some.
            takes_lock = "with self._lock" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            lines += event == "line" and not takes_lock
            if lines == target and not takes_lock and not over:
                raise MemoryError  # which ends the tracing of this thread
            return trace

        threading.settrace(trace)
        try:
            engine = Engine(tiny_base, AdapterStore(tmp_path), cache_bytes=2**20)
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
        with closing(engine):
            assert all(end == "length" or "Try again" in end for end in ends(engine)), target
            struck, over = lines >= target, True
            assert ends(engine) == ["length"] * 2, target
        return struck

    first = 4  # the lines before are run once, at the start of the program
    last = next(target for target in itertools.count(first) if not struck_at(target))
    assert last > first + 50
