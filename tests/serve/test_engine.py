"""The engine: what it answers is what the model says, for each caller alone, whatever else happens."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput, Busy, LoadError
from adapter.method.attention import PromptKV
from adapter.method.checkpoint import save_adapter
from adapter.serve.engine import Engine
from adapter.serve.kv_cache import PrefixCache
from adapter.serve.request import Client, GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.tiny_models import random_adapter

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
    return list(engine.submit(request))


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
    alone = [tokens(engine.submit(request)) for request in requests]
    together = [None] * len(requests)

    def ask(i):
        together[i] = tokens(engine.submit(requests[i]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert len({tuple(t) for t in alone}) > 4


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_a_closed_answer_frees_its_row_and_the_others_go_on(engine):
    long = GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100))
    answers = [engine.submit(long) for _ in range(4)]
    for answer_ in answers:
        next(answer_)
    answers[1].close()
    del answers[3]  # nobody will read it: as good as closed
    assert list(answers[1]) == []
    want = tokens(answer(engine, sampling=long.sampling))
    assert tokens(answers[0])[-5:] == want[-5:]
    assert tokens(answers[2])[-5:] == want[-5:]
    wait_until(lambda: not engine._open and not engine._batch)


def test_a_cancelled_answer_says_so_within_a_step(engine, monkeypatch):
    real, steps = engine._batch.step, []

    def slow(ids):
        steps.append(len(ids))
        time.sleep(0.02)
        return real(ids)

    monkeypatch.setattr(engine._batch, "step", slow)
    found = engine.submit(GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100)))
    next(found), next(found)
    before = len(steps)
    found.cancel()
    *_, last = found
    assert last.finish_reason == "cancelled" and last.stats.new_tokens < 100
    assert len(steps) <= before + 2
    found.cancel()  # once more does no harm


def test_a_request_that_waits_knows_its_place_and_can_be_cancelled(engine, monkeypatch):
    monkeypatch.setattr("adapter.serve.scheduler.MAX_ROWS", 1)
    long = GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100), client=Client(session="a"))
    first = engine.submit(long)
    next(first)
    queued = [engine.submit(replace(long, client=Client(session=client))) for client in ("a", "a", "b")]
    # b has asked for one thing only: it comes before a's second one.
    for answer_, place in zip(queued, (0, 2, 1), strict=True):
        while next(answer_).position != place:
            pass
    queued[0].cancel()
    assert list(queued[0])[-1].finish_reason == "cancelled"
    first.close()
    assert [event.token_id for event in queued[2]][-1] is not None
    queued[1].close()
    wait_until(lambda: not engine._open)


def test_too_many_requests_are_refused_and_the_rest_is_served(engine, monkeypatch):
    monkeypatch.setattr("adapter.serve.engine.MAX_REQUESTS", 3)
    long = GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100))
    answers = [engine.submit(long) for _ in range(3)]
    with pytest.raises(Busy, match="3 requests"):
        engine.submit(long)
    assert len({tuple(tokens(answer_)) for answer_ in answers}) == 1


def test_the_wall_clock_ends_an_answer(engine, monkeypatch):
    real = engine._batch.step
    monkeypatch.setattr(engine._batch, "step", lambda ids: (time.sleep(0.05), real(ids))[1])
    events = answer(engine, sampling=replace(GREEDY, max_new_tokens=100), max_seconds=0.2)
    assert events[-1].finish_reason == "time" and 1 <= events[-1].stats.new_tokens < 20


def test_stop_texts_end_the_answer_and_are_not_part_of_it(engine):
    whole = "".join(e.text for e in answer(engine))
    stop = whole[4:7]
    events = answer(engine, stop=("never~", stop))
    assert "".join(e.text for e in events) == whole[: whole.index(stop)]
    assert events[-1].finish_reason == "stop"
    # The beginning of a stop text is held back, and comes after all.
    held = answer(engine, stop=(whole[-2:] + "~",))
    assert "".join(e.text for e in held) == whole


def test_mixed_adapters_add_their_terms(engine):
    ids = engine.base.tokenizer("u:hello there;a:").input_ids
    one, two = (engine.store.load(name, engine.base)(engine.base.model) for name in ("one", "two"))
    kv = PromptKV.mixed([one.scaled(0.7), two.scaled(0.4)])
    events = answer(engine, adapter="one", strength=0.7, mix=(("two", 0.4),))
    assert ids + tokens(events) == uncached(engine, ids, kv, 20)
    assert tokens(answer(engine, adapter="one", mix=(("two", 0.0),))) == tokens(answer(engine, adapter="one"))
    with pytest.raises(LoadError, match="'three'"):
        answer(engine, adapter="one", mix=(("three", 0.0),))


def test_compare_asks_the_same_of_each(engine):
    request = GenerationRequest(HELLO, sampling=replace(GREEDY, temperature=1.5, top_p=1.0))
    base, one, two, again = (tokens(a) for a in engine.compare(request, [None, "one", "two", "one"]))
    assert one == again
    assert len({tuple(base), tuple(one), tuple(two)}) == 3


def test_async_readers_share_a_loop(engine):
    alone = tokens(answer(engine, adapter="one"))

    async def read():
        return [event.token_id async for event in engine.submit(GenerationRequest(HELLO, "one", sampling=GREEDY))]

    async def several():
        return await asyncio.gather(*(read() for _ in range(5)))

    assert asyncio.run(several()) == [alone] * 5


def test_a_follow_up_reads_only_what_is_new_and_answers_as_from_a_cold_start(engine):
    first = answer(engine, adapter="one", messages=(), prompt_ids=tuple(range(40)))
    ids = (*range(40), *tokens(first), 5, 6, 7)
    follow_up = {"messages": (), "prompt_ids": ids}
    warm = answer(engine, adapter="one", **follow_up)
    assert warm[-1].stats.cached_tokens == 40 + len(first) - 1
    other = answer(engine, adapter="one", strength=0.5, **follow_up)
    assert other[-1].stats.cached_tokens == 0  # read with other prompts
    with closing(Engine(engine.base, engine.store)) as cold:
        for name, strength, got in (("one", 1.0, warm), ("one", 0.5, other)):
            want = answer(cold, adapter=name, strength=strength, **follow_up)
            assert want[-1].stats.cached_tokens == 0
            assert tokens(got) == tokens(want)
            torch.testing.assert_close([e.logprob for e in got], [e.logprob for e in want], atol=1e-3, rtol=0)


def test_the_prefix_cache_is_bounded_and_evicts_the_least_recently_used():
    def past(tokens):
        return torch.zeros(1, 2, 1, tokens, 4)  # 32 bytes a token

    cache = PrefixCache(32 * 100)
    for start in range(10):
        cache.add("a", range(start * 100, start * 100 + 30), past(30))
        assert cache.longest_prefix("a", range(start * 100, start * 100 + 31)).shape[3] == 30
    assert len(cache) == 3
    assert cache.longest_prefix("a", range(0, 31)) is None
    assert cache.longest_prefix("b", range(900, 931)) is None
    assert cache.longest_prefix("a", [*range(900, 910), 7, 8]).shape[3] == 10
    cache.add("a", range(900, 940), past(40))  # takes the place of the shorter one
    assert len(cache) == 3 and cache.longest_prefix("a", range(900, 950)).shape[3] == 40
    assert cache.longest_prefix("a", range(900, 920)).shape[3] == 19  # the last token is read anew


def test_long_prompts_are_read_in_chunks_between_the_steps_of_others(engine, monkeypatch):
    monkeypatch.setattr("adapter.serve.engine.PREFILL_CHUNK", 16)
    lengths = []
    real = engine._forward

    def counted(cache, ids, *rest):
        lengths.append(len(ids))
        return real(cache, ids, *rest)

    monkeypatch.setattr(engine, "_forward", counted)
    busy = engine.submit(GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=60)))
    next(busy)
    got = answer(engine, messages=(), prompt_ids=tuple(i % 90 for i in range(100)), adapter="two")
    want = tokens(busy)
    assert max(lengths) == 16
    monkeypatch.setattr("adapter.serve.engine.PREFILL_CHUNK", 128)
    with closing(Engine(engine.base, engine.store)) as whole:
        assert tokens(got) == tokens(
            answer(whole, messages=(), prompt_ids=tuple(i % 90 for i in range(100)), adapter="two")
        )
        assert tokens(answer(whole, sampling=replace(GREEDY, max_new_tokens=60)))[-len(want) :] == want


SCHEDULE = st.lists(
    st.tuples(
        st.sampled_from([None, "one", "two", "short"]),  # adapter
        st.sampled_from([0.3, 1.0]),  # strength
        st.integers(1, 60),  # tokens of the prompt
        st.integers(1, 25),  # tokens of the answer
        st.one_of(st.none(), st.none(), st.integers(0, 10)),  # cancelled after so many
        st.floats(0, 0.01),  # seconds before it is asked
        st.booleans(),  # mixed with another adapter
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEDULE, st.integers(0, 2**31))
def test_law_each_row_gets_what_it_gets_alone(engine, tiny_fingerprint, schedule, seed):
    """Whatever joins, leaves or is cancelled: greedy tokens are equal, log-probabilities within 1e-3 in fp32."""
    if "short" not in engine.store.names():
        short = random_adapter(tiny_fingerprint, 5, prompt_length=3, insertion_layers=1)
        save_adapter(short, engine.store.folders[0] / "short")
    rng = random.Random(seed)
    requests = [
        GenerationRequest(
            adapter=name,
            strength=strength,
            mix=(("short", 0.8),) if mixed else (),
            prompt_ids=tuple(rng.randrange(95) for _ in range(length)),
            sampling=SamplingParams(temperature=0, max_new_tokens=new),
        )
        for name, strength, length, new, _, _, mixed in schedule
    ]
    answers, found = [], []
    for request, (*_, pause, _) in zip(requests, schedule, strict=True):
        time.sleep(pause)
        answers.append(engine.submit(request))
    for answer_, (_, _, _, _, cut, _, _) in zip(answers, schedule, strict=True):
        events = []
        for event in answer_:
            if cut is not None and len(events) == cut:
                answer_.cancel()
            events.append(event)
        found.append([e for e in events if e.token_id is not None])
    for request, events in zip(requests, found, strict=True):
        with closing(Engine(engine.base, engine.store)) as fresh:
            alone = list(fresh.submit(request))
        assert tokens(events) == tokens(alone)[: len(events)]
        torch.testing.assert_close(
            [e.logprob for e in events], [e.logprob for e in alone][: len(events)], atol=1e-3, rtol=0
        )


def test_nothing_grows_over_500_requests(engine, monkeypatch):
    monkeypatch.setattr(engine._prefix_cache, "_max_bytes", 200_000)
    sizes = []
    for number in range(500):
        request = GenerationRequest(
            adapter=("one", "two", None)[number % 3],
            prompt_ids=tuple((number * 7 + i) % 95 for i in range(20 + number % 40)),
            sampling=SamplingParams(temperature=0, max_new_tokens=2),
        )
        list(engine.submit(request))
        sizes.append(engine._prefix_cache.bytes)
    wait_until(lambda: not engine._open and not engine._batch and not engine._scheduler.has_work)
    assert max(sizes) <= 200_000
    assert engine._prefix_cache.bytes == sum(kv.nbytes for kv in engine._prefix_cache._entries.values())
    assert engine._batch._cache.data.shape[:1] == (1,)
    gc.collect()
    alive = sum(type(thing).__name__ in ("Row", "Answer", "Mailbox", "KVCache") for thing in gc.get_objects())
    assert alive <= 4


def test_a_fault_in_a_prompt_ends_that_request_only(engine, monkeypatch):
    real = engine._forward
    healthy = tokens(answer(engine))

    def broken(cache, ids, starts, prompts):
        if prompts is not None:
            raise RuntimeError("secret path /root/x")
        return real(cache, ids, starts, prompts)

    monkeypatch.setattr(engine, "_forward", broken)
    with pytest.raises(AdapterError, match="RuntimeError") as caught:
        answer(engine, adapter="one")
    assert "secret" not in str(caught.value)
    assert tokens(answer(engine)) == healthy


def test_a_fault_in_a_step_fails_those_in_flight_and_the_engine_goes_on(engine, monkeypatch):
    long = GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100))
    answers = [engine.submit(long) for _ in range(3)]
    for answer_ in answers:
        next(answer_)

    def broken(_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine._batch, "step", broken)
    for answer_ in answers:
        with pytest.raises(AdapterError, match="RuntimeError"):
            list(answer_)
    assert len(answer(engine)) > 1


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
        engine.submit(GenerationRequest(**{"messages": HELLO, **kwargs}))
    assert answer(engine)


def test_an_unknown_adapter_is_named(engine):
    with pytest.raises(LoadError, match="'three'.*one, two"):
        engine.submit(GenerationRequest(HELLO, adapter="three"))


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
    stream = engine.submit(GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100)))
    next(stream)
    engine.close()
    with pytest.raises(Busy):
        list(stream)
    with pytest.raises(Busy):
        engine.submit(GenerationRequest(HELLO))
