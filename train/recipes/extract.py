"""Recipe of the `extract` adapter: a message about a person, a meeting or an order becomes one JSON object.

The object names its "type", then only the fields that the text gives, in the order of `FIELDS`. A value is the span of
the text, letter for letter, without a leading article or preposition; "quantity" alone is a number ("a dozen" is 12,
"a red mug" is 1). Phrases, names, words and some formats of validation and test are disjoint from training's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from types import ModuleType

from adapter.base.llama import Base
from adapter.base.template import Message
from train.config import TrainConfig
from train.data import Example
from train.history import with_unseen_history
from train.recipes import extract_asides, extract_held, extract_train, extract_values
from train.recipes.extract_grammar import FIELDS, Record, block, capital, choose, fill, note, prose
from train.recipes.extract_handwritten import HAND_WRITTEN
from train.recipes.recipe import Recipe
from train.score import Answerer

__all__ = [
    "CONFIG",
    "FIELDS",
    "HAND_WRITTEN",
    "examples",
    "hand_written",
    "score_answer",
    "test_set",
]

VALIDATION_SIZE, TEST_SIZE = 300, 200
_TEST_SEED = 7001
_KINDS = ("person", "person", "meeting", "meeting", "order", "order", "person", "order", "meeting")

CONFIG = TrainConfig(
    name="extract",
    description="Turns a message about a person, a meeting or an order into a JSON object.",
    steps=1800,
    batch_size=8,
    lr=6e-3,
    gate_lr=2e-2,
    clip_norm=1.0,
    prompt_length=48,
    prompt_std=0.2,
    prompt_norm=True,
    eval_every=150,
    held_out=128,
)
DATA = """Trained on messages composed from a grammar (`train/recipes/extract_train.py`) with names, companies and dates
of Faker: prose, notes, mail signatures, with distracting sentences and earlier turns. Tested on 200 messages whose
phrasings, names, products and some formats of dates, phone numbers and prices never occur in training
(`train/recipes/extract_held.py`), and on sentences written by hand (`train/recipes/extract_handwritten.py`). The bare
base is told in words which fields to write; the adapter gets the message alone. Validation messages have the test's
phrases in other combinations; mistakes on them were read while the recipe was written, the test was only scored."""
_TOLD = (
    'Turn this message into one JSON object. Its first field is "type": person, meeting or order. The other fields, '
    "only those that the message gives: "
    + "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in FIELDS.items())
    + ".\n\n"
)


def recipe(_: Base) -> Recipe:
    """The recipe, ready to train and to measure."""
    return Recipe(CONFIG, DATA, examples, scores)


def scores(answerer: Answerer) -> dict[str, float]:
    """Shares, in percent, of whole objects and of single fields that are right, on both test sets."""
    result = {}
    for name, tests, other_talk in (
        ("unseen phrasings", test_set(), False),
        ("hand-written", hand_written(), False),
        ("hand-written, after other talk", hand_written(), True),
    ):
        conversations = [test.messages for test in tests]
        if answerer.adapter is None:
            conversations = [(Message("user", _TOLD + c[-1].text),) for c in conversations]
        answers = answerer.generate(with_unseen_history(conversations) if other_talk else conversations)
        marks = [score_answer(a, json.loads(t.answer)) for a, t in zip(answers, tests, strict=True)]
        result[f"{name} ({len(tests)}): whole object, %"] = 100 * sum(m[0] for m in marks) / len(marks)
        result[f"{name} ({len(tests)}): single fields, %"] = (
            100 * sum(m[1] for m in marks) / sum(m[2] for m in marks)
        )
    return result


def answer_text(expected: dict[str, str | int]) -> str:
    """The answer as the adapter is to write it."""
    return json.dumps(expected, ensure_ascii=False)


def examples(split: str, seed: int = 0) -> Iterator[Example]:
    """Endless for "train"; 300 examples for "validation" and 200 for "test", both from the held-out phrases."""
    sizes = {"train": None, "validation": VALIDATION_SIZE, "test": TEST_SIZE}
    size = sizes[split]
    rng = random.Random(f"{split} {seed}")
    count = 0
    while size is None or count < size:
        yield _example(rng, held=split != "train")
        count += 1


def test_set() -> list[Example]:
    """The 200 generated test examples that the card reports."""
    return list(examples("test", _TEST_SEED))


def hand_written() -> list[Example]:
    """The hand-written sentences, each as a conversation of one turn."""
    return [Example((Message("user", text),), answer_text(expected)) for text, expected in HAND_WRITTEN]


def score_answer(answer: str, expected: dict[str, str | int]) -> tuple[bool, int, int, bool]:
    """Whether the answer is the whole object, how many expected fields are right, out of how many, is it JSON.

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


def _example(rng: random.Random, held: bool) -> Example:
    """One example of a split: a text, mostly bare, at times under an instruction or late in a conversation."""
    phrases = extract_held if held else extract_train
    earlier: list[Message] = []
    if rng.random() < 0.2:
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.35:
                text, expected = compose(rng.choice(_KINDS), rng, held)
                question, answer = text, answer_text(expected)
            else:
                question, answer = rng.choice(phrases.CHAT)
            earlier += [Message("user", question), Message("assistant", answer)]
    text, expected = compose(rng.choice(_KINDS), rng, held)
    if rng.random() < 0.28:
        text = choose(rng.choice(phrases.INSTRUCTIONS), rng).replace("{text}", text)
    return Example((*earlier, Message("user", text)), answer_text(expected))


def compose(kind: str, rng: random.Random, held: bool) -> tuple[str, dict[str, str | int]]:
    """A text of that kind and the object it should become."""
    record = extract_values.record(kind, rng, held)
    phrases = extract_held if held else extract_train
    if rng.random() < 0.1:
        record.values = {
            name: value.lower() if isinstance(value, str) else value for name, value in record.values.items()
        }
        record.forms = {slot: form.lower() for slot, form in record.forms.items()}
        text = _text(record, rng, phrases).lower()
    else:
        text = _text(record, rng, phrases)
    expected: dict[str, str | int] = {"type": kind}
    for name in FIELDS[kind]:
        if name in record.values:
            value = record.values[name]
            if isinstance(value, str) and value not in text:
                value = capital(value)
            expected[name] = value
    return text, expected


def _text(record: Record, rng: random.Random, phrases: ModuleType) -> str:
    book = phrases.BOOKS[record.kind]
    roll = rng.random()
    if roll < 0.14:
        return fill(note(book, record, rng, rng.choice(phrases.SEPARATORS)), record.forms)
    if roll < 0.19:
        return fill(block(book, record, rng, rng.choice(phrases.BLOCK_TITLES[record.kind])), record.forms)
    if roll < 0.25 and record.kind == "person":
        return _signature(record, rng, phrases)
    return _message(record, rng, phrases)


def _signature(record: Record, rng: random.Random, phrases: ModuleType) -> str:
    """The end of a mail whose sender is the person."""
    lines = ["{raw name}"]
    rest = [name for name in FIELDS["person"][1:] if name in record.values]
    if {"role", "company"} <= set(rest) and rng.random() < 0.5:
        lines.append("{role}, {company}")
        rest = [name for name in rest if name not in ("role", "company")]
    lines += ["{raw " + name + "}" for name in rest]
    body = rng.choice(phrases.SIGNATURE_BODIES)
    opening = fill(capital(rng.choice(("hi {other},", "dear {other},", "hello {other},"))) + "\n\n", record.forms)
    return (opening if rng.random() < 0.5 else "") + capital(body) + "\n" + rng.choice(phrases.SIGNOFFS) + "\n" + fill(
        rng.choice(("\n", "\n", " | ")).join(lines), record.forms
    )  # fmt: skip


def _message(record: Record, rng: random.Random, phrases: ModuleType) -> str:
    """Sentences in a row: at times an opening before them, a distractor among them, a closing after them."""
    book = phrases.BOOKS["self" if record.kind == "person" and rng.random() < 0.12 else record.kind]
    sentences = prose(book, record, rng)
    told = [True] * len(sentences)
    if rng.random() < 0.32:
        place = rng.choice((0, len(sentences), len(sentences), rng.randint(0, len(sentences))))
        # A pronoun needs somebody before it: the first sentence introduces the person.
        place = max(place, 1) if record.kind == "person" else place
        sentences.insert(place, choose(rng.choice(book.distractors), rng))
        told.insert(place, False)
    if phrases is extract_train and rng.random() < 0.35:
        sentences = [extract_asides.noisy(sentence, rng) for sentence in sentences]
        if rng.random() < 0.4:
            place = rng.randint(1, len(sentences))
            sentences.insert(place, extract_asides.nonsense(rng))
            told.insert(place, False)
    opening = choose(rng.choice(phrases.OPENINGS), rng) if rng.random() < 0.25 else ""
    text = ""
    if opening:
        text = fill(capital(opening), record.forms) + ("\n" if opening[-1] == "," and rng.random() < 0.3 else " ")
    start = not opening or opening[-1] not in ",:" or text[-1] == "\n" or rng.random() < 0.3
    for number, sentence in enumerate(sentences):
        filled = fill(sentence, record.forms).replace("..", ".")  # after "p.m." and "Inc."
        if start and not sentence.startswith("{email}"):
            filled = capital(filled)
        last = number + 1 == len(sentences)
        start = True
        if not last and told[number] and told[number + 1] and filled.endswith(".") and rng.random() < 0.25:
            filled, start = filled[:-1] + rng.choice((", and", ";", ",", " -")), False
        text += filled + ("" if last else " ")
    if rng.random() < 0.12:
        return (
            text
            + rng.choice((" ", "\n", "\n\n"))
            + fill(capital(choose(rng.choice(phrases.CLOSINGS), rng)), record.forms)
        )
    if text.endswith(".") and not text.endswith(tuple(record.forms.values())) and rng.random() < 0.2:
        return text[:-1] + rng.choice(("", "", "!"))
    return text
