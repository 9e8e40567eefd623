"""The see recipe: its names and tables, its sealed pictures, how they are fetched, and the scores on them.

Nothing sealed is named: what is found is counted, so that a failure shows nothing to those who change recipes.
"""

from __future__ import annotations

import io
import random
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from adapter.base.embedded import BASE
from adapter.base.llama import load_tokenizer
from adapter.errors import AdapterError
from adapter.method.checkpoint import CARD, read_config
from adapter.method.vision import VisualFeatures
from adapter.serve.store import SHIPPED
from tests.train.recipes.rows import roomy
from train.__main__ import main
from train.evaluate.answerer import Conversation
from train.recipes.recipe import load_recipe
from train.recipes.see import concepts, drawings, names, pictures, recipe, scores
from train.recipes.see.drawings import Drawing
from train.recipes.see.names import Name, class_names, drawing_sentence
from train.recipes.see.pictures import Listed, Package, Photo
from train.recipes.see.recipe import training_names
from train.recipes.see.scores import Question
from train.recipes.text_data import table

HERE = Photo(Path("0.png"), ("cat", "mouse"))


def sealed_files() -> list[Path]:
    return [file for name in ("photos", "drawings") for file, _ in pictures.sealed(name).rows]


def test_there_are_as_many_sealed_ones_as_planned() -> None:
    assert [len(pictures.sealed(name).rows) for name in ("photos", "drawings", "questions")] == [221, 200, 60]
    assert Counter(q.kind for q in scores.sealed_questions()) == {"group": 30, "colour": 16, "medium": 14}


def test_every_picture_is_listed_once_and_questions_are_about_listed_ones() -> None:
    files = sealed_files()
    assert len(set(files)) == len(files) == 421
    assert len({drawing.name for drawing in drawings.sealed_drawings()}) == 200
    assert sum(question[0] not in files for question in pictures.sealed("questions").rows) == 0


def test_no_sealed_picture_is_from_a_package_of_training_or_development() -> None:
    packages = pictures.packages()
    rows = [row for name in ("photos", "drawings") for row in table(pictures._SEALED / f"see_{name}.tsv")]
    assert {packages[row[0]].use for row in rows} == {"sealed"}
    listed = [row[1] for row in table(names.FOLDER / "packages.tsv")]
    assert len(listed) == len(set(listed))  # so that no package has two uses
    # Nor does the development set's own list, whose paths have no packages, hold one of them.
    developed = {path for path, _ in table(names.FOLDER / "photos.tsv")}
    assert sum(row[1] in developed for row in rows) == 0


def test_every_package_has_a_known_kind_a_version_and_a_licence() -> None:
    for package in pictures.packages().values():
        assert package.kind in {"deb", "wheel", "sdist", "npm"}
        assert package.use in pictures.USES
        assert re.match(r"(\d+:)?\d", package.version) and package.licence


def test_accepted_words_are_neither_wide_nor_padded() -> None:
    wide = {"animal", "object", "thing", "food", "vehicle", "picture", "photograph", "photo", "item", "scene"}
    accepted = [photo.words for photo in pictures.photos(pictures.sealed("photos"))]
    assert sum(word in wide for words in accepted for word in words) == 0
    assert all(words and all(word == word.strip() != "" for word in words) for words in accepted)
    developed = pictures.development_photos()
    assert len(developed.rows) + len(developed.missing) == 77
    assert all(all(photo.words) for photo in pictures.photos(developed))


def test_yes_and_no_are_equally_often_right_and_answers_are_of_the_vocabulary() -> None:
    questions = scores.sealed_questions()
    assert Counter(q.accepted for q in questions if q.kind == "group") == {("yes",): 15, ("no",): 15}
    assert Counter(q.accepted for q in questions if q.kind == "medium") == {("drawing",): 7, ("photograph",): 7}
    assert all(question.answered_by(word) for question in questions for word in question.accepted)


@pytest.mark.parametrize(
    "kind, accepted, answer, right",
    [
        ("group", "no", "No, it is not an animal.", True),
        ("group", "yes", "No, it is not an animal.", False),
        ("group", "no", "I know nothing about it.", False),
        ("colour", "red", "It is mostly red, with some green.", True),
        ("colour", "green", "It is mostly red, with some green.", False),
        ("medium", "photograph", "It is a photo, not a drawing.", True),
        ("medium", "drawing", "A photograph, not a drawing.", False),
        ("medium", "drawing", "An illustration of a cat.", True),
    ],
)
def test_the_first_word_that_could_be_an_answer_counts(kind: str, accepted: str, answer: str, right: bool) -> None:
    assert Question(HERE, kind, "?", (accepted,)).answered_by(answer) is right


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("The picture shows two Cats.", True),
        ("A catfish in a category.", False),
        ("It is not a cat.", False),
        ("No cat is to be seen.", False),
        ("It is not a dog but a cat.", True),
        ("Not a dog, a cat.", True),
        ("I am not sure, perhaps a cat or a fox.", True),
        ("A cat, not a dog.", True),
    ],
)
def test_a_photograph_is_named_by_whole_words_that_are_not_denied(answer: str, named: bool) -> None:
    assert HERE.named_in(answer) is named


# Names and tables.


def test_see_sentences_say_no_more_than_the_encoder_knows():
    cat, dog = Name("a tabby cat", "cat"), Name("a beagle", "dog")
    for sentence, arguments in {
        "The picture shows a beagle, a kind of dog.": (dog, 0.9, cat, "dog", 0.9, dog),
        "The picture shows a tabby cat.": (cat, 0.9, dog, "cat", 0.9, cat),
        "The picture shows a dog, perhaps a beagle.": (cat, 0.3, dog, "dog", 0.6, dog),
        "The picture shows a piece of clothing, perhaps a sari.": (cat, 0.3, dog, "clothing", 0.6, Name("a sari")),
        "I am not sure, perhaps a tabby cat or a beagle.": (cat, 0.3, dog, "dog", 0.3, dog),
    }.items():
        assert names.posterior_sentence(*arguments) == sentence
        assert names.hedged(sentence) is sentence.startswith("I am not sure")


def test_tables_are_whole():
    assert len(class_names()) == 1000 and class_names()[0] == Name("a tench", "fish")
    assert names.group_of("bird") == "an animal" and names.group_of("truck") == "a vehicle"
    assert names.group_of("person") == names.group_of("") == "" and len(names.groups()) == 8
    assert names.group_answer("an animal", True) == "Yes, it is an animal."
    assert {name.kind for name in class_names()} - {""} <= set(names.kinds())
    shown = list(drawings.drawings())
    assert len(shown) == 7480 and {drawing.concept.kind for drawing in shown} - {""} <= set(names.kinds())
    assert sum(drawing.held_out for drawing in shown) == 1524
    assert all(drawing.held_out for drawing in shown if drawing.style == drawings.UNSEEN_STYLE)
    known = training_names()
    assert {"a red apple", "an apple", "a tench", "a fish"} <= known and "" not in known


def test_the_recipe_is_the_shipped_adapters():
    """Its vocabulary has the sizes of the shipped file, and its card names the sets."""
    see = load_recipe("see", SimpleNamespace(tokenizer=load_tokenizer(BASE)))  # type: ignore[arg-type]
    assert see.examples is not None and see.examples.config.vision == read_config(SHIPPED / "see").vision
    card = " ".join((SHIPPED / "see" / CARD).read_text(encoding="utf-8").split())
    assert see.sealed.describe() in card and see.development.describe() in card
    assert " ".join(see.data.split()) in card


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
        shares = drawings.colour_shares(Image.new("RGB", (9, 9), colour))
        assert drawings.COLOURS[shares.argmax()] == name and shares.sum() == 1


def test_what_lies_around_a_drawing_has_no_colour():
    image = Image.new("RGBA", (64, 64), (0, 0, 255, 0))
    image.paste((255, 0, 0, 255), (16, 16, 48, 48))
    assert drawings.colour_shares(image)[drawings.COLOURS.index("red")] == 1


@pytest.mark.slow
def test_the_recipe_trains_and_measures(tiny_folder, tmp_path, monkeypatch):
    """On toy drawings, with all kinds of examples and questions."""
    colours = ("red", "green", "blue", "white", "black", "yellow", "orange", "brown")
    shapes = ("ball", "box", "cat", "dog", "egg", "fish", "hat", "house", "key", "tree")

    def drawing(i: int) -> Drawing:
        image = Image.new("RGBA", (64, 64))
        shape = ImageDraw.Draw(image).ellipse if i % 2 else ImageDraw.Draw(image).rectangle
        shape((8, 8, 30 + i % 20, 50), fill=colours[i % 8])
        # Half of the held-out ones have a style of their own, and the name of one in training.
        style, named = (drawings.UNSEEN_STYLE, i + 1) if i % 8 == 0 else (f"style {i % 3}", i)
        thing = Name(f"a {shapes[named // 8]}", "animal" if i % 3 else "")
        return Drawing(f"a {colours[named % 8]} {shapes[named // 8]}", style, i % 4 == 0, lambda: image, thing)

    Image.new("RGB", (30, 30), "red").save(tmp_path / "red.png")
    patched = {
        "drawings": lambda: [drawing(i) for i in range(80)],
        "check_drawings": lambda: None,
        "development_photos": lambda: Listed([(tmp_path / "red.png", ("red",))], []),
        "photograph_like": lambda _, rng: drawings.varied(drawing(1), rng),
        "_PHOTOGRAPH_LIKE": 8,
    }
    for name, value in patched.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(concepts, "_STEPS", 2)
    monkeypatch.setattr(concepts, "_FACT_STEPS", 2)
    out = tmp_path / "see"
    settings = ["steps=2", "batch_size=50", "held_out=4", "eval_every=2", "template=raw", "--device=cpu"]
    assert main(["see", f"--base={roomy(tiny_folder, tmp_path / 'base')}", f"--out={out}", *settings]) == 0
    card = (out / CARD).read_text(encoding="utf-8")
    for measure in (
        "right caption of 10, known names in an unseen style",
        "caption loss, names that were no answer in training, pictures exchanged",
        "simple questions, what kind of thing",
        "simple questions, colour",
        "names the thing in a photograph (1)",
    ):
        assert f"| {measure}" in card
    assert "have the digest" in card


# Scores.


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
    for number in range(14):
        Image.new("RGBA", (40, 20), (9 * number, 0, 0, 255)).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(14)]
    words = [class_names()[281].text.split()[-1], "horse", "lamp", "tree"]
    titles = [f"a thing {number}" for number in range(10)]
    lists = {
        "photos": [(file, (word,)) for file, word in zip(files[:4], words, strict=True)],
        "drawings": [(file, (name,)) for file, name in zip(files[4:], titles, strict=True)],
        "questions": [
            (files[0], ("animal", "Is it an animal?", "yes")),
            (files[1], ("colour", "Which colour?", "red")),
            (files[5], ("medium", "Drawing or photograph?", "drawing")),
        ],
    }

    def listed(name: str) -> Listed:
        return Listed(lists[name], [f"toys: {file.name}" for file, _ in lists[name] if not file.exists()])

    for module in (pictures, drawings, scores):
        monkeypatch.setattr(module, "sealed", listed)
    monkeypatch.setattr(scores, "LATE", 2)
    monkeypatch.setattr(scores, "after_others", lambda _base, _own, given: list(given))
    monkeypatch.setattr(scores, "off_task_scores", lambda _answerer: {})
    logits = torch.zeros(4, len(class_names()))
    logits[:, 281] = 1

    def encode(images: Sequence[Image.Image]) -> VisualFeatures:
        return VisualFeatures(torch.zeros(len(images), 3), logits if len(images) == 4 else None)

    monkeypatch.setattr(scores, "load_encoder", lambda _name: SimpleNamespace(encode=encode))
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
    known = {f"a thing {number}" for number in range(6)}
    figures = scores.sealed_scores(seer, known)  # type: ignore[arg-type]
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
        scores.sealed_scores(Seer([], []), set())  # type: ignore[arg-type]
    assert "toys: 3.png" in caught.value.detail


def test_every_right_caption_is_among_ten_different_ones() -> None:
    class Listening(Seer):
        def nll(self, conversations: Any, captions: Sequence[str], features: Any) -> list[float]:
            self.captions = list(captions)
            return super().nll(conversations, captions, features)

    listening, titles = Listening([], [0] * 10), [f"a thing {number}" for number in range(10)]
    features = VisualFeatures(torch.zeros(10, 3))
    scores.caption_losses(listening, titles, features, titles, random.Random(1))  # type: ignore[arg-type]
    for i, title in enumerate(titles):
        choices = listening.captions[10 * i : 10 * i + 10]
        assert choices[0] == drawing_sentence(title) and len(set(choices)) == 10


def npm_archive(folder: str, member: str = "package/a.png") -> None:
    with tarfile.open(Path(folder) / "toys-1.tgz", "w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"png"))


def test_a_package_is_fetched_once_into_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "UNPACKED", tmp_path)
    commands: list[list[str]] = []

    def run(command: list[str], folder: str) -> None:
        commands.append(command)
        npm_archive(folder)

    monkeypatch.setattr(pictures, "_run", run)
    package = Package("npm", "@makers/toys", "1", "MIT", "sealed")
    pictures.fetch(package)
    pictures.fetch(package)
    assert (tmp_path / "npm" / "@makers" / "toys" / "package" / "a.png").is_file()
    assert [command[-1] for command in commands] == ["@makers/toys@1"]


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "UNPACKED", tmp_path / "photos")
    monkeypatch.setattr(pictures, "_run", lambda _command, folder: npm_archive(folder, "../../../evil"))
    with pytest.raises(AdapterError, match="cannot be unpacked"):
        pictures.fetch(Package("npm", "toys", "1", "MIT", "sealed"))
    assert not list(tmp_path.rglob("evil"))


def test_what_cannot_be_fetched_is_named_and_the_others_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "UNPACKED", tmp_path)
    wanted = {name: Package("npm", name, "1", "MIT", "drawings") for name in ("gone", "toys")}
    monkeypatch.setattr(pictures, "packages", lambda: wanted)
    run = pictures._run
    monkeypatch.setattr(
        pictures,
        "_run",
        lambda command, folder: run(["false"], folder) if "gone@1" in command else npm_archive(folder),
    )
    assert pictures.main(["drawings"]) == 1
    told = capsys.readouterr()
    assert "gone 1 is missing. It could not be fetched." in told.err
    assert "1 of 2 packages" in told.out and (tmp_path / "npm" / "toys" / "package" / "a.png").is_file()
    assert pictures.main(["toys"]) == 2
