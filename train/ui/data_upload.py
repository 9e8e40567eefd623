"""The data that a visitor chose for training: an upload or a sample, opened and checked before a run starts."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter.errors import AdapterError, BadInput
from adapter.server.archive import PICTURES, TABLES, unpack
from adapter.server.loader import import_libraries
from train.ui import texts
from train.ui.plan import SAMPLES

if TYPE_CHECKING:
    from train.formats.dataset import Record, Records
    from train.input.data_check import Report

MAX_FILE_BYTES = 40 * 2**20
MAX_RECORDS = 20_000
MIN_RECORDS = 4
UPLOADS = [".jsonl", ".json", ".tsv", ".csv", ".zip"]
MAX_LENGTH = 512  # tokens of a record, the default of TrainConfig
PREVIEW_RECORDS = 6
_NO_LIMIT = "Train on a part of it, or on the command line, where there is no limit."


@dataclass(frozen=True)
class TrainingData:
    """Opened data. path: read by the trainer; name: of the file; pictures: whether records have images."""

    path: Path
    name: str
    records: Records
    pictures: bool


@dataclass(frozen=True)
class Preview:
    """The facts about the data that are shown before training."""

    data: TrainingData
    report: Report
    first_records: tuple[Record, ...]
    template: str

    @property
    def usable(self) -> int:
        """The number of records that can be trained on."""
        report = self.report
        unusable = report.broken.count + report.answerless
        if self.data.pictures:
            unusable += report.missing.count + report.unreadable.count
        return max(report.records - unusable, 0)


def open_data(file: Path, folder: Path) -> TrainingData:
    """Opens a bundled sample where it is. Of an upload a copy, unpacked if it is a zip, in the empty `folder`.

    Raises BadInput or DataError; broken records are reported by `make_preview`.
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
    if len(tables) == 1:
        return tables[0]
    if tables:
        names = ", ".join(path.name for path in tables[:4])
        raise BadInput(
            f"The zip holds several lists ({names}), and which one to learn from is not clear. Keep one."
        )
    raise BadInput(
        "The zip holds no captions. Put NAME.txt beside each NAME.jpg, or a captions.tsv or metadata.jsonl in it."
    )


def _open(path: Path, name: str, folder: Path, single_file: bool) -> TrainingData:
    import_libraries()
    from train.formats.dataset import open_records

    records = open_records(path)
    if len(records) > MAX_RECORDS:
        raise BadInput(f"'{name}' has {len(records):,} records; {MAX_RECORDS:,} are the limit here. {_NO_LIMIT}")
    pictures = _count_images(records, folder)
    if pictures and single_file:
        raise BadInput(
            f"'{name}' names pictures that did not come with it. Put it and the pictures into one zip "
            f"({', '.join(PICTURES[:3])} and more) and send that."
        )
    return TrainingData(path, name, records, pictures > 0)


def _count_images(records: Records, folder: Path) -> int:
    """Counts the records with an image. Raises BadInput if one is outside of `folder`: an upload must not make the
    server read its other files.
    """
    root, count = folder.resolve(), 0
    for i in range(len(records)):
        try:
            record = records[i]
        except AdapterError:
            continue  # the preview reports it
        if record.image is None:
            continue
        count += 1
        try:
            # A picture within the data is within what was sent.
            inside = not isinstance(record.image, Path) or record.image.resolve().is_relative_to(root)
        except (OSError, ValueError, RuntimeError):  # a null character, a loop
            inside = False
        if not inside:
            raise BadInput(
                f"{record.where}: '{ascii(record.image.name[:60])[1:-1]}' is a picture outside of what was sent. "
                "Name pictures as they lie in the zip."
            )
    return count


def make_preview(data: TrainingData, base: str) -> Preview:
    """Reads all records once, as the trainer will. Raises BadInput if too few can be trained on."""
    from train.input.data_check import make_report
    from train.input.rows import Tokeniser

    tokenizer, template = _tokenizer(base)
    report = make_report(data.records, Tokeniser(tokenizer, template, MAX_LENGTH), MAX_LENGTH, data.pictures)
    readable: list[Record] = []
    for i in range(min(len(data.records), 4 * PREVIEW_RECORDS)):
        with contextlib.suppress(AdapterError):
            readable.append(data.records[i])
    preview = Preview(data, report, tuple(readable[:PREVIEW_RECORDS]), template)
    if preview.usable < MIN_RECORDS:
        faults = [*report.broken.first, *report.missing.first, *report.unreadable.first]
        raise BadInput(texts.too_few(data.name, preview.usable, MIN_RECORDS, report, faults))
    return preview


@lru_cache(maxsize=2)
def _tokenizer(base: str) -> tuple[Any, str]:
    """The base's tokenizer and the template to train with. Raises LoadError."""
    from adapter.base.llama import load_tokenizer
    from adapter.base.template import default_template

    tokenizer = load_tokenizer(base)
    return tokenizer, default_template(tokenizer)
