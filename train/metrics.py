"""What a run says of itself: JSON lines, TensorBoard, and warnings about gates that do not learn."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from adapter.files import atomic_write
from train.run_folder import TrainError

METRICS = "metrics.jsonl"
_STILL = 1e-5  # a largest gate below this after _STILL_STEPS has not moved
_STILL_STEPS = 50
_SATURATED = 2.65  # tanh of this is 0.99


class Figures:
    """The figures of one run in its folder, one JSON object a line, each with its `step`."""

    def __init__(self, folder: Path, after: int, tell: Callable[[str], None], tensorboard: bool) -> None:
        """after: the last step that is taken already; what the folder holds of later ones is dropped."""
        self._path, self._tell = folder / METRICS, tell
        self._told: set[str] = set()
        self._board = _tensorboard(folder) if tensorboard else None
        _keep_until(self._path, after)

    def record(self, step: int, **figures: float) -> None:
        """A full disk costs figures, not the run."""
        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._write({"step": step, **known})
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)

    def by_layer(self, step: int, gates: Tensor) -> None:
        """How far the gates [L, H] are open in each layer, lowest first: the mean of their sizes."""
        opened = [round(value, 5) for value in gates.abs().mean(dim=1).tolist()]
        self._write({"step": step, "gates": opened})

    def watch(self, step: int, gates: Tensor, activation: str) -> None:
        """Tell, once, if gates [L, H] do not move or have no slope left."""
        if step == _STILL_STEPS and gates.abs().max() < _STILL:
            self._warn("the gates have not moved. Raise gate_lr; at zero gates nothing else learns")
        if activation == "tanh" and (gates.abs() > _SATURATED).float().mean() > 0.5:
            self._warn("most gates are saturated and hardly learn any more. Lower gate_lr")

    def _write(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(f"warning: {text}.")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line cut by a kill
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with contextlib.suppress(OSError), atomic_write(path) as temporary:
        temporary.write_text("".join(kept))


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainError("TensorBoard is not installed: pip install tensorboard.") from error
    return SummaryWriter(folder / "tensorboard")
