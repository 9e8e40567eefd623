"""Recipe of the `see` adapter: one sentence that says what a picture shows, and answers to simple questions about it.

Nobody's photographs are trained on. Some of the examples are class features, drawn around the encoder's own weight
vector of a class, with the sentence that the encoder's posterior allows; the others are captioned drawings. Questions
are in `see.yaml`, names and kinds in the tables beside it; `photos.tsv` is the benchmark of photographs.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adapter.base.embedded import ENCODER
from adapter.base.encoder import load_encoder
from adapter.base.template import Message
from adapter.method.adapter import Adapter
from adapter.method.config import VisionConfig
from adapter.method.label_projection import LabelProjection
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, mean, share
from train.formats.dataset import open_records
from train.input.examples import Example
from train.input.feature_store import open_store
from train.input.history import sample_history
from train.input.split import draw_evenly
from train.recipes.recipe import Examples, MeasuredSets, Recipe, card_text, digest_of
from train.recipes.sealed_sets import SHARED
from train.recipes.see import concepts
from train.recipes.see.concepts import NAME_LENGTH, ClassFeatures, ConceptHeads, Vocabulary
from train.recipes.see.drawings import (
    COLOURS,
    UNSEEN_STYLE,
    Drawing,
    check_drawings,
    colour_shares,
    drawings,
    photograph_like,
    plain,
    varied,
)
from train.recipes.see.names import (
    FOLDER,
    class_names,
    drawing_sentence,
    group_of,
    groups,
    hedged,
    kinds,
    posterior_sentence,
)
from train.recipes.see.pictures import Photo, development_photos, photos
from train.recipes.see.scores import (
    CHOICES,
    QUESTION,
    Question,
    caption_losses,
    photo_scores,
    question_scores,
    sealed_scores,
)
from train.recipes.text_data import phrases, read_yaml

_VARIANTS = 2  # of each drawing, beside the plain one
_CHUNK = 64  # drawings that are in memory at a time
_VIEWS_VERSION = 1  # of what `drawings.py` makes of a drawing: raise it when that changes
_PHOTOGRAPH_LIKE = 800
_SCORED = 120  # drawings of each test, at most
_HELD_OUT = 60  # drawings of the held-out loss
_HISTORY = 0.3  # share of examples after other talk
_LEAST_SHARE = 0.5  # of a colour that a thing is said to have
_COLOUR, _MEDIUM = 0, 1  # numbers of the facts
_MEDIA = ("drawing", "photograph")
_OFF_TASK = FOLDER.parent / "off_task.jsonl.gz"  # the base's own answers to what no adapter is made for
_DEVELOPMENT = ("photos.tsv", "drawings.tsv", "packages.tsv", "see.yaml")


@dataclass(frozen=True)
class _Pictures:
    """Encoded drawings: views[v] holds the features of all in variant v, the plain one first.

    colours: [N, len(COLOURS)], shares. media: whether each is a photograph's cut-out, None where unknown.
    """

    shown: list[Drawing]
    colours: Tensor
    media: list[bool | None]
    views: list[VisualFeatures]

    def part(self, held_out: bool) -> _Pictures:
        """Those to train on, or those held out."""
        chosen = [i for i, drawing in enumerate(self.shown) if drawing.held_out is held_out]
        rows = torch.tensor(chosen)
        return _Pictures(
            [self.shown[i] for i in chosen],
            self.colours[rows],
            [self.media[i] for i in chosen],
            [view[rows] for view in self.views],
        )

    @cached_property
    def by_colour(self) -> dict[str, list[int]]:
        """The drawings that are mostly of a colour."""
        most, which = self.colours.max(1)
        found = {c: torch.nonzero((which == i) & (most >= _LEAST_SHARE))[:, 0] for i, c in enumerate(COLOURS)}
        return {colour: rows.tolist() for colour, rows in found.items() if len(rows)}


def _drawings(held_out: bool) -> list[Drawing]:
    return [drawing for drawing in drawings() if drawing.held_out is held_out]


def training_names() -> frozenset[str]:
    """All names that answers in training have: of drawings and their concepts, of classes and of kinds."""
    drawn = {name for drawing in _drawings(held_out=False) for name in (drawing.name, drawing.concept.text)}
    classes = {
        text for name in class_names() for text in (name.text, name.kind and kinds()[name.kind].text) if text
    }
    return frozenset(drawn | classes)


def recipe(tokenizer: Any) -> Recipe:
    """The recipe; it encodes some 25,000 pictures when it is asked for examples, which takes ten minutes."""
    encoder = load_encoder(ENCODER)
    shown = [drawing.concept for drawing in _drawings(held_out=False)]
    counts, class_texts = Counter(concept.text for concept in shown), {name.text for name in class_names()}
    # A concept needs more than one drawing, or to be a class as well, for its head to mean anything.
    known = [concept for concept in shown if counts[concept.text] > 1 or concept.text in class_texts]
    vocabulary = concepts.vocabulary(known, tokenizer)
    vision = VisionConfig(
        encoder=ENCODER,
        projection="label",
        feature_size=encoder.feature_size,
        hidden=192,
        num_classes=len(vocabulary.rows),
        num_kinds=len(vocabulary.kinds),
        name_length=NAME_LENGTH,
        name_states=True,
        num_facts=2,
        fact_size=len(COLOURS),
        certainty=True,
    )
    prepared = _PreparedRecipe(encoder, vocabulary, tokenizer, vision)
    files = [*sorted(FOLDER.glob("*.tsv")), FOLDER / "see.yaml", _OFF_TASK]
    lists = ("photos", "drawings", "questions")
    return Recipe(
        card_text("see"),
        MeasuredSets(prepared.development, tuple(f"see/{file}" for file in _DEVELOPMENT)),
        MeasuredSets(
            lambda answerer: sealed_scores(answerer, training_names()),
            (*SHARED, *(f"sealed/see_{name}.tsv" for name in lists)),
        ),
        Examples(prepared.examples, digest_of(files), prepared.prepare, vision),
    )


def _encode(encoder: VisualEncoder, shown: Sequence[Drawing]) -> _Pictures:
    """The drawings' plain views and _VARIANTS more of each. Features are kept on disk for later runs."""
    store = open_store(encoder.name, encoder.fingerprint())
    content = hashlib.sha256(repr([(d.style, d.name) for d in shown]).encode()).hexdigest()
    keys = [
        hashlib.sha256(f"see {_VIEWS_VERSION} {v} {content}".encode()).hexdigest() for v in range(_VARIANTS + 1)
    ]
    kept = [store.get(key) if store else None for key in keys]
    views = [view for view in kept if view is not None]
    to_encode = len(views) < len(keys)
    parts: list[list[VisualFeatures]] = [[] for _ in keys]
    rngs = [random.Random(v) for v in range(_VARIANTS + 1)]
    colours, media = [], []
    for start in tqdm(range(0, len(shown), _CHUNK), "drawings", disable=None):
        # Copies, which keep their images no longer than this.
        chunk = [replace(drawing) for drawing in shown[start : start + _CHUNK]]
        colours += [colour_shares(drawing.image) for drawing in chunk]
        media += [drawing.is_photo for drawing in chunk]
        if to_encode:
            for v, (part, rng) in enumerate(zip(parts, rngs, strict=True)):
                part.append(encoder.encode([varied(d, rng) if v else plain(d) for d in chunk]))
    if to_encode:
        views = [VisualFeatures.cat(part) for part in parts]
        for key, view in zip(keys, views, strict=True):
            if store:
                store.put(key, view)
    return _Pictures(list(shown), torch.from_numpy(np.array(colours)).float(), media, views)


class _PreparedRecipe:
    """What is computed once, when it is first needed: features, names and the fitted heads."""

    def __init__(
        self, encoder: VisualEncoder, vocabulary: Vocabulary, tokenizer: Any, vision: VisionConfig
    ) -> None:
        self._encoder, self._vocabulary, self._tokenizer, self._vision = encoder, vocabulary, tokenizer, vision
        self._row_of = {name.text: row for row, name in enumerate(vocabulary.names)}

    @cached_property
    def _all(self) -> _Pictures:
        check_drawings()
        return _encode(self._encoder, list(drawings()))

    @cached_property
    def _train(self) -> _Pictures:
        return self._all.part(held_out=False)

    @cached_property
    def _held_out(self) -> _Pictures:
        return self._all.part(held_out=True)

    @cached_property
    def _photograph_like(self) -> tuple[VisualFeatures, Tensor]:
        """Features and colours of pictures with a photograph's texture."""
        rng = random.Random(5)
        cut_outs = [copy for d in _drawings(held_out=False) if (copy := replace(d)).is_photo]
        pictures = [photograph_like(cut_outs, rng) for _ in range(_PHOTOGRAPH_LIKE)]
        colours = torch.from_numpy(np.array([colour_shares(picture) for picture in pictures])).float()
        return self._encoder.encode(pictures), colours

    @cached_property
    def _class_features(self) -> ClassFeatures:
        return ClassFeatures(self._encoder, self._photograph_like[0])

    @cached_property
    def _heads(self) -> tuple[LabelProjection, list[list[VisualFeatures]]]:
        """A projection with all names and heads, and the training drawings' views as heads see them that do not know
        their style, and as heads that do not know their names.
        """
        train = self._train
        # The sizes of base and prompts do not matter here: names and heads are copied into the adapter's projection.
        projection = LabelProjection(self._vision, 1, self._vision.spelled_length + 1)
        concepts.store_names(projection, self._vocabulary, self._tokenizer)
        self._fit_facts(projection)
        count = len(train.views)
        all_views = VisualFeatures.cat(train.views)
        names = [drawing.concept.text for drawing in train.shown]
        targets = torch.tensor([self._row_of.get(name, -1) for name in names]).repeat(count)
        concepts.open_gate_for(projection, _MEDIUM, _MEDIA.index("drawing"), _MEDIA.index("photograph"))
        gate = projection.gate(all_views.levels)
        heads = ConceptHeads(self._vocabulary, all_views, self._class_features, gate)
        head = heads.fit(targets, targets >= 0)
        heads.store(projection, head)
        unknown = []
        for keys in ([drawing.style for drawing in train.shown], names):
            number = {key: i % concepts.FOLDS for i, key in enumerate(sorted(set(keys)))}
            part = torch.tensor([number[key] for key in keys]).repeat(count)
            logits = heads.logits_without(targets, targets >= 0, part, head)
            views = VisualFeatures(all_views.levels, logits)
            unknown.append([views[i * len(names) : (i + 1) * len(names)] for i in range(count)])
        return projection, unknown

    def _fit_facts(self, projection: LabelProjection) -> None:
        train, (photographs, photograph_colours) = self._train, self._photograph_like

        def tokens(words: Sequence[str]) -> list[int]:
            return [self._tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in words]

        features = VisualFeatures.cat([train.views[0], photographs])
        concepts.fit_fact(
            projection, _COLOUR, tokens(COLOURS), features, torch.cat([train.colours, photograph_colours])
        )
        known = torch.tensor([i for i, medium in enumerate(train.media) if medium is not None])
        is_photo = torch.tensor([float(bool(train.media[i])) for i in known.tolist()])
        is_photo = torch.cat([is_photo.repeat(len(train.views)), torch.ones(len(photographs))])
        features = VisualFeatures.cat([*(view[known] for view in train.views), photographs])
        shares = torch.stack([1 - is_photo, is_photo], dim=1)
        concepts.fit_fact(projection, _MEDIUM, tokens(_MEDIA), features, shares)

    def prepare(self, adapter: Adapter) -> None:
        """Copies names, kinds and heads into a new adapter."""
        buffers = dict(adapter.named_buffers())
        for name, values in self._heads[0].named_buffers():
            buffers[f"projection.{name}"].copy_(values)

    # Examples.

    def examples(self, split: str) -> Iterator[Example]:
        """Endless for "train"; for "validation" every second held-out drawing, and as many class features."""
        rng = random.Random(f"{split} 0")
        generator = torch.Generator().manual_seed(rng.randrange(2**32))
        if split != "train":
            for i in draw_evenly(len(self._held_out.shown), _HELD_OUT, seed=0):
                answer = drawing_sentence(self._held_out.shown[i].name)
                features = _padded(self._held_out.views[0][i : i + 1], len(self._vocabulary.rows))
                yield Example(_question("questions", rng), answer, features)
                yield from self._class_examples(1, rng, generator)
            return
        off_task = [Example.of(record) for record in open_records(_OFF_TASK)]
        while True:
            batch = [self._drawing_example(rng) for _ in range(22)]
            batch += self._class_examples(17, rng, generator)
            batch += [self._group_example(rng, generator) for _ in range(7)]
            batch += [self._colour_example(rng) for _ in range(2)]
            batch += [self._medium_example(rng) for _ in range(2)]
            for example in batch:
                yield _after_other_talk(example, rng)
            for example in rng.sample(off_task, 2):
                yield _after_other_talk(example, rng)
            replies = phrases(read_yaml(FOLDER / "see.yaml")["no_picture"])
            yield _after_other_talk(Example(_question("questions", rng), rng.choice(replies)), rng)

    def _drawing(self, i: int, rng: random.Random) -> VisualFeatures:
        """A view of training drawing `i`, as one of an unknown style or, less often, an unknown name."""
        unknown = self._heads[1][rng.random() < 0.4]
        return rng.choice(unknown)[i : i + 1]

    def _drawing_example(self, rng: random.Random) -> Example:
        i = rng.randrange(len(self._train.shown))
        features, shown = self._drawing(i, rng), self._train.shown[i]
        answer = drawing_sentence(shown.name)
        # What the heads do not know of is at times answered as a visitor's picture would be, with doubt.
        if rng.random() < 0.3:
            row = self._row_of.get(shown.concept.text, -1)
            (sentence,) = self._sentences(features)
            if hedged(sentence) or row < 0 or self._vocabulary.names[row].text in sentence:
                answer = sentence
        return Example(_question("questions", rng), answer, features)

    def _class_examples(self, count: int, rng: random.Random, generator: torch.Generator) -> Iterator[Example]:
        features = self._draw_classes(count, generator)
        for i, answer in enumerate(self._sentences(features)):
            yield Example(_question("questions", rng), answer, features[i : i + 1])

    def _draw_classes(self, count: int, generator: torch.Generator) -> VisualFeatures:
        """Class features, with logits as long as the drawings' are, so that they go into one batch."""
        classes = torch.randint(len(self._encoder.classifier[1]), (count,), generator=generator)
        features = self._class_features.draw(classes, generator, mixed=0.5)
        return _padded(features, len(self._vocabulary.rows))

    def _group_example(self, rng: random.Random, generator: torch.Generator) -> Example:
        """Whether a thing is an animal, a food or the like."""
        while True:
            if rng.random() < 0.5:
                i = rng.randrange(len(self._train.shown))
                features, kind = self._drawing(i, rng), self._train.shown[i].concept.kind
                certain = bool(kind)
            else:
                features = self._draw_classes(1, generator)
                mass, which = self._heads[0].kind_masses(self._heads[0].posterior(features))[0].max(0)
                kind, certain = self._vocabulary.kinds[int(which)], bool(mass > 0.6)
            group, belongs = _drawn_group(kind, rng)
            if certain and (belongs or rng.random() < 0.7):
                answer = f"Yes, it is {group}." if belongs else f"No, it is not {group}."
                return Example(_question("group_questions", rng, group), answer, features)

    def _colour_example(self, rng: random.Random) -> Example:
        train, (photographs, colours) = self._train, self._photograph_like
        if rng.random() < 0.3:
            most = torch.zeros(())
            while most < _LEAST_SHARE:
                i = rng.randrange(len(photographs))
                most, which = colours[i].max(0)
            colour, features = COLOURS[int(which)], _padded(photographs[i : i + 1], len(self._vocabulary.rows))
        else:
            colour = rng.choice(list(train.by_colour))
            i = rng.choice(train.by_colour[colour])
            features = self._heads[1][0][0][i : i + 1]
        return Example(_question("colour_questions", rng), f"It is mostly {colour}.", features)

    def _medium_example(self, rng: random.Random) -> Example:
        train, (photographs, _) = self._train, self._photograph_like
        is_photo = rng.random() < 0.5
        if is_photo:
            i = rng.randrange(len(photographs))
            features = _padded(photographs[i : i + 1], len(self._vocabulary.rows))
        else:
            i = rng.choice([i for i, medium in enumerate(train.media) if medium is False])
            features = rng.choice(self._heads[1][0])[i : i + 1]
        return Example(_question("medium_questions", rng), f"It is a {_MEDIA[is_photo]}.", features)

    def _sentences(self, features: VisualFeatures) -> list[str]:
        """The sentence that the posterior of each picture allows."""
        projection, names = self._heads[0], self._vocabulary.names
        posterior = projection.posterior(features)
        top, chosen = posterior.topk(2, dim=1)
        masses, kinds = projection.kind_masses(posterior).max(1)
        members = torch.where(projection.kind_of == kinds[:, None], posterior, -1.0).argmax(1)
        answers = []
        for i in range(len(posterior)):
            first, second, member = (names[int(row)] for row in (*chosen[i], members[i]))
            kind = self._vocabulary.kinds[int(kinds[i])]
            answers.append(posterior_sentence(first, float(top[i, 0]), second, kind, float(masses[i]), member))
        return answers

    # Scores.

    def development(self, answerer: Answerer) -> dict[str, Figure]:
        """Scores on held-out drawings by likelihood, on photographs by accepted words, and on simple questions."""
        known, shown = training_names(), self._held_out.shown
        seen = [i for i, d in enumerate(shown) if d.name in known and d.style == UNSEEN_STYLE]
        unseen = [i for i, d in enumerate(shown) if d.name not in known]
        tests = [photo for photo in photos(development_photos()) if photo.file.is_file()]
        figures = {
            **self._caption_scores(answerer, seen, "known names in an unseen style"),
            **self._caption_scores(answerer, unseen, "names that were no answer in training"),
            **question_scores(answerer, _development_questions(tests)),
        }
        if tests:
            log = print if answerer.adapter is not None else lambda _: None
            figures |= photo_scores(answerer, self._encoder, tests, log=log)
        return figures

    def _caption_scores(self, answerer: Answerer, candidates: list[int], which: str) -> dict[str, Figure]:
        part, rng = self._held_out, random.Random(7)
        chosen = rng.sample(candidates, min(len(candidates), _SCORED))
        names = [part.shown[i].name for i in chosen]
        features = part.views[0][torch.tensor(chosen)]
        losses = caption_losses(
            answerer, names, features, list(dict.fromkeys(part.shown[i].name for i in candidates)), rng
        )
        exchanged = [part.views[0][i : i + 1] for i in (*chosen[1:], chosen[0])]
        wrong = answerer.nll([QUESTION] * len(chosen), [*map(drawing_sentence, names)], exchanged)
        return {
            f"right caption of {CHOICES}, {which}, %": share((losses.argmin(1) == 0).tolist()),
            f"caption loss, {which}": mean(losses[:, 0].tolist(), seed=0),
            f"caption loss, {which}, pictures exchanged": mean(wrong, seed=0),
        }


def _development_questions(tests: Sequence[Photo]) -> list[Question]:
    """Simple questions about held-out drawings and the photographs."""
    rng = random.Random(3)
    asked: dict[str, list[Question]] = {"group": [], "colour": [], "medium": []}

    def ask(kind: str, shown: Drawing | Photo, accepted: str, group: str = "") -> None:
        text = _question(f"{kind}_questions", rng, group)[0].text
        asked[kind].append(Question(shown, kind, text, (accepted,)))

    held_out = _drawings(held_out=True)
    for drawing in rng.sample(held_out, min(len(held_out), 4 * _SCORED)):
        copy = replace(drawing)  # whose image is kept no longer than this
        if drawing.concept.kind:
            group, belongs = _drawn_group(drawing.concept.kind, rng)
            ask("group", drawing, "yes" if belongs else "no", group)
        colours = colour_shares(copy.image)
        if colours.max() >= _LEAST_SHARE:
            ask("colour", drawing, COLOURS[int(colours.argmax())])
        if (is_photo := copy.is_photo) is not None:
            ask("medium", drawing, _MEDIA[is_photo])
    del asked["medium"][_SCORED // 2 :]
    for photo in tests:
        ask("medium", photo, "photograph")
    return [question for questions in asked.values() for question in questions[:_SCORED]]


def _drawn_group(kind: str, rng: random.Random) -> tuple[str, bool]:
    """A group to ask for, and whether things of the kind belong to it: half of the time, if there is one."""
    mine = group_of(kind)
    group = mine if mine and rng.random() < 0.5 else rng.choice(groups())
    return group, group == mine


def _padded(features: VisualFeatures, classes: int) -> VisualFeatures:
    """With a logit for each of `classes`; a projection adds nothing to those of concepts but its own head's."""
    assert features.logits is not None
    missing = classes - features.logits.shape[1]
    return VisualFeatures(features.levels, torch.nn.functional.pad(features.logits, (0, missing)))


def _after_other_talk(example: Example, rng: random.Random) -> Example:
    if rng.random() >= _HISTORY:
        return example
    return Example(example.messages, example.answer, example.features, history=sample_history(rng))


def _question(which: str, rng: random.Random, group: str = "") -> Conversation:
    question = rng.choice(phrases(read_yaml(FOLDER / "see.yaml")[which]))
    return (Message("user", question.format(group)),)
