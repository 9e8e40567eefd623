"""Data sets of the library `datasets`: Parquet and Arrow files, folders, ids on the Hub. None is run as code."""

import glob
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
_SAVED = ("state.json", "dataset_dict.json")  # what Dataset and DatasetDict write to disk
_TOGETHER = 64  # rows that are in memory, with their pictures


def hub_id(path: str) -> str | None:
    """The id of a data set on the Hub, if `path` is one: `hf:user/name`."""
    return path.removeprefix(_PREFIX) if path.startswith(_PREFIX) else None


def is_hf_dataset(path: Path) -> bool:
    """Whether a file or folder is one that `datasets` reads. Looks into folders of a folder too."""
    if not path.is_dir():
        return path.suffix.lower() in _SUFFIXES
    return any(name.lower().endswith(_SUFFIXES) for _, _, names in os.walk(path) for name in names)


def of_dataset(dataset: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each row; of a picture with a list of captions, of each caption. name: for messages."""
    for number, row in enumerate((row for batch in dataset.iter(_TOGETHER) for row in batch.to_pylist()), 1):
        value = {column: _without_bytes(cell, (column, number - 1)) for column, cell in row.items()}
        where, columns = f"{name}, row {number}", caption_columns(value)
        captions = value[columns[1]] if columns and format_of(value) == "captions" else None
        if columns is None or not isinstance(captions, list):
            yield where, value
            continue
        for i, caption in enumerate(captions, 1):
            yield f"{where}, {columns[1]} {i}", {**value, columns[1]: caption}


def _without_bytes(cell: Any, place: tuple[Any, ...]) -> Any:
    """The cell with its files (bytes, or `datasets.Image`) as EmbeddedPictures; without bytes, as their paths."""
    if isinstance(cell, list):
        return [_without_bytes(item, (*place, number)) for number, item in enumerate(cell)]
    of_image = isinstance(cell, dict) and "bytes" in cell
    if isinstance(cell, dict) and not of_image:
        return {key: _without_bytes(item, (*place, key)) for key, item in cell.items()}
    data, path = (cell["bytes"], cell.get("path")) if of_image else (cell, None)
    if not isinstance(data, bytes) and not of_image:
        return cell
    inner = "".join(f"[{key}]" for key in place[2:])
    return EmbeddedPicture(place, Path(path).name if path else f"{place[0]}{inner}") if data else path


def open_dataset(path: str, split: str | None, config: str | None) -> Any:
    """A datasets.Dataset as tables of Arrow: it decodes no pictures. split: by default train. Raises DataError."""
    identifier, folder, wanted = hub_id(path), Path(path), split or "train"
    name = identifier or folder.name
    try:
        import datasets
    except ImportError as error:
        sentence = f"Reading '{name}' takes the package datasets: .venv/bin/pip install 'datasets>=4.4'."
        raise DataError(sentence, str(error)) from error
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it counts uses of local files too, by a request
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        is_saved = any((folder / file).is_file() for file in _SAVED)
        if identifier is not None or (folder.is_dir() and not is_saved):
            dataset = datasets.load_dataset(identifier or path, config, split=wanted)
        elif folder.is_dir():
            found = datasets.load_from_disk(path)
            by_split = found if isinstance(found, dict) else {"train": found}
            if wanted not in by_split:
                raise KeyError(str(list(by_split)))
            dataset = by_split[wanted]
        else:
            kind = folder.suffix.lower().lstrip(".")  # Arrow's streams and its files
            dataset = datasets.load_dataset(kind, data_files=glob.escape(path), split="train")
    except Exception as error:  # of pyarrow, huggingface_hub and the operating system, besides its own
        raise _explained(error, name, identifier is not None, wanted) from error
    return dataset.with_format("arrow")


def _explained(error: Exception, name: str, on_hub: bool, split: str) -> DataError:
    text, detail = str(error), f"{type(error).__name__}: {first_line(error)}"
    listed = re.search(r"\[('[\w.-]+'(?:, '[\w.-]+')*)\]", text)
    choices = f"Choose one of {listed[1].replace(chr(39), '')}" if listed else "Choose one of its own"
    is_value = isinstance(error, ValueError)
    if on_hub and isinstance(error, ConnectionError):
        sentence = f"The Hugging Face Hub cannot be reached for '{name}'. Try again, without HF_HUB_OFFLINE=1."
    elif isinstance(error, KeyError) or (is_value and text.startswith("Unknown split")):
        sentence = f"The data set '{name}' has no split '{split}'. {choices} as data.split."
    elif is_value and text.startswith(("Config name is missing", "BuilderConfig")):
        sentence = f"The data set '{name}' has several configurations. {choices} as data.config."
    elif on_hub and isinstance(error, FileNotFoundError):
        sentence = f"There is no data set '{name}' on the Hub that may be read. Check its id, or log in."
    else:
        sentence = f"'{name}' cannot be read as a data set. Check that its files are whole, alike and not empty."
    return DataError(sentence, detail)
