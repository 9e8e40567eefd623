"""Features of pictures by the frozen encoder, each picture encoded once: in memory, and on disk for later runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from adapter.base.disk_cache import cache_dir
from adapter.base.image_file import open_image, read_image
from adapter.errors import AdapterError, BadInput, first_line
from adapter.lru import LRU
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualEncoder, VisualFeatures
from train.config import SIZE_VARIABLE
from train.formats.record import picture_source
from train.input.examples import SkippedExamples
from train.input.rows import TokenisedRow

FOLDER_VARIABLE = "LLAMA_ADAPTER_FEATURES"
_DISK_DIVISOR = 4  # by default a store may take a quarter of what it has and the disk has free
_FILLED_AT_OPENING = 0.75  # of max_bytes: above it, opening deletes the files that were used longest ago
_DIGEST_BYTES = 32
_MEMORY_BYTES = 2**29
_ENCODED_TOGETHER = 32  # on a GPU


class FeatureStore:
    """Features by the digest of their picture, a file each. Any number of processes may use a folder at once.

    Opening a store that is nearly full deletes the files used longest ago; a full store takes no more, so pictures
    that do not fit are encoded every epoch. A damaged file counts as missing. After a failed write nothing more is
    written, and `log` gets one sentence.
    """

    def __init__(
        self, folder: Path, key: str, max_bytes: int | None = None, log: Callable[[str], None] = print
    ) -> None:
        """key: names the encoder, its weights and options; its features have a folder of their own.

        max_bytes: of all features in `folder`; None: a quarter of what they take and what the disk has free.
        """
        self._folder, self._own, self._log, self._writes = folder, folder / key, log, True
        files: list[tuple[float, int, Path]] = []
        for path in folder.glob("*-????????????????/??/*"):  # as `_path` names them: others' files are not ours
            with contextlib.suppress(OSError):  # another process was faster
                if path.is_file():
                    found = path.stat()
                    files.append((found.st_mtime, found.st_size, path))
        self.bytes = sum(size for _, size, _ in files)
        if max_bytes is None:
            existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
            max_bytes = (self.bytes + shutil.disk_usage(existing).free) // _DISK_DIVISOR
        self.max_bytes = max_bytes
        for _, size, path in sorted(files):
            if self.bytes <= _FILLED_AT_OPENING * max_bytes:
                break
            with contextlib.suppress(OSError):  # on a read-only disk, or another user's
                path.unlink(missing_ok=True)
                self.bytes -= size

    def get(self, picture: str) -> VisualFeatures | None:
        path = self._path(picture)
        try:
            data = path.read_bytes()
            body = memoryview(data)[_DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
                return None
        except OSError:
            return None
        with contextlib.suppress(OSError):  # what cannot be marked as used counts as older
            os.utime(path)
        return VisualFeatures(**load(bytes(body)))

    def put(self, picture: str, features: VisualFeatures) -> None:
        body = save({name: tensor.contiguous() for name, tensor in vars(features).items() if tensor is not None})
        data, path = hashlib.sha256(body).digest() + body, self._path(picture)
        # The node's other processes write as much.
        size = len(data) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not self._writes or self.bytes + size > self.max_bytes:
            return
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            # Names and features tell of the pictures: a folder that is made here is nobody else's to read.
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not synced, as it would take longer than most pictures: the digest finds what a power cut left.
            temporary.write_bytes(data)
            os.replace(temporary, path)
            self.bytes += size
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._writes = False
            self._log(
                "warning: features of pictures can no longer be kept on disk, where LLAMA_ADAPTER_FEATURES says "
                f"({error.strerror or first_line(error)}). Training goes on, and encodes them again when needed."
            )

    def _path(self, picture: str) -> Path:
        return self._own / picture[:2] / picture  # folders of a hundred thousand files are slow to list


def open_store(encoder: str, fingerprint: str, log: Callable[[str], None] = print) -> FeatureStore | None:
    """The store of an encoder's features in the user's cache; None if nothing is to be kept. Raises AdapterError.

    fingerprint: of all that the features depend on beside the picture.
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


class FeatureCache:
    """Features of picture files by the encoder of one adapter, by the content of the file.

    On a CPU each picture is encoded alone: together is hardly faster there, and alone its features have the same
    bits in any batch and process, so that a resumed run equals one that never stopped, whatever is still on disk.
    Features are kept in half precision and leave as fp32; what was just encoded passes through half precision too.
    """

    def __init__(
        self, encoder: VisualEncoder, vision: VisionConfig, skipped: SkippedExamples, store: FeatureStore | None
    ) -> None:
        self._encoder, self._encoding, self._skipped, self._store = encoder, vision.encoding, skipped, store
        self._memory: LRU[bytes, VisualFeatures] = LRU(
            _MEMORY_BYTES, lambda features: sum(t.nbytes for t in vars(features).values() if t is not None)
        )

    @staticmethod
    def on_disk(
        encoder: VisualEncoder, vision: VisionConfig, skipped: SkippedExamples, log: Callable[[str], None]
    ) -> FeatureCache:
        """A cache whose features later runs find in the user's cache folder."""
        fingerprint = hashlib.sha256(f"{encoder.fingerprint()} {vision.encoding}".encode()).hexdigest()
        return FeatureCache(encoder, vision, skipped, open_store(encoder.name, fingerprint, log))

    def with_features(
        self, rows: Sequence[TokenisedRow], stopping: Callable[[], bool] = lambda: False
    ) -> list[TokenisedRow]:
        """The rows with the features of their pictures; rows without one as they are.

        Those whose picture cannot be read are skipped. Once `stopping` says so, those to encode are left out.
        """
        keys: list[bytes | None] = []  # b"" for no picture, None for one that cannot be read
        found: dict[bytes, VisualFeatures] = {}
        images: dict[bytes, Image.Image] = {}
        for row in rows:
            picture, key = row.example.picture, b""
            keys.append(key)
            if picture is None:
                continue
            try:
                data = read_image(picture_source(picture))
                key = hashlib.sha256(data).digest()
                if key not in found and key not in images:
                    if (features := self._get(key)) is None:
                        images[key] = open_image(data)
                    else:
                        found[key] = features
                keys[-1] = key
            except BadInput as error:
                where = row.example.where
                self._skipped.add(where or picture.name, f"{where}: {picture.name}: {error}")
                keys[-1] = None
        together = 1 if self._encoder.device.type == "cpu" else _ENCODED_TOGETHER
        missing = list(images)
        for chunk in (missing[start : start + together] for start in range(0, len(missing), together)):
            if stopping():
                break
            features = self._encoder.encode([images[key] for key in chunk], **self._encoding)
            features = features.map(_in_half).to("cpu")
            for i, key in enumerate(chunk):
                found[key] = features[i : i + 1].map(Tensor.clone)  # a view would keep the chunk in memory
                self._memory.put(key, found[key])
                if self._store is not None:
                    self._store.put(key.hex(), found[key])
        return [
            row._replace(example=replace(row.example, features=found[key].to(torch.float32))) if key else row
            for row, key in zip(rows, keys, strict=True)
            if key is not None and (not key or key in found)
        ]

    def _get(self, key: bytes) -> VisualFeatures | None:
        if (features := self._memory.get(key)) is None and self._store is not None:
            features = self._store.get(key.hex())
            if features is not None:
                self._memory.put(key, features)
        return features


def _in_half(values: Tensor) -> Tensor:
    """float16, which keeps 11 bits where bfloat16 keeps 8; as they are if they are too large for it."""
    half = values.half()
    return half if half.isfinite().all() else values
