"""From a recipe file to a run: its records, split into what is learnt and what is held out, and its adapter.

Knows recipes, records and encoders; knows nothing of steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from adapter.base.encoder import load_encoder
from adapter.base.llama import Base
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import load_adapter
from adapter.method.vision import VisualEncoder
from train.config import ConfigError, DataConfig, RecipeFile, TrainConfig
from train.data import Example, Shuffled, Skipped, readable
from train.feature_cache import Pictures
from train.formats.records import DataError, Records, open_records
from train.loop import new_adapter


class FileExamples:
    """`examples` of a run on files: "train" without end, in an order of the seed; "validation" once."""

    def __init__(self, data: DataConfig, config: TrainConfig, skipped: Skipped) -> None:
        """Raises DataError."""
        self.records = _open(data, data.path)
        self._config, self._skipped = config, skipped
        seed = config.seed
        order = torch.randperm(len(self.records), generator=torch.Generator().manual_seed(seed)).tolist()
        self.learnt: list[int] = order
        self._validation: tuple[Records, list[int]] = (self.records, [])
        if isinstance(data.validation, str):
            records = _open(data, data.validation)
            self._validation = (records, list(range(len(records))))
        elif self.records.format == "scienceqa":
            records = _open(data, data.path, "val")
            order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
            self._validation = (records, order)
        else:
            share = min(config.held_out, int(len(order) * data.validation))
            self._validation, self.learnt = (self.records, order[:share]), order[share:]
        if not self.learnt:
            raise DataError(f"'{data.path}' has no record left to learn from. Lower data.validation.")

    def __call__(self, split: str) -> Iterator[Example | None]:
        if split == "train":
            return Shuffled(self.records, self.learnt, self._config.seed, self._skipped, self._config.history)
        records, indices = self._validation
        return (readable(records, index, self._skipped) for index in indices)

    def with_steps(self, config: TrainConfig) -> TrainConfig:
        """The configuration with its epochs counted as steps."""
        if config.steps:
            return config
        steps = max(1, math.ceil(len(self.learnt) * config.epochs / config.batch_size))
        return dataclasses.replace(config, steps=steps, epochs=0)


def _open(data: DataConfig, path: str, split: str = "train") -> Records:
    images = None if data.images is None else Path(data.images)
    return open_records(Path(path), data.format, images, split)


def with_encoder(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, VisualEncoder | None]:
    """The configuration with the sizes of its encoder, and that encoder, if it has any."""
    vision = config.vision
    if vision is None:
        return config, None
    if vision.projection == "label":
        raise ConfigError("vision.projection 'label' needs names of its own: choose 'global' or 'queries'.")
    encoder = load_encoder(vision.encoder, device)
    vision = dataclasses.replace(vision, feature_size=encoder.feature_size, token_size=encoder.token_size)
    return dataclasses.replace(config, vision=vision), encoder


def start_adapter(recipe: RecipeFile, config: TrainConfig, base: Base) -> Adapter:
    """The adapter to train: a new one, or the one to go on with. Raises LoadError if that is for another base.

    A tuning of the recipe that the adapter has none of is added to it, untrained.
    """
    if recipe.start_from is None:
        return new_adapter(config, base)
    begun = load_adapter(Path(recipe.start_from), base.fingerprint, base.device)
    if config.tuning is None or begun.config.tuning is not None:
        return begun
    adapter = Adapter(dataclasses.replace(begun.config, tuning=config.tuning)).to(base.device)
    adapter.load_state_dict({**adapter.state_dict(), **begun.state_dict()})
    return adapter


def with_base(config: TrainConfig, base: Base) -> TrainConfig:
    """The configuration with the sizes of its base."""
    if config.tuning is None:
        return config
    tuning = dataclasses.replace(config.tuning, intermediate_size=base.model.config.intermediate_size)
    return dataclasses.replace(config, tuning=tuning)


def pictures_of(config: TrainConfig, encoder: VisualEncoder | None, skipped: Skipped) -> Pictures | None:
    """The pictures for an adapter that sees; a text adapter reads the same records without them."""
    if encoder is None or config.vision is None:
        return None
    return Pictures(encoder, config.vision, skipped)
