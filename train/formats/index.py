"""Byte offsets of the records of a large file, so that one can be read without the rest.

Knows bytes, lines and JSON; knows nothing of what the records mean.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adapter.errors import first_line
from train.formats.record import DataError, json_type

_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**18
_LONGEST_LINE = 2**28  # bytes; a longer line is a whole file without newlines
_EXPECTED = "A file of records is one array, [{...}, {...}], or has one whole object a line."


@dataclass(frozen=True, eq=False)
class Index:
    """The offsets of N records, 12 bytes each. Opens the file on each access, so that it can be pickled and used
    from any number of threads and processes.
    """

    path: Path
    starts: array[int] = field(repr=False)  # [N + 1] in bytes; the last one is the end of the records
    lines: array[int] = field(repr=False)  # [N] from 1; in a JSON array the line of the comma before the record
    is_array: bool  # a JSON array; otherwise one record per line
    is_csv: bool = False  # whose records may span several lines

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, index: int) -> tuple[str, int]:
        """The text of one record and the number of its first line. Raises DataError."""
        start, end = self.starts[index], self.starts[index + 1]
        with opened(self.path) as file:
            file.seek(start)
            raw = file.read(end - start)
        line = self.lines[index]
        if self.is_array:
            raw = raw[:-1]  # the comma or bracket behind it
            begin = len(raw) - len(raw.lstrip())
            line += raw.count(b"\n", 0, begin)
            start += begin
            raw = raw.strip()
        elif self.is_csv:
            raw = raw.rstrip(b"\r\n")
        else:
            raw = raw.partition(b"\n")[0].rstrip(b"\r")  # blank lines may follow
        return decoded(self.path, raw, start, line), line

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        """One record of JSON and its place for messages. Raises DataError if it is not an object."""
        text, line = self.text(index)
        where = self.path.name + (f", record {index + 1} (line {line})" if self.is_array else f", line {line}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            number, place = "", f"column {error.colno}"
            if self.is_array:
                number = f"record {index + 1}, "
                if error.lineno == 1:  # where the record may begin in any column
                    place = f"character {error.pos + 1} of the record"
            remedy = "Mend the record or take it out."
            if index == 0 and not self.is_array and text.lstrip().startswith("{"):
                remedy = f"{_EXPECTED} Mend the record or take it out."
            raise DataError(
                f"{self.path.name}, {number}line {line + error.lineno - 1}, {place}: this is not JSON. {remedy}",
                error.msg,
            ) from error
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a thousand brackets
            raise DataError(
                f"{where}: this cannot be read as JSON. Take the record out.", first_line(error)
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: this is {json_type(value)}, not an object. Write each record as {{...}}.")
        return value, where


def index_json(path: Path) -> Index:
    """Indexes the elements of a JSON array or the lines of JSONL, whichever the file is. Raises DataError."""
    with opened(path) as file:
        start = _skip_bom(file)
        while (byte := file.read(1)).isspace():
            pass
        begin = file.tell() - 1
        file.seek(start)
        return _index_array(path, file, begin) if byte == b"[" else _index_lines(path, file)


def index_lines(path: Path) -> Index:
    """Indexes the lines that are not blank. Raises DataError if there are none."""
    with opened(path) as file:
        _skip_bom(file)
        return _index_lines(path, file)


def index_csv(path: Path, separator: str) -> Index:
    """Indexes the rows of a table whose cells may be quoted. Raises DataError."""
    starts, lines = array("q"), array("I")
    with opened(path) as file:
        begin, at, number = _skip_bom(file), 0, 0

        def read_lines() -> Iterator[str]:
            nonlocal at, number
            for line in file:
                at, number = at + len(line), number + 1
                # Quotes, separators and line ends are the same bytes in any encoding that ASCII is part of.
                yield line.decode("latin-1").replace("\r", " ")

        rows = csv.reader(read_lines(), delimiter=separator, skipinitialspace=True)
        while True:
            start, line = begin + at, number + 1
            try:
                cells = next(rows, None)
            except csv.Error as error:  # its cells are limited to 131,072 characters
                raise DataError(
                    f"{path.name}, line {line}: a cell that begins in this row does not end. Close its quotes, or "
                    "write texts of this length as JSONL.",
                    str(error),
                ) from error
            if cells is None:
                break
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                starts.append(start)
                lines.append(line)
    if not lines:
        raise DataError(f"{path.name} is empty. Check that it is the right file.")
    starts.append(begin + at)
    return Index(path, starts, lines, is_array=False, is_csv=True)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that is one object, whole. Raises DataError."""
    with opened(path) as file:
        begin = _skip_bom(file)
        raw = file.read()
    try:
        value = json.loads(decoded(path, raw, begin, 1))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}, line {error.lineno}, column {error.colno}: this is not JSON. Mend it.", error.msg
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read as JSON. Mend it.", first_line(error)) from error
    if not isinstance(value, dict):
        raise DataError(f"{path.name} holds {json_type(value)}, not an object. Check that it is the right file.")
    return value


def decoded(path: Path, raw: bytes, start: int, line: int) -> str:
    """The bytes as text. start, line: where they begin in the file. Raises DataError."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{path.name}, line {line}: byte 0x{raw[error.start]:02x} at offset {start + error.start} of the file "
            "is not UTF-8. Save the file as UTF-8."
        ) from error


def opened(path: Path) -> BinaryIO:
    """Opens the file for reading bytes. Raises DataError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"'{path.name}' cannot be read. Check the path.", f"{path}: {error.strerror or error}"
        ) from error


def _skip_bom(file: BinaryIO) -> int:
    start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(start)
    return start


def _index_lines(path: Path, file: BinaryIO) -> Index:
    starts, lines = array("q"), array("I")
    offset, number = file.tell(), 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise DataError(
                f"{path.name}, line {number}: this line is longer than {_LONGEST_LINE // 2**20} MB. {_EXPECTED}"
            )
        if not line.isspace():
            starts.append(offset)
            lines.append(number)
        offset += len(line)
    if not lines:
        raise DataError(f"{path.name} is empty. Check that it is the right file.")
    starts.append(offset)
    return Index(path, starts, lines, is_array=False)


_STRUCTURAL = np.zeros(256, dtype=bool)
_STRUCTURAL[list(b'"[]{},')] = True
_STEP = np.zeros(256, dtype=np.int64)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def _index_array(path: Path, file: BinaryIO, begin: int) -> Index:
    """One pass, chunk by chunk, at about 200 MB/s: the commas at depth 1 separate the elements."""
    line = 1 + file.read(begin - file.tell()).count(b"\n")
    file.read(1)  # the array's own bracket
    starts, lines = array("q", [begin + 1]), array("I", [line])
    depth, quoted, offset = 1, False, begin + 1
    while chunk := _read_chunk(file):
        at, signs, depths, quoted = _structure(chunk, depth, quoted)
        newlines = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
        ends = np.flatnonzero(depths == 0)
        between = (depths == 1) & (signs == ord(","))
        if len(ends):
            between[ends[0] :] = False
        cuts = at[between]
        starts.frombytes((cuts + offset + 1).astype(np.int64).tobytes())
        lines.frombytes((line + np.searchsorted(newlines, cuts)).astype(np.uint32).tobytes())
        if len(ends):
            close = int(at[ends[0]])
            starts.append(offset + close + 1)
            _check_nothing_follows(path, chunk[close + 1 :], file, line + int(np.searchsorted(newlines, close)))
            index = Index(path, starts, lines, is_array=True)
            _check_last(index)
            return index
        depth = int(depths[-1]) if len(depths) else depth
        line += len(newlines)
        offset += len(chunk)
    starts.append(offset)
    raise _unclosed(Index(path, starts, lines, is_array=True))


def _structure(chunk: bytes, depth: int, quoted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Of one chunk: the positions of brackets and commas outside strings, those bytes, the depth after each, and
    whether the chunk ends inside a string. depth, quoted: the state at its beginning.
    """
    # Blank out escaped backslashes, then escaped quotes: the quotes left open and close strings.
    data = np.frombuffer(chunk.replace(rb"\\", b"  ").replace(rb"\"", b"  "), dtype=np.uint8)
    at = np.flatnonzero(_STRUCTURAL[data])
    signs = data[at]
    quotes = signs == ord('"')
    so_far = np.cumsum(quotes) + quoted
    outside = (so_far % 2 == 0) & ~quotes
    still = bool(so_far[-1] % 2) if len(so_far) else quoted
    at, signs = at[outside], signs[outside]
    return at, signs, depth + np.cumsum(_STEP[signs]), still


def _unclosed(index: Index) -> DataError:
    """The error of an array without end. A missing quote or bracket shows in the first record that is not JSON."""
    last = len(index) - 1
    try:
        for i in range(last):
            index.read(i)
    except DataError as error:
        return error
    return DataError(
        f"{index.path.name}: the file ends within record {last + 1}, which begins in line {index.lines[last]}. "
        "Either a quote or bracket is missing there, or the file is cut off: mend it or fetch it again."
    )


def _read_chunk(file: BinaryIO) -> bytes:
    """The next chunk, extended so that it does not end within a run of backslashes."""
    chunk = file.read(_CHUNK)
    while chunk.endswith(b"\\") and (more := file.read(1)):
        chunk += more
    return chunk


def _check_nothing_follows(path: Path, rest: bytes, file: BinaryIO, line: int) -> None:
    while not rest or rest.isspace():
        line += rest.count(b"\n")
        if not (rest := file.read(_CHUNK)):
            return
    line += rest.count(b"\n", 0, len(rest) - len(rest.lstrip()))
    raise DataError(
        f"{path.name}, line {line}: something follows the end of the array. Keep one array in the file."
    )


def _check_last(index: Index) -> None:
    last = len(index) - 1
    start, end = index.starts[last], index.starts[last + 1]
    with opened(index.path) as file:
        file.seek(start)
        if file.read(end - start)[:-1].strip():
            return
    if last == 0:
        raise DataError(f"{index.path.name} holds an empty array. Check that it is the right file.")
    raise DataError(
        f"{index.path.name}, line {index.lines[last]}: a comma stands behind the last record. Take the comma out."
    )
