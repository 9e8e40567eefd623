"""The folder of a training run. It is an adapter that can be served at any time, the best so far; `state.pt` holds
the latest adapter, the optimiser and the position, and is all that an exact continuation needs.

Knows files; knows nothing of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from adapter.errors import AdapterError
from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import save_adapter
from adapter.method.config import BaseFingerprint

STATE = "state.pt"


class TrainError(AdapterError):
    """A run cannot start, go on or be saved."""


class RunFolder:
    """One run's folder. Everything is written whole or not at all; problems are TrainErrors with the remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock", timeout=0)

    def open(self, resume: bool) -> None:
        """Take the folder: no other run may have it, and it must hold an unfinished run just if `resume`."""
        state = self.path / STATE
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if resume and not state.exists():
                raise TrainError(f"'{self.path}' holds no unfinished run. Start it without --resume.")
            if not resume and state.exists():
                raise TrainError(
                    f"'{self.path}' holds an unfinished run. Go on with it by --resume, or give another folder "
                    "with --out."
                )
        except Timeout as error:
            raise TrainError(
                f"'{self.path}' is in use by another run. Give this one its own with --out."
            ) from error
        except OSError as error:
            raise TrainError(
                f"'{self.path}' cannot be written ({_reason(error)}). Give another folder with --out."
            ) from error

    def close(self) -> None:
        """Let others have it."""
        self._lock.release()

    def load(self, config: Mapping[str, Any], base: BaseFingerprint) -> dict[str, Any]:
        """What `save` wrote, if it was for the same settings and base."""
        path = self.path / STATE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            was, trained_for = state["config"], BaseFingerprint(**state["base"])
        except Exception as error:  # whatever damaged bytes make torch.load raise
            raise TrainError(
                f"'{path}' cannot be read ({_reason(error)}). Start anew with another --out."
            ) from error
        if changed := sorted(key for key in {*was, *config} if was.get(key) != config.get(key)):
            raise TrainError(
                f"The run in '{self.path}' has other settings: {', '.join(changed)}. Resume it with the same "
                "recipe, or start anew with another --out."
            )
        if differences := trained_for.differences(base):
            raise TrainError(
                f"The run in '{self.path}' is for the base {trained_for.name}, not {base.name}: "
                f"{'; '.join(differences)}."
            )
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace state.pt."""
        try:
            with atomic_write(self.path / STATE) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
            raise TrainError(
                f"The run cannot be saved in '{self.path}' ({_reason(error)}). The last good save is still there: "
                "free some room."
            ) from error

    def save_adapter(self, adapter: Adapter) -> None:
        """Replace the adapter."""
        try:
            save_adapter(adapter, self.path)
        except Exception as error:  # safetensors has an error of its own for a full disk
            raise TrainError(
                f"The adapter cannot be saved in '{self.path}' ({_reason(error)}). Free some room."
            ) from error

    def finish(self) -> None:
        """Nothing is left to go on with."""
        (self.path / STATE).unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    return (str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__])[0]
