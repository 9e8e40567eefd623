"""The folder of one server's uploads: private, new, and deleted with its process. Knows files and locks."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PREFIX = "llama-adapter-"
_LOCK = ".lock-of-llama-adapter"  # marks a folder as made here


@contextlib.contextmanager
def upload_folder(parent: str | None) -> Iterator[Path]:
    """A new folder in `parent`, or in the system's temporary folder, that only this user can read.

    It is deleted when the block ends, and those of servers that were killed are deleted now. Nothing else in
    `parent` is touched. Raises OSError if the folder cannot be made.
    """
    below = Path(parent) if parent else Path(tempfile.gettempdir())
    below.mkdir(mode=0o700, parents=True, exist_ok=True)
    _delete_leftovers(below)
    folder, lock = _new_folder(below)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new_folder(below: Path) -> tuple[Path, int]:
    """The folder, and its lock's descriptor, which the process holds."""
    while True:
        # Nobody can guess its name and put a link there: mkdtemp makes it, with rights for its owner alone.
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=below)).resolve()
        # Without the lock, another server that is starting has taken the folder for a leftover.
        if (lock := _lock(folder / _LOCK, os.O_CREAT | os.O_EXCL)) is not None:
            return folder, lock


def _delete_leftovers(below: Path) -> None:
    """Deletes this user's upload folders in `below` whose servers are dead."""
    for folder in below.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it has no mark, or somebody else deletes it too
            if sys.platform != "win32" and folder.lstat().st_uid != os.geteuid():
                continue
            if (lock := _lock(folder / _LOCK)) is not None:
                shutil.rmtree(folder, ignore_errors=True)  # it follows no links
                os.close(lock)


def _lock(file: Path, flags: int = 0) -> int | None:
    """Locks the file; None if a living process has locked it or it is deleted meanwhile.

    The system drops the lock when its owner dies, however it dies. Raises OSError if there is no such file, or a
    link.
    """
    if sys.platform == "win32":  # temporary folders are each user's own, and the system cleans them up
        return os.open(file, flags | os.O_RDWR) if flags else None
    lock = os.open(file, flags | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink:
            return lock
    os.close(lock)
    return None
