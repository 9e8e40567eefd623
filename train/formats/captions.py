"""Images with captions: a table of two columns, or a folder with captions beside the images or in a list."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adapter.base.template import Message
from train.formats.index import Index, decoded, index_lines, opened, read_json
from train.formats.record import DataError, Record, Rows, fault, image_path, text_of

# The user turn of an image. Several, so that the adapter learns from the image and not from the wording.
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
_CAPTION_FILES = ("captions.tsv", "captions.json")


def has_captions(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _CAPTION_FILES) or next(_captioned(folder), None) is not None


def uncaptioned(path: Path) -> tuple[str, ...]:
    """The images of a folder without a caption beside them; none where a caption file lists the images."""
    if any((path / name).is_file() for name in _CAPTION_FILES):
        return ()
    return tuple(sorted(image for image, _, exists in _walk(path) if not exists))


def open_rows(path: Path) -> Rows:
    """The (image, caption) pairs of a .tsv, .csv or captions.json, or of a folder. Raises DataError."""
    if not path.is_dir():
        return _open_json(path) if path.suffix.lower() == ".json" else _open_table(path)
    for name in _CAPTION_FILES:
        if (path / name).is_file():
            return open_rows(path / name)
    pairs = tuple(sorted(_captioned(path)))
    if not pairs:
        raise DataError(
            f"'{path.name}' holds no captions. Put NAME.txt beside each NAME.jpg, or a "
            f"{' or '.join(_CAPTION_FILES)} in it.",
            str(path),
        )
    return _TextFiles(path, pairs)


def parse(pair: tuple[str, str], where: str, index: int, images: Path) -> Record:
    """The record of a pair; its number in the file chooses the user's request. Raises DataError."""
    image = image_path(pair[0], "image", where, images)
    caption = text_of(pair[1], "caption", where, blank=False).strip()
    return Record((Message("user", REQUESTS[index % len(REQUESTS)]), Message("assistant", caption)), image, where)


@dataclass(frozen=True, eq=False)
class _Table:
    """A .tsv or .csv file. image, caption: the columns; first: the first line with data."""

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
class _JsonCaptions:
    """captions.json. It is one object and is held in memory: two short strings per image."""

    path: Path
    pairs: tuple[tuple[str, str], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[tuple[str, str], str]:
        return self.pairs[index], f"{self.path.name}, entry '{self.pairs[index][0]}'"


@dataclass(frozen=True)
class _TextFiles:
    """NAME.txt beside NAME.jpg. Names are held in memory, captions are read on access."""

    folder: Path
    pairs: tuple[tuple[str, str], ...] = field(repr=False)  # (image, text), relative to the folder

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[tuple[str, str], str]:
        image, text = self.pairs[index]
        with opened(self.folder / text) as file:
            line = file.readline()
        caption = decoded(self.folder / text, line, 0, 1).removeprefix("\ufeff")
        return (image, caption), f"{text}, line 1"


def _open_json(path: Path) -> _JsonCaptions:
    pairs = tuple(read_json(path).items())
    if not pairs:
        raise DataError(f"{path.name} is an empty object. Check that it is the right file.")
    return _JsonCaptions(path, pairs)


def _open_table(path: Path) -> _Table:
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
        # Tabs need no quotes: a quote is part of a caption, unless a CSV writer quoted the whole cell.
        return [_unquoted(cell) for cell in text.split("\t")]
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise fault(
            where, "caption", "cannot be read as CSV", "Keep it on one line, its quotes doubled."
        ) from error


def _unquoted(cell: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return quoted[1].replace('""', '"') if quoted else cell


def _captioned(folder: Path) -> Iterator[tuple[str, str]]:
    """(image, text file) of every image with a NAME.txt beside it."""
    return ((image, text) for image, text, exists in _walk(folder) if exists)


def _walk(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """(image, its text file, whether that exists) of every image at any depth, lazily."""
    for root, _, names in os.walk(folder):
        present = set(names)
        relative = Path(root).relative_to(folder)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SUFFIXES:
                text = f"{stem}.txt"
                yield (relative / name).as_posix(), (relative / text).as_posix(), text in present
