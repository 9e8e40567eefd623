"""The engine: what it answers is what the model says, for each caller alone, whatever else happens."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from adapter.chat import Message
from adapter.checkpoint import save_adapter
from adapter.engine import Engine, GenerationRequest
from adapter.errors import AdapterError, BadInput, Busy, LoadError
from adapter.sampling import SamplingParams
from adapter.store import AdapterStore
from conftest import random_adapter

GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
HELLO = (Message("user", "hello there"),)


@pytest.fixture
def engine(tmp_path, tiny_base, tiny_fingerprint):
    for seed, name in enumerate(("one", "two")):
        save_adapter(random_adapter(tiny_fingerprint, seed), tmp_path / name)
    engine = Engine(tiny_base, AdapterStore(tmp_path))
    yield engine
    engine.close()


def answer(engine, **kwargs):
    request = GenerationRequest(**{"messages": HELLO, "sampling": GREEDY, **kwargs})
    return list(engine.stream(request))


def tokens(events):
    return [event.token_id for event in events]


@torch.no_grad()
def uncached(engine, ids, kv, count):
    for _ in range(count):
        logits = engine.base.model(input_ids=torch.tensor([ids]), use_cache=False, prompt_kv=kv).logits[0, -1]
        ids = [*ids, int(logits.argmax())]
        if ids[-1] in engine.base.stop_ids:
            break
    return ids


@pytest.mark.parametrize("name, strength", [(None, 1.0), ("one", 1.0), ("two", 0.5), ("one", 0.0)])
def test_equals_the_uncached_forward_pass(engine, name, strength):
    events = answer(engine, adapter=name, strength=strength)
    prompt = engine.base.tokenizer("u:hello there;a:").input_ids
    kv = None
    if name is not None:
        kv = engine.store.load(name, engine.base)(engine.base.model).scaled(strength)
    assert prompt + tokens(events) == uncached(engine, prompt, kv, 20)
    stats = events[-1].stats
    assert (stats.prompt_tokens, stats.new_tokens) == (len(prompt), len(events))
    assert all(event.finish_reason is None for event in events[:-1])
    logprobs = [event.logprob for event in events]
    assert all(lp <= 0 for lp in logprobs)


def test_the_text_is_what_the_tokens_say_and_the_end_is_not_part_of_it(engine):
    events = answer(engine)
    assert "".join(e.text for e in events) == engine.base.tokenizer.decode(
        tokens(events), skip_special_tokens=True
    )


def test_many_at_once_get_what_each_gets_alone(engine):
    requests = [
        GenerationRequest((Message("user", text),), name, None, strength, replace(GREEDY, **sampling))
        for text in ("hi", "a longer question than that")
        for name, strength in ((None, 1.0), ("one", 1.0), ("two", 1.0), ("two", 2.0))
        for sampling in ({}, {"temperature": 1.5, "top_p": 1.0, "seed": 7})
    ]
    alone = [tokens(engine.stream(request)) for request in requests]
    together = [None] * len(requests)

    def ask(i):
        together[i] = tokens(engine.stream(requests[i]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert len({tuple(t) for t in alone}) > 4


def test_a_closed_stream_frees_its_row_and_the_others_go_on(engine):
    long = GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100))
    streams = [engine.stream(long) for _ in range(3)]
    for stream in streams:
        next(stream)
    streams[1].close()
    want = tokens(answer(engine, sampling=long.sampling))
    assert tokens(streams[0])[-5:] == want[-5:]
    assert tokens(streams[2])[-5:] == want[-5:]
    assert engine._open == 0


def test_a_fault_in_one_request_ends_that_one_only(engine, monkeypatch):
    real = engine.base.model.forward
    healthy = tokens(answer(engine))

    def broken(*args, **kwargs):
        if kwargs.get("prompt_kv") is not None:
            raise RuntimeError("secret path /root/x")
        return real(*args, **kwargs)

    monkeypatch.setattr(engine.base.model, "forward", broken)
    with pytest.raises(AdapterError, match="RuntimeError") as caught:
        answer(engine, adapter="one")
    assert "secret" not in str(caught.value)
    assert tokens(answer(engine)) == healthy


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"messages": ()}, "empty"),
        ({"strength": 3.0}, "between 0 and 2"),
        ({"messages": (Message("user", "x" * 200),)}, "205 tokens and this base reads 128"),
        ({"prompt_ids": (1, 97)}, "0 to 96"),
        ({"prompt_ids": ()}, "at least one"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_at_the_call(engine, kwargs, words):
    with pytest.raises(BadInput, match=words):
        engine.stream(GenerationRequest(**{"messages": HELLO, **kwargs}))
    assert answer(engine)


def test_an_unknown_adapter_is_named(engine):
    with pytest.raises(LoadError, match="'three'.*one, two"):
        engine.stream(GenerationRequest(HELLO, adapter="three"))


def test_the_context_ends_the_answer(engine):
    events = answer(engine, messages=(Message("user", "x" * 118),), sampling=replace(GREEDY, max_new_tokens=50))
    assert events[-1].finish_reason in ("length", "stop")
    assert len(events) <= 128 - 123


def test_prompt_ids_and_raw_skip_the_template(engine):
    ids = tuple(engine.base.tokenizer("abc").input_ids)
    assert tokens(answer(engine, messages=(), prompt_ids=ids)) == tokens(
        answer(engine, messages=(Message("user", "abc"),), raw=True)
    )


def test_a_closed_engine_says_so(engine):
    stream = engine.stream(GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100)))
    next(stream)
    engine.close()
    with pytest.raises(Busy):
        list(stream)
    with pytest.raises(Busy):
        engine.stream(GenerationRequest(HELLO))
