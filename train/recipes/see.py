"""Recipe of the `see` adapter: one sentence that says what a picture shows.

Nobody's photographs are trained on. Half of the examples are "class rows", features drawn around the encoder's own weight
vector of a class, with the sentence that the encoder's posterior allows; the others are captioned drawings.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from adapter.base.embedded import ENCODER
from adapter.base.llama import Base
from adapter.base.template import Message
from adapter.method.adapter import Adapter
from adapter.method.config import VisionConfig
from adapter.method.projection import LabelProjection
from adapter.method.vision import VisualEncoder, VisualFeatures, open_image
from train.config import TrainConfig
from train.data import Example
from train.history import with_unseen_history
from train.recipes import see_concepts
from train.recipes.recipe import Recipe
from train.recipes.see_concepts import NAME_LENGTH, ClassRows, Vocabulary
from train.recipes.see_drawings import drawings, plain, varied
from train.recipes.see_names import Name, class_names, concept, drawing_sentence, sentence
from train.recipes.see_photos import photographs
from train.score import Answerer, Conversation

DATA = """Trained on captioned drawings (Tux Paint's stamps, Noto's emoji) and on the encoder's own knowledge of its 1,000 classes:
features drawn around its weight vectors, without any photograph. Tested on drawings that training never saw, and on
photographs from packages (`train/recipes/see_photos.py` lists them with the accepted words), where "encoder" is how often
the name of the encoder's likeliest class, or its kind, is accepted. Nothing is trained on the photographs, but they were
looked at while the recipe was designed."""
QUESTIONS = (
    "What is in this picture?", "What is in this image?", "What does this picture show?", "Describe the image.", "Describe this picture.",
    "What do you see?", "What can you see here?", "what's this", "What is this?", "caption this", "Write a caption for this image.",
    "What is shown here?", "Can you tell me what this is?", "what is it", "Tell me about this picture.", "Look at this.", "Do you know what this is?",
    "What am I looking at?", "Please describe what you see.", "What's in the photo?", "Identify this.", "What object is this?",
)  # fmt: skip
_EARLIER = (
    ("Hi!", "Hello! How can I help you today?"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("Give me a word that rhymes with moon.", "Spoon rhymes with moon."),
    ("Thanks, that helps.", "You're welcome! Is there anything else you would like to know?"),
    ("What is 7 times 6?", "7 times 6 is 42."),
    ("Name a fruit that is yellow.", "A banana is yellow."),
)
_NO_PICTURE = "I see no picture yet. Please add one."
_VARIANTS = 3  # of each drawing, beside the plain one
_CHOICES = 10
_WHOLE = 0.7  # share of training pictures with all levels of the encoder
_TEST_QUESTION = (Message("user", "What is in this picture?"),)


@dataclass(frozen=True)
class _Pool:
    """Encoded drawings: `views[v]` holds features of all `names` in one variant, plain first."""

    names: list[str]
    views: list[VisualFeatures]


def recipe(base: Base) -> Recipe:
    """The recipe; encodes some 7,000 pictures first: two minutes on an idle machine."""
    encoder = VisualEncoder(ENCODER)
    train, held_out = _encode_drawings(encoder)
    counted = Counter(map(concept, train.names))
    known = {name.text for name in class_names()}
    # A concept needs more than one drawing, or to be a class as well, for its head to mean anything.
    words = see_concepts.vocabulary([c for c, count in counted.items() if count > 1 or c in known], base.tokenizer)
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
            num_classes=len(words.rows),
            num_kinds=len(words.kinds),
            name_length=NAME_LENGTH,
        ),
    )
    prepared = _Prepared(encoder, words, train, held_out, base.tokenizer, config)
    return Recipe(config, DATA, prepared.examples, prepared.scores, prepared.prepare)


def _encode_drawings(encoder: VisualEncoder) -> tuple[_Pool, _Pool]:
    """The drawings to train on and those held out."""
    found = drawings()
    views = []
    for variant in range(_VARIANTS + 1):
        rng = random.Random(variant)
        views.append(encoder.encode([varied(d, rng) if variant else plain(d) for d in found]))
    pools = []
    for held_out in (False, True):
        chosen = torch.tensor([i for i, d in enumerate(found) if d.held_out is held_out])
        pools.append(_Pool([found[i].name for i in chosen.tolist()], [view[chosen] for view in views]))
    return pools[0], pools[1]


class _Prepared:
    """Everything that is made once: features, names, the fitted concept head."""

    def __init__(
        self,
        encoder: VisualEncoder,
        words: Vocabulary,
        train: _Pool,
        held_out: _Pool,
        tokenizer: Any,
        config: TrainConfig,
    ) -> None:
        self._encoder, self._words, self._train, self._held_out = encoder, words, train, held_out
        everything = VisualFeatures.cat(train.views)
        self._rows = ClassRows(encoder, everything)
        assert config.vision is not None
        # The size of the base does not matter here: names and head are copied into the adapter's projection.
        self._projection = LabelProjection(config.vision, 1, config.prompt_length)
        see_concepts.spell(self._projection, words, tokenizer)
        row_of = {name.text: row for row, name in enumerate(words.names)}
        targets = torch.tensor([row_of.get(concept(name), -1) for name in train.names]).repeat(len(train.views))
        named = targets >= 0
        see_concepts.fit_concepts(self._projection, words, everything[named], targets[named], self._rows)

    def prepare(self, adapter: Adapter) -> None:
        """Copy names, kinds and concept head into a new adapter."""
        own = dict(adapter.named_buffers())
        for name, values in self._projection.named_buffers():
            own[f"projection.{name}"].copy_(values)

    def examples(self, split: str, seed: int = 0) -> Iterator[Example]:
        """Endless for "train"; for "validation" every second held-out drawing, and as many class rows."""
        rng = random.Random(f"{split} {seed}")
        generator = torch.Generator().manual_seed(rng.randrange(2**32))
        if split != "train":
            pool = self._held_out
            for i in range(1, len(pool.names), 2):
                yield self._drawing(pool, i, rng)
                yield from self._class_rows(1, rng, generator)
            return
        while True:
            for _ in range(24):
                pool = self._train
                yield self._drawing(pool, rng.randrange(len(pool.names)), rng)
            yield from self._class_rows(26, rng, generator)
            yield Example(_conversation(rng), _NO_PICTURE)

    def _drawing(self, pool: _Pool, i: int, rng: random.Random) -> Example:
        features = rng.choice(pool.views)[i : i + 1]
        return Example(_conversation(rng), drawing_sentence(pool.names[i]), self._without_stages(features, rng))

    def _without_stages(self, features: VisualFeatures, rng: random.Random) -> VisualFeatures:
        """At times without the other levels, as class rows are, so that their absence means nothing."""
        if rng.random() < _WHOLE:
            return features
        levels = features.levels.clone()
        levels[:, : -self._encoder.classifier[0].shape[1]] = 0
        return VisualFeatures(levels, features.logits)

    def _class_rows(self, count: int, rng: random.Random, generator: torch.Generator) -> Iterator[Example]:
        classes = torch.randint(len(self._encoder.classifier[1]), (count,), generator=generator)
        features = self._rows.draw(classes, generator, mixed=0.5, whole=_WHOLE)
        for i, answer in enumerate(self._sentences(features)):
            yield Example(_conversation(rng), answer, features[i : i + 1])

    def _sentences(self, features: VisualFeatures) -> list[str]:
        """What the posterior of each picture allows to say."""
        posterior = self._projection.posterior(features)
        top, chosen = posterior.topk(2, dim=1)
        answers = []
        for i in range(len(posterior)):
            first, second = (self._words.names[int(row)] for row in chosen[i])
            same = [n for n, name in enumerate(self._words.names) if name.kind and name.kind == first.kind]
            answers.append(sentence(first, float(top[i, 0]), second, float(posterior[i, same].sum())))
        return answers

    def scores(self, answerer: Answerer) -> dict[str, float]:
        """Held-out drawings by likelihood, and photographs by accepted words."""
        return {**self._drawing_scores(answerer), **self._photo_scores(answerer)}

    def _drawing_scores(self, answerer: Answerer) -> dict[str, float]:
        pool = self._held_out
        chosen = list(range(0, len(pool.names), 2))
        rng = random.Random(7)
        conversations: list[Conversation] = []
        answers: list[str] = []
        shown: list[VisualFeatures | None] = []
        for i in chosen:
            others = [n for n in dict.fromkeys(pool.names[j] for j in chosen) if n != pool.names[i]]
            for name in (pool.names[i], *rng.sample(others, _CHOICES - 1)):
                conversations.append(_TEST_QUESTION)
                answers.append(drawing_sentence(name))
                shown.append(pool.views[0][i : i + 1])
        losses = torch.tensor(answerer.nll(conversations, answers, shown)).view(len(chosen), _CHOICES)
        exchanged = [pool.views[0][i : i + 1] for i in (*chosen[1:], chosen[0])]
        wrong = answerer.nll([_TEST_QUESTION] * len(chosen), answers[::_CHOICES], exchanged)
        return {
            f"caption loss, {len(chosen)} unseen drawings": losses[:, 0].mean().item(),
            "caption loss, pictures exchanged": sum(wrong) / len(wrong),
            f"right caption of {_CHOICES}, %": 100 * (losses.argmin(1) == 0).float().mean().item(),
        }

    def _photo_scores(self, answerer: Answerer) -> dict[str, float]:
        found, _ = photographs()
        if not found:
            return {}
        features = self._encoder.encode([open_image(photo.path) for photo in found])
        shown = [features[i : i + 1] for i in range(len(found))]
        asked = [_TEST_QUESTION] * len(found)
        answers = answerer.generate(asked, shown, max_new_tokens=40)
        later = answerer.generate(with_unseen_history(asked), shown, max_new_tokens=40)
        assert features.logits is not None
        labels = [class_names()[int(c)] for c in features.logits.argmax(1)]
        if answerer.adapter is not None:
            for photo, answer in zip(found, answers, strict=True):
                print(f"{'right' if photo.named_in(answer) else 'WRONG'}  {photo.path.name:40} {answer}")
        name = f"names the thing in {len(found)} photographs, %"
        return {
            measure: 100 * sum(p.named_in(a) for p, a in zip(found, said, strict=True)) / len(found)
            for measure, said in ((name, answers), (f"{name}, after other talk", later))
        } | {
            "the encoder's likeliest class names it, %": 100
            * sum(p.named_in(_with_kind(n)) for p, n in zip(found, labels, strict=True))
            / len(found),
        }


def _with_kind(name: Name) -> str:
    return f"{name.text} {name.kind}"


def _conversation(rng: random.Random) -> Conversation:
    earlier: list[Message] = []
    if rng.random() < 0.2:
        for question, answer in rng.sample(_EARLIER, rng.choice((1, 2))):
            earlier += [Message("user", question), Message("assistant", answer)]
    return (*earlier, Message("user", rng.choice(QUESTIONS)))
