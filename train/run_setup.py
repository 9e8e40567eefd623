"""From a recipe file to a run: its records split for training and validation, its images' features, its adapter.

Knows recipes, records and the frozen encoder; knows nothing of steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch

from adapter.base.encoder import load_encoder
from adapter.base.llama import Base
from adapter.errors import BadInput
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import load_adapter
from adapter.method.config import VisionConfig
from adapter.method.image_file import open_image
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.config import ConfigError, DataConfig, RecipeFile, TrainConfig
from train.data import Example, ShuffledExamples, SkippedExamples, TokenisedRow, read_example
from train.formats.dataset import DataError, Records, open_records
from train.loop import new_adapter


class FileExamples:
    """The examples of a run on files: endless and shuffled by the seed for "train", once for "validation"."""

    def __init__(self, data: DataConfig, config: TrainConfig, skipped: SkippedExamples) -> None:
        """Raises DataError."""
        self.records = _open(data, data.path)
        self._config, self._skipped = config, skipped
        order = _permutation(self.records, config.seed)
        self.train_indices: list[int] = order
        self._validation: tuple[Records, list[int]]
        if isinstance(data.validation, str):
            records = _open(data, data.validation)
            self._validation = (records, list(range(len(records))))
        elif self.records.format == "scienceqa":
            records = _open(data, data.path, "val")
            self._validation = (records, _permutation(records, config.seed))
        else:
            count = min(config.held_out, int(len(order) * data.validation))
            self._validation, self.train_indices = (self.records, order[:count]), order[count:]
        if not self.train_indices:
            raise DataError(f"'{data.path}' has no record left to learn from. Lower data.validation.")

    def __call__(self, split: str) -> Iterator[Example | None]:
        if split == "train":
            config = self._config
            return ShuffledExamples(self.records, self.train_indices, config.seed, self._skipped, config.history)
        records, indices = self._validation
        return (read_example(records, index, self._skipped) for index in indices)

    def with_steps(self, config: TrainConfig) -> TrainConfig:
        """The configuration with its epochs converted to steps."""
        if config.steps:
            return config
        steps = max(1, math.ceil(len(self.train_indices) * config.epochs / config.batch_size))
        return dataclasses.replace(config, steps=steps, epochs=0)


def _open(data: DataConfig, path: str, split: str = "train") -> Records:
    images = None if data.images is None else Path(data.images)
    return open_records(Path(path), data.format, images, split)


def _permutation(records: Records, seed: int) -> list[int]:
    return torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()


class FeatureCache:
    """Features of image files by the encoder of one adapter; evicts the least recently used.

    Each image is encoded alone, so that its features are bit-identical in any batch and process, and a resumed run
    equals one that never stopped.
    """

    def __init__(
        self, encoder: VisualEncoder, vision: VisionConfig, skipped: SkippedExamples, max_bytes: int = 2**30
    ) -> None:
        self._encoder, self._encoding, self._skipped = encoder, vision.encoding, skipped
        self._free_bytes = max_bytes
        self._features: OrderedDict[Path, VisualFeatures | None] = OrderedDict()

    def usable(self, rows: list[TokenisedRow]) -> list[TokenisedRow]:
        """The rows that have no image or a readable one; the others are counted as skipped."""
        return [row for row in rows if row.example.picture is None or self._encode(row.example) is not None]

    def features(self, example: Example) -> VisualFeatures | None:
        """[1, ...]; None for an example without an image."""
        return example.features if example.picture is None else self._encode(example)

    def _encode(self, example: Example) -> VisualFeatures | None:
        path = example.picture
        assert path is not None
        if path not in self._features:
            try:
                features = self._encoder.encode([open_image(path)], **self._encoding)
            except BadInput as error:
                features = None
                self._skipped.add(example.where or str(path), f"{example.where}: {path.name}: {error}")
            self._features[path] = features
            self._free_bytes -= _bytes(features)
            while self._free_bytes < 0 and len(self._features) > 1:
                self._free_bytes += _bytes(self._features.popitem(last=False)[1])
        self._features.move_to_end(path)
        return self._features[path]


def _bytes(features: VisualFeatures | None) -> int:
    return sum(t.nbytes for t in vars(features).values() if t is not None) if features is not None else 0


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
