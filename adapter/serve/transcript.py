"""A conversation as self-contained JSON: what the page exports and imports, and what the command line reads.

`{"format", "version", "settings", "messages"}`. A message has a role and a text or a picture (a data URL); an
answer may also have a line about it and a record. Files come from strangers, so everything is checked: by hand,
not by pydantic, because each check has its own sentence for people. Opens no files or images; knows no page.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from adapter.base.template import Message, Role
from adapter.errors import BadInput

FORMAT, VERSION = "llama-adapter conversation", 1
ROLES = ("user", "assistant", "page")  # page: a remark of the page, which no model reads
MAX_BYTES = 32 * 2**20
MAX_MESSAGES = 2000
MAX_PICTURES = 32
_MAX_TEXT = 100_000  # characters
_MAX_LINE = 500
_MAX_RECORD = 100_000
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True)
class TranscriptMessage:
    """One message: a text, or the bytes of an image file. about, record (not checked): of an answer."""

    role: str
    text: str = ""
    picture: bytes | None = None
    about: str = ""
    record: dict[str, Any] | None = None


@dataclass(frozen=True)
class Transcript:
    """A whole conversation. settings: as in the file, not checked."""

    messages: tuple[TranscriptMessage, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def to_answer(self) -> tuple[tuple[Message, ...], bytes | None]:
        """The messages up to the user's last one, and the latest picture among them."""
        end = max((i + 1 for i, part in enumerate(self.messages) if part.role == "user"), default=0)
        asked = self.messages[:end]
        pictures = [part.picture for part in asked if part.picture is not None]
        return merge_turns((part.role, part.text) for part in asked), pictures[-1] if pictures else None


def merge_turns(turns: Iterable[tuple[str, str]]) -> tuple[Message, ...]:
    """(role, text) pairs as messages for a model: empty turns are dropped, then neighbours of one role merged."""
    messages: list[Message] = []
    for role, text in turns:
        if role not in ("user", "assistant") or not text.strip():
            continue
        if messages and messages[-1].role == role:
            text = f"{messages.pop().text}\n\n{text}"
        messages.append(Message(cast(Role, role), text))
    return tuple(messages)


def write(messages: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    """The text of a conversation file; messages: in the form that `check` accepts."""
    return json.dumps({**to_document(messages), "settings": settings}, ensure_ascii=False, indent=1)


def to_document(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A document with these messages and no settings, in the form that `check` accepts."""
    return {"format": FORMAT, "version": VERSION, "messages": messages}


def read(text: str | bytes) -> Transcript:
    """Parse the text of a conversation file. Raises BadInput that says what is wrong, for any text."""
    if len(text) > MAX_BYTES:
        raise BadInput(f"The file has {len(text) / 2**20:.0f} MB; {MAX_BYTES // 2**20} MB are the limit.")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        document = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise BadInput("The file is not JSON. Choose one that was exported here.") from None
    return check(document)


def check(document: object) -> Transcript:
    """Check a value that was JSON. Raises BadInput that says what is wrong, for any value."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadInput("The file holds no conversation. Choose one that was exported here.")
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise BadInput(f"The file's version is not {VERSION}, the only one read here. Export it again.")
    messages, settings = document.get("messages"), document.get("settings", {})
    if not isinstance(messages, list) or not isinstance(settings, dict):
        raise BadInput("The file's messages are missing, or not a list. Choose one that was exported here.")
    if len(messages) > MAX_MESSAGES:
        raise BadInput(f"The conversation has {len(messages):,} messages; {MAX_MESSAGES:,} are the limit.")
    parts = tuple(_check_message(message, number) for number, message in enumerate(messages, 1))
    pictures = sum(part.picture is not None for part in parts)
    if pictures > MAX_PICTURES:
        raise BadInput(f"The conversation has {pictures} pictures; {MAX_PICTURES} are the limit.")
    return Transcript(parts, settings)


def _check_message(message: object, number: int) -> TranscriptMessage:
    if not isinstance(message, dict):
        _reject(number, "is not an object")
    role, record = message.get("role"), message.get("record")
    if role not in ROLES:
        _reject(number, f"has none of the roles {', '.join(ROLES)}")
    if record is not None and not (isinstance(record, dict) and _json_length(record) <= _MAX_RECORD):
        _reject(number, "has a record that is none, or too long")
    about = _check_text(message.get("about", ""), _MAX_LINE, number, "line about it")
    if role == "user" and "picture" in message:
        return TranscriptMessage(role, picture=_check_picture(message["picture"], number))
    text = _check_text(message.get("text"), _MAX_TEXT, number, "text")
    return TranscriptMessage(role, text) if role == "user" else TranscriptMessage(role, text, None, about, record)


def _check_picture(url: object, number: int) -> bytes:
    match = _DATA_URL.fullmatch(url) if isinstance(url, str) else None
    try:
        data = base64.b64decode(match[1], validate=True) if match else b""
    except binascii.Error:
        data = b""
    if not data:
        _reject(number, "has a picture that is not a data URL of one")
    return data


def _check_text(text: object, limit: int, number: int, what: str) -> str:
    """The text with lone surrogates replaced, which JSON can hold and nothing can display."""
    if not isinstance(text, str):
        _reject(number, f"has a {what} that is not a text")
    if len(text) > limit:
        _reject(number, f"has a {what} of {len(text):,} characters; {limit:,} are the limit")
    return text.encode("utf-8", "replace").decode()


def _json_length(record: dict[str, Any]) -> float:
    try:
        return len(json.dumps(record))
    except RecursionError:
        return float("inf")


def _reject(number: int, what: str) -> NoReturn:
    raise BadInput(f"Message {number} of the conversation {what}. Nothing was taken from it.")


def _reject_constant(name: str) -> NoReturn:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no number of JSON")
