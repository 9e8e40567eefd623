"""An evaluation's table, and what it was measured on."""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from train.evaluate.intervals import Figure
from train.precision import processor_name


@dataclass(frozen=True)
class Result:
    """What an adapter, or the bare base, reached. figures: by the table's rows and columns; answers: its texts.

    name, template, digest: of the adapter, for the report.
    """

    figures: Mapping[str, Mapping[str, Figure]]
    answers: tuple[str, ...] = ()
    name: str = ""
    template: str = ""
    digest: str | None = None


def format_table(systems: Sequence[Result]) -> str:
    """In Markdown: a line for each row and system, `value ± half of its 95 % interval`, and the item count."""
    columns = list(dict.fromkeys(c for s in systems for row in s.figures.values() for c in row))
    lines = [["", "", *columns, "n"]]
    for row in dict.fromkeys(row for s in systems for row in s.figures):
        for system in systems:
            if (figures := system.figures.get(row)) is not None:
                n = max(figure.n for figure in figures.values())
                cells = [_cell(figures[c]) if c in figures else "" for c in columns]
                lines.append([row, system.name, *cells, f"{n:,}"])
    return markdown_table(lines[0], lines[1:], padded=True)


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[str]], padded: bool = False) -> str:
    """padded: all cells of a column are as wide as the widest, for a terminal."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) if padded else 0 for i in range(len(head))]
    lines.insert(1, ["-" * (width or 3) for width in widths])
    filled = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def _cell(figure: Figure) -> str:
    digits = 1 if figure.value >= 10 else 3
    value = f"{figure.value:.{digits}f}"
    if figure.low is None or figure.high is None:
        return value
    return f"{value} ± {(figure.high - figure.low) / 2:.{digits}f}"


def describe_device(device: torch.device) -> str:
    """The name of the GPU or processor, and the latter's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' * (threads > 1)}"


def code_version() -> str | None:
    """The commit of this code, with "-dirty" if it was changed since; None where it is no checkout."""
    here = Path(__file__).parent
    for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["describe", "--always", "--dirty"]):
        try:
            found = subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
    return found.stdout.strip()
