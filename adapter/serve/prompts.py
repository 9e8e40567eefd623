"""From the adapters and the picture of a request to the prompt keys and values of its row; the latest are kept.
And a look into the answer that came of them.

Knows adapters, encoders and the base; knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from PIL import Image

from adapter.base.llama import Base
from adapter.errors import BadInput, Busy
from adapter.method.adapter import Adapter
from adapter.method.attention import PromptKV
from adapter.method.vision import VisualEncoder, VisualFeatures
from adapter.serve.batch import batched
from adapter.serve.inspection import Inspection, look_into, muted

_KEPT = 32
MOST_READ = 2048  # tokens of a prompt and its answer that are looked into
MOST_LOOKS = 8  # waiting or under way
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

    def __init__(self, base: Base, encoders: Mapping[str, VisualEncoder] | None = None) -> None:
        """encoders: those that are loaded already, by name."""
        self._base = base
        self._loaded = encoders or {}
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
            encoder = self._loaded.get(vision.encoder) or self._encoders.get(
                vision.encoder, lambda: VisualEncoder(vision.encoder, self._base.device)
            )
            return encoder.encode([image], **how)

        return self._features.get((vision.encoder, *how.values(), image_digest), encode)


class Inspector:
    """Looks into answers, one at a time in a thread of its own, beside the worker that answers.

    Two threads may use one base at once: adapters, picture and notes are arguments of the passes, and nothing is
    left on the model. One look at a time, with a bounded queue, keeps what the others lose of the machine small.
    """

    def __init__(self, base: Base, prompts: PromptMaker) -> None:
        self._base, self._prompts = base, prompts
        self._places = threading.BoundedSemaphore(MOST_LOOKS)
        self._thread = ThreadPoolExecutor(1, "inspector")

    def __call__(
        self,
        adapters: Sequence[tuple[Adapter, float]],
        image: Image.Image | None,
        mute_layers: tuple[int, ...],
        mute_heads: tuple[int, ...],
        prompt_ids: Sequence[int],
        answer_ids: Sequence[int],
    ) -> Inspection:
        """Wait for a look's turn and its end. Raises BadInput, or Busy if too many wait or this is closed."""
        if (count := len(prompt_ids) + len(answer_ids)) > MOST_READ:
            raise BadInput(
                f"Conversation and answer have {count} tokens; answers within {MOST_READ} can be looked into. "
                "Start a new conversation."
            )
        muted = mute_layers, mute_heads

        def look() -> Inspection:
            shown, _ = self._prompts.of(adapters, image, b"" if image is None else digest(image), *muted)
            blind = None if image is None else self._prompts.of(adapters, None, b"", *muted)[0]
            if shown is None:
                raise BadInput("The frozen base has no prompts to look into. Ask with an adapter.")
            return look_into(self._base, [a for a, _ in adapters], prompt_ids, answer_ids, shown, blind)

        if not self._places.acquire(blocking=False):
            raise Busy(f"{MOST_LOOKS} answers are being looked into already. Try again in a minute.")
        try:
            return self._thread.submit(look).result()
        except (CancelledError, RuntimeError) as error:
            if isinstance(error, CancelledError) or "shutdown" in str(error):
                raise Busy("The engine has been closed. Start the program again.") from None
            raise
        finally:
            self._places.release()

    def close(self) -> None:
        """Wait for the look that is under way; the others end with Busy."""
        self._thread.shutdown(cancel_futures=True)


def digest(image: Image.Image) -> bytes:
    """What tells one picture from another."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
