"""What the `see` adapter can call a picture: names and kinds of things, sentences made of them, their tokens, and the
linear heads that tell concepts, colours, drawings and photographs apart.

`classes.tsv` has one line for each of ImageNet's 1,000 classes, in order: the name that people use, with its article,
and the kind of thing it is (from WordNet's hypernyms, corrected by hand; empty where no everyday word fits). The heads
are fitted once, before the adapter is trained, and stored with it.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.method.label_projection import CONCEPT_RANK, LEAD_LENGTH, LabelProjection
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.recipes.sealed_sets import read_table

FOLDER = Path(__file__).parent
NAME_LENGTH = 7
FOLDS = 4
_SURE, _SURE_OF_KIND = 0.4, 0.35  # least probabilities of a name and of a kind that is named
_LEAD, _NOT_SURE = "The picture shows", "I am not sure"
_CERTAINTY = ("clear", "probably", "unsure")  # of a name, of a kind, of neither
_STEPS, _BATCH, _NOISE = 300, 384, 0.3
_FACT_STEPS, _FACT_BATCH = 1000, 256
# "not a cat", up to the end of the clause; "not sure, perhaps a cat" is a guess.
DENIED = re.compile(
    r"(?:\b(?:not|no|never|cannot)|n['’]t)\b(?! sure\b| certain\b| only\b)[^,;.:!?]*?(?=[,;.:!?]|\bbut\b|$)", re.I
)
_FURTHER = re.compile(r"\b(?:a kind of|perhaps)\b.*", re.I)


class Name(NamedTuple):
    """What something is called: `text` with its article, and the kind of thing or ""."""

    text: str
    kind: str = ""


class Kind(NamedTuple):
    """text: how the kind is called, with its article. group: that it is of, with its article, such as "an animal"."""

    text: str
    group: str


@cache
def class_names() -> tuple[Name, ...]:
    """The encoder's 1,000 classes."""
    return tuple(Name(*row) for row in read_table(FOLDER / "classes.tsv"))


@cache
def kinds() -> dict[str, Kind]:
    """All kinds of things by name."""
    return {name: Kind(text, group) for name, text, group in read_table(FOLDER / "kinds.tsv")}


def is_named(words: Collection[str], text: str) -> bool:
    """Whether `text` makes one guess, and it holds one of the words, as a whole word or its regular plural.

    The guess is in the first sentence, before "a kind of" and "perhaps"; "A or B" are two; what is denied is none.
    """
    first = DENIED.sub("", re.split(r"(?<=[.!?])\s", text)[0])
    said = _FURTHER.sub("", first)
    return " or " not in first and any(re.search(rf"\b{re.escape(word)}(e?s)?\b", said, re.I) for word in words)


def drawing_sentence(name: str) -> str:
    """The answer about a drawing of that name."""
    return f"{_LEAD} {name}."


def posterior_sentence(first: Name, probability: float, second: Name, kind: str, mass: float, member: Name) -> str:
    """The answer that says no more than the encoder knows.

    first, second: the likeliest names. probability: of the first. kind: the likeliest kind; mass: the probability of
    all its names; member: the likeliest of them.
    """
    if probability >= _SURE:
        kind_is_clear = not first.kind or re.search(rf"\b{re.escape(first.kind)}\b", first.text)
        return f"{_LEAD} {first.text}{'' if kind_is_clear else f', a kind of {first.kind}'}."
    if mass >= _SURE_OF_KIND:
        return f"{_LEAD} {kinds()[kind].text}, perhaps {member.text}."
    return f"{_NOT_SURE}, perhaps {first.text} or {second.text}."


def hedged(answer: str) -> bool:
    """Whether an answer says that it is not sure, rather than name a thing."""
    return _NOT_SURE in answer


class Vocabulary(NamedTuple):
    """names: all distinct names. rows: [classes] index into `names`, the encoder's classes first. kinds: all kinds."""

    names: list[Name]
    rows: Tensor
    kinds: list[str]


def vocabulary(concepts: Iterable[Name], tokenizer: Any) -> Vocabulary:
    """The encoder's classes, and those of `concepts` of at most NAME_LENGTH tokens. Equal names become one."""
    short = [c for c in dict.fromkeys(concepts) if len(_tokens(tokenizer, c.text)) <= NAME_LENGTH]
    index: dict[str, Name] = {}
    for name in (*class_names(), *short):
        index.setdefault(name.text, name)
    row_of = {text: row for row, text in enumerate(index)}
    rows = torch.tensor([row_of[name.text] for name in (*class_names(), *short)])
    return Vocabulary([*index.values()], rows, sorted({name.kind for name in index.values() if name.kind}))


def store_names(projection: LabelProjection, vocabulary: Vocabulary, tokenizer: Any) -> None:
    """Stores the tokens of names and kinds, and of what stands before them, in the projection's buffers."""
    lead = tokenizer(_LEAD, add_special_tokens=False).input_ids[-LEAD_LENGTH:]
    projection.lead[: len(lead)] = torch.tensor(lead)
    projection.certainty_words.copy_(torch.tensor([_tokens(tokenizer, word)[0] for word in _CERTAINTY]))
    projection.certainty_bounds.copy_(torch.tensor([_SURE, _SURE_OF_KIND]))
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

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of random classes, half of which lie between the class and a near one: the classes, levels, logits."""
        classes = torch.randint(len(self._bias), (count,), generator=generator)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count, 1).uniform_(low, high, generator=generator)

        unit = F.normalize(self._weight, dim=1)
        direction = unit[classes]
        near = (direction @ unit.T).topk(6, dim=1).indices  # itself first
        other = near[torch.arange(count), torch.randint(1, 6, (count,), generator=generator)]
        blend = uniform(0.2, 0.5) * (torch.rand(count, 1, generator=generator) < 0.5)
        direction = F.normalize((1 - blend) * direction + blend * unit[other], dim=1)
        picked = torch.randint(len(self._deviations), (count,), generator=generator)
        pooled = self._mean + uniform(3, 8) * direction + uniform(0.4, 1.0) * self._deviations[picked]
        pooled = pooled.clamp(min=0)  # they come out of a rectifier
        levels = torch.cat([self._other_levels[picked], pooled], dim=1)
        return classes, levels, F.linear(pooled, self._weight, self._bias)


class ConceptHeads:
    """The linear head of the concepts, and heads that were fitted without some of the drawings.

    A head knows the drawings that it was fitted on better than any that a visitor will show. What it would have said
    of a training drawing, had it not known it, comes from a head that was fitted without its part.
    """

    def __init__(
        self, drawings: VisualFeatures, targets: Tensor, class_features: ClassFeatures, projection: LabelProjection
    ) -> None:
        """Fits the head and writes it into the projection, which has names and a gate already.

        targets: [B] rows of names, -1 for drawings not to learn from.
        """
        self._targets, self._class_features = targets, class_features
        self._rows = projection.name_of.long()
        assert drawings.logits is not None
        self._logits = drawings.logits
        levels, pooled = drawings.levels, class_features.pooled
        self._mean, scale = levels.mean(0), levels.std(0) + 1e-3
        standard = ((levels - self._mean) / scale)[:, -pooled:]
        torch.manual_seed(0)  # of the random projection that the decomposition begins with
        _, _, axes = torch.pca_lowrank(standard, q=CONCEPT_RANK, niter=3)
        self._basis = torch.zeros(CONCEPT_RANK, levels.shape[1])
        self._basis[:, -pooled:] = (axes / (standard @ axes).std(0)).T / scale[-pooled:]
        self._gate = F.logsigmoid(projection.gate(levels))
        self._codes = (levels - self._mean) @ self._basis.T
        self._weight, self._bias = self._fit(targets >= 0)
        num_classes = self._logits.shape[1]
        projection.concept_basis.copy_(self._basis)
        projection.concept_weight[num_classes:] = self._weight
        # The projection takes features that are not centred.
        projection.concept_bias[num_classes:] = self._bias - self._weight @ (self._basis @ self._mean)

    def _fit(self, used: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [concepts, CONCEPT_RANK] and bias of a head on the codes of the drawings.

        used: [B], which drawings to learn from. The head learns drawings against class features, jointly with the
        encoder's own logits, so that it stays silent on photographs.
        """
        generator = torch.Generator().manual_seed(0)
        chosen = used.nonzero()[:, 0]
        num_concepts = len(self._rows) - self._logits.shape[1]
        weight = torch.zeros(num_concepts, CONCEPT_RANK, requires_grad=True)
        bias = torch.full((num_concepts,), -2.0, requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=0.05, weight_decay=0.3)
        # Half-open for class features: the head itself learns to be silent on photographs, too.
        made_gate = torch.tensor(0.5).log().expand(_BATCH // 2)
        for _ in range(_STEPS):
            picked = chosen[torch.randint(len(chosen), (_BATCH,), generator=generator)]
            classes, levels, made_logits = self._class_features.draw(_BATCH // 2, generator)
            noise = _NOISE * torch.randn(_BATCH, CONCEPT_RANK, generator=generator)
            inputs = torch.cat([self._codes[picked] + noise, (levels - self._mean) @ self._basis.T])
            class_logits = torch.cat([self._logits[picked], made_logits])
            concepts = F.linear(inputs, weight, bias) + torch.cat([self._gate[picked], made_gate])[:, None]
            joint = torch.cat([class_logits, concepts], dim=1).log_softmax(1)
            wanted = torch.cat([self._targets[picked], self._rows[classes]])
            # A name's probability is the sum over the classes that share it.
            log_likelihood = torch.where(self._rows == wanted[:, None], joint, -torch.inf).logsumexp(1)
            (-log_likelihood.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return weight.detach(), bias.detach()

    def logits_without(self, part: Tensor) -> Tensor:
        """Logits that make the projection answer for each drawing as heads fitted without its part would.

        part: [B] numbers of parts, from 0. Returns [B, all classes].
        """
        extra = torch.empty(len(part), len(self._weight))
        for number in range(int(part.max()) + 1):
            inside = part == number
            weight, bias = self._fit((self._targets >= 0) & ~inside)
            extra[inside] = F.linear(self._codes[inside], weight - self._weight, bias - self._bias)
        return torch.cat([self._logits, extra], dim=1)


def fit_fact(
    projection: LabelProjection, fact: int, words: Sequence[str], tokenizer: Any, levels: Tensor, shares: Tensor
) -> None:
    """Fits the linear head that answers fact number `fact` by one of `words`, and stores it in the projection.

    levels: of B pictures. shares: [B, len(words)], how right each word is about each of them.
    """
    generator = torch.Generator().manual_seed(0)
    mean, scale = levels.mean(0), levels.std(0) + 1e-3
    standard = (levels - mean) / scale
    weight = torch.zeros(len(words), levels.shape[1], requires_grad=True)
    bias = torch.zeros(len(words), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=3e-3, weight_decay=0.3)
    # Words that are seldom right come as often as others.
    balance = (shares / shares.sum(0).clamp(min=1)).sum(1)
    for _ in range(_FACT_STEPS):
        picked = torch.multinomial(balance, _FACT_BATCH, replacement=True, generator=generator)
        F.cross_entropy(F.linear(standard[picked], weight, bias), shares[picked]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        folded = weight / scale
        projection.facts[fact, : len(words)] = torch.tensor([_tokens(tokenizer, word)[0] for word in words])
        projection.fact_weight[fact, : len(words)] = folded
        projection.fact_bias[fact, : len(words)] = bias - folded @ mean
