"""From the adapters and the picture of a request to the prompt keys and values of its row; the latest are kept.

Knows adapters, encoders and the base; knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image

from adapter.attention import PromptKV
from adapter.batch import batched
from adapter.inspect import muted
from adapter.llama import Base
from adapter.modules import Adapter
from adapter.vision import VisualEncoder, VisualFeatures

_KEPT = 32
T = TypeVar("T")


class _Recent:
    """A small cache of the most recently used values; two callers never make one value twice."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)
            return self._values[key]


class PromptMaker:
    """Prompts for the rows of one base. Thread-safe; a picture is encoded once for all who show it."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._encoders = _Recent(4)
        self._features = _Recent(_KEPT)
        self._projected = _Recent(_KEPT)

    @torch.inference_mode()
    def of(
        self,
        adapters: Sequence[tuple[Adapter, float]],
        image: Image.Image | None,
        image_digest: bytes,
        mute_layers: tuple[int, ...] = (),
        mute_heads: tuple[int, ...] = (),
    ) -> tuple[PromptKV | None, Hashable]:
        """The gated terms of all adapters with their strengths, as one entry; and a key that names just these.

        None for the bare base. The picture is for those adapters that see. mute_layers, mute_heads: whose gates
        are shut. Raises BadInput for one that is not there.
        """
        parts, key = [], []
        for adapter, strength in adapters:
            shown, shown_digest = (image, image_digest) if adapter.config.is_visual else (None, b"")
            parts.append(self._project(adapter, shown, shown_digest).scaled(strength))
            key.append((adapter, strength, shown_digest))
        if not parts:
            return None, ()
        mixed = PromptKV.mixed(parts)
        mixed = muted(mixed, layers=mute_layers) if mute_layers else mixed
        mixed = muted(mixed, heads=mute_heads) if mute_heads else mixed
        return batched([mixed]), (*key, mute_layers, mute_heads)

    def _project(self, adapter: Adapter, image: Image.Image | None, image_digest: bytes) -> PromptKV:
        features = None if image is None else self._encode(adapter, image, image_digest)
        return self._projected.get((adapter, image_digest), lambda: adapter(self._base.model, features))

    def _encode(self, adapter: Adapter, image: Image.Image, image_digest: bytes) -> VisualFeatures:
        vision = adapter.config.vision
        assert vision is not None
        how = vision.encoding

        def encode() -> VisualFeatures:
            encoder = self._encoders.get(vision.encoder, lambda: VisualEncoder(vision.encoder, self._base.device))
            return encoder.encode([image], **how)

        return self._features.get((vision.encoder, *how.values(), image_digest), encode)


def digest(image: Image.Image) -> bytes:
    """What tells one picture from another."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
