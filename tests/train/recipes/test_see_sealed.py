"""The sealed pictures of the see recipe: their lists, how they are fetched, and the scores on them.

Nothing sealed is named: what is found is counted, so that a failure shows nothing to those who change recipes.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from adapter.errors import AdapterError
from adapter.method.vision import VisualFeatures
from train.evaluate.answerer import Conversation
from train.recipes import see_pictures, see_sealed
from train.recipes.see_names import class_names, drawing_sentence
from train.recipes.see_pictures import Package
from train.recipes.see_sealed import Drawing, Photo, Picture, Question
from train.recipes.text_data import DATA, table

ASKED = Picture("toys", "0.png")


def test_there_are_as_many_as_planned() -> None:
    assert len(see_sealed.photos()) == 221
    assert len(see_sealed.drawings()) == 200
    assert Counter(question.kind for question in see_sealed.questions()) == {
        "animal": 10,
        "food": 10,
        "vehicle": 10,
        "colour": 16,
        "medium": 14,
    }


def test_every_picture_is_listed_once_and_questions_are_about_listed_ones() -> None:
    photos = [photo.picture for photo in see_sealed.photos()]
    drawings = [drawing.picture for drawing in see_sealed.drawings()]
    listed = {*photos, *drawings}
    assert len(listed) == len(photos) + len(drawings)
    assert len({drawing.name for drawing in see_sealed.drawings()}) == len(drawings)
    assert all(question.picture in listed for question in see_sealed.questions())


def test_no_sealed_picture_is_from_a_package_of_training_or_development() -> None:
    pictures = [photo.picture for photo in see_sealed.photos()]
    pictures += [drawing.picture for drawing in see_sealed.drawings()]
    assert {see_pictures.packages()[picture.package].use for picture in pictures} == {"sealed"}
    names = [row[1] for row in table(DATA / "see_packages.tsv")]
    assert len(names) == len(set(names))  # so that no package has two uses
    # Nor does the development set's own list, whose paths have no packages, hold one of them.
    developed = {path for path, _ in table(DATA / "see_photos.tsv")}
    assert sum(picture.path in developed for picture in pictures) == 0


def test_every_package_has_a_known_kind_a_version_and_a_licence() -> None:
    for package in see_pictures.packages().values():
        assert package.kind in {"deb", "wheel", "sdist", "npm"}
        assert package.use in see_pictures.USES
        assert re.match(r"(\d+:)?\d", package.version) and package.licence


def test_no_accepted_word_is_so_wide_that_it_says_nothing() -> None:
    wide = {"animal", "object", "thing", "food", "vehicle", "picture", "photograph", "photo", "item", "scene"}
    assert sum(word in wide for photo in see_sealed.photos() for word in photo.words) == 0
    assert all(
        photo.words and all(word == word.strip() != "" for word in photo.words) for photo in see_sealed.photos()
    )


def test_yes_and_no_are_equally_often_right_and_answers_are_of_the_vocabulary() -> None:
    questions = see_sealed.questions()
    for kind in ("animal", "food", "vehicle"):
        counts = Counter(question.accepted for question in questions if question.kind == kind)
        assert counts == {("yes",): 5, ("no",): 5}
    assert Counter(q.accepted for q in questions if q.kind == "medium") == {("drawing",): 7, ("photograph",): 7}
    assert all(question.answered_by(word) for question in questions for word in question.accepted)


@pytest.mark.parametrize(
    "kind, accepted, answer, right",
    [
        ("animal", "no", "No, it is not an animal.", True),
        ("animal", "yes", "No, it is not an animal.", False),
        ("animal", "no", "I know nothing about it.", False),
        ("colour", "red", "It is mostly red, with some green.", True),
        ("colour", "green", "It is mostly red, with some green.", False),
        ("medium", "photograph", "It is a photo, not a drawing.", True),
        ("medium", "drawing", "A photograph, not a drawing.", False),
        ("medium", "drawing", "An illustration of a cat.", True),
    ],
)
def test_the_first_word_that_could_be_an_answer_counts(kind: str, accepted: str, answer: str, right: bool) -> None:
    assert Question(ASKED, kind, "?", (accepted,)).answered_by(answer) is right


def test_a_photograph_is_named_by_whole_words() -> None:
    photo = Photo(ASKED, ("cat", "mouse"))
    assert photo.named_in("The picture shows two Cats.") and not photo.named_in("A catfish in a category.")


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("It is not a cat.", False),
        ("No cat is to be seen.", False),
        ("It is not a dog but a cat.", True),
        ("Not a dog, a cat.", True),
        ("I am not sure, perhaps a cat or a fox.", True),
        ("A cat, not a dog.", True),
    ],
)
def test_what_a_photograph_does_not_show_is_not_named(answer: str, named: bool) -> None:
    assert Photo(ASKED, ("cat",)).named_in(answer) is named


class Seer:
    """Answers every question in turn with what it is given, and finds right captions as told."""

    adapter = None
    base = None
    is_visual = True

    def __init__(self, answers: Sequence[Sequence[str]], best: Sequence[int]) -> None:
        self._answers, self._best = iter(answers), best
        self.sizes: list[tuple[int, int]] = []

    def generate(self, conversations: Sequence[Conversation], pictures: Sequence[Path], _tokens: int) -> list[str]:
        self.sizes += [Image.open(picture).size for picture in pictures]
        answers = next(self._answers)
        assert len(answers) == len(conversations) == len(pictures)
        return list(answers)

    def nll(
        self, conversations: Sequence[Conversation], captions: Sequence[str], features: Sequence[Any]
    ) -> list[float]:
        assert len(conversations) == len(captions) == len(features)
        choices = len(captions) // len(self._best)
        return [float(i % choices != self._best[i // choices]) for i in range(len(captions))]


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four photographs, ten drawings and a question of each kind, in a package that is unpacked."""
    monkeypatch.setattr(see_pictures, "UNPACKED", tmp_path)
    monkeypatch.setattr(see_sealed, "packages", lambda: {"toys": Package("sdist", "toys", "1", "MIT", "sealed")})
    for number in range(14):
        Image.new("RGBA", (40, 20), (9 * number, 0, 0, 255)).save(tmp_path / f"{number}.png")
    pictures = [Picture("toys", f"{number}.png") for number in range(14)]
    cat = class_names()[281]
    words = [(cat.text.split()[-1],), ("horse",), ("lamp",), ("tree",)]
    monkeypatch.setattr(see_sealed, "photos", lambda: [*map(Photo, pictures[:4], words)])
    names = [f"a thing {number}" for number in range(10)]
    monkeypatch.setattr(see_sealed, "drawings", lambda: [*map(Drawing, pictures[4:], names)])
    asked = [
        Question(pictures[0], "animal", "Is it an animal?", ("yes",)),
        Question(pictures[1], "colour", "Which colour?", ("red",)),
        Question(pictures[5], "medium", "Drawing or photograph?", ("drawing",)),
    ]
    monkeypatch.setattr(see_sealed, "questions", lambda: asked)
    monkeypatch.setattr(see_sealed, "_LATE", 2)
    monkeypatch.setattr(see_sealed, "after_others", lambda _base, _own, given: list(given))
    monkeypatch.setattr(see_sealed, "off_task_scores", lambda _answerer: {})
    logits = torch.zeros(4, len(class_names()))
    logits[:, 281] = 1

    def encode(images: Sequence[Image.Image]) -> VisualFeatures:
        return VisualFeatures(torch.zeros(len(images), 3), logits if len(images) == 4 else None)

    monkeypatch.setattr(see_sealed, "load_encoder", lambda _name: SimpleNamespace(encode=encode))
    return tmp_path


def test_scores_count_names_doubts_captions_and_answers(toys: Path) -> None:
    unsure = "I am not sure, perhaps a boat or a table."
    cat = f"The picture shows {class_names()[281].text}."
    seer = Seer(
        [
            [cat, "The picture shows a horse.", unsure, "The picture shows a wall."],
            [cat, unsure, unsure, unsure],
            [cat, "Ahoy!"],
            ["Yes, it is an animal.", "It is mostly blue.", "It is a drawing."],
        ],
        best=[0] * 5 + [1] * 5,
    )
    names = {f"a thing {number}" for number in range(6)}
    figures = see_sealed.see_scores(seer, names, lambda text: "not sure" in text)  # type: ignore[arg-type]
    values = {name: round(figure.value) for name, figure in figures.items()}
    assert values == {
        "names the thing in a photograph (4), %": 50,
        "names the thing in a photograph, after other talk (4), %": 25,
        "names the thing in a photograph, after other adapters (2), %": 50,
        "names a thing in its form, after other adapters (2), %": 50,
        "the encoder's likeliest class names it (4), %": 25,
        "the encoder's likeliest class or its kind names it (4), %": 25,
        "of wrong answers, those that say they are not sure (2), %": 50,
        "of right answers, those that say they are not sure (2), %": 0,
        "right caption of 10, names known from training (6), %": 83,
        "right caption of 10, other names (4), %": 0,
        "simple questions (3), %": 67,
        "simple questions, what kind of thing (1), %": 100,
        "simple questions, colour (1), %": 0,
        "simple questions, drawn or not (1), %": 100,
    }
    assert all(figure.interval == "Wilson" for figure in figures.values())
    # A drawing is shown as large as fits, a photograph as it is.
    assert seer.sizes == [(40, 20)] * 12 + [(256, 256)]


def test_a_missing_picture_is_counted_and_no_score_is_made_of_the_others(toys: Path) -> None:
    (toys / "3.png").unlink()
    (toys / "12.png").unlink()
    with pytest.raises(AdapterError, match="2 of the sealed pictures are missing") as caught:
        see_sealed.see_scores(Seer([], []), set(), bool)  # type: ignore[arg-type]
    assert "toys: 3.png" in caught.value.detail


def test_every_right_caption_is_among_ten_different_ones(toys: Path) -> None:
    class Listening(Seer):
        def nll(self, conversations: Any, captions: Sequence[str], features: Any) -> list[float]:
            self.captions = list(captions)
            return super().nll(conversations, captions, features)

    listening = Listening([], [0] * 10)
    see_sealed._drawing_scores(listening, see_sealed.load_encoder("any"), ())  # type: ignore[arg-type]
    for i, drawing in enumerate(see_sealed.drawings()):
        choices = listening.captions[10 * i : 10 * i + 10]
        assert choices[0] == drawing_sentence(drawing.name) and len(set(choices)) == 10


def npm_archive(folder: str, member: str = "package/a.png") -> None:
    with tarfile.open(Path(folder) / "toys-1.tgz", "w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"png"))


def test_a_package_is_fetched_once_into_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(see_pictures, "UNPACKED", tmp_path)
    commands: list[list[str]] = []

    def run(command: list[str], folder: str) -> None:
        commands.append(command)
        npm_archive(folder)

    monkeypatch.setattr(see_pictures, "_run", run)
    package = Package("npm", "@makers/toys", "1", "MIT", "sealed")
    see_pictures.fetch(package)
    see_pictures.fetch(package)
    assert (tmp_path / "npm" / "@makers" / "toys" / "package" / "a.png").is_file()
    assert [command[-1] for command in commands] == ["@makers/toys@1"]


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(see_pictures, "UNPACKED", tmp_path / "photos")
    monkeypatch.setattr(see_pictures, "_run", lambda _command, folder: npm_archive(folder, "../../../evil"))
    with pytest.raises(AdapterError, match="cannot be unpacked"):
        see_pictures.fetch(Package("npm", "toys", "1", "MIT", "sealed"))
    assert not list(tmp_path.rglob("evil"))


def test_what_cannot_be_fetched_is_named_and_the_others_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(see_pictures, "UNPACKED", tmp_path)
    wanted = {name: Package("npm", name, "1", "MIT", "drawings") for name in ("gone", "toys")}
    monkeypatch.setattr(see_pictures, "packages", lambda: wanted)
    run = see_pictures._run
    monkeypatch.setattr(
        see_pictures,
        "_run",
        lambda command, folder: run(["false"], folder) if "gone@1" in command else npm_archive(folder),
    )
    assert see_pictures.main(["drawings"]) == 1
    told = capsys.readouterr()
    assert "gone 1 is missing. It could not be fetched." in told.err
    assert "1 of 2 packages" in told.out and (tmp_path / "npm" / "toys" / "package" / "a.png").is_file()
    assert see_pictures.main(["toys"]) == 2
