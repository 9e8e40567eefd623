"""Tables in .csv and .tsv files: each row as an object, by the names in the first line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train.formats.index import Index, index_table
from train.formats.record import DataError, Rows

SUFFIXES = (".tsv", ".csv")
_NAMES = {"\t": "tab", ",": "comma", ";": "semicolon"}  # of separators


@dataclass(frozen=True, eq=False)
class Table(Rows):
    """first: the first row with data, 1 below a header."""

    index: Index
    separator: str
    first: int
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.index) - self.first

    def read(self, index: int) -> tuple[dict[str, str], str]:
        text, where = self.index.text(index + self.first)
        cells = _cells(text, self.separator, where)
        if len(cells) != len(self.columns):
            sign = _NAMES[self.separator]
            raise DataError(
                f"{where}: {len(cells)} cells where the first line has {len(self.columns)}. "
                f"Separate the cells by one {sign}; put a cell that holds one in quotes."
            )
        return dict(zip(self.columns, cells, strict=True)), where


def open_table(
    path: Path, is_header: Callable[[dict[str, str]], bool], default: tuple[str, ...], known: str
) -> Table:
    """is_header: whether a first line, in lower case, names the columns of a format. default: the names of the
    columns where there is no such line. known: what is known, for the error. Raises DataError.
    """
    separator = _separator(index_table(path, "\t").text(0)[0], is_header)
    index = index_table(path, separator)
    text, where = index.text(0)
    cells = _cells(text, separator, where)
    header = tuple(cell.strip().lower() for cell in cells)
    if is_header(dict.fromkeys(header, "")):
        if len(index) == 1:
            raise DataError(f"{path.name} has a header and nothing below it. Check that it is the right file.")
        return Table(index, separator, 1, header)
    if len(cells) != len(default):
        raise DataError(
            f"{where}: {len(cells)} columns and no header of a known format. Name the columns in "
            f"the first line, or keep two: {', '.join(default)}. {known}"
        )
    return Table(index, separator, 0, default)


def _separator(line: str, is_header: Callable[[dict[str, str]], bool]) -> str:
    """The character between the cells of a file with this first line; spreadsheets write semicolons where a comma
    is the decimal point.
    """
    if "\t" in line:
        return "\t"
    names = dict.fromkeys((cell.strip('" ').lower() for cell in line.split(";")), "")
    return ";" if ";" in line and is_header(names) else ","


def _cells(text: str, separator: str, where: str) -> list[str]:
    if separator == "\t":
        # Tabs need no quotes: a quote is part of a cell, unless a CSV writer quoted the whole cell.
        return [_unquoted(cell) for cell in text.split("\t")]
    try:
        lines = io.StringIO(text, newline="\n")
        return next(csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise DataError(
            f"{where}: this row cannot be read as CSV. Put a cell that holds a quote, {_NAMES[separator]} or new "
            "line in quotes, its own quotes doubled.",
            str(error),
        ) from error


def _unquoted(cell: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return quoted[1].replace('""', '"') if quoted else cell
