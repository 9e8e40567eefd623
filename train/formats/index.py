"""Where the records of a large file lie, so that one can be read without the rest."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from adapter.errors import first_line
from train.formats.record import DataError, Rows, json_type

Span = tuple[int, int, int]  # a record's first byte, the byte behind it, and its number
_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**18
_LONGEST = 2**28  # bytes of a record; a longer one is a whole file without newlines
_EXPECTED = "A file of records is one array, [{...}, {...}], or has one whole object a line."
_MEND = "Mend the record or take it out."
_BLANKS = re.compile(r"[ \t\n\r]*")
_CUT = 16  # characters of a literal, number or escape at most, which a chunk may cut in two


@dataclass(frozen=True, eq=False)
class Index(Rows):
    """The places of N records, 24 bytes each. Opens the file on each access: many threads may read.

    spans: [3 N], flat. unit: what a record's number counts, "line" (its first one) or "record"; both from 1.
    unpacked: the content of a compressed file, in a temporary file that goes with this object.
    """

    path: Path
    unit: str
    spans: array[int] = field(repr=False)
    unpacked: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.spans) // 3

    def text(self, index: int) -> tuple[str, str]:
        """The text of one record and its place for messages. Raises DataError."""
        start, end, number = self.spans[3 * index : 3 * index + 3]
        where = f"{self.path.name}, {self.unit} {number}"
        with opened(self.path if self.unpacked is None else Path(self.unpacked.name)) as file:
            file.seek(start)
            return decoded(file.read(end - start), where), where

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        """One record of JSON and its place for messages. Raises DataError if it is not an object."""
        text, where = self.text(index)
        layout = f"{_EXPECTED} " if index == 0 and text.lstrip().startswith("{") else ""
        value = _parsed(text, where, f"{layout}{_MEND}")
        if not isinstance(value, dict):
            raise DataError(f"{where}: this is {json_type(value)}, not an object. Write each record as {{...}}.")
        return value, where


def index_json(path: Path) -> Index:
    """Indexes the elements of a JSON array or the lines of JSONL, whichever the file is. Raises DataError."""

    def scan(file: BinaryIO) -> tuple[str, Iterable[Span]]:
        begin = file.tell()
        while (byte := file.read(1)).isspace():
            pass
        if byte == b"[":
            return "record", _elements(path, file)
        file.seek(begin)
        return "line", _lines(path, file)

    return _index(path, scan)


def index_table(path: Path, separator: str) -> Index:
    """Indexes the rows of a table: the lines that are not blank where tabs separate cells, which need no quotes.
    Raises DataError.
    """
    rows = _lines if separator == "\t" else partial(_csv_rows, separator=separator)
    return _index(path, lambda file: ("line", rows(path, file)))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that is one object, whole. Raises DataError."""
    with opened(path) as file:
        _skip_bom(file)
        value = _parsed(decoded(file.read(), path.name), path.name, "Mend it.")
    if not isinstance(value, dict):
        raise DataError(f"{path.name} holds {json_type(value)}, not an object. Check that it is the right file.")
    return value


def decoded(raw: bytes, where: str) -> str:
    """The bytes as text. Raises DataError."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: this is not UTF-8. Save the file as UTF-8.", first_line(error)) from error


def opened(path: Path) -> BinaryIO:
    """Opens the file for reading bytes. Raises DataError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"'{path.name}' cannot be read. Check the path.", f"{path}: {error.strerror or error}"
        ) from error


def _index(path: Path, scan: Callable[[BinaryIO], tuple[str, Iterable[Span]]]) -> Index:
    unpacked = _unpack(path) if path.suffix.lower() == ".gz" else None
    spans = array("q")
    with opened(path if unpacked is None else Path(unpacked.name)) as file:
        _skip_bom(file)
        unit, found = scan(file)
        for span in found:
            spans.extend(span)
    if not spans:
        what = "is empty" if unit == "line" else "holds an empty array"
        raise DataError(f"{path.name} {what}. Check that it is the right file.")
    return Index(path, unit, spans, unpacked)


def _unpack(path: Path) -> Any:
    unpacked = tempfile.NamedTemporaryFile(prefix="llama-adapter-")  # noqa: SIM115
    with opened(path) as file:
        try:
            with gzip.open(file) as content:
                shutil.copyfileobj(content, unpacked)
            unpacked.flush()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"'{path.name}' cannot be unpacked. Fetch it again.", first_line(error)) from error
    return unpacked


def _parsed(text: str, where: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(where, error, remedy) from error


def _no_json(where: str, error: Exception, remedy: str = _MEND) -> DataError:
    """Also of a number of 5,000 digits and of a thousand brackets."""
    return DataError(f"{where}: this is not JSON. {remedy}", first_line(error))


def _skip_bom(file: BinaryIO) -> None:
    if file.read(len(_BOM)) != _BOM:
        file.seek(0)


def _lines(path: Path, file: BinaryIO) -> Iterator[Span]:
    offset, number = file.tell(), 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise DataError(
                f"{path.name}, line {number}: this line is longer than {_LONGEST // 2**20} MB. {_EXPECTED}"
            )
        if not line.isspace():
            yield offset, offset + len(line.rstrip(b"\r\n")), number
        offset += len(line)


def _csv_rows(path: Path, file: BinaryIO, separator: str) -> Iterator[Span]:
    end, number = file.tell(), 0

    def lines() -> Iterator[str]:
        nonlocal end, number
        for line in file:
            end, number = end + len(line), number + 1
            # Quotes, separators and line ends are the same bytes in any encoding that ASCII is part of.
            yield line.decode("latin-1").replace("\r", " ")

    rows = csv.reader(lines(), delimiter=separator, skipinitialspace=True)
    while True:
        start, first = end, number + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:  # its cells are limited to 131,072 characters
            raise DataError(
                f"{path.name}, line {first}: a cell that begins in this row does not end. Close its quotes, or "
                "write texts of this length as JSONL.",
                str(error),
            ) from error
        if cells is None:
            return
        if len(cells) > 1 or any(cell.strip() for cell in cells):
            yield start, end, first


def _elements(path: Path, file: BinaryIO) -> Iterator[Span]:
    """The elements of an array whose bracket has been read, by Python's own parser, a chunk at a time.

    The text is taken for Latin-1, of which a character is a byte; what JSON is made of is the same in UTF-8.
    """
    decode = json.JSONDecoder().raw_decode
    text, at, offset = "", 0, file.tell()  # text[at] follows the last comma; text[0] is the file's byte `offset`
    for number in itertools.count(1):
        where = f"{path.name}, record {number}"
        while True:  # until the element and the sign behind it are in the text
            begin = _after_blanks(text, at)
            try:
                is_empty = number == 1 and text[begin : begin + 1] == "]"
                end = begin if is_empty else decode(text, begin)[1]
                sign = _after_blanks(text, end)
                if sign < len(text):
                    break
            except (ValueError, RecursionError) as error:
                is_cut = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated") or error.pos >= len(text) - _CUT
                )
                if not is_cut:
                    raise _no_json(where, error) from error
            more = file.read(max(_CHUNK, len(text) - at))  # doubled, so that a long record costs no square
            if not more or len(text) - at > _LONGEST:
                raise DataError(
                    f"{where}: this is not JSON, or does not end. Mend the record, or fetch the file again if it "
                    "is cut off."
                )
            text, at, offset = text[at:] + more.decode("latin-1"), 0, offset + at
        if not is_empty:
            yield offset + begin, offset + end, number
        if text[sign] == "]":
            break
        if text[sign] != ",":
            raise DataError(f"{where}: no comma follows it. Put one between two records.")
        at = sign + 1
    if text[sign + 1 :].strip() or any(not chunk.isspace() for chunk in iter(lambda: file.read(_CHUNK), b"")):
        raise DataError(f"{path.name}: something follows the end of the array. Keep one array in the file.")


def _after_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at
