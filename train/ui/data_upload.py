"""The data that a visitor chose for training: an upload or a sample, opened and checked before a run starts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapter.errors import AdapterError, BadInput
from adapter.server.archive import PICTURES, TABLES, unpack
from adapter.server.generation import import_libraries
from train.ui.plan import SAMPLES

if TYPE_CHECKING:
    from train.formats.dataset import Record, Records

MAX_FILE_BYTES = 40 * 2**20
MAX_RECORDS = 20_000
UPLOADS = [".jsonl", ".json", ".tsv", ".csv", ".zip"]
_NO_LIMIT = "Train on a part of it, or on the command line, where there is no limit."


@dataclass(frozen=True)
class TrainingData:
    """Opened data. path: read by the trainer; name: of the file; pictures: whether records have images."""

    path: Path
    name: str
    records: Records
    pictures: bool


def open_data(file: Path, folder: Path) -> TrainingData:
    """Opens a bundled sample where it is. Of an upload a copy, unpacked if it is a zip, in the empty `folder`.

    Raises BadInput or DataError; broken records are reported by the preview.
    """
    if file.is_relative_to(SAMPLES):
        return _open(file, file.name, file if file.is_dir() else file.parent, single_file=False)
    suffix = file.suffix.lower()
    if suffix not in UPLOADS:
        raise BadInput(f"'{file.name}' is of no known kind. Send one of {', '.join(UPLOADS)}.")
    if not file.is_file():
        raise BadInput("The uploaded file is no longer on the server. Send it again.")
    if (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise BadInput(
            f"'{file.name}' has {size / 2**20:.0f} MB; {MAX_FILE_BYTES // 2**20} MB are the limit. {_NO_LIMIT}"
        )
    if suffix == ".zip":
        unpack(file, folder)
        path = _data_in_zip(folder)
    else:
        path = folder / file.name
        shutil.copyfile(file, path)
    return _open(path, file.name, folder, single_file=suffix != ".zip")


def _data_in_zip(folder: Path) -> Path:
    """The data in an unpacked zip: a folder of images with captions, or the only table of records."""
    import_libraries()
    from train.formats import scienceqa, sources

    entries = sorted(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir():  # a zip of a folder holds that folder
        return _data_in_zip(entries[0])
    if scienceqa.is_scienceqa(folder) or sources.caption_file(folder) or sources.captioned(folder)[0]:
        return folder
    tables = [path for path in entries if path.suffix.lower() in TABLES]
    if len(tables) != 1:
        raise BadInput(
            "The zip holds no captions, and no single list of records. Put NAME.txt beside each NAME.jpg, or a "
            "captions.tsv or metadata.jsonl in it."
        )
    return tables[0]


def _open(path: Path, name: str, folder: Path, single_file: bool) -> TrainingData:
    import_libraries()
    from train.formats.dataset import open_records

    records = open_records(path)
    if len(records) > MAX_RECORDS:
        raise BadInput(f"'{name}' has {len(records):,} records; {MAX_RECORDS:,} are the limit here. {_NO_LIMIT}")
    pictures = sum(_is_pictured(record, folder.resolve()) for record in readable(records)) > 0  # each is checked
    if pictures and single_file:
        raise BadInput(
            f"'{name}' names pictures that did not come with it. Put it and the pictures into one zip "
            f"({', '.join(PICTURES[:3])} and more) and send that."
        )
    return TrainingData(path, name, records, pictures)


def readable(records: Records) -> Iterator[Record]:
    """The records without those that are broken."""
    for i in range(len(records)):
        with contextlib.suppress(AdapterError):
            yield records[i]


def _is_pictured(record: Record, root: Path) -> bool:
    """Whether a record has a picture. Raises BadInput if that is outside of `root`: an upload must not make the
    server read its other files.
    """
    if not isinstance(record.image, Path):  # a picture within the data is within what was sent
        return record.image is not None
    try:
        inside = record.image.resolve().is_relative_to(root)
    except (OSError, ValueError, RuntimeError):  # a null character, a loop
        inside = False
    if not inside:
        raise BadInput(
            f"{record.where}: '{ascii(record.image.name[:60])[1:-1]}' is a picture outside of what was sent. "
            "Name pictures as they lie in the zip."
        )
    return True
