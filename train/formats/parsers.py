"""Formats of records: Stanford Alpaca's, OpenAI's and Hugging Face's chat messages, LLaVA's, pairs, captions.

Each parser turns one object, of JSON or a row of a table, into a Record or raises DataError. Reads no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from adapter.base.template import Message, Role
from train.formats.record import (
    DataError,
    Picture,
    Record,
    check_conversation,
    fault,
    image_path,
    image_paths,
    list_of,
    object_of,
    required,
    single_image,
    text_of,
    without_placeholders,
)

_ROLES = get_args(Role)
_LLAVA_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
_IMAGE_KEYS = ("image", "path", "url", "image_url")  # keys of a content block that may name its image
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
# The user turn of an image. Several, so that the adapter learns from the image and not from the wording.
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


def parse(format: str, value: dict[str, Any], where: str, images: Path, index: int) -> Record:
    """The record of one object. images: the folder that image paths are relative to. Raises DataError.

    index: its number in the file, which chooses the request of a caption.
    """
    if format == "captions":
        return _parse_caption(value, where, images, index)
    return _PARSERS[format](value, where, images)


def _parse_alpaca(value: dict[str, Any], where: str, images: Path) -> Record:
    """The user's turn is the instruction with its input, if there is one."""
    instruction = text_of(required(value, "instruction", where), "instruction", where)
    given = value.get("input")
    given = "" if given is None else text_of(given, "input", where)
    output = text_of(required(value, "output", where), "output", where)
    request = Message("user", instruction, given if given.strip() else "")
    if not request.full_text.strip():
        raise DataError(f"{where}: 'instruction' and 'input' are both empty. Fill one in, or take the record out.")
    messages = (request, Message("assistant", output))
    return Record(messages, single_image(image_paths(value, where, images), where), where)


def _parse_chat(value: dict[str, Any], where: str, images: Path) -> Record:
    """Content is text or blocks. The image is named in a block or in the record's `image` or `images`; a block
    {"type": "image"} without a name refers to the latter. An assistant turn of `weight` 0 carries no loss, as in
    OpenAI's files.
    """
    paths = image_paths(value, where, images)
    record_has_image = bool(paths)
    turns, refers_to_record, unlearnt = [], False, []
    for i, item in enumerate(list_of(required(value, "messages", where), "messages", where)):
        field = f"messages[{i}]"
        item = object_of(item, field, where)
        role = required(item, "role", where, f"{field}.role")
        if role not in _ROLES:
            raise fault(where, f"{field}.role", f"is {role!r}", f"Known roles: {', '.join(_ROLES)}.")
        content = required(item, "content", where, f"{field}.content")
        if isinstance(content, list):
            texts = []
            for j, block in enumerate(content):
                text, shown = _parse_block(block, f"{field}.content[{j}]", where, images)
                texts += [text] if text is not None else []
                paths += [shown] if shown else []
                refers_to_record |= text is None and shown is None
            content = "\n".join(texts)
        if item.get("weight", 1) not in (0, 1, None):
            raise fault(where, f"{field}.weight", "is neither 0 nor 1", "0 leaves a turn unlearnt, 1 learns it.")
        if role == "assistant" and item.get("weight") == 0:
            unlearnt.append(i)
        turns.append(Message(cast(Role, role), text_of(content, f"{field}.content", where)))
    if len(turns) - 1 in unlearnt:
        raise fault(
            where, f"messages[{len(turns) - 1}].weight", "is 0 in the last turn", "It is the one to learn."
        )
    if refers_to_record and not record_has_image:
        raise DataError(
            f"{where}: an image block in 'messages' names no picture and the record has no 'images'. Name it."
        )
    image = single_image(paths, where)
    if image:
        turns = [replace(turn, text=without_placeholders(turn.text)) for turn in turns]
    return Record(check_conversation(turns, "messages", where), image, where, tuple(unlearnt))


def _parse_block(block: Any, field: str, where: str, images: Path) -> tuple[str | None, Picture | None]:
    """The text or the image of a content block; neither for an image block without a name."""
    block = object_of(block, field, where)
    kind = required(block, "type", where, f"{field}.type")
    if kind == "text":
        return text_of(required(block, "text", where, f"{field}.text"), f"{field}.text", where), None
    if kind not in ("image", "image_url"):
        raise fault(where, f"{field}.type", f"is {kind!r}", "Known types: text, image, image_url.")
    for key in _IMAGE_KEYS:
        if block.get(key) is not None:
            name, place = block[key], f"{field}.{key}"
            if isinstance(name, dict):
                name, place = required(name, "url", where, f"{place}.url"), f"{place}.url"
            return None, image_path(name, place, where, images)
    return None, None


def _parse_llava(value: dict[str, Any], where: str, images: Path) -> Record:
    """The text loses its "<image>" placeholders if there is an image, which the model gets as prompts."""
    image = single_image(image_paths(value, where, images), where)
    turns = []
    for i, item in enumerate(list_of(required(value, "conversations", where), "conversations", where)):
        field = f"conversations[{i}]"
        item = object_of(item, field, where)
        speaker = required(item, "from", where, f"{field}.from")
        if not isinstance(speaker, str) or speaker not in _LLAVA_ROLES:
            raise fault(where, f"{field}.from", f"is {speaker!r}", f"Known speakers: {', '.join(_LLAVA_ROLES)}.")
        text = text_of(required(item, "value", where, f"{field}.value"), f"{field}.value", where)
        turns.append(Message(_LLAVA_ROLES[speaker], without_placeholders(text) if image else text))
    return Record(check_conversation(turns, "conversations", where), image, where)


def _parse_pair(value: dict[str, Any], where: str, images: Path) -> Record:
    """Both are text, or both lists of messages, as TRL has them."""
    fields = _FIELDS["pairs"]
    asked, answered = next((names for names in fields if all(name in value for name in names)), fields[0])
    if isinstance(value.get(asked), list) and isinstance(value.get(answered), list):
        return _parse_chat({**value, "messages": [*value[asked], *value[answered]]}, where, images)
    request = text_of(required(value, asked, where), asked, where, blank=False)
    answer = text_of(required(value, answered, where), answered, where)
    image = single_image(image_paths(value, where, images), where)
    request = without_placeholders(request) if image else request
    return Record((Message("user", request), Message("assistant", answer)), image, where)


def _parse_caption(value: dict[str, Any], where: str, images: Path, index: int) -> Record:
    columns = caption_columns(value)
    if columns is None:
        missing = "caption" if any(name in value for name in _IMAGE_COLUMNS) else "image"
        raise fault(where, missing, "is missing", "Add it, or take the record out.")
    image = image_path(value[columns[0]], columns[0], where, images)
    caption = text_of(value[columns[1]], columns[1], where, blank=False).strip()
    return Record((Message("user", REQUESTS[index % len(REQUESTS)]), Message("assistant", caption)), image, where)


_PARSERS = {
    "alpaca": _parse_alpaca,
    "chat": _parse_chat,
    "llava": _parse_llava,
    "pairs": _parse_pair,
    "scienceqa": _parse_pair,
}
