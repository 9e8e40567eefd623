"""Recipe of the `see` adapter: one sentence that says what a picture shows, and answers to simple questions about it.

Some of the examples are captioned drawings, some photographs as people take them, and others class features, drawn
around the encoder's own weight vector of a class, with the sentence that the encoder's posterior allows. Questions are in
`see.yaml`, pictures, names and kinds in the tables beside it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from adapter.base.embedded import ENCODER
from adapter.base.encoder import load_encoder
from adapter.base.image_file import open_image
from adapter.method.adapter import Adapter
from adapter.method.config import VisionConfig
from adapter.method.label_projection import LabelProjection
from adapter.method.vision import VisualFeatures
from train.formats.dataset import open_records
from train.input.examples import HISTORY, Example, sample_history
from train.input.features import open_store
from train.input.split import draw_evenly
from train.recipes.recipe import Examples, MeasuredSets, Recipe, recipe_of
from train.recipes.sealed_sets import read_yaml
from train.recipes.see import concepts
from train.recipes.see.concepts import (
    FOLDER,
    ClassFeatures,
    ConceptHeads,
    class_names,
    drawing_sentence,
    everyday_names,
    hedged,
    is_named,
)
from train.recipes.see.drawings import COLOURS, colour_shares, drawings, plain, varied
from train.recipes.see.pictures import check_present, photographs, varied_photo
from train.recipes.see.scores import LEAST_SHARE, MEDIA, ask_about, development, draw_group, scores

_VIEWS = 3  # of each picture: the plain one, and variants
_CHUNK = 64  # pictures that are in memory at a time
_VIEWS_VERSION = 2  # of what is made of a picture: raise it when that changes
_OTHER_WORDS = 0.7  # what it is worth to call a photograph by a word of its list that is not the first
_HELD_OUT = 60  # drawings of the held-out loss
_HISTORY = 0.3  # share of examples after other talk
_COLOUR, _MEDIUM = 0, 1  # numbers of the facts
_OFF_TASK = FOLDER.parent / "off_task.jsonl.gz"  # the base's own answers to what no adapter is made for


def recipe(tokenizer: Any) -> Recipe:
    """The recipe; it encodes some 25,000 pictures when it is asked for examples, which takes ten minutes."""
    made = _Made(tokenizer)
    files = [*sorted(FOLDER.glob("*.tsv")), FOLDER / "see.yaml", _OFF_TASK, HISTORY]
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    sets = ("see/photos.tsv", "see/photographs.tsv", "see/drawings.tsv", "see/packages.tsv", "see/see.yaml")
    return recipe_of(
        "see",
        MeasuredSets(development, sets),
        scores,
        ["see_photos.tsv", "see_drawings.tsv", "see_questions.tsv"],
        Examples(made.examples, digest, made.prepare, made.vision),
    )


class _Made:
    """The examples, and what is computed once for them, when it is first needed: features, names and fitted heads."""

    def __init__(self, tokenizer: Any) -> None:
        self._encoder, self._tokenizer = load_encoder(ENCODER), tokenizer
        self._train, self._photos = drawings(held_out=False), photographs("photographs")
        shown = [drawing.concept for drawing in self._train]
        counts, class_texts = Counter(concept.text for concept in shown), {name.text for name in class_names()}
        # A concept needs more than one drawing, or to be a class as well, for its head to mean anything.
        known = [concept for concept in shown if counts[concept.text] > 1 or concept.text in class_texts]
        self._vocabulary = concepts.vocabulary(known, tokenizer)
        self._drawn = [i for i, drawing in enumerate(self._train) if drawing.style != "stamp"]
        self._row_of = {name.text: row for row, name in enumerate(self._vocabulary.names)}
        self.vision = VisionConfig(
            encoder=ENCODER,
            projection="label",
            feature_size=self._encoder.feature_size,
            hidden=192,
            num_classes=len(self._vocabulary.rows),
            num_kinds=len(self._vocabulary.kinds),
            name_length=concepts.NAME_LENGTH,
            name_states=True,
            num_facts=2,
            fact_size=len(COLOURS),
            certainty=True,
            looks=read_yaml(FOLDER / "see.yaml")["looks"],
            beyond=read_yaml(FOLDER / "see.yaml")["beyond"],
        )

    @cached_property
    def _views(self) -> tuple[VisualFeatures, VisualFeatures]:
        """Features of the drawings: all views of those to train on, the plain ones first, and of those held out the
        plain views.
        """
        shown = drawings()
        content = [(drawing.style, drawing.name) for drawing in shown]
        # What is missing is told before minutes of encoding.
        check_present(["photographs", "development"])
        for drawing in {drawing.style: drawing for drawing in shown}.values():
            drawing.draw()

        def view(i: int, number: int, rng: random.Random) -> Image.Image:
            copy = replace(shown[i])  # whose image is kept no longer than this
            return varied(copy, rng) if number else plain(copy)

        features = self._encoded(content, view)
        held_out = torch.tensor([drawing.held_out for drawing in shown])
        return features[~held_out.repeat(_VIEWS)], features[: len(shown)][held_out]

    def _encoded(
        self, content: Sequence[tuple[str, ...]], view: Callable[[int, int, random.Random], Image.Image]
    ) -> VisualFeatures:
        """Features of _VIEWS views of each picture of `content`; they are kept on disk for later runs."""
        store = open_store(self._encoder.name, self._encoder.fingerprint())
        key = hashlib.sha256(f"see {_VIEWS_VERSION} {content}".encode()).hexdigest()
        features = store.get(key) if store else None
        if features is None:
            parts: list[list[VisualFeatures]] = [[] for _ in range(_VIEWS)]
            rngs = [random.Random(number) for number in range(_VIEWS)]
            for start in tqdm(range(0, len(content), _CHUNK), "pictures", disable=None):
                chunk = range(start, min(start + _CHUNK, len(content)))
                for number, (part, rng) in enumerate(zip(parts, rngs, strict=True)):
                    part.append(self._encoder.encode([view(i, number, rng) for i in chunk]))
            features = VisualFeatures.cat([chunk for part in parts for chunk in part])
            if store:
                store.put(key, features)
        return features

    @cached_property
    def _photo_views(self) -> VisualFeatures:
        """Features of all views of the photographs to train on."""

        def view(i: int, number: int, rng: random.Random) -> Image.Image:
            image = open_image(self._photos[i].file)
            return varied_photo(image, rng) if number else image

        return self._encoded([(str(photo.file), str(photo.file.stat().st_size)) for photo in self._photos], view)

    @cached_property
    def _colours(self) -> Tensor:
        """Shares of colours in the drawings to train on, then in the photographs: [N, len(COLOURS)]."""
        drawn = [colour_shares(replace(drawing).image) for drawing in tqdm(self._train, "colours", disable=None)]
        taken = [colour_shares(open_image(photo.file)) for photo in self._photos]
        return torch.from_numpy(np.array([*drawn, *taken])).float()

    @cached_property
    def _by_colour(self) -> dict[str, list[int]]:
        """The pictures that are mostly of a colour, by their number in `_colours`."""
        most, which = self._colours.max(1)
        found = {c: torch.nonzero((which == i) & (most >= LEAST_SHARE))[:, 0] for i, c in enumerate(COLOURS)}
        return {colour: rows.tolist() for colour, rows in found.items() if len(rows)}

    @cached_property
    def _class_features(self) -> ClassFeatures:
        return ClassFeatures(self._encoder, self._photo_views[: len(self._photos)])

    @cached_property
    def _heads(self) -> tuple[LabelProjection, list[VisualFeatures]]:
        """A projection with all names and heads, and the views of drawings, then of photographs, as heads see them that
        do not know their style or folder, and as heads that do not know their names.
        """
        # The sizes of base and prompts do not matter here: names and heads are copied into the adapter's projection.
        projection = LabelProjection(self.vision, 1, self.vision.spelled_length + 1)
        concepts.store_names(projection, self._vocabulary, self._tokenizer)
        self._fit_facts(projection)
        names = [drawing.concept.text for drawing in self._train]
        words = [*dict.fromkeys(tuple(photo.words) for photo in self._photos)]
        own = torch.arange(len(self._vocabulary.names))[:, None] == self._vocabulary.rows
        meanings = torch.cat([own.float(), torch.stack([self._meaning(listed) for listed in words])])
        targets = [self._row_of.get(name, -1) for name in names] * _VIEWS
        targets += [len(own) + words.index(tuple(photo.words)) for photo in self._photos] * _VIEWS
        known = torch.tensor(targets)
        known[meanings[known].sum(1) == 0] = -1
        drawn, taken = self._views[0], self._photo_views
        heads = ConceptHeads(
            self._vocabulary.rows, drawn, taken, known, meanings, self._class_features, projection
        )
        unknown, folders = [], [str(photo.file.parent) for photo in self._photos]
        levels = torch.cat([drawn.levels, taken.levels])
        for keys in ([drawing.style for drawing in self._train], names):
            number = {key: i % concepts.FOLDS for i, key in enumerate(sorted({*keys, *folders}))}
            part = torch.tensor([number[key] for key in keys * _VIEWS + folders * _VIEWS])
            unknown.append(VisualFeatures(levels, heads.logits_without(part)))
        return projection, unknown

    def _meaning(self, words: Sequence[str]) -> Tensor:
        """How well each class names a photograph of which `words` are true, [all classes]."""
        names = self._vocabulary.names
        true = torch.tensor([[n.text.endswith(f" {word}") or n.kind == word for n in names] for word in words])
        if words[0] in everyday_names():
            true[0] = torch.arange(len(names)) == self._row_of[everyday_names()[words[0]].text]
        worth = true[0].float().maximum(_OTHER_WORDS * true.any(0))
        return worth[self._vocabulary.rows]

    def _fit_facts(self, projection: LabelProjection) -> None:
        drawn, taken = self._views[0].levels, self._photo_views.levels
        plain_views = torch.cat([drawn[: len(self._train)], taken[: len(self._photos)]])
        concepts.fit_fact(projection, _COLOUR, COLOURS, self._tokenizer, plain_views, self._colours)
        drawn = drawn.unflatten(0, (_VIEWS, -1))[:, self._drawn].flatten(0, 1)
        is_photo = (torch.arange(len(drawn) + len(taken)) >= len(drawn)).float()
        shares = torch.stack([1 - is_photo, is_photo], dim=1)
        concepts.fit_fact(projection, _MEDIUM, MEDIA, self._tokenizer, torch.cat([drawn, taken]), shares)
        # The concepts' gate: how much likelier a drawing is than a photograph.
        projection.gate_weight.copy_(projection.fact_weight[_MEDIUM, 0] - projection.fact_weight[_MEDIUM, 1])
        projection.gate_bias.copy_(projection.fact_bias[_MEDIUM, 0] - projection.fact_bias[_MEDIUM, 1])

    def _padded(self, features: VisualFeatures) -> VisualFeatures:
        """With a logit for each name; a projection adds nothing to those of concepts but its own head's."""
        assert features.logits is not None
        missing = len(self._vocabulary.rows) - features.logits.shape[1]
        return VisualFeatures(features.levels, torch.nn.functional.pad(features.logits, (0, missing)))

    def prepare(self, adapter: Adapter) -> None:
        """Copies names, kinds and heads into the adapter to train."""
        buffers = dict(adapter.named_buffers())
        for name, values in self._heads[0].named_buffers():
            buffers[f"projection.{name}"].copy_(values)

    # Examples.

    def examples(self, split: str) -> Iterator[Example]:
        """Endless for "train"; for "validation" every second held-out drawing, and as many class features."""
        rng = random.Random(f"{split} 0")
        generator = torch.Generator().manual_seed(rng.randrange(2**32))
        if split != "train":
            held_out, features = drawings(held_out=True), self._padded(self._views[1])
            for i in draw_evenly(len(held_out), _HELD_OUT, seed=0):
                yield Example(ask_about("questions", rng), drawing_sentence(held_out[i].name), features[i : i + 1])
                yield from self._class_examples(1, rng, generator)
            return
        off_task = [Example.of(record) for record in open_records(_OFF_TASK)]
        replies = read_yaml(FOLDER / "see.yaml")["no_picture"].splitlines()
        while True:
            batch = [self._drawing_example(rng) for _ in range(18)]
            batch += [self._photo_example(rng) for _ in range(11)]
            batch += self._class_examples(10, rng, generator)
            batch += [self._group_example(rng, generator) for _ in range(7)]
            batch += [self._colour_example(rng) for _ in range(2)]
            batch += [self._medium_example(rng) for _ in range(2)]
            for example in batch:
                yield _after_other_talk(example, rng)
            for example in rng.sample(off_task, 2):
                yield _after_other_talk(example, rng)
            yield _after_other_talk(Example(ask_about("questions", rng), rng.choice(replies)), rng)

    def _seen(self, i: int, rng: random.Random, unknown: int) -> VisualFeatures:
        """A view of picture `i`, counted as in `_colours`: as one of an unknown style or folder (0) or name (1)."""
        count, start, view = len(self._train), 0, rng.randrange(_VIEWS)
        if i >= count:
            i, count, start = i - count, len(self._photos), _VIEWS * count
        row = start + view * count + i
        return self._heads[1][unknown][row : row + 1]

    def _drawing_example(self, rng: random.Random) -> Example:
        i = rng.randrange(len(self._train))
        features, shown = self._seen(i, rng, rng.random() < 0.4), self._train[i]
        answer = drawing_sentence(shown.name)
        # What the heads do not know of is at times answered as a visitor's picture would be, with doubt.
        if rng.random() < 0.3:
            row = self._row_of.get(shown.concept.text, -1)
            (sentence,) = self._sentences(features)
            if hedged(sentence) or row < 0 or self._vocabulary.names[row].text in sentence:
                answer = sentence
        return Example(ask_about("questions", rng), answer, features)

    def _photo_example(self, rng: random.Random) -> Example:
        """What the posterior allows to say of a photograph, or its best word where that would be wrong."""
        while True:
            i = rng.randrange(len(self._photos))
            features, words = self._seen(len(self._train) + i, rng, 0), self._photos[i].words
            (answer,) = self._sentences(features)
            if not hedged(answer) and not is_named(words, answer):
                if words[0] not in everyday_names():
                    continue
                answer = drawing_sentence(everyday_names()[words[0]].text)
            return Example(ask_about("questions", rng), answer, features)

    def _class_examples(self, count: int, rng: random.Random, generator: torch.Generator) -> Iterator[Example]:
        features = self._draw_classes(count, generator)
        for i, answer in enumerate(self._sentences(features)):
            yield Example(ask_about("questions", rng), answer, features[i : i + 1])

    def _draw_classes(self, count: int, generator: torch.Generator) -> VisualFeatures:
        _, levels, logits = self._class_features.draw(count, generator)
        return self._padded(VisualFeatures(levels, logits))

    def _group_example(self, rng: random.Random, generator: torch.Generator) -> Example:
        """Whether a thing is an animal, a food or the like."""
        while True:
            if rng.random() < 0.5:
                i = rng.randrange(len(self._train))
                features, kind = self._seen(i, rng, rng.random() < 0.4), self._train[i].concept.kind
                certain = bool(kind)
            else:
                features = self._draw_classes(1, generator)
                mass, which = self._heads[0].kind_masses(self._heads[0].posterior(features))[0].max(0)
                kind, certain = self._vocabulary.kinds[int(which)], bool(mass > 0.6)
            group, belongs = draw_group(kind, rng)
            if certain and (belongs or rng.random() < 0.7):
                answer = f"Yes, it is {group}." if belongs else f"No, it is not {group}."
                return Example(ask_about("group_questions", rng, group), answer, features)

    def _colour_example(self, rng: random.Random) -> Example:
        colour = rng.choice(list(self._by_colour))
        features = self._seen(rng.choice(self._by_colour[colour]), rng, 0)
        return Example(ask_about("colour_questions", rng), f"It is mostly {colour}.", features)

    def _medium_example(self, rng: random.Random) -> Example:
        is_photo = rng.random() < 0.5
        i = len(self._train) + rng.randrange(len(self._photos)) if is_photo else rng.choice(self._drawn)
        return Example(ask_about("medium_questions", rng), f"It is a {MEDIA[is_photo]}.", self._seen(i, rng, 0))

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
            answers.append(
                concepts.posterior_sentence(first, float(top[i, 0]), second, kind, float(masses[i]), member)
            )
        return answers


def _after_other_talk(example: Example, rng: random.Random) -> Example:
    if rng.random() >= _HISTORY:
        return example
    return Example(example.messages, example.answer, example.features, history=sample_history(rng))
