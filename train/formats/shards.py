"""A folder of JSONL or JSON files that together are one set of records."""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.formats.index import Index, index_json
from train.formats.record import DataError, Rows

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
# As on the Hugging Face Hub: a word in the name of a file or of its folder says which split it belongs to.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json"}


@dataclass(frozen=True, eq=False)
class Shards(Rows):
    """The records of several files, in the order of their names. ends: the number of records up to each end."""

    indices: tuple[Index, ...] = field(repr=False)
    ends: tuple[int, ...] = field(repr=False)
    has_splits = True

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        number = bisect.bisect_right(self.ends, index)
        return self.indices[number].read(index - (self.ends[number - 1] if number else 0))


def shards(folder: Path) -> list[Path]:
    """The files of records in a folder, at any depth; hidden ones left out."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(root, name)
            for name in names
            if name.lower().endswith(_SUFFIXES) and name not in _NOT_DATA and not name.startswith(".")
        ]
    return sorted(found)


def open_shards(folder: Path, files: Sequence[Path], split: str | None) -> Shards:
    """The files of one split; files whose name says no split are the training split. Raises DataError."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z0-9]+", file.relative_to(folder).as_posix().lower())
        named = (name for name, signs in _SPLITS.items() if any(sign in words for sign in signs))
        by_split.setdefault(next(named, "train"), []).append(file)
    wanted = next((name for name, words in _SPLITS.items() if split in words), split) or "train"
    if wanted not in by_split:
        raise DataError(
            f"'{folder.name}' has no files of the split '{wanted}'. It has: {', '.join(sorted(by_split))}.",
            str(folder),
        )
    indices = tuple(index_json(file) for file in by_split[wanted])
    return Shards(indices, tuple(itertools.accumulate(len(index) for index in indices)))
