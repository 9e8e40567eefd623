"""Features of pictures by the frozen encoder, each picture encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from adapter.base.image_file import open_image, read_image
from adapter.errors import BadInput
from adapter.lru import LRU
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.formats.record import picture_source
from train.input.examples import SkippedExamples
from train.input.feature_store import FeatureStore, open_store
from train.input.rows import TokenisedRow

_MEMORY_BYTES = 2**29
_ENCODED_TOGETHER = 32  # on a GPU


class FeatureCache:
    """Features of picture files by the encoder of one adapter, in memory and on disk, by the content of the file.

    On a CPU each picture is encoded alone: together is hardly faster there, and alone its features have the same
    bits in any batch and process, so that a resumed run equals one that never stopped, whatever is still on disk.
    Features are kept in half precision and leave as fp32; what was just encoded passes through half precision too.
    """

    def __init__(
        self,
        encoder: VisualEncoder,
        vision: VisionConfig,
        skipped: SkippedExamples,
        store: FeatureStore | None = None,
    ) -> None:
        self._encoder, self._encoding, self._skipped, self._store = encoder, vision.encoding, skipped, store
        self._memory: LRU[bytes, VisualFeatures] = LRU(_MEMORY_BYTES, _bytes)

    @staticmethod
    def on_disk(
        encoder: VisualEncoder, vision: VisionConfig, skipped: SkippedExamples, log: Callable[[str], None]
    ) -> FeatureCache:
        """A cache whose features later runs find in the user's cache folder."""
        fingerprint = hashlib.sha256(f"{encoder.fingerprint()} {vision.encoding}".encode()).hexdigest()
        return FeatureCache(encoder, vision, skipped, open_store(encoder.name, fingerprint, log))

    def with_features(
        self, rows: Sequence[TokenisedRow], stopping: Callable[[], bool] = lambda: False
    ) -> list[TokenisedRow]:
        """The rows with the features of their pictures; rows without one as they are.

        A row whose picture cannot be read is left out and counted as skipped. Once `stopping` says so, nothing
        more is encoded, and rows that would need it are left out.
        """
        keys: list[bytes | None] = []
        found: dict[bytes, VisualFeatures] = {}
        images: dict[bytes, Image.Image] = {}
        for row in rows:
            picture = row.example.picture
            key: bytes | None = b""
            if picture is not None:
                try:
                    data = read_image(picture_source(picture))
                    key = hashlib.sha256(data).digest()
                    if key not in found and key not in images:
                        if (features := self._get(key)) is None:
                            images[key] = open_image(data)
                        else:
                            found[key] = features
                except BadInput as error:
                    where = row.example.where
                    self._skipped.add(where or picture.name, f"{where}: {picture.name}: {error}")
                    key = None
            keys.append(key)
        found |= self._encode(images, stopping)
        return [
            row._replace(example=replace(row.example, features=found[key].to(torch.float32))) if key else row
            for row, key in zip(rows, keys, strict=True)
            if key is not None and (not key or key in found)
        ]

    def _encode(
        self, images: dict[bytes, Image.Image], stopping: Callable[[], bool]
    ) -> dict[bytes, VisualFeatures]:
        """Encodes and keeps the images, until `stopping` says that nobody waits for them."""
        together = 1 if self._encoder.device.type == "cpu" else _ENCODED_TOGETHER
        keys, encoded = list(images), {}
        for start in range(0, len(keys), together):
            if stopping():
                break
            chunk = keys[start : start + together]
            features = self._encoder.encode([images[key] for key in chunk], **self._encoding)
            features = features.map(_in_half).to("cpu")
            for i, key in enumerate(chunk):
                encoded[key] = features[i : i + 1].map(Tensor.clone)  # a view would keep the chunk in memory
                self._put(key, encoded[key])
        return encoded

    def _get(self, key: bytes) -> VisualFeatures | None:
        if (features := self._memory.get(key)) is not None:
            return features
        features = None if self._store is None else self._store.get(key.hex())
        if features is not None:
            self._memory.put(key, features)
        return features

    def _put(self, key: bytes, features: VisualFeatures) -> None:
        self._memory.put(key, features)
        if self._store is not None:
            self._store.put(key.hex(), features)


def _in_half(values: Tensor) -> Tensor:
    """float16, which keeps 11 bits where bfloat16 keeps 8; as they are if they are too large for it."""
    half = values.half()
    return half if half.isfinite().all() else values


def _bytes(features: VisualFeatures) -> int:
    return sum(tensor.nbytes for tensor in vars(features).values() if tensor is not None)
