"""Features of pictures on disk, for later epochs and runs, within a number of bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load, save

from adapter.base.disk_cache import cache_dir
from adapter.errors import AdapterError, first_line
from adapter.method.vision import VisualFeatures

FOLDER_VARIABLE = "LLAMA_ADAPTER_FEATURES"
SIZE_VARIABLE = "LLAMA_ADAPTER_FEATURES_GB"
_SHARE_OF_DISK = 4  # a quarter of what is free
_LEFT = 0.75  # of the room, at most, when a store is opened
_DIGEST_BYTES = 32


class FeatureStore:
    """Features by the digest of their picture, a file each. Any number of processes may use a folder at once.

    Where room is missing, those give way that were used longest ago, when the store is opened: of pictures that
    do not all fit, some stay and the others are encoded every epoch. A file that is damaged is no file. Where the
    disk fails, nothing more is written, and `log` gets one sentence.
    """

    def __init__(
        self, folder: Path, key: str, max_bytes: int | None = None, log: Callable[[str], None] = print
    ) -> None:
        """key: names the encoder, its weights and options; its features have a folder of their own.

        max_bytes: of all features in `folder`; None: a quarter of what they take and what the disk has free.
        """
        self._folder, self._own, self._log, self._writes = folder, folder / key, log, True
        files = sorted((found.st_mtime, found.st_size, path) for path, found in _files(folder))
        self.bytes = sum(size for _, size, _ in files)
        if max_bytes is None:
            existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
            max_bytes = (self.bytes + shutil.disk_usage(existing).free) // _SHARE_OF_DISK
        self.max_bytes = max_bytes
        for _, size, path in files:
            if self.bytes <= _LEFT * max_bytes:
                break
            path.unlink(missing_ok=True)
            self.bytes -= size

    def get(self, picture: str) -> VisualFeatures | None:
        path = self._path(picture)
        try:
            data = path.read_bytes()
            body = memoryview(data)[_DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
                return None
            os.utime(path)
        except OSError:
            return None
        return VisualFeatures(**load(bytes(body)))

    def put(self, picture: str, features: VisualFeatures) -> None:
        body = save({name: tensor.contiguous() for name, tensor in vars(features).items() if tensor is not None})
        data, path = hashlib.sha256(body).digest() + body, self._path(picture)
        if not self._writes or self.bytes + len(data) > self.max_bytes:
            return
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            # Names and features tell of the pictures: a folder that is made here is nobody else's to read.
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not synced, as it would take longer than most pictures: the digest finds what a power cut left.
            temporary.write_bytes(data)
            os.replace(temporary, path)
            self.bytes += len(data)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._writes = False
            self._log(
                "warning: features of pictures can no longer be kept on disk "
                f"({error.strerror or first_line(error)}). Training goes on, and encodes them again when needed."
            )

    def _path(self, picture: str) -> Path:
        return self._own / picture[:2] / picture  # folders of a hundred thousand files are slow to list


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process was faster
            if path.is_file():
                yield path, path.stat()


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
    folder = Path(chosen).expanduser().absolute() if chosen else cache_dir() / "features"
    name = re.sub(r"[^\w.-]", "_", encoder)[:80]
    store = FeatureStore(folder, f"{name}-{fingerprint[:16]}", max_bytes, log)
    log(
        f"features of pictures are kept on disk for later epochs and runs: {store.bytes / 1e9:.1f} GB are there, "
        f"{store.max_bytes / 1e9:.1f} GB at most"
    )
    return store
