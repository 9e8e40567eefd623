"""A conversation as self-contained JSON: what the page exports and imports, and what the command line reads.

`{"format", "version", "settings", "messages", "pictures"}`. A message has a role and a text or a picture: a key of
`pictures`, which holds each once, as a data URL. Version 1 had the data URL in the message. An answer may have a
line about it and a record. Files come from strangers, so everything is checked: by hand, not by pydantic, because
each check has a sentence for people. What exceeds a limit is no fault: `fit` drops the oldest, for writers and
readers alike. Opens no files or images; knows no page.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from adapter.base.template import Message, Role
from adapter.errors import BadInput

FORMAT, VERSION = "llama-adapter conversation", 2
ROLES = ("user", "assistant", "page")  # page: a remark of the page, which no model reads
MAX_BYTES = 32 * 2**20
# Remarks in place of what is not kept.
PICTURE_NOT_KEPT = "The picture of this message is not kept any more."
MESSAGE_NOT_KEPT = "A message that stood here cannot be read any more."
# The remark above a turn whose answer, and those after it, are given without what went before.
FORGOTTEN = "Without what went before"
_MAX_TEXT = 100_000  # characters
_MAX_LINE = 500
_MAX_RECORD = 100_000
_NO_PICTURE = "has a picture that is not a data URL of one"
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True)
class Limits:
    """What is kept of a conversation. text_bytes: of the messages as JSON; picture_bytes: of the data URLs."""

    messages: int = 2000
    text_bytes: int = 2 * 2**20
    pictures: int = 64
    picture_bytes: int = 18 * 2**20


FILE = Limits()
# Brackets and commas of a JSON text, more than a written file can have. Each may become a value of 100 bytes.
_MAX_VALUES = FILE.text_bytes + 100_000
_large_texts = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Dropped:
    """What exceeded the limits: whole messages and pictures, the oldest, and the ends of long texts."""

    messages: int = 0
    pictures: int = 0
    text_ends: int = 0

    def __bool__(self) -> bool:
        return bool(self.messages or self.pictures or self.text_ends)

    def __str__(self) -> str:
        """ "the 3 oldest messages and the oldest picture" """
        counted = (
            (self.messages, "the oldest message", "the {} oldest messages"),
            (self.pictures, "the oldest picture", "the {} oldest pictures"),
            (self.text_ends, "the rest of a long text", "the rest of {} long texts"),
        )
        return " and ".join(one if n == 1 else several.format(n) for n, one, several in counted if n)


@dataclass(frozen=True)
class TranscriptMessage:
    """One message: a text, or the bytes of an image file. about, record (not checked): of an answer."""

    role: str
    text: str = ""
    picture: bytes | None = None
    about: str = ""
    record: dict[str, Any] | None = None


_FORGOTTEN = TranscriptMessage("page", FORGOTTEN)


@dataclass(frozen=True)
class Transcript:
    """A whole conversation. settings: as in the file, not checked; dropped: what the limits left out of it."""

    messages: tuple[TranscriptMessage, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    dropped: Dropped = Dropped()

    def to_answer(self) -> tuple[tuple[Message, ...], bytes | None]:
        """The messages up to the user's last one, and the latest picture among them."""
        end = max((i + 1 for i, part in enumerate(self.messages) if part.role == "user"), default=0)
        begin = max((i for i, part in enumerate(self.messages[:end]) if part == _FORGOTTEN), default=0)
        asked = self.messages[begin:end]
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


def fit(
    messages: Sequence[dict[str, Any]], weigh: Callable[[str], int | None], limits: Limits
) -> tuple[list[dict[str, Any]], Dropped]:
    """The newest messages and pictures within the limits, beginning with a whole turn, and what was dropped.

    messages: checked, or of a writer; a message of a dropped picture becomes a remark. weigh: the bytes of a
    picture's data URL by its name in a message, None if there is none; called for the newest pictures only, and
    once for each. Fitting what was fitted drops nothing.
    """
    kept: list[dict[str, Any]] = []
    sizes: dict[str, int | None] = {}
    dropped_pictures: set[str] = set()
    text_room, picture_room, text_ends = limits.text_bytes, limits.picture_bytes, 0
    for message in reversed(messages):
        if (name := message.get("picture")) is None:
            fitting = _shortened(message)
        else:
            if name not in sizes and name not in dropped_pictures:
                full = len(sizes) == limits.pictures
                size = None if full else weigh(name)
                if full or (size or 0) > picture_room:
                    dropped_pictures.add(name)
                    picture_room = -1  # an older one that is smaller is not kept in its place
                else:
                    sizes[name] = size
                    picture_room -= size or 0
            fitting = message if sizes.get(name) else {"role": "page", "text": PICTURE_NOT_KEPT}
        text_room -= len(json.dumps(fitting, ensure_ascii=False).encode("utf-8", "replace")) + 2
        if text_room < 0 or len(kept) == limits.messages:
            break
        kept.append(fitting)
        text_ends += len(message.get("text", "")) > _MAX_TEXT
    start = begin = len(messages) - len(kept)
    while 0 < begin < len(messages) and not _begins_turn(messages, begin):
        begin += 1
    if begin == len(messages):
        begin = start
    return kept[::-1][begin - start :], Dropped(begin, len(dropped_pictures), text_ends)


def _begins_turn(messages: Sequence[dict[str, Any]], index: int) -> bool:
    return messages[index]["role"] == "user" != messages[index - 1]["role"]


def _shortened(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its text, line and record within their limits, and such that they can be displayed."""
    short = {**message, "text": _displayable(message["text"])[:_MAX_TEXT]}
    if "about" in short:
        short["about"] = _displayable(short["about"])[:_MAX_LINE]
    if "record" in short and _json_length(short["record"]) > _MAX_RECORD:
        del short["record"]
    return short


def _displayable(text: str) -> str:
    """The text with lone surrogates replaced, which JSON can hold and nothing can display."""
    return text.encode("utf-8", "replace").decode()


def write(messages: Sequence[dict[str, Any]], pictures: Mapping[str, str], settings: dict[str, Any]) -> str:
    """The text of a conversation file, a message a line. messages: as `fit` returns them; pictures: data URLs."""
    head = {"format": FORMAT, "version": VERSION, "settings": settings, "pictures": pictures}
    text = json.dumps(head, ensure_ascii=False)
    lines = ",\n".join(json.dumps(message, ensure_ascii=False) for message in messages)
    return f'{text[:-1]}, "messages": [\n{lines}\n]}}\n'


def to_document(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A document with these messages, their pictures elsewhere, and no settings."""
    return {"format": FORMAT, "version": VERSION, "messages": messages}


def read(text: str | bytes) -> Transcript:
    """Parse the text of a conversation file. Raises BadInput that says what is wrong, for any text."""
    if len(text) > MAX_BYTES:
        raise BadInput(f"The file has {len(text) / 2**20:.0f} MB; {MAX_BYTES // 2**20} MB are the limit.")
    with parsing(len(text)):
        try:
            document = parse(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
        except ValueError:
            raise BadInput("The file is not JSON of a conversation. Choose one that was exported here.") from None
        return check(document)


@contextmanager
def parsing(size: int) -> Iterator[None]:
    """Holds the values of a JSON text of `size`: those of two large texts are in memory at a time."""
    with _large_texts if size > 2**20 else nullcontext():
        yield


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for any other, and for more values than a conversation has."""
    if sum(map(text.count, "[{,")) > _MAX_VALUES:
        raise ValueError("more values than a conversation has")
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError("nested more deeply than a conversation") from None


def check(document: object, limits: Limits = FILE, lenient: bool = False) -> Transcript:
    """Check a value that was JSON and fit it to the limits. Raises BadInput that says what is wrong in any other.

    lenient: a message that is wrong becomes a remark, so that the others are not lost with it.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadInput("The file holds no conversation. Choose one that was exported here.")
    if type(document.get("version")) is not int or document["version"] not in (1, VERSION):
        raise BadInput(f"The file's version is not 1 or {VERSION}, which are read here. Export it again.")
    messages, settings = document.get("messages"), document.get("settings", {})
    pictures = document.get("pictures", {})
    if not isinstance(messages, list) or not isinstance(settings, dict) or not isinstance(pictures, dict):
        raise BadInput("The file's messages are missing, or not a list. Choose one that was exported here.")
    urls = _PictureUrls(pictures)
    checked: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        try:
            checked.append(_check_message(message, number, urls))
        except BadInput:
            if not lenient:
                raise
            is_picture = isinstance(message, dict) and "picture" in message
            checked.append({"role": "page", "text": PICTURE_NOT_KEPT if is_picture else MESSAGE_NOT_KEPT})
    fitting, dropped = fit(checked, lambda name: len(urls.by_name[name]), limits)
    pictures = {message["picture"]: b"" for message in fitting if "picture" in message}
    for name in pictures:
        pictures[name] = _decode_picture(urls.by_name[name])
    parts = []
    for number, message in enumerate(fitting, 1 + dropped.messages):
        if (name := message.get("picture")) is None:
            about, record = message.get("about", ""), message.get("record")
            parts.append(TranscriptMessage(message["role"], message["text"], None, about, record))
        elif pictures[name]:
            parts.append(TranscriptMessage(message["role"], picture=pictures[name]))
        elif lenient:
            parts.append(TranscriptMessage("page", PICTURE_NOT_KEPT))
        else:
            _reject(number, _NO_PICTURE)
    return Transcript(tuple(parts), settings, dropped)


class _PictureUrls:
    """The data URLs of a document, under short names, whether its messages hold them or name them."""

    def __init__(self, pictures: Mapping[str, Any]) -> None:
        self._pictures = pictures
        self._names: dict[str, str] = {}
        self.by_name: dict[str, str] = {}

    def name(self, picture: object) -> str | None:
        """The name of what a message holds; None for what is no data URL."""
        if not isinstance(picture, str):
            return None
        if picture not in self._names:
            url = self._pictures.get(picture, picture)
            if not isinstance(url, str) or not url.startswith("data:image/"):
                return None
            self._names[picture] = str(len(self._names))
            self.by_name[self._names[picture]] = url
        return self._names[picture]


def _check_message(message: object, number: int, urls: _PictureUrls) -> dict[str, Any]:
    """The message in the form of `fit`."""
    if not isinstance(message, dict):
        _reject(number, "is not an object")
    role, record = message.get("role"), message.get("record")
    if role not in ROLES:
        _reject(number, f"has none of the roles {', '.join(ROLES)}")
    if role == "user" and "picture" in message:
        if (name := urls.name(message["picture"])) is None:
            _reject(number, _NO_PICTURE)
        return {"role": role, "picture": name}
    text, about = message.get("text"), message.get("about", "")
    if not isinstance(text, str) or not isinstance(about, str):
        _reject(number, "has a text that is none")
    if record is not None and not isinstance(record, dict):
        _reject(number, "has a record that is none")
    checked = {"role": role, "text": text}
    if role != "user":
        checked |= {"about": about} if about else {}
        checked |= {"record": record} if record is not None else {}
    return checked


def _decode_picture(url: str) -> bytes:
    """The bytes of a data URL; empty if it is none."""
    match = _DATA_URL.fullmatch(url)
    try:
        return base64.b64decode(match[1], validate=True) if match else b""
    except binascii.Error:
        return b""


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
