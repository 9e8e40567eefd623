"""Sealed test pictures of the `see` recipe and the scores on them: chosen before its training, measured at the end.

Knows the lists in `sealed/` and where packages are unpacked. The recipe brings its encoder's classes, the names that
were answers in training and the rule by which an answer says that it is not sure.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from adapter.base.embedded import ENCODER
from adapter.base.encoder import load_encoder
from adapter.base.image_file import open_image
from adapter.base.template import Message
from adapter.errors import AdapterError
from adapter.method.vision import VisualEncoder
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, share
from train.input.history import with_unseen_history
from train.recipes.sealed_sets import SEALED, after_others, off_task_scores
from train.recipes.see_drawings import cropped, draw_svg, on_white
from train.recipes.see_names import class_names, drawing_sentence, is_named
from train.recipes.see_pictures import packages
from train.recipes.text_data import table

_QUESTION = "What is in this picture?"
_CHOICES = 10  # captions to choose from
_LATE = 60  # conversations in which an adapter answers after others
_TOKENS = 40  # of an answer
_SVG_WIDTH = 512  # in pixels
_CONVERTED = {".tga", ".tiff"}  # photographs in formats that no page takes
# What an answer to each kind of question can be; its first word of these counts.
_VOCABULARY = {
    "animal": "yes no",
    "food": "yes no",
    "vehicle": "yes no",
    "colour": "red orange yellow green blue purple violet magenta pink brown black white grey gray beige turquoise",
    "medium": "photograph photo drawing illustration cartoon clipart emoji icon painting sketch",
}
_DRAWN = ("illustration", "cartoon", "clipart", "emoji", "icon", "painting", "sketch")
_SAME = {"photo": "photograph", **dict.fromkeys(_DRAWN, "drawing")}
_GROUPS = ("animal", "food", "vehicle")


@dataclass(frozen=True)
class Picture:
    """A file at `path` inside a package."""

    package: str
    path: str

    @property
    def file(self) -> Path:
        return packages()[self.package].folder / self.path


@dataclass(frozen=True)
class Photo:
    """An answer names what the photograph shows if it holds one of `words`."""

    picture: Picture
    words: tuple[str, ...]

    def named_in(self, text: str) -> bool:
        """Whether `text` names it."""
        return is_named(self.words, text)


@dataclass(frozen=True)
class Drawing:
    """name: what it shows, with its article."""

    picture: Picture
    name: str


@dataclass(frozen=True)
class Question:
    """kind: animal, food, vehicle, colour or medium. accepted: words of that kind's vocabulary."""

    picture: Picture
    kind: str
    text: str
    accepted: tuple[str, ...]

    def answered_by(self, text: str) -> bool:
        """Whether the first word of the vocabulary in `text` is an accepted one."""
        found = re.search(rf"\b({'|'.join(_VOCABULARY[self.kind].split())})s?\b", text, re.IGNORECASE)
        return found is not None and _SAME.get(found[1].lower(), found[1].lower()) in self.accepted


def photos() -> list[Photo]:
    """221 photographs of common things."""
    return [Photo(Picture(*row[:2]), tuple(row[2].split(", "))) for row in table(SEALED / "see_photos.tsv")]


def drawings() -> list[Drawing]:
    """200 drawings in two styles that nothing is trained on."""
    return [Drawing(Picture(*row[:2]), row[2]) for row in table(SEALED / "see_drawings.tsv")]


def questions() -> list[Question]:
    """60 questions about some of the photographs and drawings."""
    rows = table(SEALED / "see_questions.tsv")
    return [Question(Picture(*row[:2]), row[2], row[3], tuple(row[4].split(", "))) for row in rows]


def missing_pictures() -> list[str]:
    """Packages and paths of the sealed pictures that are not here."""
    listed = [*(photo.picture for photo in photos()), *(drawing.picture for drawing in drawings())]
    return [f"{picture.package}: {picture.path}" for picture in listed if not picture.file.is_file()]


def see_scores(
    answerer: Answerer, training_names: Collection[str], hedged: Callable[[str], bool]
) -> dict[str, Figure]:
    """Photographs named, captions chosen, questions answered, doubts told; answers to messages without a picture.

    training_names: all that answers named in training, with their articles. hedged: whether an answer says that it is
    not sure. Raises AdapterError if a picture is missing: a score of some of them could be that of the easy ones.
    """
    if missing := missing_pictures():
        raise AdapterError(
            f"{len(missing)} of the sealed pictures are missing. Run `make pictures` first.",
            ", ".join(missing[:20]),
        )
    vision = answerer.adapter.config.vision if answerer.adapter is not None else None
    encoder = load_encoder(ENCODER if vision is None else vision.encoder)
    figures = _photo_scores(answerer, encoder, hedged)
    figures |= _drawing_scores(answerer, encoder, training_names)
    return figures | _question_scores(answerer) | off_task_scores(answerer)


def _photo_scores(answerer: Answerer, encoder: VisualEncoder, hedged: Callable[[str], bool]) -> dict[str, Figure]:
    tests = photos()
    asked: list[Conversation] = [(Message("user", _QUESTION),)] * len(tests)
    late = slice(0, None, len(tests) // _LATE)
    with _files([test.picture for test in tests]) as files:
        answers = answerer.generate(asked, files, _TOKENS)
        later = answerer.generate(with_unseen_history(asked), files, _TOKENS)
        after = after_others(answerer.base, "see", asked[late][:_LATE])
        latest = answerer.generate(after, files[late][:_LATE], _TOKENS)
        features = encoder.encode([open_image(file) for file in files])
    assert features.logits is not None
    likeliest = [class_names()[int(c)] for c in features.logits.argmax(1)]

    def named(texts: Sequence[str], of: Sequence[Photo] = tests) -> list[bool]:
        return [test.named_in(text) for test, text in zip(of, texts, strict=True)]

    def count(name: str, right: Sequence[bool]) -> dict[str, Figure]:
        return {f"{name} ({len(right)}), %": share(right)} if right else {}

    right = named(answers)
    figures = count("names the thing in a photograph", right)
    figures |= count("names the thing in a photograph, after other talk", named(later))
    figures |= count("names the thing in a photograph, after other adapters", named(latest, tests[late][:_LATE]))
    form = drawing_sentence("")[:-2]  # "The picture shows"
    figures |= count("names a thing in its form, after other adapters", [form in t or hedged(t) for t in latest])
    figures |= count("the encoder's likeliest class names it", named([name.text for name in likeliest]))
    texts = [f"{name.text} {name.kind}" for name in likeliest]
    figures |= count("the encoder's likeliest class or its kind names it", named(texts))
    for group, value in (("wrong", False), ("right", True)):
        doubts = [hedged(text) for text, is_right in zip(answers, right, strict=True) if is_right is value]
        figures |= count(f"of {group} answers, those that say they are not sure", doubts)
    return figures


def _drawing_scores(
    answerer: Answerer, encoder: VisualEncoder, training_names: Collection[str]
) -> dict[str, Figure]:
    tests = drawings()
    features = encoder.encode([draw(test.picture.file) for test in tests])
    names = [test.name for test in tests]
    rng = random.Random(16)
    captions = []
    for name in names:
        others = rng.sample([other for other in names if other != name], _CHOICES - 1)
        captions += [drawing_sentence(choice) for choice in (name, *others)]
    rows = [features[i : i + 1] for i in range(len(tests)) for _ in range(_CHOICES)]
    nll = answerer.nll([(Message("user", _QUESTION),)] * len(captions), captions, rows)
    right = (torch.tensor(nll).view(len(tests), _CHOICES).argmin(1) == 0).tolist()
    figures = {}
    for group, is_known in (("names known from training", True), ("other names", False)):
        chosen = [r for r, name in zip(right, names, strict=True) if (name in training_names) is is_known]
        if chosen:
            figures[f"right caption of {_CHOICES}, {group} ({len(chosen)}), %"] = share(chosen)
    return figures


def _question_scores(answerer: Answerer) -> dict[str, Figure]:
    tests = questions()
    with _files([test.picture for test in tests]) as files:
        answers = answerer.generate([(Message("user", test.text),) for test in tests], files, _TOKENS)
    right = [test.answered_by(text) for test, text in zip(tests, answers, strict=True)]
    figures = {f"simple questions ({len(right)}), %": share(right)}
    for name, kinds in (("what kind of thing", _GROUPS), ("colour", ("colour",)), ("drawn or not", ("medium",))):
        chosen = [r for r, test in zip(right, tests, strict=True) if test.kind in kinds]
        figures[f"simple questions, {name} ({len(chosen)}), %"] = share(chosen)
    return figures


def draw(file: Path) -> Image.Image:
    """A drawing alone on white, as large as fits."""
    if file.suffix == ".svg":
        return on_white(cropped(draw_svg(file.read_text(encoding="utf-8"), _SVG_WIDTH)))
    return on_white(cropped(Image.open(file)))


@contextmanager
def _files(pictures: Sequence[Picture]) -> Iterator[list[Path]]:
    """Files that a user could show: those of photographs, of drawings such as `draw` makes."""
    drawn = {drawing.picture for drawing in drawings()}
    with TemporaryDirectory() as folder:
        files = []
        for number, picture in enumerate(pictures):
            file = picture.file
            if picture in drawn or file.suffix.lower() in _CONVERTED:
                image = draw(file) if picture in drawn else Image.open(file).convert("RGB")
                file = Path(folder) / f"{number}.png"
                image.save(file)
            files.append(file)
        yield files
