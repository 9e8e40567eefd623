"""A conversation as JSON and back, in the format of adapter/server/transcript.py: for the browser's storage, which
makes files and links of it.

Incoming data cannot name a file: pictures arrive as bytes and are saved as new uploads.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from adapter.errors import BadInput
from adapter.serve.settings import PANEL, panel_values
from adapter.server import transcript
from adapter.server.transcript import PICTURE_NOT_KEPT, Dropped, Limits, TranscriptMessage, fit
from adapter.ui import conversation, images
from adapter.ui.conversation import Entry, History, parse_record, parse_settings, settings_json
from adapter.ui.texts import page as texts

# Of one conversation. To restore it, the browser sends all of it in one request.
BROWSER = Limits(text_bytes=1_000_000, pictures=32, picture_bytes=2_700_000)


class Packed(NamedTuple):
    """What the browser keeps of a conversation.

    document: pictures by key; paths: of the uploads by these keys, the newest last; dropped: what was left out.
    """

    document: dict[str, Any]
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


def pack(history: Sequence[Entry], known: dict[str, tuple[str, int] | None]) -> Packed:
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

    messages, dropped = fit(_to_transcript(history), weigh, BROWSER)
    paths: dict[str, str] = {}
    for index, message in enumerate(messages):
        if (path := message.get("picture")) is not None and (picture := known[path]) is not None:
            paths.pop(picture[0], None)
            paths[picture[0]] = path
            messages[index] = {**message, "picture": picture[0]}
    return Packed(transcript.to_document(messages), paths, dropped)


def _to_transcript(history: Sequence[Entry]) -> list[dict[str, Any]]:
    """The history as messages of a transcript, pictures by path."""
    messages: list[dict[str, Any]] = []
    for entry in conversation.ended(list(history)):
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
                record = parse_record(text)
                messages[-1]["record"] = json.loads(record.to_json() if record else settings_json(settings))
    return messages


def to_history(parts: Iterable[TranscriptMessage]) -> History:
    """The history of a checked transcript, without records that cannot be read; pictures become uploads.

    A remark stands in place of a picture that cannot be read or kept.
    """
    history: History = []
    paths: dict[bytes, str | None] = {}
    for part in parts:
        if part.picture is not None:
            if part.picture not in paths:
                paths[part.picture] = _upload(part.picture)
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


def _upload(picture: bytes) -> str | None:
    try:
        return images.write_upload(images.shrink(picture))
    except (BadInput, OSError):
        return None


def read(text: str, limits: Limits = transcript.FILE) -> tuple[History, dict[str, Any], Dropped]:
    """The history of a file or a link, the side panel's values, and what the limits left out. Raises BadInput."""
    found = transcript.read(text, limits)
    return to_history(found.messages), from_stored_settings(found.settings), found.dropped


def read_stored(text: str) -> tuple[History, dict[str, Any]]:
    """As `read`, of what the browser keeps; empty for any other text."""
    try:
        return read(text, BROWSER)[:2]
    except BadInput:
        return [], {}


def from_stored_settings(stored: object) -> dict[str, Any]:
    """The side panel's values, as they are stored now or by earlier versions; those that are valid."""
    if isinstance(stored, dict) and isinstance(stored.get("values"), list):
        stored = dict(zip(PANEL, stored["values"], strict=False))
    return panel_values(stored) if isinstance(stored, dict) else {}
