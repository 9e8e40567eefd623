"""The adapter (sections 3.1, 3.2 of arXiv 2303.16199, equation 10 for images): all that a run trains."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from adapter.errors import BadInput, LoadError
from adapter.method.attention import LayerPrompts, PromptKV
from adapter.method.config import AdapterConfig
from adapter.method.deltas import Tuning
from adapter.method.label_projection import LabelProjection
from adapter.method.projection import GlobalProjection, QueryProjection
from adapter.method.vision import VisualFeatures


class Adapter(nn.Module):
    """The trainable part of zero-init attention for L insertion layers of H heads.

    prompts: P_l of section 3.1, [L, K, hidden_size]; gates: g_l of equation 7, [L, H], zero at first, so that a
    new adapter changes nothing. projection: of images, equation 9: from the features of B pictures, the frozen
    base and the indices of the L layers to [B, L or 1, K or 1, hidden_size]. tuning: V2's, see `method.deltas`.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        base = config.base
        self.prompts = nn.Parameter(torch.empty(config.insertion_layers, config.prompt_length, base.hidden_size))
        self.gates = nn.Parameter(torch.zeros(config.insertion_layers, base.num_attention_heads))
        self.projection: nn.Module | None = None
        if (vision := config.vision) is not None:
            if vision.projection == "label":
                self.projection = LabelProjection(vision, base.hidden_size, config.prompt_length)
            elif vision.projection == "queries":
                self.projection = QueryProjection(vision, base.hidden_size, config.prompt_length)
            else:
                self.projection = GlobalProjection(vision, base.hidden_size)
        self.tuning = None if config.tuning is None else Tuning(config.tuning, base)
        nn.init.normal_(self.prompts)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def activated_gates(self) -> Tensor:
        """act(g), [L, H]: the factor of the prompts' softmax in equation 7, at strength 1."""
        return self.gates.tanh() if self.config.gate_activation == "tanh" else self.gates

    def forward(self, model: LlamaForCausalLM, features: VisualFeatures | None = None) -> PromptKV:
        """Keys and values of the prompts: one entry, or one for each image in `features`.

        A visual adapter without an image uses its prompts alone. Raises BadInput if a text adapter gets an image,
        and LoadError if the tuning was made for MLPs of another size, which the fingerprint does not know.
        """
        tuning, size = self.config.tuning, model.config.intermediate_size
        if tuning is not None and tuning.intermediate_size != size:
            # A size of 1 would run, broadcast, until another adapter's deltas are stacked beside it.
            raise LoadError(
                f"This adapter was made for a base with intermediate_size {tuning.intermediate_size}, and this "
                f"one has {size}. Use it with {self.config.base.name}, or train it again."
            )
        prompts = self.prompts.unsqueeze(0)  # [1, L, K, hidden]
        if features is not None:
            if self.projection is None:
                raise BadInput("This adapter reads text only. Choose one that reads images.")
            vision, found = self.config.vision, features.levels.shape[1]
            if vision is not None and vision.projection != "queries" and found != vision.feature_size:
                raise LoadError(f"This adapter reads {vision.feature_size} features of a picture, not {found}.")
            visual = self.projection(features, model, self.config.layers)  # [U, L or 1, K or 1, hidden]
            prompts = prompts + visual  # equation 10
        kv = self._project(model, prompts)
        if self.tuning is None:
            return kv
        return replace(kv, deltas=self.tuning(model.dtype, kv.size))

    def _project(self, model: LlamaForCausalLM, prompts: Tensor) -> PromptKV:
        """Keys and values of prompts, [U, L, K, hidden_size], by the frozen k_proj and v_proj, without RoPE
        (equations 3 and 4). With prompt_norm each layer's input_layernorm gives them the scale of hidden states.
        """
        entries, _, length, _ = prompts.shape
        head_dim = model.config.head_dim
        gates, projected = self.activated_gates().to(model.dtype), {}
        for i, index in enumerate(self.config.layers):
            layer = model.model.layers[index]
            hidden = prompts[:, i].to(model.dtype)
            if self.config.prompt_norm:
                hidden = layer.input_layernorm(hidden)
            keys = layer.self_attn.k_proj(hidden).view(entries, length, -1, head_dim).transpose(1, 2)
            values = layer.self_attn.v_proj(hidden).view(entries, length, -1, head_dim).transpose(1, 2)
            projected[index] = (LayerPrompts(keys, values, gates[i].expand(entries, -1)),)
        return PromptKV(projected, entries)
