"""The visual projection: image features -> vectors that are added to the adaption prompts (equations 9 and 10)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from adapter.errors import LoadError
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualFeatures


def zero_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
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
        self.mlp = zero_mlp(vision.feature_size, vision.hidden, hidden_size)

    def forward(self, features: VisualFeatures, model: LlamaForCausalLM, layers: Sequence[int]) -> Tensor:
        """Returns [B, 1, 1, hidden_size]; the base is not used."""
        return self.mlp(self.norm(features.levels))[:, None, None]


class QueryProjection(nn.Module):
    """Learned visual queries that attend to all of the encoder's tokens (LLaMA-Adapter V2, arXiv 2304.15010).

    One query for each of the K prompts. Queries and tokens attend to each other in timm's blocks; the resulting
    queries are added to the prompts unscaled. Training starts gently because the gates are zero at first.
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

    def forward(self, features: VisualFeatures, model: LlamaForCausalLM, layers: Sequence[int]) -> Tensor:
        """Returns [B, 1, K, hidden_size]; the base is not used. Raises LoadError for another encoder's tokens."""
        tokens, size = features.tokens, self.clip_proj.in_features
        if tokens is None or tokens.shape[2] != size:
            raise LoadError(
                f"This adapter reads the encoder's tokens of {size} numbers each, and was given "
                f"{'none' if tokens is None else f'tokens of {tokens.shape[2]}'}. "
                "Encode the picture with tokens=True, by the encoder in its config.json."
            )
        queries = self.visual_query.weight.expand(len(tokens), -1, -1)
        sequence = torch.cat([queries, self.clip_proj_norm(self.clip_proj(tokens))], dim=1)  # [B, K + N, width]
        for block in self.visual_blocks:
            sequence = block(sequence)
        return self.visual_proj_norm(self.visual_proj(sequence[:, : queries.shape[1]])).unsqueeze(1)
