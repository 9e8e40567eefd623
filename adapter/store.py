"""The adapters on disk, by name. Rescans its folders at every call, so a new adapter is seen at once."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from adapter.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, read_config
from adapter.config import AdapterConfig
from adapter.errors import LoadError
from adapter.llama import Base
from adapter.modules import Adapter

log = logging.getLogger(__name__)

_LONGEST_CARD = 50_000  # characters
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "adapters"


@dataclass(frozen=True)
class AdapterCard:
    """What one says of an adapter without loading its weights."""

    name: str
    config: AdapterConfig
    bytes: int  # of adapter.safetensors

    @property
    def description(self) -> str:
        return self.config.description

    @property
    def is_visual(self) -> bool:
        return self.config.is_visual


class AdapterStore:
    """Adapters in the sub-folders of `folders`; of two with one name the earlier folder's counts."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders or (SHIPPED,)
        self._lock = threading.Lock()
        self._loaded: dict[tuple[Path, str], tuple[tuple, Adapter]] = {}

    def names(self) -> list[str]:
        """Sorted names of all that is there."""
        found = {
            path.parent.name
            for folder in self.folders
            for path in folder.glob(f"*/{CONFIG}")
            if not path.parent.name.startswith(".")
        }
        return sorted(found)

    def folder(self, name: str) -> Path:
        """Where adapter `name` lies. Raises LoadError for an unknown name."""
        for folder in self.folders:
            if name in {p.name for p in folder.glob("*")} and (folder / name / CONFIG).is_file():
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
        return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()

    def load(self, name: str, base: Base) -> Adapter:
        """Adapter `name` on the base's device; the same read-only object until its files change."""
        folder = self.folder(name)
        key = (folder, base.fingerprint.name)
        with self._lock:
            try:
                stamp = tuple((folder / f).stat().st_mtime_ns for f in (CONFIG, WEIGHTS))
            except OSError:
                stamp = ()
            if stamp and key in self._loaded and self._loaded[key][0] == stamp:
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
            return adapter
