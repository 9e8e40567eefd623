"""Rows, batches and their order: which tokens carry loss, resuming at any position, skipped examples."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.base import template
from adapter.base.template import Message, encode_answer, encode_conversation, encode_prompt
from tests.tiny_models import character_tokenizer
from train.formats.dataset import Record, open_records
from train.input.batches import Batches, StreamPosition
from train.input.examples import (
    Example,
    FilePart,
    ShuffledExamples,
    SkippedExamples,
    sample_history,
    with_unseen_history,
)
from train.input.rows import IGNORED, Tokeniser


def numbered_examples():
    rng = random.Random(5)
    return (Example((Message("user", f"{i}>" + "x" * rng.randrange(9)),), str(i % 7)) for i in range(10**9))


def ids(found, count):
    return [[tuple(row.ids) for row in rows] for rows in itertools.islice(iter(found), count)]


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


def test_history_precedes_some_examples_and_carries_no_loss(tiny_base, tmp_path):
    path = tmp_path / "rows.jsonl"
    several = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    rows = [*({"messages": several[:2]} for _ in range(40)), *({"messages": several} for _ in range(10))]
    path.write_text("\n".join(map(json.dumps, rows)))
    records = open_records(path)

    def examples(share):
        shuffled = ShuffledExamples([FilePart(records, np.arange(50))], 3, SkippedExamples(), share)
        return list(itertools.islice(shuffled, 50))

    assert not any(example.history for example in examples(0))
    with_history = [example for example in examples(0.5) if example.history]
    assert 10 < len(with_history) < 30 and all(len(example.messages) == 1 for example in with_history)
    roomy = Tokeniser(tiny_base.tokenizer, "raw", 10_000)
    for example in with_history:
        plain, row = roomy.row(replace(example, history=())), roomy.row(example)
        assert len(row.ids) > len(plain.ids)
        learnt = [[label for label in r.labels if label != IGNORED] for r in (plain, row)]
        assert learnt[0] == learnt[1] == row.labels[-len(learnt[1]) :]
        # Where there is no room, the history is left out and not the answer.
        assert Tokeniser(tiny_base.tokenizer, "raw", len(plain.ids)).row(example).labels == plain.labels


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
    trimming = character_tokenizer()
    trimming.chat_template = "{% for m in messages %}{{ m.content | trim }}|{% endfor %}"
    turns = [Message("user", "one"), Message("assistant", "first \n"), *TURNS[3:]]
    ids, learnt = encode_conversation(trimming, turns, "chat", True)
    assert trimming.decode(list(itertools.compress(ids, learnt)), skip_special_tokens=True) == "firstsecond"


def test_a_long_conversation_is_encoded_as_far_as_it_is_learnt(tiny_base, monkeypatch):
    record, encoded = Record((*TURNS[1:3] * 500,), None, "line 1"), []
    monkeypatch.setattr(template, "encode_prompt", lambda *given: encoded.append(1) or encode_prompt(*given))
    row = Tokeniser(tiny_base.tokenizer, "chat", 99).row(Example.of(record), truncate=False)
    ids, learnt = encode_conversation(tiny_base.tokenizer, record.messages[:40], "chat", True)
    assert row.ids[:99] == ids[:99] and [label != IGNORED for label in row.labels[:99]] == learnt[:99]
    assert len(row.ids) > 2000 and len(encoded) < 50 + 20


def test_a_row_with_a_token_that_the_base_lacks_is_passed_over_by_name(tiny_base):
    example, said = Example.of(Record((Message("user", "a"), Message("assistant", "z")), None, "line 7")), []
    last = max(Tokeniser(tiny_base.tokenizer, "raw", 99).row(example).ids)
    for size, rows in ((last + 1, 1), (last, 0)):
        skipped = SkippedExamples(said.append)
        assert len(Tokeniser(tiny_base.tokenizer, "raw", 99, skipped, size).rows([example])) == rows
    assert said == ["skipped: line 7: it holds a token that this base does not have"]


def test_an_unlearnt_answer_carries_no_loss_and_changes_no_token(tiny_base):
    record = Record(TURNS, None, "line 1", unlearnt=(2,))
    ids, labels, _ = Tokeniser(tiny_base.tokenizer, "chat", 99).row(Example.of(record))
    learnt = [token for token in labels if token != -100]
    assert tiny_base.tokenizer.decode(learnt, skip_special_tokens=True) == "second"
    assert ids == encode_conversation(tiny_base.tokenizer, TURNS, "chat", True)[0]


def test_an_alpaca_record_is_learnt_with_the_prompt_that_it_is_served_with(tmp_path):
    """Instruction and input in a record, one text in the chat; the end token is learnt with the answer."""
    record = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    tokenizer = character_tokenizer()
    row = Tokeniser(tokenizer, "alpaca", 512).row(Example.of(open_records(tmp_path / "data.json")[0]))
    asked = encode_prompt(tokenizer, [Message("user", "Add.\n\n### Input:\n2 and 3")], "alpaca")
    assert row.ids == [*asked, *tokenizer("5").input_ids, tokenizer.eos_token_id]
    assert [label for label in row.labels if label != IGNORED] == row.ids[len(asked) :]
