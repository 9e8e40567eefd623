"""PEFT's ADAPTION_PROMPT: adapter_config.json and adapter_model.safetensors (or .bin), one raw gate a layer.

`base_model.model.model.layers.{i}.self_attn.adaption_prompt` [1, K, hidden_size] and `.adaption_gate` [1]. The
equation is ours with act = identity and one gate for all heads. Needs no PEFT.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapter.errors import LoadError, first_line
from adapter.formats.tensors import MAX_NUMBERS, ForeignAdapter, broken, sanitize, stack_gates, to_float32

FORMAT, NAME = "peft", "PEFT ADAPTION_PROMPT"
CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PEFT_TYPE = "ADAPTION_PROMPT"
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?:model\.)?layers\.(\d{1,4})\.self_attn\.adaption_(prompt|gate)")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's adapter_config.json. Raises LoadError if it is broken or of another method."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(
            f"'{folder.name}': {CONFIG} is no PEFT configuration. Download it again.", first_line(error)
        ) from error
    if kind != _PEFT_TYPE:
        raise LoadError(
            f"'{folder.name}' is PEFT's {sanitize(kind)}. Of PEFT's adapters only {_PEFT_TYPE} can be converted."
        )
    return config


def read(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ForeignAdapter:
    """config: empty if there is only a file of tensors. Raises LoadError."""
    prompts: dict[int, Tensor] = {}
    gates: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise broken(path, f"{sanitize(name)} is no part of {_PEFT_TYPE} for a LLaMA")
        (prompts if match.group(2) == "prompt" else gates)[int(match.group(1))] = tensor
    for index, tensor in prompts.items():
        if tensor.ndim != 3 or tensor.shape[0] != 1 or not tensor.numel():
            raise broken(path, f"the adaption_prompt of layer {index} has shape {tuple(tensor.shape)}")
    if len({tensor.shape for tensor in prompts.values()}) > 1:
        raise broken(path, "its layers have prompts of different shapes")
    if sum(tensor.numel() for tensor in prompts.values()) > MAX_NUMBERS:
        raise broken(path, "its prompts have far more numbers than an adapter has")
    if odd := sorted(set(prompts) ^ set(gates)):
        raise broken(path, f"layer {odd[0]} has {'prompts' if odd[0] in prompts else 'a gate'} only")
    layers = sorted(prompts)
    if layers != list(range(layers[0], layers[0] + len(layers))):
        raise broken(path, f"its layers {', '.join(map(str, layers))} have gaps; an adapter has the topmost ones")
    stacked = torch.cat([to_float32(path, "an adaption_prompt", prompts[layer]) for layer in layers])
    for key, actual in (("adapter_layers", len(layers)), ("adapter_len", stacked.shape[1])):
        if config.get(key, actual) != actual:
            raise broken(path, f"{CONFIG} says {key} {sanitize(config[key])}, the weights have {actual}")
    stacked_gates = stack_gates(path, gates, "layers.{}.self_attn.adaption_gate")
    if stacked_gates.shape[1] != 1:
        raise broken(path, f"its layers have {stacked_gates.shape[1]} gates instead of one")
    base = sanitize(config.get("base_model_name_or_path") or "")
    return ForeignAdapter(stacked, stacked_gates, layers, base=base)
