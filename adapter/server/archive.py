"""A stranger's zip, of data or of an adapter, unpacked so that nothing of it can do harm. Knows zips and files.

Nothing is written outside the folder, no link is made, and what is written is bounded before and while it is.
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

from adapter.errors import BadInput

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TABLES = (".json", ".jsonl", ".tsv", ".csv")
ALLOWED = (*PICTURES, *TABLES, ".txt")
_ENTRY = b"PK\x01\x02"  # what the list of a zip's files begins each of them with
_PIECE = 2**16
_REMEDY = "Make the zip again from plain files, and only from those that are wanted."


@dataclass(frozen=True)
class Limits:
    """files: entries of a zip, folders too; ratio: bytes unpacked to packed, of a file that is not small.

    endings: of the files that are wanted; kind: what they are called.
    """

    files: int = 4_000
    file_bytes: int = 20 * 2**20
    total_bytes: int = 400 * 2**20
    ratio: int = 100
    name: int = 200
    endings: tuple[str, ...] = ALLOWED
    kind: str = "pictures or texts"


LIMITS = Limits()
_SMALL = 2**20  # bytes that may be packed as well as they can: a caption of blanks harms nobody


def unpack(archive: Path, folder: Path, limits: Limits = LIMITS) -> list[str]:
    """Fill `folder`, which is empty, with what is wanted of `archive`; returns the names it left out.

    Raises BadInput with a sentence if the zip is damaged, too large, packed to explode, or reaches outside.
    """
    try:
        if _entries(archive) > limits.files:
            raise BadInput(f"The zip holds more than {limits.files:,} files. Split it.")
        with zipfile.ZipFile(archive) as opened:
            wanted, left_out = _wanted(opened.infolist(), limits)
            room = limits.total_bytes
            for info, place in wanted:
                room -= _write(opened, info, folder / place, min(limits.file_bytes, room), limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        # NotImplementedError: a packing unknown to Python; RuntimeError: a password; ValueError: broken fields.
        raise BadInput(f"The zip cannot be read ({_reason(error)}). {_REMEDY}") from error
    return left_out


def _entries(archive: Path) -> int:
    """How many files a zip lists, counted without believing what it says, and before all are held in memory."""
    with open(archive, "rb") as file:
        if not file.seek(0, 2):
            raise BadInput(f"The zip is empty. {_REMEDY}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            count, at = 0, data.find(_ENTRY)
            while at >= 0:
                count, at = count + 1, data.find(_ENTRY, at + 4)
            return count


def _wanted(
    infos: Sequence[zipfile.ZipInfo], limits: Limits
) -> tuple[list[tuple[zipfile.ZipInfo, PurePosixPath]], list[str]]:
    """What is to be written and where, checked by what the zip says of itself; and the names of the rest."""
    wanted, left_out, total = [], [], 0
    seen: set[str] = set()
    for info in infos:
        place = _place(info, limits)
        if info.is_dir():
            continue
        if any(part.startswith((".", "__MACOSX")) for part in place.parts):
            continue  # what systems leave in zips
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
            raise _explodes(place)
        wanted.append((info, place))
    if not wanted:
        raise BadInput(f"The zip holds no {limits.kind}. Known endings: {', '.join(limits.endings)}.")
    return wanted, left_out


def _place(info: zipfile.ZipInfo, limits: Limits) -> PurePosixPath:
    """Where an entry goes, below the folder. Raises BadInput for names that lead elsewhere, and for links."""
    name = info.filename.replace("\\", "/")
    place = PurePosixPath(name)
    shown = ascii(info.filename[:60])
    if name.startswith("/") or ".." in place.parts or re.match(r"[A-Za-z]:", name) or not place.parts:
        raise BadInput(f"The zip names a place outside of itself: {shown}. {_REMEDY}")
    if len(name) > limits.name or not name.isprintable():
        raise BadInput(f"The zip holds a file whose name is too long or cannot be shown: {shown}. {_REMEDY}")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadInput(f"The zip holds a link or a device: {shown}. {_REMEDY}")
    if info.flag_bits & 1:
        raise BadInput(f"The zip is locked by a password. {_REMEDY}")
    return place


def _write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, room: int, limits: Limits) -> int:
    """Unpack one file piece by piece; what it says of its size is not believed. Returns its bytes."""
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, open(target, "xb") as file:
            while piece := source.read(_PIECE):
                written += len(piece)
                if written > room:
                    raise _too_large(PurePosixPath(info.filename), limits)
                if written > _SMALL and written > limits.ratio * max(info.compress_size, 1):
                    raise _explodes(PurePosixPath(info.filename))
                file.write(piece)
    except OSError as error:  # a file where another entry wants a folder, a name the disk cannot take, a full disk
        raise BadInput(
            f"'{ascii(info.filename[:60])[1:-1]}' of the zip cannot be written ({error.strerror}). {_REMEDY}"
        ) from error
    return written


def _too_large(place: PurePosixPath, limits: Limits) -> BadInput:
    return BadInput(
        f"'{place.name}' in the zip is too large: {_megabytes(limits.file_bytes)} a file and "
        f"{_megabytes(limits.total_bytes)} in all are the limit."
    )


def _explodes(place: PurePosixPath) -> BadInput:
    return BadInput(f"'{place.name}' in the zip unpacks to far more than it is packed in. {_REMEDY}")


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MB"


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
