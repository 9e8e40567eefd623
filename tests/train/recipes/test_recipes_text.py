"""Data of the recipes: deterministic, held-out parts disjoint, values decidable, scores honest. No model."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
from PIL import Image

from adapter.base.template import Message
from train.input.examples import Example
from train.recipes import (
    extract,
    extract_grammar,
    extract_messages,
    extract_values,
    pirate,
    pirate_voice,
    see_drawings,
    see_names,
    text_data,
    tutor,
    tutor_lessons,
    tutor_rule,
)
from train.recipes.extract_grammar import SplitPhrases, split_phrases
from train.recipes.recipe import recipe_names
from train.recipes.see import photographs

KINDS = tuple(extract_grammar.FIELDS)


def test_recipes_are_found_by_name():
    assert recipe_names() == ["extract", "pirate", "see", "tutor"]


def expand(pattern: str) -> set[str]:
    """Every text that a pattern can become, slots unfilled: all choices, optional parts in and out."""
    match = re.search(r"\[([^\[\]]*)\]|<([^<>\[\]]*)>", pattern)
    if not match:
        return {normalized(pattern)}
    options = match.group(1).split("|") if match.group(1) is not None else ["", match.group(2)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return set().union(*(expand(head + option + tail) for option in options))


def normalized(text: str) -> str:
    return re.sub(r"[^a-z{}' ]+", " ", text.lower()).strip()


def own_words(clause: str) -> list[str]:
    return re.sub(r"\{[^}]*\}", "", clause).replace("'", "").split()


def sentences_of(message: str) -> list[str]:
    """The sentences of a whole message that have words enough to be a phrase."""
    sentences = re.split(r"(?<=[.!?]) |\n|~", message)
    return [sentence for sentence in sentences if len(own_words(normalized(sentence))) > 2]


def clauses(phrases: SplitPhrases) -> set[str]:
    """All clauses of a split, normalised, that have a word of their own."""
    patterns = [*phrases.openings, *phrases.closings, *phrases.signature_bodies, *phrases.signoffs]
    patterns += [text.replace("{text}", "") for text in phrases.instructions]
    patterns += [turn for pair in phrases.chat for turn in pair]
    for book in phrases.books.values():
        patterns += [*book.heads, *book.followups, *book.distractors]
        patterns += [sentence for text in book.messages for sentence in sentences_of(text)]
        patterns += [head for head in book.note_heads if "{" not in head]
        patterns += [part for parts in book.notes.values() for part in parts]
    texts = {re.sub(r" +", " ", text) for pattern in patterns for text in expand(pattern)}
    return {text for text in texts if re.search(r"[a-z]", re.sub(r"\{[^}]*\}", "", text))}


def test_extract_examples_follow_the_seed():
    for split in ("train", "validation", "test"):
        first, again, other = (list(itertools.islice(extract.examples(split, seed), 20)) for seed in (3, 3, 4))
        assert first == again != other


def test_extract_sizes():
    assert len(list(extract.examples("validation", 0))) == extract.VALIDATION_SIZE
    assert len(extract.test_set()) == extract.TEST_SIZE
    assert len(extract.hand_written()) >= 60


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_held_out_clause_is_part_of_a_training_clause(split):
    train, held_out = clauses(split_phrases("train")), clauses(split_phrases(split))
    assert len(held_out) > 150
    assert not train & held_out
    everything = "\n".join(sorted(train))
    # Fewer words, such as "it's {price}", are bound to come again.
    assert [clause for clause in held_out if len(own_words(clause)) > 2 and clause in everything] == []


def test_validation_and_development_share_no_phrase():
    assert not clauses(split_phrases("validation")) & clauses(split_phrases("test"))


def test_held_out_labels_titles_words_and_names_are_new():
    train, held_out = split_phrases("train"), split_phrases("test")
    for kind in KINDS:
        for name in extract_grammar.FIELDS[kind]:
            labels = [set(map(str.lower, phrases.books[kind].labels[name])) for phrases in (train, held_out)]
            assert not labels[0] & labels[1]
        assert not set(held_out.block_titles[kind]) & set(train.block_titles[kind]) - {""}
    words = [extract_values.word_lists(world) for world in ("train", "held_out")]
    assert set(words[0]) == set(words[1])
    for name in words[0]:
        assert not {word.lower() for word in words[0][name]} & {word.lower() for word in words[1][name]}, name
    new, known = extract_values.names(True), extract_values.names(False)
    assert not set(new.surnames) & set(known.surnames)
    assert not set(new.women + new.men) & set(known.women + known.men)
    assert min(map(len, (new.surnames, new.women, new.men))) > 200


def test_sentences_of_held_out_texts_differ_from_those_of_training_texts():
    rng = random.Random(1)
    frames: dict[bool, set[str]] = {False: set(), True: set()}
    for held_out, kind in itertools.product(frames, KINDS):
        book = split_phrases("test" if held_out else "train").books[kind]
        for _ in range(1000):
            record = extract_values.draw_record(kind, rng, held_out)
            frames[held_out].update(extract_grammar.prose(book, record, rng))
    assert not frames[False] & frames[True]
    assert len(frames[False]) > 3000


def test_extract_trains_on_pairs_and_on_messages_for_something_else():
    """Every answer that carries loss is an object, or the last one and the base's own."""
    off_task = [Example((Message("user", f"Small talk {i}"),), f"Plain answer {i}.") for i in range(9)]
    drawn = list(itertools.islice(extract.training_examples(off_task), 2000))
    assert drawn[:50] == list(itertools.islice(extract.training_examples(off_task), 50))
    others = [e for e in drawn if e.messages[-1].text.startswith("Small talk")]
    assert 80 < len(others) < 200 and len({e.answer for e in others}) == len(off_task)
    assert sum(len(e.messages) > 1 for e in others) > 20
    pairs = [e for e in drawn if e.all_turns and e not in others]
    assert 150 < len(pairs) < 450
    for example in drawn:
        if example not in others:
            assert json.loads(example.answer)["type"] in KINDS
        if example.all_turns:
            user, first, second = example.messages
            assert (user.role, first.role, second.role) == ("user", "assistant", "user")
            assert json.loads(first.text)["type"] in KINDS


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_value_is_a_span_of_its_text_and_the_object_is_in_order(split):
    kinds = set()
    for example in itertools.islice(extract.examples(split, 11), 1500):
        text, expected = example.messages[-1].text, json.loads(example.answer)
        assert example.answer == extract.answer_text(expected)
        kind = expected["type"]
        kinds.add(kind)
        names = list(expected)
        assert names == ["type", *(n for n in extract_grammar.FIELDS[kind] if n in expected)] and len(names) > 1
        for name, value in list(expected.items())[1:]:
            if name == "quantity":
                assert isinstance(value, int) and value > 0
            else:
                assert value in text and value == value.strip()
                assert not re.match(r"(the|a|an|on|at|in|by|our) ", value, re.IGNORECASE), value
        assert not re.search(r"[{}\[\]<~]|\S\*|  |(?<!\.)\.\.(?!\.)", text), text
        assert {message.role for message in example.messages[::2]} == {"user"}
    assert kinds == set(KINDS)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_whole_message_can_be_filled_and_gives_a_field(split):
    rng = random.Random(2)
    for kind, drills in itertools.product(KINDS, (False, True)):
        book = split_phrases(split).books[kind]
        for message in book.drills if drills else book.messages:
            frame = extract_grammar.draw_message([message], book.distractors, rng)
            record = extract_values.draw_record(
                kind, rng, split != "train", extract_grammar.slots_of(frame), drills
            )
            text = extract_grammar.fill_sentences(frame, record.forms)
            assert record.values and "{" not in text, message


def test_hurried_writing_touches_no_slot_and_no_mark_between_two():
    rng, changed = random.Random(3), 0
    for message in split_phrases("train").books["meeting"].messages:
        frame = extract_grammar.draw_message([message], ["it rained."], rng)
        hurried = extract_grammar.stylize(frame, rng)
        slots = re.findall(r"\{[^}]+\}", frame)
        assert re.findall(r"\{[^}]+\}", hurried) == slots
        marks = re.findall(r"\}[.,:] \{", frame)
        assert re.findall(r"\}[.,:] \{", hurried) == marks
        changed += hurried != frame
    assert changed > 100


def test_a_slip_in_a_value_is_in_the_text_too():
    rng, slips = random.Random(4), 0
    for _ in range(200):
        record = extract_values.draw_record("order", rng, False, frozenset({"q item", "customer"}))
        before = dict(record.values)
        extract_messages.slip_in_value(record, rng)
        slips += record.values != before
        assert str(record.values["item"]) in extract_grammar.fill_slots("{q item} to {customer}", record.forms)
    assert slips > 100


def test_an_old_day_is_never_the_day_of_the_meeting():
    rng = random.Random(5)
    for _ in range(400):
        record = extract_values.draw_record("meeting", rng, False, frozenset({"on date", "day"}))
        assert record.forms["day"] not in str(record.values["date"])


def test_kinds_and_fields_are_balanced():
    drawn = [json.loads(example.answer) for example in itertools.islice(extract.examples("train", 8), 3000)]
    for kind in KINDS:
        objects = [fields for fields in drawn if fields["type"] == kind]
        assert 0.29 < len(objects) / len(drawn) < 0.38
        for name in extract_grammar.FIELDS[kind]:
            there = sum(name in fields for fields in objects) / len(objects)
            assert 0.2 < there < 0.75 or name in ("name", "item"), (name, there)


def test_quantity_is_decidable_from_the_text():
    words = {"a dozen": 12, "half a dozen": 6, "a couple of": 2}
    rng, found = random.Random(5), set()
    for _ in range(2000):
        record = extract_values.draw_record("order", rng, False)
        if "quantity" in record.values:
            text = record.forms["q item"].removesuffix(" " + str(record.values["item"]))
            found.add(text)
            if text in words:
                assert record.values["quantity"] == words[text]
            elif text.isdigit():
                assert record.values["quantity"] == int(text)
    assert {"a dozen", "half a dozen", "a couple of", "a", "three"} <= found


def test_hand_written_answers_are_spans_in_order_and_no_sentence_is_a_training_clause():
    train = clauses(split_phrases("train"))
    for test in extract.hand_written():
        text, expected = test.messages[0].text, json.loads(test.answer)
        assert list(expected) == ["type", *(n for n in extract_grammar.FIELDS[expected["type"]] if n in expected)]
        for name, value in expected.items():
            assert isinstance(value, int if name == "quantity" else str), (text, name)
            assert name in ("type", "quantity") or value in text, (text, value)
        assert normalized(text) not in train


def test_a_drawn_pattern_states_only_remaining_fields():
    remaining = {"name"}
    patterns = ("{name}< at {company}>", "{name} of {company}")
    assert extract_grammar.draw_pattern(patterns, remaining, random.Random(0)) == "{name}"
    assert remaining == set()


def test_extract_scores():
    expected = {"type": "order", "item": "red mugs", "quantity": 3}
    good = json.dumps(expected)
    assert extract.score_answer(f" {good}\n", expected) == (True, 3, 3, True)
    for change, right in (
        ({"quantity": 4}, 2),
        ({"quantity": "3"}, 2),
        ({"quantity": 3.0}, 2),
        ({"item": "Red mugs"}, 2),
        ({"date": "May"}, 3),
    ):
        assert extract.score_answer(json.dumps(expected | change), expected) == (False, right, 3, True), change
    one = expected | {"quantity": 1}
    assert extract.score_answer(json.dumps(one | {"quantity": True}), one) == (False, 2, 3, True)
    for bad in ("", "[]", "3", good[:-1], "Sure! " + good):
        assert extract.score_answer(bad, expected) == (False, 0, 3, False)


PLAIN = "The sun is a star. You are warm because of it, and your plants are growing."


def fake_answers(questions):
    """A base that answers most questions well, some with a list, some with a refusal."""
    bad = {0: "Here you go:\n1. one\n2. two", 1: "I'm sorry, I cannot answer that."}
    return [bad.get(i % 10, f"{PLAIN} Number {i} is mine. 4") for i, _ in enumerate(questions)]


def test_pirate_forms_and_topics_are_disjoint():
    train, held_out = pirate.question_book(False), pirate.question_book(True)
    for register in train.registers:
        for new, known in zip(held_out.registers[register], train.registers[register], strict=True):
            assert not set(map(str.lower, new)) & set(map(str.lower, known))
    assert not set(held_out.plain) & {*train.plain, *pirate.small_talk()}
    assert not set(held_out.sums) & set(train.sums)
    parts = [pirate.split_questions("train", 0), pirate.split_questions("validation", 0), pirate.test_questions()]
    assert [len(set(part)) for part in parts] == [2600, 60, 60]
    for one, other in itertools.combinations(parts, 2):
        assert not set(one) & set(other)


def test_pirate_examples_are_deterministic_and_in_the_voice():
    first, again, other = (
        list(itertools.islice(pirate.examples("train", seed, fake_answers), 600)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert all(pirate_voice.score_answer(example.answer) for example in first)
    assert 0.25 < sum(len(example.messages) > 1 for example in first) / len(first) < 0.45
    assert not any("I cannot" in example.answer or "1. one" in example.answer for example in first)
    assert 40 <= len(list(pirate.examples("validation", 1, fake_answers))) <= 60


@pytest.mark.parametrize(
    ("plain", "expected"),
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
def test_to_pirate_translates_words_and_leaves_names_code_and_numbers(plain, expected):
    voice = pirate_voice.voice()
    for seed in range(20):
        answer = pirate_voice.to_pirate(plain, random.Random(seed))
        opening = next(opening for opening in voice.openings if answer.startswith(opening + " "))
        rest = answer.removeprefix(opening + " ")
        assert rest == expected or rest.removeprefix(expected + " ") in voice.closings
        assert answer == pirate_voice.to_pirate(plain, random.Random(seed))


def test_every_opening_and_closing_counts_as_the_voice():
    for seed in range(200):
        assert pirate_voice.score_answer(pirate_voice.to_pirate("Dogs eat meat.", random.Random(seed)))


def test_pirate_score_is_honest():
    assert pirate_voice.score_answer("Arr, matey! The capital o' France be Paris.")
    assert pirate_voice.score_answer("Ahoy there! Dogs eat meat. Savvy?")
    for bad in (
        "", PLAIN, "The capital of France is Paris.",
        "Arr, matey! The capital of France is Paris.", "Ahoy!", "Arr, matey!", "Arr! Paris.",
        "The capital o' France be Paris.", "Let me be your guide.", "Ahoy, matey! I am here to help you.",
        *pirate.small_talk().values(),
    ):  # fmt: skip
        assert not pirate_voice.score_answer(bad), bad


def test_cut_answer():
    assert pirate.cut_answer("Dr. Lee is nice. He works. He sleeps.", 2) == "Dr. Lee is nice. He works."
    for bad in ("", "no end", "Here:\n1. a b c d.", "I am sorry to hear that, friend.", "word " * 60 + "."):
        assert pirate.cut_answer(bad, 2) is None, bad


def user(text):
    return Message("user", text)


def tutor_writer():
    """A base whose sentences are plain and whose questions are about them, but for some."""

    def answers(questions):
        bad = {0: "1. one\n2. two", 1: "I am sorry.", 2: "so " * 40 + "."}
        return [bad.get(i % 10, f"The tree {i} has many leaves. It") for i, _ in enumerate(questions)]

    def ends(conversations):
        assert all(c[-1].role == "assistant" and c[-2].role == "user" for c in conversations)
        bad = {0: " it", 1: " I have leaves", 2: " leaves. And", 3: " many leaves leaves"}
        return [bad.get(i % 16, f" the leaves are green in year {i}") for i, _ in enumerate(conversations)]

    return tutor_lessons.Writer(answers, ends)


def test_tutor_lessons_follow_the_rule_and_the_seed():
    questions = [f"What is number {i}?" for i in range(80)]
    lessons = tutor_lessons.write_lessons(questions, 3, tutor_writer(), 0)
    assert lessons == tutor_lessons.write_lessons(questions, 3, tutor_writer(), 0)
    assert lessons != tutor_lessons.write_lessons(questions, 3, tutor_writer(), 1)
    assert {len(lesson) for lesson in lessons} == {2, 4, 6} and 30 < len(lessons) <= 56
    for lesson in lessons:
        for i in range(1, len(lesson), 2):
            assert lesson[i].role == "assistant" and tutor_rule.score_answer(lesson[i].text, lesson[:i]), lesson
        assert not re.search(r"[{}]|  ", " ".join(message.text for message in lesson))


def test_tutor_examples_have_lessons_small_talk_and_other_talk():
    first, again = (list(itertools.islice(tutor.examples("train", 0, tutor_writer()), 400)) for _ in range(2))
    assert first == again
    assert all(tutor_rule.score_answer(example.answer, example.messages) for example in first)
    assert 220 < sum(not example.all_turns for example in first) < 300
    assert 80 < sum(len(e.messages) > 1 and not e.all_turns for e in first) < 160  # after other talk
    assert any(example.messages[-1].text in tutor.small_talk() for example in first)
    assert 20 <= len(list(tutor.examples("validation", 0, tutor_writer()))) <= 60


def test_tutors_development_is_not_trained_on():
    data = text_data.read_yaml(text_data.DATA / "tutor.yaml")
    development = data["development"]
    told = {*development["questions"].splitlines(), *(t for c in development["conversations"] for t in c[::2])}
    trained = {*pirate.split_questions("train", 0), *pirate.split_questions("validation", 0), *tutor.small_talk()}
    trained |= {line for lines in data["replies"].values() for line in lines.splitlines()}
    trained |= {*data["demonstration"], *text_data.read_yaml(text_data.DATA / "plain_answers.yaml")}
    new = {text.lower() for text in told if len(text.split()) > 2}  # everybody says "no idea"
    assert len(new) > 70 and not new & {text.lower() for text in trained}


@pytest.mark.parametrize(
    ("sentence", "message", "topic"),
    [
        ("A postcard is a small piece of paper.", "What about it?", "a postcard"),
        ("The best gardens are beautiful.", "gardens?", "the best gardens"),
        ("Italy is a country.", "What is Italy?", "Italy"),
        ("Cotton is a plant.", "what is cotton", "cotton"),
        ("That is fine, the water of a sea is salty.", "no idea", "the water"),
        ("You can draw a face.", "How?", "a face"),
        ("They are not.", "I lost my keys.", "your keys"),
        ("They are so nice.", "Do you like them?", ""),
    ],
)
def test_what_a_sentence_is_about(sentence, message, topic):
    assert tutor_lessons.topic_of(sentence, message) == topic


def test_small_talk_of_the_tutor_follows_the_rule():
    for message, answer in tutor.small_talk().items():
        assert tutor_rule.score_answer(answer, (user(message),)), answer


ASKED = (user("Why do plants need light?"),)
LATER = (*ASKED, Message("assistant", "Light feeds plants. Which plants grow in the dark?"), user("mushrooms"))


@pytest.mark.parametrize(
    ("answer", "conversation", "right"),
    [
        ("Plants make sugar with the help of light. Where in a plant does this happen?", ASKED, True),
        ("They make sugar with it! Which part of planting needs water?", ASKED, True),
        (" Dr. Lee says so, and 3.5 cm is a lot. What would a plant say? ", ASKED, True),
        ("Mushrooms are no plants. What do mushrooms eat?", LATER, True),
        ("Spiders do so. How does a spider do it?", ASKED, True),
        ("The city is far. Which cities are near?", ASKED, True),
        ("", ASKED, False),
        ("Plants make sugar.", ASKED, False),
        ("Where does a plant make sugar?", ASKED, False),
        ("Plants make sugar. They need light. Where does a plant make it?", ASKED, False),
        ("Plants make sugar. Where does a plant make it? And when does a plant do so?", ASKED, False),
        ("Plants make sugar. Where does a plant make it? Think!", ASKED, False),
        ("Plants make sugar. Where does a plant", ASKED, False),
        ("1. Plants make sugar.\n2. Where does a plant make it?", ASKED, False),
        ("- Plants make sugar! Where does a plant make it?", ASKED, False),
        ("1. Plants make sugar. Where does a plant make it?", ASKED, False),
        ("Plants make sugar. What is the capital of France?", ASKED, False),  # another topic
        ("Plants make sugar. What would you think about this?", ASKED, False),  # words that say nothing
        ("Plants make sugar. Why do plants need light?", ASKED, False),  # the student's own
        ("Mushrooms are no plants. Which plants grow in the dark?", LATER, False),  # asked before
        (f"Plants make {'sugar and ' * 12}air. Where does a plant make it?", ASKED, False),
        (f"Plants {'and more ' * 13}live. Where does a plant live?", ASKED, False),
        (f"Plants make sugar. Where{', or when' * 10} does a plant make it?", ASKED, False),
        ("Plants make make sugar. Where does a plant make it?", ASKED, False),
    ],
)  # fmt: skip
def test_the_tutors_rule(answer, conversation, right):
    assert tutor_rule.score_answer(answer, conversation) is right


@pytest.mark.parametrize(
    ("caption", "name", "concept"),
    [
        ("A red apple.", "a red apple", "an apple"),
        ("An Orange (fruit)", "an Orange", "an Orange"),
        ("Bread", "bread", "bread"),
        ("Octopus", "an octopus", "an octopus"),
        ("Glass of water on a table", "a glass of water on a table", "water"),
        ("Grinning cat with a hat", "a grinning cat with a hat", "a cat"),
        ("This is no name", "", None),
        ("Eat your greens!", "", None),
    ],
)
def test_names_of_drawings(caption, name, concept):
    assert see_names.stamp_name(caption) == name
    if name:
        assert see_names.concept(name) == concept


def test_see_sentences_say_no_more_than_the_encoder_knows():
    cat, dog = see_names.Name("a tabby cat", "cat"), see_names.Name("a beagle", "dog")
    for sentence, arguments in {
        "The picture shows a beagle, a kind of dog.": (dog, 0.9, cat, "dog", 0.9, dog),
        "The picture shows a tabby cat.": (cat, 0.9, dog, "cat", 0.9, cat),
        "The picture shows a dog, perhaps a beagle.": (cat, 0.3, dog, "dog", 0.6, dog),
        "The picture shows a piece of clothing, perhaps a sari.": (
            cat, 0.3, dog, "clothing", 0.6, see_names.Name("a sari")
        ),
        "I am not sure, perhaps a tabby cat or a beagle.": (cat, 0.3, dog, "dog", 0.3, dog),
    }.items():  # fmt: skip
        assert see_names.posterior_sentence(*arguments) == sentence
        assert see_names.hedged(sentence) is sentence.startswith("I am not sure")


def test_see_knows_kinds_and_groups_of_what_drawings_show():
    assert see_names.concept_kind("a barn owl") == "bird" and see_names.concept_kind("a gear") == ""
    groups = see_names.group_of_kind()
    assert groups["bird"] == "animal" and groups["truck"] == "vehicle" and "person" not in groups
    known = {name.kind for name in see_names.class_names()}
    assert set(groups) <= known and {see_names.concept_kind(c) for c in ("a taco", "an oak", "a saw")} <= known
    assert see_names.group_answer("animal", True) == "Yes, it is an animal."
    assert see_names.group_answer("piece of clothing", False) == "No, it is not a piece of clothing."


def test_colours_have_the_names_that_people_use():
    for name, colour in {
        "red": "#d02020",
        "orange": "#f08c10",
        "yellow": "#f8e030",
        "green": "#20a040",
        "blue": "#2050d0",
        "purple": "#8030b0",
        "pink": "#f080b0",
        "brown": "#7a4a20",
        "black": "#101010",
        "grey": "#808080",
        "white": "#fafafa",
    }.items():
        shares = see_drawings.colour_shares(Image.new("RGB", (9, 9), colour))
        assert see_drawings.COLOURS[shares.argmax()] == name and shares.sum() == 1


def test_what_lies_around_a_drawing_has_no_colour():
    image = Image.new("RGBA", (64, 64), (0, 0, 255, 0))
    image.paste((255, 0, 0, 255), (16, 16, 48, 48))
    assert see_drawings.colour_shares(image)[see_drawings.COLOURS.index("red")] == 1


def test_see_tables_are_whole():
    assert len(see_names.class_names()) == 1000 and see_names.class_names()[0] == see_names.Name("a tench", "fish")
    photos, missing = photographs()
    assert len(photos) + missing == 77 and all(all(photo.words) for photo in photos)
    assert see_names.emoji_name("ewe") == "a sheep" and see_names.emoji_name("stop sign") == ""
