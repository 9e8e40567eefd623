"""The data that comes with the program, to train a first adapter on. Knows assets/samples; trains nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "samples"
LIST = "samples.json"


@dataclass(frozen=True)
class Sample:
    """One of them. path: a file or folder beside the list. question: what shows afterwards what was learnt, about
    `picture` if there is one. settings: values of a recipe that work for it.
    """

    name: str
    title: str
    description: str
    path: Path
    question: str = ""
    picture: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def samples(folder: Path = FOLDER) -> list[Sample]:
    """Those that are there, in their list's order; none without a list."""
    try:
        entries = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        picture = entry.get("picture")
        found.append(
            Sample(
                name=entry["name"],
                title=entry["title"],
                description=entry["description"],
                path=folder / entry["path"],
                question=entry.get("question", ""),
                picture=folder / picture if picture else None,
                settings=entry.get("settings", {}),
            )
        )
    return [sample for sample in found if sample.path.exists()]
