"""Tables in .csv and .tsv files: each row as an object, by the names in the first line. Knows no formats."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train.formats.index import Index, index_csv, index_lines
from train.formats.record import DataError

SUFFIXES = (".tsv", ".csv")


@dataclass(frozen=True, eq=False)
class Table:
    """header: the names of the columns; first: the first row with data, 1 below a header."""

    index: Index
    comma: bool
    header: tuple[str, ...]
    first: int

    def __len__(self) -> int:
        return len(self.index) - self.first

    def read(self, index: int) -> tuple[dict[str, str], str]:
        text, line = self.index.text(index + self.first)
        where = f"{self.index.path.name}, line {line}"
        cells = _cells(text, self.comma, where)
        if len(cells) != len(self.header):
            sign = "comma" if self.comma else "tab"
            raise DataError(
                f"{where}: {len(cells)} cells where the first line has {len(self.header)}. "
                f"Separate the cells by one {sign}; put a cell that holds one in quotes."
            )
        return dict(zip(self.header, cells, strict=True)), where


def open_table(
    path: Path, is_header: Callable[[dict[str, str]], bool], default: tuple[str, ...], known: str
) -> Table:
    """is_header: whether a first line, in lower case, names the columns of a format. default: the names of the
    columns where there is no such line. known: what is known, for the error. Raises DataError.
    """
    index = index_lines(path)
    text, line = index.text(0)
    if comma := "\t" not in text:
        index = index_csv(path)
        text, line = index.text(0)
    cells = _cells(text, comma, f"{path.name}, line {line}")
    header = tuple(cell.strip().lower() for cell in cells)
    if is_header(dict.fromkeys(header, "")):
        if len(index) == 1:
            raise DataError(f"{path.name} has a header and nothing below it. Check that it is the right file.")
        return Table(index, comma, header, first=1)
    if len(cells) != len(default):
        raise DataError(
            f"{path.name}, line {line}: {len(cells)} columns and no header of a known format. Name the columns in "
            f"the first line, or keep two: {', '.join(default)}. {known}"
        )
    return Table(index, comma, default, first=0)


def _cells(text: str, comma: bool, where: str) -> list[str]:
    if not comma:
        # Tabs need no quotes: a quote is part of a cell, unless a CSV writer quoted the whole cell.
        return [_unquoted(cell) for cell in text.split("\t")]
    try:
        return next(csv.reader(io.StringIO(text, newline="\n"), skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise DataError(
            f"{where}: this row cannot be read as CSV. Put a cell that holds a quote, comma or new line in "
            "quotes, its own quotes doubled.",
            str(error),
        ) from error


def _unquoted(cell: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return quoted[1].replace('""', '"') if quoted else cell
