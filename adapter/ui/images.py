"""Pictures of a conversation, reduced in size and without metadata; and the camera's button and dialog.

A picture is reduced when it is added to a conversation, so that the browser's storage, an export and the command
line hold the bytes that the model saw. Knows image files and Gradio's upload folder; knows no conversation.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from adapter.errors import BadInput
from adapter.files import atomic_write
from adapter.server.loader import import_libraries
from adapter.ui.texts import page as texts

MAX_SIDE = 640  # pixels; encoders look at 224 to 448
MAX_BYTES = 200_000
_MAX_PNG_BYTES = 60_000  # a drawing stays lossless; a photograph becomes a JPEG
_JPEG_QUALITIES = (88, 75, 60, 40)


class BadPicture(BadInput):
    """The picture of a message cannot be read; its text can."""


def open_picture(source: str | bytes) -> Any:
    """Returns a PIL image; source: a path or a file's bytes. Raises BadPicture."""
    import_libraries()
    from adapter.method.vision import open_image

    try:
        return open_image(source)
    except BadInput as error:
        raise BadPicture(str(error)) from error


def shrink(data: bytes) -> bytes:
    """The picture file in its small form; returned unchanged if it already has it. Raises BadPicture."""
    from PIL import Image

    image = open_picture(data)
    if len(data) <= MAX_BYTES and max(image.size) <= MAX_SIDE and _has_no_metadata(data):
        return data
    image.info.clear()
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _encode(image)


def _has_no_metadata(data: bytes) -> bool:
    """Whether the file is an RGB JPEG or PNG without metadata."""
    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        metadata = {"exif", "icc_profile", "comment", "xmp", "XML:com.adobe.xmp", "photoshop"} & set(image.info)
        metadata |= set(getattr(image, "text", {}))
        return image.format in ("JPEG", "PNG") and image.mode == "RGB" and not metadata


def _encode(image: Any) -> bytes:
    encoded = BytesIO()
    image.save(encoded, "PNG", optimize=True)
    if encoded.tell() <= _MAX_PNG_BYTES:
        return encoded.getvalue()
    for quality in _JPEG_QUALITIES:
        encoded = BytesIO()
        image.save(encoded, "JPEG", quality=quality)
        if encoded.tell() <= MAX_BYTES:
            return encoded.getvalue()
    return _encode(image.resize((max(1, image.width // 2), max(1, image.height // 2))))


def upload_folder() -> Path:
    """The folder that Gradio serves uploads from."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()


def read_upload(path: str) -> bytes:
    """The bytes of a file that a browser named. Raises BadPicture if it is not an upload, or deleted."""
    try:
        file = Path(path).resolve()
        if not file.is_relative_to(upload_folder()) or not file.is_file():
            raise BadPicture(texts.PICTURE_GONE)
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise BadPicture(texts.PICTURE_GONE) from error


def write_upload(data: bytes) -> str:
    """Writes a picture file into the upload folder and returns its path.

    The path is a hash of the bytes: nobody can guess it without having the picture.
    """
    path = upload_folder() / hashlib.sha256(data).hexdigest() / f"picture{'.png' if _is_png(data) else '.jpg'}"
    if path.exists():
        os.utime(path)  # Gradio deletes files by age
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return str(path)


def shrink_upload(path: str) -> str:
    """The path of an upload's small form. Raises BadPicture."""
    return write_upload(shrink(read_upload(path)))


def content_key(data: bytes) -> str:
    """The name under which the browser's storage keeps a picture."""
    return hashlib.sha256(data).hexdigest()[:32]


def data_url(data: bytes) -> str:
    return f"data:image/{'png' if _is_png(data) else 'jpeg'};base64,{base64.b64encode(data).decode()}"


def _is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG")


_CAMERA_ICON = (
    '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" '
    'stroke-linejoin="round" aria-hidden="true"><path d="M4 8h3l1.6-2.4h6.8L17 8h3a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H4'
    'a1 1 0 0 1-1-1V9a1 1 0 0 1 1-1z"/><circle cx="12" cy="13" r="3.4"/></svg>'
)


def camera_html() -> str:
    """The camera's button and dialog; page.js gives them their behaviour and reads its messages from data-*."""
    messages = {
        "none": texts.NO_CAMERA,
        "refused": texts.CAMERA_REFUSED,
        "insecure": texts.CAMERA_INSECURE,
        "busy": texts.CAMERA_BUSY,
        "picture": texts.SHOW_PICTURE,
    }
    data = " ".join(f'data-{name}="{html.escape(text)}"' for name, text in messages.items())
    take, snap, cancel = (html.escape(text) for text in (texts.TAKE_PICTURE, texts.TAKE, texts.CANCEL))
    return (
        f'<button type="button" name="open" aria-label="{take}" title="{take}">{_CAMERA_ICON}</button>'
        f'<dialog aria-label="{take}" class="silent" {data}><video playsinline muted></video>'
        f'<p role="status"></p><div><button type="button" name="close">{cancel}</button>'
        f'<button type="button" name="take">{snap}</button></div></dialog>'
    )
