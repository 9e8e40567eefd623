"""Training data in any known format: recognises the format and gives random access to the records."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.formats import captions, hf_datasets, json_records, scienceqa, table
from train.formats.index import index_json
from train.formats.record import DataError, Record, Rows
from train.formats.shards import open_shards, shards

__all__ = ["DataError", "Record", "Records", "open_records"]

# Each format and the shape of its records, for error messages.
FORMATS = {
    "alpaca": "objects with 'instruction' and 'output', and perhaps 'input' and 'image'",
    "chat": "objects with 'messages': [{'role', 'content'}, ...]",
    "llava": "objects with 'conversations': [{'from', 'value'}, ...], and perhaps 'image'",
    "pairs": "objects with 'question' and 'answer', 'prompt' and 'completion', or 'input' and 'output'",
    "captions": "objects or rows with 'image' and 'caption', COCO's captions_*.json, or a folder of pictures with "
    "NAME.txt, captions.tsv or captions.json",
    "scienceqa": "a folder with problems.json and pid_splits.json",
}
# Which of them are a property of one object, in JSON, in a row of a table or of a data set; the first that fits.
_OF_OBJECTS = (*json_records.FIELDS, "captions")
_KNOWN = "Known formats: " + "; ".join(f"{name} ({shape})" for name, shape in FORMATS.items()) + "."


@dataclass(frozen=True, eq=False)
class Records(Sequence[Record]):
    """The records of one file or folder. Each is read on access, which raises DataError if it is broken.

    images: the folder that image paths are relative to. Holds offsets and names; many threads may read.
    """

    path: Path
    images: Path
    format: str
    rows: Rows
    parse: Callable[[Any, str, int], Record]  # (value, where, index)

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name

    @property
    def uncaptioned(self) -> tuple[str, ...]:
        """Images in the folder that have no caption and so are no record. Walks the folder."""
        return captions.uncaptioned(self.path) if isinstance(self.rows, captions.TextFiles) else ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        return self.parse(*self.rows.read(index), index)


def open_records(
    path: Path | str,
    format: str = "auto",
    images: Path | str | None = None,
    split: str | None = None,
    config: str | None = None,
) -> Records:
    """Opens a file or folder of records, or a data set of the Hugging Face Hub.

    path: a file, a folder, or the id of a data set on the Hub, as `user/name` or `hf:user/name`.
    format: one of FORMATS, or "auto": recognised by the path and the first record.
    images: the folder that image paths are relative to; by default the file's own (ScienceQA has its own layout).
    split: of ScienceQA, of shards, or of a data set; by default train. Other formats have none.
    config: the configuration of a data set that has several.
    Raises DataError if there are no records or the format is unknown; not for broken records or missing images.
    """
    folder = None if images is None else Path(images)
    if folder and not os.path.isdir(folder):
        raise DataError(f"There is no folder of images '{folder.name}'. Check the path.", str(folder))
    if format not in ("auto", *FORMATS):
        raise DataError(f"'{format}' is no format. {_KNOWN}")
    if (identifier := hf_datasets.hub_id(str(path))) is not None:
        found = hf_datasets.open_rows(str(path), split, config)
        return _of_rows(Path(identifier), found, format, folder or Path())
    path = Path(path)
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder '{path.name}'. Check the path.", str(path))
    if format in ("auto", "scienceqa") and (path.name == "problems.json" or scienceqa.is_scienceqa(path)):
        home = path if path.is_dir() else path.parent
        problems = scienceqa.problems(home, split or "train", folder)
        return Records(path, folder or home, "scienceqa", scienceqa.ProblemRows(problems), scienceqa.parse)
    if format == "scienceqa":
        raise DataError(f"'{path.name}' holds no problems.json. {_KNOWN}", str(path))
    if split is not None and not path.is_dir():
        raise DataError(
            f"'{path.name}' has no splits, so there is no '{split}'. Name the file that holds it.", str(path)
        )
    rows = _folder_rows(path, split, config) if path.is_dir() else _file_rows(path)
    return _of_rows(path, rows, format, folder or (path if path.is_dir() else path.parent))


def _of_rows(path: Path, rows: Rows, format: str, images: Path) -> Records:
    # What has the fields of all records: the columns, or the first record.
    first, where = (dict.fromkeys(rows.columns), path.name) if rows.columns else rows.read(0)
    name = next((n for n in _OF_OBJECTS if _fits(n, first)), "") if format == "auto" else format
    if not name or not _fits(name, first):
        problem = f"this is not of format '{name}'" if name else "the format cannot be told"
        raise DataError(f"{where}: {problem}; the record has {_keys(first)}. {_KNOWN}")
    if name != "captions":
        return Records(path, images, name, rows, lambda v, at, _: json_records.parse(name, v, at, images))
    columns = captions.caption_columns(first)
    if columns and isinstance(rows, hf_datasets.DatasetRows):
        rows = hf_datasets.expand(rows, columns[1])
    return Records(path, images, name, rows, lambda v, at, number: captions.parse(v, at, number, images))


def _file_rows(path: Path) -> Rows:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in table.SUFFIXES:
        return table.open_table(path, _is_header, ("image", "caption"), _KNOWN)
    if hf_datasets.is_hf_dataset(path):
        return hf_datasets.open_rows(str(path), None, None)
    return (path.suffix.lower() == ".json" and captions.open_json(path)) or index_json(path)


def _folder_rows(path: Path, split: str | None, config: str | None) -> Rows:
    if (listed := captions.caption_file(path)) is not None:
        return _file_rows(listed)
    if captions.has_captions(path):
        return captions.open_folder(path)
    if hf_datasets.is_hf_dataset(path):
        return hf_datasets.open_rows(str(path), split, config)
    if files := shards(path):
        return open_shards(path, files, split)
    raise DataError(
        f"'{path.name}' is a folder that holds neither problems nor captions nor records. {_KNOWN}", str(path)
    )


def _fits(format: str, value: Mapping[str, Any]) -> bool:
    if format == "captions":
        return captions.caption_columns(value) is not None
    return format in json_records.FIELDS and json_records.fits(format, value)


def _is_header(names: Mapping[str, Any]) -> bool:
    return any(_fits(format, names) for format in _OF_OBJECTS)


def _keys(value: Mapping[str, Any]) -> str:
    names = [repr(key) for key in value]
    return ("the fields " + ", ".join(names[:8]) + ", ..." * (len(names) > 8)) if names else "no fields"
