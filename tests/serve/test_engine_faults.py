"""What goes wrong in one row, one reader or one step: whom it reaches, and whom it must not."""

import asyncio
import contextlib
import copy
import itertools
import threading
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from adapter.base.template import Message
from adapter.errors import AdapterError, Busy, Closing, EngineBroken, LoadError
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import save_adapter
from adapter.method.config import BaseFingerprint, TuningConfig, VisionConfig
from adapter.method.vision import VisualFeatures
from adapter.serve import engine as engine_module
from adapter.serve import prompts as prompts_module
from adapter.serve import request as request_module
from adapter.serve.detokenizer import Detokenizer
from adapter.serve.engine import MAX_FAILURES, Engine
from adapter.serve.forward import TorchForward
from adapter.serve.kv_cache import PrefixCache
from adapter.serve.request import Answer, GenerationEvent, GenerationRequest, Mailbox, async_event_lists
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
    tuned, quiet = random_adapter(fingerprint, 2, tuning=tuning), copy.deepcopy(gates)
    visual = random_adapter(fingerprint, 2, vision=VisionConfig(encoder="any", feature_size=6, hidden=5))
    assert tuned.tuning is not None and visual.projection is not None
    large = [prompts.prompts, gates.gates, *tuned.tuning.parameters(), *visual.projection.parameters()]
    with torch.no_grad():
        for tensor in large:
            tensor.copy_((torch.rand_like(tensor) + 1) * 1e38)
        quiet.gates.fill_(1e25)  # whose squares alone overflow, in a norm: its output is 0
    return {"bomb": prompts, "loud": gates, "quiet": quiet, "tuned": tuned, "see": visual}


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
def check_honest(engine):
    """Submits HONEST with `attacks` in between; the honest must get what they get alone, then and afterwards.

    Returns the attacks' ends, in order: events or the error that was raised.
    """
    alone = [tokens_of(engine.submit(request)) for request in HONEST]

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
        wait_until(lambda: not engine._open and not engine._scheduler.rows)
        assert engine.failure is None and not engine._scheduler.decoding and not engine._scheduler._slots.tokens
        return ends

    return check


def run_in_thread(work):
    """Fails if `work` does not end: it waits for a lock that it holds."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "deadlock"


# Numbers that overflow.


@pytest.mark.parametrize("served_base", ["tiny_base", "packed_base"], indirect=True)
def test_an_overflowing_adapter_reaches_no_other_row(engine, check_honest):
    bomb = replace(HONEST[0], adapter="bomb")
    attacks = [
        bomb,
        replace(bomb, messages=(), prompt_ids=tuple(range(90))),  # in two chunks
        replace(bomb, adapter="one", mix=(("bomb", 0.5),)),
        *(replace(bomb, adapter=name) for name in ("loud", "quiet", "tuned")),
        replace(bomb, adapter="see", image=PICTURE),
    ]
    who = ["Adapter 'bomb' makes"] * 2 + ["Adapters 'one' and 'bomb' together make"]
    who += [f"Adapter '{name}' makes" for name in ("loud", "quiet", "tuned", "see")]
    what = "the model's numbers overflow. Choose another adapter or a lower strength."
    assert [str(end) for end in check_honest(*attacks, *attacks)] == [f"{name} {what}" for name in who] * 2
    named = str(engine_module._overflow(replace(bomb, adapter="bomb (3fa9c01b22d4)")))  # by a replica
    assert named == f"Adapter 'bomb' makes {what}"
    cache = engine._prefix_cache
    assert list(cache) and all(cache.get(key).isfinite().all() for key in cache)


# Failures in what the worker does for one row.

MARKED = replace(ENDLESS, stop=("~mark~",), sampling=replace(ENDLESS.sampling, seed=77))  # the one that is struck
# Where a row is struck: what is called for it, and how the call of the marked row is told from others.
CALLS = itertools.count()
TEXT = Detokenizer, "push", lambda detokenizer, _: detokenizer._stop
# Every third time, so in a decode step too.
SAMPLING = Sampler, "sample", lambda sampler, _: sampler.params.seed == 77 and next(CALLS) % 3 == 2
DRAFT = engine_module, "_draft", lambda row, rows: row.request.stop and row.new_tokens == 2
PREFILL = Engine, "_prefill", lambda engine, row: row.request.stop


@pytest.mark.parametrize(
    "place, error, sentence",
    [
        (TEXT, RuntimeError("secret /home/x"), r"failed on this request \(RuntimeError\). Try again."),
        (SAMPLING, MemoryError("secret"), "not enough memory"),
        (DRAFT, MemoryError("secret"), "not enough memory"),
        (PREFILL, torch.OutOfMemoryError("secret"), "not enough memory"),
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


def test_an_answer_whose_kv_cannot_be_kept_is_given(check_honest, monkeypatch):
    monkeypatch.setattr(PrefixCache, "add", Mock(side_effect=MemoryError))
    check_honest()


def test_a_reader_whose_event_loop_is_closed_disturbs_nobody(engine, check_honest):
    loop = asyncio.new_event_loop()
    left = engine.submit(ENDLESS)
    events = async_event_lists({0: left}, 0.0)
    loop.run_until_complete(anext(events))
    loop.close()
    check_honest()
    left.close()


def test_all_readers_wake_together(monkeypatch):
    """Each waking takes a core from the engine, whose other threads wait for it."""
    now, wakings = 0.0, []
    monkeypatch.setattr(request_module, "time", SimpleNamespace(monotonic=lambda: now))
    for now in (10.03, 10.08):
        mailbox = Mailbox()
        lists = request_module._next_lists({0: Answer(mailbox, lambda: None)}, 0.1, lambda: None)
        mailbox.put(GenerationEvent(text="at once"))
        assert next(lists) == [(0, GenerationEvent(text="at once"))]
        mailbox.put(GenerationEvent(text="later"))
        wakings.append(now + next(lists))
    assert wakings == pytest.approx([10.1, 10.1])


@pytest.mark.parametrize(
    "of, name, error", [(TorchForward, "__call__", RuntimeError), (Scheduler, "schedule", MemoryError)]
)
def test_an_engine_that_fails_for_ever_says_so_at_once(engine, monkeypatch, of, name, error):
    fail = Mock(side_effect=error)
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
    assert not engine._worker.is_alive() and fail.call_count <= 4 * MAX_FAILURES
    for again in (lambda: engine.submit(HONEST[0]), lambda: engine.inspect(HONEST[1], [5])):
        with pytest.raises(EngineBroken, match="start it again"):
            again()
    assert "start it again" in str(engine.failure) and not engine._open


def test_an_engine_that_has_lacked_memory_for_a_while_goes_on(engine, monkeypatch):
    with monkeypatch.context() as lacking:
        lacking.setattr(TorchForward, "__call__", Mock(side_effect=torch.OutOfMemoryError))
        for _ in range(2 * MAX_FAILURES):
            with pytest.raises(Busy, match="not enough memory"):
                list(engine.submit(HONEST[0]))
    assert list(engine.submit(HONEST[0]))[-1].finish_reason == "length" and engine.failure is None


# Answers that the garbage collector frees.


def test_an_answer_may_be_freed_in_a_thread_that_holds_the_engines_lock(engine, monkeypatch):
    """As in the worker, in the middle of a step."""
    monkeypatch.setattr("adapter.serve.scheduler.MAX_ROWS", 1)
    decode, go = engine._decode, threading.Event()
    monkeypatch.setattr(engine, "_decode", lambda rows: go.wait(PATIENCE) and decode(rows))
    freed = [engine.submit(ENDLESS)]
    next(freed[0])
    kept, marks = [engine.submit(ENDLESS)], []
    wait_until(lambda: len(engine._scheduler.waiting) == 1)

    def free():
        with engine._lock:
            freed.clear()
            marks.extend(row.cancelled for row in engine._open)

    run_in_thread(free)
    go.set()
    assert sorted(marks) == [False, True], "nothing else was changed under the one who holds the lock"
    assert tokens_of(kept.pop())
    wait_until(lambda: not engine._open and not engine._scheduler.rows)


def test_a_cancelled_answer_frees_its_place_before_its_picture_is_encoded(engine, monkeypatch):
    """Requests with pictures wait for their encoding; those whose reader has gone are not encoded."""
    encoding, built = threading.Event(), []

    def slow_build(adapters, image, *rest):
        built.append(image)
        assert encoding.wait(PATIENCE)

    monkeypatch.setattr(engine.prompt_builder, "build", slow_build)
    answers = [engine.submit(replace(HONEST[1], adapter="see", image=PICTURE)) for _ in range(4)]
    for answer in answers[1:]:
        answer.cancel()
        assert list(answer)[-1].finish_reason == "cancelled"
    encoding.set()
    assert tokens_of(answers[0])
    assert len(built) == 1


@pytest.mark.slow
def test_closing_does_not_wait_for_a_download(engine, monkeypatch):
    asked, downloaded, ends = threading.Event(), threading.Event(), []

    def download(*_):
        asked.set()
        assert downloaded.wait(2 * PATIENCE)
        raise LoadError("no encoder")

    monkeypatch.setattr(prompts_module, "load_encoder", download)
    monkeypatch.setattr(engine.prompt_builder, "_loaded_encoders", {})

    def ask():
        with pytest.raises(AdapterError) as caught:
            list(engine.submit(replace(HONEST[0], adapter="see", image=PICTURE)))
        ends.append(str(caught.value))

    reader = threading.Thread(target=ask, daemon=True)
    reader.start()
    assert asked.wait(PATIENCE)
    run_in_thread(engine.close)
    reader.join(PATIENCE)
    assert ends == [str(Closing())]
    downloaded.set()
