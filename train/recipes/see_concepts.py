"""What the `see` adapter can call a picture: the encoder's classes, further concepts that drawings show, their
spelling in tokens, and the linear head that tells the concepts apart.

Fitted once before the adapter is trained, and stored with it. Knows features and names; knows no conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """names: every distinct name; rows: [classes] index into names, the encoder's classes first; kinds: every kind."""

    names: list[Name]
    rows: Tensor
    kinds: list[str]


def vocabulary(concepts: Sequence[str], tokenizer: Any) -> Vocabulary:
    """The encoder's classes and those of `concepts` that are short enough; equal names become one."""
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


def spell(projection: LabelProjection, words: Vocabulary, tokenizer: Any) -> None:
    """Store the names' and kinds' tokens with the adapter."""
    projection.name_of.copy_(words.rows)
    for table, texts in (
        (projection.names, [name.text for name in words.names]),
        (projection.kinds, words.kinds),
    ):
        for row, text in enumerate(texts):
            ids = _tokens(tokenizer, text)[: table.shape[1]]
            table[row, : len(ids)] = torch.tensor(ids)
    for row, name in enumerate(words.names):
        projection.kind_of[row] = words.kinds.index(name.kind) if name.kind else -1


def _tokens(tokenizer: Any, text: str) -> list[int]:
    # With the blank before it, as the word stands in a sentence.
    return list(tokenizer(" " + text, add_special_tokens=False).input_ids)


class ClassRows:
    """Features of photographs that nobody took: drawn around the encoder's own weight vector of a class.

    The pooled features are their mean over drawings, plus a step along the class's weight vector, plus part of some
    drawing's own deviation; the logits are the encoder's classifier on them. The other levels are unknown: zero, or
    that drawing's, so that neither says whether a picture is a photograph.
    """

    def __init__(self, encoder: VisualEncoder, drawings: VisualFeatures) -> None:
        self._weight, self._bias = encoder.classifier
        size = self._weight.shape[1]
        pooled = drawings.levels[:, -size:]
        self._others = drawings.levels[:, :-size]
        self._mean = pooled.mean(0)
        self._deviations = pooled - self._mean

    def draw(
        self, classes: Tensor, generator: torch.Generator, mixed: float = 0.0, whole: float = 0.0
    ) -> VisualFeatures:
        """One row of features for each class; `mixed`: share of rows that lie between it and a near class.

        whole: share of rows that have the other levels too.
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
        there = torch.rand(count, 1, generator=generator) < whole
        levels = torch.cat([self._others[picked] * there, pooled], dim=1)
        return VisualFeatures(levels, F.linear(pooled, self._weight, self._bias))


def fit_concepts(
    projection: LabelProjection,
    words: Vocabulary,
    drawings: VisualFeatures,
    targets: Tensor,
    classes: ClassRows,
) -> None:
    """Fit the linear head on drawings (targets: [B] rows of names) against class rows, jointly with the encoder's
    own logits, so that it keeps silent on photographs. Sets the projection's buffers.
    """
    generator = torch.Generator().manual_seed(0)
    rows = words.rows
    assert drawings.logits is not None
    logits = drawings.logits
    num_classes = logits.shape[1]
    num_concepts = len(rows) - num_classes
    pooled = (
        classes.draw(torch.zeros(1, dtype=torch.long), generator).levels.ne(0).any(0)
    )  # only these are common to both
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
        chosen = torch.randint(num_classes, (_BATCH // 2,), generator=generator)
        made = classes.draw(chosen, generator, mixed=0.5)
        noise = _NOISE * torch.randn(_BATCH, CONCEPT_RANK, generator=generator)
        inputs = torch.cat([codes[picked] + noise, ((made.levels - mean) / scale) @ basis.T])
        assert made.logits is not None
        known = torch.cat([logits[picked], made.logits])
        joint = torch.cat([known, F.linear(inputs, weight, bias)], dim=1).log_softmax(1)
        wanted = torch.cat([targets[picked], rows[chosen]])
        # A name's probability is the sum over the classes that share it.
        own = torch.where(rows == wanted[:, None], joint, -torch.inf).logsumexp(1)
        (-own.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        # The head takes raw features: what standardised them goes into basis and bias.
        folded = basis / scale
        projection.concept_basis.copy_(folded)
        projection.concept_weight[num_classes:] = weight
        projection.concept_bias[num_classes:] = bias - weight @ (folded @ mean)
