"""Which format a file or folder has, reading it, and writing our adapters in other programs' formats.

One module for each format; a conversion is exact or is refused with the reason. Never loads a base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from adapter.errors import LoadError
from adapter.formats import official_v1, official_v2, peft_adapter
from adapter.formats.official_v2 import OfficialV2
from adapter.formats.tensors import ForeignAdapter, read_tensors
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CONFIG, WEIGHTS

OURS = "llama-adapter"
WRITERS: Mapping[str, ModuleType] = {m.FORMAT: m for m in (peft_adapter, official_v1)}
FORMATS = (OURS, *WRITERS)
NAMES = {m.FORMAT: m.NAME for m in (*WRITERS.values(), official_v2)}  # for people
CONVERTIBLE = (
    "a folder of ours (config.json), a PEFT folder (adapter_config.json), "
    "or a file of an official V1 or V2 adapter"
)
_WEIGHT_FILES = ("*.pth", "*.pt", "*.bin", "*.safetensors", "*.adapter")
# Tensor names that only the V2 family has: biases, scales, LoRA, images.
_OFFICIAL_V2 = re.compile(
    r"(llama\.)?layers\.\d+\.(attention|feed_forward)\.(w\w+\.bias|lora_\w+(\.weight)?|new_gate)"
    r"|llama\..+|(visual_query|visual_blocks|visual_proj|visual_proj_norm|clip_proj|clip_proj_norm|clip)\..+"
)
_NORMS = re.compile(r"layers\.\d+\.(attention_norm|ffn_norm)\.weight|transformer\.h\.\d+\.norm_[12]\.weight")
_PROJECTIONS = re.compile(r"layers\.\d+\.attention\.wq\.weight|transformer\.h\.\d+\.attn\.(qkv|attn)\.weight")
_BASE_SUFFIXES = ("embed_tokens.weight", "tok_embeddings.weight", "transformer.wte.weight")
# Formats that `detect_format` recognises and that cannot be converted.
_NOT_CONVERTIBLE = {
    "litgpt": "is an adapter of LitGPT, which cannot be converted.",
    "ours": f"is the weights of one of our adapters. Give the folder that holds it and its {CONFIG}.",
    "base": "is a base or holds its weights, and no adapter. Give the file that the training of an adapter wrote.",
    "lora": "is a LoRA. Only adaption prompts can be converted.",
    "unknown": f"is no adapter that is known here. What can be converted: {CONVERTIBLE}.",
}


def is_ours(source: Path) -> bool:
    """Whether `source` is a folder that adapter.method.checkpoint reads."""
    return (source / CONFIG).is_file() and (source / WEIGHTS).is_file()


def read(source: Path, layers: int | None = None) -> ForeignAdapter | OfficialV2:
    """Read the adapter in a file or folder of another program. Raises LoadError that says what is wrong.

    layers: the number of insertion layers as stated by the user, for official V1 only.
    """
    config: dict[str, Any] = {}
    path = source
    if (source / peft_adapter.CONFIG).is_file():
        config = peft_adapter.read_config(source)
        files = [source / name for name in peft_adapter.WEIGHTS if (source / name).is_file()]
        if not files:
            raise LoadError(
                f"'{source.name}' has no {peft_adapter.WEIGHTS[0]}. Download it into the folder "
                "(from the Hub only safetensors are fetched; a .bin that you trust is read from a folder)."
            )
        path = files[0]
    elif source.is_dir():
        files = sorted({path for pattern in _WEIGHT_FILES for path in source.glob(pattern)})
        if len(files) != 1:
            what = f"{len(files)} files of weights; name one of them" if files else "no adapter"
            raise LoadError(f"'{source.name}' holds {what}. What can be converted: {CONVERTIBLE}.", str(source))
        path = files[0]
    tensors, extras = read_tensors(path)
    detected = detect_format(tensors, extras)
    if layers is not None and detected != official_v1.FORMAT:
        raise LoadError(f"'{path.name}' tells its insertion layers itself. Leave --layers out.")
    if detected == official_v1.FORMAT:
        return official_v1.read(path, tensors, extras, layers)
    if detected == official_v2.FORMAT:
        return official_v2.read(path, tensors)
    if detected == peft_adapter.FORMAT:
        return peft_adapter.read(path, tensors, config)
    raise LoadError(f"'{path.name}' {_NOT_CONVERTIBLE[detected]}")


def detect_format(tensors: Mapping[str, Tensor], extras: Mapping[str, Any]) -> str:
    """The format of named tensors: the FORMAT of a module here, or a key of _NOT_CONVERTIBLE.

    extras: what else the file holds, by name.
    """
    names = set(tensors)
    config = extras.get("config")
    # Norms without the projections beside them were trained, which only V2 does; a training checkpoint has both.
    trained_norms = any(map(_NORMS.fullmatch, names)) and not any(map(_PROJECTIONS.fullmatch, names))
    if any(map(_OFFICIAL_V2.fullmatch, names)) or (isinstance(config, Mapping) and "w_bias" in config):
        return official_v2.FORMAT
    if official_v1.PROMPTS in names:
        return official_v2.FORMAT if trained_norms else official_v1.FORMAT
    if any(name.endswith(".adapter_wte.weight") for name in names):
        return "litgpt"
    if any(name.endswith((".adaption_prompt", ".adaption_gate")) for name in names):
        return peft_adapter.FORMAT
    if {"prompts", "gates"} <= names:
        return "ours"
    if any("lora_" in name for name in names):
        return "lora"
    return "base" if any(name.endswith(_BASE_SUFFIXES) for name in names) else "unknown"


def incompatibility(adapter: Adapter, to_format: str) -> str:
    """Why `adapter` cannot be written exactly as `to_format`; empty if it can."""
    if adapter.config.is_visual:
        return "it reads pictures, and the format holds text adapters only"
    if adapter.config.tuning is not None:
        return "it changes norms or linear maps, and the format holds prompts only"
    if adapter.config.prompt_norm:
        return "its prompts pass through each layer's norm, which the format does not know"
    return WRITERS[to_format].incompatibility(adapter)


def write(adapter: Adapter, folder: Path, to_format: str) -> str:
    """Write `adapter` as `to_format` into an existing folder; returns a note for whoever loads it there."""
    return WRITERS[to_format].write(adapter, folder)
