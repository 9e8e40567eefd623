"""The engine: an answer is what the model says, for each caller alone, whatever else happens."""

import copy
import math
import random
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.base.memory import kv_bytes_per_token
from adapter.base.template import Message
from adapter.errors import BadInput, Busy, ContextOverflow, LoadError
from adapter.method.attention import PromptKV
from adapter.method.checkpoint import save_adapter
from adapter.serve.engine import Engine
from adapter.serve.request import Client, GenerationRequest, SamplingParams
from adapter.serve.sampling import Sampler
from adapter.serve.store import AdapterStore
from tests.app_process import wait_until
from tests.tiny_models import random_adapter, save_one_and_two

GREEDY = SamplingParams(temperature=0, max_new_tokens=20.0)  # as a caller may write it
HELLO = (Message("user", "hello there"),)
LONG = GenerationRequest(HELLO, sampling=replace(GREEDY, max_new_tokens=100))


@pytest.fixture
def engine(tmp_path, tiny_base, tiny_fingerprint):
    save_one_and_two(tiny_fingerprint, tmp_path)
    with closing(Engine(tiny_base, AdapterStore(tmp_path))) as engine:
        yield engine


@pytest.fixture
def pace(monkeypatch):
    """Decode steps sleep for `pace.seconds`: an answer of 100 tokens is still running when a test needs it."""
    pace, step = SimpleNamespace(seconds=0.05), Engine._decode

    def slow_step(*arguments):
        time.sleep(pace.seconds)
        return step(*arguments)

    monkeypatch.setattr(Engine, "_decode", slow_step)
    return pace


def generate(engine, **request):
    """All events of one answer; greedy, to HELLO, unless the request says otherwise."""
    return list(engine.submit(GenerationRequest(**{"messages": HELLO, "sampling": GREEDY, **request})))


def token_ids(events):
    return [event.token_id for event in events]


def text(events):
    return "".join(event.text for event in events)


def assert_logprobs_close(events, expected):
    torch.testing.assert_close([e.logprob for e in events], [e.logprob for e in expected], atol=1e-3, rtol=0)


@torch.no_grad()
def generate_uncached(engine, ids, kv, count):
    for _ in range(count):
        logits = engine.base.model(input_ids=torch.tensor([ids]), use_cache=False, prompt_kv=kv).logits[0, -1]
        ids = [*ids, int(logits.argmax())]
        if ids[-1] in engine.base.stop_ids:
            break
    return ids


@pytest.mark.parametrize(
    "parts", [(), (("one", 1.0),), (("one", 0.7), ("two", 0.4)), (("one", 1.0), ("two", 0.0))]
)
def test_equals_the_uncached_forward_pass(engine, parts):
    """Of the base, of adapters and of mixes, whose terms are added."""
    asked = {"adapter": parts[0][0], "strength": parts[0][1], "mix": parts[1:]} if parts else {}
    events = generate(engine, **asked)
    prompt = engine.base.tokenizer("u:hello there;a:").input_ids
    kvs = [
        engine.store.load(name, engine.base.fingerprint)(engine.base.model).scaled(strength)
        for name, strength in parts
    ]
    kv = PromptKV.mixed(kvs) if kvs else None
    assert prompt + token_ids(events) == generate_uncached(engine, prompt, kv, 20)
    for same in ({"prompt_ids": tuple(prompt)}, {"messages": (Message("user", "u:hello there;a:"),), "raw": True}):
        assert token_ids(generate(engine, **asked, **same)) == token_ids(events)
    stats = events[-1].stats
    assert (stats.prompt_tokens, stats.new_tokens) == (len(prompt), len(events))
    assert all(event.finish_reason is None for event in events[:-1])
    assert all(event.logprob <= 0 for event in events)
    assert text(events) == engine.base.tokenizer.decode(token_ids(events), skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_an_answer_goes_on_as_if_it_had_not_been_interrupted(engine, temperature):
    sampling = replace(GREEDY, temperature=temperature, seed=3, repetition_penalty=1.2)
    whole = generate(engine, adapter="one", sampling=sampling)
    assert whole[-1].finish_reason == "length"
    for cut in (1, 7, 19):
        rest = replace(sampling, max_new_tokens=20 - cut)
        events = generate(engine, adapter="one", sampling=rest, answer_ids=tuple(token_ids(whole[:cut])))
        assert token_ids(events) == token_ids(whole[cut:]) and text(events) == text(whole)
    with pytest.raises(BadInput, match="cannot go on"):
        generate(engine, answer_ids=(min(engine.base.stop_ids),))


@pytest.mark.parametrize(
    "request_fields, error, message",
    [
        ({"messages": (Message("user", "x" * 200),)}, ContextOverflow, "205 tokens and this base reads 128, an"),
        ({"messages": (Message("user", "x" * 2049),)}, ContextOverflow, "far longer than this base reads"),
        ({"prompt_ids": (1, 97)}, BadInput, "0 to 96"),
        ({"max_seconds": float("nan")}, BadInput, "0 or more"),
        ({"client": None}, AttributeError, "network"),
        ({"stop": "ab"}, BadInput, "a tuple of strings"),
        ({"adapter": "three"}, LoadError, "'three'.*one, two"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_by_submit(engine, request_fields, error, message, monkeypatch):
    with pytest.raises(error, match=message):
        engine.submit(GenerationRequest(**{"messages": HELLO, **request_fields}))
    assert generate(engine)
    for ids, why in (([5, 97], "a token that this base does not have"), ([], "chat template .* writes nothing")):
        monkeypatch.setattr("adapter.serve.scheduler.encode_prompt", lambda *_, ids=ids: ids)
        with pytest.raises(BadInput, match=why):
            engine.submit(GenerationRequest(messages=HELLO))


def test_who_asks_for_little_gets_a_place_of_whoever_has_many(engine, monkeypatch, pace):
    monkeypatch.setattr("adapter.serve.engine.MAX_REQUESTS", 6)
    monkeypatch.setattr("adapter.serve.scheduler.MAX_ROWS", 4)
    many = [engine.submit(replace(LONG, client=Client("198.51.100.7", str(i)))) for i in range(6)]
    wait_until(lambda: len(engine._scheduler.waiting) == 3)
    few = [engine.submit(replace(LONG, client=Client("203.0.113.9"))) for _ in range(3)]
    for client in (Client("198.51.100.7", "new"), Client("203.0.113.9")):  # both networks have three places now
        with pytest.raises(Busy, match="6 requests"):
            engine.submit(replace(LONG, client=client))
    pace.seconds = 0
    for answer in many[3:]:  # the latest
        with pytest.raises(Busy, match="6 requests"):
            list(answer)
    assert len({tuple(token_ids(e for e in a if e.is_output)) for a in (*many[:3], *few)}) == 1
    wait_until(lambda: not engine._open and not engine._scheduler.rows)


# Batches and caches: the law that each row gets what it gets alone.


def test_nobody_learns_from_the_prefix_cache_what_others_have_asked(engine):
    def cached(*client):
        asked = generate(engine, messages=(), prompt_ids=tuple(range(40)), client=Client(*client))
        return asked[-1].stats.cached_tokens

    assert cached("203.0.113.7", "page") == 0
    assert cached("198.51.100.9", "page") == cached("203.0.113.7", "another page") == cached("203.0.113.7") == 0
    assert cached("203.0.113.7", "page") == 39


def test_a_follow_up_reads_only_new_tokens_and_answers_as_from_a_cold_start(engine):
    first = generate(engine, adapter="one", messages=(), prompt_ids=tuple(range(40)))
    follow_up = {"messages": (), "prompt_ids": (*range(40), *token_ids(first), 5, 6, 7)}
    warm = generate(engine, adapter="one", **follow_up)
    assert warm[-1].stats.cached_tokens == 40 + len(first) - 1
    weaker = generate(engine, adapter="one", strength=0.5, **follow_up)
    assert weaker[-1].stats.cached_tokens == 0  # other prompts, so another prefix
    with closing(Engine(engine.base, engine.store)) as cold:
        for strength, events in ((1.0, warm), (0.5, weaker)):
            expected = generate(cold, adapter="one", strength=strength, **follow_up)
            assert expected[-1].stats.cached_tokens == 0
            assert token_ids(events) == token_ids(expected)
            assert_logprobs_close(events, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_rows_on_cuda_get_what_each_gets_alone_and_on_a_cpu(engine):
    """Prompts are longer than a CPU reads at once. In fp32, whose sums are in another order there."""
    requests = [
        GenerationRequest(
            adapter=("one", "two", None)[i % 3],
            prompt_ids=tuple((7 * i + j) % 95 for j in range(70 + i)),
            sampling=SamplingParams(temperature=(0.0, 0.7, 1.0)[i % 3], top_p=0.9, max_new_tokens=20, seed=i),
        )
        for i in range(9)
    ]
    on_cpu = [token_ids(engine.submit(request)) for request in requests]
    base = replace(engine.base, model=copy.deepcopy(engine.base.model).cuda())
    with closing(Engine(base, engine.store)) as on_cuda:
        alone = [token_ids(on_cuda.submit(request)) for request in requests]
        together = [token_ids(answer) for answer in [on_cuda.submit(request) for request in requests]]
    assert on_cpu == alone == together


SCHEDULE = st.lists(
    st.tuples(
        st.sampled_from([None, "one", "two", "short"]),  # adapter
        st.sampled_from([0.3, 1.0]),  # strength
        st.integers(1, 80),  # prompt tokens
        st.integers(1, 25),  # answer tokens
        st.one_of(st.none(), st.none(), st.integers(0, 10)),  # cancelled after this many tokens
        st.floats(0, 0.01),  # seconds before it is submitted
        st.booleans(),  # mixed with another adapter
        st.sampled_from([0.0, 1.5]),  # temperature
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEDULE, st.integers(0, 2**31))
def test_law_each_row_gets_what_it_gets_alone(engine, tiny_fingerprint, schedule, seed):
    """Whatever joins, leaves or is cancelled: equal tokens, and log-probabilities within 1e-3 in fp32."""
    engine._prefill_chunk = 16
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
            sampling=SamplingParams(temperature, max_new_tokens=new, seed=seed),
        )
        for name, strength, length, new, _, _, mixed, temperature in schedule
    ]
    answers, together, drawn = [], [], Sampler._next_number
    for request, (*_, pause, _, _) in zip(requests, schedule, strict=True):
        time.sleep(pause)
        answers.append(engine.submit(request))
    for answer, (_, _, _, _, cancel_after, *_) in zip(answers, schedule, strict=True):
        events = []
        for event in answer:
            if cancel_after is not None and len(events) == cancel_after:
                answer.cancel()
            events.append(event)
        together.append([e for e in events if e.token_id is not None])
    with closing(Engine(engine.base, engine.store)) as fresh:
        for request, events, (*_, cancel_after, _, _, _) in zip(requests, together, schedule, strict=True):
            # A number that is drawn within rounding of the border between two tokens may give either.
            for shift in (0.0, 1e-5, -1e-5):
                with patch.object(Sampler, "_next_number", lambda self, by=shift: drawn(self) + by):
                    alone = [e for e in fresh.submit(request) if e.token_id is not None]
                alone = alone[: None if cancel_after is None else len(events)]
                if token_ids(events) == token_ids(alone):
                    break
            assert token_ids(events) == token_ids(alone)
            assert_logprobs_close(events, alone)


# The memory of the KV cache.


def bytes_of(tokens: int, base) -> int:
    """A budget of which `tokens` tokens are for running rows."""
    return tokens * 4 // 3 * kv_bytes_per_token(base.model.config, base.model.dtype)


@pytest.mark.slow
def test_rows_that_find_no_room_wait_and_the_cache_never_grows(engine, tiny_base, pace):
    requests = [replace(LONG, adapter=("one", "two", None)[i % 3], prompt_ids=(3 + i, 4, 5)) for i in range(6)]
    pace.seconds = 0
    expected = [token_ids(engine.submit(request)) for request in requests]
    pace.seconds = 0.002
    with closing(Engine(tiny_base, engine.store, cache_bytes=bytes_of(256, tiny_base))) as small:
        place, running = small._cache.data.data_ptr(), []
        answers = [small.submit(request) for request in requests]
        while small._open:
            running.append(len(small._scheduler.decoding) + len(small._scheduler.prefilling))
            time.sleep(0.001)
        assert [[e.token_id for e in answer if e.is_output] for answer in answers] == expected
        assert max(running) == 2
        assert small._cache.data.data_ptr() == place and small._cache.data.shape[3] == 256
        assert small._prefix_cache.size <= small.cache_budget.prefix_bytes


def test_a_conversation_that_the_cache_never_holds_is_refused(tiny_base, engine):
    model = copy.copy(tiny_base.model)
    model.config = copy.deepcopy(model.config)
    model.config.max_position_embeddings = 5000
    base = replace(tiny_base, model=model)
    with closing(Engine(base, engine.store, cache_bytes=bytes_of(512, base))) as small:
        with pytest.raises(BadInput, match=r"900 tokens .* memory for 512.*--cache-gb"):
            small.submit(GenerationRequest(prompt_ids=(5,) * 900, sampling=GREEDY))
        last = generate(small, prompt_ids=(5,) * 500, sampling=replace(GREEDY, max_new_tokens=1000))[-1]
        assert last.finish_reason in ("length", "stop") and last.stats.new_tokens <= 12
        assert len(generate(small)) > 1
    with pytest.raises(BadInput, match="holds 64 tokens of this base; it needs at least 512"):
        Engine(base, engine.store, cache_bytes=bytes_of(64, base))


# What else could have been said.


@pytest.mark.parametrize("base", ["tiny_base", "packed_base"])
def test_law_log_probabilities_are_the_same_alone_and_in_a_batch(engine, request, base):
    """With drafts and a form's forced tokens, too; and the token is the one without."""
    word = 'start: "yes, yes, yes, yes, " /[a-z]{8}/'
    asked = [
        GenerationRequest(
            HELLO,
            adapter=("one", "two", None)[i % 3],
            sampling=replace(GREEDY, temperature=0.5 * (i % 2), seed=i, frequency_penalty=0.5 * (i % 4 == 1)),
            form=word if i == 5 else None,
            top_logprobs=i % 4,
        )
        for i in range(6)
    ]
    with closing(Engine(request.getfixturevalue(base), engine.store)) as engine:
        plain = [list(engine.submit(replace(one, top_logprobs=0))) for one in asked]
        alone = [list(engine.submit(one)) for one in asked]
        together = [list(answer) for answer in [engine.submit(one) for one in asked]]
    for one, before, left, right in zip(asked, plain, alone, together, strict=True):
        left, right = ([e for e in events if e.token_id is not None] for events in (left, right))
        assert token_ids(left) == token_ids(right) == token_ids(e for e in before if e.token_id is not None)
        assert all((event.choices is None) == (one.top_logprobs == 0) for event in left)
        if base == "packed_base":
            assert [(e.logprob, e.choices) for e in left] == [(e.logprob, e.choices) for e in right]
        for event in (e for e in left if e.choices):
            assert event.choices.token.token_id == event.token_id and event.choices.logprob <= 0
            top = event.choices.top
            assert len(top) <= one.top_logprobs and [t.logprob for t in top] == sorted(
                (t.logprob for t in top), reverse=True
            )
            if one.form is None and not one.sampling.frequency_penalty:
                assert event.choices.logprob == event.logprob and len(top) == one.top_logprobs
    assert alone[5][0].choices.logprob == 0.0, "a form has forced it"


def test_another_word_goes_on_as_if_it_had_been_said(engine):
    """The answer up to a word, another word that could have stood there, and what follows it."""
    events = generate(engine, adapter="one", top_logprobs=3)
    begun = token_ids(events)[:7]
    other = next(one for one in events[7].choices.top if one.token_id != events[7].token_id)
    branch = generate(engine, adapter="one", answer_ids=(*begun, other.token_id))
    prompt = engine.base.tokenizer("u:hello there;a:").input_ids
    kv = engine.store.load("one", engine.base.fingerprint)(engine.base.model)
    whole = [*prompt, *begun, other.token_id]
    assert whole + token_ids(branch) == generate_uncached(engine, whole, kv, 20)
    assert text(branch).startswith(text(events[:7]) + other.text)
    assert other.text == engine.base.tokenizer.decode([other.token_id])


@pytest.mark.parametrize("base", ["tiny_base", "packed_base"])
def test_a_prompt_is_scored_as_if_it_had_been_written(engine, request, base):
    """Whatever the prefix cache has of it."""
    ids = tuple((7 * i) % 95 for i in range(70))
    asked = GenerationRequest(prompt_ids=ids, adapter="one", sampling=replace(GREEDY, max_new_tokens=30))
    with closing(Engine(request.getfixturevalue(base), engine.store)) as engine:
        written = list(engine.submit(replace(asked, top_logprobs=2)))
        whole = (*ids, *token_ids(written))
        for _ in range(2):
            events = list(engine.submit(replace(asked, prompt_ids=whole, prompt_logprobs=True, top_logprobs=2)))
            given = [one for event in events for one in event.prompt_logprobs]
            assert [one.token.token_id for one in given] == list(whole)
            assert math.isnan(given[0].logprob)
            expected, close = [event.choices for event in written], 1e-5 if base == "packed_base" else 1e-3
            for one, other in zip(given[len(ids) :], expected, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=close)
                assert [t.token_id for t in one.top] == [t.token_id for t in other.top]
