"""What the `see` adapter can call a picture: the encoder's classes and the concepts that drawings show, their tokens,
and the linear heads that tell concepts, colours, drawings and photographs apart.

The heads are fitted once, before the adapter is trained, and stored with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.method.label_projection import CONCEPT_RANK, LEAD_LENGTH, LabelProjection
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.recipes.see.names import SURE, SURE_OF_KIND, Name, class_names

NAME_LENGTH = 7
FOLDS = 4
_LEAD = "The picture shows"
_CERTAINTY = ("clear", "probably", "unsure")  # of a name, of a kind, of neither
_STEPS, _BATCH, _NOISE = 300, 384, 0.3
_FACT_STEPS, _FACT_BATCH = 1000, 256


@dataclass(frozen=True)
class Vocabulary:
    """names: all distinct names. rows: [classes] index into `names`, the encoder's classes first. kinds: all kinds."""

    names: list[Name]
    rows: Tensor
    kinds: list[str]


def vocabulary(concepts: Iterable[Name], tokenizer: Any) -> Vocabulary:
    """The encoder's classes, and those of `concepts` of at most NAME_LENGTH tokens. Equal names become one."""
    classes = class_names()
    short = [c for c in dict.fromkeys(concepts) if len(_tokens(tokenizer, c.text)) <= NAME_LENGTH]
    index: dict[str, int] = {}
    names: list[Name] = []
    rows = []
    for name in (*classes, *short):
        if name.text not in index:
            index[name.text] = len(names)
            names.append(name)
        rows.append(index[name.text])
    return Vocabulary(names, torch.tensor(rows), sorted({name.kind for name in names if name.kind}))


def store_names(projection: LabelProjection, vocabulary: Vocabulary, tokenizer: Any) -> None:
    """Stores the tokens of names and kinds, and of what stands before them, in the projection's buffers."""
    lead = tokenizer(_LEAD, add_special_tokens=False).input_ids[-LEAD_LENGTH:]
    projection.lead[: len(lead)] = torch.tensor(lead)
    projection.certainty_words.copy_(torch.tensor([_tokens(tokenizer, word)[0] for word in _CERTAINTY]))
    projection.certainty_bounds.copy_(torch.tensor([SURE, SURE_OF_KIND]))
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

    The pooled features are the mean over pictures with a photograph's texture, plus a step along the class's weight
    vector, plus part of such a picture's own deviation; the logits are the encoder's classifier on them. The other
    levels are that picture's.
    """

    def __init__(self, encoder: VisualEncoder, photograph_like: VisualFeatures) -> None:
        self._weight, self._bias = encoder.classifier
        self.pooled = self._weight.shape[1]
        pooled = photograph_like.levels[:, -self.pooled :]
        self._other_levels = photograph_like.levels[:, : -self.pooled]
        self._mean = pooled.mean(0)
        self._deviations = pooled - self._mean

    def draw(self, classes: Tensor, generator: torch.Generator, mixed: float = 0.0) -> VisualFeatures:
        """One row of features for each class. mixed: share of rows that lie between the class and a near one."""
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
        levels = torch.cat([self._other_levels[picked], pooled], dim=1)
        return VisualFeatures(levels, F.linear(pooled, self._weight, self._bias))


class ConceptHeads:
    """The linear head of the concepts, and heads that were fitted without some of the drawings.

    A head knows the drawings that it was fitted on better than any that a visitor will show. What it would have said
    of a training drawing, had it not known it, comes from a head that was fitted without its part.
    """

    def __init__(
        self, vocabulary: Vocabulary, drawings: VisualFeatures, class_features: ClassFeatures, gate: Tensor
    ) -> None:
        """gate: [B], log-odds that each picture is a drawing, as the projection's gate says."""
        self._rows, self._class_features = vocabulary.rows, class_features
        assert drawings.logits is not None
        self._logits = drawings.logits
        levels, pooled = drawings.levels, class_features.pooled
        self._mean, scale = levels.mean(0), levels.std(0) + 1e-3
        standard = ((levels - self._mean) / scale)[:, -pooled:]
        torch.manual_seed(0)  # of the random projection that the decomposition begins with
        _, _, axes = torch.pca_lowrank(standard, q=CONCEPT_RANK, niter=3)
        basis = torch.zeros(CONCEPT_RANK, levels.shape[1])
        basis[:, -pooled:] = (axes / (standard @ axes).std(0)).T / scale[-pooled:]
        self._basis, self._gate = basis, F.logsigmoid(gate)
        self._codes = (levels - self._mean) @ basis.T

    def fit(self, targets: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [concepts, CONCEPT_RANK] and bias of a head on the codes of the drawings.

        targets: [B] rows of names; used: [B], which drawings to learn from. The head learns drawings against class
        features, jointly with the encoder's own logits, so that it stays silent on photographs.
        """
        generator = torch.Generator().manual_seed(0)
        chosen = used.nonzero()[:, 0]
        num_classes = self._logits.shape[1]
        num_concepts = len(self._rows) - num_classes
        weight = torch.zeros(num_concepts, CONCEPT_RANK, requires_grad=True)
        bias = torch.full((num_concepts,), -2.0, requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=0.05, weight_decay=0.3)
        # Half-open for class features: the head itself learns to be silent on photographs, too.
        made_gate = torch.tensor(0.5).log()
        for _ in range(_STEPS):
            picked = chosen[torch.randint(len(chosen), (_BATCH,), generator=generator)]
            classes = torch.randint(num_classes, (_BATCH // 2,), generator=generator)
            made = self._class_features.draw(classes, generator, mixed=0.5)
            noise = _NOISE * torch.randn(_BATCH, CONCEPT_RANK, generator=generator)
            made_codes = (made.levels - self._mean) @ self._basis.T
            inputs = torch.cat([self._codes[picked] + noise, made_codes])
            assert made.logits is not None
            class_logits = torch.cat([self._logits[picked], made.logits])
            gate = torch.cat([self._gate[picked], made_gate.expand(len(classes))])
            concepts = F.linear(inputs, weight, bias) + gate[:, None]
            joint = torch.cat([class_logits, concepts], dim=1).log_softmax(1)
            wanted = torch.cat([targets[picked], self._rows[classes]])
            # A name's probability is the sum over the classes that share it.
            log_likelihood = torch.where(self._rows == wanted[:, None], joint, -torch.inf).logsumexp(1)
            (-log_likelihood.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return weight.detach(), bias.detach()

    def store(self, projection: LabelProjection, head: tuple[Tensor, Tensor]) -> None:
        """Writes the head into the projection, which takes features that are not centred."""
        weight, bias = head
        num_classes = self._logits.shape[1]
        projection.concept_basis.copy_(self._basis)
        projection.concept_weight[num_classes:] = weight
        projection.concept_bias[num_classes:] = bias - weight @ (self._basis @ self._mean)

    def logits_without(self, targets: Tensor, used: Tensor, part: Tensor, head: tuple[Tensor, Tensor]) -> Tensor:
        """Logits with which a projection that has `head` says of each drawing what heads without its part say.

        part: [B] numbers of parts, from 0. Returns [B, all classes].
        """
        extra = torch.empty(len(part), len(head[0]))
        for number in range(int(part.max()) + 1):
            inside = part == number
            weight, bias = self.fit(targets, used & ~inside)
            extra[inside] = F.linear(self._codes[inside], weight - head[0], bias - head[1])
        return torch.cat([self._logits, extra], dim=1)


def fit_fact(
    projection: LabelProjection, fact: int, tokens: list[int], features: VisualFeatures, shares: Tensor
) -> None:
    """Fits the linear head that answers fact number `fact` by one of `tokens`, and stores it in the projection.

    shares: [B, len(tokens)], how right each word is about each picture.
    """
    generator = torch.Generator().manual_seed(0)
    levels = features.levels
    mean, scale = levels.mean(0), levels.std(0) + 1e-3
    standard = (levels - mean) / scale
    weight = torch.zeros(len(tokens), levels.shape[1], requires_grad=True)
    bias = torch.zeros(len(tokens), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=3e-3, weight_decay=0.3)
    # Words that are seldom right come as often as others.
    balance = (shares / shares.sum(0).clamp(min=1)).sum(1)
    for _ in range(_FACT_STEPS):
        picked = torch.multinomial(balance, _FACT_BATCH, replacement=True, generator=generator)
        loss = F.cross_entropy(F.linear(standard[picked], weight, bias), shares[picked])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        folded = weight / scale
        projection.facts[fact, : len(tokens)] = torch.tensor(tokens)
        projection.fact_weight[fact, : len(tokens)] = folded
        projection.fact_bias[fact, : len(tokens)] = bias - folded @ mean


def open_gate_for(projection: LabelProjection, fact: int, word: int, other: int) -> None:
    """Makes the gate of the concepts say how much likelier `word` is than `other` as the answer to a fact."""
    projection.gate_weight.copy_(projection.fact_weight[fact, word] - projection.fact_weight[fact, other])
    projection.gate_bias.copy_(projection.fact_bias[fact, word] - projection.fact_bias[fact, other])
