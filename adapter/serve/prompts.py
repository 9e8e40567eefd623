"""Prompt keys and values of rows: from adapters, an image and changed gates to one PromptKV entry."""

import hashlib
import weakref
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from PIL import Image

from adapter.base.encoder import load_encoder
from adapter.base.llama import Base
from adapter.errors import BadInput
from adapter.lru import LRU
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.vision import VisualEncoder, VisualFeatures
from adapter.serve.request import GateFactors

Encoders = Mapping[str, VisualEncoder]  # by name
GREY = Image.new("RGB", (224, 224), (128, 128, 128))


@dataclass(frozen=True)
class Prompts:
    """The prompts and deltas of one row: those of each adapter and picture, which rows share, with strengths."""

    parts: tuple[tuple[PromptKV, float], ...]
    gates: GateFactors
    key: Hashable  # equal for rows with equal prompts

    @cached_property
    def bytes(self) -> int:
        """What the copy takes that a forward pass makes of them alone, in fp32."""
        return sum(_prompt_bytes(kv, 4) for kv, _ in self.parts)

    @torch.inference_mode()
    def mixed(self) -> PromptKV:
        """One entry with all gated terms. Raises BadInput for a layer or head that has no gate."""
        mixed = PromptKV.mixed([kv.scaled(strength) for kv, strength in self.parts])
        return _scale_gates(mixed, self.gates) if self.gates else mixed


class PromptKVBuilder:
    """Builds the prompts of rows on one base. Thread-safe; an image is encoded once for all requests with it."""

    def __init__(self, base: Base, encoders: Encoders | None = None, max_bytes: int = 2**28) -> None:
        """encoders: image encoders that are loaded already, by name. max_bytes: of prompts that are kept."""
        self._base = base
        self._loaded_encoders = encoders or {}
        self._encoders: LRU[str, VisualEncoder] = LRU(4)
        self._features: LRU[Hashable, VisualFeatures] = LRU(32)  # pictures
        self.cache: LRU[Hashable, PromptKV] = LRU(max_bytes, _prompt_bytes)

    @torch.inference_mode()
    def build(
        self, adapters: Sequence[tuple[Adapter, float]], image: Image.Image | None = None, gates: GateFactors = ()
    ) -> Prompts | None:
        """The prompts of all adapters at their strengths; None for the frozen base. Visual adapters get the image.

        The terms are those of `adapters` in order. Beside text adapters of total strength s (at most 1), a visual
        one adds only what its picture changes: its terms for a grey picture follow, times -s * its strength, and
        its deltas, which do not depend on the picture, are scaled by 1 - s, as all of it is without a picture.
        """
        if not adapters:
            return None
        image_hash = b"" if image is None else hash_image(image)
        text_strength = min(1.0, sum(strength for adapter, strength in adapters if not adapter.config.is_visual))
        parts: list[tuple[PromptKV, float]] = []
        blanks, key = [], []
        for adapter, strength in adapters:
            seen, seen_hash = (image, image_hash) if adapter.config.is_visual else (None, b"")
            key.append((weakref.ref(adapter), strength, seen_hash))  # caches keep no adapter alive
            kv = self._project(adapter, seen, seen_hash)
            if seen is None or not text_strength:
                parts.append((kv, strength * (1 - text_strength if adapter.config.is_visual else 1)))
                continue
            parts.append((replace(kv, deltas=None), strength))
            if kv.deltas is not None and text_strength < 1:
                parts.append((PromptKV({}, kv.size, kv.deltas), strength * (1 - text_strength)))
            blank = replace(self._project(adapter, GREY, hash_image(GREY)), deltas=None)
            blanks.append((blank, -strength * text_strength))
        return Prompts((*parts, *blanks), gates, (*key, gates))

    def _project(self, adapter: Adapter, image: Image.Image | None, image_hash: bytes) -> PromptKV:
        def project() -> PromptKV:
            features = None if image is None else self._encode(adapter, image, image_hash)
            return adapter(self._base.model, features)

        return self.cache.compute((weakref.ref(adapter), image_hash), project)

    def _encode(self, adapter: Adapter, image: Image.Image, image_hash: bytes) -> VisualFeatures:
        vision = adapter.config.vision
        assert vision is not None
        options = vision.encoding

        def encode() -> VisualFeatures:
            encoder = self._loaded_encoders.get(vision.encoder) or self._encoders.compute(
                vision.encoder, lambda: load_encoder(vision.encoder, self._base.device)
            )
            return encoder.encode([image], **options)

        return self._features.compute((vision.encoder, *options.values(), image_hash), encode)


def _prompt_bytes(kv: PromptKV, number_bytes: int | None = None) -> int:
    """Returns the bytes of all tensors, as they are or at number_bytes a number."""
    tensors = [t for terms in kv.layers.values() for p in terms for t in (p.keys, p.values, p.gates)]
    if kv.deltas is not None:
        deltas = kv.deltas.linears.values()
        tensors += [t for d in deltas for t in (d.bias, d.scale, d.down, d.up) if t is not None]
        tensors += kv.deltas.norms.values()
    return sum(t.numel() * (number_bytes or t.element_size()) for t in tensors)


def hash_image(image: Image.Image) -> bytes:
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).digest()


def _scale_gates(kv: PromptKV, gates: GateFactors) -> PromptKV:
    """The same prompts with some gates multiplied. Raises BadInput for a layer or head that has no gate."""
    tables = {layer: torch.ones_like(terms[0].gates[0]) for layer, terms in kv.layers.items()}  # [H]
    for layer, head, factor in gates:
        _check_known("layer", layer, tables)
        if head is not None:
            _check_known("head", head, range(len(tables[layer])))
        tables[layer][... if head is None else head] = factor
    layers = {i: tuple(replace(p, gates=p.gates * tables[i]) for p in terms) for i, terms in kv.layers.items()}
    return replace(kv, layers=layers)


def _check_known(what: str, number: int, known: Collection[int]) -> None:
    if number not in known:
        raise BadInput(f"This adapter has no gates in {what} {number}. Choose from {min(known)} to {max(known)}.")
