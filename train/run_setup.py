"""The adapter, encoder and sizes that a recipe asks for."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import LlamaConfig

from adapter.base.encoder import load_encoder
from adapter.base.llama import Base
from adapter.base.template import default_template
from adapter.errors import BadInput
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import load_adapter, read_config
from adapter.method.config import AdapterConfig
from adapter.method.vision import VisualEncoder
from adapter.serve.form import check_form
from train.config import DERIVED, ConfigError, RecipeFile, TrainConfig, describe_preset, flatten
from train.input.split import FileExamples
from train.loop import OF_ADAPTER, new_adapter

# What an adapter in `start_from` has already and a recipe cannot change.
_TAKEN = {"insertion_layers", *OF_ADAPTER} - {"description", "form"}
_PATTERNS = ("looks", "beyond")  # of `vision`, of questions: also free


def complete(recipe: RecipeFile, tokenizer: Any, base: LlamaConfig, log: Callable[[str], None]) -> RecipeFile:
    """The recipe with what follows from preset, `start_from` and base. Raises ConfigError, LoadError."""
    if recipe.preset is not None:
        log(describe_preset(recipe.preset))
    recipe = _with_start(recipe)
    config, context, changes = recipe.train, base.max_position_embeddings, dict[str, Any]()
    if config.template == "chat" and default_template(tokenizer) != "chat":
        if "template" in recipe.stated or recipe.start_from is not None:
            raise ConfigError("This base has no chat template. Train with template: alpaca or raw.")
        log("template alpaca: this base has no chat template")
        changes["template"] = "alpaca"
    if config.form is not None:
        try:
            check_form(config.form)
        except BadInput as error:
            raise ConfigError(f"form: {error}") from error
    config.layers_of(base.num_hidden_layers)
    if config.learn == "tuning" and config.tuning is None:
        raise ConfigError("learn: tuning finds no tuning to learn: set one, such as tuning: {norms: true}.")
    if config.tuning_lr is not None and config.tuning is None:
        raise ConfigError("tuning_lr finds no tuning to learn: leave it out, or set tuning: {lora_rank: 8}.")
    if config.tuning is not None and config.tuning.layers > base.num_hidden_layers:
        raise ConfigError(f"tuning.layers must be at most {base.num_hidden_layers}, got {config.tuning.layers}.")
    if config.tuning is not None and config.tuning.lora_rank > base.hidden_size:  # more than the matrices have
        raise ConfigError(f"tuning.lora_rank must be at most {base.hidden_size}, got {config.tuning.lora_rank}.")
    if tokenizer.eos_token_id is None:
        raise ConfigError("The tokenizer of this base names no end token: set eos_token in tokenizer_config.json.")
    if config.max_length > context:
        if "max_length" in recipe.stated:
            asked = config.max_length
            raise ConfigError(f"max_length {asked} is more than the {context} tokens that this base reads.")
        log(f"max_length {context}: this base reads no more")
        changes["max_length"] = context
    if config.tuning is not None:
        changes["tuning"] = dataclasses.replace(config.tuning, intermediate_size=base.intermediate_size)
    return dataclasses.replace(recipe, train=dataclasses.replace(config, **changes))


def _with_start(recipe: RecipeFile) -> RecipeFile:
    """The recipe with the settings of the adapter in `start_from`; a tuning may be new, as in V2's second stage.
    Raises LoadError, and ConfigError if the recipe itself states others; a preset's give way.
    """
    if recipe.start_from is None:
        return recipe
    config, folder = recipe.train, Path(recipe.start_from)
    start = read_config(folder)
    taken: dict[str, Any] = {key: getattr(start, key) for key in _TAKEN}
    if start.tuning is None:
        taken["tuning"] = config.tuning
    taken |= {key: getattr(start, key) for key in ("description", "form") if key not in recipe.stated}
    if start.vision is not None and config.vision is not None:
        stated = {key: getattr(config.vision, key) for key in _PATTERNS if f"vision.{key}" in recipe.stated}
        taken["vision"] = dataclasses.replace(start.vision, **stated)
    if differences := _differences(recipe, start):
        raise ConfigError(
            f"The recipe states {'; '.join(differences)}. Leave it out: the adapter '{folder.name}' in start_from "
            "is trained on as it is."
        )
    return dataclasses.replace(recipe, train=dataclasses.replace(config, **taken))


def _differences(recipe: RecipeFile, start: AdapterConfig) -> list[str]:
    """What the recipe states otherwise than the adapter has it: the keys with both values."""
    layers = recipe.train.layers_of(start.base.num_hidden_layers)
    wanted = flatten(dataclasses.asdict(recipe.train) | {"insertion_layers": layers})
    found = flatten(dataclasses.asdict(start))
    differences, free = [], {*DERIVED, *(_PATTERNS if start.vision else ())}  # what may differ
    for key in sorted(recipe.stated):
        group, _, last = key.partition(".")
        if group not in _TAKEN or last in free or (group == "tuning" and start.tuning is None):
            continue
        if key in ("vision", "tuning") and getattr(start, key) is not None:  # stated as none
            differences.append(f"no {key} where the adapter has one")
        elif wanted.get(key) != found.get(key):
            differences.append(f"{key} {wanted.get(key)!r} where the adapter has {found.get(key)!r}")
    return differences


def check_pictures(recipe: RecipeFile, examples: FileExamples, log: Callable[[str], None]) -> None:
    """Raises ConfigError if a recipe for pictures has none; V2's second stage goes on without."""
    config, pictures = recipe.train, examples.pictures
    if config.vision is None and pictures:
        log(f"the pictures of {pictures:,} records are left out: vision is not set")
    if config.vision is not None and not pictures and recipe.start_from is None:
        raise ConfigError("vision is set, and no record has a picture. Leave vision out, or name the pictures.")


def with_encoder(
    config: TrainConfig, device: torch.device, starts_anew: bool
) -> tuple[TrainConfig, VisualEncoder | None]:
    """Loads the encoder of config.vision, if any; a new adapter's config gets its sizes. Raises LoadError."""
    vision = config.vision
    if vision is None:
        return config, None
    encoder = load_encoder(vision.encoder, device)
    if starts_anew:
        # An encoder without a head says so itself when it is to encode.
        token_size = (vision.projected and encoder.num_classes) or encoder.token_size
        vision = dataclasses.replace(vision, feature_size=encoder.feature_size, token_size=token_size)
    return dataclasses.replace(config, vision=vision), encoder


def start_adapter(recipe: RecipeFile, config: TrainConfig, base: Base) -> Adapter:
    """The adapter to train: a new one, or that in `start_from`, with an untrained tuning if it lacks one. config:
    the recipe's, after `complete`. Raises LoadError if the loaded one is for another base.
    """
    if recipe.start_from is None:
        return new_adapter(config, base)
    loaded = load_adapter(Path(recipe.start_from), base.fingerprint, base.device)
    set_seed(config.seed)  # a new tuning is the same in every process
    tuning = loaded.config.tuning or config.tuning
    about = dataclasses.replace(
        loaded.config, description=config.description, form=config.form, vision=config.vision, tuning=tuning
    )
    adapter = Adapter(about).to(base.device)
    adapter.load_state_dict({**adapter.state_dict(), **loaded.state_dict()})
    return adapter
