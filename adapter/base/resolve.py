"""Resolves a base's name to a Hugging Face folder; Meta's folders and GGUF files are converted into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapter.base import embedded
from adapter.base.disk_cache import build_once, cache_dir, is_built
from adapter.base.foreign.gguf_file import GgufBase, open_gguf
from adapter.base.foreign.meta_checkpoint import MetaBase, is_meta, meta_files, open_meta
from adapter.base.hf_folder import tensor_shapes, total_bytes
from adapter.errors import LoadError

# Part of a conversion's identity: increase it when a converter changes its output.
_REVISION = 1


@dataclass(frozen=True)
class ForeignBase:
    """A base in another format: where it is, the files its conversion reads, and how to open it."""

    path: Path
    format: str
    files: tuple[Path, ...]
    open: Callable[[Path], MetaBase | GgufBase]

    @cached_property
    def cache_folder(self) -> Path:
        """The cache folder of its conversion, one for each path: a newer state of the files replaces the older."""
        path = self.path.resolve()
        name = re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.name) or "base"
        return cache_dir() / f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"

    @cached_property
    def source_state(self) -> str:
        """Identifies the source files by size and modification time; a change makes the conversion stale."""
        stats = [(str(file.resolve()), file.stat()) for file in self.files]
        return json.dumps([_REVISION, *((name, s.st_size, s.st_mtime_ns) for name, s in stats)])

    @cached_property
    def opened(self) -> MetaBase | GgufBase:
        return self.open(self.path)

    def config(self) -> Any:
        """Its LlamaConfig without converting it; None if it is converted already, with its config."""
        return None if is_built(self.cache_folder, self.source_state) else self.opened.config

    def folder(self) -> Path:
        """Its Hugging Face folder, converted first if necessary. Raises LoadError."""
        if is_built(self.cache_folder, self.source_state):
            return self.cache_folder
        opened = self.opened
        weights = total_bytes(tensor_shapes(opened.config), opened.config.dtype)

        def fill(result: Path, _: Path) -> None:
            opened.convert(result)
            (result / "SOURCE.md").write_text(
                f"Converted from {self.path.resolve()} ({self.format}).\n"
                "This folder may be deleted: it is built again when it is needed.\n",
                encoding="utf-8",
            )

        return build_once(self.cache_folder, fill, self.source_state, required_bytes=weights + 10**8)


def find_foreign(name: str) -> ForeignBase | None:
    """The base at the path `name` if it has another format than Hugging Face's, else None.

    Raises LoadError for a file or folder that is none, and for a path where nothing is.
    """
    if name == embedded.BASE:
        return None
    path = Path(os.path.expanduser(name))  # Path.expanduser raises if there is no such user
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise LoadError(
                f"'{path.name}' is a file but no .gguf. Name a GGUF file, or the folder of the whole base.",
                name,
            )
        return ForeignBase(path, "GGUF", (path,), open_gguf)
    if path.suffix.lower() == ".gguf":
        raise LoadError(f"There is no file '{path.name}'. Check the path.", name)
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~"))):  # not a name on the Hub
        raise LoadError(f"There is no folder '{path.name}'. Check the path.", name)
    if not path.is_dir() or _has_huggingface_weights(path):
        return None
    if is_meta(path):
        return ForeignBase(path, "Meta", tuple(meta_files(path)), open_meta)
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise LoadError(f"'{path.name}' holds several GGUF files: {names}. Name one of them.", name)
    return ForeignBase(files[0], "GGUF", (files[0],), open_gguf) if files else None


def _has_huggingface_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(
        path.suffix in (".safetensors", ".bin") for path in folder.iterdir()
    )
