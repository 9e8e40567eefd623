"""Recipe of the `see` adapter: one sentence that says what a picture shows, and answers to simple questions about it.

No whole photograph is trained on, only cut-outs among the stamps. Some of the examples are class features, drawn around the encoder's own weight
vector of a class, with the sentence that the encoder's posterior allows; the others are captioned drawings. Questions
are in `see.yaml`, names and kinds in the tables beside it; `photos.tsv` is the development set of photographs.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adapter.base.embedded import ENCODER
from adapter.base.encoder import load_encoder
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
from train.recipes.see.concepts import FOLDER, ClassFeatures, ConceptHeads, class_names, drawing_sentence, hedged
from train.recipes.see.drawings import COLOURS, colour_shares, drawings, photograph_like, plain, varied
from train.recipes.see.scores import LEAST_SHARE, MEDIA, ask_about, development, draw_group, scores

_VIEWS = 3  # of each drawing: the plain one, and variants
_CHUNK = 64  # drawings that are in memory at a time
_VIEWS_VERSION = 2  # of what `drawings.py` makes of a drawing: raise it when that changes
_PHOTOGRAPH_LIKE = 800
_HELD_OUT = 60  # drawings of the held-out loss
_HISTORY = 0.3  # share of examples after other talk
_COLOUR, _MEDIUM = 0, 1  # numbers of the facts
_OFF_TASK = FOLDER.parent / "off_task.jsonl.gz"  # the base's own answers to what no adapter is made for


def recipe(tokenizer: Any) -> Recipe:
    """The recipe; it encodes some 25,000 pictures when it is asked for examples, which takes ten minutes."""
    made = _Made(tokenizer)
    files = [*sorted(FOLDER.glob("*.tsv")), FOLDER / "see.yaml", _OFF_TASK, HISTORY]
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    sets = ("see/photos.tsv", "see/drawings.tsv", "see/packages.tsv", "see/see.yaml")
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
        self._train = drawings(held_out=False)
        shown = [drawing.concept for drawing in self._train]
        counts, class_texts = Counter(concept.text for concept in shown), {name.text for name in class_names()}
        # A concept needs more than one drawing, or to be a class as well, for its head to mean anything.
        known = [concept for concept in shown if counts[concept.text] > 1 or concept.text in class_texts]
        self._vocabulary = concepts.vocabulary(known, tokenizer)
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
        plain views. They are kept on disk for later runs.
        """
        shown, store = drawings(), open_store(self._encoder.name, self._encoder.fingerprint())
        content = [(drawing.style, drawing.name) for drawing in shown]
        key = hashlib.sha256(f"see {_VIEWS_VERSION} {content}".encode()).hexdigest()
        features = store.get(key) if store else None
        if features is None:
            for drawing in {drawing.style: drawing for drawing in shown}.values():
                drawing.draw()  # what is missing is told before minutes of encoding
            parts: list[list[VisualFeatures]] = [[] for _ in range(_VIEWS)]
            rngs = [random.Random(view) for view in range(_VIEWS)]
            for start in tqdm(range(0, len(shown), _CHUNK), "drawings", disable=None):
                # Copies, which keep their images no longer than this.
                chunk = [replace(drawing) for drawing in shown[start : start + _CHUNK]]
                for view, (part, rng) in enumerate(zip(parts, rngs, strict=True)):
                    part.append(self._encoder.encode([varied(d, rng) if view else plain(d) for d in chunk]))
            features = VisualFeatures.cat([chunk for part in parts for chunk in part])
            if store:
                store.put(key, features)
        held_out = torch.tensor([drawing.held_out for drawing in shown])
        return features[~held_out.repeat(_VIEWS)], features[: len(shown)][held_out]

    @cached_property
    def _looks(self) -> tuple[Tensor, list[bool | None]]:
        """Of the drawings to train on: shares of colours, [N, len(COLOURS)], and whether each is a photograph's
        cut-out, None where unknown.
        """
        copies = (replace(drawing) for drawing in tqdm(self._train, "colours", disable=None))
        looks = [(colour_shares(copy.image), copy.is_photo) for copy in copies]
        return torch.from_numpy(np.array([shares for shares, _ in looks])).float(), [media for _, media in looks]

    @cached_property
    def _by_colour(self) -> dict[str, list[int]]:
        """The drawings that are mostly of a colour."""
        most, which = self._looks[0].max(1)
        found = {c: torch.nonzero((which == i) & (most >= LEAST_SHARE))[:, 0] for i, c in enumerate(COLOURS)}
        return {colour: rows.tolist() for colour, rows in found.items() if len(rows)}

    @cached_property
    def _photograph_like(self) -> tuple[VisualFeatures, Tensor]:
        """Features and colours of pictures with a photograph's texture."""
        rng = random.Random(5)
        cut_outs = [replace(d) for d, is_photo in zip(self._train, self._looks[1], strict=True) if is_photo]
        pictures = [photograph_like(cut_outs, rng) for _ in range(_PHOTOGRAPH_LIKE)]
        colours = torch.from_numpy(np.array([colour_shares(picture) for picture in pictures])).float()
        return self._padded(self._encoder.encode(pictures)), colours

    @cached_property
    def _class_features(self) -> ClassFeatures:
        return ClassFeatures(self._encoder, self._photograph_like[0])

    @cached_property
    def _heads(self) -> tuple[LabelProjection, list[VisualFeatures]]:
        """A projection with all names and heads; and the training drawings' views twice, with logits of heads that
        were fitted without the drawing's style (0) and without its name (1).
        """
        # The sizes of base and prompts do not matter here: names and heads are copied into the adapter's projection.
        projection = LabelProjection(self.vision, 1, self.vision.spelled_length + 1)
        concepts.store_names(projection, self._vocabulary, self._tokenizer)
        self._fit_facts(projection)
        views, _ = self._views
        names = [drawing.concept.text for drawing in self._train]
        targets = torch.tensor([self._row_of.get(name, -1) for name in names]).repeat(_VIEWS)
        heads = ConceptHeads(views, targets, self._class_features, projection)
        unknown = []
        for keys in ([drawing.style for drawing in self._train], names):
            number = {key: i % concepts.FOLDS for i, key in enumerate(sorted(set(keys)))}
            part = torch.tensor([number[key] for key in keys]).repeat(_VIEWS)
            unknown.append(VisualFeatures(views.levels, heads.logits_without(part)))
        return projection, unknown

    def _fit_facts(self, projection: LabelProjection) -> None:
        views, (colours, media) = self._views[0], self._looks
        photographs, photograph_colours = self._photograph_like
        levels = torch.cat([views.levels[: len(media)], photographs.levels])
        shares = torch.cat([colours, photograph_colours])
        concepts.fit_fact(projection, _COLOUR, COLOURS, self._tokenizer, levels, shares)
        known = torch.tensor([is_photo is not None for is_photo in media])
        is_photo = torch.tensor([float(bool(is_photo)) for is_photo in media])[known].repeat(_VIEWS)
        is_photo = torch.cat([is_photo, torch.ones(len(photographs))])
        levels = torch.cat([views.levels[known.repeat(_VIEWS)], photographs.levels])
        shares = torch.stack([1 - is_photo, is_photo], dim=1)
        concepts.fit_fact(projection, _MEDIUM, MEDIA, self._tokenizer, levels, shares)
        # The concepts' gate: how much likelier a drawing is than a photograph.
        projection.gate_weight.copy_(projection.fact_weight[_MEDIUM, 0] - projection.fact_weight[_MEDIUM, 1])
        projection.gate_bias.copy_(projection.fact_bias[_MEDIUM, 0] - projection.fact_bias[_MEDIUM, 1])

    def _padded(self, features: VisualFeatures) -> VisualFeatures:
        """Pads the logits to [B, all classes] with 0 for the concepts: the projection adds its own head's there."""
        assert features.logits is not None
        missing = len(self._vocabulary.rows) - features.logits.shape[1]
        return VisualFeatures(features.levels, torch.nn.functional.pad(features.logits, (0, missing)))

    def prepare(self, adapter: Adapter) -> None:
        """Copies names, kinds and heads into a new adapter."""
        buffers = dict(adapter.named_buffers())
        for name, values in self._heads[0].named_buffers():
            buffers[f"projection.{name}"].copy_(values)

    # Examples.

    def examples(self, split: str) -> Iterator[Example]:
        """Endless for "train"; for "validation" 60 held-out drawings, drawn evenly, and as many class features."""
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
            batch = [self._drawing_example(rng) for _ in range(22)]
            batch += self._class_examples(17, rng, generator)
            batch += [self._group_example(rng, generator) for _ in range(7)]
            batch += [self._colour_example(rng) for _ in range(2)]
            batch += [self._medium_example(rng) for _ in range(2)]
            for example in batch:
                yield _after_other_talk(example, rng)
            for example in rng.sample(off_task, 2):
                yield _after_other_talk(example, rng)
            yield _after_other_talk(Example(ask_about("questions", rng), rng.choice(replies)), rng)

    def _drawing(self, i: int, rng: random.Random, unknown: int) -> VisualFeatures:
        """A view of training drawing `i`, as one of an unknown style (0) or an unknown name (1)."""
        row = rng.randrange(_VIEWS) * len(self._train) + i
        return self._heads[1][unknown][row : row + 1]

    def _drawing_example(self, rng: random.Random) -> Example:
        i = rng.randrange(len(self._train))
        features, shown = self._drawing(i, rng, rng.random() < 0.4), self._train[i]
        answer = drawing_sentence(shown.name)
        # What the heads do not know of is at times answered as a visitor's picture would be, with doubt.
        if rng.random() < 0.3:
            row = self._row_of.get(shown.concept.text, -1)
            (sentence,) = self._sentences(features)
            if hedged(sentence) or row < 0 or self._vocabulary.names[row].text in sentence:
                answer = sentence
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
                features, kind = self._drawing(i, rng, rng.random() < 0.4), self._train[i].concept.kind
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
        photographs, colours = self._photograph_like
        if rng.random() < 0.3:
            most = torch.zeros(())
            while most < LEAST_SHARE:
                i = rng.randrange(len(photographs))
                most, which = colours[i].max(0)
            colour, features = COLOURS[int(which)], photographs[i : i + 1]
        else:
            colour = rng.choice(list(self._by_colour))
            i = rng.choice(self._by_colour[colour])
            features = self._heads[1][0][i : i + 1]
        return Example(ask_about("colour_questions", rng), f"It is mostly {colour}.", features)

    def _medium_example(self, rng: random.Random) -> Example:
        is_photo = rng.random() < 0.5
        if is_photo:
            i = rng.randrange(_PHOTOGRAPH_LIKE)
            features = self._photograph_like[0][i : i + 1]
        else:
            i = rng.choice([i for i, medium in enumerate(self._looks[1]) if medium is False])
            features = self._drawing(i, rng, 0)
        return Example(ask_about("medium_questions", rng), f"It is a {MEDIA[is_photo]}.", features)

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
