"""Folders that are built once and then only read; a kill or a second process leaves none of them half built."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from adapter.errors import LoadError, first_line

CACHE_VARIABLE = "LLAMA_ADAPTER_CACHE"
MANIFEST = "manifest.json"


def cache_dir() -> Path:
    """Where converted weights are kept: $LLAMA_ADAPTER_CACHE, else ~/.cache/llama-adapter. May not exist yet."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "llama-adapter"
    return Path(os.path.expanduser(os.environ.get(CACHE_VARIABLE) or default)).absolute()


def build_once(folder: Path, fill: Callable[[Path, Path], None], made_from: str = "") -> Path:
    """Returns `folder`, which is built first if it is missing, incomplete, damaged or made from another source.

    fill: writes the files into its first argument, and may use the second for temporary files.
    made_from: identifies the state of the source. Of several processes one builds and the others wait.
    Raises LoadError if the disk cannot be written, and whatever `fill` raises.
    """
    try:
        if is_built(folder, made_from):
            return folder
        print(f"Preparing {folder.name}, once", file=sys.stderr, flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The system drops the lock when its owner dies, however it dies.
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not is_built(folder, made_from):  # by another process, while this one waited
                _build(folder, fill, made_from)
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"Cannot keep {folder.name} in the cache folder. Make it a folder that this user can write, with room "
            f"for a whole base, or set {CACHE_VARIABLE} to another one.",
            f"{folder.parent}: {getattr(error, 'strerror', None) or first_line(error)}",
        ) from error
    return folder


def _build(folder: Path, fill: Callable[[Path, Path], None], made_from: str) -> None:
    """Builds under the lock: every temporary folder here was left by a process that has ended."""
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    result = scratch / "result"
    try:
        result.mkdir()
        fill(result, scratch)
        files = {path.name: _sample(path) for path in sorted(result.iterdir())}
        manifest = result / MANIFEST
        manifest.write_text(json.dumps({"made_from": made_from, "files": files}, indent=2), encoding="utf-8")
        for path in result.iterdir():
            path.chmod(manifest.stat().st_mode)  # safetensors writes for the owner alone
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if folder.exists():
            os.rename(folder, scratch / "before")  # a rename cannot replace a folder that holds files
        os.rename(result, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_built(folder: Path, made_from: str = "") -> bool:
    """Whether `folder` is complete, undamaged by a sample, and of this source: `build_once` builds nothing."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        same = manifest.get("made_from", "") == made_from
        return same and all(_sample(folder / name) == known for name, known in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sample(path: Path) -> dict[str, int | str]:
    """Size, and a SHA-256 of 64 blocks of 64 KiB spread over the file: milliseconds where all of it takes one
    second, and notices a file that was cut, emptied or overwritten, not a few lost pages."""
    size, block = path.stat().st_size, 1 << 16
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(64):
            file.seek(max(index * block, index * (size - block) // 63))
            digest.update(file.read(block))
    return {"size": size, "sampled_sha256": digest.hexdigest()}
