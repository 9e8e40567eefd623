"""A conversation as JSON and back: for the browser's storage, which exports it too, and for a link.

In the format of adapter/server/transcript.py. Incoming data cannot name a file: pictures arrive as bytes and
are saved as new uploads.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from adapter.errors import BadInput
from adapter.serve.settings import PANEL, Settings, panel_values
from adapter.server import transcript
from adapter.server.transcript import FILE, PICTURE_NOT_KEPT, Dropped, Limits, TranscriptMessage, fit
from adapter.ui import conversation, images
from adapter.ui.conversation import Entry, History, parse_record, parse_settings, settings_json
from adapter.ui.texts import page as texts

# Of one conversation. To restore it, the browser sends all of it in one request.
BROWSER = Limits(text_bytes=1_000_000, pictures=32, picture_bytes=2_700_000)
MAX_LINK = 8_000  # characters; mail and messengers may cut longer ones
_MAX_LINK_TEXT = 400_000  # bytes


class Packed(NamedTuple):
    """A conversation within the limits of a file or of the browser.

    messages: pictures by key; paths: of the uploads by these keys, the newest last; dropped: what was left out.
    """

    messages: list[dict[str, Any]]
    paths: dict[str, str]
    dropped: Dropped

    def pictures(self, known: Iterable[str] = ()) -> dict[str, str]:
        """Data URLs by key, without those of the keys `known` and those whose file was just deleted."""
        urls = {}
        for key, path in self.paths.items():
            if key in known:
                continue
            with contextlib.suppress(BadInput):
                urls[key] = images.data_url(images.shrink(images.read_upload(path)))
        return urls


def pack(history: Sequence[Entry], limits: Limits, known: dict[str, tuple[str, int] | None]) -> Packed:
    """The newest of the history, within the limits.

    known: a cache of the keys and sizes of pictures by their path, None for one that cannot be read.
    """

    def weigh(path: str) -> int | None:
        if path not in known:
            try:
                small = images.shrink(images.read_upload(path))
                known[path] = images.content_key(small), images.data_url_length(small)
            except BadInput:
                known[path] = None
        picture = known[path]
        return None if picture is None else picture[1]

    messages, dropped = fit(_to_transcript(history), weigh, limits)
    paths: dict[str, str] = {}
    for index, message in enumerate(messages):
        if (path := message.get("picture")) is not None and (picture := known[path]) is not None:
            paths.pop(picture[0], None)
            paths[picture[0]] = path
            messages[index] = {**message, "picture": picture[0]}
    return Packed(messages, paths, dropped)


def _to_transcript(history: Sequence[Entry], token_ids: bool = True) -> list[dict[str, Any]]:
    """The history as messages of a transcript, pictures by path. token_ids: whether records include them."""
    if conversation.is_streaming(history):
        history = conversation.mark_stopped(history, texts.CUT_OFF, texts.CUT_OFF_BEFORE_TEXT)
    messages: list[dict[str, Any]] = []
    for entry in history:
        kind, path = conversation.kind(entry), conversation.picture_path(entry)
        if path is not None:
            messages.append({"role": "user", "picture": path})
        elif kind is None:
            messages.append({"role": entry["role"], "text": conversation.text_of(entry)})
        elif kind == conversation.NOTE:
            messages.append({"role": "page", "text": conversation.page_text(entry)})
        elif kind == conversation.OFFER:
            messages.append({"role": "page", "text": texts.OFFER_NOT_ANSWERED})
        elif kind == conversation.STATS and messages:
            messages[-1]["about"] = conversation.page_text(entry)
            text = conversation.record_of(entry)
            if settings := parse_settings(text):
                record = parse_record(text) if token_ids else None
                messages[-1]["record"] = json.loads(record.to_json() if record else settings_json(settings))
    return messages


def to_history(parts: Iterable[TranscriptMessage], lenient: bool = False) -> History:
    """The history of a checked transcript, without records that cannot be read; pictures become uploads.

    Raises BadInput if a picture cannot be read; with `lenient` a remark stands in its place.
    """
    history: History = []
    paths: dict[bytes, str | None] = {}
    for part in parts:
        if part.picture is not None:
            if part.picture not in paths:
                paths[part.picture] = _upload(part.picture, lenient)
            path = paths[part.picture]
            shown = [conversation.note(PICTURE_NOT_KEPT)] if path is None else conversation.user_turn("", path)
            history.append(shown[0])
        elif part.role == "user":
            history += conversation.user_turn(part.text)
        elif part.role == "assistant":
            history.append(conversation.answer(part.text))
        else:
            history.append(conversation.note(part.text))
        if part.about:
            record = "" if part.record is None else json.dumps(part.record)
            history.append(conversation.stats(part.about, record=record if parse_settings(record) else ""))
    return conversation.with_dividers(history)


def _upload(picture: bytes, lenient: bool) -> str | None:
    try:
        return images.write_upload(images.shrink(picture))
    except (BadInput, OSError):
        if lenient:
            return None
        raise


def panel_settings(settings: Settings) -> dict[str, Any]:
    """The settings that are exported: those of the side panel."""
    return panel_values(settings.model_dump(include=set(PANEL)))


# The browser's storage: a document for each conversation, and the pictures of all once each.


def to_browser(
    history: Sequence[Entry], known: dict[str, tuple[str, int] | None]
) -> tuple[dict[str, Any], Packed]:
    """The stored texts, and all that is kept. known: as of `pack`."""
    packed = pack(history, BROWSER, known)
    return transcript.to_document(packed.messages), packed


def from_browser(stored_json: str, pictures_json: str) -> History:
    """The stored conversation; empty if the stored text is malformed. What is malformed in it gets a remark."""
    with transcript.parsing(len(stored_json) + len(pictures_json)):
        stored, pictures = _parse(stored_json), _parse(pictures_json)
        if not isinstance(stored, dict):
            return []
        document = {**stored, "settings": {}, "pictures": pictures if isinstance(pictures, dict) else {}}
        try:
            messages = transcript.check(document, BROWSER, lenient=True).messages
        except BadInput:
            return []
    return to_history(messages, lenient=True)


def _parse(text: str) -> Any:
    try:
        return transcript.parse(text)
    except (ValueError, TypeError):
        return None


def from_stored_settings(stored: object) -> dict[str, Any]:
    """The side panel's values in the browser's storage (JSON) or an imported file; those that are valid."""
    stored = _parse(stored) if isinstance(stored, str) else stored
    if isinstance(stored, dict) and isinstance(stored.get("values"), list):
        stored = dict(zip(PANEL, stored["values"], strict=False))
    return panel_values(stored) if isinstance(stored, dict) else {}


# A link.


def to_link(history: Sequence[Entry], settings: Settings) -> str:
    """Texts and settings of the conversation for an address's fragment, which browsers send nowhere. Raises
    BadInput.
    """
    lacking = {"role": "page", "text": texts.PICTURE_NOT_SENT}
    sent = [lacking if "picture" in message else message for message in _to_transcript(history, token_ids=False)]
    messages, dropped = fit(sent, lambda path: None, FILE)
    document = {**transcript.to_document(messages), "settings": panel_settings(settings)}
    text = json.dumps(document, ensure_ascii=False).encode()
    packed = base64.urlsafe_b64encode(zlib.compress(text, 9)).decode().rstrip("=")
    if dropped or len(packed) > MAX_LINK or len(text) > _MAX_LINK_TEXT:
        raise BadInput(texts.LINK_TOO_LONG)
    return packed


def from_link(packed: str) -> tuple[History, dict[str, Any]]:
    """The conversation of a link, and the side panel's values. Raises BadInput for anything else."""
    try:
        if len(packed) > MAX_LINK or not re.fullmatch(r"[A-Za-z0-9_-]+", packed):
            raise BadInput(texts.LINK_UNREADABLE)
        compressed = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        text = zlib.decompressobj().decompress(compressed, _MAX_LINK_TEXT)
        read = transcript.read(text)
        if not read.messages or any(part.picture for part in read.messages):
            raise BadInput(texts.LINK_UNREADABLE)
        return to_history(read.messages), from_stored_settings(read.settings)
    except (BadInput, ValueError, zlib.error):
        raise BadInput(texts.LINK_UNREADABLE) from None
