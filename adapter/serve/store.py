"""The adapter store: adapters on disk by name. Every call lists the folders, so a new adapter is seen at once."""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.base.memory import free_bytes
from adapter.errors import BadInput, LoadError
from adapter.lru import LRU
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, read_config
from adapter.method.config import AdapterConfig, BaseFingerprint
from adapter.serve.form import check_form
from adapter.serve.settings import SHIPPED

_MAX_CARD, _MAX_DESCRIPTION = 50_000, 300  # characters
_LOADED_BYTES = 2 * 2**30  # of adapters in memory, or an eighth of what is free before the base is loaded
FileVersion = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AdapterCard:
    """What is known of an adapter without loading its weights."""

    config: AdapterConfig
    bytes: int  # of adapter.safetensors
    own: bool = False  # whether it was trained or uploaded here

    @property
    def description(self) -> str:
        """One line for a list, without control characters: a stranger may have written it."""
        text = strip_control_characters(" ".join(self.config.description[: 4 * _MAX_DESCRIPTION].split()))
        return text if len(text) <= _MAX_DESCRIPTION else text[: _MAX_DESCRIPTION - 1] + "…"


class AdapterStore:
    """Adapters in the sub-folders of `folders`. Of two with one name, the one in the earlier folder counts."""

    def __init__(self, *folders: Path, incoming: Path | None = None) -> None:
        """incoming: the folder of trained and uploaded adapters, one of `folders`."""
        self.folders = folders or (SHIPPED,)
        self.incoming = incoming or self.folders[0]
        self._own = incoming
        limit = min(_LOADED_BYTES, max(free_bytes("cpu") // 8, 2**28))
        self._loaded: LRU[tuple[Path, BaseFingerprint, str, FileVersion], Adapter] = LRU(
            limit, lambda adapter: min(adapter.nbytes, limit)
        )

    def names(self, shipped: bool = True) -> list[str]:
        """Returns all names; with shipped=False without those of the shipped adapters."""
        folders = [folder for folder in self.folders if shipped or folder != SHIPPED]
        return sorted({name for folder in folders for name in _list_names(folder)})

    def folder(self, name: str) -> Path:
        """The folder of adapter `name`. Raises LoadError for an unknown name."""
        for folder in self.folders:
            if _list_names(folder, name):  # a name that is listed is no path
                return folder / name
        known = ", ".join(self.names()) or "none"
        raise LoadError(f"There is no adapter '{name}'. Choose one of: {known}.")

    def card(self, name: str) -> AdapterCard:
        """The card of adapter `name`. Raises LoadError if it is unknown or broken."""
        folder = self.folder(name)
        try:
            size = (folder / WEIGHTS).stat().st_size
        except OSError as error:
            raise LoadError(f"Adapter '{name}': {WEIGHTS} is missing. Download or train it again.") from error
        return AdapterCard(read_config(folder), size, folder.parent == self._own)

    def card_text(self, name: str) -> str:
        """The model card of adapter `name` without its front matter; empty if it has none."""
        try:
            with open(self.folder(name) / CARD, encoding="utf-8", errors="replace") as file:
                text = file.read(_MAX_CARD)
        except OSError:
            return ""
        body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
        return strip_control_characters(body, keep="\n\t").strip()

    def load(self, name: str, base: BaseFingerprint, device: Any = "cpu") -> Adapter:
        """Adapter `name` on a device: the same until files change or it is evicted. Raises LoadError or Busy."""
        folder = self.folder(name)
        version = _file_version(folder)  # before reading: a change meanwhile is seen by the next call
        return self._loaded.compute((folder, base, str(device), version), lambda: _load(folder, base, device))


def _load(folder: Path, base: BaseFingerprint, device: Any) -> Adapter:
    adapter = load_adapter(folder, base, device)
    if adapter.config.form is not None:
        try:
            check_form(adapter.config.form)
        except BadInput as error:
            raise LoadError(f"Adapter '{folder.name}': {error}", error.detail) from error
    return adapter


def strip_control_characters(text: str, keep: str = "") -> str:
    """Remove control and format characters except `keep`: they can steer a terminal or reverse a line."""
    return "".join(c for c in text if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp"))


def _list_names(folder: Path, only: str | None = None) -> list[str]:
    """Sub-folders that hold an adapter, without names that a page cannot show (surrogates, line breaks)."""
    try:
        names = os.listdir(folder)
    except OSError:  # the folder does not exist yet, or is being removed
        return []
    names = [name for name in names if only in (None, name) and name.isprintable() and name[0] != "."]
    return [name for name in names if os.path.isfile(os.path.join(folder, name, CONFIG))]


def _file_version(folder: Path) -> FileVersion:
    """Identifies one state of the adapter's files; empty if they are missing."""
    try:
        stats = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
    except OSError:
        return ()
    # `cp -p` and `tar` restore an older st_mtime; within a tick of the clock `save_adapter` still changes st_ino,
    # for the old file is there until the new one has been written.
    return tuple((s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for s in stats)
