"""Unpacks zips of strangers, with data or an adapter, safely.

Writes nothing outside the target folder, makes no links, and bounds sizes before unpacking.
"""

import mmap
import re
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapter.errors import BadInput, first_line

# Unreadable ones are reported too.
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".jfif", ".heic", ".avif", ".gif", ".bmp")
TABLES = (".json", ".jsonl", ".tsv", ".csv")
_ENTRY = re.compile(b"PK\x01\x02")  # begins each entry of a zip's central directory
_MAX_NAME, _MAX_DEPTH = 200, 10  # characters; folders that a file is in
_REMEDY = "Make the zip again from plain files, and only from those that are wanted."
_SMALL, _RATIO = 2**20, 100  # bytes, and of unpacked to packed ones: a small file may be packed at any ratio


@dataclass(frozen=True)
class ArchiveLimits:
    """files: with folders; endings: of the files that are unpacked; kind, needed: for a sentence."""

    files: int = 4_000
    file_bytes: int = 20 * 2**20
    total_bytes: int = 400 * 2**20
    endings: tuple[str, ...] = (*PICTURES, *TABLES, ".txt")
    kind: str = "pictures or texts"
    needed: str = f"Known endings: {', '.join(endings)}."


def unpack(archive: Path, folder: Path, limits: ArchiveLimits = ArchiveLimits()) -> None:
    """Unpacks the wanted files into the empty `folder`. Raises BadInput, also for a zip that is an attack."""
    try:
        with open(archive, "rb") as packed, mmap.mmap(packed.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # Counted, because zipfile loads as many as there are, whatever number is stated.
            if sum(1 for _ in _ENTRY.finditer(data)) > limits.files:
                raise BadInput(f"The zip holds more than {limits.files:,} files. Split it.")
        with zipfile.ZipFile(archive) as opened:
            for info, place in _select(opened.infolist(), limits):
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                # zipfile reads no more of an entry than the size that it states, which is checked.
                with opened.open(info) as source, open(folder / place, "xb") as target:
                    shutil.copyfileobj(source, target)
    except OSError as error:  # a file in place of a folder, a name that the disk cannot store, a full disk
        raise BadInput(f"A file of the zip cannot be written: is the disk full? {_REMEDY}", str(error)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        # The last three: an encryption unknown to Python; a password; an empty file or broken fields.
        raise BadInput(f"The zip cannot be read. {_REMEDY}", first_line(error)) from error


def _select(infos: list[zipfile.ZipInfo], limits: ArchiveLimits) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The entries to unpack with their targets, checked by the sizes that the zip states."""
    wanted, total = [], 0
    seen: set[str] = set()
    for info in infos:
        place = _target(info)
        hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)  # left there by systems
        if info.is_dir() or hidden or place.suffix.lower() not in limits.endings:
            continue
        if (folded := str(place).casefold()) in seen:
            raise BadInput(f"The zip holds two files named '{place}'. {_REMEDY}")
        seen.add(folded)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others have no bound
            raise BadInput(f"The zip is packed in a way that is not read here. {_REMEDY}")
        total += info.file_size
        if info.file_size > limits.file_bytes or total > limits.total_bytes:
            most = f"{limits.file_bytes // 2**20} MB a file, {limits.total_bytes // 2**20} MB in all"
            raise BadInput(f"'{place.name}' in the zip is too large: {most} are the limit. Split it, or use JPEG.")
        if info.file_size > max(_SMALL, _RATIO * info.compress_size) and place.suffix.lower() != ".bmp":
            raise BadInput(f"'{place.name}' in the zip unpacks to far more than it is packed in. {_REMEDY}")
        wanted.append((info, place))
    if not wanted:
        raise BadInput(f"The zip holds no {limits.kind}. {limits.needed}")
    return wanted


def _target(info: zipfile.ZipInfo) -> PurePosixPath:
    """The path of an entry below the folder. Raises BadInput for paths that lead outside, and for links."""
    name = info.filename.replace("\\", "/")
    place, mode = PurePosixPath(name), info.external_attr >> 16
    wrong = ""
    if name.startswith("/") or ".." in place.parts or re.match(r"[A-Za-z]:", name) or not place.parts:
        wrong = "names a place outside of itself"
    elif len(name) > _MAX_NAME or re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        wrong = "holds a file whose name is too long or cannot be shown"
    elif len(place.parts) > _MAX_DEPTH + 1:  # each file could make a hundred folders
        wrong = f"holds a file in more than {_MAX_DEPTH} folders"
    elif stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        wrong = "holds a link or a device"
    if wrong:
        raise BadInput(f"The zip {wrong}: {info.filename[:60]!a}. {_REMEDY}")
    return place
