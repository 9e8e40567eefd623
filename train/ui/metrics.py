"""The metrics of a run, as its trainer writes them."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

MAX_BYTES = 4 * 2**20  # that are read, from the end
_RECENT_STEPS = 20  # that the duration of a step is averaged over
_RISEN = 1.02  # times the lowest held-out loss: less is chance
Points = tuple[tuple[int, float], ...]


class _Line(BaseModel, strict=True, allow_inf_nan=False):
    """What a line may hold beside its step."""

    step: int = Field(ge=0, le=10**9)
    loss: float = 0.0
    held_out_loss: float = 0.0
    untrained_loss: float = 0.0
    largest_gate: float = 0.0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class RunProgress:
    """The metrics of a run. losses, held_out: (step, value).

    untrained: the held-out loss before the first step; evaluated: the step of the latest evaluation;
    step_seconds, evaluation_seconds: the duration of a recent one; updated: when they were last written.
    """

    step: int = 0
    updated: float = 0.0
    losses: Points = ()
    held_out: Points = ()
    largest_gate: float | None = None
    untrained: float | None = None
    evaluated: int = 0
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
    values: dict[str, list[tuple[int, float]]] = {name: [] for name in _Line.model_fields}
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, 2) - MAX_BYTES, 0))
        lines = file.read(MAX_BYTES).split(b"\n")[:-1]  # after the last line break one is being written
    for text in lines:
        with suppress(ValidationError):
            line = _Line.model_validate_json(text)
            for name in line.model_fields_set:
                values[name].append((line.step, getattr(line, name)))
    recent, step_seconds = values["seconds"][-_RECENT_STEPS - 1 :], 0.0
    if len(recent) > 2:  # the first step takes longer than the others, and the second alone says little
        step_seconds = (recent[-1][1] - recent[0][1]) / max(recent[-1][0] - recent[0][0], 1)
    evaluated, evaluation_seconds = (values["evaluation_seconds"] or [(0, 0.0)])[-1]
    return RunProgress(
        step=recent[-1][0] if recent else 0,
        updated=path.stat().st_mtime,
        losses=tuple(values["loss"]),
        held_out=tuple(values["held_out_loss"]),
        largest_gate=values["largest_gate"][-1][1] if values["largest_gate"] else None,
        untrained=values["untrained_loss"][0][1] if values["untrained_loss"] else None,
        evaluated=evaluated,
        step_seconds=max(step_seconds, 0.0),
        evaluation_seconds=evaluation_seconds,
    )
