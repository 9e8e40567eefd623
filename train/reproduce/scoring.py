"""Answers by likelihood with one forward pass a question, and their accuracy. Knows problems and logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapter.base.template import encode_answer, encode_prompt
from train.evaluate.answerer import Answerer
from train.formats.scienceqa import LETTERS, Problem
from train.reproduce.benchmark import TEMPLATE, Benchmark, prompt


@dataclass(frozen=True)
class Answers:
    """For each problem: whether the answer is right, and the right letter's negative log-likelihood in nats."""

    right: tuple[bool, ...]
    loss: tuple[float, ...]

    def accuracy(self) -> float:
        """In percent."""
        return 100 * sum(self.right) / len(self.right)


def answer(answerer: Answerer, problems: Sequence[Problem], benchmark: Benchmark, shown: bool = True) -> Answers:
    """Answers each problem by the likeliest of its letters. shown: with the pictures."""
    tokenizer = answerer.base.tokenizer
    letters = [encode_answer(tokenizer, letter)[0] for letter in LETTERS]
    prompts = [encode_prompt(tokenizer, [prompt(p)], TEMPLATE) for p in problems]
    logs = answerer.next_logprobs(prompts, letters, [benchmark.picture(p, shown) for p in problems])
    right = [int(row[: len(p.choices)].argmax()) == p.answer for row, p in zip(logs, problems, strict=True)]
    return Answers(tuple(right), tuple(-float(row[p.answer]) for row, p in zip(logs, problems, strict=True)))
