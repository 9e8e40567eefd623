"""A conversation as self-contained JSON: what the page exports and imports, and what the command line reads.

`{"format", "version", "settings", "messages", "pictures"}`. A message has a role and a text or a picture: a key of
`pictures`, which holds each once, as a data URL. An answer may have a line about it and a record. Files come from
strangers, so everything is checked; a remark stands in place of a message that is malformed. What exceeds a limit
is no fault: `fit` drops the oldest, for writers and readers alike.
"""

import base64
import binascii
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ValidationError

from adapter.base.template import Message, Role, encodable
from adapter.errors import BadInput
from adapter.serve.settings import Settings

FORMAT, VERSION = "llama-adapter conversation", 2
MAX_BYTES = 32 * 2**20
# Remarks in place of what is not kept.
PICTURE_NOT_KEPT = "The picture of this message is not kept any more."
MESSAGE_NOT_KEPT = "A message that stood here cannot be read any more."
_MAX_TEXT = 100_000  # characters
_MAX_LINE = 500
_MAX_RECORD = 200_000  # characters; twice what an answer's may have
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True)
class TranscriptLimits:
    """What is kept of a conversation. text_bytes: of the messages as JSON; picture_bytes: of the data URLs."""

    messages: int = 2000
    text_bytes: int = 2 * 2**20
    pictures: int = 64
    picture_bytes: int = 18 * 2**20


FILE = TranscriptLimits()
# Brackets and commas of a JSON text, more than a written file can have. Each may become a value of 100 bytes.
_MAX_VALUES = FILE.text_bytes + 100_000
_large_texts = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Dropped:
    """What exceeded the limits: the oldest messages and pictures, and ends of long texts; records do not count."""

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


@dataclass(frozen=True)
class Transcript:
    """A whole conversation. settings: as in the file, not checked; dropped: what the limits left out of it."""

    messages: tuple[TranscriptMessage, ...]
    settings: object = None
    dropped: Dropped = Dropped()

    def to_answer(self) -> tuple[tuple[Message, ...], bytes | None]:
        """The messages up to the user's last one, and the latest picture among them."""
        end = max((i + 1 for i, part in enumerate(self.messages) if part.role == "user"), default=0)
        asked = self.messages[:end]
        pictures = [part.picture for part in asked if part.picture is not None or part.text == PICTURE_NOT_KEPT]
        turns = ((part.role, part.text, answered_by(part.record)) for part in asked)
        return merge_turns(turns), pictures[-1] if pictures else None


def answered_by(record: Mapping[str, Any] | None) -> str | None:
    """Who gave an answer that has this record, as in Message.name; None if the record does not say it."""
    try:
        return Settings.checked(record).answerer if record and "adapter" in record else None
    except BadInput:
        return None


def merge_turns(turns: Iterable[tuple[str, str, str | None]]) -> tuple[Message, ...]:
    """(role, text, name) as messages for a model: empty turns are dropped, neighbours of one speaker merged."""
    messages: list[Message] = []
    for role, text, name in turns:
        if role not in ("user", "assistant") or not text.strip():
            continue
        if messages and (messages[-1].role, messages[-1].name) == (role, name):
            text = f"{messages.pop().text}\n\n{text}"
        messages.append(Message(cast(Role, role), text, name=name))
    return tuple(messages)


def fit(
    messages: Sequence[dict[str, Any]], weigh: Callable[[str], int | None], limits: TranscriptLimits
) -> tuple[list[dict[str, Any]], Dropped]:
    """The newest messages and pictures within the limits, from the start of a turn on, and what was dropped.
    Fitting the result again drops nothing. The message of a dropped picture becomes a remark. weigh: the bytes of
    a picture's data URL by its name, None if there is none; called at most once a name.
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
            fitting = message if sizes.get(name) else _remark(PICTURE_NOT_KEPT)
        text_room -= len(json.dumps(fitting, ensure_ascii=False).encode("utf-8", "replace")) + 2
        if text_room < 0 or len(kept) == limits.messages:
            break
        kept.append(fitting)
        text_ends += len(message.get("text", "")) > _MAX_TEXT
    start = begin = len(messages) - len(kept)
    while 0 < begin < len(messages) and not messages[begin]["role"] == "user" != messages[begin - 1]["role"]:
        begin += 1  # to the next turn
    if begin == len(messages):
        begin = start
    return kept[::-1][begin - start :], Dropped(begin, len(dropped_pictures), text_ends)


def _shortened(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its text, line and record within their limits, and such that they can be displayed."""
    short = {**message, "text": _displayable(message["text"])[:_MAX_TEXT]}
    if "about" in short:
        short["about"] = _displayable(short["about"])[:_MAX_LINE]
    try:
        too_long = len(json.dumps(short.get("record"))) > _MAX_RECORD
    except RecursionError:
        too_long = True
    if too_long:
        del short["record"]
    return short


def to_document(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A document with these messages, their pictures elsewhere, and no settings."""
    return {"format": FORMAT, "version": VERSION, "messages": messages}


def _remark(text: str) -> dict[str, Any]:
    return {"role": "page", "text": text}


def read(text: str | bytes, limits: TranscriptLimits = FILE) -> Transcript:
    """Parse the text of a conversation file; the values of two large ones are in memory at a time. Raises
    BadInput that says what is wrong, for any text.
    """
    if len(text) > MAX_BYTES:
        raise BadInput(f"The file has {len(text) / 2**20:.0f} MB; {MAX_BYTES // 2**20} MB are the limit.")
    with _large_texts if len(text) > 2**20 else nullcontext():
        try:
            decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
            if sum(map(decoded.count, "[{,")) > _MAX_VALUES:
                raise ValueError("more values than a conversation has")
            document = json.loads(decoded, parse_constant=int)  # NaN, which JSON does not have, is no int
        except (ValueError, RecursionError):
            raise BadInput("The file is not JSON of a conversation. Choose one that was exported here.") from None
        return check(document, limits)


def _displayable(text: Any) -> Any:
    """The text with lone surrogates replaced, which JSON can hold and nothing can display."""
    return encodable(text) if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_displayable)]


class _Message(BaseModel, strict=True):
    """A message of a file. picture: of a message of the user, in place of a text."""

    role: Literal["user", "assistant", "page"]  # page: a remark of the page, which no model reads
    text: Text | None = None
    picture: str | None = None
    about: Text | None = None
    record: dict[Any, Any] | None = None


class _Document(BaseModel, strict=True):
    """A file but for its messages, each of which is read by itself."""

    format: Literal["llama-adapter conversation"]
    version: Literal[2]
    messages: list[Any]
    settings: Any = None
    pictures: dict[Any, Any] = {}


def check(document: object, limits: TranscriptLimits = FILE) -> Transcript:
    """Check a value that was JSON and fit it to the limits. Raises BadInput if it is no conversation."""
    try:
        read = _Document.model_validate(document)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["loc"] == ("version",):
            raise BadInput(f"The file's version is not {VERSION}. Export it again.") from None
        raise BadInput("The file holds no conversation. Choose one that was exported here.") from None
    names: dict[str, str] = {}  # of the pictures, by their data URLs
    checked = [_checked(message, read.pictures, names) for message in read.messages]
    urls = {name: url for url, name in names.items()}
    fitting, dropped = fit(checked, lambda name: len(urls[name]), limits)
    pictures = {name: _decode_picture(urls[name]) for name in {m["picture"] for m in fitting if "picture" in m}}
    parts = []
    for message in fitting:
        if "picture" in message:
            picture = pictures[message["picture"]]
            message = {"role": "user", "picture": picture} if picture else _remark(PICTURE_NOT_KEPT)
        parts.append(TranscriptMessage(**message))
    return Transcript(tuple(parts), read.settings, dropped)


def _checked(message: object, pictures: Mapping[Any, Any], names: dict[str, str]) -> dict[str, Any]:
    """A message of a file in the form of `fit`. names: short ones of the pictures' data URLs, which it adds to."""
    try:
        read = _Message.model_validate(message)
    except ValidationError:
        has_picture = isinstance(message, dict) and "picture" in message
        return _remark(PICTURE_NOT_KEPT if has_picture else MESSAGE_NOT_KEPT)
    if read.role == "user" and read.picture is not None:
        url = pictures.get(read.picture)
        if not isinstance(url, str) or not url.startswith("data:image/"):
            return _remark(PICTURE_NOT_KEPT)
        return {"role": read.role, "picture": names.setdefault(url, str(len(names)))}
    if read.text is None:
        return _remark(MESSAGE_NOT_KEPT)
    about_answer = {"about": read.about or None, "record": read.record} if read.role != "user" else {}
    return {"role": read.role, "text": read.text, **{k: v for k, v in about_answer.items() if v is not None}}


def _decode_picture(url: str) -> bytes:
    """The bytes of a data URL; empty if it is none."""
    match = _DATA_URL.fullmatch(url)
    try:
        return base64.b64decode(match[1], validate=True) if match else b""
    except binascii.Error:
        return b""
