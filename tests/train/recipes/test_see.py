"""The see recipe: its names and tables, its sealed pictures, how they are fetched, and the scores on them.

Nothing sealed is named: what is found is counted, so that a failure shows nothing to those who change recipes.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from adapter.base.embedded import BASE
from adapter.base.llama import load_tokenizer
from adapter.errors import AdapterError
from adapter.method.checkpoint import CARD, read_config
from adapter.method.vision import VisualFeatures
from adapter.serve.store import SHIPPED
from train.evaluate.answerer import Conversation
from train.recipes.recipe import load_recipe
from train.recipes.see import drawings, names, pictures, scores
from train.recipes.see.names import Name, class_names
from train.recipes.see.pictures import Listed, Package, Photo
from train.recipes.see.scores import Question
from train.recipes.text_data import table

HERE = Photo(Path("0.png"), ("cat", "mouse"))


def test_the_sealed_sets_are_whole_and_apart_from_training_and_development() -> None:
    """As many as planned, each picture once, from packages of their own; as many yes as no."""
    lists = {name: pictures.sealed(name).rows for name in ("photos", "drawings", "questions")}
    assert [len(rows) for rows in lists.values()] == [221, 200, 60]
    files = [file for name in ("photos", "drawings") for file, _ in lists[name]]
    assert len(set(files)) == len(files) and {file for file, _ in lists["questions"]} <= set(files)
    packages = pictures.packages()
    rows = [row for name in ("photos", "drawings") for row in table(pictures._SEALED / f"see_{name}.tsv")]
    assert {packages[row[0]].use for row in rows} == {"sealed"}
    assert len(packages) == len(table(names.FOLDER / "packages.tsv"))  # so that no package has two uses
    developed = {path for path, _ in table(names.FOLDER / "photos.tsv")}
    assert len(developed) == 77 and sum(row[1] in developed for row in rows) == 0
    questions = scores.sealed_questions()
    assert Counter(q.kind for q in questions) == {"group": 30, "colour": 16, "medium": 14}
    assert Counter(q.accepted for q in questions if q.kind == "group") == {("yes",): 15, ("no",): 15}
    assert all(question.answered_by(word) for question in questions for word in question.accepted)


@pytest.mark.parametrize(
    "kind, accepted, answer, right",
    [
        ("group", "no", "No, it is not an animal.", True),
        ("group", "no", "I know nothing about it.", False),
        ("medium", "drawing", "A photograph, not a drawing.", False),
    ],
)
def test_the_first_word_that_could_be_an_answer_counts(kind: str, accepted: str, answer: str, right: bool) -> None:
    assert Question(HERE, kind, "?", (accepted,)).answered_by(answer) is right


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("The picture shows two Cats.", True),
        ("A catfish in a category.", False),
        ("It is not a dog but a cat.", True),
    ],
)
def test_a_photograph_is_named_by_whole_words_that_are_not_denied(answer: str, named: bool) -> None:
    assert HERE.named_in(answer) is named


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


def test_the_recipe_is_the_shipped_adapters():
    """Its vocabulary has the sizes of the shipped file, and its card names the sets."""
    see = load_recipe("see", SimpleNamespace(tokenizer=load_tokenizer(BASE)))  # type: ignore[arg-type]
    assert see.examples is not None and see.examples.config.vision == read_config(SHIPPED / "see").vision
    card = " ".join((SHIPPED / "see" / CARD).read_text(encoding="utf-8").split())
    assert see.sealed.describe() in card and see.development.describe() in card
    assert " ".join(see.data.split()) in card


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
    # A missing picture is named, and no score is made of the others.
    (toys / "3.png").unlink()
    with pytest.raises(AdapterError, match="1 of the sealed pictures are missing") as caught:
        scores.sealed_scores(Seer([], []), set())  # type: ignore[arg-type]
    assert "toys: 3.png" in caught.value.detail
    # A drawing is shown as large as fits, a photograph as it is.
    assert seer.sizes == [(40, 20)] * 12 + [(256, 256)]


def npm_archive(folder: str, member: str = "package/a.png") -> None:
    with tarfile.open(Path(folder) / "toys-1.tgz", "w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"png"))


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "UNPACKED", tmp_path / "photos")
    monkeypatch.setattr(pictures, "_run", lambda _command, folder: npm_archive(folder, "../../../evil"))
    with pytest.raises(AdapterError, match="cannot be unpacked"):
        pictures.fetch(Package("npm", "toys", "1", "MIT", "sealed"))
    assert not list(tmp_path.rglob("evil"))
