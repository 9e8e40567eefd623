"""Image files of strangers -> small RGB images, each file decoded once.

Of PNG and JPEG, metadata and further frames are cut out before Pillow sees the file. The header of every file is
checked before it is decoded.
"""

import hashlib
import io
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from adapter.errors import BadInput, first_line
from adapter.lru import LRU

MAX_BYTES = 20 * 2**20
MAX_SIDE = 640  # pixels of what is returned; encoders look at 224 to 448
# Measured: a pixel takes up to 16 bytes in libwebp, 10 in a PNG with a palette or transparency (RGBA and that
# premultiplied), 4 in any other of 8 bits, and 8 in libjpeg where it must hold all coefficients. Of other JPEGs it
# decodes a reduced size, row by row.
_DEEP_PNG = "PNG with a palette, transparency or 16 bits of grey"
MAX_MEGAPIXELS = {"PNG": 64, _DEEP_PNG: 16, "WEBP": 12, "JPEG": 64, "progressive JPEG": 25}
_MAX_PARTS = 50_000  # of a file: chunks, segments, blocks
_ORIENTATION = 0x0112  # EXIF's tag
_CACHE_BYTES = 48 * 2**20
_REMEDY = "Save it again as PNG or JPEG and send that."
_DAMAGED = f"The picture is damaged or incomplete. {_REMEDY}"

# Pillow pads RGB to 4 bytes. A text says why a file cannot be decoded: finding out may take as long.
_decoded: LRU[bytes, Image.Image | str] = LRU(
    _CACHE_BYTES, lambda found: 1000 if isinstance(found, str) else 4 * found.width * found.height
)
# Two at a time, in threads of their own: the C library keeps what a thread has freed, and 16 callers that decoded
# in theirs kept 1 GB.
_decoders = ThreadPoolExecutor(2, "decode-image")


def open_image(source: str | Path | bytes) -> Image.Image:
    """A PNG, JPEG or WebP as 8-bit RGB within MAX_SIDE: upright by its EXIF tag, first frame, on white
    where transparent, 16 bits scaled.

    source: a path, or the bytes of a file. The image is shared with other callers and must not be changed. Raises
    BadInput for files over 20 MB, for pictures over MAX_MEGAPIXELS (before they are decoded), and for whatever is
    damaged or no picture.
    """
    data = read_image(source)

    def decode() -> Image.Image | str:
        try:
            return _decoders.submit(_decode, data).result()
        except BadInput as error:
            if isinstance(error.__context__, MemoryError):  # that may pass
                raise
            return str(error)

    found = _decoded.compute(hashlib.sha256(data).digest(), decode)
    if isinstance(found, str):
        raise BadInput(found)
    return found


def read_image(source: str | Path | bytes) -> bytes:
    """The bytes of a picture's file. Raises BadInput if there is none, or it is too large or empty."""
    if not isinstance(source, bytes):
        path = Path(source)
        try:
            # Only plain files: reading a device or a pipe might never end.
            if not path.is_file():
                raise BadInput(f"There is no picture at '{path.name}'. Check the path.", str(path))
            with path.open("rb") as file:
                source = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"'{path.name}' cannot be read. Check the path and its rights.", f"{path}: {first_line(error)}"
            ) from None
    if len(source) > MAX_BYTES:
        raise BadInput(
            f"The picture's file is too large: {MAX_BYTES // 2**20} MB are the limit. "
            "Make it smaller and send it again."
        )
    if not source:
        raise BadInput("The picture's file is empty. Send it again.")
    return source


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG with what its pixels need only; None for others, and where EXIF turns it. Raises BadInput."""
    essence = _essence(data)
    plain = essence.kind in ("PNG", "JPEG") and not 2 <= _orientation(essence.exif) <= 8
    return essence.data if plain else None


class _Essence(NamedTuple):
    """What a file's pixels need, its EXIF block, and its kind, one of MAX_MEGAPIXELS."""

    data: bytes
    kind: str
    exif: bytes = b""


def _decode(data: bytes) -> Image.Image:
    """Decodes to RGB. Shrinks before it converts: pixels are averaged in the file's own mode wherever possible."""
    essence = _essence(data)
    try:
        with Image.open(io.BytesIO(essence.data), formats=[essence.kind.rpartition(" ")[2]]) as opened:
            image: Image.Image = opened
            plain = image.mode in ("L", "RGB") and "transparency" not in image.info
            kind = _DEEP_PNG if essence.kind == "PNG" and not plain else essence.kind
            if image.width * image.height > MAX_MEGAPIXELS[kind] * 10**6:
                raise _too_large(kind, f"{image.width} x {image.height}")
            exif = image.info.pop("exif", b"") or essence.exif  # WebP's is read by nobody else
            high = image.mode.startswith(("I", "F"))
            if high:
                image = image.convert("I") if image.mode.startswith("I;") else image
            elif image.mode in ("P", "PA") or "transparency" in image.info:
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            elif image.mode == "1":
                image = image.convert("L")
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)  # of a JPEG it decodes a reduced size
            image.load()
        image = _eight_bits(image) if high else image
        image.getexif()[_ORIENTATION] = _orientation(exif)
        image = ImageOps.exif_transpose(image)
        clean = Image.new("RGB", image.size, "white")  # without the file's info, and not tied to it
        if image.mode in ("LA", "RGBA"):
            image = image.convert("RGBA")
            clean.paste(image, mask=image.getchannel("A"))
        else:
            clean.paste(image)  # which converts it
        return clean
    except BadInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(essence.kind, "over 100 million") from None
    except UnidentifiedImageError:
        raise BadInput(f"The file is not a picture in a format known here. {_REMEDY}") from None
    except Exception:  # damaged data makes Pillow's decoders raise nearly anything
        raise BadInput(_DAMAGED) from None


def _too_large(kind: str, pixels: str) -> BadInput:
    return BadInput(
        f"The picture has {pixels} pixels; a {kind} may have {MAX_MEGAPIXELS[kind]} megapixels. "
        "Make it smaller and send it again."
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled to at most 255 by its maximum: scanners and cameras often use 12 of 16."""
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    values = values - min(values.min(), 0.0)
    if values.max() > 255:
        values = values * (255 / values.max())
    return Image.fromarray(values.round().astype(np.uint8))


# What a file's pixels need. Pillow reads metadata when it opens a file, which can make it take any amount of
# memory (EXIF tags that overlap) or time (comments and frames in many small blocks).


def _essence(data: bytes) -> _Essence:
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png_essence(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg_essence(data)
    except (IndexError, ValueError, struct.error):
        raise BadInput(_DAMAGED) from None
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _Essence(data, "WEBP")
    raise BadInput(f"The file is not a picture in a format known here. {_REMEDY}")


def _png_essence(data: bytes) -> _Essence:
    kept, exif, offset = [data[:8]], b"", 8
    for _ in range(_MAX_PARTS):
        (length,) = struct.unpack_from(">I", data, offset)
        kind, end = data[offset + 4 : offset + 8], offset + 12 + length
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[offset:end])
        elif kind == b"eXIf":
            exif = data[offset + 8 : end - 4]
        if kind == b"IEND" or end >= len(data):
            return _Essence(b"".join(kept), "PNG", exif)
        offset = end
    raise ValueError("more chunks than a picture needs")


def _jpeg_essence(data: bytes) -> _Essence:
    kept, exif, offset = [data[:2]], b"", 2
    components, kind = 0, "JPEG"
    for _ in range(_MAX_PARTS):
        offset = data.index(b"\xff", offset)
        marker = data[offset + 1]
        if marker < 0xC0 or marker == 0xFF or 0xD0 <= marker <= 0xD8:  # padding, or what has no length
            offset += 1
            continue
        (length,) = struct.unpack_from(">H", data, offset + 2)
        end = offset + 2 + length
        if marker == 0xDA:
            # libjpeg holds all coefficients of a picture that comes in several scans.
            if data[offset + 4] != components:
                kind = "progressive JPEG"
            pixels_end = data.find(b"\xff\xd9", offset) if kind == "JPEG" else -1  # cameras append films
            return _Essence(
                b"".join([*kept, data[offset : pixels_end + 2 if pixels_end > 0 else None]]), kind, exif
            )
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker > 0xC2:
                raise ValueError("a kind of JPEG that no camera or browser writes")
            components = data[offset + 9]
            kind = "progressive JPEG" if marker == 0xC2 else kind
        if marker == 0xE1 and not exif and data[offset + 4 : offset + 10] == b"Exif\0\0":
            exif = data[offset + 4 : end]
        # Of the applications' segments JFIF's and Adobe's say how colours are encoded.
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[offset:end])
        offset = end
    raise ValueError("more segments than a picture needs")


def _orientation(exif: bytes) -> int:
    """EXIF's tag; 1, upright, where there is none."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is not None:
        with suppress(struct.error):  # a broken EXIF block is no reason to refuse the picture
            (offset,) = struct.unpack_from(f"{order}4xI", tiff)
            (count,) = struct.unpack_from(f"{order}H", tiff, offset)
            for entry in range(offset + 2, offset + 2 + 12 * count, 12):
                tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
                if tag == _ORIENTATION:
                    return value
    return 1
