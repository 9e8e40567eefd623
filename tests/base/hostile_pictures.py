"""Picture files that are built to take memory or time, each by its name. For tests of whatever reads pictures."""

import io
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

MB = 2**20


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    return Image.frombytes(mode, (side, side), random.Random(seed).randbytes(side * side * len(mode)))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(count: int) -> bytes:
    """A zlib stream of this many zeros."""
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(min(MB, count - at))) for at in range(0, count, MB)]
    return b"".join(pieces) + packer.flush()


def png(width: int, height: int, bits: int, colours: int, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A black PNG. colours: PNG's type: 0 grey, 2 RGB, 6 RGBA; extra: chunks before them."""
    channels = {0: 1, 2: 3, 6: 4}[colours]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    size = 0
    for x, y, dx, dy in passes:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        size += rows * (1 + -(-columns * bits * channels // 8)) if columns > 0 else 0
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, interlaced)
    parts = [chunk(b"IHDR", head), extra, chunk(b"IDAT", zeros(size)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def overlapping_exif(tags: int, size: int) -> bytes:
    """An EXIF block of `size` bytes whose tags all hold those same bytes: `tags * size` once they are copied."""
    entries = b"".join(struct.pack("<HHII", 0x1000 + tag, 7, size - 8, 8) for tag in range(tags))
    block = b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4)
    return block + bytes(size - len(block))


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    return encoded(Image.new(mode, (width, height)), "JPEG", **options)


def webp_canvas(side: int) -> bytes:
    """A WebP of a small frame on a large canvas."""
    frame = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    size = struct.pack("<I", side - 1)[:3]
    animation = chunk_le(b"ANIM", bytes(6))
    anmf = chunk_le(b"ANMF", bytes(6) + struct.pack("<I", 7)[:3] * 2 + b"\x10\0\0\0" + frame)
    body = b"WEBP" + chunk_le(b"VP8X", b"\x12\0\0\0" + size * 2) + animation + anmf
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk_le(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


# Refused, for more pixels than may be decoded, or because of what they are.
REFUSED: dict[str, Callable[[], bytes]] = {
    "one bit, 144 megapixels": lambda: png(12_000, 12_000, 1, 0),
    "RGBA, 49 megapixels": lambda: png(7_000, 7_000, 8, 6),
    "more chunks than needed": lambda: png(8, 8, 8, 2, extra=chunk(b"tEXt", b"a\0b") * 200_000),
    "progressive, 49 megapixels": lambda: jpeg(7_000, 7_000, progressive=True),
    "a large canvas": lambda: webp_canvas(16_383),
    "a format that is not read": lambda: encoded(Image.new("RGB", (8, 8)), "TIFF"),
    "a cut PNG": lambda: encoded(noise(600))[:-100_000],
    "a cut JPEG": lambda: encoded(noise(600), "JPEG")[:-50_000],
}


# Decoded, within what is stated.
DECODED: dict[str, Callable[[], bytes]] = {
    "RGB, 63 megapixels": lambda: png(9_000, 7_000, 8, 2),
    "baseline JPEG, 63 megapixels": lambda: jpeg(9_000, 7_000, subsampling=0, quality=95),
    "RGB, interlaced": lambda: png(8_000, 8_000, 8, 2, interlaced=True),
    "RGBA of 16 megapixels": lambda: png(4_000, 4_000, 8, 6),
    "texts of 1 GB": lambda: png(8, 8, 8, 2, extra=chunk(b"zTXt", b"a\0\0" + zeros(MB - 9)) * 1000),
    "EXIF of 2.5 GB in a PNG": lambda: png(8, 8, 8, 2, extra=chunk(b"eXIf", overlapping_exif(2_500, MB))),
    "progressive CMYK": lambda: jpeg(5_000, 5_000, "CMYK", progressive=True),
    "lossless WebP of 12 megapixels": lambda: encoded(
        Image.new("RGBA", (4_000, 3_000)), "WEBP", lossless=True, method=0
    ),
}
