"""Training data as people have it, one record at a time: finds out the format and gives random access. Knows
nothing of tokens or tensors, and opens no pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

from train.formats import FORMATS, LISTED, alpaca, captions, chat, llava, scienceqa
from train.formats.index import index_json
from train.formats.record import DataError, Record, Rows

__all__ = ["DataError", "Record", "Records", "open_records"]

_OF_JSON = {"alpaca": alpaca, "chat": chat, "llava": llava}


@dataclass(frozen=True, eq=False)
class Records(Sequence[Record]):
    """The records of one file or folder, each read and checked when asked for: DataError if it is broken.

    Holds offsets and names, not records. Can be pickled, and used from any number of threads.
    """

    path: Path
    format: str
    rows: Rows
    parse: Callable[[Any, str, int], Record]  # (value, where, index)

    @property
    def uncaptioned(self) -> tuple[str, ...]:
        """Pictures that lie among the others and are no record, for want of a caption. Walks the folder."""
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
    """The records of a file or folder.

    format: one of train.formats.FORMATS, or "auto": told from the path and the first record.
    images: the folder that pictures are named from; without it the file's own (ScienceQA has its own layout).
    split: of ScienceQA; the other formats have none.
    Raises DataError if there is nothing to read or the format is not known; not for what is wrong with single
    records, nor for missing pictures.
    """
    path = Path(path)
    folder = None if images is None else Path(images)
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder '{path}'. Check the path.")
    if folder and not os.path.isdir(folder):
        raise DataError(f"There is no folder of images '{folder}'. Check the path.")
    if format not in ("auto", *FORMATS):
        raise DataError(f"'{format}' is no format. {LISTED}")
    name = _of_path(path) if format == "auto" else format
    if name == "scienceqa":
        found = scienceqa.problems(path if path.is_dir() else path.parent, split, folder)
        return Records(path, name, scienceqa.ProblemRows(found), _parse_problem)
    if split != "train":
        raise DataError(f"'{path}' has no splits, so there is no '{split}'. Name the file that holds it.")
    if folder is None:
        folder = path if path.is_dir() else path.parent
    if name == "captions":
        return Records(path, name, captions.open_rows(path), partial(_parse_caption, images=folder))
    if path.is_dir():
        raise DataError(f"'{path}' is a folder; format '{name}' is a file. Name the file in it.")
    index = index_json(path)
    first, where = index.read(0)
    name = name or next((n for n, module in _OF_JSON.items() if module.fits(first)), "")
    if not name or not _OF_JSON[name].fits(first):
        fault = f"this is not of format '{name}'" if name else "the format cannot be told"
        raise DataError(f"{where}: {fault}; the record has {_keys(first)}. {LISTED}")
    return Records(path, name, index, partial(_parse_json, name=name, images=folder))


def _of_path(path: Path) -> str:
    """The format if the path alone tells it, else ""."""
    if path.is_dir():
        if scienceqa.is_scienceqa(path):
            return "scienceqa"
        if captions.has_captions(path):
            return "captions"
        raise DataError(f"'{path}' is a folder that holds neither problems nor captions. {LISTED}")
    if path.suffix.lower() in (".tsv", ".csv") or path.name == "captions.json":
        return "captions"
    return "scienceqa" if path.name == "problems.json" else ""


def _keys(value: dict[str, Any]) -> str:
    names = [repr(key) for key in value]
    return ("the fields " + ", ".join(names[:8]) + ", ..." * (len(names) > 8)) if names else "no fields"


# Named functions, so that Records can be pickled.
def _parse_json(value: dict[str, Any], where: str, index: int, *, name: str, images: Path) -> Record:
    return _OF_JSON[name].parse(value, where, images)


def _parse_caption(value: tuple[str, str], where: str, index: int, *, images: Path) -> Record:
    return captions.parse(value, where, index, images)


def _parse_problem(value: scienceqa.Problem, where: str, index: int) -> Record:
    return scienceqa.parse(value, where)
