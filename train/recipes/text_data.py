"""Phrases and word lists from YAML files, rows of TSV files.

A YAML value is a list, a block of text with one phrase a line, or a text of words separated by commas.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def read_yaml(path: Path) -> Any:
    """The content of a YAML file, which is read once. Callers must not change it."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def phrases(value: str | Sequence[str]) -> tuple[str, ...]:
    """The phrases of a YAML value: the lines of a text, or the entries of a list."""
    return tuple(value.splitlines() if isinstance(value, str) else value)


def words(text: str) -> tuple[str, ...]:
    """The entries of a text that are separated by commas."""
    return tuple(entry.strip() for entry in text.split(","))


def table(path: Path) -> list[tuple[str, ...]]:
    """The rows of a file with tabs between cells; lines that begin with # are comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines if not line.startswith("#")]
