"""Drafts: what a row guesses, and that nobody can tell an answer with drafts from one without."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.base.packed.quantize import quantize_linears
from adapter.errors import AdapterError
from adapter.method.checkpoint import save_adapter
from adapter.serve.batch import DecodeBatch
from adapter.serve.drafts import MAX_DRAFT, Drafter
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest, SamplingParams
from adapter.serve.store import AdapterStore
from tests.app_process import wait_until
from tests.tiny_models import random_adapter, random_llama

PROMPT = (10, 11, 12)  # which the tiny base answers at length
PASSAGE = [7 * i % 101 for i in range(80)]  # no token twice


def fed(tokens, prompt=()):
    drafter = Drafter(prompt)
    for token in tokens:
        drafter.append(token)
    return drafter


# The drafter.


@pytest.mark.parametrize(
    "tokens, limit, draft",
    [
        ([1, 2, 3] * 10, 7, [1, 2, 3, 1, 2, 3, 1]),  # a loop goes on
        ([5] * 10, 5, [5] * 5),
        ([1, 2, 3, 9, 2, 4, 1, 2], 1, [3]),  # the longer match counts
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # then the later one
        ([1, 2], 1, []),
        ([], 1, []),
    ],
)
def test_what_is_guessed(tokens, limit, draft):
    assert fed(tokens).propose(limit, 1) == draft


def test_a_row_whose_guesses_fail_pays_for_none_until_they_are_right_again():
    chance = random.Random(0)
    drafter, drafted = Drafter(PASSAGE), []
    for _ in range(400):
        drafter.append(chance.randrange(40))  # each has been seen, and says nothing of the next
        drafted.append(len(drafter.propose(MAX_DRAFT, 1)))
    assert sum(drafted[:10]) > 0  # it tries
    assert sum(drafted[40:]) < 40
    for token in PASSAGE[:20]:
        drafter.append(token)
    assert len(drafter.propose(MAX_DRAFT, 1)) > 4


# The engine: tokens, log-probabilities, texts and ends are those without drafts, bit for bit.


@pytest.fixture
def engine(tmp_path, packed_base, tiny_fingerprint):
    for seed, name in enumerate(("one", "two")):
        save_adapter(random_adapter(tiny_fingerprint, seed), tmp_path / name)
    with closing(Engine(packed_base, AdapterStore(tmp_path))) as engine:
        yield engine


@pytest.fixture
def passes(monkeypatch):
    """How many tokens each decode step has read."""
    passes, step = [], DecodeBatch.step

    def counted_step(batch, tokens, *arguments):
        passes.append([len(new) for new in tokens])
        return step(batch, tokens, *arguments)

    monkeypatch.setattr(DecodeBatch, "step", counted_step)
    return passes


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
        draft = [*self.rest[:right], *[3] * MAX_DRAFT]
        return draft[: min(length, limit)]


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setattr("adapter.serve.engine.Drafter", Oracle)
    monkeypatch.setattr(Oracle, "answers", {})
    return Oracle


def ask(*prompt, adapter=None, tokens=40, temperature=0.0, penalty=1.0, **fields):
    sampling = SamplingParams(temperature, top_p=0.9, seed=5, max_new_tokens=tokens, repetition_penalty=penalty)
    return GenerationRequest(prompt_ids=prompt, adapter=adapter, sampling=sampling, **fields)


def seen(answer):
    """What a reader can tell of an answer but its times."""
    events = [event for event in answer if event.is_output]
    return [(event.token_id, event.logprob, event.text, event.finish_reason) for event in events]


def without_drafts(monkeypatch, engine, requests):
    with monkeypatch.context() as patch:
        patch.setattr("adapter.serve.engine.MAX_DRAFT", 0)
        found = [seen(engine.submit(request)) for request in requests]
    wait_until(lambda: not engine._scheduler.has_work)  # a row is released behind its last event
    for key in engine._prefix_cache._entries:
        engine._prefix_cache._entries.pop(key)
    return found


def test_answers_that_repeat_themselves_take_fewer_steps_and_are_the_same(engine, monkeypatch, passes):
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
        answers = [looping.submit(request) for request in requests]
        assert [seen(answer) for answer in answers] == expected
        assert max(map(len, passes)) > 1 and any(max(read) > 1 for read in passes if len(read) > 4)


@pytest.mark.parametrize(
    ("right", "temperature", "penalty"),
    [(0, 0.0, 1.0), (4, 0.0, 1.3), (1, 1.5, 1.0), (MAX_DRAFT, 1.5, 1.0), (MAX_DRAFT, 0.0, 1.0)],
)
def test_drafts_count_as_far_as_they_are_right(engine, monkeypatch, oracle, passes, right, temperature, penalty):
    request = ask(*PROMPT, adapter="one", temperature=temperature, penalty=penalty)
    (expected,) = without_drafts(monkeypatch, engine, [request])
    oracle.answers[PROMPT] = [token for token, *_ in expected]
    monkeypatch.setattr(oracle, "length", lambda: (MAX_DRAFT, right))
    passes.clear()
    assert seen(engine.submit(request)) == expected
    assert len(passes) <= -(-(len(expected) - 1) // (right + 1)) and max(max(read) for read in passes) > 1


def test_going_in_circles_within_a_draft_ends_the_answer_there_where_that_is_asked_for(
    engine, monkeypatch, oracle, passes
):
    monkeypatch.setattr("adapter.serve.scheduler.repeats", lambda tokens, new: new == 7)
    (whole,) = without_drafts(monkeypatch, engine, [ask(*PROMPT)])
    assert len(whole) > 7
    oracle.answers[PROMPT] = [token for token, *_ in whole]
    passes.clear()
    ended = seen(engine.submit(ask(*PROMPT, end_repetition=True)))
    assert [token for token, *_ in ended] == [token for token, *_ in whole[:7]]
    assert ended[-1][3] == "repetition" and len(passes) == 1
    begun = tuple(token for token, *_ in whole[:4])  # what was written before counts
    assert len(seen(engine.submit(ask(*PROMPT, end_repetition=True, answer_ids=begun)))) == 3


def test_a_stop_text_within_a_draft_ends_the_answer_and_what_was_read_is_kept(engine, monkeypatch, oracle, passes):
    """And then an answer goes on from it."""
    (whole,) = without_drafts(monkeypatch, engine, [ask(*PROMPT)])
    stopped = ask(*PROMPT, stop=("".join(text for _, _, text, _ in whole)[4:6],))
    (first,) = without_drafts(monkeypatch, engine, [stopped])
    ids = [token for token, *_ in first]
    follow_up = ask(*PROMPT, *ids, 4, 5, 6)
    (expected,) = without_drafts(monkeypatch, engine, [follow_up])
    oracle.answers[PROMPT] = [token for token, *_ in whole]  # goes on behind the stop text
    passes.clear()
    assert seen(engine.submit(stopped)) == first and first[-1][3] == "stop" and len(first) < len(whole)
    assert len(passes) == 1
    wait_until(lambda: not engine._scheduler.has_work)
    events = list(engine.submit(follow_up))
    assert seen(events) == expected
    assert events[-1].stats.cached_tokens == 3 + len(ids) - 1


def test_a_row_that_fails_within_a_draft_ends_alone_behind_the_tokens_before(engine, monkeypatch, oracle):
    bad, good = ask(*PROMPT), ask(4, 5, 6, adapter="two", tokens=100)
    whole, expected = without_drafts(monkeypatch, engine, [bad, good])
    oracle.answers.update({PROMPT: [t for t, *_ in whole], (4, 5, 6): [t for t, *_ in expected]})
    step = DecodeBatch.step

    def struck(batch, tokens, *arguments):
        logits, place = step(batch, tokens, *arguments), 0
        for row, new in zip(batch.rows, tokens, strict=True):
            if row.request is bad:
                logits[place + 3, 5] = torch.nan  # behind the third token of the draft
            place += len(new)
        return logits

    monkeypatch.setattr(DecodeBatch, "step", struck)
    answers, got = [engine.submit(bad), engine.submit(good)], []
    with pytest.raises(AdapterError, match="numbers overflow"):
        for event in answers[0]:
            got.append((event.token_id, event.logprob, event.text, event.finish_reason))
    assert got == whole[:4]
    assert seen(answers[1]) == expected
    wait_until(lambda: not engine._scheduler.has_work)
    kept = [ids for _, ids in engine._prefix_cache._entries]
    assert kept and all(ids[:3] == (4, 5, 6) for ids in kept)


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
