"""The visual projection: image features -> vectors added to the adaption prompts (equations 9 and 10).

Knows features, the base's token embeddings and hidden_size; knows nothing of pictures, attention or files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter.errors import LoadError
from adapter.method.config import KIND_LENGTH, VisionConfig
from adapter.method.vision import VisualFeatures

CONCEPT_RANK = 96
_CONFIDENCES = 4


def build_projection(vision: VisionConfig, hidden_size: int, prompt_length: int) -> nn.Module:
    """The untrained projection of kind `vision.projection`.

    Its forward takes the features of B pictures and the base's token embeddings [vocab_size, hidden_size], and
    returns [B, prompt_length or 1, hidden_size].
    """
    if vision.projection == "label":
        return LabelProjection(vision, hidden_size, prompt_length)
    if vision.projection == "queries":
        return QueryProjection(vision, hidden_size, prompt_length)
    return GlobalProjection(vision, hidden_size)


def _zero_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """An MLP whose last layer is zero-initialised: an untrained projection adds nothing, as zero gates do."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), last)


class GlobalProjection(nn.Module):
    """Equation 9: multi-scale global features -> one vector, which is added to every prompt (equation 10)."""

    def __init__(self, vision: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision.feature_size)
        self.mlp = _zero_mlp(vision.feature_size, vision.hidden, hidden_size)

    def forward(self, features: VisualFeatures, token_embedding: Tensor) -> Tensor:
        """Returns [B, 1, hidden_size]; the token embeddings are not used."""
        return self.mlp(self.norm(features.levels)).unsqueeze(1)


class LabelProjection(nn.Module):
    """The names that the encoder's classifier gives the picture, as the base's own token embeddings.

    The K prompts are, in order: the likeliest name, then the next (`name_length` tokens each), the likeliest
    kind of thing (KIND_LENGTH tokens), and free ones. A kind's probability is the sum over its names, so that
    "dog" can be certain where the breed is not. A token's prompt is its frozen embedding at unit RMS plus a
    trained map of the token before it, which tells after which token it follows (the key of an induction head). An
    MLP of all features and of the encoder's confidences fills the free prompts with what names do not cover.

    The `num_classes` are those of the encoder's classifier and, after them, further concepts that a linear head
    on the features tells apart. Names, kinds and head are data, set before training and saved with the adapter:
    name_of: [num_classes] row of `names`, for classes may share one; names: [num_classes, name_length] and kinds:
    [num_kinds, KIND_LENGTH] token ids, -1 behind the end; kind_of: [num_classes] each name's kind or -1;
    concept_basis: [CONCEPT_RANK, feature_size] and concept_weight: [num_classes, CONCEPT_RANK], the head.
    """

    name_of: Tensor
    names: Tensor
    kind_of: Tensor
    kinds: Tensor
    concept_basis: Tensor
    concept_weight: Tensor
    concept_bias: Tensor

    def __init__(self, vision: VisionConfig, hidden_size: int, prompt_length: int) -> None:
        super().__init__()
        classes, length = vision.num_classes, vision.name_length
        self.free = prompt_length - 2 * length - KIND_LENGTH  # at least 1: AdapterConfig
        # Half-size types, which are saved as they are: a posterior needs no more than fp16.
        self.register_buffer("name_of", torch.arange(classes, dtype=torch.int32))
        self.register_buffer("names", torch.full((classes, length), -1, dtype=torch.int32))
        self.register_buffer("kind_of", torch.full((classes,), -1, dtype=torch.int32))
        self.register_buffer("kinds", torch.full((vision.num_kinds, KIND_LENGTH), -1, dtype=torch.int32))
        self.register_buffer("concept_basis", torch.zeros(CONCEPT_RANK, vision.feature_size, dtype=torch.float16))
        self.register_buffer("concept_weight", torch.zeros(classes, CONCEPT_RANK, dtype=torch.float16))
        self.register_buffer("concept_bias", torch.zeros(classes, dtype=torch.float16))
        self.norm = nn.LayerNorm(vision.feature_size)
        inputs = vision.feature_size + hidden_size + _CONFIDENCES
        self.mlp = _zero_mlp(inputs, vision.hidden, self.free * hidden_size)
        self.before = nn.Linear(hidden_size, hidden_size, bias=False)
        self.end = nn.Parameter(torch.zeros(hidden_size))
        nn.init.zeros_(self.before.weight)

    def wrong_table(self, vocab_size: int) -> str | None:
        """The name of a table that points outside of what it is about, or None.

        On CUDA such an index would end the process's use of the device, and with it everybody's answers.
        """
        bounds = {"name_of": (0, len(self.names)), "kind_of": (-1, len(self.kinds))}
        bounds |= dict.fromkeys(("names", "kinds"), (-1, vocab_size))
        for name, (low, end) in bounds.items():
            table = self.get_buffer(name)
            if int(table.min()) < low or int(table.max()) >= end:
                return name
        return None

    def posterior(self, features: VisualFeatures) -> Tensor:
        """Probability of each row of `names`, [B, num_classes].

        Raises LoadError if the features are not of the encoder that the adapter was made for.
        """
        logits, classes = features.logits, len(self.names)
        if logits is None or logits.shape[1] > classes:
            raise LoadError(
                f"This adapter needs the classifier of the encoder in its config.json, of at most {classes} "
                "classes. Use that encoder."
            )
        codes = F.linear(features.levels.float(), self.concept_basis.float())
        concepts = F.linear(codes, self.concept_weight.float(), self.concept_bias.float())
        # The classifier's own classes have no row in the head: is_token it only adds zero.
        joint = F.pad(logits.float(), (0, classes - logits.shape[1])) + concepts
        return joint.new_zeros(joint.shape).index_add(1, self.name_of, joint.softmax(1))

    def forward(self, features: VisualFeatures, token_embedding: Tensor) -> Tensor:
        """Returns [B, K, hidden_size]."""
        with torch.no_grad():
            posterior = self.posterior(features)
            top, chosen = posterior.topk(2, dim=1)
            # The last column sums the names without a kind; it is left out of the maximum.
            column = torch.where(self.kind_of < 0, len(self.kinds), self.kind_of)
            by_kind = posterior.new_zeros(len(posterior), len(self.kinds) + 1).index_add(1, column, posterior)
            mass, kind = by_kind[:, :-1].max(dim=1)
            ratio = top[:, 1] / top[:, 0]
            confidences = torch.stack([top[:, 0], top[:, 1], ratio, mass], dim=1)
            # The second token of each name, the first after the article; the only one where names have one.
            initials = _unit_rms(token_embedding[self.names[:, :2][:, -1].clamp(min=0)])
            mixture = posterior @ initials
        first = self._spell(self.names[chosen[:, 0]], token_embedding)
        second = self._spell(self.names[chosen[:, 1]], token_embedding) * ratio[:, None, None]
        kind_slots = self._spell(self.kinds[kind], token_embedding) * mass[:, None, None]
        free = self.mlp(torch.cat([self.norm(features.levels), mixture, confidences], dim=1))
        return torch.cat([first, second, kind_slots, free.unflatten(1, (self.free, -1))], dim=1)

    def _spell(self, tokens: Tensor, token_embedding: Tensor) -> Tensor:
        """The prompts of names: [B, J] token ids, padded with -1 -> [B, J, hidden_size]."""
        is_token = (tokens >= 0).unsqueeze(2)
        own = _unit_rms(token_embedding[tokens.clamp(min=0)]) * is_token
        previous = F.pad(own, (0, 0, 1, 0))[:, :-1]
        ends_here = ~is_token & F.pad(is_token, (0, 0, 1, 0))[:, :-1]
        return own + self.before(previous) + self.end * ends_here


class QueryProjection(nn.Module):
    """Learned visual queries that attend to all of the encoder's tokens (LLaMA-Adapter V2, arXiv 2304.15010).

    One query for each of the K prompts. Queries and tokens attend to each other in timm's blocks; what became of
    the queries is added to the prompts, as large as they are: the gates, zero at first, are the gentle start.
    Names and shapes are those of the V2 release.
    """

    def __init__(self, vision: VisionConfig, hidden_size: int, prompt_length: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        width = vision.width
        self.visual_query = nn.Embedding(prompt_length, width)
        self.clip_proj = nn.Linear(vision.token_size, width)
        self.clip_proj_norm = nn.LayerNorm(width)
        # timm's own default is an epsilon of 1e-6; the release was trained with torch's.
        self.visual_blocks = nn.ModuleList(
            Block(width, vision.heads, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(vision.blocks)
        )
        self.visual_proj = nn.Linear(width, hidden_size)
        self.visual_proj_norm = nn.LayerNorm(hidden_size)

    def forward(self, features: VisualFeatures, token_embedding: Tensor) -> Tensor:
        """Returns [B, K, hidden_size]; the token embeddings are not used.

        Raises LoadError if the features have no tokens, or those of another encoder.
        """
        tokens, size = features.tokens, self.clip_proj.in_features
        if tokens is None or tokens.shape[2] != size:
            raise LoadError(
                f"This adapter reads the encoder's tokens of {size} numbers each, and was given "
                f"{'none' if tokens is None else f'tokens of {tokens.shape[2]}'}. "
                "Encode the picture with tokens=True, by the encoder in its config.json."
            )
        queries = self.visual_query.weight.expand(len(tokens), -1, -1)
        seen = self.clip_proj_norm(self.clip_proj(tokens))
        sequence = torch.cat([queries, seen], dim=1)  # [B, K + N, width]
        for block in self.visual_blocks:
            sequence = block(sequence)
        return self.visual_proj_norm(self.visual_proj(sequence[:, : queries.shape[1]]))


def _unit_rms(vectors: Tensor) -> Tensor:
    """Vectors scaled to root mean square 1, in fp32."""
    return F.rms_norm(vectors.float(), vectors.shape[-1:])
