"""Files that are replaced in one step, names that are taken in one, and a digest of code."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it is synced and renamed over `path` when the block ends.

    Readers see the old file or the new one, never half of it. When the block raises, the old file stays. Raises
    OSError when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def names_lock(folder: Path) -> FileLock:
    """A lock between threads and processes: hold it while you look for a free name in `folder` and take it."""
    return FileLock(folder / ".starting")


def code_digest(*patterns: str) -> str:
    """A SHA-256, in hexadecimal, of the places and contents of the project's files that fit these patterns."""
    root = Path(__file__).parents[1]
    files = sorted(file for pattern in patterns for file in root.glob(pattern))
    return hashlib.sha256(b"".join(str(f.relative_to(root)).encode() + f.read_bytes() for f in files)).hexdigest()
