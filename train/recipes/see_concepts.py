"""What the `see` adapter can call a picture: the encoder's classes and the concepts that drawings show, their tokens,
and the linear head that tells the concepts apart.

The head is fitted once, before the adapter is trained, and stored with it. Knows features and names; knows no
conversations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.method.projection import CONCEPT_RANK, LabelProjection
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.recipes.see_names import Name, class_names

NAME_LENGTH = 7
_STEPS, _BATCH, _NOISE = 300, 384, 0.3


@dataclass(frozen=True)
class Vocabulary:
    """names: all distinct names. rows: [classes] index into `names`, the encoder's classes first. kinds: all kinds."""

    names: list[Name]
    rows: Tensor
    kinds: list[str]


def vocabulary(concepts: Iterable[str], tokenizer: Any) -> Vocabulary:
    """The encoder's classes, and those of `concepts` of at most NAME_LENGTH tokens. Equal names become one."""
    classes = class_names()
    short = [c for c in dict.fromkeys(concepts) if len(_tokens(tokenizer, c)) <= NAME_LENGTH]
    index: dict[str, int] = {}
    names: list[Name] = []
    rows = []
    for name in (*classes, *map(Name, short)):
        if name.text not in index:
            index[name.text] = len(names)
            names.append(name)
        rows.append(index[name.text])
    return Vocabulary(names, torch.tensor(rows), sorted({name.kind for name in names if name.kind}))


def store_names(projection: LabelProjection, vocabulary: Vocabulary, tokenizer: Any) -> None:
    """Stores the tokens of names and kinds in the projection's buffers."""
    projection.name_of.copy_(vocabulary.rows)
    names = [name.text for name in vocabulary.names]
    for table, texts in ((projection.names, names), (projection.kinds, vocabulary.kinds)):
        for row, text in enumerate(texts):
            ids = _tokens(tokenizer, text)[: table.shape[1]]
            table[row, : len(ids)] = torch.tensor(ids)
    for row, name in enumerate(vocabulary.names):
        projection.kind_of[row] = vocabulary.kinds.index(name.kind) if name.kind else -1


def _tokens(tokenizer: Any, text: str) -> list[int]:
    # With the blank before it, as the word stands in a sentence.
    return list(tokenizer(" " + text, add_special_tokens=False).input_ids)


class ClassFeatures:
    """Draws features of imagined photographs around the encoder's own weight vector of a class.

    The pooled features are the mean over drawings, plus a step along the class's weight vector, plus part of some
    drawing's own deviation; the logits are the encoder's classifier on them. The other levels are unknown: zero, or
    that drawing's, so that neither tells whether a picture is a photograph.
    """

    def __init__(self, encoder: VisualEncoder, drawings: VisualFeatures) -> None:
        self._weight, self._bias = encoder.classifier
        size = self._weight.shape[1]
        pooled = drawings.levels[:, -size:]
        self._other_levels = drawings.levels[:, :-size]
        self._mean = pooled.mean(0)
        self._deviations = pooled - self._mean

    def draw(
        self, classes: Tensor, generator: torch.Generator, mixed: float = 0.0, whole: float = 0.0
    ) -> VisualFeatures:
        """One row of features for each class.

        mixed: share of rows that lie between the class and a near one. whole: share of rows with the other levels.
        """
        count = len(classes)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count, 1).uniform_(low, high, generator=generator)

        unit = F.normalize(self._weight, dim=1)
        direction = unit[classes]
        near = (direction @ unit.T).topk(6, dim=1).indices  # itself first
        other = near[torch.arange(count), torch.randint(1, 6, (count,), generator=generator)]
        blend = uniform(0.2, 0.5) * (torch.rand(count, 1, generator=generator) < mixed)
        direction = F.normalize((1 - blend) * direction + blend * unit[other], dim=1)
        picked = torch.randint(len(self._deviations), (count,), generator=generator)
        pooled = self._mean + uniform(3, 8) * direction + uniform(0.4, 1.0) * self._deviations[picked]
        pooled = pooled.clamp(min=0)  # they come out of a rectifier
        has_levels = torch.rand(count, 1, generator=generator) < whole
        levels = torch.cat([self._other_levels[picked] * has_levels, pooled], dim=1)
        return VisualFeatures(levels, F.linear(pooled, self._weight, self._bias))


def fit_concept_head(
    projection: LabelProjection,
    vocabulary: Vocabulary,
    drawings: VisualFeatures,
    targets: Tensor,
    class_features: ClassFeatures,
) -> None:
    """Fits the linear head of the concepts and stores it in the projection's buffers.

    It learns drawings (targets: [B] rows of names) against class features, jointly with the encoder's own logits, so
    that it stays silent on photographs.
    """
    generator = torch.Generator().manual_seed(0)
    rows = vocabulary.rows
    assert drawings.logits is not None
    logits = drawings.logits
    num_classes = logits.shape[1]
    num_concepts = len(rows) - num_classes
    # Only the pooled features are common to drawings and class features.
    pooled = class_features.draw(torch.zeros(1, dtype=torch.long), generator).levels.ne(0).any(0)
    levels = drawings.levels * pooled
    mean, scale = levels.mean(0), levels.std(0) + 1e-3
    scale[~pooled] = 1.0
    standard = (levels - mean) / scale
    _, _, axes = torch.pca_lowrank(standard, q=CONCEPT_RANK, niter=3)
    spread = (standard @ axes).std(0)
    basis = (axes / spread).T * pooled
    codes = standard @ basis.T
    weight = torch.zeros(num_concepts, CONCEPT_RANK, requires_grad=True)
    bias = torch.full((num_concepts,), -2.0, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=0.05, weight_decay=0.3)
    for _ in range(_STEPS):
        picked = torch.randint(len(codes), (_BATCH,), generator=generator)
        classes = torch.randint(num_classes, (_BATCH // 2,), generator=generator)
        made = class_features.draw(classes, generator, mixed=0.5)
        noise = _NOISE * torch.randn(_BATCH, CONCEPT_RANK, generator=generator)
        inputs = torch.cat([codes[picked] + noise, ((made.levels - mean) / scale) @ basis.T])
        assert made.logits is not None
        class_logits = torch.cat([logits[picked], made.logits])
        joint = torch.cat([class_logits, F.linear(inputs, weight, bias)], dim=1).log_softmax(1)
        wanted = torch.cat([targets[picked], rows[classes]])
        # A name's probability is the sum over the classes that share it.
        log_likelihood = torch.where(rows == wanted[:, None], joint, -torch.inf).logsumexp(1)
        (-log_likelihood.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        # The head takes raw features: the standardisation goes into basis and bias.
        folded = basis / scale
        projection.concept_basis.copy_(folded)
        projection.concept_weight[num_classes:] = weight
        projection.concept_bias[num_classes:] = bias - weight @ (folded @ mean)
