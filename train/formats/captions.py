"""Pictures and what they show: a table of two columns, or a folder with captions beside or among the pictures."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adapter.base.template import Message
from train.formats.index import Index, decoded, index_lines, opened, read_json
from train.formats.record import DataError, Record, Rows, image_path, text_of, wrong

# What the user says to a picture. Several, so that the adapter answers the picture and not the wording.
REQUESTS = (
    "Describe the picture.",
    "What is in this picture?",
    "What does the picture show?",
    "Describe this image in a few words.",
    "Write a caption for this picture.",
    "What can be seen here?",
)
_IMAGE_COLUMNS = ("url", "path", "image")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_LISTS = ("captions.tsv", "captions.json")


def has_captions(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _LISTS) or next(_captioned(folder), None) is not None


def uncaptioned(path: Path) -> tuple[str, ...]:
    """The pictures of a folder that have no caption beside them; none where a list says which are meant."""
    if any((path / name).is_file() for name in _LISTS):
        return ()
    return tuple(sorted(picture for picture, _, there in _pictures(path) if not there))


def open_rows(path: Path) -> Rows:
    """(image, caption) pairs of a .tsv, .csv or captions.json, or of a folder. Raises DataError."""
    if not path.is_dir():
        return _listed(path) if path.suffix.lower() == ".json" else _table(path)
    for name in _LISTS:
        if (path / name).is_file():
            return open_rows(path / name)
    pairs = tuple(sorted(_captioned(path)))
    if not pairs:
        raise DataError(
            f"'{path}' holds no captions. Put NAME.txt beside each NAME.jpg, or a {' or '.join(_LISTS)} in it."
        )
    return _Beside(path, pairs)


def parse(pair: tuple[str, str], where: str, index: int, images: Path) -> Record:
    """The request is chosen by the record's number: the same one each time. Raises DataError."""
    image = image_path(pair[0], "image", where, images)
    caption = text_of(pair[1], "caption", where, blank=False).strip()
    return Record((Message("user", REQUESTS[index % len(REQUESTS)]), Message("assistant", caption)), image, where)


@dataclass(frozen=True, eq=False)
class _Table:
    """Lines of cells."""

    index: Index
    comma: bool
    width: int
    image: int
    caption: int
    first: int  # 1 below a header

    def __len__(self) -> int:
        return len(self.index) - self.first

    def read(self, index: int) -> tuple[tuple[str, str], str]:
        text, line = self.index.text(index + self.first)
        where = f"{self.index.path.name}, line {line}"
        cells = _cells(text, self.comma, where)
        if len(cells) != self.width:
            sign = "comma" if self.comma else "tab"
            raise DataError(
                f"{where}: {len(cells)} cells where the first line has {self.width}. "
                f"Separate image and caption by one {sign}; put a caption that holds one in quotes."
            )
        return (cells[self.image], cells[self.caption]), where


@dataclass(frozen=True)
class _Listed:
    """captions.json. It is one object and is held whole: two short strings a picture."""

    path: Path
    pairs: tuple[tuple[str, str], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[tuple[str, str], str]:
        return self.pairs[index], f"{self.path.name}, entry '{self.pairs[index][0]}'"


@dataclass(frozen=True)
class _Beside:
    """NAME.txt beside NAME.jpg. Names are held, captions are read when asked for."""

    folder: Path
    pairs: tuple[tuple[str, str], ...] = field(repr=False)  # (picture, text), below the folder

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[tuple[str, str], str]:
        image, text = self.pairs[index]
        with opened(self.folder / text) as file:
            line = file.readline()
        caption = decoded(self.folder / text, line, 0, 1).removeprefix("\ufeff")
        return (image, caption), f"{text}, line 1"


def _listed(path: Path) -> _Listed:
    pairs = tuple(read_json(path).items())
    if not pairs:
        raise DataError(f"{path.name} is an empty object. Check that it is the right file.")
    return _Listed(path, pairs)


def _table(path: Path) -> _Table:
    index = index_lines(path)
    text, line = index.text(0)
    comma = "\t" not in text
    cells = _cells(text, comma, f"{path.name}, line {line}")
    names = [cell.strip().lower() for cell in cells]
    images = [names.index(name) for name in _IMAGE_COLUMNS if name in names]
    if "caption" in names and images:
        if len(index) == 1:
            raise DataError(f"{path.name} has a header and nothing below it. Check that it is the right file.")
        return _Table(index, comma, len(names), images[0], names.index("caption"), first=1)
    if len(cells) != 2:
        raise DataError(
            f"{path.name}, line {line}: {len(cells)} columns and no header with 'caption' and one of "
            f"{', '.join(repr(name) for name in _IMAGE_COLUMNS)}. Add one, or keep two columns: image, caption."
        )
    return _Table(index, comma, 2, 0, 1, first=0)


def _cells(text: str, comma: bool, where: str) -> list[str]:
    if not comma:
        # Tabs need no quotes, so a quote is part of a caption, except where a writer of CSV quoted the whole cell.
        return [_unquoted(cell) for cell in text.split("\t")]
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise wrong(
            where, "caption", f"cannot be read as CSV ({error})", "Keep it on one line, its quotes doubled."
        ) from error


def _unquoted(cell: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return quoted[1].replace('""', '"') if quoted else cell


def _captioned(folder: Path) -> Iterator[tuple[str, str]]:
    """(picture, text) wherever a NAME.txt stands beside a picture NAME."""
    return ((picture, text) for picture, text, there in _pictures(folder) if there)


def _pictures(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """(picture, its text, whether that is there) of every picture, at any depth. Walks lazily."""
    for root, _, names in os.walk(folder):
        there = set(names)
        below = Path(root).relative_to(folder)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SUFFIXES:
                text = f"{stem}.txt"
                yield (below / name).as_posix(), (below / text).as_posix(), text in there
