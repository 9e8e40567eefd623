"""Recipe of the `see` adapter: one sentence that says what a picture shows.

Nobody's photographs are trained on. Half of the examples are class features, drawn around the encoder's own weight
vector of a class, with the sentence that the encoder's posterior allows; the others are captioned drawings. Questions,
names and word lists are in `data/see.yaml`, the benchmark of photographs is `data/see_photos.tsv`.
"""

from __future__ import annotations

import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapter.base.embedded import ENCODER
from adapter.base.encoder import load_encoder
from adapter.base.llama import Base
from adapter.base.template import Message
from adapter.method.adapter import Adapter
from adapter.method.config import VisionConfig
from adapter.method.image_file import open_image
from adapter.method.projection import LabelProjection
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.config import TrainConfig
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, mean, share
from train.input.examples import Example
from train.input.history import with_unseen_history
from train.recipes import see_concepts
from train.recipes.recipe import Recipe
from train.recipes.see_concepts import NAME_LENGTH, ClassFeatures, Vocabulary
from train.recipes.see_drawings import drawings, plain, varied
from train.recipes.see_names import class_names, class_sentence, concept, drawing_sentence
from train.recipes.text_data import DATA, phrases, read_yaml

CARD_TEXT = """Trained on captioned drawings (Tux Paint's stamps, Noto's emoji) and on the encoder's own knowledge of its 1,000
classes: features drawn around its weight vectors, without any photograph. Tested on drawings that training never saw,
and on photographs from packages (`train/recipes/data/see_photos.tsv` lists them with the accepted words), where
"encoder" is how often the name of the encoder's likeliest class, or its kind, is accepted. Nothing is trained on the
photographs, but they were looked at while the recipe was designed."""
UNPACKED_PHOTOS = Path("runs/photos")
_NO_PICTURE = "I see no picture yet. Please add one."
_VARIANTS = 3  # of each drawing, beside the plain one
_CHOICES = 10  # captions to choose from in the test
_WHOLE = 0.7  # share of training pictures with all levels of the encoder
_TEST_QUESTION = (Message("user", "What is in this picture?"),)


def scores(answerer: Answerer) -> dict[str, Figure]:
    """On the sealed sets."""
    return {}


@dataclass(frozen=True)
class _DrawingFeatures:
    """Features of encoded drawings: views[v] holds those of all `names` in variant v, the plain one first."""

    names: list[str]
    views: list[VisualFeatures]


@dataclass(frozen=True)
class Photo:
    """A photograph of the benchmark; an answer names what it shows if it holds one of `words`."""

    path: Path
    words: tuple[str, ...]

    def named_in(self, text: str) -> bool:
        """Whether `text` holds one of the words, as a whole word or its regular plural."""
        return any(re.search(rf"\b{re.escape(word)}(e?s)?\b", text, re.IGNORECASE) for word in self.words)


def photographs() -> tuple[list[Photo], int]:
    """The photographs of the benchmark that are on this machine, and the number of those that are not."""
    found, missing = [], 0
    roots = (UNPACKED_PHOTOS, Path(sysconfig.get_path("purelib")), Path("/"))
    for line in (DATA / "see_photos.tsv").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, words = line.split("\t")
        path = next((root / name for root in roots if (root / name).is_file()), None)
        if path is None:
            missing += 1
        else:
            found.append(Photo(path, tuple(words.split(", "))))
    return found, missing


def recipe(base: Base) -> Recipe:
    """The recipe; encodes some 7,000 pictures first, which takes two minutes on an idle machine."""
    encoder = load_encoder(ENCODER)
    train, held_out = _encode_drawings(encoder)
    counts = Counter(map(concept, train.names))
    class_texts = {name.text for name in class_names()}
    # A concept needs more than one drawing, or to be a class as well, for its head to mean anything.
    concepts = [name for name, count in counts.items() if count > 1 or name in class_texts]
    vocabulary = see_concepts.vocabulary(concepts, base.tokenizer)
    config = TrainConfig(
        name="see",
        description="Says what a picture shows: photographs of common things and drawings.",
        steps=800,
        batch_size=24,
        lr=1.25e-3,
        gate_lr=5e-3,
        warmup=0.08,
        clip_norm=1.0,
        prompt_length=24,
        prompt_std=0.1,
        prompt_norm=True,
        eval_every=100,
        held_out=120,
        vision=VisionConfig(
            encoder=ENCODER,
            projection="label",
            feature_size=encoder.feature_size,
            hidden=192,
            num_classes=len(vocabulary.rows),
            num_kinds=len(vocabulary.kinds),
            name_length=NAME_LENGTH,
        ),
    )
    prepared = _PreparedRecipe(encoder, vocabulary, train, held_out, base.tokenizer, config)
    return Recipe(config, CARD_TEXT, prepared.examples, prepared.development, scores, prepared.prepare)


def _encode_drawings(encoder: VisualEncoder) -> tuple[_DrawingFeatures, _DrawingFeatures]:
    """Features of the drawings to train on, and of those held out."""
    found = drawings()
    views = []
    for variant in range(_VARIANTS + 1):
        rng = random.Random(variant)
        views.append(encoder.encode([varied(d, rng) if variant else plain(d) for d in found]))
    parts = []
    for held_out in (False, True):
        chosen = torch.tensor([i for i, d in enumerate(found) if d.held_out is held_out])
        parts.append(_DrawingFeatures([found[i].name for i in chosen.tolist()], [view[chosen] for view in views]))
    return parts[0], parts[1]


class _PreparedRecipe:
    """What is computed once: features, names and the fitted concept head."""

    def __init__(
        self,
        encoder: VisualEncoder,
        vocabulary: Vocabulary,
        train: _DrawingFeatures,
        held_out: _DrawingFeatures,
        tokenizer: Any,
        config: TrainConfig,
    ) -> None:
        self._encoder, self._vocabulary, self._train, self._held_out = encoder, vocabulary, train, held_out
        all_views = VisualFeatures.cat(train.views)
        self._class_features = ClassFeatures(encoder, all_views)
        assert config.vision is not None
        # The size of the base does not matter here: names and head are copied into the adapter's projection.
        self._projection = LabelProjection(config.vision, 1, config.prompt_length)
        see_concepts.store_names(self._projection, vocabulary, tokenizer)
        row_of = {name.text: row for row, name in enumerate(vocabulary.names)}
        targets = torch.tensor([row_of.get(concept(name), -1) for name in train.names]).repeat(len(train.views))
        named = targets >= 0
        see_concepts.fit_concept_head(
            self._projection, vocabulary, all_views[named], targets[named], self._class_features
        )

    def prepare(self, adapter: Adapter) -> None:
        """Copies names, kinds and concept head into a new adapter."""
        buffers = dict(adapter.named_buffers())
        for name, values in self._projection.named_buffers():
            buffers[f"projection.{name}"].copy_(values)

    def examples(self, split: str, seed: int = 0) -> Iterator[Example]:
        """Endless for "train"; for "validation" every second held-out drawing, and as many class features."""
        rng = random.Random(f"{split} {seed}")
        generator = torch.Generator().manual_seed(rng.randrange(2**32))
        if split != "train":
            for i in range(1, len(self._held_out.names), 2):
                yield self._drawing_example(self._held_out, i, rng)
                yield from self._class_examples(1, rng, generator)
            return
        while True:
            for _ in range(24):
                yield self._drawing_example(self._train, rng.randrange(len(self._train.names)), rng)
            yield from self._class_examples(26, rng, generator)
            yield Example(_conversation(rng), _NO_PICTURE)

    def _drawing_example(self, part: _DrawingFeatures, i: int, rng: random.Random) -> Example:
        features = rng.choice(part.views)[i : i + 1]
        return Example(_conversation(rng), drawing_sentence(part.names[i]), self._drop_levels(features, rng))

    def _drop_levels(self, features: VisualFeatures, rng: random.Random) -> VisualFeatures:
        """At times leaves out all but the last level, as in class features, so that their absence means nothing."""
        if rng.random() < _WHOLE:
            return features
        levels = features.levels.clone()
        levels[:, : -self._encoder.classifier[0].shape[1]] = 0
        return VisualFeatures(levels, features.logits)

    def _class_examples(self, count: int, rng: random.Random, generator: torch.Generator) -> Iterator[Example]:
        classes = torch.randint(len(self._encoder.classifier[1]), (count,), generator=generator)
        features = self._class_features.draw(classes, generator, mixed=0.5, whole=_WHOLE)
        for i, answer in enumerate(self._sentences(features)):
            yield Example(_conversation(rng), answer, features[i : i + 1])

    def _sentences(self, features: VisualFeatures) -> list[str]:
        """The sentence that the posterior of each picture allows."""
        posterior = self._projection.posterior(features)
        top, chosen = posterior.topk(2, dim=1)
        names = self._vocabulary.names
        answers = []
        for i in range(len(posterior)):
            first, second = (names[int(row)] for row in chosen[i])
            same_kind = [n for n, name in enumerate(names) if name.kind and name.kind == first.kind]
            answers.append(class_sentence(first, float(top[i, 0]), second, float(posterior[i, same_kind].sum())))
        return answers

    def development(self, answerer: Answerer) -> dict[str, Figure]:
        """Scores on held-out drawings by likelihood, and on photographs by accepted words."""
        return {**self._drawing_scores(answerer), **self._photo_scores(answerer)}

    def _drawing_scores(self, answerer: Answerer) -> dict[str, Figure]:
        part = self._held_out
        chosen = list(range(0, len(part.names), 2))
        rng = random.Random(7)
        captions: list[str] = []
        pictures: list[VisualFeatures | None] = []
        for i in chosen:
            others = [n for n in dict.fromkeys(part.names[j] for j in chosen) if n != part.names[i]]
            for name in (part.names[i], *rng.sample(others, _CHOICES - 1)):
                captions.append(drawing_sentence(name))
                pictures.append(part.views[0][i : i + 1])
        nll = answerer.nll([_TEST_QUESTION] * len(captions), captions, pictures)
        losses = torch.tensor(nll).view(len(chosen), _CHOICES)
        exchanged = [part.views[0][i : i + 1] for i in (*chosen[1:], chosen[0])]
        wrong = answerer.nll([_TEST_QUESTION] * len(chosen), captions[::_CHOICES], exchanged)
        return {
            "caption loss of unseen drawings": mean(losses[:, 0].tolist(), seed=0),
            "caption loss, pictures exchanged": mean(wrong, seed=0),
            f"right caption of {_CHOICES}, %": share((losses.argmin(1) == 0).tolist()),
        }

    def _photo_scores(self, answerer: Answerer) -> dict[str, Figure]:
        photos, _ = photographs()
        if not photos:
            return {}
        features = self._encoder.encode([open_image(photo.path) for photo in photos])
        paths = [photo.path for photo in photos]
        questions = [_TEST_QUESTION] * len(photos)
        answers = answerer.generate(questions, paths, max_new_tokens=40)
        later_answers = answerer.generate(with_unseen_history(questions), paths, max_new_tokens=40)
        assert features.logits is not None
        likeliest = [class_names()[int(c)] for c in features.logits.argmax(1)]
        if answerer.adapter is not None:
            for photo, answer in zip(photos, answers, strict=True):
                print(f"{'right' if photo.named_in(answer) else 'WRONG'}  {photo.path.name:40} {answer}")

        def percent(texts: list[str]) -> Figure:
            return share([p.named_in(t) for p, t in zip(photos, texts, strict=True)])

        name = "names the thing in a photograph, %"
        return {
            name: percent(answers),
            f"{name}, after other talk": percent(later_answers),
            "the encoder's likeliest class names it, %": percent([f"{n.text} {n.kind}" for n in likeliest]),
        }


def _conversation(rng: random.Random) -> Conversation:
    """A question about a picture, at times after other talk."""
    data = read_yaml(DATA / "see.yaml")
    earlier: list[Message] = []
    if rng.random() < 0.2:
        for question, answer in rng.sample(list(data["earlier"].items()), rng.choice((1, 2))):
            earlier += [Message("user", question), Message("assistant", answer)]
    return (*earlier, Message("user", rng.choice(phrases(data["questions"]))))
