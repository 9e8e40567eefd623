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
    """In Markdown: a line for each row and system, with 95 % intervals, and the item count."""
    columns = list(dict.fromkeys(c for s in systems for row in s.figures.values() for c in row))
    lines = [["", "", *columns, "n"]]
    for row in dict.fromkeys(row for s in systems for row in s.figures):
        for system in systems:
            if (figures := system.figures.get(row)) is not None:
                n = max(figure.n for figure in figures.values())
                cells = [format_figure(figures[c]) if c in figures else "" for c in columns]
                lines.append([row, system.name, *cells, f"{n:,}"])
    return markdown_table(lines[0], lines[1:], padded=True)


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[str]], padded: bool = False) -> str:
    """padded: all cells of a column are as wide as the widest, for a terminal."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) if padded else 0 for i in range(len(head))]
    lines.insert(1, ["-" * (width or 3) for width in widths])
    filled = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def format_figure(figure: Figure) -> str:
    """`value (low to high)`: an interval of a share leans to one side."""
    value = _number(figure.value)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} ({_number(figure.low)} to {_number(figure.high)})"


def _number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else "0" if abs(value) < 0.001 else f"{value:.3g}"


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
