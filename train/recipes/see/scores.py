"""What the `see` recipe measures: photographs named, captions chosen, simple questions answered, doubts told.

The sealed pictures were chosen before its training. They are measured by the same functions as the development
sets, only when `--score` asks for it.
"""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor

from adapter.base.encoder import load_encoder
from adapter.base.image_file import open_image
from adapter.errors import AdapterError
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, mean
from train.input.examples import with_unseen_history
from train.recipes.sealed_sets import after_others, conversation_of, off_task_scores, percent, read_yaml, some
from train.recipes.see.concepts import DENIED, FOLDER, class_names, drawing_sentence, hedged, is_named, kinds
from train.recipes.see.drawings import COLOURS, Drawing, colour_shares, drawings, plain, sealed_drawings
from train.recipes.see.pictures import Photo, development_photos, missing, sealed, sealed_photos

MEDIA = ("drawing", "photograph")
LEAST_SHARE = 0.5  # of a colour that a thing is said to have
_UNSEEN_STYLE = "fxemoji"  # held out as a whole
_QUESTION = conversation_of("What is in this picture?")
_CHOICES = 10  # captions to choose from
_SCORED = 120  # drawings or questions of each development set, at most
_TOKENS = 40  # of an answer
_TAKEN = {".png", ".jpg", ".jpeg", ".webp"}  # by the page: photographs in other formats are converted
# What an answer to each kind of question can be; its first word of these counts.
_VOCABULARY = {
    "group": "yes no",
    "colour": "red orange yellow green blue purple violet magenta pink brown black white grey gray beige turquoise",
    "medium": "photograph photo drawing illustration cartoon clipart emoji icon painting sketch",
}
_DRAWN = ("illustration", "cartoon", "clipart", "emoji", "icon", "painting", "sketch")
_SAME = {"photo": "photograph", "gray": "grey", **dict.fromkeys(_DRAWN, "drawing")}


@dataclass(frozen=True)
class Question:
    """kind: group, colour or medium. accepted: words of that kind's vocabulary."""

    shown: Drawing | Photo
    kind: str
    text: str
    accepted: tuple[str, ...]

    def answered_by(self, text: str) -> bool:
        """Whether the first word of the vocabulary in `text` that is not denied is an accepted one."""
        if self.kind != "group":  # where "no" is an answer
            text = DENIED.sub("", text.removeprefix("No "))
        found = re.search(rf"\b({'|'.join(_VOCABULARY[self.kind].split())})s?\b", text, re.IGNORECASE)
        same = {_SAME.get(word, word) for word in self.accepted}
        return found is not None and _SAME.get(found[1].lower(), found[1].lower()) in same


def sealed_questions() -> list[Question]:
    """60 questions about some of the sealed photographs and drawings; groups are animals, food and vehicles."""
    shown: dict[Path, Drawing | Photo] = {photo.file: photo for photo in sealed_photos()}
    shown |= {file: drawing for (file, _), drawing in zip(sealed("drawings"), sealed_drawings(), strict=True)}
    return [
        Question(shown[file], kind if kind in _VOCABULARY else "group", text, tuple(accepted.split(", ")))
        for file, kind, text, accepted in sealed("questions")
    ]


def development_questions(photos: Sequence[Photo]) -> list[Question]:
    """Simple questions about held-out drawings and the photographs."""
    rng = random.Random(3)
    asked: dict[str, list[Question]] = {"group": [], "colour": [], "medium": []}

    def ask(kind: str, shown: Drawing | Photo, accepted: str, group: str = "") -> None:
        text = ask_about(f"{kind}_questions", rng, group)[0].text
        asked[kind].append(Question(shown, kind, text, (accepted,)))

    for drawing in rng.sample(drawings(held_out=True), 4 * _SCORED):
        copy = replace(drawing)  # whose image is kept no longer than this
        if drawing.concept.kind:
            group, belongs = draw_group(drawing.concept.kind, rng)
            ask("group", drawing, "yes" if belongs else "no", group)
        colours = colour_shares(copy.image)
        if colours.max() >= LEAST_SHARE:
            ask("colour", drawing, COLOURS[int(colours.argmax())])
        if (is_photo := copy.is_photo) is not None:
            ask("medium", drawing, MEDIA[is_photo])
    del asked["medium"][_SCORED // 2 :]
    for photo in photos:
        ask("medium", photo, "photograph")
    return [question for questions in asked.values() for question in questions[:_SCORED]]


def draw_group(kind: str, rng: random.Random) -> tuple[str, bool]:
    """A group to ask for, and whether things of the kind belong to it: half of the time, if there is one."""
    own = kinds()[kind].group if kind else ""
    groups = sorted({kind.group for kind in kinds().values()} - {""})
    group = own if own and rng.random() < 0.5 else rng.choice(groups)
    return group, group == own


def ask_about(which: str, rng: random.Random, group: str = "") -> Conversation:
    """A question of those in `see.yaml`."""
    return conversation_of(rng.choice(read_yaml(FOLDER / "see.yaml")[which].splitlines()).format(group))


def training_names() -> frozenset[str]:
    """All names that answers in training have: of drawings and their concepts, of classes and of kinds."""
    drawn = {name for drawing in drawings(held_out=False) for name in (drawing.name, drawing.concept.text)}
    kinds_of_classes = {kinds()[name.kind].text for name in class_names() if name.kind}
    return frozenset(drawn | kinds_of_classes | {name.text for name in class_names()})


def development(answerer: Answerer) -> dict[str, Figure]:
    """Scores on held-out drawings by likelihood, on photographs by accepted words, and on simple questions."""
    known, held_out = training_names(), drawings(held_out=True)
    photos = [photo for photo in development_photos() if photo.file.is_file()]
    seen = [drawing for drawing in held_out if drawing.name in known and drawing.style == _UNSEEN_STYLE]
    unseen = [drawing for drawing in held_out if drawing.name not in known]
    figures: dict[str, Figure] = {}
    for where, candidates in {"known names in an unseen style": seen, "names that were no answer": unseen}.items():
        rng = random.Random(7)
        losses, gains = _caption_losses(answerer, rng.sample(candidates, _SCORED), candidates, rng)
        figures |= {
            **percent(f"right caption of {_CHOICES}, {where}", _is_first(gains)),
            f"caption loss, {where}": mean(losses[:, 0].tolist(), seed=0),
        }
    figures |= _question_scores(answerer, development_questions(photos))
    return figures | _photo_scores(answerer, photos) if photos else figures


def scores(answerer: Answerer) -> dict[str, Figure]:
    """The scores on the sealed pictures, and on messages without a picture.

    Raises AdapterError if a picture is missing: a score of some of them could be that of the easy ones.
    """
    if lost := missing(["sealed"]):
        raise AdapterError(
            f"{len(lost)} of the sealed pictures are missing. Run `make pictures` first.", ", ".join(lost[:20])
        )
    photos, drawn, known = sealed_photos(), sealed_drawings(), training_names()
    figures = _photo_scores(answerer, photos, some(range(len(photos))))
    _, gains = _caption_losses(answerer, drawn, drawn, random.Random(16))
    right = _is_first(gains)
    for group, is_known in (("names known from training", True), ("other names", False)):
        chosen = [r for r, drawing in zip(right, drawn, strict=True) if (drawing.name in known) is is_known]
        figures |= percent(f"right caption of {_CHOICES}, {group}", chosen)
    return figures | _question_scores(answerer, sealed_questions()) | off_task_scores(answerer)


def _photo_scores(answerer: Answerer, photos: Sequence[Photo], late: Sequence[int] = ()) -> dict[str, Figure]:
    """How often photographs are named: at once and after other talk, and by the encoder's likeliest class.

    late: the numbers of those that are shown after other adapters' answers, too.
    """
    asked = [_QUESTION] * len(photos)
    with _files(photos) as files:
        answers = answerer.generate(asked, files, _TOKENS)
        later = answerer.generate(with_unseen_history(asked), files, _TOKENS)
        after = after_others(answerer.base, "see", [_QUESTION] * len(late)) if late else []
        latest = answerer.generate(after, [files[i] for i in late], _TOKENS) if late else []
        logits = load_encoder().encode([open_image(file) for file in files]).logits
    assert logits is not None
    likeliest = [class_names()[int(c)] for c in logits.argmax(1)]

    def named(texts: Sequence[str], of: Sequence[Photo] = photos) -> list[bool]:
        return [shows(photo, text, photos) for photo, text in zip(of, texts, strict=True)]

    in_form = [drawing_sentence("")[:-2] in text or hedged(text) for text in latest]  # "The picture shows"
    thing = "names the thing in a photograph"
    return {
        **percent(thing, named(answers)),
        **percent(f"{thing}, after other talk", named(later)),
        **percent(f"{thing}, after other adapters", named(latest, [photos[i] for i in late])),
        **percent("names a thing in its form, after other adapters", in_form),
        **percent("the encoder's likeliest class names it", named([name.text for name in likeliest])),
        **percent("says that it is not sure", [*map(hedged, answers)]),
    }


def shows(photo: Photo, text: str, photos: Sequence[Photo]) -> bool:
    """Whether an answer names the thing in a photograph. One with more than three words of others names none."""
    others = {word for one in photos for word in one.words}.difference(photo.words)
    return is_named(photo.words, text) and sum(is_named([word], text) for word in others) <= 3


def _caption_losses(
    answerer: Answerer, shown: Sequence[Drawing], pool: Sequence[Drawing], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Two tensors [N, _CHOICES], the drawing's own caption first, then others from `pool`: losses in nats a token;
    and how much lower they are than without a picture, as common names are likely whatever is shown.
    """
    features = load_encoder().encode([*map(plain, shown)])
    names = [*dict.fromkeys(drawing.name for drawing in pool)]
    captions: list[str] = []
    for drawing in shown:
        others = rng.sample([name for name in names if name != drawing.name], _CHOICES - 1)
        captions += map(drawing_sentence, (drawing.name, *others))
    rows = [features[i : i + 1] for i in range(len(shown)) for _ in range(_CHOICES)]
    losses = torch.tensor(answerer.nll([_QUESTION] * len(captions), captions, rows)).view(len(shown), _CHOICES)
    texts = [*dict.fromkeys(captions)]
    blind = dict(zip(texts, answerer.nll([_QUESTION] * len(texts), texts), strict=True))
    return losses, torch.tensor([blind[caption] for caption in captions]).view_as(losses) - losses


def _is_first(gains: Tensor) -> list[bool]:
    """Whether the first caption gains most, and really: without the picture all gain nothing."""
    return (gains[:, 0] > gains[:, 1:].amax(1).clamp(min=1e-3)).tolist()


def _question_scores(answerer: Answerer, tests: Sequence[Question]) -> dict[str, Figure]:
    """Simple questions: which kind of thing it is, its colour, and whether it is drawn."""
    with _files([test.shown for test in tests]) as files:
        answers = answerer.generate([conversation_of(test.text) for test in tests], files, _TOKENS)
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
            if isinstance(picture, Photo) and picture.file.suffix.lower() in _TAKEN:
                files.append(picture.file)
                continue
            image = plain(picture) if isinstance(picture, Drawing) else Image.open(picture.file).convert("RGB")
            files.append(Path(folder) / f"{number}.png")
            image.save(files[-1])
        yield files
