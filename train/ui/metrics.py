"""The metrics of a run while its trainer writes them: each byte is read once.

Knows metrics.jsonl and what a line of it may hold; knows no processes and nothing of Gradio.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.server.loader import import_libraries

MAX_BYTES = 4 * 2**20  # that are read at once, from the end
MAX_POINTS = 20_000  # of one line of the chart
_MAX_STEP = 10**9
_RECENT_STEPS = 20  # that the duration of a step is averaged over
_RISEN = 1.02  # times the lowest held-out loss: less is chance
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RunProgress:
    """The metrics of a run. losses, held_out, largest_gate: (step, value); gates: mean size, lowest layer first.

    untrained: the held-out loss before the first step; evaluated: the step of the latest evaluation; tokens,
    seconds: of all steps; step_seconds, evaluation_seconds: the duration of a recent one; updated: when they were
    last written.
    """

    step: int = 0
    updated: float = 0.0
    losses: Points = ()
    held_out: Points = ()
    largest_gate: Points = ()
    gates: tuple[float, ...] = ()
    untrained: float | None = None
    evaluated: int = 0
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def kept_loss(self, save: str) -> float | None:
        """The held-out loss of the adapter that a run keeps; save: "best" or "last", as in TrainConfig."""
        losses = [value for _, value in self.held_out]
        return None if not losses else losses[-1] if save == "last" else min(losses)

    def kept_step(self, save: str) -> int:
        """The step of the adapter that is saved so far; save: as of `kept_loss`."""
        if save == "last" or not self.held_out:
            return self.evaluated
        return min(self.held_out, key=lambda point: point[1])[0]

    @property
    def by_heart_since(self) -> int | None:
        """The step of the lowest held-out loss, if that has risen since then; None if it has not."""
        if not self.held_out:
            return None
        step, lowest = min(self.held_out, key=lambda point: point[1])
        return step if self.held_out[-1][1] > _RISEN * lowest else None

    def seconds_left(self, steps: int, eval_every: int) -> float | None:
        """None before the third step."""
        if not self.step_seconds:
            return None
        left = max(steps - self.step, 0)
        return left * self.step_seconds + math.ceil(left / eval_every) * self.evaluation_seconds


class MetricsTail:
    """The metrics of the run in `folder`. `read` reads what was written since the last time.

    Of a file that is longer than MAX_BYTES the end is read. A line that is not finished waits for its end, one
    that makes no sense is passed over, and a file that was replaced is read anew. Not thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        import_libraries()
        from train.run_folder import METRICS  # imports torch

        self._path = folder / METRICS
        self._start_anew()

    def _start_anew(self) -> None:
        self._stamp = (0, 0, 0)  # inode, size, time of modification in ns
        self._position = 0
        self._points: dict[str, deque[tuple[int, float]]] = {}
        self._gates: tuple[float, ...] = ()
        self._untrained: float | None = None
        self._progress = RunProgress()

    def read(self) -> RunProgress:
        """The same object as before if nothing was written; an empty one without a file."""
        try:
            stat = os.stat(self._path)
            stamp = stat.st_ino, stat.st_size, stat.st_mtime_ns
            if stamp == self._stamp:
                return self._progress
            if stat.st_ino != self._stamp[0] or stat.st_size < self._position:
                self._start_anew()
            with open(self._path, "rb") as file:
                start = max(self._position, stat.st_size - MAX_BYTES)
                file.seek(start)
                data = file.read(MAX_BYTES)
        except OSError:
            self._start_anew()
            return self._progress
        end = data.rfind(b"\n") + 1
        begin = data.find(b"\n") + 1 if start > self._position else 0  # of a line
        data = data[begin:end]
        self._stamp, self._position = stamp, start + end
        for line in data.splitlines():
            self._add(line)
        self._progress = self._summarise(stat.st_mtime)
        return self._progress

    def _add(self, line: bytes) -> None:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            return
        step = values.get("step") if isinstance(values, dict) else None
        if type(step) is not int or not 0 <= step <= _MAX_STEP:
            return
        for name, value in values.items():
            if name == "gates":
                if isinstance(value, list) and all(_is_number(gate) and gate >= 0 for gate in value):
                    self._gates = tuple(map(float, value))
            elif not _is_number(value):
                continue
            elif name == "untrained_loss":
                self._untrained = float(value) if self._untrained is None else self._untrained
            elif name != "step":
                points = self._points.setdefault(name, deque(maxlen=MAX_POINTS))
                points.append((step, float(value)))

    def _summarise(self, updated: float) -> RunProgress:
        def points(name: str) -> Points:
            return tuple(self._points.get(name, ()))

        def last(name: str) -> float:
            return self._points[name][-1][1] if name in self._points else 0.0

        seconds = self._points.get("seconds", ())
        recent = list(seconds)[-_RECENT_STEPS - 1 :]
        step_seconds = 0.0
        if len(recent) > 2:  # the first step takes longer than the others, and the second alone says little
            step_seconds = (recent[-1][1] - recent[0][1]) / max(recent[-1][0] - recent[0][0], 1)
        return RunProgress(
            step=recent[-1][0] if recent else 0,
            updated=updated,
            losses=points("loss"),
            held_out=points("held_out_loss"),
            largest_gate=points("largest_gate"),
            gates=self._gates,
            untrained=self._untrained,
            evaluated=self._points["evaluation_seconds"][-1][0] if "evaluation_seconds" in self._points else 0,
            tokens=int(last("tokens")),
            seconds=last("seconds"),
            step_seconds=max(step_seconds, 0.0),
            evaluation_seconds=last("evaluation_seconds"),
        )


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
