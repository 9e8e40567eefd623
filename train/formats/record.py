"""One example, whatever file it came from, and the error that says where a file is broken. Reads no files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapter.base.template import Message
from adapter.errors import AdapterError


class DataError(AdapterError):
    """Training data cannot be read: names the file, the line or record, the field, and what to do."""


@dataclass(frozen=True)
class Record:
    """A conversation to learn from.

    messages: the last one is the assistant's; every turn of the assistant carries loss.
    image: what the user shows, a path that may lead nowhere; None if there is no picture.
    where: "alpaca.jsonl, line 12", for messages.
    """

    messages: tuple[Message, ...]
    image: Path | None
    where: str


class Rows(Protocol):
    """What one file or folder holds, by number: a value in its format's shape, and where that stands."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Any, str]: ...


def wrong(where: str, field: str, what: str, remedy: str) -> DataError:
    return DataError(f"{where}: '{field}' {what}. {remedy}")


def kind(value: Any) -> str:
    """What JSON calls it, with its article."""
    kinds = {type(None): "null", bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def required(value: dict[str, Any], key: str, where: str, field: str = "") -> Any:
    """value[key]; `field` is what the error calls it."""
    if key not in value:
        raise wrong(where, field or key, "is missing", "Add it, or take the record out.")
    return value[key]


def text_of(value: Any, field: str, where: str, blank: bool = True) -> str:
    """The value if it is text that can be encoded, and not blank unless that is allowed."""
    if not isinstance(value, str):
        raise wrong(where, field, f"is {kind(value)}, not text", "Write it as a string.")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise wrong(where, field, "holds half of a surrogate pair", "Write that character whole, or take it out.")
    if not blank and not value.strip():
        raise wrong(where, field, "is empty", "Fill it in, or take the record out.")
    return value


def list_of(value: Any, field: str, where: str) -> list[Any]:
    """The value if it is a list and not an empty one."""
    if not isinstance(value, list):
        raise wrong(where, field, f"is {kind(value)}, not a list", "Write it as a list.")
    if not value:
        raise wrong(where, field, "is an empty list", "Fill it in, or take the record out.")
    return value


def object_of(value: Any, field: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(where, field, f"is {kind(value)}, not an object", "Write it as {...}.")
    return value


def image_path(value: Any, field: str, where: str, folder: Path) -> Path:
    """The path that a record names, below `folder` unless it is absolute. Nothing is opened."""
    name = text_of(value, field, where, blank=False)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", name):
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise wrong(
            where, field, f"is an address, '{shown}'", "Download the picture first and name the file here."
        )
    return folder / name


def images_of(value: dict[str, Any], where: str, folder: Path) -> list[Path]:
    """The pictures in a record's `image` and `images`: a path or a list of paths each; null and "" are none."""
    found = []
    for key in ("image", "images"):
        named = value.get(key)
        if isinstance(named, list):
            found += [image_path(name, f"{key}[{i}]", where, folder) for i, name in enumerate(named)]
        elif named not in (None, ""):
            found.append(image_path(named, key, where, folder))
    return found


def only_image(paths: Sequence[Path], where: str) -> Path | None:
    """The one picture of a conversation, if it has any; the same file named twice is one."""
    distinct = list(dict.fromkeys(paths))
    if len(distinct) > 1:
        raise DataError(
            f"{where}: {len(distinct)} images in one conversation ({distinct[0].name}, {distinct[1].name}, ...). "
            "One is the limit for now: keep one, or split the conversation."
        )
    return distinct[0] if distinct else None


def conversation(messages: Sequence[Message], field: str, where: str) -> tuple[Message, ...]:
    """The turns if they can be learned from: a system turn only at first, the user begins, the assistant ends.

    `field` names the list in errors. An empty turn of the assistant's is fine (it ends at once), one of the
    user's is not: a template has nothing to put there.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    before = len(messages) - len(turns)
    if not turns:
        raise wrong(where, field, "holds no turn of the assistant", "Add what it should answer.")
    for i, turn in enumerate(turns, before):
        if turn.role == "system":
            raise wrong(where, f"{field}[{i}]", "is a system turn in the middle", "It can only come first.")
        if turn.role == "user" and not turn.text.strip():
            raise wrong(where, f"{field}[{i}]", "is an empty turn of the user's", "Write what the user asks.")
    if turns[0].role != "user":
        raise wrong(where, f"{field}[{before}]", "is the assistant's", "The user must speak first.")
    if turns[-1].role != "assistant":
        raise wrong(
            where,
            f"{field}[{len(messages) - 1}]",
            "is the last turn and the user's",
            "The assistant must end it: add its answer, or take the turn out.",
        )
    return tuple(messages)


def without_placeholders(text: str) -> str:
    """The text less every "<image>" and the blanks and newlines around it."""
    if "<image>" not in text:
        return text
    return re.sub(r"\s*<image>\s*", lambda m: "\n" if "\n" in m[0] else " ", text).strip()
