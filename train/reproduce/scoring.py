"""Answers by likelihood with one forward pass a question, and their accuracy. Knows problems and logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from adapter.base.llama import Base
from adapter.base.template import encode_answer, encode_prompt
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.vision import VisualFeatures
from train.formats.scienceqa import COLUMNS, LETTERS, Problem, columns
from train.input.batches import stack_features
from train.loop import batch_prompts
from train.reproduce.benchmark import TEMPLATE, Benchmark, prompt

_ROWS = 24
_WINDOW, _WINDOWS = 256, 8  # tokens predicted together, and how often: unrelated text

# Returns the forward pass's further arguments for the pictures of a batch of rows.
ForwardArguments = Callable[[Sequence[VisualFeatures | None]], dict[str, Any]]


@dataclass(frozen=True)
class Answers:
    """For each problem: whether the answer is right, and the right letter's negative log-likelihood in nats."""

    right: tuple[bool, ...]
    loss: tuple[float, ...]

    def accuracy(self) -> float:
        """In percent."""
        return 100 * sum(self.right) / len(self.right)

    def mean_loss(self) -> float:
        return sum(self.loss) / len(self.loss)


def no_arguments(_: Sequence[VisualFeatures | None]) -> dict[str, Any]:
    """For the base without an adapter, and for bases whose own weights were trained."""
    return {}


def adapter_arguments(base: Base, adapter: Adapter, strength: float = 1.0) -> ForwardArguments:
    """For the base with an adapter whose gates are multiplied by `strength`."""
    adapter.eval()

    def arguments(pictures: Sequence[VisualFeatures | None]) -> dict[str, Any]:
        features, rows = stack_features(pictures if adapter.projection is not None else [])
        kv: PromptKV = batch_prompts(adapter, base.model, features, rows)
        return {"prompt_kv": kv.scaled(strength), "prompt_rows": rows}

    return arguments


@torch.no_grad()
def answer(
    base: Base,
    problems: Sequence[Problem],
    benchmark: Benchmark,
    arguments: ForwardArguments = no_arguments,
    shown: bool = True,
) -> Answers:
    """Answers each problem by the likeliest of its letters. shown: with the pictures."""
    tokenizer = base.tokenizer
    letters = torch.tensor([encode_answer(tokenizer, letter)[0] for letter in LETTERS])
    prompts = [encode_prompt(tokenizer, [prompt(p)], TEMPLATE) for p in problems]
    right, loss = [False] * len(prompts), [0.0] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), _ROWS):
        chosen = by_length[start : start + _ROWS]
        width = len(prompts[chosen[-1]])
        # Padding at the end needs no mask under causal attention.
        ids = torch.tensor([prompts[i] + [0] * (width - len(prompts[i])) for i in chosen])
        pictures = [benchmark.picture(problems[i], shown) for i in chosen]
        hidden = base.model.model(input_ids=ids, use_cache=False, **arguments(pictures)).last_hidden_state
        ends = torch.tensor([len(prompts[i]) - 1 for i in chosen])
        logs = base.model.lm_head(hidden[torch.arange(len(chosen)), ends]).float().log_softmax(-1)[:, letters]
        for row, i in zip(logs, chosen, strict=True):
            among = row[: len(problems[i].choices)]
            right[i] = int(among.argmax()) == problems[i].answer
            loss[i] = -float(row[problems[i].answer])
    return Answers(tuple(right), tuple(loss))


def table_row(problems: Sequence[Problem], right: Sequence[float]) -> dict[str, float]:
    """Percent right in each of COLUMNS that has problems. right: 0 to 1 for each problem."""
    found: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for problem, value in zip(problems, right, strict=True):
        for name in columns(problem):
            found[name].append(value)
    return {name: 100 * sum(values) / len(values) for name, values in found.items() if values}


def chance(problems: Sequence[Problem]) -> dict[str, float]:
    """The table_row of random guesses."""
    return table_row(problems, [1 / len(p.choices) for p in problems])


@torch.no_grad()
def perplexity(base: Base, text: str, arguments: ForwardArguments = no_arguments) -> float:
    """exp of the mean loss over the first windows of a text, each read on its own."""
    ids = base.tokenizer(text[: 8 * _WINDOW * _WINDOWS]).input_ids[: _WINDOW * _WINDOWS]
    losses = []
    for start in range(0, len(ids) - 1, _WINDOW):
        piece = torch.tensor([ids[start : start + _WINDOW]])
        hidden = base.model.model(input_ids=piece, use_cache=False, **arguments([None])).last_hidden_state
        logits = base.model.lm_head(hidden[0, :-1]).float()
        losses.append(F.cross_entropy(logits, piece[0, 1:]))
    return float(torch.stack(losses).mean().exp())
