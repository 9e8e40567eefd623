"""Folders that are built once and then only read.

A folder is filled in a temporary sibling, forced to the disk and renamed, so that a kill, a second process or a
damaged disk never leaves half of it in its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from adapter.errors import LoadError, first_line

CACHE_VARIABLE = "LLAMA_ADAPTER_CACHE"
_MANIFEST = "manifest.json"


def cache_dir() -> Path:
    """Where converted weights are kept: $LLAMA_ADAPTER_CACHE, else the per-user cache. May not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        if sys.platform == "win32":
            root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            root = Path.home() / "Library" / "Caches"
        else:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise LoadError(
            "This user has no home folder to cache weights in. "
            f"Set {CACHE_VARIABLE} to a folder that can be written."
        ) from error
    return root / "llama-adapter"


# Fills its first argument with the files of a folder, and may use the second for temporary files.
Fill = Callable[[Path, Path], None]


def build_once(
    folder: Path,
    fill: Fill,
    made_from: str = "",
    required_bytes: int | None = None,
) -> Path:
    """Returns `folder`, which is built first if it is missing, incomplete, damaged or made from another source.

    made_from: identifies the state of the source, and is compared with that of an earlier build; required_bytes:
    free disk space to check for. Of several processes one builds and the others wait. Raises LoadError if the disk
    cannot be written or is too small, and whatever `fill` raises.
    """
    needed = "600 MB" if required_bytes is None else f"{required_bytes / 1e9:.1f} GB"
    try:
        if is_built(folder, made_from):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            # Another process may have built the folder while this one waited.
            if not is_built(folder, made_from):
                _say(f"Preparing {folder.name}, once")
                _build(folder, fill, made_from, required_bytes or 0)
    except OSError as error:
        raise LoadError(
            f"Cannot keep {folder.name} in the cache folder. Make it a folder that this user can write, with "
            f"{needed} free, or set {CACHE_VARIABLE} to another one.",
            f"{folder.parent}: {error.strerror or first_line(error)}",
        ) from error
    return folder


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # The system drops this lock when its owner dies, however it dies.
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"Another process is preparing {folder.name}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _build(folder: Path, fill: Fill, made_from: str, required_bytes: int) -> None:
    """Builds under the lock: every temporary folder here was left by a process that has ended."""
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if free < required_bytes:
        raise LoadError(
            f"Preparing {folder.name} takes {required_bytes / 1e9:.1f} GB of disk in the cache folder, where "
            f"{free / 1e9:.1f} GB are free. Make room, or set {CACHE_VARIABLE} to a folder on another disk.",
            str(folder.parent),
        )
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    result = scratch / "result"
    try:
        result.mkdir()
        fill(result, scratch)
        files = {path.name: _sample(path) for path in sorted(result.iterdir())}
        manifest = result / _MANIFEST
        known = {"made_from": made_from, "files": files} if made_from else {"files": files}
        manifest.write_text(json.dumps(known, indent=2), encoding="utf-8")
        for path in result.iterdir():
            path.chmod(manifest.stat().st_mode)  # safetensors writes for the owner alone
            _sync(path)
        _sync(result)
        if folder.exists():
            os.rename(folder, scratch / "before")  # a rename cannot replace a folder that holds files
        os.rename(result, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_built(folder: Path, made_from: str = "") -> bool:
    """Whether `folder` is complete, undamaged and made from this source: `build_once` then builds nothing."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
        same = manifest.get("made_from", "") == made_from
        return same and all(_sample(folder / name) == known for name, known in files)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sample(path: Path) -> dict[str, int | str]:
    """Size, and a SHA-256 of 64 blocks of 64 KiB spread over the file: milliseconds where all of it takes one
    second, and still notices a file that was cut, emptied, overwritten or lost pages in a power cut."""
    size, block = path.stat().st_size, 1 << 16
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(64):
            file.seek(max(index * block, index * (size - block) // 63))
            digest.update(file.read(block))
    return {"size": size, "sampled_sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    """Force a file or a folder to the disk. Windows opens no folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
