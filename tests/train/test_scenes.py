"""The drawn benchmark: the same from the same seed, the test held out, and nothing to be guessed from the text."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import pytest

from adapter.errors import AdapterError
from adapter.method.vision import open_image
from train.formats.scienceqa import COLUMNS, columns, problems
from train.reproduce.scenes.drawing import COLORS, PLACES, SIZE, THINGS, Scene, Thing, draw
from train.reproduce.scenes.questions import GROUPS, HELD_OUT, SKILLS, questions
from train.reproduce.scenes.writer import write

COUNTS = {"train": 300, "val": 30, "test": 120}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scenes"), COUNTS)


@pytest.fixture(scope="module")
def known():
    return questions(1500, test=False, seed=0)


@pytest.fixture(scope="module")
def unseen():
    return questions(600, test=True, seed=1)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(p.relative_to(folder)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def test_the_reader_of_scienceqa_reads_it(folder):
    for split, count in COUNTS.items():
        read = problems(folder, split)
        assert len(read) == count and {p.split for p in read} == {split}
        for problem in read:
            assert problem.image is None or problem.image.is_file()
    assert len(problems(folder, "trainval")) == COUNTS["train"] + COUNTS["val"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_column_has_problems(folder, split):
    found = Counter(name for problem in problems(folder, split) for name in columns(problem))
    assert all(found[name] >= len(problems(folder, split)) / 12 for name in COLUMNS), found


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    counts = {"train": 20, "val": 4, "test": 8}
    seeds = {"a": 0, "b": 0, "c": 1}
    first, second, other = (digest(write(tmp_path / name, counts, seed)) for name, seed in seeds.items())
    assert first == second != other


def test_no_question_occurs_twice(known, unseen):
    for part in (known, unseen):
        assert len({question for question, _ in part}) == len(part)


def test_the_test_has_combinations_of_its_own(known, unseen):
    def combinations(part, lead):
        scenes = [q.scene for q, _ in part if q.scene is not None]
        return {(t.kind, t.color) for scene in scenes for t in scene.things[: 1 if lead else None]}

    assert not combinations(known, lead=False) & HELD_OUT
    assert combinations(unseen, lead=True) == HELD_OUT
    # Each thing and each colour is known by itself.
    assert {kind for kind, _ in combinations(known, lead=False)} == set(THINGS)
    assert {color for _, color in combinations(known, lead=False)} == set(COLORS)


def test_the_test_has_phrasings_of_its_own(known, unseen):
    def asked(part):
        by_skill = defaultdict(set)
        for question, skill in part:
            by_skill[skill.name].add(question.question)
        return by_skill

    before, after = asked(known), asked(unseen)
    assert set(before) == set(after) == {skill.name for skill in SKILLS}
    for name in before:
        assert not before[name] & after[name], name


def test_words_of_the_test_do_not_occur_in_training(known, unseen):
    for name in ("animal", "liquid", "plural", "opposite", "capital", "work"):
        before, after = (
            {choice for q, skill in part if skill.name == name for choice in q.choices} for part in (known, unseen)
        )
        assert len(before & after) <= 1, before & after  # "light" is the opposite of two words


def test_right_answers_stand_at_every_place_equally_often(known):
    places = defaultdict(Counter)
    for question, skill in known:
        places[skill.name, len(question.choices)][question.answer] += 1
    for (name, count), found in places.items():
        share = max(found.values()) / found.total()
        assert share < 1 / count + 4 * (0.25 / found.total()) ** 0.5, (name, found)


def test_who_sees_no_picture_can_only_guess(known, unseen):
    """The best guess from text, learnt by heart in training, is no better in the test than any other."""
    answers = defaultdict(Counter)
    for question, skill in known:
        if question.scene is not None:
            answers[skill.name, question.choices][question.answer] += 1
    seen = [(question, skill) for question, skill in unseen if question.scene is not None]
    right = [answers[s.name, q.choices].most_common(1)[0][0] == q.answer for q, s in seen]
    guess = sum(1 / len(q.choices) for q, _ in seen) / len(seen)
    assert abs(sum(right) / len(right) - guess) < 0.09


def test_a_text_holds_the_right_choice_and_no_other(known, unseen):
    texts = [question for question, _ in (*known, *unseen) if question.hint and question.scene is None]
    assert len(texts) > 100
    for question in texts:
        held = [choice in question.hint.rstrip(".").split() for choice in question.choices]
        assert held == [i == question.answer for i in range(len(held))], question


def test_scenes_are_what_the_question_says(known):
    kinds = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
    assert set(kinds) == set(THINGS)
    for question, skill in known:
        right, scene = question.choices[question.answer], question.scene
        if scene is None:
            continue
        thing = scene.things[0]
        truth = {
            "group": kinds[thing.kind],
            "drawn": kinds[thing.kind],
            "color": thing.color,
            "place": scene.place,
            "count": ("one", "two", "three", "four")[len(scene.things) - 1],
            "number": "singular" if len(scene.things) == 1 else "plural",
            "size": "yes" if abs(thing.size - scene.things[-1].size) < 0.08 else "no",
            "layout": "row" if max(abs(t.x - thing.x) for t in scene.things) > 0.3 else "column",
        }
        assert right == truth[skill.name], question


@pytest.mark.parametrize("kind", THINGS)
def test_a_thing_shows_its_color_and_stays_in_the_picture(kind):
    for color, paint in COLORS.items():
        for place in PLACES:
            image = draw(Scene(place, (Thing(kind, color, 0.5, 0.5, 0.5),), seed=3))
            assert image.size == (SIZE, SIZE) and image.mode == "RGB"
            shown = sum(count for count, value in image.getcolors(SIZE * SIZE) if value == paint)
            assert shown > 0.015 * SIZE * SIZE, (color, place)
            bare = draw(Scene(place, (), seed=3))
            assert image.crop((0, 0, SIZE, 20)).tobytes() == bare.crop((0, 0, SIZE, 20)).tobytes()


def test_pictures_on_disk_are_those_that_were_drawn(folder):
    problem = next(p for p in problems(folder, "test") if p.image is not None)
    assert open_image(problem.image).size == (SIZE, SIZE)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot be written"):
        write(tmp_path / "file" / "below", {"train": 4, "val": 2, "test": 4})
