"""Training data in any known format: each source is read once into an unnamed file, and records from there."""

import itertools
import os
import pickle
import tempfile
import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapter.errors import first_line
from train.formats import hf_datasets, parsers, scienceqa, sources
from train.formats.parsers import FORMATS, KNOWN
from train.formats.record import DataError, EmbeddedPicture, Record


class Records(Sequence[Record]):
    """The records of one file or folder. Each is parsed on access, by any thread, or raises DataError.

    path: of the data. images: the folder that image paths are relative to. has_splits: whether `split` may be
    another. uncaptioned: images in the folder that have no caption and so are no record.
    """

    def __init__(
        self,
        path: Path,
        images: Path,
        format: str,
        items: Iterable[sources.Item],
        has_splits: bool = False,
        uncaptioned: Sequence[str] = (),
        dataset: Any = None,
    ) -> None:
        """format: "auto" or one of FORMATS. dataset: whose cells the items' pictures are. Raises DataError."""
        self.path, self.images, self.has_splits, self.uncaptioned = path, images, has_splits, tuple(uncaptioned)
        self._dataset, self._lock, self._ends = dataset, threading.Lock(), array("q", [0])
        first: sources.Item | None = None  # the first record that fits, else that can be read, else of all
        worst = 3
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            for item in items:
                if worst and (faults := _faults(item[1], format)) < worst:
                    first, worst = item, faults
                try:
                    pickled = pickle.dumps(item)
                except RecursionError:
                    too_deep = DataError(f"{item[0]}: lists or objects in one another, too deep.")
                    pickled = pickle.dumps((item[0], too_deep))
                self._file.write(pickled)
                self._ends.append(self._file.tell())
            self._file.flush()
        except OSError as error:
            sentence = f"'{self.name}' cannot be copied to the temporary folder. Free some room, or set TMPDIR."
            raise DataError(sentence, first_line(error)) from error
        if first is None:
            raise DataError(
                f"'{self.name}' is empty: it holds no records. Check that it is the right one.", str(path)
            )
        where, value = first
        if isinstance(value, DataError):
            raise value
        self.format = (parsers.format_of(value) or "") if format == "auto" else format
        if worst:
            problem = f"this is not of format '{format}'" if self.format else "the format cannot be told"
            names = [repr(key) for key in value]
            fields = f"the fields {', '.join(names[:8])}{', ...' if names[8:] else ''}" if names else "no fields"
            raise DataError(f"{where}: {problem}; the record has {fields}. {KNOWN}")

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices
        index = range(len(self))[index]  # raises IndexError
        start, end = self._ends[index : index + 2]
        with self._lock:
            self._file.seek(start)
            data = self._file.read(end - start)
        where, value = pickle.loads(data)
        if isinstance(value, DataError):
            raise value
        if self._dataset is not None:
            value = self._with_source(value)
        return parsers.parse(self.format, value, where, self.images, index)

    def _with_source(self, cell: Any) -> Any:
        if isinstance(cell, list):
            return [self._with_source(item) for item in cell]
        if isinstance(cell, dict):
            return {key: self._with_source(item) for key, item in cell.items()}
        return replace(cell, dataset=self._dataset) if isinstance(cell, EmbeddedPicture) else cell


def _faults(value: Any, format: str) -> int:
    """0 for an object of the format, or of any if that is "auto", 1 for another one, 2 for what cannot be read."""
    if isinstance(value, DataError):
        return 2
    return int(not (parsers.format_of(value) if format == "auto" else parsers.fits(format, value)))


def open_records(
    path: Path | str,
    format: str = "auto",
    images: Path | str | None = None,
    split: str | None = None,
    config: str | None = None,
    most: int | None = None,
) -> Records:
    """Reads a file or folder of records, or a data set of the Hugging Face Hub (`hf:user/name`).

    format: one of FORMATS, or "auto". images: the folder that image paths are relative to, else the file's own.
    split: of ScienceQA, shards or a data set, by default train. config: of a data set that has several.
    most: of the records of files or pictures with captions, the first so many.
    Raises DataError without records, for an unknown format and a broken JSON array; not for a broken record.
    """
    folder = None if images is None else Path(images)
    if folder and not os.path.isdir(folder):
        raise DataError(f"There is no folder of images '{folder.name}'. Check the path.", str(folder))
    if format not in ("auto", *FORMATS):
        raise DataError(f"'{format}' is no format. {KNOWN}")
    if (identifier := hf_datasets.hub_id(str(path))) is not None:
        dataset = hf_datasets.open_dataset(str(path), split, config)
        rows = hf_datasets.of_dataset(dataset, identifier)
        return Records(Path(identifier), folder or Path(), format, rows, has_splits=True, dataset=dataset)
    path = Path(path) if Path(path).name else Path(path).resolve()  # "." has no name
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder '{path.name}'. Check the path.", str(path))
    home = path if path.is_dir() else path.parent
    if format in ("auto", "scienceqa") and (path.name == "problems.json" or (path / "problems.json").is_file()):
        pictures = folder or scienceqa.picture_folder(home)
        items = scienceqa.of_problems(scienceqa.problems(home, split or "train", pictures), pictures)
        return Records(path, pictures, "scienceqa", items, has_splits=True)
    if format == "scienceqa":
        raise DataError(f"'{path.name}' holds no problems.json. {KNOWN}", str(path))
    file = sources.caption_file(path) if path.is_dir() else path
    with_text, without = sources.captioned(path) if file is None else ([], [])
    without = without if with_text else []  # without caption files the pictures are those that records name
    has_splits = file is None and not with_text
    if split is not None and not has_splits:
        sentence = f"'{path.name}' has no splits, so there is no '{split}'. Name the file that holds it."
        raise DataError(sentence, str(path))
    if file in (None, path) and not with_text and hf_datasets.is_hf_dataset(path):
        dataset = hf_datasets.open_dataset(str(path), split, config)
        rows = hf_datasets.of_dataset(dataset, path.name)
        return Records(path, folder or home, format, rows, has_splits, without, dataset)
    if config is not None:
        raise DataError(f"'{path.name}' has no configurations, so there is no '{config}'.", str(path))
    if file is not None:
        items = sources.of_file(file)
    else:
        items = sources.of_pictures(path, with_text) if with_text else sources.of_shards(path, split)
    return Records(path, folder or home, format, itertools.islice(items, most), has_splits, without)
