"""Other programs' adapters: which format a file or folder has, reading it, and writing ours as theirs.

One module a format; each is exact or says why not. Knows files and tensors; knows nothing of loaded bases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from adapter.errors import LoadError
from adapter.formats import litgpt_adapter as litgpt
from adapter.formats import official_v1, official_v2
from adapter.formats import peft_adapter as peft
from adapter.formats.official_v2 import OfficialV2
from adapter.formats.tensors import ForeignAdapter, read_tensors
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CONFIG, WEIGHTS

OURS = "llama-adapter"
WRITERS: Mapping[str, ModuleType] = {module.FORMAT: module for module in (peft, official_v1, litgpt)}
FORMATS = (OURS, *WRITERS)
KNOWN = (
    "a folder of ours (config.json), a PEFT folder (adapter_config.json), "
    "or a file of an official V1 or V2 or a LitGPT v1 adapter"
)
_FILES = ("*.pth", "*.pt", "*.bin", "*.safetensors", "*.adapter")
# Names that only the V2 families have: biases, scales, LoRA, pictures.
_OFFICIAL_V2 = re.compile(
    r"(llama\.)?layers\.\d+\.(attention|feed_forward)\.(w\w+\.bias|lora_\w+(\.weight)?|new_gate)"
    r"|llama\..+|(visual_query|visual_blocks|visual_proj|visual_proj_norm|clip_proj|clip_proj_norm|clip)\..+"
)
_NORMS = re.compile(r"layers\.\d+\.(attention_norm|ffn_norm)\.weight|transformer\.h\.\d+\.norm_[12]\.weight")
_PRODUCTS = re.compile(r"layers\.\d+\.attention\.wq\.weight|transformer\.h\.\d+\.attn\.(qkv|attn)\.weight")


def is_ours(source: Path) -> bool:
    """Whether `source` is a folder that `adapter.method.checkpoint` reads."""
    return (source / CONFIG).is_file() and (source / WEIGHTS).is_file()


def read(source: Path, layers: int | None = None) -> ForeignAdapter | OfficialV2:
    """The adapter in a file or folder of another program. Raises LoadError that says what is wrong.

    layers: the number of insertion layers, where the user states it (official V1 only).
    """
    config: dict[str, Any] = {}
    path = source
    if (source / peft.CONFIG).is_file():
        config = peft.read_config(source)
        found = [source / name for name in peft.WEIGHTS if (source / name).is_file()]
        if not found:
            raise LoadError(
                f"'{source.name}' has no {peft.WEIGHTS[0]}. Download it into the folder "
                "(from the Hub only safetensors are fetched; a .bin that you trust is read from a folder)."
            )
        path = found[0]
    elif source.is_dir():
        found = sorted({path for pattern in _FILES for path in source.glob(pattern)})
        if len(found) != 1:
            what = f"{len(found)} files of weights; name one of them" if found else "no adapter"
            raise LoadError(f"'{source}' holds {what}. What can be converted: {KNOWN}.")
        path = found[0]
    tensors, beside = read_tensors(path)
    kind = sniff(tensors, beside)
    if layers is not None and kind != official_v1.FORMAT:
        raise LoadError(f"'{path.name}' tells its insertion layers itself. Leave --layers out.")
    if kind == official_v1.FORMAT:
        return official_v1.read(path, tensors, beside, layers)
    if kind == official_v2.FORMAT:
        return official_v2.read(path, tensors)
    if kind == litgpt.FORMAT:
        return litgpt.read(path, tensors)
    if kind == peft.FORMAT:
        return peft.read(path, tensors, config)
    raise LoadError(f"'{path.name}' {_REFUSED[kind]}")


# What is recognised and not read, by what `sniff` calls it.
_REFUSED = {
    "litgpt-v2": "is LitGPT's adapter v2 (norms, biases and scales). Only its adapter v1 can be converted so far.",
    "ours": f"is the weights of one of our adapters. Give the folder that holds it and its {CONFIG}.",
    "base": "is a base or holds its weights, and no adapter. Give the file that the training of an adapter wrote.",
    "lora": "is a LoRA. Only adaption prompts can be converted.",
    "unknown": f"is no adapter that is known here. What can be converted: {KNOWN}.",
}


def sniff(tensors: Mapping[str, Tensor], beside: Mapping[str, Any]) -> str:
    """The format of named tensors: a key of WRITERS, or one of those that are only recognised."""
    names = set(tensors)
    config = beside.get("config")
    # Norms without the products beside them were trained, which only V2 does; a training checkpoint has both.
    trained_norms = any(map(_NORMS.fullmatch, names)) and not any(map(_PRODUCTS.fullmatch, names))
    if any(map(_OFFICIAL_V2.fullmatch, names)) or (isinstance(config, Mapping) and "w_bias" in config):
        return official_v2.FORMAT
    if official_v1.PROMPTS in names:
        return official_v2.FORMAT if trained_norms else official_v1.FORMAT
    if any(name.endswith((".adapter_bias", ".adapter_scale")) for name in names):
        return "litgpt-v2"
    if any(name.endswith(".adapter_wte.weight") for name in names):
        return "litgpt-v2" if trained_norms else litgpt.FORMAT
    if any(name.endswith((".adaption_prompt", ".adaption_gate")) for name in names):
        return peft.FORMAT
    if {"prompts", "gates"} <= names:
        return "ours"
    if any("lora_" in name for name in names):
        return "lora"
    if any(
        name.endswith(("embed_tokens.weight", "tok_embeddings.weight", "transformer.wte.weight")) for name in names
    ):
        return "base"
    return "unknown"


def why_not(adapter: Adapter, to_format: str) -> str:
    """What keeps `adapter` from being written exactly as `to_format`, or nothing."""
    if adapter.config.is_visual:
        return "it reads pictures, and the format holds text adapters only"
    if adapter.config.tuning is not None:
        return "it changes norms or linear maps, and the format holds prompts only"
    if adapter.config.prompt_norm:
        return "its prompts pass through each layer's norm, which the format does not know"
    return WRITERS[to_format].why_not(adapter)


def write(adapter: Adapter, folder: Path, to_format: str) -> str:
    """Write `adapter` as `to_format` into an existing `folder`; returns what a reader has to know."""
    return WRITERS[to_format].write(adapter, folder)
