"""A conversation as JSON and back: for the browser's storage, for a file and for a link.

Knows the page's messages, records and pictures, and the format of adapter/serve/transcript.py; knows no
components. Incoming data cannot name a file: pictures arrive as bytes and are saved as new uploads.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from adapter.errors import BadInput
from adapter.serve import transcript
from adapter.serve.settings import PANEL, Settings, panel_values
from adapter.serve.transcript import MAX_MESSAGES, TranscriptMessage
from adapter.ui import conversation, images
from adapter.ui.conversation import Entry, History, parse_record, parse_settings, settings_json
from adapter.ui.texts import page as texts

# Characters. A browser stores about 5 million for a site.
MAX_STORED_TEXT = 700_000
MAX_STORED_PICTURES = 2_700_000
MAX_LINK = 8_000  # mail and messengers may cut longer ones
_MAX_LINK_TEXT = 400_000

DescribePicture = Callable[[str], dict[str, str] | None]  # path -> fields of a transcript message, None to omit it


def _to_transcript(
    history: Sequence[Entry], describe_picture: DescribePicture, token_ids: bool = True
) -> list[dict[str, Any]]:
    """The history as messages of a transcript. token_ids: whether records include the answer's token ids."""
    if conversation.is_streaming(history):
        history = conversation.mark_stopped(history, texts.CUT_OFF, texts.CUT_OFF_BEFORE_TEXT)
    messages: list[dict[str, Any]] = []
    for entry in history:
        kind, path = conversation.kind(entry), conversation.picture_path(entry)
        if path is not None:
            described = describe_picture(path) or {"role": "page", "text": texts.PICTURE_NOT_KEPT}
            messages.append({"role": "user", **described})
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


def to_history(parts: Iterable[TranscriptMessage]) -> History:
    """The history of a checked transcript; pictures are written to the uploads.

    Raises BadInput if a picture or a record cannot be read.
    """
    history: History = []
    for number, part in enumerate(parts, 1):
        if part.picture is not None:
            path = images.write_upload(images.shrink(part.picture))
            history += conversation.user_turn("", path)[:1]
        elif part.role == "user":
            history += conversation.user_turn(part.text)
        elif part.role == "assistant":
            history.append(conversation.answer(part.text))
        else:
            history.append(conversation.note(part.text))
        if part.about:
            record = "" if part.record is None else json.dumps(part.record)
            if record and parse_settings(record) is None:
                raise BadInput(texts.wrong_record(number))
            history.append(conversation.stats(part.about, record=record))
    return conversation.with_dividers(history)


def to_file(history: Sequence[Entry], settings: Settings) -> str:
    """The text of an exported file."""

    def as_data_url(path: str) -> dict[str, str] | None:
        try:
            return {"picture": images.data_url(images.shrink(images.read_upload(path)))}
        except BadInput:
            return None

    return transcript.write(_to_transcript(history, as_data_url), panel_settings(settings))


def panel_settings(settings: Settings) -> dict[str, Any]:
    """The settings that are exported: those of the side panel."""
    return panel_values(settings.model_dump(include=set(PANEL)))


# The browser's storage: the texts in one entry, and the pictures, which change less often, in another.


def to_browser(history: Sequence[Entry], known_keys: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The stored texts, and the keys of the pictures in them, the newest last.

    known_keys: a cache of the keys of pictures by their path; this function adds to it.
    """

    def as_key(path: str) -> dict[str, str] | None:
        try:
            if path not in known_keys:
                known_keys[path] = images.content_key(images.shrink(images.read_upload(path)))
        except BadInput:
            return None
        return {"picture": known_keys[path]}

    messages = _to_transcript(history, as_key)
    while len(json.dumps(messages)) > MAX_STORED_TEXT:
        messages = messages[max(1, len(messages) // 8) :]
    keys = [message["picture"] for message in messages if "picture" in message]
    return transcript.to_document(messages), list(dict.fromkeys(keys))


def stored_pictures(
    history: Sequence[Entry], max_characters: int = MAX_STORED_PICTURES
) -> tuple[dict[str, str], int]:
    """The newest pictures that fit, as data URLs by key, the newest last; and how many did not fit."""
    urls: dict[str, str] = {}
    for path in reversed(list(filter(None, map(conversation.picture_path, history)))):
        try:
            data = images.shrink(images.read_upload(path))
        except BadInput:
            continue
        urls.setdefault(images.content_key(data), images.data_url(data))
    total, fitting = 0, {}
    for key, url in urls.items():
        total += len(url) + 50
        if total > max_characters:
            break
        fitting[key] = url
    return dict(reversed(fitting.items())), len(urls) - len(fitting)


def from_browser(stored_json: str, pictures_json: str) -> History:
    """The stored conversation; empty if the stored text is malformed."""
    stored, pictures = _parse(stored_json), _parse(pictures_json)
    try:
        if not isinstance(stored, dict) or not isinstance(messages := stored["messages"], list):
            return []
        by_key = pictures if isinstance(pictures, dict) else {}
        whole = [_with_picture(message, by_key) for message in messages[: MAX_MESSAGES + 1]]
        return to_history(transcript.check({**stored, "messages": whole}).messages)
    except (BadInput, KeyError, TypeError, RecursionError):
        return []


def _with_picture(message: Any, by_key: dict[str, Any]) -> Any:
    if not isinstance(message, dict) or "picture" not in message:
        return message
    url = by_key.get(message["picture"]) if isinstance(message["picture"], str) else None
    if isinstance(url, str):
        return {**message, "picture": url}
    return {"role": "page", "text": texts.PICTURE_NOT_KEPT}


def _parse(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, TypeError, RecursionError):
        return None


def from_stored_settings(stored: object) -> dict[str, Any]:
    """The side panel's values in the browser's storage (JSON) or an imported file; those that are valid."""
    stored = _parse(stored) if isinstance(stored, str) else stored
    if isinstance(stored, dict) and isinstance(stored.get("values"), list):
        stored = dict(zip(PANEL, stored["values"], strict=False))
    return panel_values(stored) if isinstance(stored, dict) else {}


# A link.


def to_link(history: Sequence[Entry]) -> str:
    """The texts of the conversation for an address's fragment, which browsers send nowhere. Raises BadInput."""
    messages = _to_transcript(history, lambda path: None, token_ids=False)
    text = json.dumps(transcript.to_document(messages), ensure_ascii=False)
    packed = base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
    if len(packed) > MAX_LINK:
        raise BadInput(texts.LINK_TOO_LONG)
    return packed


def from_link(packed: str) -> History:
    """The conversation of a link. Raises BadInput for anything else."""
    try:
        if len(packed) > 2 * MAX_LINK or not re.fullmatch(r"[A-Za-z0-9_-]+", packed):
            raise BadInput(texts.LINK_UNREADABLE)
        compressed = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        text = zlib.decompressobj().decompress(compressed, _MAX_LINK_TEXT)
        parts = transcript.read(text).messages
        if not parts or any(part.picture for part in parts):
            raise BadInput(texts.LINK_UNREADABLE)
        return to_history(parts)
    except (BadInput, ValueError, zlib.error):
        raise BadInput(texts.LINK_UNREADABLE) from None
