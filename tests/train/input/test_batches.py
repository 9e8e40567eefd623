"""Rows, batches and their order: which tokens carry loss, resuming at any position, skipped examples."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.base.template import Message, encode_answer, encode_conversation, encode_prompt
from tests.tiny_models import character_tokenizer
from train.formats.dataset import DataError, Record, open_records
from train.input import batches
from train.input.batches import Batches, StreamPosition, collate
from train.input.examples import Example, Part, ShuffledExamples, SkippedExamples
from train.input.history import sample_history, with_unseen_history
from train.input.rows import IGNORED, Tokeniser


def numbered_examples(count=10**9):
    rng = random.Random(5)
    return (Example((Message("user", f"{i}>" + "x" * rng.randrange(9)),), str(i % 7)) for i in range(count))


def all_of(records):
    return [Part(records, np.arange(len(records)))]


def ids(found, count):
    return [[tuple(row.ids) for row in rows] for rows in itertools.islice(iter(found), count)]


@pytest.fixture
def tokeniser(tiny_base):
    return Tokeniser(tiny_base.tokenizer, "raw", 64)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 120), st.integers(1, 7))
def test_batches_continue_from_any_position_as_without_a_stop(tiny_base, taken, size):
    tokeniser = Tokeniser(tiny_base.tokenizer, "raw", 64)
    whole = ids(Batches(numbered_examples(), tokeniser, size, seed=1), taken + 5)
    first = Batches(numbered_examples(), tokeniser, size, seed=1)
    ids(first, taken)
    again = Batches(numbered_examples(), tokeniser, size, seed=1, position=StreamPosition(**vars(first.position)))
    assert ids(again, 5) == whole[taken:]


def test_scores_after_history_use_none_of_trainings_exchanges():
    rng, question = random.Random(1), (Message("user", "What now?"),)
    trained = {message.text for _ in range(500) for message in sample_history(rng)}
    scored = with_unseen_history([question] * 60)
    assert scored == with_unseen_history([question] * 60) and all(c[-1:] == question for c in scored)
    history = {message.text for conversation in scored for message in conversation[:-1]}
    assert len(history) > 10 and not history & trained


def test_history_precedes_some_examples_and_carries_no_loss(tokeniser, tmp_path):
    path = tmp_path / "rows.jsonl"
    several = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    rows = [*({"messages": several[:2]} for _ in range(40)), *({"messages": several} for _ in range(10))]
    path.write_text("\n".join(map(json.dumps, rows)))
    records = open_records(path)

    def examples(share, count=50):
        return list(itertools.islice(ShuffledExamples(all_of(records), 3, SkippedExamples(), share), count))

    assert not any(example.history for example in examples(0))
    seen = examples(0.5)
    assert seen == examples(0.5), "a function of the seed and the place"
    with_history = [example for example in seen if example.history]
    assert 10 < len(with_history) < 30 and all(len(example.messages) == 1 for example in with_history)
    ahead = ShuffledExamples(all_of(records), 3, SkippedExamples(), 0.5)
    ahead.skip(20)
    assert next(ahead) == seen[20]
    roomy = Tokeniser(tokeniser._tokenizer, "raw", 10_000)
    for example in with_history:
        plain, row = roomy.row(replace(example, history=())), roomy.row(example)
        assert len(row.ids) > len(plain.ids)
        learnt = [[label for label in r.labels if label != IGNORED] for r in (plain, row)]
        assert learnt[0] == learnt[1] == row.labels[-len(learnt[1]) :]
        # Where there is no room, the history is left out and not the answer.
        assert Tokeniser(tokeniser._tokenizer, "raw", len(plain.ids)).row(example).labels == plain.labels


def test_batches_hold_rows_of_similar_length(tokeniser):
    found = list(itertools.islice(iter(Batches(numbered_examples(), tokeniser, 8, seed=0)), 64))
    spread = [len(rows[-1].ids) - len(rows[0].ids) for rows in found]
    assert sum(spread) / len(spread) < 2
    lengths = [len(rows[0].ids) for rows in found]
    assert lengths != sorted(lengths)


def test_nothing_to_learn_is_an_error_and_not_a_loop(tokeniser, monkeypatch):
    monkeypatch.setattr(batches, "_MOST_EMPTY_GROUPS", 3)
    long = (Example((Message("user", "x" * 80),), "a") for _ in itertools.count())
    for examples in (long, iter(())):
        with pytest.raises(DataError, match="Nothing to learn"):
            next(iter(Batches(examples, tokeniser, 4, seed=0)))


def test_skipped_examples_are_logged_once_and_only_counted_after_twenty(tiny_base):
    logged = []
    skipped = SkippedExamples(logged.append)
    tokeniser = Tokeniser(tiny_base.tokenizer, "raw", 8, skipped)
    rows = [Example((Message("user", "x" * 9),), "a", where=f"line {i}") for i in range(30)]
    assert tokeniser.rows([*rows, *rows]) == []
    assert len(skipped.places) == 30 and len(logged) == 21
    assert "line 0: no token to learn is left within 8 tokens" in logged[0]


TURNS = (
    Message("system", "s"), Message("user", "one"), Message("assistant", "first"),
    Message("user", "two"), Message("assistant", "second"),
)  # fmt: skip


def test_all_answers_of_a_conversation_carry_loss_if_asked(tiny_base):
    tokenizer = tiny_base.tokenizer
    for all_turns, wanted in ((False, ["second"]), (True, ["first", "second"])):
        ids, learnt = encode_conversation(tokenizer, TURNS, "chat", all_turns)
        runs = itertools.groupby(zip(ids, learnt, strict=True), lambda pair: pair[1])
        answers = [[i for i, _ in run] for has_loss, run in runs if has_loss]
        assert [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers] == wanted
        # Loss on all answers does not change the tokens before the last one.
        assert ids == encode_prompt(tokenizer, TURNS[:-1], "chat") + encode_answer(tokenizer, "second")


def test_an_unlearnt_answer_carries_no_loss_and_changes_no_token(tiny_base):
    record = Record(TURNS, None, "line 1", unlearnt=(2,))
    ids, labels, _ = Tokeniser(tiny_base.tokenizer, "chat", 99).row(Example.of(record))
    learnt = [token for token in labels if token != -100]
    assert tiny_base.tokenizer.decode(learnt, skip_special_tokens=True) == "second"
    assert ids == encode_conversation(tiny_base.tokenizer, TURNS, "chat", True)[0]


def test_a_batch_counts_tokens_with_loss(tokeniser):
    rows = tokeniser.rows(itertools.islice(numbered_examples(), 6))
    batch = collate(rows, tokeniser.pad)
    assert batch.supervised == int((batch.labels[:, 1:] != IGNORED).sum()) == 12
    assert batch.tokens == sum(len(row.ids) for row in rows) < batch.input_ids.numel()
    assert batch.to(torch.device("cpu")).tokens == batch.tokens


def test_an_alpaca_record_is_learnt_with_the_prompt_that_it_is_served_with(tmp_path):
    """Instruction and input in a record, one text in the chat; the end token is learnt with the answer."""
    record = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    tokenizer = character_tokenizer()
    row = Tokeniser(tokenizer, "alpaca", 512).row(Example.of(open_records(tmp_path / "data.json")[0]))
    asked = encode_prompt(tokenizer, [Message("user", "Add.\n\n### Input:\n2 and 3")], "alpaca")
    assert row.ids == [*asked, *tokenizer("5").input_ids, tokenizer.eos_token_id]
    assert [label for label in row.labels if label != IGNORED] == row.ids[len(asked) :]
