"""A projection of this project's own, which is not the paper's: names of pictures in the base's hidden states."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from adapter.errors import LoadError
from adapter.method.config import KIND_LENGTH, VisionConfig
from adapter.method.projection import zero_mlp
from adapter.method.vision import VisualFeatures

CONCEPT_RANK = 96
LEAD_LENGTH = 4  # tokens before a name in the text that its hidden states are of


class LabelProjection(nn.Module):
    """The names that the encoder's classifier gives the picture, in the base's own terms. Not in the paper.

    The K prompts are, in order: the likeliest name, then the next (`name_length` tokens each), the likeliest
    kind of thing (KIND_LENGTH tokens), a word for each fact, one for how sure the names are, and free ones. A
    kind's probability is the sum over its names, so that "dog" can be certain where the breed is
    not. An MLP of the features, confidences and mean name fills the free prompts with what names do not cover.

    A token's prompt is, in each insertion layer, the hidden state that the frozen base has there when it reads
    `lead` and the name: the layers copy a name then as they copy words of a text. It has unit RMS; the second
    name is scaled by its probability over the first one's, the kind by its own.

    The `num_classes` are those of the encoder's classifier and, after them, further concepts that a linear head
    on the features tells apart. Names, kinds, facts and heads are data, set before training and saved with the
    adapter: name_of: [num_classes] row of `names`, for classes may share one; names: [num_classes, name_length]
    and kinds: [num_kinds, KIND_LENGTH] token ids, -1 after the end; kind_of: [num_classes] each name's kind or
    -1; concept_basis: [CONCEPT_RANK, feature_size] and concept_weight: [num_classes, CONCEPT_RANK], the head;
    gate_weight: [feature_size], which tells pictures that the head knows, drawings, from others;
    facts: [num_facts, fact_size] token ids of the words that fact_weight [num_facts, fact_size, feature_size]
    tells apart; lead: [LEAD_LENGTH] token ids, -1 after the end; certainty_words: [3] token ids, for a name at
    least as probable as the first of certainty_bounds [2], for a kind as probable as the second, and for neither.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """One of the buffers above."""

    def __init__(self, vision: VisionConfig, hidden_size: int, prompt_length: int) -> None:
        super().__init__()
        classes, length = vision.num_classes, vision.name_length
        self.free = prompt_length - vision.spelled_length  # at least 1: AdapterConfig
        facts, size = (vision.num_facts, vision.fact_size), vision.feature_size
        indices = {  # -1 for none
            "names": (classes, length), "kind_of": (classes,), "kinds": (vision.num_kinds, KIND_LENGTH),
            "facts": facts, "lead": (LEAD_LENGTH,), "certainty_words": (3,),
        }  # fmt: skip
        for name, shape in indices.items():
            self.register_buffer(name, torch.full(shape, -1, dtype=torch.int32))
        self.register_buffer("name_of", torch.arange(classes, dtype=torch.int32))
        heads = {  # in half the size: a posterior needs no more than fp16
            "concept_basis": (CONCEPT_RANK, size), "concept_weight": (classes, CONCEPT_RANK),
            "concept_bias": (classes,), "fact_weight": (*facts, size), "fact_bias": facts,
            "gate_weight": (size,), "gate_bias": (1,),
        }  # fmt: skip
        for name, shape in heads.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("certainty_bounds", torch.zeros(2))
        self.norm = nn.LayerNorm(vision.feature_size)
        inputs = vision.feature_size + hidden_size + 4  # confidences
        self.mlp = zero_mlp(inputs, vision.hidden, self.free * hidden_size)
        self.end = nn.Parameter(torch.zeros(hidden_size))

    def wrong_table(self, vocab_size: int) -> str | None:
        """The name of a buffer that holds an index out of range, or None.

        On CUDA such an index would end the process's use of the device, and with it everybody's answers.
        """
        bounds = {"name_of": (0, len(self.names)), "kind_of": (-1, len(self.kinds))}
        bounds |= dict.fromkeys(("names", "kinds", "facts", "lead", "certainty_words"), (-1, vocab_size))
        for name, (low, end) in bounds.items():
            table = self.get_buffer(name)
            if int(table.min()) < low or int(table.max()) >= end:
                return name
        return None

    def posterior(self, features: VisualFeatures) -> Tensor:
        """Probability of each row of `names`, [B, num_classes]. Raises LoadError for another encoder's."""
        logits, classes = features.logits, len(self.names)
        if logits is None or logits.shape[1] > classes:
            raise LoadError(
                f"This adapter needs the classifier of the encoder in its config.json, of at most {classes} "
                "classes. Use that encoder."
            )
        codes = F.linear(features.levels.float(), self.concept_basis.float())
        concepts = F.linear(codes, self.concept_weight.float(), self.concept_bias.float())
        is_concept = self.concept_bias != 0
        concepts = concepts + F.logsigmoid(self.gate(features.levels))[:, None] * is_concept
        # The head's rows for the classifier's own classes are zero, so that their logits stay as they are.
        joint = F.pad(logits.float(), (0, classes - logits.shape[1])) + concepts
        return joint.new_zeros(joint.shape).index_add(1, self.name_of, joint.softmax(1))

    def kind_masses(self, posterior: Tensor) -> Tensor:
        """Probability of each kind, [B, num_kinds], from `posterior`."""
        # The last column sums the names without a kind.
        column = torch.where(self.kind_of < 0, len(self.kinds), self.kind_of)
        return posterior.new_zeros(len(posterior), len(self.kinds) + 1).index_add(1, column, posterior)[:, :-1]

    def gate(self, levels: Tensor) -> Tensor:
        """How much a picture is of those that the concepts' head knows: log-odds, [B]."""
        return levels.float() @ self.gate_weight.float() + self.gate_bias.float()

    def fact_words(self, features: VisualFeatures) -> Tensor:
        """The likeliest word of each fact, its token id: [B, num_facts]."""
        scores = torch.einsum("bf,nsf->bns", features.levels.float(), self.fact_weight.float())
        scores = (scores + self.fact_bias.float()).masked_fill(self.facts < 0, -torch.inf)
        return self.facts.expand(len(scores), -1, -1).gather(2, scores.argmax(2, keepdim=True))[..., 0]

    def forward(self, features: VisualFeatures, model: LlamaForCausalLM, layers: Sequence[int]) -> Tensor:
        """Returns [B, L, K, hidden_size]."""
        with torch.no_grad():
            posterior = self.posterior(features)
            top, chosen = posterior.topk(2, dim=1)
            mass, kind = self.kind_masses(posterior).max(dim=1)
            ratio = top[:, 1] / top[:, 0]
            confidences = torch.stack([top[:, 0], top[:, 1], ratio, mass], dim=1)
            # The second token of each name, the first after the article; the only one where names have one.
            mixture = posterior @ _unit_rms(model.get_input_embeddings()(self.names[:, :2][:, -1].clamp(min=0)))
            ones = torch.ones_like(mass)
            words = [(self.names[chosen[:, 0]], ones), (self.names[chosen[:, 1]], ratio), (self.kinds[kind], mass)]
            words += [(word[:, None], ones) for word in self.fact_words(features).unbind(1)]
            is_name, is_kind = top[:, 0] >= self.certainty_bounds[0], mass >= self.certainty_bounds[1]
            level = torch.where(is_name, 0, torch.where(is_kind, 1, 2))
            words.append((self.certainty_words[level][:, None], ones))
        spelled = [
            prompts * weight[:, None, None, None]
            for prompts, (_, weight) in zip(self._spell([w for w, _ in words], model, layers), words, strict=True)
        ]
        free = self.mlp(torch.cat([self.norm(features.levels), mixture, confidences], dim=1))
        free = free.unflatten(1, (1, self.free, -1)).expand(-1, spelled[0].shape[1], -1, -1)
        return torch.cat([*spelled, free], dim=2)

    def _spell(self, words: list[Tensor], model: LlamaForCausalLM, layers: Sequence[int]) -> list[Tensor]:
        """The prompts of names, each [B, J] token ids, padded with -1: each -> [B, L, J, hidden_size]."""
        sizes = [tokens.shape[1] for tokens in words]
        tokens = torch.cat([F.pad(w, (0, max(sizes) - w.shape[1]), value=-1) for w in words])  # [W * B, J]
        tokens, which = tokens.unique(dim=0, return_inverse=True)
        is_token = (tokens >= 0).unsqueeze(2)
        ends_here = ~is_token & F.pad(is_token, (0, 0, 1, 0))[:, :-1]
        end = (self.end * ends_here).unsqueeze(1)
        with torch.no_grad():
            own = self._states(tokens, model, layers) * is_token.unsqueeze(1)
        parts = (own + end)[which].chunk(len(words))
        return [part[:, :, :size] for part, size in zip(parts, sizes, strict=True)]

    def _states(self, tokens: Tensor, model: LlamaForCausalLM, layers: Sequence[int]) -> Tensor:
        """What the frozen base's layers read at the tokens, after `lead`: [B, J] -> [B, L, J, hidden_size]."""
        lead = self.lead[self.lead >= 0]
        ids = torch.cat([lead.expand(len(tokens), -1), tokens], dim=1).clamp(min=0)
        hidden = model.get_input_embeddings()(ids)
        rotation = model.model.rotary_emb(hidden, torch.arange(ids.shape[1], device=ids.device)[None])
        inputs = []
        for layer in model.model.layers[: max(layers) + 1]:
            inputs.append(hidden[:, len(lead) :])
            # Causal: what stands after a name changes nothing.
            hidden = layer(hidden, position_embeddings=rotation)
        return _unit_rms(torch.stack([inputs[index] for index in layers], dim=1))


def _unit_rms(vectors: Tensor) -> Tensor:
    """Vectors scaled to root mean square 1, in fp32."""
    return F.rms_norm(vectors.float(), vectors.shape[-1:])
