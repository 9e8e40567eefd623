"""The English texts of the panel Inside."""

from __future__ import annotations

from typing import Any

from adapter.ui.texts import read

vars().update(read("inside.yaml"))


def __getattr__(name: str) -> Any:  # for the type checker: a text of the file
    raise AttributeError(name)


BRUSHES = [("mute", 0), ("amplify", 2), ("put back", 1)]


def token_numbers(influence: str, grounding: str | None, log_p: str) -> str:
    """The numbers of one token."""
    parts = [f"influence {influence}"]
    parts += [] if grounding is None else [f"grounding {grounding}"]
    return " · ".join([*parts, f"log p {log_p}"])
