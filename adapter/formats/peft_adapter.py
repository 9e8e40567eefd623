"""PEFT's ADAPTION_PROMPT: adapter_config.json and adapter_model.safetensors (or .bin), one raw gate a layer.

`base_model.model.model.layers.{i}.self_attn.adaption_prompt` [1, K, hidden_size] and `.adaption_gate` [1]. The
equation is ours with act = identity and one gate for all heads. Needs no PEFT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from adapter.errors import LoadError
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

FORMAT = "peft"
CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_KIND = "ADAPTION_PROMPT"
_PREFIX = "base_model.model.model."
_NAME = re.compile(r"(?:base_model\.model\.)?(?:model\.)?layers\.(\d{1,4})\.self_attn\.adaption_(prompt|gate)")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's adapter_config.json. Raises LoadError if it is broken or of another method."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"'{folder.name}': {CONFIG} is no PEFT configuration ({error}). Download it again."
        ) from error
    if kind != _KIND:
        raise LoadError(
            f"'{folder.name}' is PEFT's {plain(kind)}. Of PEFT's adapters only {_KIND} can be converted."
        )
    return config


def read(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ForeignAdapter:
    """config: empty if there is only the file of tensors. Raises LoadError."""
    prompts: dict[int, Tensor] = {}
    gates: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise wrong(path, f"{plain(name)} is no part of {_KIND} for a LLaMA")
        (prompts if found.group(2) == "prompt" else gates)[int(found.group(1))] = tensor
    for index, tensor in prompts.items():
        if tensor.ndim != 3 or tensor.shape[0] != 1:
            raise wrong(path, f"the adaption_prompt of layer {index} has shape {tuple(tensor.shape)}")
        prompts[index] = tensor[0]
    layers = same_layers(path, prompts, gates)
    stacked = stacked_prompts(path, prompts, "layers.{}.self_attn.adaption_prompt")
    for key, found_there in (("adapter_layers", len(layers)), ("adapter_len", stacked.shape[1])):
        if config.get(key, found_there) != found_there:
            raise wrong(path, f"{CONFIG} says {key} {plain(config[key])}, the weights have {found_there}")
    every = stacked_gates(path, gates, "layers.{}.self_attn.adaption_gate")
    if every.shape[1] != 1:
        raise wrong(path, f"its layers have {every.shape[1]} gates instead of one")
    base = plain(config.get("base_model_name_or_path") or "")
    return ForeignAdapter(FORMAT, stacked, every, layers, gate_activation="identity", base=base)


def why_not(adapter: Adapter) -> str:
    """What keeps `adapter` from this format, or nothing."""
    base = adapter.config.base
    if base.num_attention_heads * base.head_dim != base.hidden_size:
        return "PEFT reads the number of key heads off sizes that its base does not have"
    uneven = (adapter.gates != adapter.gates[:, :1]).any(dim=1)
    if uneven.any():
        layer = adapter.config.layers[int(uneven.nonzero()[0])]
        return f"PEFT has one gate a layer, and in layer {layer} the heads' gates differ"
    return ""


def write(adapter: Adapter, folder: Path) -> str:
    """Write both files into `folder`; returns what a reader has to know. The gates are raw. Exact."""
    tensors = {}
    for i, index in enumerate(adapter.config.layers):
        name = f"{_PREFIX}layers.{index}.self_attn."
        tensors[f"{name}adaption_prompt"] = adapter.prompts.detach()[i : i + 1].clone()
        tensors[f"{name}adaption_gate"] = adapter.gates.detach()[i, :1].clone()
    config = {
        "adapter_layers": adapter.config.insertion_layers,
        "adapter_len": adapter.config.prompt_length,
        "base_model_name_or_path": adapter.config.base.name,
        "inference_mode": True,
        "peft_type": _KIND,
        "target_modules": "self_attn",
        "task_type": "CAUSAL_LM",
    }
    with atomic_write(folder / WEIGHTS[0]) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return "Load it with `peft.PeftModel.from_pretrained(base, FOLDER)`."
