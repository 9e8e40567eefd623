"""What a visitor wants to train on: an uploaded file, a zip or a sample, checked before anything is trained.

Knows records and their limits, and the report that `python -m train --check` makes; knows no Gradio.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter.errors import AdapterError, BadInput
from adapter.server.archive import PICTURES, TABLES, unpack
from adapter.server.libraries import import_libraries
from adapter.ui.texts import train as texts

if TYPE_CHECKING:
    from train.data_report import Report
    from train.formats.records import Record, Records

MAX_FILE_BYTES = 40 * 2**20
MAX_RECORDS = 20_000
FEWEST = 4
UPLOADS = [".jsonl", ".json", ".tsv", ".csv", ".zip"]
MAX_LENGTH = 512  # tokens of a record, train.config's own
SHOWN = 6  # records of a preview


@dataclass(frozen=True)
class Data:
    """Data that can be trained on. path: what the trainer is to read; shown: what its owner calls it.

    left_out: names in a zip that are neither pictures nor texts.
    """

    path: Path
    shown: str
    records: Records
    pictures: bool
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """What a visitor sees of the data before training."""

    shown: str
    format: str
    pictures: bool
    report: Report
    first: tuple[Record, ...]
    left_out: tuple[str, ...]
    template: str

    @property
    def tokens(self) -> int:
        """Of an ordinary record, after the cut."""
        return min(self.report.median, self.report.max_length)

    @property
    def usable(self) -> int:
        """Records that can be learnt from."""
        report = self.report
        lost = report.broken.count + report.answerless
        if self.pictures:
            lost += report.missing.count + report.unreadable.count
        return max(report.records - lost, 0)


def take_upload(file: Path, into: Path) -> Data:
    """Copy an upload into the folder `into`, which is empty, and open it there.

    Raises BadInput or DataError with a sentence; what is wrong with single records is for `preview`.
    """
    suffix = file.suffix.lower()
    if suffix not in UPLOADS:
        raise BadInput(f"'{file.name}' is of no known kind. Send one of {', '.join(UPLOADS)}.")
    if not file.is_file():
        raise BadInput("The uploaded file is no longer on the server. Send it again.")
    if (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise BadInput(
            f"'{file.name}' has {size / 2**20:.0f} MB; {MAX_FILE_BYTES // 2**20} MB are the limit. "
            "Train on a part of it, or on the command line, where there is no limit."
        )
    left_out: list[str] = []
    if suffix == ".zip":
        left_out = unpack(file, into)
        path = _inside(into)
    else:
        path = into / file.name
        shutil.copyfile(file, path)
    return _open(path, file.name, into, tuple(left_out), alone=suffix != ".zip")


def take_sample(path: Path) -> Data:
    """Open a file or folder of the program's own, where it is."""
    folder = path if path.is_dir() else path.parent
    return _open(path, path.name, folder, (), alone=False)


def _inside(folder: Path) -> Path:
    """What to train on in an unpacked zip: the folder that holds it, or a list of which it holds one."""
    import_libraries()
    from train.formats import captions, scienceqa

    there = sorted(folder.iterdir())
    if len(there) == 1 and there[0].is_dir():  # zips of a folder hold that folder
        return _inside(there[0])
    if scienceqa.is_scienceqa(folder) or captions.has_captions(folder):
        return folder
    tables = [path for path in there if path.suffix.lower() in TABLES]
    if len(tables) == 1:
        return tables[0]
    if tables:
        names = ", ".join(path.name for path in tables[:4])
        raise BadInput(
            f"The zip holds several lists ({names}), and which one to learn from is not clear. Keep one."
        )
    raise BadInput(
        "The zip holds no captions. Put NAME.txt beside each NAME.jpg, or a captions.tsv or captions.json in it."
    )


def _open(path: Path, shown: str, folder: Path, left_out: tuple[str, ...], alone: bool) -> Data:
    import_libraries()
    from train.formats.records import open_records

    records = open_records(path)
    if len(records) > MAX_RECORDS:
        raise BadInput(
            f"'{shown}' has {len(records):,} records; {MAX_RECORDS:,} are the limit here. "
            "Train on a part of it, or on the command line, where there is no limit."
        )
    named = _pictures_named(records, folder)
    if named and alone:
        raise BadInput(
            f"'{shown}' names pictures that did not come with it. Put it and the pictures into one zip "
            f"({', '.join(PICTURES[:3])} and more) and send that."
        )
    return Data(path, shown, records, named > 0, left_out)


def _pictures_named(records: Records, folder: Path) -> int:
    """How many records have a picture. Raises BadInput if one lies outside `folder`: no file of this machine that
    its owner did not send may be looked at.
    """
    root, count = folder.resolve(), 0
    for i in range(len(records)):
        try:
            record = records[i]
        except AdapterError:
            continue  # told by the preview
        if record.image is None:
            continue
        count += 1
        try:
            inside = record.image.resolve().is_relative_to(root)
        except (OSError, ValueError, RuntimeError):  # a null character, a loop
            inside = False
        if not inside:
            raise BadInput(
                f"{record.where}: '{ascii(record.image.name[:60])[1:-1]}' is a picture outside of what was sent. "
                "Name pictures as they lie in the zip."
            )
    return count


def preview(data: Data, base: str) -> Preview:
    """Read everything once, as the trainer will. Raises BadInput if too little can be learnt from."""
    from train.data import Example, Tokeniser
    from train.data_report import check

    tokenizer, template = _tokenizer(base)
    tokeniser = Tokeniser(tokenizer, template, MAX_LENGTH)

    def tokenise(record: Record) -> Any:
        return tokeniser.row(Example.of(record), cut=False)[:2]

    report = check(data.records, tokenise, MAX_LENGTH, data.pictures, data.records.uncaptioned)
    made = Preview(data.shown, data.records.format, data.pictures, report, _first(data), data.left_out, template)
    if made.usable < FEWEST:
        said = f"{made.usable} {'record' if made.usable == 1 else 'records'} that can be learnt from"
        raise BadInput(" ".join([f"'{data.shown}' has {said}; {FEWEST} are the least.", *_lacking(report)]))
    return made


def _lacking(report: Report) -> list[str]:
    """Why there are not more records that can be learnt from."""
    said = []
    if faults := [*report.broken.first, *report.missing.first, *report.unreadable.first]:
        said.append(f"The first fault: {faults[0]}")
    if long := report.answerless:
        count = f"{'All ' if 1 < long == report.records else ''}{long:,} {'is' if long == 1 else 'are'} too long"
        said.append(f"{count}: nothing of the answer lies within the first {report.max_length:,} tokens.")
    if bare := report.uncaptioned.count:
        said.append(
            f"{texts.uncaptioned(bare)}, {report.uncaptioned.first[0]} for one: put NAME.txt beside each NAME.jpg."
        )
    return said


def _first(data: Data) -> tuple[Record, ...]:
    found = []
    for i in range(min(len(data.records), 4 * SHOWN)):
        try:
            found.append(data.records[i])
        except AdapterError:
            continue
        if len(found) == SHOWN:
            break
    return tuple(found)


@lru_cache(maxsize=2)
def _tokenizer(base: str) -> tuple[Any, str]:
    """The base's tokenizer and the template that it can be taught in. Raises LoadError."""
    from adapter.base.llama import load_tokenizer

    load: Callable[[str], Any] = load_tokenizer
    tokenizer = load(base)
    return tokenizer, "chat" if getattr(tokenizer, "chat_template", None) else "alpaca"
