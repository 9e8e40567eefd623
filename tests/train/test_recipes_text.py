"""The text recipes' data: deterministic, hold-out disjoint, values decidable, scores honest. No model."""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import fields
from types import ModuleType

import pytest

from train.recipes import (
    extract,
    extract_held,
    extract_people,
    extract_train,
    extract_values,
    extract_words,
    pirate,
    pirate_questions,
    pirate_voice,
)
from train.recipes.extract_grammar import draw, prose

KINDS = tuple(extract.FIELDS)


def expansions(pattern: str) -> set[str]:
    """Every text that a pattern can become, slots unfilled: all choices, optional parts in and out."""
    match = re.search(r"\[([^\[\]]*)\]|<([^<>\[\]]*)>", pattern)
    if not match:
        return {re.sub(r"[^a-z{}' ]+", " ", pattern.lower()).strip()}
    options = match.group(1).split("|") if match.group(1) is not None else ["", match.group(2)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return set().union(*(expansions(head + option + tail) for option in options))


def clauses(module: ModuleType) -> set[str]:
    """All clauses of a split, normalised, that hold a word of their own."""
    patterns = [*module.OPENINGS, *module.CLOSINGS, *module.SIGNATURE_BODIES, *module.SIGNOFFS]
    patterns += [text.replace("{text}", "") for text in module.INSTRUCTIONS]
    patterns += [turn for pair in module.CHAT for turn in pair]
    for book in module.BOOKS.values():
        patterns += [*book.heads, *book.followups, *book.distractors]
        patterns += [part for part in book.note_heads if "{" not in part]
        for parts in book.notes.values():
            patterns += parts
    texts = {re.sub(r" +", " ", text) for pattern in patterns for text in expansions(pattern)}
    return {text for text in texts if re.search(r"[a-z]", re.sub(r"\{[^}]*\}", "", text))}


def test_same_seed_same_examples_and_another_seed_others():
    for split in ("train", "validation", "test"):
        first, again, other = (list(itertools.islice(extract.examples(split, seed), 20)) for seed in (3, 3, 4))
        assert first == again != other


def test_sizes():
    assert len(list(extract.examples("validation", 0))) == extract.VALIDATION_SIZE
    assert len(extract.test_set()) == extract.TEST_SIZE
    assert len(extract.hand_written()) == len(extract.HAND_WRITTEN) >= 60


def test_no_held_out_clause_is_or_occurs_in_a_training_clause():
    train, held = clauses(extract_train), clauses(extract_held)
    assert not train & held
    everything = "\n".join(sorted(train))
    assert [clause for clause in held if len(clause.split()) > 1 and clause in everything] == []


def test_held_out_labels_titles_and_separators_are_new():
    for kind in KINDS:
        for name in extract.FIELDS[kind]:
            ours, theirs = (set(map(str.lower, m.BOOKS[kind].labels[name])) for m in (extract_held, extract_train))
            assert not ours & theirs
        assert not set(extract_held.BLOCK_TITLES[kind]) & set(extract_train.BLOCK_TITLES[kind]) - {""}


def test_held_out_words_names_and_formats_are_new():
    train, held = extract_words.train(), extract_words.held()
    for name in (entry.name for entry in fields(extract_words.Words)):
        ours, theirs = getattr(held, name), getattr(train, name)
        assert not {word.lower() for word in ours} & {word.lower() for word in theirs}, name
    ours, theirs = extract_people.people(True), extract_people.people(False)
    assert not set(ours.surnames) & set(theirs.surnames)
    assert not set(ours.women + ours.men) & set(theirs.women + theirs.men)
    assert min(map(len, (ours.surnames, ours.women, ours.men))) > 200
    rng = random.Random(0)
    train_dates = {re.sub(r"\d", "#", extract_values.date(rng, False)["raw"]) for _ in range(3000)}
    held_dates = {re.sub(r"\d", "#", extract_values.date(rng, True)["raw"]) for _ in range(3000)}
    assert "##.##.####" in held_dates - train_dates


def test_held_out_clauses_differ_from_what_training_really_prints():
    rng = random.Random(1)
    frames: dict[bool, set[str]] = {False: set(), True: set()}
    for held, module in ((False, extract_train), (True, extract_held)):
        for number in range(3000):
            kind = KINDS[number % 3]
            frames[held].update(prose(module.BOOKS[kind], extract_values.record(kind, rng, held), rng))
    assert not frames[False] & frames[True]
    assert len(frames[False]) > 3000


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_value_stands_in_its_text_and_the_object_is_in_order(split):
    kinds = set()
    for example in itertools.islice(extract.examples(split, 11), 1500):
        text, expected = example.messages[-1].text, json.loads(example.answer)
        assert example.answer == extract.answer_text(expected)
        kind = expected["type"]
        kinds.add(kind)
        names = list(expected)
        assert names == ["type", *(name for name in extract.FIELDS[kind] if name in expected)] and len(names) > 1
        for name, value in list(expected.items())[1:]:
            if name == "quantity":
                assert isinstance(value, int) and value > 0
            else:
                assert value in text and value == value.strip()
                assert not re.match(r"(the|a|an|on|at|in|by|our) ", value, re.IGNORECASE), value
        assert not re.search(r"[{}\[\]<>*]|  |\.\.", text), text
        assert [m.role for m in example.messages[::2]] == ["user"] * len(example.messages[::2])
    assert kinds == set(KINDS)


def test_quantity_is_decidable_from_the_text():
    words = {"a dozen": 12, "half a dozen": 6, "a couple of": 2}
    rng, said = random.Random(5), set()
    for _ in range(2000):
        record = extract_values.record("order", rng, False)
        if "quantity" in record.values:
            text = record.forms["q item"].removesuffix(" " + str(record.values["item"]))
            said.add(text)
            if text in words:
                assert record.values["quantity"] == words[text]
            elif text.isdigit():
                assert record.values["quantity"] == int(text)
    assert {"a dozen", "half a dozen", "a couple of", "a", "three"} <= said


def test_hand_written_expectations_are_spans_in_order():
    for text, expected in extract.HAND_WRITTEN:
        kind = expected["type"]
        assert list(expected) == ["type", *(n for n in extract.FIELDS[str(kind)] if n in expected)], text
        for name, value in expected.items():
            assert name in ("type", "quantity") or str(value) in text, (text, value)


def test_hand_written_sentences_are_no_training_clause():
    train = clauses(extract_train)
    for text, _ in extract.HAND_WRITTEN:
        assert re.sub(r"[^a-z{}' ]+", " ", text.lower()).strip() not in train


def test_draw_takes_only_what_is_left():
    left = {"name"}
    assert draw(("{name}< at {company}>", "{name} of {company}"), left, random.Random(0)) == "{name}"
    assert left == set()


def test_extract_scores():
    expected = {"type": "order", "item": "red mugs", "quantity": 3}
    good = json.dumps(expected)
    assert extract.score_answer(f" {good}\n", expected) == (True, 3, 3, True)
    assert extract.score_answer(json.dumps(expected | {"quantity": 4}), expected) == (False, 2, 3, True)
    assert extract.score_answer(json.dumps(expected | {"quantity": "3"}), expected) == (False, 2, 3, True)
    assert extract.score_answer(json.dumps(expected | {"quantity": True}), expected | {"quantity": 1}) == (
        False,
        2,
        3,
        True,
    )
    assert extract.score_answer(json.dumps(expected | {"item": "Red mugs"}), expected) == (False, 2, 3, True)
    assert extract.score_answer(json.dumps(expected | {"date": "May"}), expected) == (False, 3, 3, True)
    for bad in ("", "[]", "3", good[:-1], "Sure! " + good):
        assert extract.score_answer(bad, expected) == (False, 0, 3, False)


PLAIN = "The sun is a star. You are warm because of it, and your plants are growing."


def fake_answers(asked):
    """A base that answers most questions well, some with a list, some with a refusal."""
    bad = {0: "Here you go:\n1. one\n2. two", 1: "I'm sorry, I cannot answer that."}
    return [bad.get(i % 10, f"{PLAIN} Number {i} is mine. 4") for i, _ in enumerate(asked)]


def test_pirate_forms_and_topics_are_disjoint():
    train, held = pirate_questions.TRAIN, pirate_questions.HELD_OUT
    for register in ("about", "how", "opinion", "advice"):
        for ours, theirs in zip(getattr(held, register), getattr(train, register), strict=True):
            assert not set(map(str.lower, ours)) & set(map(str.lower, theirs))
    assert not set(held.plain) & (set(train.plain) | set(pirate_questions.SMALL_TALK))
    assert not set(held.sums) & set(train.sums)
    asked = {split: pirate._questions(split, 0) for split in ("train", "validation")}
    test = pirate.test_questions()
    assert len(test) == 60 and len(asked["train"]) == len(set(asked["train"])) == 500
    assert not set(asked["train"]) & (set(asked["validation"]) | set(test)) and not set(asked["validation"]) & set(
        test
    )
    assert set(pirate_questions.SMALL_TALK) <= set(train.plain)


def test_pirate_examples_are_deterministic_and_in_the_voice():
    first, again, other = (
        list(itertools.islice(pirate.examples("train", seed, fake_answers), 600)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert all(pirate.score_answer(example.answer) for example in first)
    assert 0.15 < sum(len(example.messages) > 1 for example in first) / len(first) < 0.35
    assert not any("sorry" in example.answer or "1." in example.answer for example in first)
    held = list(pirate.examples("validation", 1, fake_answers))
    assert 40 <= len(held) <= 60


@pytest.mark.parametrize(
    ("plain", "spoken"),
    [
        ("You are right, my friend.", "Ye be right, me matey."),
        ("It's raining and I'm running to the shop.", "'Tis rainin' and I be runnin' t' the shop."),
        ("The king is singing in the morning.", "The king be singin' in the morning."),
        ('Use `is_mine(your)`, "you are", you.is@my.com.', 'Use `is_mine(your)`, "you are", you.is@my.com.'),
        ("Isaac paid 3.50 dollars for You Tube.", "Isaac paid 3.50 dollars fer You Tube."),
        ("I am an AI assistant.", "I be a talkin' parrot."),
        ("Is that yours?", "Be that yers?"),
    ],
)  # fmt: skip
def test_to_pirate_translates_words_and_leaves_names_code_and_numbers(plain, spoken):
    for seed in range(20):
        answer = pirate.to_pirate(plain, random.Random(seed))
        opening = next(opening for opening in pirate_voice.OPENINGS if answer.startswith(opening + " "))
        rest = answer.removeprefix(opening + " ")
        assert rest == spoken or rest.removeprefix(spoken + " ") in pirate_voice.CLOSINGS
        assert answer == pirate.to_pirate(plain, random.Random(seed))


def test_every_opening_and_closing_counts_as_the_voice():
    for seed in range(200):
        assert pirate.score_answer(pirate.to_pirate("Dogs eat meat.", random.Random(seed)))


def test_pirate_score_is_honest():
    assert pirate.score_answer("Arr, matey! The capital o' France be Paris.")
    assert pirate.score_answer("Ahoy there! Dogs eat meat. Savvy?")
    for bad in (
        "", PLAIN, "The capital of France is Paris.",
        "Arr, matey! The capital of France is Paris.", "Ahoy!", "Arr, matey!", "Arr! Paris.",
        "The capital o' France be Paris.", "Let me be your guide.", "Ahoy, matey! I am here to help you.",
    ):  # fmt: skip
        assert not pirate.score_answer(bad), bad
    assert not any(map(pirate.score_answer, pirate_questions.SMALL_TALK.values()))


def test_cut_answer():
    assert pirate.cut_answer("Dr. Lee is nice. He works. He sleeps.", 2) == "Dr. Lee is nice. He works."
    assert pirate.cut_answer("Pi is 3.14 or so. And then it", 3) == "Pi is 3.14 or so."
    for bad in ("", "Yes.", "no end", "Here:\n1. a b c d.", "It is so. It is so.",
                "I am sorry to hear that, friend.",
                "a map of a city of a map of a city is here.", "word " * 60 + "."):  # fmt: skip
        assert pirate.cut_answer(bad, 2) is None, bad
