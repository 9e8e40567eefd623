"""The folder of a training run: the best adapter so far, which can be served at any time; `state.pt` with all that
an exact continuation needs (latest adapter, optimiser, position in the data); `metrics.jsonl`; and, where a recipe
asks for them, the adapters of some steps in `checkpoints`.
"""

import contextlib
import reprlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from adapter.errors import AdapterError, first_line
from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, save_adapter
from adapter.method.config import BaseFingerprint
from train.config import METRICS, STATE, TrainConfig
from train.input.keep import OWN_TEXT

CHECKPOINTS = "checkpoints"
# Settings that change nothing about the adapter of a run but rounding: a resumed run may have others.
_FREE_SETTINGS = ("save_every", "checkpoint_every", "gradient_checkpointing", "accumulate", "tracker")
# What is not known before data, encoder and base are loaded: "", or 1 for a size.
_LATER = ("data", "precision", "keep_text", "vision.feature_size", "vision.token_size", "tuning.intermediate_size")
_CHANGED = {
    "data": "its data has changed since it started, or how it is read, or which of it is held out",
    "keep_text": "the text of keep has changed",
    "start_from": "start_from is not the adapter that it started from",
}


class TrainError(AdapterError):
    """A run cannot start, continue or be saved."""


def run_identity(config: TrainConfig, base: BaseFingerprint | None, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What an adapter depends on. base: None if not known yet; inputs: precision, digests of what else goes in."""
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE_SETTINGS}
    fingerprint = {} if base is None else asdict(base)
    fingerprint.pop("name", None)  # a folder's, where the base is one
    return {**settings, **inputs, "base": fingerprint}


class RunFolder:
    """One run's folder. State and adapter are written atomically; failures are TrainErrors that name a remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock", timeout=0)

    def open(self, resume: bool) -> None:
        """Locks the folder for this process. It must hold an unfinished run if `resume`, else no result."""
        name, state = f"'{self.path.name}'", self.path / STATE
        if resume and not state.exists():  # before the folder is made: its name may be mistyped
            raise TrainError(f"{name} holds no unfinished run. Start it without --resume.", str(self.path))
        with _explained(f"{name} cannot be written. Give another folder with --out.", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                used = f"{name} is in use by another run. Give this one its own with --out."
                raise TrainError(used, str(self.path)) from error
            for name_of in (STATE, METRICS, OWN_TEXT, WEIGHTS, CONFIG, CARD):  # the folder may hold others'
                for cut_off in self.path.glob(f".{name_of}.{8 * '[0-9a-f]'}"):  # by a kill
                    cut_off.unlink(missing_ok=True)
        if not resume and state.exists():
            unfinished = f"{name} holds an unfinished run. Go on with it by --resume, or give another --out."
            raise TrainError(unfinished, str(self.path))
        other = (self.path / CONFIG).exists() and not (self.path / METRICS).exists()  # not a run's
        finished = other or (self.path / CARD).exists()
        if not resume and (finished or any((self.path / CHECKPOINTS).glob("step-*"))):
            own = "a finished adapter" if (self.path / CONFIG).exists() else f"a {CARD} of something else"
            what = own if finished else f"adapters in '{CHECKPOINTS}'"
            raise TrainError(
                f"{name} holds {what}. Give another --out, or another name, or remove it.", str(self.path)
            )

    def close(self) -> None:
        """Releases the lock, however often the folder was opened."""
        self._lock.release(force=True)

    def load(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Reads what `save` wrote. Raises TrainError, which names what differs from `identity` as far as known."""
        path = self.path / STATE
        with _explained(f"'{path.name}' cannot be read. Start anew under another name (--out).", path):
            if damaged := zipfile.ZipFile(path).testzip():  # torch compares no checksums
                raise ValueError(f"damaged: {damaged}")
            state = torch.load(path, map_location="cpu", weights_only=True)
            differences = _differences(state["identity"], identity)
        if differences:
            raise TrainError(
                f"The run in '{self.path.name}' cannot go on, because it would be another run: "
                f"{'; '.join(differences)}. Resume it as it was started, or start anew with another --out.",
                str(self.path),
            )
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces state.pt. state["identity"]: of the run."""
        kept = " The last save is still there." if (self.path / STATE).exists() else ""
        text = f"The run cannot be saved in '{self.path.name}'.{kept} Free some room."
        with _explained(text, self.path), atomic_write(self.path / STATE) as temporary:
            torch.save(state, temporary)

    def save_adapter(self, adapter: Adapter, step: int | None = None) -> None:
        """Replaces the adapter; or writes that of a step into a folder of its own, which can be served as well."""
        folder = self.path if step is None else self.path / CHECKPOINTS / f"step-{step:06d}"
        with _explained(f"The adapter cannot be saved in '{self.path.name}'. Free some room.", folder):
            save_adapter(adapter, folder)


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], group: str = "") -> list[str]:
    """What differs, such as "lr was 0.01 and is 0.5"."""
    differences: list[str] = []
    for key in sorted({*saved, *now} - {*_FREE_SETTINGS}):  # of which an older run's state has more
        was, is_now, name = saved.get(key), now.get(key), f"{group}{key}"
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            differences += _differences(was, is_now, f"{name}.")
        elif was != is_now and not (is_now in (None, "", 1) and (name in _LATER or group == "base.")):
            differences.append(_CHANGED.get(name, f"{name} was {reprlib.repr(was)} and is {reprlib.repr(is_now)}"))
    return differences


@contextlib.contextmanager
def _explained(sentence: str, path: Path) -> Iterator[None]:
    """Raises TrainError with the sentence for any error: a full disk and damaged bytes raise all kinds."""
    try:
        yield
    except TrainError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise TrainError(sentence, f"{path}: {reason}") from error
