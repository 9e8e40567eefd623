"""The pictures of examples, encoded once and kept while there is room. Knows files and the frozen encoder."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from adapter.errors import BadInput
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualEncoder, VisualFeatures, open_image
from train.data import Example, Row, Skipped


class Pictures:
    """Features of picture files by the encoder of one adapter; the least recently used leave first.

    Each picture is encoded alone: its features have the same bits whatever pictures come beside it, in whatever
    process, so that a run that stopped goes on exactly.
    """

    def __init__(
        self, encoder: VisualEncoder, vision: VisionConfig, skipped: Skipped, max_bytes: int = 2**30
    ) -> None:
        """max_bytes: of features that are kept."""
        self._encoder, self._how, self._skipped, self._room = encoder, vision.encoding, skipped, max_bytes
        self._kept: OrderedDict[Path, VisualFeatures | None] = OrderedDict()

    def usable(self, rows: list[Row]) -> list[Row]:
        """The rows whose picture, if they have one, is one; the others are named and counted."""
        return [row for row in rows if row.example.picture is None or self._of(row.example) is not None]

    def features(self, example: Example) -> VisualFeatures | None:
        """[1, ...], or None for an example without a picture."""
        return example.features if example.picture is None else self._of(example)

    def _of(self, example: Example) -> VisualFeatures | None:
        path = example.picture
        assert path is not None
        if path not in self._kept:
            try:
                features = self._encoder.encode([open_image(path)], **self._how)
            except BadInput as error:
                features = None
                self._skipped.add(example.where or str(path), f"{example.where}: {path}: {error}")
            self._kept[path] = features
            self._room -= _bytes(features)
            while self._room < 0 and len(self._kept) > 1:
                self._room += _bytes(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(path)
        return self._kept[path]


def _bytes(features: VisualFeatures | None) -> int:
    return sum(t.nbytes for t in vars(features).values() if t is not None) if features is not None else 0
