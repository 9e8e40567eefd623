"""How far a run is, by the figures that the trainer leaves in its folder. Knows files; knows no processes."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter.server.libraries import import_libraries

_LAST_BYTES = 4 * 2**20  # of a long run's figures
_RECENT = 20  # steps
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Progress:
    """What the figures say. losses, held_out, largest_gate: (step, value); gates: mean size, lowest layer first.

    untrained: the held-out loss before the first step; tokens, seconds: of all steps; step_seconds and
    evaluation_seconds: of one, lately; since: when the last figure came.
    """

    step: int = 0
    since: float = 0.0
    losses: Points = ()
    held_out: Points = ()
    largest_gate: Points = ()
    gates: tuple[float, ...] = ()
    untrained: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @property
    def best(self) -> float | None:
        """The held-out loss of the adapter that is kept."""
        return min((value for _, value in self.held_out), default=None)

    def left(self, steps: int, eval_every: int) -> float | None:
        """Seconds to the end; None before the first step."""
        if not self.step_seconds:
            return None
        left = max(steps - self.step, 0)
        return left * self.step_seconds + math.ceil(left / eval_every) * self.evaluation_seconds


def read_progress(folder: Path) -> Progress:
    """Of the run in `folder`; of one that has written nothing yet, nothing."""
    import_libraries()
    from train.metrics import METRICS  # brings torch

    try:
        with open(folder / METRICS, "rb") as file:
            file.seek(max(file.seek(0, 2) - _LAST_BYTES, 0))
            lines, since = file.read().splitlines(), os.fstat(file.fileno()).st_mtime
    except OSError:
        return Progress()
    return replace(_progress([line for line in map(_parsed, lines) if line is not None]), since=since)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # being written just now
        return None
    return value if isinstance(value, dict) and type(value.get("step")) is int else None


def _progress(lines: list[dict[str, Any]]) -> Progress:
    def points(name: str) -> Points:
        return tuple((line["step"], float(line[name])) for line in lines if name in line)

    seconds = points("seconds")
    recent = seconds[-_RECENT - 1 :]
    step_seconds = 0.0
    if len(recent) > 1:
        step_seconds = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
    elif recent:
        step_seconds = recent[0][1] / max(recent[0][0], 1)
    return Progress(
        step=seconds[-1][0] if seconds else 0,
        losses=points("loss"),
        held_out=points("held_out_loss"),
        largest_gate=points("largest_gate"),
        gates=next((tuple(line["gates"]) for line in reversed(lines) if "gates" in line), ()),
        untrained=next((line["untrained_loss"] for line in lines if "untrained_loss" in line), None),
        tokens=int(points("tokens")[-1][1]) if seconds else 0,
        seconds=seconds[-1][1] if seconds else 0.0,
        step_seconds=max(step_seconds, 0.0),
        evaluation_seconds=(points("evaluation_seconds") or ((0, 0.0),))[-1][1],
    )
