"""Pictures, made small and bare when they are added: what the browser and a file hold is what the model saw."""

import base64
import hashlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import gradio as gr
from PIL import Image

from adapter.base.image_file import MAX_BYTES as FILE_BYTES
from adapter.base.image_file import open_image, without_metadata
from adapter.errors import BadInput
from adapter.files import atomic_write
from adapter.lru import LRU
from adapter.ui.texts import page as texts

MAX_BYTES = 200_000  # of the small form
_MAX_PNG_BYTES = 60_000  # a drawing stays lossless; a photograph becomes a JPEG
_small: LRU[bytes, bytes] = LRU(64 * 2**20, lambda small: len(small) + 200)  # by the hash of a file, or of its own
written: set[str] = set()  # paths, for Gradio to delete by age
_kept: LRU[str, tuple[str, int]] = LRU(10_000)  # by path, which has a hash of the file in it


class BadPicture(BadInput):
    """The picture of a message cannot be read; its text can."""


def open_upload(path: str) -> Image.Image:
    """As open_image, of an upload that a browser named. Raises BadPicture."""
    return _open(read_upload(path))


def shrink(data: bytes) -> bytes:
    """The picture file in its small form, whose own small form is itself. Raises BadPicture."""

    def make() -> bytes:  # by one thread: Pillow keeps what it saves with on the image, which all share
        image, bare = _open(data), without_metadata(data)
        return bare if bare is not None and _is_small(bare, image) else _encode(image)

    small = _small.compute(hashlib.sha256(data).digest(), make)
    _small.put(hashlib.sha256(small).digest(), small)
    return small


def _open(data: bytes) -> Image.Image:
    try:
        return open_image(data)
    except BadInput as error:
        raise BadPicture(str(error)) from None


def _is_small(data: bytes, image: Image.Image) -> bool:
    """Whether a PNG or JPEG is opaque RGB of the size that it is decoded to. image: the decoded file."""
    if len(data) > MAX_BYTES:
        return False
    with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as opened:  # the header alone
        return opened.mode == "RGB" and opened.size == image.size and "transparency" not in opened.info


def _encode(image: Image.Image) -> bytes:
    encoded = BytesIO()
    image.save(encoded, "PNG", optimize=True)
    if encoded.tell() <= _MAX_PNG_BYTES:
        return encoded.getvalue()
    for quality in (88, 75, 60, 40):
        encoded = BytesIO()
        image.save(encoded, "JPEG", quality=quality)
        if encoded.tell() <= MAX_BYTES:
            return encoded.getvalue()
    return _encode(image.resize((max(1, image.width // 2), max(1, image.height // 2))))


def read_upload(path: str) -> bytes:
    """The bytes of a file that a browser named. Raises BadPicture if it is not an upload, or deleted."""
    with suppress(OSError, ValueError):
        file = Path(path).resolve()
        if file.is_relative_to(Path(gr.utils.get_upload_folder()).resolve()) and file.is_file():
            with open(file, "rb") as opened:
                return opened.read(FILE_BYTES + 1)  # one more than is decoded
    raise BadPicture(texts.PICTURE_GONE)


def count_upload(size: int = 0) -> None:
    """Counts bytes of the visitor whose event runs: gradio_internals.py replaces it. Raises RateLimited."""


def write_upload(data: bytes, counts: bool = False) -> str:
    """Writes a picture file into the upload folder. Returns its path, which nobody can guess without the file.
    counts: as an upload, if it is not there yet. Raises RateLimited then.
    """
    folder = Path(gr.utils.get_upload_folder()).resolve() / hashlib.sha256(data).hexdigest()
    path = folder / ("picture.png" if _is_png(data) else "picture.jpg")
    if counts and not path.exists():
        count_upload(len(data))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:  # even if it is there: Gradio deletes files by age
        temporary.write_bytes(data)
    written.add(str(path))
    return str(path)


def storage_entry(path: str) -> tuple[str, int] | None:
    """The key under which the browser's storage keeps an upload, and its length; None if it cannot be read."""
    if (found := _kept.get(path)) is None:
        with suppress(BadInput):
            small = shrink(read_upload(path))
            found = hashlib.sha256(small).hexdigest()[:32], len(data_url(small))
            _kept.put(path, found)
    return found


def data_url(data: bytes) -> str:
    return f"data:image/{'png' if _is_png(data) else 'jpeg'};base64,{base64.b64encode(data).decode()}"


def _is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG")
