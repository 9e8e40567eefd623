"""Recipe of the `see` adapter: one sentence that says what a picture shows, and answers to simple questions about it.

Nobody's photographs are trained on. Some of the examples are class features, drawn around the encoder's own weight
vector of a class, with the sentence that the encoder's posterior allows; the others are captioned drawings. Questions
are in `see.yaml`, names and kinds in the tables beside it; `photos.tsv` is the benchmark of photographs. The names
that the adapter spells, and the linear heads that tell concepts, colours and drawings apart, were fitted once, and are
data: those of the shipped file.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from adapter.base.encoder import load_encoder
from adapter.base.llama import Base
from adapter.base.template import Message
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import WEIGHTS, read_config
from adapter.method.label_projection import LabelProjection
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.config import TrainConfig
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, mean, share
from train.formats.dataset import open_records
from train.input.examples import Example
from train.input.feature_store import open_store
from train.input.history import sample_history
from train.input.split import draw_evenly
from train.recipes.recipe import Examples, MeasuredSets, Recipe, card_text
from train.recipes.sealed_sets import ADAPTERS, SHARED
from train.recipes.see.class_features import ClassFeatures
from train.recipes.see.drawings import (
    UNSEEN_STYLE,
    Drawing,
    check_drawings,
    drawings,
    photograph_like,
    plain,
    varied,
)
from train.recipes.see.names import (
    FOLDER,
    Name,
    class_names,
    drawing_sentence,
    group_of,
    groups,
    hedged,
    kinds,
    posterior_sentence,
)
from train.recipes.see.pictures import development_photos, photos
from train.recipes.see.scores import CHOICES, QUESTION, caption_losses, photo_scores, sealed_scores
from train.recipes.text_data import phrases, read_yaml

_VARIANTS = 2  # of each drawing, beside the plain one
_CHUNK = 64  # drawings that are in memory at a time
_VIEWS_VERSION = 1  # of what `drawings.py` makes of a drawing: raise it when that changes
_PHOTOGRAPH_LIKE = 800
_SCORED = 120  # drawings of each test, at most
_HELD_OUT = 60  # drawings of the held-out loss
_HISTORY = 0.3  # share of examples after other talk
_UNKNOWN = 0.4  # share of drawings whose name the heads are made to miss, as they would a visitor's
_SURE_OF_KIND = 0.6
_OFF_TASK = FOLDER.parent / "off_task.jsonl.gz"  # the base's own answers to what no adapter is made for
_DEVELOPMENT = ("photos.tsv", "drawings.tsv", "packages.tsv", "see.yaml")
_SHIPPED = ADAPTERS / "see"


def training_names() -> frozenset[str]:
    """All names that answers in training have: of drawings and their concepts, of classes and of kinds."""
    drawn = {name for d in drawings() if not d.held_out for name in (d.name, d.concept.text)}
    classes = {
        text for name in class_names() for text in (name.text, name.kind and kinds()[name.kind].text) if text
    }
    return frozenset(drawn | classes)


def recipe(base: Base) -> Recipe:
    """The recipe; it encodes some 25,000 pictures when it is asked for examples, which takes ten minutes."""
    vision = read_config(_SHIPPED).vision
    assert vision is not None
    config = TrainConfig(**read_yaml(FOLDER / "settings.yaml"), vision=vision)
    prepared = _PreparedRecipe(load_encoder(vision.encoder), base, config)
    lists = ("photos", "drawings", "questions")
    return Recipe(
        card_text("see"),
        MeasuredSets(prepared.development, tuple(f"see/{file}" for file in _DEVELOPMENT)),
        MeasuredSets(
            lambda answerer: sealed_scores(answerer, training_names()),
            (*SHARED, *(f"sealed/see_{name}.tsv" for name in lists)),
        ),
        Examples(config, prepared.examples, prepared.prepare),
    )


def _encode(encoder: VisualEncoder, shown: Sequence[Drawing]) -> list[VisualFeatures]:
    """The features of all drawings: plain, and in _VARIANTS other views. They are kept on disk for later runs."""
    store = open_store(encoder.name, encoder.fingerprint())
    content = hashlib.sha256(repr([(d.style, d.name) for d in shown]).encode()).hexdigest()
    views = []
    for v in range(_VARIANTS + 1):
        key, rng = hashlib.sha256(f"see {_VIEWS_VERSION} {v} {content}".encode()).hexdigest(), random.Random(v)
        view = store.get(key) if store else None
        if view is None:
            parts = []
            for start in tqdm(range(0, len(shown), _CHUNK), f"drawings, view {v + 1}", disable=None):
                # Copies, which keep their images no longer than this.
                chunk = [replace(drawing) for drawing in shown[start : start + _CHUNK]]
                parts.append(encoder.encode([varied(d, rng) if v else plain(d) for d in chunk]))
            view = VisualFeatures.cat(parts)
            if store:
                store.put(key, view)
        views.append(view)
    return views


class _PreparedRecipe:
    """Names and heads, and what is computed once, when it is first needed: features."""

    def __init__(self, encoder: VisualEncoder, base: Base, config: TrainConfig) -> None:
        self._encoder, self._tokenizer = encoder, base.tokenizer
        assert config.vision is not None
        # The size of the base does not matter here: names and heads are copied into the adapter's projection.
        self._heads = LabelProjection(config.vision, 1, config.prompt_length)
        stored = load_file(_SHIPPED / WEIGHTS)
        for name, values in self._heads.named_buffers():
            values.copy_(stored[f"projection.{name}"])
        self._kinds = [self._text(row) for row in self._heads.kinds]
        kind_of = self._heads.kind_of.tolist()
        rows = zip(self._heads.names, kind_of, strict=True)
        self.names = [Name(self._text(row), self._kinds[kind] if kind >= 0 else "") for row, kind in rows]
        self._row_of = {name.text: row for row, name in enumerate(self.names) if name.text}

    def _text(self, tokens: Tensor) -> str:
        return str(self._tokenizer.decode(tokens[tokens >= 0].tolist())).strip()

    @cached_property
    def _shown(self) -> list[Drawing]:
        check_drawings()
        return list(drawings())

    @cached_property
    def _views(self) -> list[VisualFeatures]:
        return _encode(self._encoder, self._shown)

    def _numbers(self, held_out: bool) -> list[int]:
        return [i for i, drawing in enumerate(self._shown) if drawing.held_out is held_out]

    @cached_property
    def _class_features(self) -> ClassFeatures:
        """Around pictures with a photograph's texture."""
        rng = random.Random(5)
        cut_outs = [copy for i in self._numbers(held_out=False) if (copy := replace(self._shown[i])).is_photo]
        pictures = [photograph_like(cut_outs, rng) for _ in range(_PHOTOGRAPH_LIKE)]
        return ClassFeatures(self._encoder, self._encoder.encode(pictures))

    def prepare(self, adapter: Adapter) -> None:
        """Copies names, kinds and heads into a new adapter."""
        buffers = dict(adapter.named_buffers())
        for name, values in self._heads.named_buffers():
            buffers[f"projection.{name}"].copy_(values)

    # Examples.

    def examples(self, split: str) -> Iterator[Example]:
        """Endless for "train"; for "validation" held-out drawings of all styles, and as many class features."""
        rng = random.Random(f"{split} 0")
        generator = torch.Generator().manual_seed(rng.randrange(2**32))
        if split != "train":
            held_out = self._numbers(held_out=True)
            for i in draw_evenly(len(held_out), _HELD_OUT, seed=0):
                answer = drawing_sentence(self._shown[held_out[i]].name)
                yield Example(_question("questions", rng), answer, self._view(0, held_out[i]))
                yield from self._class_examples(1, rng, generator)
            return
        off_task = [Example.of(record) for record in open_records(_OFF_TASK)]
        learnt, questions = self._numbers(held_out=False), ["group"] * 7 + ["colour"] * 2 + ["medium"] * 2
        while True:
            batch = [self._drawing_example(rng.choice(learnt), rng) for _ in range(22)]
            batch += self._class_examples(17, rng, generator)
            batch += [self._simple_example(kind, learnt, rng, generator) for kind in questions]
            batch += rng.sample(off_task, 2)
            replies = phrases(read_yaml(FOLDER / "see.yaml")["no_picture"])
            batch.append(Example(_question("questions", rng), rng.choice(replies)))
            for example in batch:
                yield _after_other_talk(example, rng)

    def _view(self, variant: int, i: int) -> VisualFeatures:
        return self._padded(self._views[variant][i : i + 1])

    def _padded(self, features: VisualFeatures) -> VisualFeatures:
        """With a logit for each name's class; the projection adds its own head's to those of concepts."""
        assert features.logits is not None
        missing = len(self._heads.name_of) - features.logits.shape[1]
        return VisualFeatures(features.levels, torch.nn.functional.pad(features.logits, (0, missing)))

    def _drawing(self, i: int, rng: random.Random) -> VisualFeatures:
        """A view of a drawing, at times without what the heads, which were fitted on it, know of its name."""
        features = self._view(rng.randrange(len(self._views)), i)
        row = self._row_of.get(self._shown[i].concept.text, -1)
        if row >= 0 and rng.random() < _UNKNOWN:
            assert features.logits is not None
            classes = len(self._encoder.classifier[1])
            features.logits[:, classes:][:, self._heads.name_of[classes:] == row] -= 20
        return features

    def _drawing_example(self, i: int, rng: random.Random) -> Example:
        features, shown = self._drawing(i, rng), self._shown[i]
        answer = drawing_sentence(shown.name)
        # What the heads do not know of is at times answered as a visitor's picture would be, with doubt.
        if rng.random() < 0.3:
            (sentence,) = self._sentences(features)
            if hedged(sentence) or shown.concept.text not in self._row_of or shown.concept.text in sentence:
                answer = sentence
        return Example(_question("questions", rng), answer, features)

    def _class_examples(self, count: int, rng: random.Random, generator: torch.Generator) -> Iterator[Example]:
        features = self._padded(self._class_features.draw(count, generator))
        for i, answer in enumerate(self._sentences(features)):
            yield Example(_question("questions", rng), answer, features[i : i + 1])

    def _simple_example(
        self, kind: str, learnt: list[int], rng: random.Random, generator: torch.Generator
    ) -> Example:
        """A question about the group of things, the colour or the medium, answered by what the heads say."""
        while True:
            if rng.random() < 0.5:
                features = self._drawing(rng.choice(learnt), rng)
            else:
                features = self._padded(self._class_features.draw(1, generator))
            if kind != "group":
                number = int(kind == "medium")
                word = self._text(self._heads.fact_words(features)[0, number : number + 1])
                answer = f"It is a {word}." if kind == "medium" else f"It is mostly {word}."
                return Example(_question(f"{kind}_questions", rng), answer, features)
            mass, which = self._heads.kind_masses(self._heads.posterior(features))[0].max(0)
            mine = group_of(self._kinds[int(which)])
            group = mine if mine and rng.random() < 0.5 else rng.choice(groups())
            belongs = group == mine
            if mass > _SURE_OF_KIND and (belongs or rng.random() < 0.7):
                answer = f"Yes, it is {group}." if belongs else f"No, it is not {group}."
                return Example(_question("group_questions", rng, group), answer, features)

    def _sentences(self, features: VisualFeatures) -> list[str]:
        """The sentence that the posterior of each picture allows."""
        posterior = self._heads.posterior(features)
        top, chosen = posterior.topk(2, dim=1)
        masses, found = self._heads.kind_masses(posterior).max(1)
        members = torch.where(self._heads.kind_of == found[:, None], posterior, -1.0).argmax(1)
        answers = []
        for i in range(len(posterior)):
            first, second, member = (self.names[int(row)] for row in (*chosen[i], members[i]))
            kind = self._kinds[int(found[i])]
            answers.append(posterior_sentence(first, float(top[i, 0]), second, kind, float(masses[i]), member))
        return answers

    # Scores.

    def development(self, answerer: Answerer) -> dict[str, Figure]:
        """Scores on held-out drawings by likelihood, and on photographs by accepted words."""
        known, held_out = training_names(), self._numbers(held_out=True)
        named = [i for i in held_out if self._shown[i].name in known]
        seen = [i for i in named if self._shown[i].style == UNSEEN_STYLE]
        unseen = sorted({*held_out} - {*named})
        tests = [photo for photo in photos(development_photos()) if photo.file.is_file()]
        figures = {
            **self._caption_scores(answerer, seen, "known names in an unseen style"),
            **self._caption_scores(answerer, unseen, "names that were no answer in training"),
        }
        if tests:
            log = print if answerer.adapter is not None else lambda _: None
            figures |= photo_scores(answerer, self._encoder, tests, log=log)
        return figures

    def _caption_scores(self, answerer: Answerer, candidates: list[int], which: str) -> dict[str, Figure]:
        rng = random.Random(7)
        chosen = rng.sample(candidates, min(len(candidates), _SCORED))
        names = [self._shown[i].name for i in chosen]
        features = self._views[0][torch.tensor(chosen)]
        pool = list(dict.fromkeys(self._shown[i].name for i in candidates))
        losses = caption_losses(answerer, names, features, pool, rng)
        exchanged = [self._views[0][i : i + 1] for i in (*chosen[1:], chosen[0])]
        wrong = answerer.nll([QUESTION] * len(chosen), [*map(drawing_sentence, names)], exchanged)
        return {
            f"right caption of {CHOICES}, {which}, %": share((losses.argmin(1) == 0).tolist()),
            f"caption loss, {which}": mean(losses[:, 0].tolist(), seed=0),
            f"caption loss, {which}, pictures exchanged": mean(wrong, seed=0),
        }


def _after_other_talk(example: Example, rng: random.Random) -> Example:
    return replace(example, history=sample_history(rng)) if rng.random() < _HISTORY else example


def _question(which: str, rng: random.Random, group: str = "") -> Conversation:
    question = rng.choice(phrases(read_yaml(FOLDER / "see.yaml")[which]))
    return (Message("user", question.format(group)),)
