"""What the `see` recipe measures: photographs named, captions chosen, simple questions answered, doubts told.

The sealed pictures were chosen before its training and are measured at the end, by the same functions as the
development sets.
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
from torch import Tensor

from adapter.base.embedded import ENCODER
from adapter.base.encoder import load_encoder
from adapter.base.image_file import open_image
from adapter.base.template import Message
from adapter.errors import AdapterError
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure
from train.input.history import with_unseen_history
from train.recipes.sealed_sets import after_others, off_task_scores, percent, some
from train.recipes.see.drawings import Drawing, plain, sealed_drawings
from train.recipes.see.names import class_names, drawing_sentence, hedged
from train.recipes.see.pictures import Photo, missing_sealed, photos, sealed

QUESTION: Conversation = (Message("user", "What is in this picture?"),)
CHOICES = 10  # captions to choose from
_TOKENS = 40  # of an answer
_CONVERTED = {".tga", ".tiff"}  # photographs in formats that no page takes
# What an answer to each kind of question can be; its first word of these counts.
_VOCABULARY = {
    "group": "yes no",
    "colour": "red orange yellow green blue purple violet magenta pink brown black white grey gray beige turquoise",
    "medium": "photograph photo drawing illustration cartoon clipart emoji icon painting sketch",
}
_DRAWN = ("illustration", "cartoon", "clipart", "emoji", "icon", "painting", "sketch")
_SAME = {"photo": "photograph", **dict.fromkeys(_DRAWN, "drawing")}


@dataclass(frozen=True)
class Question:
    """kind: group, colour or medium. accepted: words of that kind's vocabulary."""

    shown: Drawing | Photo
    kind: str
    text: str
    accepted: tuple[str, ...]

    def answered_by(self, text: str) -> bool:
        """Whether the first word of the vocabulary in `text` is an accepted one."""
        found = re.search(rf"\b({'|'.join(_VOCABULARY[self.kind].split())})s?\b", text, re.IGNORECASE)
        return found is not None and _SAME.get(found[1].lower(), found[1].lower()) in self.accepted


def sealed_questions() -> list[Question]:
    """60 questions about some of the sealed photographs and drawings; groups are animals, food and vehicles."""
    shown: dict[Path, Drawing | Photo] = {photo.file: photo for photo in photos(sealed("photos"))}
    shown |= {file: drawing for (file, _), drawing in zip(sealed("drawings"), sealed_drawings(), strict=True)}
    return [
        Question(shown[file], kind if kind in _VOCABULARY else "group", text, tuple(accepted.split(", ")))
        for file, (kind, text, accepted) in sealed("questions")
    ]


def sealed_scores(answerer: Answerer, training_names: Collection[str]) -> dict[str, Figure]:
    """The scores on the sealed pictures, and on messages without a picture.

    training_names: all that answers named in training, with their articles. Raises AdapterError if a picture is
    missing: a score of some of them could be that of the easy ones.
    """
    if missing := missing_sealed():
        raise AdapterError(
            f"{len(missing)} of the sealed pictures are missing. Run `make pictures` first.",
            ", ".join(missing[:20]),
        )
    vision = answerer.adapter.config.vision if answerer.adapter is not None else None
    encoder = load_encoder(ENCODER if vision is None else vision.encoder)
    tests = photos(sealed("photos"))
    figures = photo_scores(answerer, encoder, tests, some(range(len(tests))))
    drawings = sealed_drawings()
    names = [drawing.name for drawing in drawings]
    features = encoder.encode([plain(drawing) for drawing in drawings])
    losses = caption_losses(answerer, names, features, names, random.Random(16))
    right = (losses.argmin(1) == 0).tolist()
    for group, is_known in (("names known from training", True), ("other names", False)):
        chosen = [r for r, name in zip(right, names, strict=True) if (name in training_names) is is_known]
        figures |= percent(f"right caption of {CHOICES}, {group}", chosen)
    return figures | question_scores(answerer, sealed_questions()) | off_task_scores(answerer)


def photo_scores(
    answerer: Answerer,
    encoder: VisualEncoder,
    tests: Sequence[Photo],
    late: Sequence[int] = (),
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Figure]:
    """How often photographs are named: at once and after other talk, and by the encoder's likeliest class.

    late: the numbers of those that are shown after other adapters' answers, too. log: gets each answer.
    """
    asked = [QUESTION] * len(tests)
    with _files(tests) as files:
        answers = answerer.generate(asked, files, _TOKENS)
        later = answerer.generate(with_unseen_history(asked), files, _TOKENS)
        after = after_others(answerer.base, "see", [QUESTION] * len(late)) if late else []
        latest = answerer.generate(after, [files[i] for i in late], _TOKENS) if late else []
        features = encoder.encode([open_image(file) for file in files])
    assert features.logits is not None
    likeliest = [class_names()[int(c)] for c in features.logits.argmax(1)]

    def named(texts: Sequence[str], of: Sequence[Photo] = tests) -> list[bool]:
        return [test.named_in(text) for test, text in zip(of, texts, strict=True)]

    right = named(answers)
    for photo, text, is_right in zip(tests, answers, right, strict=True):
        log(f"{'right' if is_right else 'WRONG'}  {photo.file.name:40} {text}")
    form = drawing_sentence("")[:-2]  # "The picture shows"
    in_form = [form in text or hedged(text) for text in latest]
    texts = [f"{name.text} {name.kind}" for name in likeliest]
    figures = {
        **percent("names the thing in a photograph", right),
        **percent("names the thing in a photograph, after other talk", named(later)),
        **percent(
            "names the thing in a photograph, after other adapters", named(latest, [tests[i] for i in late])
        ),
        **percent("names a thing in its form, after other adapters", in_form),
        **percent("the encoder's likeliest class names it", named([name.text for name in likeliest])),
        **percent("the encoder's likeliest class or its kind names it", named(texts)),
    }
    for group, value in (("wrong", False), ("right", True)):
        doubts = [hedged(text) for text, is_right in zip(answers, right, strict=True) if is_right is value]
        figures |= percent(f"of {group} answers, those that say they are not sure", doubts)
    return figures


def caption_losses(
    answerer: Answerer, names: Sequence[str], features: VisualFeatures, pool: Sequence[str], rng: random.Random
) -> Tensor:
    """[N, CHOICES], the loss of each picture's own caption and of others from `pool`."""
    captions = []
    for name in names:
        others = rng.sample([other for other in pool if other != name], CHOICES - 1)
        captions += [drawing_sentence(choice) for choice in (name, *others)]
    rows = [features[i : i + 1] for i in range(len(names)) for _ in range(CHOICES)]
    return torch.tensor(answerer.nll([QUESTION] * len(captions), captions, rows)).view(len(names), CHOICES)


def question_scores(answerer: Answerer, tests: Sequence[Question]) -> dict[str, Figure]:
    """Simple questions: which kind of thing it is, its colour, and whether it is drawn."""
    with _files([test.shown for test in tests]) as files:
        answers = answerer.generate([(Message("user", test.text),) for test in tests], files, _TOKENS)
    right = [test.answered_by(text) for test, text in zip(tests, answers, strict=True)]
    figures = percent("simple questions", right)
    for name, kind in (("what kind of thing", "group"), ("colour", "colour"), ("drawn or not", "medium")):
        chosen = [r for r, test in zip(right, tests, strict=True) if test.kind == kind]
        figures |= percent(f"simple questions, {name}", chosen)
    return figures


@contextmanager
def _files(shown: Sequence[Drawing | Photo]) -> Iterator[list[Path]]:
    """Files that a user could show: drawings on white, photographs in formats that the page takes."""
    with TemporaryDirectory() as folder:
        files = []
        for number, picture in enumerate(shown):
            if isinstance(picture, Photo) and picture.file.suffix.lower() not in _CONVERTED:
                files.append(picture.file)
                continue
            image = plain(picture) if isinstance(picture, Drawing) else Image.open(picture.file).convert("RGB")
            files.append(Path(folder) / f"{number}.png")
            image.save(files[-1])
        yield files
