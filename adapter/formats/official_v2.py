"""The published LLaMA-Adapter V2 and V2.1 multimodal: prompts, visual queries, norms, biases and LoRA.

`{model, config}`: `adapter_query.weight` [L*K, hidden_size]; for images `visual_query`, `clip_proj`,
`visual_blocks`, `visual_proj` and their norms; under `llama.` a tanh gate (times `new_gate` where there is LoRA),
the norms' new weights, biases and LoRA of the linear maps. Meta orders the rows of wq and wk by pairs, so what
is added to their outputs is permuted.
"""

import re
from collections.abc import Callable, Mapping
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
_HF_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_Found = dict[str, list[tuple[re.Match[str], Tensor]]]  # by kind


def read(
    path: Path,
    tensors: Mapping[str, Tensor],
    base: BaseFingerprint,
    intermediate_size: int,
    norm_of: Callable[[str], Tensor],
    heads: int = 16,  # of the visual blocks; their shapes do not tell it
) -> Adapter:
    """The same function as one of our adapters on `base`.

    intermediate_size: of the base's MLPs. norm_of: returns a norm's weight in the base by its name in Hugging
    Face's model; a trained norm is stored as its ratio to it. Raises LoadError.
    """
    named = {name.removeprefix("llama."): tensor for name, tensor in tensors.items()}
    if len(named) != len(tensors):
        raise broken(path, "it has tensors twice, with and without 'llama.' before their names")
    if PROMPTS not in named:
        raise LoadError(f"'{path.name}' lacks {PROMPTS}, as ImageBind-LLM's do: it cannot be converted.")
    found = _by_kind(path, named)
    visual = {match.string: tensor for match, tensor in found["visual"]}
    prompts, gates = _prompts(path, named, base, found)
    tuning = None
    ranks = {tensor.shape[0] for match, tensor in found["lora"] if match[4] == "1"}
    if found["norm"] or found["bias"] or ranks:
        norms, bias = bool(found["norm"]), bool(found["bias"])
        tuning = TuningConfig(intermediate_size, norms=norms, bias=bias, lora_rank=max(ranks, default=0))
    config = AdapterConfig(
        base=base,
        prompt_length=prompts.shape[1],
        insertion_layers=len(prompts),
        gate_activation="identity",  # tanh(gate) * new_gate, as it multiplies
        template="alpaca",
        description="Converted from official LLaMA-Adapter V2.",
        vision=_vision(visual, heads),
        tuning=tuning,
    )
    with torch.device("meta"):
        adapter = Adapter(config)
    expected = {name: tuple(t.shape) for name, t in adapter.state_dict().items()}
    state = {name: torch.zeros(shape) for name, shape in expected.items() if name.startswith("tuning.")}
    state |= {"prompts": prompts, "gates": gates}
    state |= {f"projection.{name}": tensor for name, tensor in visual.items()}
    _fill_tuning(path, state, found, base, norm_of)
    for name, tensor in state.items():
        if name not in expected or tuple(tensor.shape) != expected[name]:
            expectation = expected.get(name, "nothing of that name")
            raise broken(path, f"what becomes {name} has shape {tuple(tensor.shape)}, not {expectation}")
    if missing := sorted(set(expected) - set(state)):
        raise broken(path, f"it lacks what becomes {', '.join(missing[:5])}")
    adapter.load_state_dict(state, assign=True)
    return adapter.requires_grad_(False).eval()


def _by_kind(path: Path, tensors: Mapping[str, Tensor]) -> _Found:
    found: _Found = {kind: [] for kind in _KINDS}
    for name, tensor in tensors.items():
        matches = ((kind, pattern.fullmatch(name)) for kind, pattern in _KINDS.items())
        kind, match = next(((kind, match) for kind, match in matches if match), ("", None))
        if match is not None:
            found[kind].append((match, to_float32(path, name, tensor)))
        elif name != PROMPTS:
            raise LoadError(f"'{path.name}': {sanitize(name)} is no part of a V2 adapter. Give that alone.")
    return found


def _prompts(
    path: Path, tensors: Mapping[str, Tensor], base: BaseFingerprint, found: _Found
) -> tuple[Tensor, Tensor]:
    """[L, K, hidden_size] and [L, H]."""
    gates = {(match[2], int(match[1])): tensor for match, tensor in found["gate"]}
    layers = sorted(layer for kind, layer in gates if kind == "gate")
    if {layer for kind, layer in gates if kind == "new_gate"} not in (set(), set(layers)):
        raise broken(path, "some of its layers have a new_gate, and others none")
    total, rows = base.num_hidden_layers, tensors[PROMPTS]
    remedy = "Name the base that it was made for with --base."
    if not layers or layers != list(range(layers[0], total)):
        raise LoadError(
            f"'{path.name}' has gates in layers {layers[:3]} to {layers[-1:]}, and {base.name} has "
            f"{total} layers. {remedy}"
        )
    if rows.ndim != 2 or rows.shape[1] != base.hidden_size:
        raise LoadError(
            f"'{path.name}' does not fit {base.name}: its prompts are {tuple(rows.shape)}, hidden_size "
            f"is {base.hidden_size}. {remedy}"
        )
    # All layers may have a gate though only the topmost have prompts, as many as visual queries.
    queries = tensors.get("visual_query.weight")
    moved = len(layers) - (not gates["gate", layers[0]].any())  # a gate without prompts stays zero
    possible = [moved, len(layers), len(layers) - 1] if queries is None else [len(rows) // max(len(queries), 1)]
    count = next((n for n in possible if 0 < n <= len(layers) and len(rows) % n == 0), 0)
    if not count:
        of = "" if queries is None else f" by {len(queries)} visual queries"
        raise broken(path, f"its {len(rows)} prompts cannot be shared out among {len(layers)} layers{of}")
    active = []
    for layer in layers[len(layers) - count :]:
        gate = gates["gate", layer].flatten().tanh()
        if (new := gates.get(("new_gate", layer))) is not None:
            gate = gate * new.flatten()
        active.append(gate.expand(base.num_attention_heads))
    return to_float32(path, PROMPTS, rows).view(count, -1, base.hidden_size), torch.stack(active)


def _vision(visual: Mapping[str, Tensor], heads: int) -> VisionConfig | None:
    if not visual:
        return None
    width, token_size = visual["clip_proj.weight"].shape
    return VisionConfig(
        encoder=ENCODER,
        projection="queries",
        channels="BGR",  # as the release read its pictures
        projected=True,
        token_size=token_size,
        width=width,
        blocks=len({name.split(".")[1] for name in visual if name.startswith("visual_blocks.")}),
        heads=heads,
    )


def _fill_tuning(
    path: Path, state: dict[str, Tensor], found: _Found, base: BaseFingerprint, norm_of: Callable[[str], Tensor]
) -> None:
    """Write biases, LoRA and norms into `state`, which has zeros for what the file does not change."""
    heads = {"q": base.num_attention_heads, "k": base.num_key_value_heads}
    rotated = {f"tuning.{kind}.{name}": count for kind in ("bias", "up") for name, count in heads.items()}

    def put(name: str, layer: int, value: Tensor) -> None:
        if name not in state or layer >= len(state[name]) or state[name][layer].shape != value.shape:
            known = name in state and layer < len(state[name])
            wanted = tuple(state[name].shape[1:]) if known else "there at all"
            raise broken(path, f"layer {layer}: {name} has shape {tuple(value.shape)}, not {wanted}")
        state[name][layer] = meta_to_hf_rotary(value, rotated[name]) if name in rotated else value

    for match, value in found["bias"]:
        put(f"tuning.bias.{_LINEARS.get(match[2])}", int(match[1]), value)
    halves: dict[str, set[str]] = {"1": set(), "2": set()}
    for match, _ in found["lora"]:
        halves[match[4]].add(f"layer {match[1]}: {match[2]}.{match[3]}")
    if odd := sorted(halves["1"] ^ halves["2"]):
        raise broken(path, f"{odd[0]} has one half of its LoRA only")
    layers_of: dict[str, set[int]] = {}  # by the name without its layer
    for match, _ in (*found["bias"], *found["lora"], *found["norm"]):
        if match[1]:
            layers_of.setdefault(match.string.replace(match[1], "*", 1), set()).add(int(match[1]))
    for name, layers in layers_of.items():
        if lost := set(range(base.num_hidden_layers)) - layers:
            raise broken(path, f"layer {min(lost)} lacks {name}, which others have")
    for match, value in found["lora"]:
        side, linear = "down" if match[4] == "1" else "up", _LINEARS.get(f"{match[2]}.{match[3]}")
        put(f"tuning.{side}.{linear}", int(match[1]), value)
    for match, value in found["norm"]:
        row, theirs = 2 * base.num_hidden_layers, "model.norm.weight"
        if not match[3]:
            row = 2 * int(match[1]) + list(_HF_NORMS).index(match[2])
            theirs = f"model.layers.{int(match[1])}.{_HF_NORMS[match[2]]}.weight"
        own = norm_of(theirs).float()
        if value.shape != own.shape:
            raise broken(path, f"{match.string} has shape {tuple(value.shape)}, not {tuple(own.shape)}")
        if (own == 0).any():
            raise LoadError(f"The base's {theirs} has zeros, and a V2 norm is kept as its ratio to it.")
        put("tuning.norms", row, value / own - 1)
