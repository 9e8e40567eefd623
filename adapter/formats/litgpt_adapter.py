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
from adapter.formats.tensors import ForeignAdapter, broken, insertion_layers, sanitize, stack_gates, stack_prompts
from adapter.method.adapter import Adapter

FORMAT, NAME = "litgpt", "LitGPT adapter v1"
WEIGHTS = "lit_model.pth.adapter"
_TENSOR = re.compile(r"transformer\.h\.(\d{1,4})\.attn\.(adapter_wte\.weight|gating_factor)")
# Since 0.5.5 its base stores all queries, then all keys, then all values in one matrix, but its adapter still
# splits the projected prompts by groups of heads: their keys and values come from the wrong rows.
_LATER = (
    "0.5.5 to 0.5.13 take the prompts' keys and values from other rows of the base, "
    "unless all heads share one key head"
)
# The rest of a checkpoint of the whole model.
_BASE = re.compile(
    r"(lm_head|transformer\.wte|transformer\.ln_f)\.weight"
    r"|transformer\.h\.\d+\.(norm_[12]|attn\.(qkv|attn|proj)|mlp\.(fc_[12]|proj))\.weight"
)


def read(path: Path, tensors: Mapping[str, Tensor]) -> ForeignAdapter:
    """Raises LoadError for a broken file."""
    prompts: dict[int, Tensor] = {}
    gates: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if match := _TENSOR.fullmatch(name):
            (gates if match.group(2) == "gating_factor" else prompts)[int(match.group(1))] = tensor
        elif not _BASE.fullmatch(name):
            raise broken(path, f"{sanitize(name)} is no part of LitGPT's adapter v1")
    if not prompts:
        raise broken(path, "it has no adapter_wte by layer")
    layers = insertion_layers(path, prompts, gates)
    return ForeignAdapter(
        FORMAT,
        stack_prompts(path, prompts, "transformer.h.{}.attn.adapter_wte.weight"),
        stack_gates(path, gates, "transformer.h.{}.attn.gating_factor"),
        layers,
        gate_activation="identity",
        assumed={"source": f"LitGPT 0.5.4 or earlier trained it. {_LATER}: that function cannot be converted."},
    )


def incompatibility(adapter: Adapter) -> str:
    """Why `adapter` cannot be written in this format; empty if it can."""
    return ""


def write(adapter: Adapter, folder: Path) -> str:
    """Write the file into `folder`; returns a note for its reader. The gates are raw. Exact."""
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
