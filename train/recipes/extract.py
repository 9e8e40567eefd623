"""Recipe of the `extract` adapter: a message about a person, a meeting or an order becomes one JSON object.

The object has its "type" first, then only the fields that the text gives, in the order of `FIELDS`. A value is a span
of the text, letter for letter, without a leading article or preposition; "quantity" alone is a number ("a dozen" is
12, "a red mug" is 1). Phrases, names, words and some formats of validation and test are disjoint from training's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from adapter.base.llama import Base
from adapter.base.template import Message
from train.config import TrainConfig
from train.evaluate.answerer import Answerer
from train.input.examples import Example
from train.input.history import with_unseen_history
from train.recipes.extract_grammar import (
    FIELDS,
    Facts,
    SplitPhrases,
    add_noise,
    capitalize_first,
    fill_slots,
    labelled_list,
    nonsense,
    note,
    prose,
    resolve_choices,
    split_phrases,
)
from train.recipes.extract_values import draw_record
from train.recipes.recipe import Recipe
from train.recipes.text_data import DATA, read_yaml

Fields = dict[str, str | int]

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
CARD_TEXT = """Trained on messages composed from a grammar (`train/recipes/data/extract_train.yaml`), with people's names from Faker:
prose, notes, mail signatures, with distracting sentences and earlier turns. Tested on 200 messages whose phrasings,
names, products and some formats of dates, phone numbers and prices never occur in training
(`train/recipes/data/extract_held_out.yaml`), and on sentences written by hand
(`train/recipes/data/extract_hand_written.yaml`). The bare base is told in words which fields to write; the adapter
gets the message alone. Validation messages have the test's phrases in other combinations; mistakes on them were read
while the recipe was written, the test was only scored."""
_INSTRUCTION_FOR_BASE = (
    'Turn this message into one JSON object. Its first field is "type": person, meeting or order. The other fields, '
    "only those that the message gives: "
    + "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in FIELDS.items())
    + ".\n\n"
)


def recipe(_: Base) -> Recipe:
    """The recipe, ready to train and to measure."""
    return Recipe(CONFIG, CARD_TEXT, examples, scores)


def examples(split: str, seed: int = 0) -> Iterator[Example]:
    """Endless for "train"; 300 examples for "validation" and 200 for "test", both from the held-out phrases."""
    size = {"train": None, "validation": VALIDATION_SIZE, "test": TEST_SIZE}[split]
    rng = random.Random(f"{split} {seed}")
    count = 0
    while size is None or count < size:
        yield _example(rng, held_out=split != "train")
        count += 1


def test_set() -> list[Example]:
    """The 200 generated test examples that the card reports."""
    return list(examples("test", _TEST_SEED))


def hand_written() -> list[Example]:
    """The sentences written by hand, each as a conversation of one turn."""
    tests = read_yaml(DATA / "extract_hand_written.yaml")
    return [Example((Message("user", test["text"]),), answer_text(test["fields"])) for test in tests]


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
            conversations = [(Message("user", _INSTRUCTION_FOR_BASE + c[-1].text),) for c in conversations]
        answers = answerer.generate(with_unseen_history(conversations) if other_talk else conversations)
        marks = [score_answer(a, json.loads(t.answer)) for a, t in zip(answers, tests, strict=True)]
        result[f"{name} ({len(tests)}): whole object, %"] = 100 * sum(m[0] for m in marks) / len(marks)
        result[f"{name} ({len(tests)}): single fields, %"] = (
            100 * sum(m[1] for m in marks) / sum(m[2] for m in marks)
        )
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


def answer_text(expected: Fields) -> str:
    """The answer as the adapter is to write it."""
    return json.dumps(expected, ensure_ascii=False)


def _example(rng: random.Random, held_out: bool) -> Example:
    """One example of a split: a text, mostly bare, at times under an instruction or late in a conversation."""
    phrases = split_phrases(held_out)
    earlier: list[Message] = []
    if rng.random() < 0.2:
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.35:
                question, expected = _text_and_fields(rng, held_out)
                answer = answer_text(expected)
            else:
                question, answer = rng.choice(phrases.chat)
            earlier += [Message("user", question), Message("assistant", answer)]
    text, expected = _text_and_fields(rng, held_out)
    if rng.random() < 0.28:
        text = resolve_choices(rng.choice(phrases.instructions), rng).replace("{text}", text)
    return Example((*earlier, Message("user", text)), answer_text(expected))


def _text_and_fields(rng: random.Random, held_out: bool) -> tuple[str, Fields]:
    """A text of any kind and the object that it should become."""
    kind = rng.choice(_KINDS)
    record = draw_record(kind, rng, held_out)
    if rng.random() < 0.1:  # all in lower case
        record.values = {
            name: value.lower() if isinstance(value, str) else value for name, value in record.values.items()
        }
        record.forms = {slot: form.lower() for slot, form in record.forms.items()}
        text = _text(record, rng, held_out).lower()
    else:
        text = _text(record, rng, held_out)
    expected: Fields = {"type": kind}
    for name in FIELDS[kind]:
        if name in record.values:
            value = record.values[name]
            if isinstance(value, str) and value not in text:
                value = capitalize_first(value)
            expected[name] = value
    return text, expected


def _text(record: Facts, rng: random.Random, held_out: bool) -> str:
    phrases = split_phrases(held_out)
    book = phrases.books[record.kind]
    roll = rng.random()
    if roll < 0.14:
        return fill_slots(note(book, record, rng, rng.choice(phrases.separators)), record.forms)
    if roll < 0.19:
        return fill_slots(
            labelled_list(book, record, rng, rng.choice(phrases.block_titles[record.kind])), record.forms
        )
    if roll < 0.25 and record.kind == "person":
        return _mail_signature(record, rng, phrases)
    return _message(record, rng, phrases, noisy=not held_out)


def _mail_signature(record: Facts, rng: random.Random, phrases: SplitPhrases) -> str:
    """The end of a mail whose sender is the person."""
    lines = ["{raw name}"]
    rest = [name for name in FIELDS["person"][1:] if name in record.values]
    if {"role", "company"} <= set(rest) and rng.random() < 0.5:
        lines.append("{role}, {company}")
        rest = [name for name in rest if name not in ("role", "company")]
    lines += ["{raw " + name + "}" for name in rest]
    body = rng.choice(phrases.signature_bodies)
    opening = capitalize_first(rng.choice(("hi {other},", "dear {other},", "hello {other},"))) + "\n\n"
    opening = fill_slots(opening, record.forms) if rng.random() < 0.5 else ""
    signoff = rng.choice(phrases.signoffs)
    contact = fill_slots(rng.choice(("\n", "\n", " | ")).join(lines), record.forms)
    return f"{opening}{capitalize_first(body)}\n{signoff}\n{contact}"


def _message(record: Facts, rng: random.Random, phrases: SplitPhrases, noisy: bool) -> str:
    """Sentences in a row: at times an opening before them, a distractor among them, a closing after them.

    noisy: some have strange words, or nonsense among them.
    """
    kind = "self" if record.kind == "person" and rng.random() < 0.12 else record.kind
    book = phrases.books[kind]
    sentences = prose(book, record, rng)
    states_fields = [True] * len(sentences)
    if rng.random() < 0.32:
        place = rng.choice((0, len(sentences), len(sentences), rng.randint(0, len(sentences))))
        # A pronoun needs somebody before it: the first sentence introduces the person.
        place = max(place, 1) if record.kind == "person" else place
        sentences.insert(place, resolve_choices(rng.choice(book.distractors), rng))
        states_fields.insert(place, False)
    if noisy and rng.random() < 0.35:
        sentences = [add_noise(sentence, rng) for sentence in sentences]
        if rng.random() < 0.4:
            place = rng.randint(1, len(sentences))
            sentences.insert(place, nonsense(rng))
            states_fields.insert(place, False)
    opening = resolve_choices(rng.choice(phrases.openings), rng) if rng.random() < 0.25 else ""
    text = ""
    if opening:
        line_break = opening[-1] == "," and rng.random() < 0.3
        text = fill_slots(capitalize_first(opening), record.forms) + ("\n" if line_break else " ")
    starts_sentence = not opening or opening[-1] not in ",:" or text[-1] == "\n" or rng.random() < 0.3
    for number, sentence in enumerate(sentences):
        filled = fill_slots(sentence, record.forms).replace("..", ".")  # after "p.m." and "Inc."
        if starts_sentence and not sentence.startswith("{email}"):
            filled = capitalize_first(filled)
        last = number + 1 == len(sentences)
        starts_sentence = True
        if not last and all(states_fields[number : number + 2]) and filled.endswith(".") and rng.random() < 0.25:
            filled, starts_sentence = filled[:-1] + rng.choice((", and", ";", ",", " -")), False
        text += filled + ("" if last else " ")
    if rng.random() < 0.12:
        gap = rng.choice((" ", "\n", "\n\n"))
        closing = resolve_choices(rng.choice(phrases.closings), rng)
        return text + gap + fill_slots(capitalize_first(closing), record.forms)
    if text.endswith(".") and not text.endswith(tuple(record.forms.values())) and rng.random() < 0.2:
        return text[:-1] + rng.choice(("", "", "!"))
    return text
