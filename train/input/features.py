"""Features of pictures by the frozen encoder, kept for the next epoch. Knows picture files; knows no tokens."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from adapter.errors import BadInput
from adapter.method.config import VisionConfig
from adapter.method.image_file import open_image
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.input.examples import Example, SkippedExamples
from train.input.rows import TokenisedRow


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
