"""LitGPT's adapter v1: `lit_model.pth.adapter`, prompts and raw gates by layer.

`transformer.h.{i}.attn.adapter_wte.weight` [K, hidden_size] and `.gating_factor`, [1, 1, H, 1] today, [1, H, 1, 1]
or one number in earlier releases. The equation is ours with act = identity, in LitGPT 0.5.4 and before: measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from adapter.files import atomic_write
from adapter.formats.tensors import (
    ForeignAdapter,
    plain,
    same_layers,
    stacked_gates,
    stacked_prompts,
    wrong,
)
from adapter.method.adapter import Adapter

FORMAT = "litgpt"
WEIGHTS = "lit_model.pth.adapter"
_NAME = re.compile(r"transformer\.h\.(\d{1,4})\.attn\.(adapter_wte\.weight|gating_factor)")
# Since 0.5.5 its base keeps all queries, then all keys, then all values in one matrix, and its adapter still cuts
# what that makes of the prompts by groups of heads: keys and values come from rows that are not theirs.
_LATER = (
    "0.5.5 to 0.5.13 take the prompts' keys and values from other rows of the base, "
    "unless all heads share one key head"
)
# What a checkpoint of the whole model holds beside the adapter.
_BASE = re.compile(
    r"(lm_head|transformer\.wte|transformer\.ln_f)\.weight"
    r"|transformer\.h\.\d+\.(norm_[12]|attn\.(qkv|attn|proj)|mlp\.(fc_[12]|proj))\.weight"
)


def read(path: Path, tensors: Mapping[str, Tensor]) -> ForeignAdapter:
    """Raises LoadError for a broken file."""
    prompts: dict[int, Tensor] = {}
    gates: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if found := _NAME.fullmatch(name):
            (gates if found.group(2) == "gating_factor" else prompts)[int(found.group(1))] = tensor
        elif not _BASE.fullmatch(name):
            raise wrong(path, f"{plain(name)} is no part of LitGPT's adapter v1")
    if not prompts:
        raise wrong(path, "it has no adapter_wte by layer")
    layers = same_layers(path, prompts, gates)
    return ForeignAdapter(
        FORMAT,
        stacked_prompts(path, prompts, "transformer.h.{}.attn.adapter_wte.weight"),
        stacked_gates(path, gates, "transformer.h.{}.attn.gating_factor"),
        layers,
        gate_activation="identity",
        assumed={"source": f"LitGPT 0.5.4 or earlier trained it. {_LATER}: that function cannot be converted."},
    )


def why_not(adapter: Adapter) -> str:
    """What keeps `adapter` from this format, or nothing."""
    return ""


def write(adapter: Adapter, folder: Path) -> str:
    """Write the file into `folder`; returns what a reader has to know. The gates are raw. Exact."""
    tensors = {}
    for i, index in enumerate(adapter.config.layers):
        name = f"transformer.h.{index}.attn."
        tensors[f"{name}adapter_wte.weight"] = adapter.prompts.detach()[i].clone()
        tensors[f"{name}gating_factor"] = adapter.gates.detach()[i].reshape(1, 1, -1, 1).clone()
    with atomic_write(folder / WEIGHTS) as temporary:
        torch.save({"model": tensors}, temporary)
    sizes = (
        f"adapter_prompt_length: {adapter.config.prompt_length} and "
        f"adapter_start_layer: {adapter.config.layers.start}"
    )
    return f"LitGPT's model_config.yaml has to say {sizes}. For LitGPT 0.5.4 or earlier: {_LATER}."
