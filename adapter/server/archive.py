"""Unpacks zips of strangers, with data or an adapter, safely. Knows zips and files.

Writes nothing outside the target folder, makes no links, and bounds sizes before and while unpacking.
"""

from __future__ import annotations

import mmap
import re
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapter.errors import BadInput, first_line

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
TABLES = (".json", ".jsonl", ".tsv", ".csv")
ALLOWED = (*PICTURES, *TABLES, ".txt")
_ENTRY = b"PK\x01\x02"  # begins each entry of a zip's central directory
_CHUNK = 2**16
_REMEDY = "Make the zip again from plain files, and only from those that are wanted."
_SMALL = 2**20  # bytes: a small file may be packed at any ratio


@dataclass(frozen=True)
class ArchiveLimits:
    """files: entries, folders included; ratio: of unpacked to packed bytes, for a file that is not small.

    name: characters; depth: folders that a file is in; endings: of the files that are unpacked; kind: what a
    sentence calls them.
    """

    files: int = 4_000
    file_bytes: int = 20 * 2**20
    total_bytes: int = 400 * 2**20
    ratio: int = 100
    name: int = 200
    depth: int = 10
    endings: tuple[str, ...] = ALLOWED
    kind: str = "pictures or texts"


LIMITS = ArchiveLimits()


def unpack(archive: Path, folder: Path, limits: ArchiveLimits = LIMITS) -> list[str]:
    """Unpacks the wanted files of `archive` into the empty `folder`; returns the names of the others.

    Raises BadInput with a sentence if the zip is damaged, too large, packed as a bomb, or reaches outside.
    """
    try:
        if _count_entries(archive) > limits.files:
            raise BadInput(f"The zip holds more than {limits.files:,} files. Split it.")
        with zipfile.ZipFile(archive) as opened:
            wanted, left_out = _select(opened.infolist(), limits)
            room = limits.total_bytes
            for info, place in wanted:
                room -= _write(opened, info, folder / place, min(limits.file_bytes, room), limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        # NotImplementedError: a packing unknown to Python; RuntimeError: a password; ValueError: broken fields.
        raise BadInput(f"The zip cannot be read. {_REMEDY}", first_line(error)) from error
    return left_out


def _count_entries(archive: Path) -> int:
    """The number of entries, counted in the file: the stated one may be wrong, and zipfile would load them all."""
    with open(archive, "rb") as file:
        if not file.seek(0, 2):
            raise BadInput(f"The zip is empty. {_REMEDY}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            count, at = 0, data.find(_ENTRY)
            while at >= 0:
                count, at = count + 1, data.find(_ENTRY, at + 4)
            return count


def _select(
    infos: Sequence[zipfile.ZipInfo], limits: ArchiveLimits
) -> tuple[list[tuple[zipfile.ZipInfo, PurePosixPath]], list[str]]:
    """The entries to unpack with their targets, checked by the sizes that the zip states; and the other names."""
    wanted, left_out, total = [], [], 0
    seen: set[str] = set()
    for info in infos:
        place = _target(info, limits)
        if info.is_dir():
            continue
        if any(part.startswith((".", "__MACOSX")) for part in place.parts):
            continue  # left there by operating systems
        if place.suffix.lower() not in limits.endings:
            left_out.append(str(place))
            continue
        if (folded := str(place).casefold()) in seen:
            raise BadInput(f"The zip holds two files named '{place}'. {_REMEDY}")
        seen.add(folded)
        total += info.file_size
        if info.file_size > limits.file_bytes:
            raise _too_large(place, limits)
        if total > limits.total_bytes:
            raise BadInput(f"The zip unpacks to more than {_megabytes(limits.total_bytes)}. Split it.")
        if info.file_size > _SMALL and info.file_size > limits.ratio * max(info.compress_size, 1):
            raise _bomb(place)
        wanted.append((info, place))
    if not wanted:
        raise BadInput(f"The zip holds no {limits.kind}. Known endings: {', '.join(limits.endings)}.")
    return wanted, left_out


def _target(info: zipfile.ZipInfo, limits: ArchiveLimits) -> PurePosixPath:
    """The path of an entry below the folder. Raises BadInput for paths that lead outside, and for links."""
    name = info.filename.replace("\\", "/")
    place = PurePosixPath(name)
    shown = ascii(info.filename[:60])
    if name.startswith("/") or ".." in place.parts or re.match(r"[A-Za-z]:", name) or not place.parts:
        raise BadInput(f"The zip names a place outside of itself: {shown}. {_REMEDY}")
    if len(name) > limits.name or not name.isprintable():
        raise BadInput(f"The zip holds a file whose name is too long or cannot be shown: {shown}. {_REMEDY}")
    if len(place.parts) > limits.depth + 1:  # each file could make a hundred folders
        raise BadInput(f"The zip holds a file in more than {limits.depth} folders: {shown}. {_REMEDY}")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadInput(f"The zip holds a link or a device: {shown}. {_REMEDY}")
    if info.flag_bits & 1:
        raise BadInput(f"The zip is locked by a password. {_REMEDY}")
    return place


def _write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, room: int, limits: ArchiveLimits) -> int:
    """Unpacks one file in chunks, because its stated size may be wrong. Returns the number of bytes."""
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, open(target, "xb") as file:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > room:
                    raise _too_large(PurePosixPath(info.filename), limits)
                if written > _SMALL and written > limits.ratio * max(info.compress_size, 1):
                    raise _bomb(PurePosixPath(info.filename))
                file.write(chunk)
    except OSError as error:  # a file in place of a folder, a name that the disk cannot store, a full disk
        raise BadInput(
            f"'{ascii(info.filename[:60])[1:-1]}' of the zip cannot be written. {_REMEDY}", first_line(error)
        ) from error
    return written


def _too_large(place: PurePosixPath, limits: ArchiveLimits) -> BadInput:
    return BadInput(
        f"'{place.name}' in the zip is too large: {_megabytes(limits.file_bytes)} a file and "
        f"{_megabytes(limits.total_bytes)} in all are the limit."
    )


def _bomb(place: PurePosixPath) -> BadInput:
    return BadInput(f"'{place.name}' in the zip unpacks to far more than it is packed in. {_REMEDY}")


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MB"
