"""A conversation as self-contained JSON: what the page exports and imports, and what the command line reads.

`{"format", "version", "settings", "messages", "pictures"}`. A message has a role and a text or a picture: a key of
`pictures`, which holds each once, as a data URL. Version 1 had the data URL in the message. An answer may have a
line about it and a record. Files come from strangers, so everything is checked. What exceeds a limit is no fault:
`fit` drops the oldest, for writers and readers alike.
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
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from adapter.base.template import Message, Role
from adapter.errors import BadInput
from adapter.serve.settings import Settings

FORMAT, VERSION = "llama-adapter conversation", 2
MAX_BYTES = 32 * 2**20
# Remarks in place of what is not kept.
PICTURE_NOT_KEPT = "The picture of this message is not kept any more."
MESSAGE_NOT_KEPT = "A message that stood here cannot be read any more."
_MAX_TEXT = 100_000  # characters
_MAX_LINE = 500
_MAX_RECORD = 100_000
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


@dataclass(frozen=True)
class Transcript:
    """A whole conversation. settings: as in the file, not checked; dropped: what the limits left out of it."""

    messages: tuple[TranscriptMessage, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    dropped: Dropped = Dropped()

    def to_answer(self) -> tuple[tuple[Message, ...], bytes | None]:
        """The messages up to the user's last one, and the latest picture among them."""
        end = max((i + 1 for i, part in enumerate(self.messages) if part.role == "user"), default=0)
        asked = self.messages[:end]
        pictures = [part.picture for part in asked if part.picture is not None]
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


def _displayable(text: Any) -> Any:
    """The text with lone surrogates replaced, which JSON can hold and nothing can display."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_displayable)]
Object = dict[Any, Any]


class _Message(BaseModel):
    """A message of a file. picture: of a message of the user, in place of a text."""

    model_config = ConfigDict(strict=True)
    role: Literal["user", "assistant", "page"]  # page: a remark of the page, which no model reads
    text: Text | None = None
    picture: Any = None
    about: Text = ""
    record: Object | None = None

    def checked(self, pictures: Object, names: dict[str, str]) -> dict[str, Any]:
        """The message in the form of `fit`. names: short ones of the data URLs, which it adds to.

        Raises ValueError with the name of the field that is wrong.
        """
        if self.role == "user" and self.picture is not None:
            url = pictures.get(self.picture, self.picture) if isinstance(self.picture, str) else None
            if not isinstance(url, str) or not url.startswith("data:image/"):
                raise ValueError("picture")
            return {"role": self.role, "picture": names.setdefault(url, str(len(names)))}
        if self.text is None:
            raise ValueError("text")
        checked = {"role": self.role, "text": self.text, "about": self.about or None, "record": self.record}
        hidden = ("about", "record") if self.role == "user" else ()
        return {name: value for name, value in checked.items() if value is not None and name not in hidden}


class _Document(BaseModel):
    """A file but for its messages, each of which is read by itself."""

    model_config = ConfigDict(strict=True)
    format: Literal["llama-adapter conversation"]
    version: Literal[1, 2]
    messages: list[Any]
    settings: Object = {}
    pictures: Object = {}


def check(document: object, limits: Limits = FILE, lenient: bool = False) -> Transcript:
    """Check a value that was JSON and fit it to the limits. Raises BadInput that says what is wrong in any other.

    lenient: a message that is wrong becomes a remark, so that the others are not lost with it.
    """
    try:
        read = _Document.model_validate(document)
    except ValidationError as error:
        field = _field(error)
        if field == "version":
            raise BadInput(
                f"The file's version is not 1 or {VERSION}, which are read here. Export it again."
            ) from None
        what = "no conversation" if field in ("", "format") else f"no {field}, or broken ones"
        raise BadInput(f"The file holds {what}. Choose one that was exported here.") from None
    names: dict[str, str] = {}
    checked: list[dict[str, Any]] = []
    for number, message in enumerate(read.messages, 1):
        try:
            checked.append(_Message.model_validate(message).checked(read.pictures, names))
        except ValueError as error:
            if not lenient:
                raise _broken(number, _field(error)) from None
            is_picture = isinstance(message, dict) and "picture" in message
            checked.append({"role": "page", "text": PICTURE_NOT_KEPT if is_picture else MESSAGE_NOT_KEPT})
    urls = {name: url for url, name in names.items()}
    fitting, dropped = fit(checked, lambda name: len(urls[name]), limits)
    pictures = {name: _decode_picture(urls[name]) for name in {m["picture"] for m in fitting if "picture" in m}}
    parts = []
    for number, message in enumerate(fitting, 1 + dropped.messages):
        if "picture" in message and not pictures[message["picture"]]:
            if not lenient:
                raise _broken(number, "picture")
            message = {"role": "page", "text": PICTURE_NOT_KEPT}
        elif "picture" in message:
            message = {"role": "user", "picture": pictures[message["picture"]]}
        parts.append(TranscriptMessage(**message))
    return Transcript(tuple(parts), read.settings, dropped)


def _field(error: ValueError) -> str:
    """The name of the field that is wrong; empty for what is no object or no conversation."""
    if isinstance(error, ValidationError):
        return str(next(iter(error.errors(include_url=False, include_input=False)[0]["loc"]), ""))
    return str(error)


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


def _broken(number: int, field: str) -> BadInput:
    hint = {"picture": " (a data URL of one)", "role": " (user, assistant or page)"}.get(field, "")
    what = f"has no valid {field}{hint}" if field else "is not an object"
    return BadInput(f"Message {number} of the conversation {what}. Nothing was taken from it.")


def _reject_constant(name: str) -> None:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no number of JSON")
