"""Formats of records: Stanford Alpaca's, OpenAI's and Hugging Face's chat messages, LLaVA's, pairs, captions.

Each parser turns one object, of JSON or a row of a table, into a Record or raises DataError. Reads no files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, create_model, model_validator

from adapter.base.template import Message, Role
from train.formats.record import DataError, EmbeddedPicture, Filled, Picture, Record, Shape, Text, check

_LLAVA_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
# Each format and the shape of its records, for error messages.
FORMATS = {
    "alpaca": "objects with 'instruction' and 'output', and perhaps 'input' and 'image'",
    "chat": "objects with 'messages': [{'role', 'content'}, ...]",
    "llava": "objects with 'conversations': [{'from', 'value'}, ...], and perhaps 'image'",
    "pairs": "objects with 'question' and 'answer', 'prompt' and 'completion', or 'input' and 'output'",
    "captions": "objects or rows with 'image' and 'caption', COCO's captions_*.json, or a folder of pictures with "
    "NAME.txt, captions.tsv or metadata.jsonl",
    "scienceqa": "a folder with problems.json and pid_splits.json",
}
KNOWN = "Known formats: " + "; ".join(f"{name} ({shape})" for name, shape in FORMATS.items()) + "."
# The fields by which a format is recognised; each may have several sets of them.
_FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "alpaca": (("instruction", "output"),),
    "chat": (("messages",),),
    "llava": (("conversations",),),
    "pairs": (
        ("question", "answer"), ("prompt", "answer"), ("prompt", "completion"), ("prompt", "response"),
        ("query", "response"), ("input", "output"),
    ),
    "scienceqa": (("question", "answer"),),
}  # fmt: skip
# Columns of captions, the first that is there.
_IMAGE_COLUMNS = ("image", "path", "url", "file_name", "filename")
_CAPTION_COLUMNS = ("caption", "captions", "text")
# The user turn of an image. Several, in an order that no pattern of files follows: the wording tells nothing.
REQUESTS = (
    "Describe the picture.",
    "What is in this picture?",
    "What does the picture show?",
    "Describe this image in a few words.",
    "Write a caption for this picture.",
    "What can be seen here?",
)


def fits(format: str, value: Mapping[str, Any]) -> bool:
    """Whether an object has the fields of the format."""
    if format == "captions":
        return caption_columns(value) is not None
    return any(all(name in value for name in names) for names in _FIELDS.get(format, ()))


def format_of(value: Mapping[str, Any]) -> str | None:
    """The first format that fits an object."""
    return next((name for name in FORMATS if fits(name, value)), None)


def caption_columns(value: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of an object's image and caption; None if it has no such fields."""
    image = next((name for name in _IMAGE_COLUMNS if name in value), None)
    caption = next((name for name in _CAPTION_COLUMNS if name in value), None)
    return None if image is None or caption is None else (image, caption)


# What the objects hold.


def _no_address(name: str) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", name):
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise ValueError(f"is an address, '{shown}'. Download the picture first and name the file here.")
    return name


# The path of a picture, or a picture itself.
_Named = Annotated[Filled, AfterValidator(_no_address)] | InstanceOf[EmbeddedPicture]
_AnyNamed = Annotated[_Named | list[_Named] | None, BeforeValidator(lambda value: value or None)]


class _Pictured(Shape):
    image: _AnyNamed = None
    images: _AnyNamed = None


class _Alpaca(_Pictured):
    instruction: Text
    input: Text | None = None
    output: Text


# Or {"url": name}, as OpenAI's API has it.
_url = BeforeValidator(lambda value: value.get("url") if isinstance(value, dict) else value)
_Shown = Annotated[_Named | None, _url]


class _Block(Shape):
    type: Literal["text", "image", "image_url"]
    text: Text | None = None
    image: _Shown = None
    path: _Shown = None
    url: _Shown = None
    image_url: _Shown = None

    @model_validator(mode="after")
    def _check(self) -> _Block:
        if self.type == "text" and self.text is None:
            raise ValueError("has no 'text'. Add it, or take the record out.")
        return self

    def picture(self) -> str | EmbeddedPicture | None:
        """What names it, the first that is there."""
        names = (self.image, self.path, self.url, self.image_url)
        return next((name for name in names if name is not None), None)


_Weight = Annotated[float, Field(ge=0, le=1, multiple_of=1)] | None  # 0: carries no loss, as for OpenAI


class _Turn(Shape):
    role: Role
    content: Text | list[_Block]
    weight: _Weight = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None  # they would be learnt as saying nothing


class _Chat(_Pictured):
    messages: Annotated[list[_Turn], Field(min_length=1)]


class _Said(Shape):
    speaker: Annotated[Literal["human", "gpt", "system"], Field(alias="from")]
    value: Text
    weight: _Weight = None


class _Llava(_Pictured):
    conversations: Annotated[list[_Said], Field(min_length=1)]


@cache
def _two_columns(first: str, kind: Any, second: str, other: Any) -> type[Shape]:
    return create_model("Row", __base__=_Pictured, **{first: (kind, ...), second: (other, ...)})  # type: ignore[call-overload]


# What they become.


def parse(format: str, value: dict[str, Any], where: str, images: Path, index: int) -> Record:
    """The record of one object. images: the folder that image paths are relative to. Raises DataError.

    index: its number in the file, which chooses the request of a caption.
    """
    if format == "alpaca":
        alpaca = check(_Alpaca, value, where)
        image, texts = _single(_named(alpaca, images), where), (alpaca.instruction, alpaca.input or "")
        asked, given = map(_without_placeholders, texts) if image else texts
        request = Message("user", asked, given if given.strip() else "")
        if not request.full_text.strip():
            raise DataError(f"{where}: 'instruction' and 'input' are both empty. Fill one in, or take it out.")
        return Record((request, Message("assistant", alpaca.output)), image, where)
    if format == "chat":
        return _of_chat(value, where, images)
    if format == "llava":
        llava = check(_Llava, value, where)
        image = _single(_named(llava, images), where)
        turns = [Message(_LLAVA_ROLES[said.speaker], said.value) for said in llava.conversations]
        unlearnt = tuple(i for i, said in enumerate(llava.conversations) if said.weight == 0)
        return _conversation(turns, unlearnt, image, "conversations", where)
    if format == "captions":
        columns = caption_columns(value) or ("image", "caption")
        row = check(_two_columns(columns[0], _Named, columns[1], Filled), value, where)
        image, caption = _path(getattr(row, columns[0]), images), getattr(row, columns[1]).strip()
        asked = random.Random(index // len(REQUESTS)).sample(REQUESTS, len(REQUESTS))[index % len(REQUESTS)]
        return Record((Message("user", asked), Message("assistant", caption)), image, where)
    first, second = max(_FIELDS["pairs"], key=lambda names: sum(name in value for name in names))
    if isinstance(value.get(first), list) and isinstance(value.get(second), list):  # of messages, as TRL has them
        before = [{**said, "weight": 0} if isinstance(said, dict) else said for said in value[first]]
        return _of_chat({**value, "messages": [*before, *value[second]]}, where, images)
    row = check(_two_columns(first, Filled, second, Text), value, where)
    image, asked = _single(_named(row, images), where), getattr(row, first)
    asked = _without_placeholders(asked) if image else asked
    return Record((Message("user", asked), Message("assistant", getattr(row, second))), image, where)


def _of_chat(value: dict[str, Any], where: str, images: Path) -> Record:
    """The image is named in a block or in the record's `image` or `images`; a block {"type": "image"} without a
    name refers to the latter.
    """
    chat = check(_Chat, value, where)
    paths = list(_named(chat, images))
    has_own, refers, turns, unlearnt = bool(paths), False, [], []
    for i, turn in enumerate(chat.messages):
        text = turn.content
        if not isinstance(text, str):
            names = [block.picture() for block in text if block.type != "text"]
            paths += [_path(name, images) for name in names if name is not None]
            refers |= None in names
            text = "\n".join(block.text or "" for block in text if block.type == "text")
        turns.append(Message(turn.role, text))
        if turn.role == "assistant" and turn.weight == 0:
            unlearnt.append(i)
    if refers and not has_own:
        raise DataError(
            f"{where}: an image block in 'messages' names no picture and the record has no 'images'. Name it."
        )
    return _conversation(turns, tuple(unlearnt), _single(paths, where), "messages", where)


def _path(name: str | EmbeddedPicture, images: Path) -> Picture:
    return images / name.replace("\\", "/") if isinstance(name, str) else name  # also as Windows writes it


def _named(value: Any, images: Path) -> Iterable[Picture]:
    """The pictures in a record's `image` and `images`."""
    for named in (value.image, value.images):
        names = named if isinstance(named, list) else [] if named is None else [named]
        yield from (_path(name, images) for name in names)


def _single(paths: Iterable[Picture], where: str) -> Picture | None:
    """The image of a conversation, if it has one. Raises DataError if it has several; naming one twice is fine."""
    distinct = list(dict.fromkeys(paths))
    if len(distinct) > 1:
        raise DataError(
            f"{where}: {len(distinct)} images in one conversation ({distinct[0].name}, {distinct[1].name}, ...). "
            "One is the limit for now: keep one, or split the conversation."
        )
    return distinct[0] if distinct else None


def _conversation(
    turns: Sequence[Message], unlearnt: tuple[int, ...], image: Picture | None, field: str, where: str
) -> Record:
    """Checks turns and makes their record, without "<image>" if it has an image. field: their name in errors.

    An empty answer is allowed (it ends at once), an empty request is not, as the template has nothing to insert.
    """
    if len(turns) - 1 in unlearnt:
        raise DataError(f"{where}: the 'weight' of the last turn is 0. It is the one to learn.")
    if image:
        turns = [replace(turn, text=_without_placeholders(turn.text)) for turn in turns]
    for i, turn in enumerate(turns):
        problem = ""
        if turn.role == "system" and i > 0:
            problem = "is a system turn in the middle. It can only come first."
        elif turn.role == "user" and not turn.text.strip():
            problem = "is an empty turn of the user's. Write what the user asks."
        elif turn.role == "assistant" and i == (turns[0].role == "system"):
            problem = "is the assistant's. The user must speak first."
        elif turn.role != "assistant" and i == len(turns) - 1:
            problem = f"is the last turn and the {turn.role}'s. The assistant must end it: add its answer."
        if problem:
            raise DataError(f"{where}: '{field}[{i}]' {problem}")
    return Record(tuple(turns), image, where, unlearnt)


def _without_placeholders(text: str) -> str:
    """The text without "<image>" and the whitespace around it, in linear time."""
    if "<image>" not in text:
        return text
    return re.sub(r"(?:(?<!\s)\s+)?<image>\s*", lambda m: "\n" if "\n" in m[0] else " ", text).strip()
