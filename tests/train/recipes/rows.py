"""The rows that recipes train on, as the tests read them, and a base to train by them."""

import gzip
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from tests.app_process import ROOT

RECIPES = ROOT / "train" / "recipes"


@cache
def rows(name: str) -> list[Any]:
    """The messages of each row of a file, or of those that a pattern fits."""
    found = []
    for path in sorted(RECIPES.glob(f"{name}.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [json.loads(line)["messages"] for line in file]
    assert found
    return found


def learnt(name: str) -> list[tuple[str, str]]:
    """Each user's turn whose answer is learnt, and that answer: other talk before it is not."""
    return [
        (asked["content"], answer["content"])
        for messages in rows(name)
        for asked, answer in zip(messages[::2], messages[1::2], strict=True)
        if answer.get("weight", 1)
    ]


def roomy(folder: Path, into: Path) -> Path:
    """A copy of the base in a folder that reads 4,096 tokens."""
    shutil.copytree(folder, into)
    config = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return into
