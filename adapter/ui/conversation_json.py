"""A chat's conversation as JSON and back: for the browser's storage, for a file and for a link.

Knows the page's conversations, records and pictures and the form that adapter/transcript.py reads; knows no
components. Nothing that comes in names a file: pictures come as their bytes and are written anew.
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
from adapter.serve.transcript import MAX_MESSAGES, Part
from adapter.ui import conversation as talk
from adapter.ui import images as pictures
from adapter.ui.answer_record import read_record, read_settings, settings_text
from adapter.ui.conversation import Entry, History
from adapter.ui.dividers import divided
from adapter.ui.texts import page as texts

# Characters. A browser keeps about 5 million for a site, and Gradio's encryption makes four of three.
MAX_KEPT_TEXT = 700_000
MAX_KEPT_PICTURES = 2_700_000
MAX_LINK = 8_000  # what mail and messengers leave in one piece
_MAX_LINK_TEXT = 400_000

Show = Callable[[str], dict[str, str] | None]  # the path of a picture -> what stands for it, None for nothing


def messages_of(history: Sequence[Entry], show: Show, tokens: bool = True) -> list[dict[str, Any]]:
    """The conversation in the form that transcript.check reads. tokens: whether records keep an answer's."""
    if talk.being_answered(history):
        history = talk.stopped(history, texts.CUT_OFF, texts.CUT_OFF_AT_ONCE)
    found: list[dict[str, Any]] = []
    for entry in history:
        kind, path = talk.kind(entry), talk.picture(entry)
        if path is not None:
            found.append({"role": "user", **(show(path) or {"role": "page", "text": texts.PICTURE_NOT_KEPT})})
        elif kind is None:
            found.append({"role": entry["role"], "text": talk.words(entry)})
        elif kind == talk.NOTE:
            found.append({"role": "page", "text": talk.plain(entry)})
        elif kind == talk.OFFER:
            found.append({"role": "page", "text": texts.NOT_ANSWERED})
        elif kind == talk.STATS and found:
            found[-1]["about"] = talk.plain(entry)
            if settings := read_settings(talk.record_of(entry)):
                whole = read_record(talk.record_of(entry)) if tokens else None
                found[-1]["record"] = json.loads(whole.to_text() if whole else settings_text(settings))
    return found


def history_of(parts: Iterable[Part]) -> History:
    """The conversation of a transcript that has been checked; pictures are written to the uploads.

    Raises BadInput if a picture cannot be read or a record is none.
    """
    found: History = []
    for number, part in enumerate(parts, 1):
        if part.picture is not None:
            found += talk.user_turn("", pictures.to_uploads(pictures.small(part.picture)))[:1]
        elif part.role == "user":
            found += talk.user_turn(part.text)
        else:
            found.append(talk.answer(part.text) if part.role == "assistant" else talk.note(part.text))
        if part.about:
            record = "" if part.record is None else json.dumps(part.record)
            if record and read_settings(record) is None:
                raise BadInput(texts.wrong_record(number))
            found.append(talk.stats(part.about, record=record))
    return divided(found)


# A file.


def to_file(history: Sequence[Entry], settings: Settings) -> str:
    def show(path: str) -> dict[str, str] | None:
        try:
            return {"picture": pictures.data_url(pictures.small(pictures.from_uploads(path)))}
        except BadInput:
            return None

    return transcript.write(messages_of(history, show), side_panel(settings))


# The browser's storage: the words, and beside them the pictures, which change less often.


def to_browser(history: Sequence[Entry], known: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What is kept of the words, and the names of the pictures in it, the newest last.

    known: names by path, to be filled.
    """

    def show(path: str) -> dict[str, str] | None:
        try:
            if path not in known:
                known[path] = pictures.name(pictures.small(pictures.from_uploads(path)))
        except BadInput:
            return None
        return {"picture": known[path]}

    messages = messages_of(history, show)
    while len(json.dumps(messages)) > MAX_KEPT_TEXT:
        messages = messages[max(1, len(messages) // 8) :]
    names = [message["picture"] for message in messages if "picture" in message]
    return transcript.whole(messages), list(dict.fromkeys(names))


def pictures_of(history: Sequence[Entry], most: int = MAX_KEPT_PICTURES) -> tuple[dict[str, str], int]:
    """The conversation's pictures by name, the newest last, as many as fit; and how many of them did not."""
    found: dict[str, str] = {}
    for path in reversed(list(filter(None, map(talk.picture, history)))):
        try:
            data = pictures.small(pictures.from_uploads(path))
        except BadInput:
            continue
        found.setdefault(pictures.name(data), pictures.data_url(data))
    sizes, fitting = 0, {}
    for name, url in found.items():
        sizes += len(url) + 50
        if sizes > most:
            break
        fitting[name] = url
    return dict(reversed(fitting.items())), len(found) - len(fitting)


def fewer(kept: object) -> dict[str, str]:
    """The newer half of what is kept of pictures."""
    if not isinstance(kept, dict):
        return {}
    return dict(list(kept.items())[(len(kept) + 1) // 2 :])


def from_browser(kept: object, kept_pictures: object) -> History:
    """The conversation that was kept; empty if it is not one, whatever it is."""
    try:
        if not isinstance(kept, dict) or not isinstance(messages := kept["messages"], list):
            return []
        by_name = kept_pictures if isinstance(kept_pictures, dict) else {}
        shown = [_with_picture(message, by_name) for message in messages[: MAX_MESSAGES + 1]]
        return history_of(transcript.check({**kept, "messages": shown}).parts)
    except (BadInput, KeyError, TypeError, RecursionError):
        return []


def _with_picture(message: Any, by_name: dict[str, Any]) -> Any:
    if not isinstance(message, dict) or "picture" not in message:
        return message
    url = by_name.get(message["picture"]) if isinstance(message["picture"], str) else None
    if isinstance(url, str):
        return {**message, "picture": url}
    return {"role": "page", "text": texts.PICTURE_NOT_KEPT}


# A link.


def to_link(history: Sequence[Entry]) -> str:
    """The words of the conversation for the part of an address that no server is asked for. Raises BadInput."""
    messages = messages_of(history, lambda path: None, tokens=False)
    text = json.dumps(transcript.whole(messages), ensure_ascii=False)
    packed = base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
    if len(packed) > MAX_LINK:
        raise BadInput(texts.LINK_TOO_LONG)
    return packed


def from_link(packed: str) -> History:
    """The conversation in a link. Raises BadInput, whatever it is."""
    try:
        if len(packed) > 2 * MAX_LINK or not re.fullmatch(r"[A-Za-z0-9_-]+", packed):
            raise BadInput(texts.LINK_UNREADABLE)
        unpack = zlib.decompressobj()
        text = unpack.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)), _MAX_LINK_TEXT)
        found = transcript.read(text)
        if not found.parts or any(part.picture for part in found.parts):
            raise BadInput(texts.LINK_UNREADABLE)
        return history_of(found.parts)
    except (BadInput, ValueError, zlib.error):
        raise BadInput(texts.LINK_UNREADABLE) from None


# The side panel.


def side_panel(settings: Settings) -> dict[str, Any]:
    """The settings that are kept and exported."""
    return panel_values(settings.model_dump())


def kept_values(kept: object) -> dict[str, Any]:
    """The side panel's values in what was kept or exported: those of them that it can have."""
    if isinstance(kept, dict) and isinstance(kept.get("values"), list):
        kept = dict(zip(PANEL, kept["values"], strict=False))  # as page.js keeps them
    return panel_values(kept) if isinstance(kept, dict) else {}
