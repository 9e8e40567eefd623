"""The adapter, encoder and sizes that a recipe asks for. Knows recipes and the frozen base, but no steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from adapter.base.encoder import load_encoder
from adapter.base.llama import Base
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import load_adapter
from adapter.method.vision import VisualEncoder
from train.config import ConfigError, RecipeFile, TrainConfig
from train.loop import new_adapter


def with_encoder(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, VisualEncoder | None]:
    """The configuration with its encoder's sizes, and that encoder; None for a text adapter."""
    vision = config.vision
    if vision is None:
        return config, None
    if vision.projection == "label":
        raise ConfigError("vision.projection 'label' needs names of its own: choose 'global' or 'queries'.")
    encoder = load_encoder(vision.encoder, device)
    vision = dataclasses.replace(vision, feature_size=encoder.feature_size, token_size=encoder.token_size)
    return dataclasses.replace(config, vision=vision), encoder


def with_base(config: TrainConfig, base: Base) -> TrainConfig:
    """The configuration with its base's sizes."""
    if config.tuning is None:
        return config
    tuning = dataclasses.replace(config.tuning, intermediate_size=base.model.config.intermediate_size)
    return dataclasses.replace(config, tuning=tuning)


def start_adapter(recipe: RecipeFile, config: TrainConfig, base: Base) -> Adapter:
    """The adapter to train: a new one, or the one in `start_from`. Raises LoadError if that is for another base.

    If the recipe has a tuning and the loaded adapter has none, an untrained one is added.
    """
    if recipe.start_from is None:
        return new_adapter(config, base)
    loaded = load_adapter(Path(recipe.start_from), base.fingerprint, base.device)
    if config.tuning is None or loaded.config.tuning is not None:
        return loaded
    adapter = Adapter(dataclasses.replace(loaded.config, tuning=config.tuning)).to(base.device)
    adapter.load_state_dict({**adapter.state_dict(), **loaded.state_dict()})
    return adapter
