"""Answers of the frozen base that recipes learn from: generated once, cut at a sentence. A tiny base."""

from __future__ import annotations

import pytest

from adapter.base.template import Message
from train.evaluate.answerer import Answerer
from train.recipes import base_answers, off_task


def asked(*texts: str):
    return [(Message("user", text),) for text in texts]


@pytest.fixture
def generated(monkeypatch, tmp_path):
    """How many prompts the engine was asked for, call by call; the cache is a folder of the test."""
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", str(tmp_path))
    calls: list[int] = []
    generate_from = Answerer.generate_from

    def counting(self, prompts, *args, **kwargs):
        calls.append(len(prompts))
        return generate_from(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Answerer, "generate_from", counting)
    return calls


def test_an_answer_is_generated_once(tiny_base, generated):
    answer = base_answers.base_answers(tiny_base, 6)
    first = answer(asked("a", "b", "a"))
    assert generated == [2] and first[0] == first[2]
    assert first[:2] == Answerer(tiny_base, None).generate(asked("a", "b"), max_new_tokens=6)
    del generated[:]
    assert base_answers.base_answers(tiny_base, 6)(asked("b", "c", "a"))[::2] == first[1::-1] and generated == [1]
    # Of another length it is another answer, and what has begun goes on.
    assert base_answers.base_answers(tiny_base, 5)(asked("a")) == [first[0][:5]] and generated == [1, 1]
    begun = (*asked("a")[0], Message("assistant", first[0][:2]))
    assert base_answers.base_answers(tiny_base, 4)([begun]) == [first[0][2:]] and generated == [1, 1, 1]
    stopped = base_answers.base_answers(tiny_base, 6, stop=first[0][3])(asked("a"))
    assert stopped == [first[0].partition(first[0][3])[0]]


def test_an_answer_that_a_kill_has_cut_short_is_generated_again(tiny_base, generated, tmp_path):
    answer = base_answers.base_answers(tiny_base, 6)
    first = answer(asked("a", "b"))
    (file,) = tmp_path.glob("answers/*.jsonl")
    file.write_text(file.read_text(encoding="utf-8")[:-3], encoding="utf-8")
    del generated[:]
    assert answer(asked("a", "b")) == first and generated == [1]


def test_first_sentences():
    cut = base_answers.first_sentences
    assert cut("Dr. Lee is nice. He works. He sleeps.", 2, 38) == "Dr. Lee is nice. He works."
    assert cut("Pi is 3.14 or so. And then it", 3, 38) == "Pi is 3.14 or so."
    assert cut("It is one. It is of many words here.", 2, 6) == "It is one."
    for bad in ("", "Yes.", "no end", "Here:\n1. a b c d.", "It is so. It is so.", "A list is:\n- one of it.",
                "a map of a city of a map of a city is here.", "It is is so.", "word " * 60 + "."):  # fmt: skip
        assert cut(bad, 2, 38) is None, bad


def test_off_task_answers_are_the_bases_where_they_are_fit_to_learn_from():
    messages = off_task.off_task_messages()
    assert len(messages) == len(set(messages)) > 600
    bad = {0: "Here you go:\n1. one\n2. two", 1: "so so so so so so so so so so so so."}
    examples = off_task.answered_messages(
        lambda conversations: [bad.get(i, f"It is number {i}. I") for i in range(len(conversations))]
    )
    answers = {example.messages[-1].text: example.answer for example in examples}
    assert not set(messages[:2]) & set(answers) and answers[messages[2]] == "It is number 2."
    assert "picture" in answers["Describe this photo."] and len(examples) > len(messages)
