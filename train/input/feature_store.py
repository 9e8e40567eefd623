"""Features of pictures on disk, for later epochs and runs, within a number of bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load, save

from adapter.base.disk_cache import cache_dir
from adapter.errors import AdapterError, first_line
from adapter.method.vision import VisualFeatures

FOLDER_VARIABLE = "LLAMA_ADAPTER_FEATURES"
SIZE_VARIABLE = "LLAMA_ADAPTER_FEATURES_GB"
_SHARE_OF_DISK = 4  # a quarter of what is free
_DIGEST_BYTES = 32
_CLOCK_STEP = 1.0  # seconds by which a file's time may lie behind the clock


class FeatureStore:
    """Features by the digest of their picture, a file each. Any number of processes may use a folder at once.

    Where room is missing, those give way that were used longest ago, but none that was used since the store was
    opened: of pictures that do not all fit, some stay and the others are encoded every epoch, whereas evicting the
    oldest would always evict what is needed next. Files are counted when the store is opened, so processes that
    fill a folder at the same time may exceed its room together. A file that is damaged is no file. Where the disk
    fails, nothing more is written, and `log` gets one sentence.
    """

    def __init__(
        self, folder: Path, key: str, max_bytes: int | None = None, log: Callable[[str], None] = print
    ) -> None:
        """key: names the encoder, its weights and options; its features have a folder of their own.

        max_bytes: of all features in `folder`; None: a quarter of what they take and what the disk has free.
        """
        self._folder, self._own, self._log = folder, folder / key, log
        self._opened = time.time() - _CLOCK_STEP
        self._writes = True
        files = self._files()
        self.bytes = sum(size for _, size, _ in files)
        self._oldest_last = [path for _, _, path in sorted(files, reverse=True)]
        if max_bytes is None:
            existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
            max_bytes = (self.bytes + shutil.disk_usage(existing).free) // _SHARE_OF_DISK
        self.max_bytes = max_bytes

    def get(self, picture: str) -> VisualFeatures | None:
        path = self._path(picture)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body = memoryview(data)[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
            return None
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < self._opened:
                os.utime(path)
        return VisualFeatures(**load(bytes(body)))

    def put(self, picture: str, features: VisualFeatures) -> None:
        if not self._writes:
            return
        body = save({name: tensor.contiguous() for name, tensor in vars(features).items() if tensor is not None})
        data = hashlib.sha256(body).digest() + body
        path = self._path(picture)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            if not self._make_room(len(data)):
                return
            # Names and features tell of the pictures: a folder that is made here is nobody else's to read.
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not synced, as it would take longer than most pictures: the digest finds what a power cut left.
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._writes = False
            self._log(
                "warning: features of pictures can no longer be kept on disk "
                f"({error.strerror or first_line(error)}). Training goes on, and encodes them again when needed."
            )
        else:
            self.bytes += len(data)

    def _path(self, picture: str) -> Path:
        return self._own / picture[:2] / picture  # folders of a hundred thousand files are slow to list

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes may be written, after those gave way that were used before the store was opened."""
        while self.bytes + size > self.max_bytes and self._oldest_last:
            path = self._oldest_last.pop()
            with contextlib.suppress(OSError):  # another process was faster
                found = os.stat(path)
                if found.st_mtime < self._opened:
                    os.unlink(path)
                    self.bytes -= found.st_size
        return self.bytes + size <= self.max_bytes

    def _files(self) -> list[tuple[float, int, str]]:
        """Of all files: when it was used, its size and its path."""
        files = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    found = os.stat(path)
                    files.append((found.st_mtime, found.st_size, path))
        return files


def open_store(encoder: str, fingerprint: str, log: Callable[[str], None] = print) -> FeatureStore | None:
    """The store of the features of an encoder in the user's cache; None if nothing is to be kept.

    fingerprint: of all that the features depend on beside the picture. Raises AdapterError if a variable of the
    environment makes no sense.
    """
    chosen, wanted = os.environ.get(FOLDER_VARIABLE), os.environ.get(SIZE_VARIABLE)
    try:
        max_bytes = int(float(wanted) * 1e9) if wanted else None
    except (ValueError, OverflowError):  # OverflowError: infinity
        max_bytes = -1
    if max_bytes is not None and max_bytes < 0:
        raise AdapterError(
            f"{SIZE_VARIABLE} must be a number of gigabytes, or 0 to keep no features; it is '{wanted}'."
        )
    if max_bytes == 0:
        return None
    try:
        folder = Path(chosen).expanduser().absolute() if chosen else cache_dir() / "features"
    except RuntimeError as error:
        raise AdapterError(
            f"{FOLDER_VARIABLE} must be a folder; the home that '{chosen}' names is not known.", first_line(error)
        ) from error
    name = re.sub(r"[^\w.-]", "_", encoder)[:80]
    store = FeatureStore(folder, f"{name}-{fingerprint[:16]}", max_bytes, log)
    log(
        f"features of pictures are kept on disk for later epochs and runs: {store.bytes / 1e9:.1f} GB are there, "
        f"{store.max_bytes / 1e9:.1f} GB at most"
    )
    return store
