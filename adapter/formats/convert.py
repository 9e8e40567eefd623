"""Conversion of adapters: other programs' into ours and ours into theirs, each with a model card.

No base is loaded. A folder is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adapter.base.embedded import BASE
from adapter.base.llama import base_config, base_fingerprint, base_weight
from adapter.errors import LoadError
from adapter.files import atomic_write
from adapter.formats import hub, official_v2, peft_adapter, registry
from adapter.formats.official_v2 import OfficialV2
from adapter.formats.registry import NAMES, OURS
from adapter.formats.tensors import ForeignAdapter, sanitize
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CARD, load_adapter, save_adapter
from adapter.method.config import AdapterConfig, BaseFingerprint

_DEFAULT_ACTIVATION, _DEFAULT_TEMPLATE = "tanh", "raw"  # where neither the file nor the user states one
_ASSUMED_OF_V2 = {
    "encoder": "the file does not name it; the release used OpenAI's CLIP ViT-L/14.",
    "channel order": "the file does not tell it; the release was trained on BGR pictures.",
}


@dataclass(frozen=True)
class Options:
    """What the user states about a conversion; None is not stated."""

    base: str | None = None
    to_format: str = OURS
    gate_activation: str | None = None  # of the source
    to_gate_activation: str | None = None  # of what is written
    template: str | None = None
    layers: int | None = None


@dataclass(frozen=True)
class Source:
    """An adapter read from any format, with what its model card states."""

    adapter: Adapter
    name: str  # file or folder, or repository@commit
    format: str
    assumed: Mapping[str, str] = field(default_factory=dict)  # row of the model card -> why it is assumed
    licence: str = ""


# Reading.


def open_source(source: str, options: Options = Options()) -> Source:
    """The adapter in a file or folder, or in `user/repo[@revision]` on the Hub. Raises LoadError."""
    path = Path(source)
    if path.exists():
        return _open_path(path, path.name, options)
    if (repository := hub.parse(source)) is None:
        raise LoadError(
            f"There is no '{path.name}'. What can be converted: {registry.CONVERTIBLE}; or user/repo.", source
        )
    path, commit = hub.fetch(*repository)
    name = f"{repository[0]}@{commit}"
    try:
        return _open_path(path, name, options)
    except LoadError as error:
        raise LoadError(f"{name}: {error}", error.detail) from error  # the folder's own name is only the commit


def _open_path(path: Path, name: str, options: Options) -> Source:
    licence = _read_licence(path)
    if registry.is_ours(path):
        return Source(_load_ours(path, name, options), name, "this project's", licence=licence)
    foreign = registry.read(path, options.layers)
    if isinstance(foreign, OfficialV2):
        adapter = _from_v2(foreign, options)
        assumed = _ASSUMED_OF_V2 if adapter.config.is_visual else {}
        return Source(adapter, name, NAMES[official_v2.FORMAT], assumed, licence)
    base = base_fingerprint(options.base or BASE)
    if problems := _mismatches(foreign, base):
        suggestion = f"It names {foreign.base}" if foreign.base else "For example huggyllama/llama-7b"
        default = "" if options.base else " (the default)"
        raise LoadError(
            f"'{name}' does not fit {base.name}{default}: {'; '.join(problems)}. "
            f"Name the base that it was made for with --base. {suggestion}."
        )
    adapter, assumed = _from_foreign(foreign, base, options)
    return Source(adapter, name, NAMES[foreign.format], assumed, licence)


def _load_ours(path: Path, name: str, options: Options) -> Adapter:
    adapter = load_adapter(path, None if options.base is None else base_fingerprint(options.base))
    for flag, stated, stored in (
        ("--gate-activation", options.gate_activation, adapter.config.gate_activation),
        ("--layers", options.layers, adapter.config.insertion_layers),
    ):
        if stated not in (None, stored):
            raise LoadError(f"'{name}' is one of our adapters and says {stored}. Leave {flag} out.")
    return _with_template(adapter, options.template)


def _from_v2(foreign: OfficialV2, options: Options) -> Adapter:
    base = options.base or BASE
    if options.gate_activation is not None:
        raise LoadError("Official V2 has tanh gates by its definition. Leave --gate-activation out.")
    adapter = foreign.adapter(
        base_fingerprint(base), base_config(base).intermediate_size, lambda norm: base_weight(base, norm)
    )
    return _with_template(adapter, options.template)


def _with_template(adapter: Adapter, template: str | None) -> Adapter:
    if template is not None:
        adapter.config = dataclasses.replace(adapter.config, template=template)
    return adapter


def _from_foreign(
    foreign: ForeignAdapter, base: BaseFingerprint, options: Options
) -> tuple[Adapter, dict[str, str]]:
    """Our adapter with the function of `foreign` on a base that it fits, and what is assumed about it."""
    known, stated = foreign.gate_activation, options.gate_activation
    if known is not None and stated not in (None, known):
        raise LoadError(
            f"The gates of a {NAMES[foreign.format]} are {known} by its definition. Leave --gate-activation out; "
            "--to-gate-activation chooses what is written."
        )
    assumed = dict(foreign.assumed)
    if known is None and stated is None:
        assumed["gate activation"] = (
            "the format's training code has tanh, its inference code the raw gate, and the file does not tell. "
            "`--gate-activation` states it."
        )
    if options.template is None and foreign.template is None:
        assumed["template"] = "the format does not tell one. `--template` states it."
    config = AdapterConfig(
        base=base,
        prompt_length=foreign.prompts.shape[1],
        insertion_layers=len(foreign.layers),
        gate_activation=known or stated or _DEFAULT_ACTIVATION,
        template=options.template or foreign.template or _DEFAULT_TEMPLATE,
        description=f"Converted from {NAMES[foreign.format]}.",
    )
    gates = foreign.gates.expand(-1, base.num_attention_heads).contiguous()
    return _make_adapter(config, {"prompts": foreign.prompts, "gates": gates}), assumed


def _make_adapter(config: AdapterConfig, state: dict[str, torch.Tensor]) -> Adapter:
    with torch.device("meta"):
        adapter = Adapter(config)
    adapter.load_state_dict(state, assign=True)
    return adapter.requires_grad_(False).eval()


def _mismatches(foreign: ForeignAdapter, base: BaseFingerprint) -> list[str]:
    """Why `foreign` cannot run on `base`, with the sizes of both."""
    hidden, heads = foreign.prompts.shape[2], foreign.gates.shape[1]
    problems = []
    if hidden != base.hidden_size:
        problems.append(f"hidden_size {hidden} instead of {base.hidden_size}")
    if heads not in (1, base.num_attention_heads):
        problems.append(f"{heads} gates a layer instead of one for each of {base.num_attention_heads} heads")
    total = base.num_hidden_layers
    if foreign.total_layers not in (None, total):
        problems.append(f"{foreign.total_layers} layers instead of {total}")
    elif foreign.layers[-1] != total - 1:
        problems.append(f"layers {foreign.layers[0]} to {foreign.layers[-1]} instead of the topmost of {total}")
    return problems


# Writing.


def convert(source: str, to: Path, options: Options = Options()) -> tuple[Adapter, list[str]]:
    """Convert `source` into the new folder `to`; returns the adapter and notes for the user. Raises LoadError."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise LoadError(
            f"'{to.name}' exists already and is not overwritten. Name a new folder with --to.", str(to)
        )
    opened = open_source(source, options)
    to_format, activation = options.to_format, options.to_gate_activation
    if to_format == peft_adapter.FORMAT:
        if activation == "tanh":
            raise LoadError(f"The gates of a {NAMES[to_format]} are raw. Leave --to-gate-activation out.")
        activation = "identity"
    adapter = change_gate_activation(opened.adapter, activation or opened.adapter.config.gate_activation)
    if to_format != OURS and (reason := registry.incompatibility(adapter, to_format)):
        raise LoadError(f"'{opened.name}' cannot be written as {to_format} exactly: {reason}.")
    notes = [f"{row} (assumed): {why}" for row, why in opened.assumed.items()]
    try:
        with new_folder(to) as temporary:
            if to_format == OURS:
                save_adapter(adapter, temporary, model_card(to.name, adapter, opened))
            else:
                notes.append(registry.write(adapter, temporary, to_format))
                text = model_card(to.name, adapter, opened, to_format, notes[-1])
                with atomic_write(temporary / CARD) as readme:
                    readme.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LoadError(
            f"'{to.name}' cannot be written. Choose another --to.", f"{to}: {error.strerror or error}"
        ) from error
    return adapter, notes


def change_gate_activation(adapter: Adapter, activation: str) -> Adapter:
    """The same function with gates for another activation. Raises LoadError where tanh cannot express a gate."""
    if activation == adapter.config.gate_activation:
        return adapter
    gates = adapter.activated_gates().detach()
    if activation == "tanh":
        beyond = (gates.abs() >= 1).nonzero()
        if len(beyond):
            row, head = beyond[0].tolist()
            raise LoadError(
                f"The gate of layer {adapter.config.layers[row]}, head {head} is {gates[row, head]:g}, "
                "and tanh stays below 1. Write it with --to-gate-activation identity."
            )
        gates = gates.double().atanh().float()
    config = dataclasses.replace(adapter.config, gate_activation=activation)
    return _make_adapter(config, {**adapter.state_dict(), "gates": gates})


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling folder to write to; it is renamed to `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, folder)  # fails if somebody has filled `folder` meanwhile
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    if (tuning := config.tuning) is not None:
        lora = f"LoRA of rank {tuning.lora_rank}"
        kinds = {"norms": tuning.norms, "biases": tuning.bias, "scales": tuning.scale, lora: tuning.lora_rank}
        rows["changes of the base"] = ", ".join(kind for kind, present in kinds.items() if present)
    rows["parameters"] = f"{adapter.num_parameters:,}"
    rows["licence"] = source.licence or "unknown: the source states none"
    marks = dict.fromkeys(source.assumed, " (assumed, see below)")
    table = "\n".join(f"| {row} | {value}{marks.get(row, '')} |" for row, value in rows.items())
    notes = [f"Assumed {row}: {why}" for row, why in source.assumed.items()] + [note] * bool(note)
    to_know = "".join(f"- {text}\n" for text in notes)
    licence = f"license: {source.licence}\n" if source.licence else ""
    kind = "image" if config.is_visual else "text"
    return (
        f"---\n{licence}base_model: {base.name}\ntags: [llama-adapter, {kind}]\n---\n\n"
        f"# {name}\n\n{config.description}\n\n| | |\n| --- | --- |\n{table}\n"
        + (f"\n## To know\n\n{to_know}" if to_know else "")
    )


def _read_licence(path: Path) -> str:
    """The licence in the front matter of the README beside the weights; empty if there is none."""
    try:
        text = ((path if path.is_dir() else path.parent) / CARD).read_text(encoding="utf-8")[:10_000]
    except (OSError, UnicodeDecodeError):
        return ""
    head = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    match = re.search(r"^license: *['\"]?([\w.+-]+)['\"]? *$", head.group(1), re.MULTILINE) if head else None
    return match.group(1) if match else ""
