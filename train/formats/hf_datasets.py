"""Data sets that the library `datasets` reads: Parquet and Arrow files, folders of them, and ids on the Hub.

Runs no code of a data set.
"""

from __future__ import annotations

import bisect
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter.errors import first_line
from train.formats.record import DataError, EmbeddedPicture, Rows

_PREFIX = "hf:"
_SUFFIXES = (".parquet", ".arrow")
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # what Dataset and DatasetDict write to disk
_FILES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".yaml", ".zip", ".gz", *_SUFFIXES)


def hub_id(path: str) -> str | None:
    """The id of a data set on the Hub that a path means: `hf:user/name`, or `user/name` where nothing is there."""
    if path.startswith(_PREFIX):
        return path.removeprefix(_PREFIX)
    first, slash, _ = path.partition("/")
    looks_like_one = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) is not None and not path.lower().endswith(_FILES)
    return path if slash and looks_like_one and not os.path.exists(path) and not os.path.exists(first) else None


def is_hf_dataset(path: Path) -> bool:
    """Whether a file or folder is one that `datasets` reads. Looks into folders of a folder too."""
    if not path.is_dir():
        return path.suffix.lower() in _SUFFIXES
    return any(name.lower().endswith(_SUFFIXES) for _, _, names in os.walk(path) for name in names)


@dataclass(frozen=True, eq=False)
class DatasetRows(Rows):
    """The rows of a data set as objects. Pictures in its columns are read again when they are needed.

    name: for messages. expanded: a column of lists, each of whose elements makes a row of its own.
    """

    dataset: Any = field(repr=False)  # datasets.Dataset, as tables of Arrow: it decodes no pictures
    name: str
    expanded: str | None = None
    ends: Sequence[int] = field(default=(), repr=False)  # of the rows that each row of the data set makes
    has_splits = True

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.dataset.column_names)

    def __len__(self) -> int:
        return len(self.dataset) if self.expanded is None else int(self.ends[-1]) if len(self.ends) else 0

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        row, element = index, 0
        if self.expanded is not None:
            row = bisect.bisect_right(self.ends, index)
            element = index - int(self.ends[row - 1] if row else 0)
        where = f"{self.name}, row {row + 1}"
        value = {name: self._without_bytes(cell, name, row) for name, cell in self._row(row).items()}
        if self.expanded is not None:
            value[self.expanded] = value[self.expanded][element]
            where += f", {self.expanded} {element + 1}"
        return value, where

    def _row(self, row: int) -> dict[str, Any]:
        return self.dataset[row].to_pylist()[0]

    def _without_bytes(self, cell: Any, column: str, row: int, element: int | None = None) -> Any:
        """A cell whose files (bytes, or `datasets.Image`: bytes and a path) are pictures, or the paths of some."""
        if isinstance(cell, list) and element is None:
            return [self._without_bytes(item, column, row, number) for number, item in enumerate(cell)]
        of_image = isinstance(cell, dict) and "bytes" in cell
        data, path = (cell["bytes"], cell.get("path")) if of_image else (cell, None)
        if not of_image and not isinstance(cell, bytes):
            return cell
        if not data:
            return path

        def read_bytes() -> bytes:
            found = self._row(row)[column]
            found = found if element is None else found[element]
            return found["bytes"] if of_image else found

        number = "" if element is None else f"[{element}]"
        return EmbeddedPicture(
            read_bytes, (column, row, element), Path(path).name if path else f"{column}{number}"
        )


def open_rows(path: str, split: str | None, config: str | None) -> DatasetRows:
    """split: by default train. Raises DataError."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"Reading '{_name(path)}' takes the package datasets: pip install 'datasets>=4'.", str(error)
        ) from error
    identifier = hub_id(path)
    name = identifier or _name(path)
    try:
        dataset = _load(datasets, path, identifier, split, config)
    except Exception as error:  # of pyarrow, huggingface_hub and the operating system, besides its own
        raise _explained(error, name, identifier is not None, split or "train") from error
    if not len(dataset):
        raise _empty(name)
    return DatasetRows(dataset.with_format("arrow"), name)


def expand(rows: DatasetRows, column: str) -> DatasetRows:
    """The rows with one for each element of a column of lists; the same rows if it is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    data = rows.dataset.data.column(column)
    if not any(
        check(data.type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    ):
        return rows
    lengths = pc.fill_null(pc.list_value_length(data), 0).to_numpy()
    if not lengths.any():
        raise DataError(f"'{rows.name}' has nothing in its column '{column}'. Check that it is the right one.")
    return DatasetRows(rows.dataset, rows.name, column, lengths.cumsum())


def _load(datasets: Any, path: str, identifier: str | None, split: str | None, config: str | None) -> Any:
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    folder = Path(path)
    if identifier is not None:
        return datasets.load_dataset(identifier, config, split=split or "train")
    if (folder / _SAVED_SPLITS).is_file():
        splits = datasets.load_from_disk(path)
        if (split or "train") not in splits:
            raise KeyError(str(list(splits)))
        return splits[split or "train"]
    if folder.is_dir() and not (folder / _SAVED).is_file():
        return datasets.load_dataset(path, config, split=split or "train")
    if split is not None:
        raise KeyError(split)
    if folder.is_dir():
        return datasets.load_from_disk(path)
    if folder.suffix.lower() == ".arrow":
        return datasets.Dataset.from_file(path)
    return datasets.load_dataset("parquet", data_files=path, split="train")


def _explained(error: Exception, name: str, on_hub: bool, split: str) -> DataError:
    from datasets import config

    detail, text = f"{type(error).__name__}: {first_line(error)}", str(error)
    listed = re.search(r"\[('[\w.-]+'(?:, '[\w.-]+')*)\]", text)
    choices = f"Choose one of {listed[1].replace(chr(39), '')}" if listed else "Choose one of its own"
    if on_hub and isinstance(error, ConnectionError):
        if config.HF_HUB_OFFLINE:
            return DataError(
                f"The data set '{name}' is not on this machine, and HF_HUB_OFFLINE=1 forbids to fetch it. Unset "
                "it, or fetch the data set where there is a network.",
                detail,
            )
        return DataError(f"The Hugging Face Hub cannot be reached for the data set '{name}'. Try again.", detail)
    if isinstance(error, ValueError) and "corresponds to no data" in text:
        return _empty(name)
    if isinstance(error, KeyError) or (isinstance(error, ValueError) and text.startswith("Unknown split")):
        return DataError(f"The data set '{name}' has no split '{split}'. {choices} as data.split.", detail)
    if isinstance(error, ValueError) and text.startswith(("Config name is missing", "BuilderConfig")):
        return DataError(f"The data set '{name}' has several configurations. {choices} as data.config.", detail)
    if on_hub and isinstance(error, FileNotFoundError):
        return DataError(
            f"There is no '{name}' here, and no data set of that id on the Hugging Face Hub that may be read. "
            "Check it, or log in if the data set is not public.",
            detail,
        )
    return DataError(f"'{name}' cannot be read as a data set. Check that its files are whole and alike.", detail)


def _empty(name: str) -> DataError:
    return DataError(f"The data set '{name}' has no rows. Check that it is the right one.")


def _name(path: str) -> str:
    return Path(path).name
