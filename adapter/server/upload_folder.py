"""The folder of one server's uploads: private, new, and deleted with its process."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "llama-adapter-"
_LOCK = ".lock-of-llama-adapter"  # marks a folder as made here


@contextlib.contextmanager
def upload_folder(parent: str | None) -> Iterator[Path]:
    """A new folder in `parent`, or in the system's temporary folder, that only this user can read.

    It is deleted when the block ends, and those of servers that were killed are deleted now. Nothing else in
    `parent` is touched. Raises OSError if the folder cannot be made.
    """
    below = Path(parent or tempfile.gettempdir())
    below.mkdir(mode=0o700, parents=True, exist_ok=True)
    _delete_leftovers(below)
    # Nobody can guess its name and put a link there: mkdtemp makes it, with rights for its owner alone. It gets a
    # name of its own once it is locked: another server that starts now would take it for a leftover.
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=below)).resolve()
    folder = new.with_name(f"{_PREFIX}{new.name.removeprefix('.new-')}")
    with FileLock(new / _LOCK):  # which the system drops when its owner dies, however it dies
        new.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _delete_leftovers(below: Path) -> None:
    """Deletes this user's upload folders in `below` whose servers are dead."""
    for folder in below.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):  # it is in use, or somebody else deletes it too
            own = not hasattr(os, "geteuid") or folder.lstat().st_uid == os.geteuid()
            mark = folder / _LOCK
            if own and mark.is_file() and not (folder.is_symlink() or mark.is_symlink()):
                with FileLock(mark, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
