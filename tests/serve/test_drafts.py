"""Drafts: nobody can tell an answer with them from one without, bit for bit."""

import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.base.packed.quantize import quantize_linears
from adapter.serve.compiled.forward import CompiledForward
from adapter.serve.drafts import MAX_DRAFT
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest, SamplingParams
from adapter.serve.store import AdapterStore
from tests.app_process import wait_until
from tests.tiny_models import random_llama, save_one_and_two

PASSAGE = [7 * i % 101 for i in range(80)]  # no token twice


@pytest.fixture
def engine(tmp_path, packed_base, tiny_fingerprint):
    save_one_and_two(tiny_fingerprint, tmp_path)
    with closing(Engine(packed_base, AdapterStore(tmp_path))) as engine:
        yield engine


class Oracle:
    """Drafts that begin as the answer does: as long as `length()` says, and right up to a place that it says."""

    answers: Mapping[tuple[int, ...], Sequence[int]] = MappingProxyType({})
    length = staticmethod(lambda: (MAX_DRAFT, MAX_DRAFT))

    def __init__(self, prompt):
        self.rest = list(self.answers.get(tuple(prompt), ()))

    def append(self, token):
        if self.rest:
            self.rest.pop(0)

    def propose(self, limit, rows):
        length, right = Oracle.length()
        return [*self.rest[:right], *[3] * MAX_DRAFT][: min(length, limit)]


def ask(*prompt, adapter=None, tokens=40, temperature=0.0, **fields):
    sampling = SamplingParams(temperature, top_p=0.9, seed=5, max_new_tokens=tokens)
    return GenerationRequest(prompt_ids=prompt, adapter=adapter, sampling=sampling, **fields)


def seen(answer):
    """What a reader can tell of an answer but its times."""
    events = [event for event in answer if event.is_output]
    return [(event.token_id, event.logprob, event.text, event.finish_reason) for event in events]


def without_drafts(monkeypatch, engine, requests):
    with monkeypatch.context() as patch:
        patch.setattr("adapter.serve.engine.MAX_DRAFT", 0)
        found = [seen(engine.submit(request)) for request in requests]
    wait_until(lambda: not engine._scheduler.rows)  # a row is released behind its last event
    for key in engine._prefix_cache:
        engine._prefix_cache.pop(key)
    return found


def test_answers_that_repeat_themselves_take_fewer_steps_and_are_the_same(engine, monkeypatch):
    passes, whole = [], CompiledForward.__call__  # passes: how many tokens each decode step has read

    def counted_pass(forward, cache, tokens, *arguments, **every):
        if every:
            passes.append([len(new) for new in tokens])
        return whole(forward, cache, tokens, *arguments, **every)

    monkeypatch.setattr(CompiledForward, "__call__", counted_pass)
    model = random_llama(std=0.1, random_norms=True).bfloat16()  # goes in circles
    quantize_linears(model)
    requests = [
        ask(*(PASSAGE[start + i] % 95 for i in range(12)), adapter=adapter, temperature=temperature, tokens=60)
        for start, adapter in ((0, "one"), (20, None), (40, "two"))
        for temperature in (0.0, 0.4, 1.0)
    ]
    with closing(Engine(replace(engine.base, model=model), engine.store)) as looping:
        expected = without_drafts(monkeypatch, looping, requests)
        assert all(read == [1] for read in passes)
        steps = len(passes)
        passes.clear()
        assert [seen(looping.submit(request)) for request in requests] == expected
        assert len(passes) < 0.8 * steps
        assert [seen(answer) for answer in [looping.submit(request) for request in requests]] == expected
        assert max(map(len, passes)) > 1 and any(max(read) > 1 for read in passes if len(read) > 4)


ROWS = st.lists(
    st.tuples(
        st.sampled_from([None, "one", "two"]),
        st.integers(1, 100),  # tokens of the prompt
        st.integers(1, 40),  # tokens of the answer
        st.sampled_from([0.0, 0.0, 0.7, 1.5]),  # temperature
        st.one_of(st.none(), st.integers(0, 10)),  # cancelled after so many tokens
        st.sampled_from([(), ("a",), ("the", "x")]),  # stop texts
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.integers(0, 2**31))
def test_law_no_draft_changes_an_answer(engine, monkeypatch, rows, seed):
    """Whatever is guessed, right or wrong, for whatever rows, that join, stop and are cancelled."""
    chance = random.Random(seed)
    requests = [
        ask(*(chance.randrange(95) for _ in range(length)), adapter=name, tokens=new, temperature=t, stop=stop)
        for name, length, new, t, _, stop in rows
    ]
    expected = without_drafts(monkeypatch, engine, requests)
    with monkeypatch.context() as patch:
        patch.setattr("adapter.serve.engine.Drafter", Oracle)
        answers = {r.prompt_ids: [e[0] for e in answer] for r, answer in zip(requests, expected, strict=True)}
        patch.setattr(Oracle, "answers", answers)
        patch.setattr(Oracle, "length", lambda: (chance.randrange(MAX_DRAFT + 1), chance.randrange(MAX_DRAFT + 1)))
        running = [engine.submit(request) for request in requests]
        for answer, whole, (*_, cancel_after, _) in zip(running, expected, rows, strict=True):
            got = []
            for event in answer:
                if not event.is_output:
                    continue
                if len(got) == cancel_after:
                    answer.cancel()
                got.append((event.token_id, event.logprob, event.text, event.finish_reason))
            if got[-1][3] == "cancelled":
                got.pop()
            assert got == whole[: len(got)]
            assert cancel_after is not None or len(got) == len(whole)
