"""Resolves a base's name to a Hugging Face folder; a GGUF file is converted into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapter.base import embedded
from adapter.base.disk_cache import build_once, cache_dir, is_built
from adapter.base.gguf_file import GgufBase, open_gguf
from adapter.base.hf_folder import tensor_shapes, total_bytes
from adapter.errors import LoadError

# Part of a conversion's identity: increase it when the converter changes its output.
_REVISION = 2


@dataclass(frozen=True)
class GgufFile:
    """A base in a GGUF file, and the cache folder of its conversion."""

    path: Path

    @cached_property
    def cache_folder(self) -> Path:
        """One for each path: a newer state of the file replaces the older."""
        path = self.path.resolve()
        name = re.sub(r"[^\w.-]+", "-", path.stem) or "base"
        return cache_dir() / f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"

    @cached_property
    def source_state(self) -> str:
        """Identifies the file by size and modification time; a change makes the conversion stale."""
        found = self.path.stat()
        return json.dumps([_REVISION, (str(self.path.resolve()), found.st_size, found.st_mtime_ns)])

    @cached_property
    def opened(self) -> GgufBase:
        return open_gguf(self.path)

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
                f"Converted from {self.path.resolve()}.\n"
                "This folder may be deleted: it is built again when it is needed.\n",
                encoding="utf-8",
            )

        return build_once(self.cache_folder, fill, self.source_state, required_bytes=weights + 10**8)


def find_gguf(name: str) -> GgufFile | None:
    """The GGUF file at the path `name`; None for the embedded base, a Hugging Face folder and a name on the Hub.

    Raises LoadError for any other file or folder, and for a path where nothing is.
    """
    if name == embedded.BASE:
        return None
    path = Path(os.path.expanduser(name))  # Path.expanduser raises if there is no such user
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return GgufFile(path)
        raise LoadError(
            f"'{path.name}' is a file but no .gguf. Name a GGUF file, or the folder of the whole base.", name
        )
    if (path / "params.json").is_file() and not (path / "config.json").is_file():
        raise LoadError(
            f"'{path.name}' is a base in Meta's own format. Name its Hugging Face repository, such as "
            "huggyllama/llama-7b, or a GGUF file of it.",
            name,
        )
    if path.suffix.lower() == ".gguf" or (
        not path.exists() and (path.is_absolute() or name.startswith((".", "~")))
    ):
        kind = "file" if path.suffix.lower() == ".gguf" else "folder"
        raise LoadError(f"There is no {kind} '{path.name}'. Check the path.", name)
    return None
