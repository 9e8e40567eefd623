"""Recipe of the `extract` adapter: a message about a person, a meeting or an order becomes one JSON object.

The object has its "type" first, then only the fields that the text gives, in the order of `FIELDS`. A value is a span
of the text, letter for letter, without a leading article or preposition; "quantity" alone is a number ("a dozen" is
12, "a red mug" is 1). Phrases, names and words of validation and test are disjoint from training's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from adapter.base.llama import Base
from adapter.base.template import Message
from adapter.method.config import TuningConfig
from train.config import TrainConfig
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure, ratio, share
from train.input.examples import Example
from train.input.history import with_unseen_history
from train.recipes.extract_form import answer_form
from train.recipes.extract_grammar import FIELDS
from train.recipes.extract_messages import Fields, answer_text, draw_example
from train.recipes.off_task import off_task_examples
from train.recipes.recipe import Recipe
from train.recipes.sealed_sets import extract_scores
from train.recipes.text_data import DATA, read_yaml

VALIDATION_SIZE, TEST_SIZE = 300, 200
_TEST_SEED = 7001

# Of training's examples: messages for something else, such as small talk, and two messages in one conversation.
_OFF_TASK, _PAIRS = 0.07, 0.15
_OFF_TASK_AFTER_OBJECT = 0.4  # share of the off-task messages that follow an object

CONFIG = TrainConfig(
    name="extract",
    description="Turns a message about a person, a meeting or an order into a JSON object.",
    form=answer_form(),
    steps=1400,
    batch_size=16,
    lr=6e-3,
    gate_lr=2e-2,
    tuning_lr=3e-3,
    clip_norm=1.0,
    average=0.99,
    prompt_length=16,
    insertion_layers=20,
    prompt_std=0.2,
    prompt_norm=True,
    tuning=TuningConfig(intermediate_size=1, norms=True, lora_rank=8, layers=20),
    keep=0.06,
    eval_every=280,
    held_out=128,
    checkpoint_every=280,
)
CARD_TEXT = """Trained on messages composed from phrase books (`train/recipes/data/extract_train*.yaml`), with people's names from
Faker, invented names and addresses among them: chats, mails, notes, lists and signatures, with asides, typing slips,
instructions and earlier turns in the manner of other adapters; and on messages for something else, with the bare
base's own answers. The held-out loss is that of messages from another book, with other words and names
(`train/recipes/data/extract_validation.yaml`). Development sets, whose mistakes were read: 200 messages from a third
book (`train/recipes/data/extract_held_out.yaml`) and sentences written by hand
(`train/recipes/data/extract_hand_written.yaml`). The bare base is told in words which fields to write; the adapter gets
the message alone."""
_INSTRUCTION_FOR_BASE = (
    'Turn this message into one JSON object. Its first field is "type": person, meeting or order. The other fields, '
    "only those that the message gives: "
    + "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in FIELDS.items())
    + ".\n\n"
)


def recipe(base: Base) -> Recipe:
    """The recipe, ready to train and to measure."""
    assert CONFIG.tuning is not None
    tuning = replace(CONFIG.tuning, intermediate_size=base.model.config.intermediate_size)

    def of_split(split: str) -> Iterator[Example]:
        return training_examples(off_task_examples(base)) if split == "train" else examples(split)

    return Recipe(replace(CONFIG, tuning=tuning), CARD_TEXT, of_split, development, scores)


def training_examples(off_task: Sequence[Example]) -> Iterator[Example]:
    """Endless: messages and their objects, some of them two in a conversation, and messages for something else.

    off_task: the latter, with the base's own answers.
    """
    rng, drawn = random.Random("training"), examples("train")
    for example in drawn:
        roll = rng.random()
        if roll < _OFF_TASK:
            other = rng.choice(off_task)
            yield _joined(example, other) if rng.random() < _OFF_TASK_AFTER_OBJECT else other
        elif roll < _OFF_TASK + _PAIRS:
            yield _joined(example, next(e for e in drawn if len(e.messages) == 1))
        else:
            yield example


def _joined(first: Example, second: Example) -> Example:
    """The second, of one turn, after the first; the first's answer carries loss too if it is the only earlier one."""
    earlier = (*first.messages, Message("assistant", first.answer))
    return Example((*earlier, *second.messages), second.answer, all_turns=len(first.messages) == 1)


def examples(split: str, seed: int = 0) -> Iterator[Example]:
    """Endless for "train"; 300 examples for "validation" and 200 for "test", each from phrases of its own."""
    size = {"train": None, "validation": VALIDATION_SIZE, "test": TEST_SIZE}[split]
    rng = random.Random(f"{split} {seed}")
    count = 0
    while size is None or count < size:
        yield draw_example(rng, split)
        count += 1


def test_set() -> list[Example]:
    """The 200 generated test examples that the card reports."""
    return list(examples("test", _TEST_SEED))


def hand_written() -> list[Example]:
    """The sentences written by hand, each as a conversation of one turn."""
    tests = read_yaml(DATA / "extract_hand_written.yaml")
    return [Example((Message("user", test["text"]),), answer_text(test["fields"])) for test in tests]


def scores(answerer: Answerer) -> dict[str, Figure]:
    """On the sealed sets, by the same rule."""
    return extract_scores(answerer, score_answer, _INSTRUCTION_FOR_BASE)


def development(answerer: Answerer) -> dict[str, Figure]:
    """Shares, in percent, of whole objects and of single fields that are right, on both test sets."""
    result = {}
    for name, tests, other_talk in (
        ("unseen phrasings", test_set(), False),
        ("hand-written", hand_written(), False),
        ("hand-written, after other talk", hand_written(), True),
    ):
        conversations = [test.messages for test in tests]
        if answerer.adapter is None:
            conversations = [(Message("user", _INSTRUCTION_FOR_BASE + c[-1].text),) for c in conversations]
        answers = answerer.generate(with_unseen_history(conversations) if other_talk else conversations)
        marks = [score_answer(a, json.loads(t.answer)) for a, t in zip(answers, tests, strict=True)]
        result[f"{name}: whole object, %"] = share([m[0] for m in marks])
        result[f"{name}: single fields, %"] = ratio([100 * m[1] for m in marks], [m[2] for m in marks], seed=0)
    return result


def score_answer(answer: str, expected: Fields) -> tuple[bool, int, int, bool]:
    """Whether the answer is the whole object, how many expected fields are right, out of how many, and if it is JSON.

    Values are compared after `strip`, with case; a number also when written as a string of digits is wrong. A field
    too many spoils the whole object but no single field; "type" counts as a field.
    """
    try:
        found = json.loads(answer.strip())
    except ValueError:
        return False, 0, len(expected), False
    if not isinstance(found, dict):
        return False, 0, len(expected), False

    def same(left: object, right: object) -> bool:
        if isinstance(left, str) and isinstance(right, str):
            return left.strip() == right.strip()
        return type(left) is type(right) and left == right

    right = sum(name in found and same(found[name], value) for name, value in expected.items())
    return right == len(expected) == len(found), right, len(expected), True
