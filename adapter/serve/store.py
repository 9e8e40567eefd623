"""The adapters on disk, by name. Rescans its folders at every call, so a new adapter is seen at once."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from adapter.base.llama import Base
from adapter.errors import LoadError
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, read_config
from adapter.method.config import AdapterConfig

log = logging.getLogger(__name__)

_LONGEST_CARD, _LONGEST_DESCRIPTION = 50_000, 300  # characters
_KEPT = 32  # adapters in memory; whoever is answered with one more keeps it alive meanwhile
# File times move in steps of a few milliseconds: within one, a second change would leave no trace.
_STEP_SECONDS = 0.02
Stamp = tuple[tuple[int, ...], ...]
SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "adapters"


@dataclass(frozen=True)
class AdapterCard:
    """What one says of an adapter without loading its weights."""

    name: str
    config: AdapterConfig
    bytes: int  # of adapter.safetensors

    @property
    def description(self) -> str:
        """One line, fit for a list: it may be a stranger's."""
        text = inert(" ".join(self.config.description.split()))
        return text if len(text) <= _LONGEST_DESCRIPTION else text[: _LONGEST_DESCRIPTION - 1] + "…"

    @property
    def is_visual(self) -> bool:
        return self.config.is_visual


class AdapterStore:
    """Adapters in the sub-folders of `folders`; of two with one name the earlier folder's counts."""

    def __init__(self, *folders: Path, incoming: Path | None = None) -> None:
        """incoming: where new adapters are put that are made or brought here; one of the folders."""
        self.folders = folders or (SHIPPED,)
        self.incoming = incoming or self.folders[0]
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[Path, str], tuple[Stamp, Adapter]] = OrderedDict()

    def names(self) -> list[str]:
        """Sorted names of all that is there."""
        return sorted({name for folder in self.folders for name in _names_in(folder)})

    def folder(self, name: str) -> Path:
        """Where adapter `name` lies. Raises LoadError for an unknown name."""
        for folder in self.folders:
            if name in _names_in(folder):
                return folder / name
        known = ", ".join(self.names()) or "none"
        raise LoadError(f"There is no adapter '{name}'. Choose one of: {known}.")

    def card(self, name: str) -> AdapterCard:
        """The card of adapter `name`. Raises LoadError if it is unknown or broken."""
        folder = self.folder(name)
        try:
            size = (folder / WEIGHTS).stat().st_size
        except OSError as error:
            raise LoadError(
                f"Adapter '{name}': {WEIGHTS} is missing. Download or train the adapter again."
            ) from error
        return AdapterCard(name, read_config(folder), size)

    def card_text(self, name: str) -> str:
        """The model card that came with adapter `name`, without its front matter; empty if it has none."""
        try:
            with open(self.folder(name) / CARD, encoding="utf-8", errors="replace") as file:
                text = file.read(_LONGEST_CARD)
        except OSError:
            return ""
        return inert(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL), keep="\n\t").strip()

    def load(self, name: str, base: Base) -> Adapter:
        """Adapter `name` on the base's device; the same read-only object until its files change.

        Raises LoadError if it is unknown or broken, for as long as it is.
        """
        folder = self.folder(name)
        key = (folder, base.fingerprint.name)
        with self._lock:
            stamp = _stamp(folder)  # before the files are read: a change meanwhile is seen the next time
            if stamp and key in self._loaded and self._loaded[key][0] == stamp:
                self._loaded.move_to_end(key)
                return self._loaded[key][1]
            self._loaded.pop(key, None)
            adapter = load_adapter(folder, base.fingerprint, base.device)
            mine, theirs = adapter.config.base.weights, base.fingerprint.weights
            if mine and theirs and mine != theirs:
                log.warning(
                    "Adapter '%s' was trained on other weights of the same shape (%s): answers may differ.",
                    name,
                    adapter.config.base.name,
                )
            self._loaded[key] = (stamp, adapter)
            while len(self._loaded) > _KEPT:
                self._loaded.popitem(last=False)
            return adapter


def inert(text: str, keep: str = "") -> str:
    """A text without control and format characters but `keep`: they may steer a terminal or turn a line round."""
    return "".join(c for c in text if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp"))


def _names_in(folder: Path) -> list[str]:
    """Sub-folders that hold an adapter. Names that a page cannot show are none: half characters, line breaks."""
    try:
        names = [name for name in os.listdir(folder) if name.isprintable() and name[0] != "."]
    except OSError:  # there is no such folder (yet), or it goes away just now
        return []
    return [name for name in names if os.path.isfile(folder / name / CONFIG)]


def _stamp(folder: Path) -> Stamp:
    """What tells one state of the adapter's files from another; empty if they are not there or just changing.

    Not the time of the last writing alone: `cp -p` and `tar` bring an older one along.
    """
    for _ in range(2):
        try:
            found = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
        except OSError:
            return ()
        age = time.time() - max(s.st_ctime for s in found)
        if not 0 <= age < _STEP_SECONDS:
            return tuple((s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for s in found)
        time.sleep(_STEP_SECONDS - age)
    return ()
