"""A conversation as JSON and back, in the format of adapter/server/transcript.py: for the browser's storage, which
makes files and links of it. Incoming data cannot name a file: pictures arrive as bytes and become new uploads.
"""

import contextlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from adapter.errors import BadInput
from adapter.serve.settings import panel_values
from adapter.server import transcript
from adapter.server.transcript import FILE, PICTURE_NOT_KEPT, Dropped, TranscriptLimits, TranscriptMessage, fit
from adapter.ui import conversation, images
from adapter.ui.conversation import Entry, History, read_record
from adapter.ui.texts import page as texts

# Of one conversation. To restore it, the browser sends all of it in one request.
BROWSER = TranscriptLimits(text_bytes=1_000_000, pictures=32, picture_bytes=2_700_000)


class Packed(NamedTuple):
    """What the browser keeps. document: pictures by key; paths: uploads by key, newest last; dropped: left out."""

    document: dict[str, Any]
    paths: dict[str, str]
    dropped: Dropped

    def pictures(self, known: Iterable[str] = ()) -> dict[str, str]:
        """Data URLs by key, without those of the keys `known` and those whose file was just deleted."""
        urls = {}
        for key, path in self.paths.items():
            if key not in known:
                with contextlib.suppress(BadInput):
                    urls[key] = images.data_url(images.shrink(images.read_upload(path)))
        return urls


def pack(history: Sequence[Entry]) -> Packed:
    """The newest of the history, within the limits."""

    def weigh(path: str) -> int | None:
        return None if (kept := images.storage_entry(path)) is None else kept[1]

    messages, dropped = fit([_to_message(entry) for entry in conversation.ended(list(history))], weigh, BROWSER)
    paths: dict[str, str] = {}
    for index, message in enumerate(messages):
        if (path := message.get("picture")) is not None and (kept := images.storage_entry(path)) is not None:
            paths.pop(kept[0], None)
            paths[kept[0]] = path
            messages[index] = {**message, "picture": kept[0]}
    return Packed(transcript.to_document(messages), paths, dropped)


def _to_message(entry: Entry) -> dict[str, Any]:
    """A message of a transcript, its picture by path."""
    if entry.picture is not None:
        return {"role": "user", "picture": entry.picture}
    text = texts.OFFER_NOT_ANSWERED if entry.options else entry.text
    record = entry.record.to_dict() if entry.record else None
    message = {"role": entry.role, "text": text, "about": entry.about or None, "record": record}
    return {name: value for name, value in message.items() if value is not None}


def to_history(parts: Iterable[TranscriptMessage]) -> History:
    """The history of a checked transcript. A picture becomes an upload, or a remark where that fails. Raises
    RateLimited where it is one too many.
    """

    @cache
    def upload(picture: bytes) -> Entry:
        try:
            return Entry("user", picture=images.write_upload(images.shrink(picture), counts=True))
        except (BadInput, OSError):
            images.count_upload(len(picture))  # it was decoded
            return Entry("page", PICTURE_NOT_KEPT)

    return [
        upload(part.picture)
        if part.picture is not None
        else Entry(part.role, part.text, about=part.about, record=read_record(part.record))
        for part in parts
    ]


def read(text: str, stored: bool = False) -> tuple[History, dict[str, Any], Dropped]:
    """The history, the panel's values and what was left out. Raises BadInput; `stored`: it is empty instead."""
    try:
        found = transcript.read(text, BROWSER if stored else FILE)
    except BadInput:
        if not stored:
            raise
        return [], {}, Dropped()
    values = panel_values(found.settings) if isinstance(found.settings, dict) else {}
    return to_history(found.messages), values, found.dropped
