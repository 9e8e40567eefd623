"""A conversation as JSON that stands for itself: what people export, import and give to the command line.

`{"format", "version", "settings", "messages"}`; a message has a role and a text or a picture (a data URL), an
answer also a line about it and its record. Reads what anybody may have written, and checks all of it. Knows no
files, no page and no model; pictures stay the bytes they are until somebody opens them.
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
ROLES = ("user", "assistant", "page")  # page: a remark of the page's, never read by a model
MAX_BYTES = 32 * 2**20
MAX_MESSAGES = 2000
MAX_PICTURES = 32
_MAX_TEXT = 100_000
_MAX_LINE = 500
_MAX_RECORD = 100_000
_PICTURE = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True)
class Part:
    """One message: a text or the bytes of a picture file, unopened. about, record: of an answer, unread."""

    role: str
    text: str = ""
    picture: bytes | None = None
    about: str = ""
    record: dict[str, Any] | None = None


@dataclass(frozen=True)
class Transcript:
    """A whole conversation. settings: as they stand in the file, unread."""

    parts: tuple[Part, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def to_answer(self) -> tuple[tuple[Message, ...], bytes | None]:
        """What a model is asked by the newest message of the user's, and the picture that counts then."""
        end = max((i + 1 for i, part in enumerate(self.parts) if part.role == "user"), default=0)
        asked = self.parts[:end]
        pictures = [part.picture for part in asked if part.picture is not None]
        return join((part.role, part.text) for part in asked), pictures[-1] if pictures else None


def join(said: Iterable[tuple[str, str]]) -> tuple[Message, ...]:
    """(role, text) pairs as a model reads them: neighbours of one role are one message, none is empty."""
    joined: list[Message] = []
    for role, text in said:
        if role not in ("user", "assistant") or not text.strip():
            continue
        if joined and joined[-1].role == role:
            text = f"{joined.pop().text}\n\n{text}"
        joined.append(Message(cast(Role, role), text))
    return tuple(joined)


def write(messages: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    """The text of a file; messages: in the form that `check` reads."""
    return json.dumps({**whole(messages), "settings": settings}, ensure_ascii=False, indent=1)


def whole(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Messages as a value that `check` reads."""
    return {"format": FORMAT, "version": VERSION, "messages": messages}


def read(text: str | bytes) -> Transcript:
    """The conversation in a file's text. Raises BadInput with what is wrong, whatever the text is."""
    if len(text) > MAX_BYTES:
        raise BadInput(f"The file has {len(text) / 2**20:.0f} MB; {MAX_BYTES // 2**20} MB are the limit.")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        data = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise BadInput("The file is not JSON. Choose one that was exported here.") from None
    return check(data)


def check(data: object) -> Transcript:
    """The conversation in a value that was JSON. Raises BadInput with what is wrong, whatever the value is."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BadInput("The file holds no conversation. Choose one that was exported here.")
    if type(data.get("version")) is not int or data["version"] != VERSION:
        raise BadInput(f"The file's version is not {VERSION}, the only one read here. Export it again.")
    messages, settings = data.get("messages"), data.get("settings", {})
    if not isinstance(messages, list) or not isinstance(settings, dict):
        raise BadInput("The file's messages are missing, or not a list. Choose one that was exported here.")
    if len(messages) > MAX_MESSAGES:
        raise BadInput(f"The conversation has {len(messages):,} messages; {MAX_MESSAGES:,} are the limit.")
    parts = tuple(_part(message, number) for number, message in enumerate(messages, 1))
    pictures = sum(part.picture is not None for part in parts)
    if pictures > MAX_PICTURES:
        raise BadInput(f"The conversation has {pictures} pictures; {MAX_PICTURES} are the limit.")
    return Transcript(parts, settings)


def _part(message: object, number: int) -> Part:
    if not isinstance(message, dict):
        _wrong(number, "is not an object")
    role, record = message.get("role"), message.get("record")
    if role not in ROLES:
        _wrong(number, f"has none of the roles {', '.join(ROLES)}")
    if record is not None and not (isinstance(record, dict) and _length(record) <= _MAX_RECORD):
        _wrong(number, "has a record that is none, or too long")
    about = _clean(message.get("about", ""), _MAX_LINE, number, "line about it")
    if role != "user":
        return Part(role, _clean(message.get("text"), _MAX_TEXT, number, "text"), None, about, record)
    if "picture" not in message:
        return Part(role, _clean(message.get("text"), _MAX_TEXT, number, "text"))
    found = _PICTURE.fullmatch(message["picture"]) if isinstance(message["picture"], str) else None
    try:
        data = base64.b64decode(found[1], validate=True) if found else b""
    except binascii.Error:
        data = b""
    if not data:
        _wrong(number, "has a picture that is not a data URL of one")
    return Part(role, "", data)


def _clean(text: object, most: int, number: int, what: str) -> str:
    """The text without half characters, which JSON can hold and nothing can show."""
    if not isinstance(text, str):
        _wrong(number, f"has a {what} that is not a text")
    if len(text) > most:
        _wrong(number, f"has a {what} of {len(text):,} characters; {most:,} are the limit")
    return text.encode("utf-8", "replace").decode()


def _length(record: dict[str, Any]) -> float:
    try:
        return len(json.dumps(record))
    except RecursionError:
        return float("inf")


def _wrong(number: int, what: str) -> NoReturn:
    raise BadInput(f"Message {number} of the conversation {what}. Nothing was taken from it.")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
