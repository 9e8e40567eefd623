"""`python -m adapter convert`: other programs' adapters into ours and ours into theirs, with a card.

Knows files, formats, the Hub and a base's fingerprint; never loads a base. Nothing is half written or overwritten.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adapter import formats
from adapter.base.embedded import BASE
from adapter.base.llama import base_config, base_fingerprint, base_weight
from adapter.errors import LoadError
from adapter.files import atomic_write
from adapter.formats import hub, official_v2
from adapter.formats.official_v2 import OfficialV2
from adapter.formats.tensors import ForeignAdapter, plain
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CARD, load_adapter, save_adapter
from adapter.method.config import GATE_ACTIVATIONS, TEMPLATES, AdapterConfig, BaseFingerprint
from adapter.serve.store import AdapterStore

# What is taken where neither the file nor the user tells.
_ACTIVATION, _TEMPLATE = "tanh", "raw"
_NAMES = {
    "official-v1": "official LLaMA-Adapter V1",
    "peft": "PEFT ADAPTION_PROMPT",
    "litgpt": "LitGPT adapter v1",
    official_v2.FORMAT: "official LLaMA-Adapter V2",
}
_ASSUMED_OF_V2 = {
    "encoder": "the file does not name it; the release used OpenAI's CLIP ViT-L/14.",
    "channel order": "the file does not tell it; the release was trained on BGR pictures.",
}


@dataclass(frozen=True)
class Options:
    """What the user states about a conversion; None is: not stated."""

    base: str | None = None
    to_format: str = formats.OURS
    gate_activation: str | None = None  # how the source's gates are meant
    to_gate_activation: str | None = None  # how the written ones shall be
    template: str | None = None
    layers: int | None = None


@dataclass(frozen=True)
class Opened:
    """An adapter from anywhere, with what its card has to tell."""

    adapter: Adapter
    source: str  # what it was read from, as one can name it again
    format: str
    assumed: Mapping[str, str] = field(default_factory=dict)  # a row of the card, and why
    licence: str = ""


def open_source(source: str, options: Options = Options()) -> Opened:
    """The adapter in a file or folder, or of `user/repo[@revision]` on the Hub. Raises LoadError."""
    path = Path(source)
    if path.exists():
        return _opened(path, path.name, options)
    if (repository := hub.parse(source)) is None:
        raise LoadError(f"There is no '{source}'. What can be converted: {formats.KNOWN}; or user/repo.")
    path, commit = hub.fetch(*repository)
    named = f"{repository[0]}@{commit}"
    try:
        return _opened(path, named, options)
    except LoadError as error:
        raise LoadError(f"{named}: {error}") from error  # the folder's own name is the bare commit


def _opened(path: Path, named: str, options: Options) -> Opened:
    licence = _licence(path)
    if not formats.is_ours(path):
        found = formats.read(path, options.layers)
        if isinstance(found, OfficialV2):
            adapter = _of_v2(found, options)
            assumed = _ASSUMED_OF_V2 if adapter.config.is_visual else {}
            return Opened(adapter, named, _NAMES[official_v2.FORMAT], assumed, licence)
        base = base_fingerprint(options.base or BASE)
        _check_fits(found, named, base, options)
        adapter, assumed = _ours(found, base, options)
        return Opened(adapter, named, _NAMES[found.format], assumed, licence)
    adapter = load_adapter(path, None if options.base is None else base_fingerprint(options.base))
    for flag, stated, stored in (
        ("--gate-activation", options.gate_activation, adapter.config.gate_activation),
        ("--layers", options.layers, adapter.config.insertion_layers),
    ):
        if stated not in (None, stored):
            raise LoadError(f"'{named}' is one of our adapters and says {stored}. Leave {flag} out.")
    if options.template is not None:
        adapter.config = dataclasses.replace(adapter.config, template=options.template)
    return Opened(adapter, named, "this project's", licence=licence)


@contextlib.contextmanager
def named_in_store(
    source: str | None, base: str, store: AdapterStore
) -> Iterator[tuple[str | None, AdapterStore]]:
    """A name and a store that has it: `source` itself, or what a folder or `user/repo` holds, for this run."""
    if source is None or "/" not in source:
        yield source, store
        return
    opened = open_source(source, Options(base=base))
    print(f"adapter: {opened.source}, {opened.format} format", file=sys.stderr)
    for row, why in opened.assumed.items():
        print(f"note: {row} (assumed): {why}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        name = opened.source.replace("/", "--")
        save_adapter(opened.adapter, Path(folder, name))
        yield name, AdapterStore(Path(folder), *store.folders)


def _of_v2(found: OfficialV2, options: Options) -> Adapter:
    name = options.base or BASE
    if options.gate_activation is not None:
        raise LoadError("Official V2 has tanh gates by its definition. Leave --gate-activation out.")
    intermediate = base_config(name).intermediate_size
    adapter = found.adapter(base_fingerprint(name), intermediate, lambda norm: base_weight(name, norm))
    if options.template is not None:
        adapter.config = dataclasses.replace(adapter.config, template=options.template)
    return adapter


def foreign(path: Path, named: str, base: BaseFingerprint) -> Opened:
    """The text adapter in another program's folder, on a base that is loaded already. Raises LoadError.

    named: what the folder is called where it comes from.
    """
    found = formats.read(path)
    if isinstance(found, OfficialV2):
        raise LoadError(f"'{named}' is an {_NAMES[official_v2.FORMAT]}. Convert it on the command line.")
    if problems := _problems(found, base):
        made_for = f"was made for {found.base} and " if found.base else ""
        raise LoadError(f"'{named}' {made_for}does not fit {base.name}: {'; '.join(problems)}.")
    adapter, assumed = _ours(found, base, Options())
    return Opened(adapter, named, _NAMES[found.format], assumed, _licence(path))


def _ours(found: ForeignAdapter, base: BaseFingerprint, options: Options) -> tuple[Adapter, dict[str, str]]:
    """The adapter that `found` is on a base that it fits, and what had to be assumed."""
    known, stated = found.gate_activation, options.gate_activation
    if known is not None and stated not in (None, known):
        raise LoadError(
            f"The gates of a {_NAMES[found.format]} are {known} by its definition. Leave --gate-activation out; "
            "--to-gate-activation chooses what is written."
        )
    assumed = dict(found.assumed)
    activation = known or stated or _ACTIVATION
    if known is None and stated is None:
        assumed["gate activation"] = (
            "the format's training code has tanh, its inference code the raw gate, and the file does not tell. "
            "`--gate-activation` states it."
        )
    template = options.template or found.template or _TEMPLATE
    if options.template is None and found.template is None:
        assumed["template"] = "the format does not tell one. `--template` states it."
    length = found.prompts.shape[1]
    config = AdapterConfig(
        base=base,
        prompt_length=length,
        insertion_layers=len(found.layers),
        gate_activation=activation,
        template=template,
        description=f"Converted from {_NAMES[found.format]}.",
    )
    with torch.device("meta"):
        adapter = Adapter(config)
    gates = found.gates.expand(-1, base.num_attention_heads).contiguous()
    adapter.load_state_dict({"prompts": found.prompts, "gates": gates}, assign=True)
    return adapter.requires_grad_(False).eval(), assumed


def _problems(found: ForeignAdapter, base: BaseFingerprint) -> list[str]:
    """What keeps `found` from running on `base`, in words that name both sides' sizes."""
    hidden, heads = found.prompts.shape[2], found.gates.shape[1]
    problems = []
    if hidden != base.hidden_size:
        problems.append(f"hidden_size {hidden} instead of {base.hidden_size}")
    if heads not in (1, base.num_attention_heads):
        problems.append(f"{heads} gates a layer instead of one for each of {base.num_attention_heads} heads")
    total = base.num_hidden_layers
    if found.total not in (None, total):
        problems.append(f"{found.total} layers instead of {total}")
    elif found.layers[-1] != total - 1:
        problems.append(f"layers {found.layers[0]} to {found.layers[-1]} instead of the topmost of {total}")
    return problems


def _check_fits(found: ForeignAdapter, named: str, base: BaseFingerprint, options: Options) -> None:
    """Raises LoadError with the problems and the remedy on the command line."""
    if problems := _problems(found, base):
        say = f"It names {found.base}" if found.base else "For example huggyllama/llama-7b"
        default = "" if options.base else " (the default)"
        raise LoadError(
            f"'{named}' does not fit {base.name}{default}: {'; '.join(problems)}. "
            f"Name the base that it was made for with --base. {say}."
        )


def reactivated(adapter: Adapter, activation: str) -> Adapter:
    """The same function with its gates expressed for `activation`. Raises LoadError where that is impossible."""
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
    with torch.device("meta"):
        changed = Adapter(dataclasses.replace(adapter.config, gate_activation=activation))
    changed.load_state_dict({**adapter.state_dict(), "gates": gates}, assign=True)
    return changed.requires_grad_(False).eval()


def convert(source: str, to: Path, options: Options = Options()) -> tuple[Adapter, list[str]]:
    """Convert `source` into the new folder `to`; the adapter, and what the user should know. Raises LoadError."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise LoadError(f"'{to}' exists already and is not overwritten. Name a new folder with --to.")
    opened = open_source(source, options)
    adapter, to_format = opened.adapter, options.to_format
    wanted = options.to_gate_activation
    if to_format in ("peft", "litgpt"):
        if wanted == "tanh":
            raise LoadError(f"The gates of a {_NAMES[to_format]} are raw. Leave --to-gate-activation out.")
        wanted = "identity"
    adapter = reactivated(adapter, wanted or adapter.config.gate_activation)
    if to_format != formats.OURS and (reason := formats.why_not(adapter, to_format)):
        raise LoadError(f"'{opened.source}' cannot be written as {to_format} exactly: {reason}.")
    told = [f"{row} (assumed): {why}" for row, why in opened.assumed.items()]
    try:
        with new_folder(to) as temporary:
            if to_format == formats.OURS:
                save_adapter(adapter, temporary, card(to.name, adapter, opened, options))
            else:
                told.append(formats.write(adapter, temporary, to_format))
                text = card(to.name, adapter, opened, options, told[-1])
                with atomic_write(temporary / CARD) as readme:
                    readme.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LoadError(f"'{to}' cannot be written ({error.strerror or error}). Choose another --to.") from error
    return adapter, told


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling to write to, which becomes `folder` in one step; gone if anything fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, folder)  # fails if somebody has filled it meanwhile
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card(name: str, adapter: Adapter, opened: Opened, options: Options = Options(), note: str = "") -> str:
    """README.md of a converted adapter. note: what a reader of the written format has to know."""
    config, base = adapter.config, adapter.config.base
    sizes = (
        f"hidden {base.hidden_size}, {base.num_hidden_layers} layers, {base.num_attention_heads} heads, "
        f"{base.num_key_value_heads} key heads, vocabulary {base.vocab_size}"
    )
    rows = {
        "base": f"{base.name} ({sizes})",
        "fingerprint": f"tokenizer {base.tokenizer or 'unknown'}, weights {base.weights or 'unknown'}",
        "source": f"{plain(opened.source)}, {opened.format} format",
        "written as": options.to_format,
        "prompts": f"{config.prompt_length} in each of the topmost {config.insertion_layers} layers",
        "gate activation": config.gate_activation,
        "template": config.template,
        **_further(config),
        "parameters": f"{adapter.num_parameters:,}",
        "licence": opened.licence or "unknown: the source states none",
    }
    marks = dict.fromkeys(opened.assumed, " (assumed, see below)")
    table = "\n".join(f"| {row} | {value}{marks.get(row, '')} |" for row, value in rows.items())
    known = [f"Assumed {row}: {why}" for row, why in opened.assumed.items()] + [note] * bool(note)
    said = "".join(f"- {text}\n" for text in known)
    licence = f"license: {opened.licence}\n" if opened.licence else ""
    kind = "image" if config.is_visual else "text"
    return (
        f"---\n{licence}base_model: {base.name}\ntags: [llama-adapter, {kind}]\n---\n\n"
        f"# {name}\n\n{config.description}\n\n| | |\n| --- | --- |\n{table}\n"
        + (f"\n## To know\n\n{said}" if said else "")
    )


def _further(config: AdapterConfig) -> dict[str, str]:
    """Rows of the card that only some adapters have."""
    rows = {}
    if config.vision is not None:
        rows = {"encoder": config.vision.encoder, "channel order": config.vision.channels}
    if config.tuning is not None:
        kinds = {"norms": config.tuning.norms, "biases": config.tuning.bias, "scales": config.tuning.scale}
        kinds[f"LoRA of rank {config.tuning.lora_rank}"] = bool(config.tuning.lora_rank)
        rows["changes of the base"] = ", ".join(kind for kind, there in kinds.items() if there)
    return rows


def _licence(path: Path) -> str:
    """The licence that the README beside the weights states in its front matter, or nothing."""
    try:
        text = ((path if path.is_dir() else path.parent) / CARD).read_text(encoding="utf-8")[:10_000]
    except (OSError, UnicodeDecodeError):
        return ""
    head = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    found = re.search(r"^license: *['\"]?([\w.+-]+)['\"]? *$", head.group(1), re.MULTILINE) if head else None
    return found.group(1) if found else ""


def add_command(commands: Any) -> None:
    """Add `convert` to the sub-commands of `python -m adapter`."""
    parser = commands.add_parser("convert", help="another program's adapter into ours, or ours into theirs")
    parser.set_defaults(command=_convert)
    parser.add_argument("source", metavar="SOURCE", help=f"{formats.KNOWN}, or user/repo[@revision] on the Hub")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--to-format", choices=formats.FORMATS, default=formats.OURS)
    parser.add_argument("--base", help=f"that it was made for: name, Hugging Face id or folder (default {BASE})")
    parser.add_argument(
        "--gate-activation", choices=GATE_ACTIVATIONS, help="of the source, where its format leaves it open"
    )
    parser.add_argument(
        "--to-gate-activation", choices=GATE_ACTIVATIONS, help="written; default: as in the source"
    )
    parser.add_argument("--template", choices=TEMPLATES, help="that it was trained with")
    parser.add_argument("--layers", type=int, metavar="L", help="insertion layers of an official V1 file")


def _convert(args: argparse.Namespace, _: object) -> None:
    options = Options(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)})
    adapter, told = convert(args.source, args.to, options)
    config = adapter.config
    print(
        f"{args.to}: {options.to_format}, {adapter.num_parameters:,} parameters for {config.base.name}, "
        f"{config.prompt_length} prompts in each of {config.insertion_layers} layers, "
        f"{config.gate_activation} gates, template {config.template}"
    )
    for text in told:
        print(f"note: {text}")
