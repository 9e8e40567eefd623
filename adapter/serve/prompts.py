"""Prompt keys and values for the rows of a batch: from adapters, an image and mutes to one PromptKV entry.

Knows adapters, image encoders and the base; knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from adapter.base.encoder import load_encoder
from adapter.base.llama import Base
from adapter.errors import BadInput
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.deltas import Deltas
from adapter.method.vision import VisualEncoder, VisualFeatures

_MAX_ENCODERS = 4
_MAX_ENTRIES = 32  # of visual features, and of prompt keys and values
_BLANK = Image.new("RGB", (224, 224), (128, 128, 128))
T = TypeVar("T")


class LRUCache:
    """The most recently used values. Thread-safe; two callers never compute one value twice.

    Not functools.lru_cache: that one computes a value twice when two threads miss it at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, computed on a miss."""
        with self._lock:
            if key not in self._values:
                self._values[key] = compute()
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)
            return self._values[key]


class PromptKVBuilder:
    """Builds the prompts of rows on one base. Thread-safe; an image is encoded once for all requests with it."""

    def __init__(self, base: Base, encoders: Mapping[str, VisualEncoder] | None = None) -> None:
        """encoders: image encoders that are loaded already, by name."""
        self._base = base
        self._loaded_encoders = encoders or {}
        self._encoders = LRUCache(_MAX_ENCODERS)
        self._features = LRUCache(_MAX_ENTRIES)
        self._prompt_kv = LRUCache(_MAX_ENTRIES)

    @torch.inference_mode()
    def build(
        self,
        adapters: Sequence[tuple[Adapter, float]],
        image: Image.Image | None = None,
        mute_layers: tuple[int, ...] = (),
        mute_heads: tuple[int, ...] = (),
        gates: tuple[tuple[int, int, float], ...] = (),
    ) -> tuple[PromptKV | None, Hashable]:
        """One entry with the gated terms of all adapters at their strengths, and a key that identifies it.

        None for the frozen base. Visual adapters get the image; mute_layers, mute_heads and gates are as in
        GenerationRequest. Raises BadInput for a layer or head that has nothing to mute.

        A mix sums the terms, which are those of `adapters` in order. A visual adapter brings not only what it sees
        but how it answers, and drowns the voice of the others. So its terms with a blank picture are taken off,
        times the text adapters' strength (1 at most): what is left is what this picture changes. They come last.
        """
        image_hash = b"" if image is None else hash_image(image)
        voice = min(1.0, sum(strength for adapter, strength in adapters if not adapter.config.is_visual))
        parts, blanks, key = [], [], []
        for adapter, strength in adapters:
            seen, seen_hash = (image, image_hash) if adapter.config.is_visual else (None, b"")
            parts.append(self._project(adapter, seen, seen_hash).scaled(strength))
            if seen is not None and voice:
                blank = self._project(adapter, _BLANK, hash_image(_BLANK)).scaled(-strength * voice)
                blanks.append(replace(blank, deltas=None))
            key.append((adapter, strength, seen_hash))
        if not parts:
            return None, ()
        mixed = PromptKV.mixed([*parts, *blanks])
        mixed = mute(mixed, layers=mute_layers) if mute_layers else mixed
        mixed = mute(mixed, heads=mute_heads) if mute_heads else mixed
        mixed = scale_gates(mixed, gates) if gates else mixed
        return mixed, (*key, mute_layers, mute_heads, gates)

    def _project(self, adapter: Adapter, image: Image.Image | None, image_hash: bytes) -> PromptKV:
        features = None if image is None else self._encode(adapter, image, image_hash)
        return self._prompt_kv.get((adapter, image_hash), lambda: adapter(self._base.model, features))

    def _encode(self, adapter: Adapter, image: Image.Image, image_hash: bytes) -> VisualFeatures:
        vision = adapter.config.vision
        assert vision is not None
        options = vision.encoding

        def encode() -> VisualFeatures:
            encoder = self._loaded_encoders.get(vision.encoder) or self._encoders.get(
                vision.encoder, lambda: load_encoder(vision.encoder, self._base.device)
            )
            return encoder.encode([image], **options)

        return self._features.get((vision.encoder, *options.values(), image_hash), encode)


def hash_image(image: Image.Image) -> bytes:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def mute(kv: PromptKV, layers: Collection[int] = (), heads: Collection[int] = ()) -> PromptKV:
    """The same prompts with gates at zero in some layers and heads; several calls add up.

    layers: indices of the base's layers, muted whole; what else a V2 adapter changes in them is removed too, and
    its final norm with layer -1. heads: muted in all layers, or only in `layers` if both are given. With every
    layer muted the answer is the frozen base's, bit for bit. Raises BadInput for a layer or head that the prompts
    do not have.
    """
    tuned = {layer for layer, _ in (*kv.deltas.linears, *kv.deltas.norms)} if kv.deltas is not None else set()
    _check_known("layer", layers, {*kv.layers, *tuned})
    _check_known("head", heads, range(next((p.gates.shape[1] for terms in kv.layers.values() for p in terms), 0)))
    muted_layers = set(layers) if layers else set(kv.layers) if heads else set()
    prompts = {
        i: tuple(replace(p, gates=_zero_gates(p.gates, heads)) for p in terms) if i in muted_layers else terms
        for i, terms in kv.layers.items()
    }
    deltas = kv.deltas
    if deltas is not None and not heads:
        linears = {key: delta for key, delta in deltas.linears.items() if key[0] not in muted_layers}
        norms = {key: delta for key, delta in deltas.norms.items() if key[0] not in muted_layers}
        deltas = Deltas(linears, norms, deltas.size) if linears or norms else None
    return PromptKV(prompts, kv.size, deltas)


def scale_gates(kv: PromptKV, factors: Sequence[tuple[int, int, float]]) -> PromptKV:
    """The same prompts with single gates multiplied, by (layer, head, factor). Raises as `mute`."""
    _check_known("layer", {layer for layer, _, _ in factors}, kv.layers)
    tables = {layer: torch.ones_like(kv.layers[layer][0].gates[0]) for layer, _, _ in factors}  # [H]
    _check_known("head", {head for _, head, _ in factors}, range(min(map(len, tables.values()))))
    for layer, head, factor in factors:
        tables[layer][head] = factor
    layers = dict(kv.layers)
    for layer, table in tables.items():
        layers[layer] = tuple(replace(p, gates=p.gates * table) for p in layers[layer])
    return replace(kv, layers=layers)


def _zero_gates(gates: Tensor, heads: Collection[int]) -> Tensor:
    """[U, H] with zeros at these heads, or everywhere if there are none."""
    if not heads:
        return torch.zeros_like(gates)
    return gates.index_fill(1, torch.tensor(sorted(heads), device=gates.device), 0.0)


def _check_known(what: str, requested: Collection[int], known: Collection[int]) -> None:
    if unknown := sorted(set(requested) - set(known)):
        remedy = f"Choose from {min(known)} to {max(known)}, or unmute it." if known else "It has no prompts."
        raise BadInput(f"This adapter has nothing to mute in {what} {unknown[0]}. {remedy}")
