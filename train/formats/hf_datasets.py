"""Data sets that the library `datasets` reads: Parquet and Arrow files, folders of them, and ids on the Hub.

Runs no code of a data set.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapter.errors import first_line
from train.formats.parsers import caption_columns, format_of
from train.formats.record import DataError, EmbeddedPicture

_PREFIX = "hf:"
_SUFFIXES = (".parquet", ".arrow")
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # what Dataset and DatasetDict write to disk
_FILES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".yaml", ".zip", ".gz", *_SUFFIXES)
_TOGETHER = 64  # rows that are in memory, with their pictures


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


def of_dataset(dataset: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each row; of a picture with a list of captions, of each caption. name: for messages."""
    batches = dataset.iter(_TOGETHER)
    for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
        value = {column: _without_bytes(cell, (column, number - 1)) for column, cell in row.items()}
        where, columns = f"{name}, row {number}", caption_columns(value)
        captions = value[columns[1]] if columns and format_of(value) == "captions" else None
        if columns is None or not isinstance(captions, list):
            yield where, value
            continue
        for i, caption in enumerate(captions, 1):
            yield f"{where}, {columns[1]} {i}", {**value, columns[1]: caption}


def _without_bytes(cell: Any, place: tuple[Any, ...]) -> Any:
    """A cell whose files (bytes, or `datasets.Image`: bytes and a path) are pictures, or the paths of some."""
    if isinstance(cell, list) and len(place) == 2:
        return [_without_bytes(item, (*place, number)) for number, item in enumerate(cell)]
    of_image = isinstance(cell, dict) and "bytes" in cell
    data, path = (cell["bytes"], cell.get("path")) if of_image else (cell, None)
    if not of_image and not isinstance(cell, bytes):
        return cell
    number = f"[{place[2]}]" if len(place) > 2 else ""
    return EmbeddedPicture(place, Path(path).name if path else f"{place[0]}{number}") if data else path


def open_dataset(path: str, split: str | None, config: str | None) -> Any:
    """A datasets.Dataset as tables of Arrow: it decodes no pictures. split: by default train. Raises DataError."""
    identifier = hub_id(path)
    name = identifier or Path(path).name
    try:
        import datasets
    except ImportError as error:
        sentence = f"Reading '{name}' takes the package datasets: pip install 'datasets>=4'."
        raise DataError(sentence, str(error)) from error
    try:
        dataset = _load(datasets, path, identifier, split, config)
    except Exception as error:  # of pyarrow, huggingface_hub and the operating system, besides its own
        raise _explained(error, name, identifier is not None, split or "train") from error
    return dataset.with_format("arrow")


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
    text, detail = str(error), f"{type(error).__name__}: {first_line(error)}"
    listed = re.search(r"\[('[\w.-]+'(?:, '[\w.-]+')*)\]", text)
    choices = f"Choose one of {listed[1].replace(chr(39), '')}" if listed else "Choose one of its own"
    is_value = isinstance(error, ValueError)
    if on_hub and isinstance(error, ConnectionError):
        sentence = (
            f"The Hugging Face Hub cannot be reached for the data set '{name}', and it is not on this machine. "
            "Try again, without HF_HUB_OFFLINE=1."
        )
    elif isinstance(error, KeyError) or (is_value and text.startswith("Unknown split")):
        sentence = f"The data set '{name}' has no split '{split}'. {choices} as data.split."
    elif is_value and text.startswith(("Config name is missing", "BuilderConfig")):
        sentence = f"The data set '{name}' has several configurations. {choices} as data.config."
    elif on_hub and isinstance(error, FileNotFoundError):
        sentence = (
            f"There is no '{name}' here, and no data set of that id on the Hugging Face Hub that may be read. "
            "Check it, or log in if the data set is not public."
        )
    else:
        sentence = f"'{name}' cannot be read as a data set. Check that its files are whole and alike."
    return DataError(sentence, detail)
