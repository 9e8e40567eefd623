"""The drawn benchmark: deterministic, the test split held out, and no answer to be guessed without the picture."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import pytest
from scipy.stats import chisquare

from adapter.base.image_file import open_image
from adapter.errors import AdapterError
from train.formats.scienceqa import COLUMNS, columns, problems, question_text
from train.reproduce.scenes.drawing import COLORS, PLACES, SIZE, THINGS, Scene, Thing, draw
from train.reproduce.scenes.questions import GROUPS, HELD_OUT, questions, skills
from train.reproduce.scenes.writer import write_benchmark

COUNTS = {"train": 300, "val": 30, "test": 120}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("scenes"), COUNTS)


@pytest.fixture(scope="module")
def known():
    return questions(1500, test=False, seed=0)


@pytest.fixture(scope="module")
def unseen():
    return questions(600, test=True, seed=1)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(p.relative_to(folder)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def test_scienceqa_reader_reads_the_drawn_benchmark(folder):
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


def test_files_follow_the_seed(tmp_path):
    counts = {"train": 20, "val": 4, "test": 8}
    seeds = {"a": 0, "b": 0, "c": 1}
    first, second, other = (digest(write_benchmark(tmp_path / name, counts, seed)) for name, seed in seeds.items())
    assert first == second != other


def test_questions_are_distinct(known, unseen):
    for part in (known, unseen):
        assert len({question for question, _ in part}) == len(part)


def test_splits_share_no_text_and_no_picture(folder):
    seen = set()
    for split in COUNTS:
        read = problems(folder, split)
        own = {question_text(p) for p in read if p.image is None}
        own |= {hashlib.sha256(p.image.read_bytes()).hexdigest() for p in read if p.image is not None}
        assert len(own) == len(read) and not own & seen
        seen |= own


def test_test_split_has_its_own_combinations(known, unseen):
    def combinations(part, lead):
        scenes = [q.scene for q, _ in part if q.scene is not None]
        return {(t.kind, t.color) for scene in scenes for t in scene.things[: 1 if lead else None]}

    assert not combinations(known, lead=False) & HELD_OUT
    assert combinations(unseen, lead=True) == HELD_OUT
    # Each thing and each colour is known by itself.
    assert {kind for kind, _ in combinations(known, lead=False)} == set(THINGS)
    assert {color for _, color in combinations(known, lead=False)} == set(COLORS)


def test_test_split_has_its_own_wordings(known, unseen):
    def texts_by_skill(part):
        texts = defaultdict(set)
        for question, skill in part:
            texts[skill.name].add(question.question)
        return texts

    before, after = texts_by_skill(known), texts_by_skill(unseen)
    assert set(before) == set(after) == {skill.name for skill in skills()}
    for name in before:
        assert not before[name] & after[name], name


def test_test_split_has_its_own_words(known, unseen):
    for name in ("animal", "liquid", "plural", "opposite", "capital", "work"):
        before, after = (
            {choice for q, skill in part if skill.name == name for choice in q.choices} for part in (known, unseen)
        )
        assert len(before & after) <= 1, before & after  # "light" is the opposite of two words


@pytest.mark.parametrize("test", [False, True])
def test_right_answers_are_spread_evenly_over_the_choices(test):
    places = {}
    for question, skill in questions(3000, test=test, seed=0):
        places.setdefault(skill.name, [0] * len(question.choices))[question.answer] += 1
    for name, found in places.items():
        assert chisquare(found).pvalue > 1e-4, (name, found)


def test_picture_questions_cannot_be_answered_from_their_text(known, unseen):
    """The best guess from text, learnt by heart in training, is no better in the test than any other."""
    answers = defaultdict(Counter)
    for question, skill in known:
        if question.scene is not None:
            answers[skill.name, question.choices][question.answer] += 1
    seen = [(question, skill) for question, skill in unseen if question.scene is not None]
    right = [answers[s.name, q.choices].most_common(1)[0][0] == q.answer for q, s in seen]
    guess = sum(1 / len(q.choices) for q, _ in seen) / len(seen)
    assert abs(sum(right) / len(right) - guess) < 0.09


def test_a_context_names_the_right_choice_only(known, unseen):
    texts = [question for question, _ in (*known, *unseen) if question.hint and question.scene is None]
    assert len(texts) > 100
    for question in texts:
        held = [choice in question.hint.rstrip(".").split() for choice in question.choices]
        assert held == [i == question.answer for i in range(len(held))], question


def test_answers_are_true_of_the_scenes(known):
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
def test_things_show_their_color_and_stay_in_the_picture(kind):
    for color, paint in COLORS.items():
        for place in PLACES:
            image = draw(Scene(place, (Thing(kind, color, 0.5, 0.5, 0.5),), seed=3))
            assert image.size == (SIZE, SIZE) and image.mode == "RGB"
            shown = sum(count for count, value in image.getcolors(SIZE * SIZE) if value == paint)
            assert shown > 0.015 * SIZE * SIZE, (color, place)
            bare = draw(Scene(place, (), seed=3))
            assert image.crop((0, 0, SIZE, 20)).tobytes() == bare.crop((0, 0, SIZE, 20)).tobytes()


def test_written_pictures_have_the_drawn_size(folder):
    problem = next(p for p in problems(folder, "test") if p.image is not None)
    assert open_image(problem.image).size == (SIZE, SIZE)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot be written"):
        write_benchmark(tmp_path / "file" / "below", {"train": 4, "val": 2, "test": 4})
