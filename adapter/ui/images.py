"""Pictures of a conversation: small, without what a camera noted in them, the same bytes wherever they are kept.

The form is taken on when a picture enters a conversation, so that what is kept in the browser, exported and read
by the command line is what the model saw. Knows picture files and Gradio's folder of uploads; knows no
conversation.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from adapter.errors import BadInput
from adapter.server.libraries import import_libraries
from adapter.ui.texts import page as texts

SIDE = 640  # pixels of the longer one; encoders look at 224 to 448
MAX_BYTES = 200_000
_PNG_BYTES = 60_000  # a drawing stays exact; a photograph is a JPEG
_QUALITIES = (88, 75, 60, 40)


class BadPicture(BadInput):
    """The picture of a message cannot be read; its words can."""


def open_picture(source: str | bytes) -> Any:
    """The picture as PIL has it; source: a path or a file's bytes. Raises BadPicture if it is none."""
    import_libraries()
    from adapter.method.vision import open_image

    try:
        return open_image(source)
    except BadInput as error:
        raise BadPicture(str(error)) from error


def small(data: bytes) -> bytes:
    """The picture in the form that is kept; what has it already comes back as it is. Raises BadPicture."""
    from PIL import Image

    image = open_picture(data)
    if len(data) <= MAX_BYTES and max(image.size) <= SIDE and _is_plain(data):
        return data
    image.info.clear()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _encode(image)


def from_uploads(path: str) -> bytes:
    """The file that a browser named. Raises BadPicture if it is not one of the uploads, or gone."""
    try:
        found = Path(path).resolve()
        if not found.is_relative_to(Path(get_upload_folder()).resolve()) or not found.is_file():
            raise BadPicture(texts.PICTURE_GONE)
        return found.read_bytes()
    except (OSError, ValueError) as error:
        raise BadPicture(texts.PICTURE_GONE) from error


def to_uploads(data: bytes) -> str:
    """Write a picture in its small form where Gradio serves it from; the path, which only the picture tells.

    Whoever does not have the picture cannot name the path, whoever has it learns nothing.
    """
    suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
    path = Path(get_upload_folder()).resolve() / hashlib.sha256(data).hexdigest() / f"picture{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        os.utime(path)  # old files are deleted by their time
        return str(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
    return str(path)


def adopt(path: str) -> str:
    """The path of the small form of an upload. Raises BadPicture."""
    return to_uploads(small(from_uploads(path)))


def name(data: bytes) -> str:
    """By which what is kept refers to a picture."""
    return hashlib.sha256(data).hexdigest()[:32]


def data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _is_plain(data: bytes) -> bool:
    """Whether the file is an RGB JPEG or PNG that holds nothing but its picture."""
    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        told = {"exif", "icc_profile", "comment", "xmp", "XML:com.adobe.xmp", "photoshop"} & set(image.info)
        told |= set(getattr(image, "text", {}))
        return image.format in ("JPEG", "PNG") and image.mode == "RGB" and not told


def _encode(image: Any) -> bytes:
    written = BytesIO()
    image.save(written, "PNG", optimize=True)
    if written.tell() <= _PNG_BYTES:
        return written.getvalue()
    for quality in _QUALITIES:
        written = BytesIO()
        image.save(written, "JPEG", quality=quality)
        if written.tell() <= MAX_BYTES:
            return written.getvalue()
    return _encode(image.resize((max(1, image.width // 2), max(1, image.height // 2))))
