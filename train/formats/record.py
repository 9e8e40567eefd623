"""One record of training data, its picture, and how objects of JSON are checked."""

import hashlib
import os
import reprlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from adapter.base.template import Message
from adapter.errors import AdapterError


class DataError(AdapterError):
    """Training data cannot be read. Names the file, the line or record, the field, and the remedy."""


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture in a column of a data set. name: of the file that it was. dataset: as tables of Arrow.

    place: the column, the row, and the numbers and keys within its lists and objects.
    """

    place: tuple[Any, ...]
    name: str
    dataset: Any = field(default=None, repr=False, compare=False)

    def read_bytes(self) -> bytes:
        column, row, *inner = self.place
        cell = self.dataset[row].to_pylist()[0][column]
        for key in inner:
            cell = cell[key]
        return cell["bytes"] if isinstance(cell, dict) else cell


Picture = Path | EmbeddedPicture


def picture_source(picture: Picture) -> Path | bytes:
    """What `adapter.base.image_file.open_image` takes."""
    return picture if isinstance(picture, Path) else picture.read_bytes()


def picture_key(picture: Picture) -> str:
    """Equal for one picture: the path of its file behind all links (a copy has another), or a digest of bytes."""
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
    """A conversation to learn from, which ends in an assistant turn. image: the user's; a path may not exist.

    where: the place in its file, for messages. unlearnt: the numbers of assistant turns without loss.
    """

    messages: tuple[Message, ...]
    image: Picture | None
    where: str
    unlearnt: tuple[int, ...] = ()


# Objects of JSON.


class Shape(BaseModel, strict=True, extra="ignore", frozen=True):
    """What an object holds. Other keys are ignored."""


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # also of bytes that are no text, see sources.py
        raise ValueError("is not UTF-8, or holds half of a surrogate pair. Save the file as UTF-8.") from error
    return text


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty. Fill it in, or take the record out.")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Filled = Annotated[Text, AfterValidator(_filled)]
AnyShape = TypeVar("AnyShape", bound=Shape)
_TYPES = {"string_type": "text", "list_type": "a list", "model_type": "an object"}
_TYPES |= {"dict_type": "an object", "int_type": "a number"}


def check(shape: type[AnyShape], value: Any, where: str) -> AnyShape:
    """The value as that shape. Raises DataError, which names the field of a fault."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        # Where several shapes are allowed, the one that fits furthest is meant.
        problem = max(error.errors(include_url=False), key=lambda problem: len(problem["loc"]))
    kind, given, name, inner = problem["type"], problem["input"], "", value
    for part in problem["loc"]:  # which also has the names of the shapes that were tried
        if isinstance(part, int) or (isinstance(inner, dict) and part in inner):
            name, inner = name + (f"[{part}]" if isinstance(part, int) else f".{part}"), inner[part]
    if kind == "missing":
        name, says = f"{name}.{problem['loc'][-1]}", "is missing. Add it, or take the record out."
    elif kind in _TYPES:
        says = f"is {json_type(given)}, not {_TYPES[kind]}. Mend it, or take the record out."
    elif kind == "too_short":
        says = "is an empty list. Fill it in, or take the record out."
    elif kind == "value_error":
        says = str(problem["ctx"]["error"])
    else:
        says = f"is {reprlib.repr(given)}. {problem['msg'].replace('Input', 'It', 1)}."
    raise DataError(f"{where}: '{name.lstrip('.')}' {says}" if name else f"{where}: {says}")


def json_type(value: Any) -> str:
    """JSON's name for the type of a value, or else Python's, with its article."""
    names = {type(None): "null", bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    names |= {bytes: "bytes", EmbeddedPicture: "a picture, or bytes", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")  # a date of a Parquet file, for example
