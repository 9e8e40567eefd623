"""The metrics of a run, as its trainer writes them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 4 * 2**20  # that are read, from the end
_MAX_STEP = 10**9
_RECENT_STEPS = 20  # that the duration of a step is averaged over
_RISEN = 1.02  # times the lowest held-out loss: less is chance
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RunProgress:
    """The metrics of a run. losses, held_out: (step, value); gates: mean size, lowest layer first.

    untrained: the held-out loss before the first step; evaluated: the step of the latest evaluation; tokens,
    seconds: of all steps; step_seconds, evaluation_seconds: the duration of a recent one; updated: when they were
    last written.
    """

    step: int = 0
    updated: float = 0.0
    losses: Points = ()
    held_out: Points = ()
    largest_gate: float | None = None
    gates: tuple[float, ...] = ()
    untrained: float | None = None
    evaluated: int = 0
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def kept(self, save: str) -> tuple[int, float | None]:
        """Step and held-out loss of the adapter that is saved so far; save: as in TrainConfig."""
        if save == "last" or not self.held_out:
            return self.evaluated, self.held_out[-1][1] if self.held_out else None
        return min(self.held_out, key=lambda point: point[1])

    @property
    def by_heart_since(self) -> int | None:
        """The step of the lowest held-out loss, if that has risen since then; None if it has not."""
        step, lowest = self.kept("best")
        return step if lowest is not None and self.held_out[-1][1] > _RISEN * lowest else None

    def seconds_left(self, steps: int, eval_every: int) -> float | None:
        """None before the third step."""
        if not self.step_seconds:
            return None
        left = max(steps - self.step, 0)
        return left * self.step_seconds + math.ceil(left / eval_every) * self.evaluation_seconds


def read_metrics(path: Path) -> RunProgress:
    """The metrics in a file, of which the end is read. A line that is cut or makes no sense is passed over."""
    points: dict[str, list[tuple[int, float]]] = {}
    gates: tuple[float, ...] = ()
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, 2) - MAX_BYTES, 0))
        lines = file.read(MAX_BYTES).split(b"\n")[:-1]  # after the last line break one is being written
    for line in lines:
        values = _parse(line)
        step = values.pop("step", None)
        if type(step) is not int or not 0 <= step <= _MAX_STEP:
            continue
        for name, value in values.items():
            if _is_number(value):
                points.setdefault(name, []).append((step, float(value)))
            elif name == "gates" and isinstance(value, list) and all(_is_number(v) and v >= 0 for v in value):
                gates = tuple(map(float, value))
    return _summarise(points, gates, path.stat().st_mtime)


def _summarise(
    points: dict[str, list[tuple[int, float]]], gates: tuple[float, ...], updated: float
) -> RunProgress:
    def last(name: str) -> tuple[int, float]:
        return points[name][-1] if name in points else (0, 0.0)

    recent = points.get("seconds", [])[-_RECENT_STEPS - 1 :]
    step_seconds = 0.0
    if len(recent) > 2:  # the first step takes longer than the others, and the second alone says little
        step_seconds = (recent[-1][1] - recent[0][1]) / max(recent[-1][0] - recent[0][0], 1)
    return RunProgress(
        step=last("seconds")[0],
        updated=updated,
        losses=tuple(points.get("loss", ())),
        held_out=tuple(points.get("held_out_loss", ())),
        largest_gate=last("largest_gate")[1] if "largest_gate" in points else None,
        gates=gates,
        untrained=points["untrained_loss"][0][1] if "untrained_loss" in points else None,
        evaluated=last("evaluation_seconds")[0],
        tokens=int(last("tokens")[1]),
        seconds=last("seconds")[1],
        step_seconds=max(step_seconds, 0.0),
        evaluation_seconds=last("evaluation_seconds")[1],
    )


def _parse(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
