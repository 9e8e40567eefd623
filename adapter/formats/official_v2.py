"""The published LLaMA-Adapter V2 and V2.1 multimodal: prompts, visual queries, norms, biases and LoRA.

`{model, config}`: `adapter_query.weight` [L*K, hidden_size]; for images `visual_query`, `clip_proj`,
`visual_blocks`, `visual_proj` and their norms; under `llama.` a tanh gate (times `new_gate` where there is LoRA),
the norms' new weights, biases and LoRA of the linear maps. Meta orders the rows of wq and wk by pairs, so what
is added to their outputs is permuted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapter.base.hf_folder import meta_to_hf_rotary
from adapter.errors import LoadError
from adapter.formats.tensors import broken, sanitize, to_float32
from adapter.method.adapter import Adapter
from adapter.method.config import AdapterConfig, BaseFingerprint, TuningConfig, VisionConfig

FORMAT, NAME = "official-v2", "official LLaMA-Adapter V2"
# CLIP ViT-L/14 as timm has it: the release used OpenAI's weights, whose activation is QuickGELU.
ENCODER = "vit_large_patch14_clip_quickgelu_224.openai"
PROMPTS = "adapter_query.weight"
_LINEARS = {
    "attention.wq": "q", "attention.wk": "k", "attention.wv": "v", "attention.wo": "o",
    "feed_forward.w1": "gate", "feed_forward.w2": "down", "feed_forward.w3": "up",
}  # fmt: skip
# What a file's tensors are, apart from the prompts.
_KINDS = {
    "gate": re.compile(r"layers\.(\d{1,4})\.attention\.(gate|new_gate)"),
    "lora": re.compile(r"layers\.(\d{1,4})\.(attention|feed_forward)\.lora_(w\w)_l([12])\.weight"),
    "bias": re.compile(r"layers\.(\d{1,4})\.(attention\.w\w|feed_forward\.w\d)\.bias"),
    "norm": re.compile(r"layers\.(\d{1,4})\.(attention_norm|ffn_norm)\.weight|(norm)\.weight"),
    "visual": re.compile(
        r"(visual_query|clip_proj|clip_proj_norm|visual_blocks\.\d+\.\S+|visual_proj|visual_proj_norm)\b.*"
    ),
}
_Found = dict[str, list[tuple[re.Match[str], Tensor]]]  # by kind
_VISUAL_HEADS = 16  # of the visual blocks; their shapes do not tell it
_HF_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


@dataclass(frozen=True)
class OfficialV2:
    """The tensors of a file by their own names without `llama.`."""

    path: Path
    tensors: Mapping[str, Tensor]

    def adapter(
        self,
        base: BaseFingerprint,
        intermediate_size: int,
        norm_of: Callable[[str], Tensor],
        heads: int = _VISUAL_HEADS,
    ) -> Adapter:
        """The same function as one of our adapters on `base`.

        norm_of: returns a norm's weight in the base by its name in Hugging Face's model; a trained norm is stored
        as its ratio to it. heads: of the visual blocks. Raises LoadError that says what does not fit.
        """
        found = self._by_kind()
        visual = {match.string: tensor for match, tensor in found["visual"]}
        prompts, gates = self._prompts(base, found)
        tuning = self._tuning_config(found, intermediate_size)
        config = AdapterConfig(
            base=base,
            prompt_length=prompts.shape[1],
            insertion_layers=len(prompts),
            gate_activation="identity",  # tanh(gate) * new_gate, as it multiplies
            template="alpaca",
            description="Converted from official LLaMA-Adapter V2.",
            vision=self._vision(visual, heads),
            tuning=tuning,
        )
        with torch.device("meta"):
            adapter = Adapter(config)
        expected = {name: tuple(t.shape) for name, t in adapter.state_dict().items()}
        state = {name: torch.zeros(shape) for name, shape in expected.items() if name.startswith("tuning.")}
        state |= {"prompts": prompts, "gates": gates}
        state |= {f"projection.{name}": tensor for name, tensor in visual.items()}
        self._fill_tuning(state, found, base, norm_of)
        for name, tensor in state.items():
            if name not in expected or tuple(tensor.shape) != expected[name]:
                expectation = expected.get(name, "nothing of that name")
                raise broken(self.path, f"what becomes {name} has shape {tuple(tensor.shape)}, not {expectation}")
        if missing := sorted(set(expected) - set(state)):
            raise broken(self.path, f"it lacks what becomes {', '.join(missing[:5])}")
        adapter.load_state_dict(state, assign=True)
        return adapter.requires_grad_(False).eval()

    def _by_kind(self) -> _Found:
        found: _Found = {kind: [] for kind in _KINDS}
        for name, tensor in self.tensors.items():
            matches = ((kind, pattern.fullmatch(name)) for kind, pattern in _KINDS.items())
            kind, match = next(((kind, match) for kind, match in matches if match), ("", None))
            if match is not None:
                found[kind].append((match, to_float32(self.path, name, tensor)))
            elif name != PROMPTS:
                raise broken(self.path, f"{sanitize(name)} is no part of a V2 adapter")
        return found

    def _prompts(self, base: BaseFingerprint, found: _Found) -> tuple[Tensor, Tensor]:
        """[L, K, hidden_size] and [L, H]."""
        gates = {(match[2], int(match[1])): tensor for match, tensor in found["gate"]}
        layers = sorted(layer for kind, layer in gates if kind == "gate")
        total, rows = base.num_hidden_layers, self.tensors[PROMPTS]
        if not layers or layers != list(range(layers[0], total)):
            raise LoadError(
                f"'{self.path.name}' has gates in layers {layers[:3]} to {layers[-1:]}, and {base.name} has "
                f"{total} layers. Name the base that it was made for with --base."
            )
        if rows.ndim != 2 or rows.shape[1] != base.hidden_size:
            raise LoadError(
                f"'{self.path.name}' does not fit {base.name}: its prompts are {tuple(rows.shape)}, hidden_size "
                f"is {base.hidden_size}. Name the base that it was made for with --base."
            )
        # All layers may have a gate though only the topmost have prompts, as many as visual queries.
        queries = self.tensors.get("visual_query.weight")
        possible = [len(layers), len(layers) - 1] if queries is None else [len(rows) // max(len(queries), 1)]
        count = next((n for n in possible if 0 < n <= len(layers) and len(rows) % n == 0), 0)
        if not count:
            of = "" if queries is None else f" by {len(queries)} visual queries"
            raise broken(self.path, f"its {len(rows)} prompts cannot be shared out among {len(layers)} layers{of}")
        active = []
        for layer in layers[len(layers) - count :]:
            gate = gates["gate", layer].flatten().tanh()
            if (new := gates.get(("new_gate", layer))) is not None:
                gate = gate * new.flatten()
            active.append(gate.expand(base.num_attention_heads))
        prompts = to_float32(self.path, PROMPTS, rows).view(count, -1, base.hidden_size)
        return prompts, torch.stack(active)

    def _vision(self, visual: Mapping[str, Tensor], heads: int) -> VisionConfig | None:
        if not visual:
            return None
        blocks = {int(name.split(".")[1]) for name in visual if name.startswith("visual_blocks.")}
        width, token_size = visual["clip_proj.weight"].shape
        return VisionConfig(
            encoder=ENCODER,
            projection="queries",
            channels="BGR",  # as the release read its pictures
            projected=True,
            token_size=token_size,
            width=width,
            blocks=len(blocks),
            heads=heads,
        )

    def _tuning_config(self, found: _Found, intermediate_size: int) -> TuningConfig | None:
        ranks = {tensor.shape[0] for match, tensor in found["lora"] if match[4] == "1"}
        if len(ranks) > 1:
            raise broken(self.path, f"it has LoRA of several ranks: {sorted(ranks)}")
        if not (found["norm"] or found["bias"] or ranks):
            return None
        norms, bias = bool(found["norm"]), bool(found["bias"])
        return TuningConfig(intermediate_size, norms=norms, bias=bias, lora_rank=max(ranks, default=0))

    def _fill_tuning(
        self, state: dict[str, Tensor], found: _Found, base: BaseFingerprint, norm_of: Callable[[str], Tensor]
    ) -> None:
        """Write biases, LoRA and norms into `state`, which has zeros for what the file does not change."""

        def put(name: str, layer: int, value: Tensor) -> None:
            if name not in state or layer >= len(state[name]) or state[name][layer].shape != value.shape:
                wanted = tuple(state[name].shape[1:]) if name in state else "none"
                raise broken(self.path, f"layer {layer}: {name} has shape {tuple(value.shape)}, not {wanted}")
            if name in ("tuning.bias.q", "tuning.up.q"):
                value = meta_to_hf_rotary(value, base.num_attention_heads)
            elif name in ("tuning.bias.k", "tuning.up.k"):
                value = meta_to_hf_rotary(value, base.num_key_value_heads)
            state[name][layer] = value

        for match, value in found["bias"]:
            put(f"tuning.bias.{_linear(self.path, match[2])}", int(match[1]), value)
        for match, value in found["lora"]:
            side = "down" if match[4] == "1" else "up"
            put(f"tuning.{side}.{_linear(self.path, f'{match[2]}.{match[3]}')}", int(match[1]), value)
        for match, value in found["norm"]:
            row, theirs = 2 * base.num_hidden_layers, "model.norm.weight"
            if not match[3]:
                row = 2 * int(match[1]) + list(_HF_NORMS).index(match[2])
                theirs = f"model.layers.{int(match[1])}.{_HF_NORMS[match[2]]}.weight"
            own = norm_of(theirs).float()
            if (own == 0).any():
                raise LoadError(f"The base's {theirs} has zeros, and a V2 norm is kept as its ratio to it.")
            put("tuning.norms", row, value / own - 1)


def _linear(path: Path, name: str) -> str:
    if name not in _LINEARS:
        raise broken(path, f"{sanitize(name)} is no linear map of a LLaMA layer")
    return _LINEARS[name]


def read(path: Path, tensors: Mapping[str, Tensor]) -> OfficialV2:
    """Raises LoadError if there are no prompts, or a tensor is of no known kind."""
    named = {name.removeprefix("llama."): tensor for name, tensor in tensors.items()}
    if PROMPTS not in named:
        raise broken(path, f"it lacks {PROMPTS}")
    return OfficialV2(path, named)
