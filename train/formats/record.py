"""One record of training data, its picture, the checks that all formats share, and their error."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapter.base.template import Message
from adapter.errors import AdapterError


class DataError(AdapterError):
    """Training data cannot be read. Names the file, the line or record, the field, and the remedy."""


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture that is no file of its own but the content of one, in a column of a data set.

    place: the column, the row, and its number in a column of lists. name: of the file that it was, for messages.
    dataset: that holds it, as tables of Arrow.
    """

    place: tuple[Any, ...]
    name: str
    dataset: Any = field(default=None, repr=False, compare=False)

    def read_bytes(self) -> bytes:
        column, row, *numbers = self.place
        cell = self.dataset[row].to_pylist()[0][column]
        cell = cell[numbers[0]] if numbers else cell
        return cell["bytes"] if isinstance(cell, dict) else cell


Picture = Path | EmbeddedPicture


def picture_source(picture: Picture) -> Path | bytes:
    """What `adapter.base.image_file.open_image` takes."""
    return picture if isinstance(picture, Path) else picture.read_bytes()


def picture_key(picture: Picture) -> str:
    """Equal for equal pictures: the path of a file behind all links, or a digest of the content."""
    if not isinstance(picture, Path):
        return _digest(picture)
    folder, name = os.path.split(os.path.abspath(picture))
    path = os.path.join(_real_path(folder), name)
    return _real_path(path) if os.path.islink(path) else path


@lru_cache(1024)  # thousands of pictures lie in one folder
def _real_path(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a null character
        return path


@lru_cache(1)  # rows of one picture follow each other
def _digest(picture: EmbeddedPicture) -> str:
    return hashlib.sha256(picture.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Record:
    """A conversation to learn from.

    messages: end in an assistant turn; assistant turns carry loss. image: the user's; a path may not exist.
    where: the place in its file, such as "alpaca.jsonl, line 12", for messages. unlearnt: the numbers of assistant
    turns without loss.
    """

    messages: tuple[Message, ...]
    image: Picture | None
    where: str
    unlearnt: tuple[int, ...] = ()


def fault(where: str, field: str, problem: str, remedy: str) -> DataError:
    return DataError(f"{where}: '{field}' {problem}. {remedy}")


def json_type(value: Any) -> str:
    """JSON's name for the type of a value, with its article."""
    names = {type(None): "null", bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def required(value: dict[str, Any], key: str, where: str, field: str = "") -> Any:
    """value[key]. field: the key's name in the error, if another."""
    if key not in value:
        raise fault(where, field or key, "is missing", "Add it, or take the record out.")
    return value[key]


def text_of(value: Any, field: str, where: str, blank: bool = True) -> str:
    """The value if it is text that can be encoded as UTF-8, and not blank unless `blank` allows it."""
    if not isinstance(value, str):
        raise fault(where, field, f"is {json_type(value)}, not text", "Write it as a string.")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        if re.search("[\udc80-\udcff]", value):  # bytes that are no text, see sources.py
            raise fault(where, field, "is not UTF-8", "Save the file as UTF-8.")
        raise fault(where, field, "holds half of a surrogate pair", "Write that character whole, or take it out.")
    if not blank and not value.strip():
        raise fault(where, field, "is empty", "Fill it in, or take the record out.")
    return value


def list_of(value: Any, field: str, where: str) -> list[Any]:
    """The value if it is a list that is not empty."""
    if not isinstance(value, list):
        raise fault(where, field, f"is {json_type(value)}, not a list", "Write it as a list.")
    if not value:
        raise fault(where, field, "is an empty list", "Fill it in, or take the record out.")
    return value


def object_of(value: Any, field: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise fault(where, field, f"is {json_type(value)}, not an object", "Write it as {...}.")
    return value


def image_path(value: Any, field: str, where: str, folder: Path) -> Picture:
    """The path that a record names, relative to `folder` unless it is absolute, or the picture that it holds.

    Opens nothing.
    """
    if isinstance(value, EmbeddedPicture):
        return value
    if value is None:
        raise fault(where, field, "is null", "Give it a picture, or take the record out.")
    name = text_of(value, field, where, blank=False)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", name):
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise fault(
            where, field, f"is an address, '{shown}'", "Download the picture first and name the file here."
        )
    return folder / name


def image_paths(value: dict[str, Any], where: str, folder: Path) -> list[Picture]:
    """The pictures in a record's `image` and `images`, each one path or a list; null and "" are no image."""
    paths = []
    for key in ("image", "images"):
        named = value.get(key)
        if isinstance(named, list):
            paths += [image_path(name, f"{key}[{i}]", where, folder) for i, name in enumerate(named)]
        elif named not in (None, ""):
            paths.append(image_path(named, key, where, folder))
    return paths


def single_image(paths: Sequence[Picture], where: str) -> Picture | None:
    """The image of a conversation, if it has one. Raises DataError if it has several; naming one twice is fine."""
    distinct = list(dict.fromkeys(paths))
    if len(distinct) > 1:
        raise DataError(
            f"{where}: {len(distinct)} images in one conversation ({distinct[0].name}, {distinct[1].name}, ...). "
            "One is the limit for now: keep one, or split the conversation."
        )
    return distinct[0] if distinct else None


def check_conversation(messages: Sequence[Message], field: str, where: str) -> tuple[Message, ...]:
    """The turns if they can be learned from: a system turn only first, then the user's, and the assistant's last.

    field: the list's name in errors. An empty assistant turn is allowed (the answer ends at once), an empty user
    turn is not, as the template has nothing to insert.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    skipped = len(messages) - len(turns)
    if not turns:
        raise fault(where, field, "holds no turn of the assistant", "Add what it should answer.")
    for i, turn in enumerate(turns, skipped):
        if turn.role == "system":
            raise fault(where, f"{field}[{i}]", "is a system turn in the middle", "It can only come first.")
        if turn.role == "user" and not turn.text.strip():
            raise fault(where, f"{field}[{i}]", "is an empty turn of the user's", "Write what the user asks.")
    if turns[0].role != "user":
        raise fault(where, f"{field}[{skipped}]", "is the assistant's", "The user must speak first.")
    if turns[-1].role != "assistant":
        raise fault(
            where,
            f"{field}[{len(messages) - 1}]",
            "is the last turn and the user's",
            "The assistant must end it: add its answer, or take the turn out.",
        )
    return tuple(messages)


def without_placeholders(text: str) -> str:
    """The text without "<image>" and the whitespace around it."""
    if "<image>" not in text:
        return text
    return re.sub(r"\s*<image>\s*", lambda m: "\n" if "\n" in m[0] else " ", text).strip()
