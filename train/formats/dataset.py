"""Training data in any known format: recognises the format and gives random access to the records.

Knows nothing of tokens or tensors, and opens no images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

from train.formats import captions, json_records, scienceqa
from train.formats.index import index_json
from train.formats.record import DataError, Record, Rows

__all__ = ["DataError", "Record", "Records", "open_records"]

# Each format and the shape of its records, for error messages.
FORMATS = {
    "alpaca": "objects with 'instruction' and 'output', and perhaps 'input' and 'image'",
    "chat": "objects with 'messages': [{'role', 'content'}, ...]",
    "llava": "objects with 'conversations': [{'from', 'value'}, ...], and perhaps 'image'",
    "captions": "a .tsv or .csv of image and caption, or a folder of pictures with NAME.txt, captions.tsv or "
    "captions.json",
    "scienceqa": "a folder with problems.json and pid_splits.json",
}
_KNOWN = "Known formats: " + "; ".join(f"{name} ({shape})" for name, shape in FORMATS.items()) + "."


@dataclass(frozen=True, eq=False)
class Records(Sequence[Record]):
    """The records of one file or folder. Each is read on access, which raises DataError if it is broken.

    images: the folder that image paths are relative to. Holds offsets and names, not records. Can be pickled, and
    used from any number of threads.
    """

    path: Path
    images: Path
    format: str
    rows: Rows
    parse: Callable[[Any, str, int], Record]  # (value, where, index)

    @property
    def uncaptioned(self) -> tuple[str, ...]:
        """Images in the folder that have no caption and so are no record. Walks the folder."""
        return captions.uncaptioned(self.path) if self.format == "captions" else ()

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        return self.parse(*self.rows.read(index), index)


def open_records(
    path: Path | str, format: str = "auto", images: Path | str | None = None, split: str = "train"
) -> Records:
    """Opens a file or folder of records.

    format: one of FORMATS, or "auto": recognised by the path and the first record.
    images: the folder that image paths are relative to; by default the file's own (ScienceQA has its own layout).
    split: of ScienceQA; other formats have none.
    Raises DataError if there are no records or the format is unknown; not for broken records or missing images.
    """
    path = Path(path)
    folder = None if images is None else Path(images)
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder '{path.name}'. Check the path.", str(path))
    if folder and not os.path.isdir(folder):
        raise DataError(f"There is no folder of images '{folder.name}'. Check the path.", str(folder))
    if format not in ("auto", *FORMATS):
        raise DataError(f"'{format}' is no format. {_KNOWN}")
    name = _format_of(path) if format == "auto" else format
    if name == "scienceqa":
        problems = scienceqa.problems(path if path.is_dir() else path.parent, split, folder)
        return Records(path, folder or path, name, scienceqa.ProblemRows(problems), _parse_problem)
    if split != "train":
        raise DataError(
            f"'{path.name}' has no splits, so there is no '{split}'. Name the file that holds it.", str(path)
        )
    if folder is None:
        folder = path if path.is_dir() else path.parent
    if name == "captions":
        return Records(path, folder, name, captions.open_rows(path), partial(_parse_caption, images=folder))
    if path.is_dir():
        raise DataError(f"'{path.name}' is a folder; format '{name}' is a file. Name the file in it.", str(path))
    index = index_json(path)
    first, where = index.read(0)
    name = name or next((n for n in json_records.FIELDS if json_records.fits(n, first)), "")
    if not name or not json_records.fits(name, first):
        problem = f"this is not of format '{name}'" if name else "the format cannot be told"
        raise DataError(f"{where}: {problem}; the record has {_keys(first)}. {_KNOWN}")
    return Records(path, folder, name, index, partial(_parse_json, name=name, images=folder))


def _format_of(path: Path) -> str:
    """The format if the path alone determines it, else ""."""
    if path.is_dir():
        if scienceqa.is_scienceqa(path):
            return "scienceqa"
        if captions.has_captions(path):
            return "captions"
        raise DataError(f"'{path.name}' is a folder that holds neither problems nor captions. {_KNOWN}", str(path))
    if path.suffix.lower() in (".tsv", ".csv") or path.name == "captions.json":
        return "captions"
    return "scienceqa" if path.name == "problems.json" else ""


def _keys(value: dict[str, Any]) -> str:
    names = [repr(key) for key in value]
    return ("the fields " + ", ".join(names[:8]) + ", ..." * (len(names) > 8)) if names else "no fields"


# Functions at module level, so that Records can be pickled.
def _parse_json(value: dict[str, Any], where: str, index: int, *, name: str, images: Path) -> Record:
    return json_records.parse(name, value, where, images)


def _parse_caption(value: tuple[str, str], where: str, index: int, *, images: Path) -> Record:
    return captions.parse(value, where, index, images)


def _parse_problem(value: scienceqa.Problem, where: str, index: int) -> Record:
    return scienceqa.parse(value, where)
