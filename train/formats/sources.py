"""The raw records of files and folders, as streams: JSON, tables, captions, and folders of them.

Each record is its place for messages, and its object or the DataError that says what is wrong with it.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from adapter.errors import first_line
from train.formats.parsers import KNOWN
from train.formats.record import DataError, Shape, check, json_type

Item = tuple[str, Any]
TABLES = (".tsv", ".csv")
# The files that list the pictures of a folder, the first that is there.
CAPTION_FILES = ("captions.tsv", "captions.csv", "metadata.jsonl", "metadata.csv")
# Unreadable ones are reported too.
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".jfif", ".heic", ".avif", ".gif", ".bmp"}
_RECORDS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json"}
_NOT_DATA |= {"metrics.jsonl", "keep.jsonl"}  # of a run in that folder
# As on the Hugging Face Hub: a word in the name of a file or of its folder says which split it belongs to.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_COCO = re.compile(  # a list of images holds objects there, and names in a record
    r'\s*\{\s*"(?:info"\s*:\s*(?:[{\[]|null|"")|type"\s*:\s*"captions"|(?:licenses|images|annotations|categories)"\s*:\s*\[\s*[{\]])'
)
_CHUNK = 2**18
_LONGEST = 2**28  # of a record; a longer one is a whole file without line ends
_MEND = (
    "Mend it, or fetch the file again if it is cut off. A file of records is one array, [{...}, {...}], or one "
    "whole object a line."
)
_SAVE = "Save the file as UTF-8."
_BLANKS, _SIGN, _EMPTY = (re.compile(r"[ \t\n\r]*" + sign) for sign in ("", r"([,\]])", r"\]"))
_NAMES = {"\t": "tab", ",": "comma", ";": "semicolon"}  # of separators


def of_file(path: Path) -> Iterator[Item]:
    """The records of a file, also a compressed one. Raises DataError if it cannot be read on."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in TABLES:
        yield from _table(path)
        return
    with opened(path) as file:
        start = file.tell()
        head = _text(file.read(200))
        file.seek(start)
        if head.lstrip().startswith("["):
            yield from _elements(path.name, file)
        elif suffix == ".json" and _COCO.match(head):
            coco = check(_Coco, read_json(path), path.name)
            names = {str(image.id): image.file_name for image in coco.images}
            for number, item in enumerate(coco.annotations, 1):
                place = f"{path.name}, annotation {item.get('id', number)!r}"
                name = names.get(str(item.get("image_id")))
                if name is None:
                    yield place, DataError(f"{place}: 'images' has none of its 'image_id'. Take it out.")
                else:
                    yield place, {"image": name, "caption": item.get("caption")}
        else:
            yield from _lines(path.name, file)


def caption_file(folder: Path) -> Path | None:
    """The file in a folder that lists its pictures and captions."""
    return next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)


def captioned(folder: Path) -> tuple[list[str], list[str]]:
    """The pictures at any depth of a folder with a text of the same name beside them, and those without one."""
    found: tuple[list[str], list[str]] = [], []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        present = {name for name in names if not name.startswith(".")}
        for name in present:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _PICTURES:
                found[f"{stem}.txt" not in present].append((Path(root).relative_to(folder) / name).as_posix())
    return sorted(found[0]), sorted(found[1])


def of_pictures(folder: Path, pictures: list[str]) -> Iterator[Item]:
    """Pictures with the first line of the text beside each."""
    for name in pictures:
        text = Path(name).with_suffix(".txt")
        try:
            with opened(folder / text) as file:
                yield f"{text.as_posix()}, line 1", {"image": name, "caption": _text(file.readline())}
        except DataError as error:
            yield f"{text.as_posix()}, line 1", error


def of_shards(folder: Path, split: str | None) -> Iterator[Item]:
    """The files of a split, at any depth; those that name none are for training. Raises DataError."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.name.lower().endswith(_RECORDS))
    files = sorted(p for p in found if p.name not in _NOT_DATA and not any(n.startswith(".") for n in p.parts))
    if not files:
        sentence = f"'{folder.name}' is a folder that holds neither problems nor captions nor records. {KNOWN}"
        raise DataError(sentence, str(folder))
    if listed := next((file for file in files if file.name in CAPTION_FILES), None):
        sentence = f"'{listed}' lists pictures of its own folder: name that as data, another as data.validation."
        raise DataError(sentence, str(folder))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z0-9]+", file.as_posix().lower())
        named = (name for name, signs in _SPLITS.items() if any(sign in words for sign in signs))
        by_split.setdefault(next(named, "train"), []).append(folder / file)
    wanted = next((name for name, words in _SPLITS.items() if split in words), split) or "train"
    if wanted not in by_split:
        raise DataError(
            f"'{folder.name}' has no files of the split '{wanted}'. It has: {', '.join(sorted(by_split))}.",
            str(folder),
        )
    return itertools.chain.from_iterable(map(of_file, by_split[wanted]))


# Bytes and texts.


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked, without a byte order mark. Raises DataError, also while they are read."""
    if path.exists() and not path.is_file():  # a pipe may have no end, and is read once
        raise DataError(f"'{path.name}' is no file. Name one, or write it to one.", str(path))
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            begins = file.read(len(codecs.BOM_UTF8))
            if begins.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{path.name}: this is UTF-16. {_SAVE}")
            if begins in (b"PK\x03", b"BZh", b"\xfd7z", b"\x28\xb5\x2f"):
                raise DataError(f"{path.name} is a packed file. Unpack it, or pack it with gzip.")
            if begins != codecs.BOM_UTF8:
                file.seek(0)
            yield file  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"'{path.name}' cannot be unpacked. Fetch it again.", first_line(error)) from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise DataError(f"'{path.name}' cannot be read. Check the path.", f"{path}: {reason}") from error


def read_text(path: Path) -> str:
    """A whole text file in UTF-8. Raises DataError."""
    with opened(path) as file:
        try:
            return file.read().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name}: this is not UTF-8. {_SAVE}", first_line(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that is one object, whole. Raises DataError."""
    value = _parsed(read_text(path), path.name)
    if not isinstance(value, dict):
        raise DataError(f"{path.name} holds {json_type(value)}, not an object. Check that it is the right file.")
    return value


def _text(data: bytes) -> str:
    """Bytes that are not UTF-8 become halves of surrogate pairs, which whatever reads the text finds."""
    return data.decode(errors="surrogateescape")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, a thousand brackets
        raise _not_json(text, where, first_line(error)) from error


def _not_json(text: str, where: str, detail: str) -> DataError:
    if re.search("[\udc80-\udcff]", text):
        return DataError(f"{where}: this is not UTF-8. {_SAVE}", detail)
    return DataError(f"{where}: this is not JSON, or does not end. {_MEND}", detail)


# JSON.


def _lines(name: str, file: BinaryIO) -> Iterator[Item]:
    for number in itertools.count(1):
        line, where = file.readline(_LONGEST), f"{name}, line {number}"
        if not line:
            return
        if len(line) == _LONGEST:
            raise DataError(f"{where}: this line is longer than {_LONGEST // 2**20} MB. {_MEND}")
        if line.isspace():
            continue
        try:
            yield where, _object(_parsed(_text(line), where), where)
        except DataError as error:
            yield where, error


def _object(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return value
    return DataError(f"{where}: this is {json_type(value)}, not an object. Write each record as {{...}}.")


def _elements(name: str, file: BinaryIO) -> Iterator[Item]:
    """The elements of an array, by Python's own parser, a chunk at a time. Raises DataError where it is broken."""
    decode = json.JSONDecoder().raw_decode
    reader = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
    text = reader.read(_CHUNK)
    at = text.index("[") + 1
    end = empty.end() if (empty := _EMPTY.match(text, at)) else 0  # of the array, once it is found
    for number in itertools.count(1):
        if end:
            break
        where, detail = f"{name}, record {number}", ""
        while True:  # until the element and the sign behind it are in the text
            try:
                value, behind = decode(text, _BLANKS.match(text, at).end())  # type: ignore[union-attr]
                if sign := _SIGN.match(text, behind):
                    break
            except (ValueError, RecursionError) as error:
                detail = first_line(error)
            more = reader.read(max(_CHUNK, len(text) - at))  # doubled, so that a long record costs no square
            if not more or len(text) - at > _LONGEST:
                raise _not_json(text[at:], where, detail)
            text, at = text[at:] + more, 0
        yield where, _object(value, where)
        at, end = sign.end(), sign.end() if sign[1] == "]" else 0
    if text[end:].strip() or any(not chunk.isspace() for chunk in iter(lambda: reader.read(_CHUNK), "")):
        raise DataError(f"{name}: something follows the end of the array. Keep one array in the file.")


class _CocoImage(Shape):
    id: int | str
    file_name: Any


class _Coco(Shape):
    images: list[_CocoImage]
    annotations: list[dict[Any, Any]]


# Tables.


def _table(path: Path) -> Iterator[Item]:
    """Each row as an object, by the names in the first line."""
    with opened(path) as file:
        old_mac = re.match(rb"\s*[^\r\n]+\r(?!\r*\n)", file.peek(8192))  # type: ignore[attr-defined]
        lines: Iterator[str] = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="" if old_mac else "\n")
        first, blank = next(lines, ""), 0
        while first.isspace():
            first, blank = next(lines, ""), blank + 1
        # Spreadsheets write semicolons where a comma is the decimal point.
        tab, separator = "\t" in first, ";" if first.count(";") > first.count(",") else ","
        separator = "\t" if tab else separator
        remedy = (
            f"Separate the cells by one {_NAMES[separator]}; put a cell that holds one, a quote or a new line in "
            "quotes, its own quotes doubled."
        )
        if tab:
            remedy = "Separate the cells by one tab; save texts that hold a tab or a new line as CSV or JSONL."
        columns: tuple[str, ...] = ()
        # Tabs need no quotes: a quote is part of a cell, unless a CSV writer quoted the whole cell.
        style = {"delimiter": separator, "skipinitialspace": not tab, "strict": True}
        style["quoting"] = csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
        rows = csv.reader(itertools.chain([first], lines), **style)  # type: ignore[arg-type]

        def place(start: int) -> str:
            """Of a row that cannot be read: a quote that does not end takes in all lines up to the next one."""
            end = blank + rows.line_num
            return f"{path.name}, " + (f"lines {start} to {end}" if end > start else f"line {start}")

        while True:
            start = blank + rows.line_num + 1
            where = f"{path.name}, line {start}"
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "field limit" in str(error):  # it would go on in the middle of the cell
                    long = "a cell has more than 131,072 characters, or a quote is missing. Save as JSONL."
                    raise DataError(f"{where}: {long}") from error
                where = place(start)
                yield where, DataError(f"{where}: this row cannot be read as CSV. {remedy}", str(error))
                continue
            if tab:
                if cells and cells[-1].startswith('"') and cells[-1].count('"') % 2:
                    yield where, DataError(f"{where}: a cell in quotes does not end here. {remedy}")
                    continue
                cells = [*map(_unquoted, cells)]
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = tuple(cell.strip().lower() for cell in cells)
                if twice := {a for a, b in itertools.pairwise(sorted(filter(None, columns))) if a == b}:
                    raise DataError(f"{where}: several columns are called '{min(twice)}'. Rename one.")
                continue
            if len(cells) == len(columns):
                yield where, dict(zip(columns, cells, strict=True))
            else:
                wrong, where = f"{len(cells)} cells where the first line has {len(columns)}", place(start)
                yield where, DataError(f"{where}: {wrong}. {remedy}")


def _unquoted(cell: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return quoted[1].replace('""', '"') if quoted else cell
