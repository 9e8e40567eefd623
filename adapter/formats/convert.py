"""Conversion of adapters: other programs' into ours, and ours into official V1's, each with a model card.

One module for each format. A conversion is exact or refused; what the source leaves open is assumed, with a note.
No base is loaded, and a folder is written whole or not at all.
"""

import dataclasses
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from adapter.base.embedded import BASE
from adapter.base.llama import base_config, base_fingerprint, base_weight
from adapter.errors import LoadError
from adapter.files import atomic_write
from adapter.formats import hub, official_v1, official_v2, peft_adapter
from adapter.formats.tensors import broken, read_tensors, sanitize
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, save_adapter
from adapter.method.config import AdapterConfig, GateActivation, Template, base_label

OURS = "llama-adapter"
FORMATS = (OURS, official_v1.FORMAT)  # that are written
NAMES = {m.FORMAT: m.NAME for m in (peft_adapter, official_v1, official_v2)}  # for people
CONVERTIBLE = (
    "a folder of ours (config.json), a PEFT folder (adapter_config.json), "
    "or a file of an official V1 or V2 adapter"
)
_WEIGHT_FILES = ("*.pth", "*.pt", "*.bin", "*.safetensors", "*.adapter")
# Tensor names that only the V2 family has: biases, LoRA, images.
_OFFICIAL_V2 = re.compile(
    r"(llama\.)?layers\.\d+\.(attention|feed_forward)\.(w\w+\.bias|lora_\w+(\.weight)?|new_gate)"
    r"|llama\..+|(visual_query|visual_blocks|visual_proj|visual_proj_norm|clip_proj|clip_proj_norm|clip)\..+"
)
_NORMS = re.compile(r"layers\.\d+\.(attention_norm|ffn_norm)\.weight")
_PROJECTIONS = re.compile(r"layers\.\d+\.attention\.wq\.weight")
_ASSUMED_OF_V2 = {
    "encoder": "the file does not name it; the release used OpenAI's CLIP ViT-L/14.",
    "channel order": "the file does not tell it; the release was trained on BGR pictures.",
    "pictures": "to a question without one the release adds a grey picture's vectors, which is not done here.",
}


@dataclass(frozen=True)
class Options:
    """What the user states about a conversion; None is not stated."""

    base: str | None = None
    to_format: str = OURS
    gate_activation: GateActivation | None = None  # of the source
    template: Template | None = None
    layers: int | None = None  # insertion layers, for official V1 only


@dataclass(frozen=True)
class Source:
    """An adapter read from any format, with what its model card states."""

    adapter: Adapter
    name: str  # file or folder, or repository@commit
    format: str
    assumed: Mapping[str, str] = field(default_factory=dict)  # row of the model card -> why it is assumed
    licence: dict[str, str] = field(default_factory=dict)


def open_source(source: str, options: Options = Options()) -> Source:
    """The adapter in a file or folder, or in `user/repo[@revision]` on the Hub. Raises LoadError."""
    path = Path(source)
    if path.exists():
        return _open_path(path, Path(os.path.abspath(source)).name, options)
    repository = None if path.suffix in (*hub.PICKLES, ".safetensors") else hub.parse(source)
    if repository is None:
        raise LoadError(f"There is no '{path.name}'. What can be converted: {CONVERTIBLE}; or user/repo.", source)
    path, commit = hub.fetch(*repository)
    name = f"{repository[0]}@{commit}"
    try:
        return _open_path(path, name, options)
    except LoadError as error:
        raise LoadError(f"{name}: {error}", error.detail) from error  # the folder's own name is only the commit


def _open_path(path: Path, name: str, options: Options) -> Source:
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        adapter, format, assumed = _load_ours(path, name, options), "this project's", dict[str, str]()
    else:
        adapter, format, assumed = _load_foreign(path, name, options)
    if options.template is not None:
        adapter.config = dataclasses.replace(adapter.config, template=options.template)
    return Source(adapter, name, format, assumed, _read_licence(path))


def _load_ours(path: Path, name: str, options: Options) -> Adapter:
    adapter = load_adapter(path, None if options.base is None else base_fingerprint(options.base))
    for flag, stated, stored in (
        ("--gate-activation", options.gate_activation, adapter.config.gate_activation),
        ("--layers", options.layers, adapter.config.insertion_layers),
    ):
        if stated not in (None, stored):
            raise LoadError(f"'{name}' is one of our adapters and says {stored}. Leave {flag} out.")
    return adapter


def _load_foreign(path: Path, name: str, options: Options) -> tuple[Adapter, str, dict[str, str]]:
    """The adapter in another program's file or folder, its format for people, and what is assumed about it."""
    config = peft_adapter.read_config(path) if (path / peft_adapter.CONFIG).is_file() else {}
    file = _weight_file(path, peft_adapter.WEIGHTS if config else _WEIGHT_FILES)
    tensors, extras = read_tensors(file)
    detected, why_not = detect_format(tensors, extras)
    if why_not:
        raise LoadError(f"'{file.name}' {why_not}")
    if options.layers is not None and detected != official_v1.FORMAT:
        raise LoadError(f"'{file.name}' tells its insertion layers itself. Leave --layers out.")
    by_definition: dict[str, GateActivation] = {official_v2.FORMAT: "tanh", peft_adapter.FORMAT: "identity"}
    known = by_definition.get(detected)
    if known is not None and options.gate_activation not in (None, known):
        raise LoadError(
            f"The gates of {NAMES[detected]} are {known} by its definition. Leave --gate-activation out."
        )
    named = options.base or BASE
    base = base_fingerprint(named)
    if detected == official_v2.FORMAT:
        size = base_config(named).intermediate_size
        try:
            adapter = official_v2.read(file, tensors, base, size, lambda norm: base_weight(named, norm))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise broken(file, "its tensors do not fit together") from error
        return adapter, NAMES[detected], _ASSUMED_OF_V2 if adapter.config.is_visual else {}
    if detected == official_v1.FORMAT:
        foreign = official_v1.read(file, tensors, extras, options.layers)
    else:
        foreign = peft_adapter.read(file, tensors, config)
    hidden, heads, layers = foreign.prompts.shape[2], foreign.gates.shape[1], foreign.layers
    problems = []
    if hidden != base.hidden_size:
        problems.append(f"hidden_size {hidden} instead of {base.hidden_size}")
    if heads not in (1, base.num_attention_heads):
        problems.append(f"{heads} gates a layer instead of one for each of {base.num_attention_heads} heads")
    words = tensors.get("tok_embeddings.weight")  # a training checkpoint holds its base
    if words is not None and len(words) != base.vocab_size:
        problems.append(f"a vocabulary of {len(words)} instead of {base.vocab_size}")
    if layers[-1] != base.num_hidden_layers - 1:
        problems.append(f"layers {layers[0]} to {layers[-1]} instead of the topmost of {base.num_hidden_layers}")
    if problems:
        suggestion = f"It names {foreign.base}" if foreign.base else "For example huggyllama/llama-7b"
        default = "" if options.base else " (the default)"
        raise LoadError(
            f"'{name}' does not fit {base.name}{default}: {'; '.join(problems)}. "
            f"Name the base that it was made for with --base. {suggestion}."
        )
    assumed = dict(foreign.assumed)
    if foreign.base and base_label(foreign.base) != base.name:
        assumed["base"] = f"the source names {foreign.base}, of the same shape."
    if known is None and options.gate_activation is None:
        assumed["gate activation"] = (
            "the format's training code has tanh, its inference code the raw gate, and the file does not tell. "
            "`convert --gate-activation` states it."
        )
    if options.template is None:
        assumed["template"] = "the format does not tell one. `convert --template` states it."
    adapter_config = AdapterConfig(
        base=base,
        prompt_length=foreign.prompts.shape[1],
        insertion_layers=len(foreign.layers),
        gate_activation=known or options.gate_activation or "tanh",
        template=foreign.template or "raw",
        description=f"Converted from {NAMES[detected]}.",
    )
    gates = foreign.gates.expand(-1, base.num_attention_heads).contiguous()
    with torch.device("meta"):
        adapter = Adapter(adapter_config)
    adapter.load_state_dict({"prompts": foreign.prompts, "gates": gates}, assign=True)
    return adapter.requires_grad_(False).eval(), NAMES[detected], assumed


def _weight_file(path: Path, patterns: tuple[str, ...]) -> Path:
    """The file of weights at a path: the file itself, or the only one in the folder."""
    if not path.is_dir():
        return path
    files = sorted({file for pattern in patterns for file in path.glob(pattern)})
    if len(files) == 1 or (files and patterns == peft_adapter.WEIGHTS):
        return files[-1]
    what = f"{len(files)} files of weights; name one of them" if files else "no adapter"
    raise LoadError(
        f"'{path.name}' holds {what}. What can be converted: {CONVERTIBLE}. "
        "(From the Hub only safetensors are fetched; a .bin that you trust is read from a folder.)",
        str(path),
    )


def detect_format(tensors: Mapping[str, Tensor], extras: Mapping[str, Any]) -> tuple[str, str]:
    """(The FORMAT of a module here, ""), or ("", why there is none). extras: what else the file holds."""
    names, config = set(tensors), extras.get("config")
    # Norms without the projections beside them were trained, which only V2 does; a training checkpoint has both.
    trained_norms = any(map(_NORMS.fullmatch, names)) and not any(map(_PROJECTIONS.fullmatch, names))
    if any(map(_OFFICIAL_V2.fullmatch, names)) or (isinstance(config, Mapping) and "w_bias" in config):
        return official_v2.FORMAT, ""
    if official_v1.PROMPTS in names:
        return (official_v2 if trained_norms else official_v1).FORMAT, ""
    if any(name.endswith((".adaption_prompt", ".adaption_gate")) for name in names):
        return peft_adapter.FORMAT, ""
    if {"prompts", "gates"} <= names:
        return "", f"is the weights of one of our adapters. Give the folder that holds it and its {CONFIG}."
    if any("lora_" in name for name in names):
        return "", "is a LoRA. Only adaption prompts can be converted."
    if any(name.endswith(("embed_tokens.weight", "tok_embeddings.weight")) for name in names):
        return "", "is a base or holds its weights. Give the file that the training of an adapter wrote."
    return "", f"is no adapter that is known here. What can be converted: {CONVERTIBLE}."


def _read_licence(path: Path) -> dict[str, str]:
    """What the front matter of a folder's README says of the licence, if there is any. A file has no README."""
    try:
        head = re.match(r"---\n(.*?\n)---\n", (path / CARD).read_text(encoding="utf-8")[:10_000], re.DOTALL)
        said: Any = yaml.safe_load(head.group(1)) if head else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    keys = ("license", "license_name", "license_link") if isinstance(said, dict) else ()
    return {key: said[key] for key in keys if isinstance(said.get(key), str)}


def convert(source: str, to: Path, options: Options = Options()) -> tuple[Adapter, list[str]]:
    """Convert `source` into the new folder `to`; returns the adapter and notes for the user. Raises LoadError."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise LoadError(
            f"'{to.name}' exists already and is not overwritten. Name a new folder with --to.", str(to)
        )
    opened = open_source(source, options)
    adapter, to_format = opened.adapter, options.to_format
    if to_format != OURS and (reason := _incompatibility(adapter)):
        raise LoadError(f"'{opened.name}' cannot be written as {to_format} exactly: {reason}.")
    notes = [f"{row} (assumed): {why}" for row, why in opened.assumed.items()]
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=to.parent) as scratch:
            folder = Path(scratch) / to.name
            folder.mkdir()
            if to_format == OURS:
                save_adapter(adapter, folder, model_card(to.name, adapter, opened))
            else:
                notes.append(official_v1.write(adapter, folder))
                with atomic_write(folder / CARD) as readme:
                    card = model_card(to.name, adapter, opened, to_format, notes[-1])
                    readme.write_text(card, encoding="utf-8")
            os.rename(folder, to)  # fails if somebody has filled `to` meanwhile
    except OSError as error:
        raise LoadError(
            f"'{to.name}' cannot be written. Choose another --to.", f"{to}: {error.strerror or error}"
        ) from error
    return adapter, notes


def _incompatibility(adapter: Adapter) -> str:
    """Why `adapter` cannot be written exactly as official V1's; empty if it can."""
    if adapter.config.is_visual:
        return "it reads pictures, and the format holds text adapters only"
    if adapter.config.tuning is not None or adapter.config.form is not None:
        return "it changes norms or linear maps, or has a form, and the format holds prompts only"
    if adapter.config.prompt_norm:
        return "its prompts pass through each layer's norm, which the format does not know"
    base = adapter.config.base
    if base.num_key_value_heads != base.num_attention_heads:
        return f"its base shares {base.num_key_value_heads} key heads, and official V1 has one for each head"
    return ""


def model_card(name: str, adapter: Adapter, source: Source, written_as: str = OURS, note: str = "") -> str:
    """The README.md of a converted adapter. note: what a user of the written format has to know."""
    config, base = adapter.config, adapter.config.base
    sizes = (
        f"hidden {base.hidden_size}, {base.num_hidden_layers} layers, {base.num_attention_heads} heads, "
        f"{base.num_key_value_heads} key heads, vocabulary {base.vocab_size}"
    )
    rows = {
        "base": f"{base.name} ({sizes})",
        "fingerprint": f"tokenizer {base.tokenizer or 'unknown'}, weights {base.weights or 'unknown'}",
        "source": f"{sanitize(source.name)}, {source.format} format",
        "written as": written_as,
        "prompts": f"{config.prompt_length} in each of the topmost {config.insertion_layers} layers",
        "gate activation": config.gate_activation,
        "template": config.template,
    }
    if config.vision is not None:
        rows |= {"encoder": config.vision.encoder, "channel order": config.vision.channels}
    if config.tuning is not None:
        rows["changes of the base"] = config.tuning.kinds
    rows["parameters"] = f"{adapter.num_parameters:,}"
    rows["licence"] = ", ".join(source.licence.values()) or "unknown: the source states none"
    marks = dict.fromkeys(source.assumed, " (assumed, see below)")
    table = "\n".join(f"| {row} | {value}{marks.get(row, '')} |" for row, value in rows.items())
    notes = [f"Assumed {row}: {why}" for row, why in source.assumed.items()] + ([note] if note else [])
    to_know = "".join(f"- {text}\n" for text in notes)
    kind = "image" if config.is_visual else "text"
    head = yaml.safe_dump({**source.licence, "base_model": base.name}, allow_unicode=True, sort_keys=False)
    return (
        f"---\n{head}tags: [llama-adapter, {kind}]\n---\n\n"
        f"# {name}\n\n{config.description}\n\n| | |\n| --- | --- |\n{table}\n"
        + (f"\n## To know\n\n{to_know}" if to_know else "")
    )
