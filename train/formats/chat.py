"""The chat format of OpenAI and Hugging Face: messages of role and content, the content text or blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

from adapter.base.template import Message, Role
from train.formats.record import (
    DataError,
    Record,
    conversation,
    image_path,
    images_of,
    list_of,
    object_of,
    only_image,
    required,
    text_of,
    without_placeholders,
    wrong,
)

_ROLES = get_args(Role)
_HOLDERS = ("image", "path", "url", "image_url")  # keys of a block that may name its picture


def fits(value: dict[str, Any]) -> bool:
    return "messages" in value


def parse(value: dict[str, Any], where: str, images: Path) -> Record:
    """Raises DataError.

    A picture stands in a block or in the record's `image` or `images`; a block {"type": "image"} that names none
    means the latter.
    """
    shown = images_of(value, where, images)
    around = len(shown)
    turns, pointed = [], False
    for i, item in enumerate(list_of(required(value, "messages", where), "messages", where)):
        field = f"messages[{i}]"
        item = object_of(item, field, where)
        role = required(item, "role", where, f"{field}.role")
        if role not in _ROLES:
            raise wrong(where, f"{field}.role", f"is {role!r}", f"Known roles: {', '.join(_ROLES)}.")
        content = required(item, "content", where, f"{field}.content")
        if isinstance(content, list):
            texts = []
            for j, block in enumerate(content):
                text, image, points = _block(block, f"{field}.content[{j}]", where, images)
                texts += [text] if text is not None else []
                shown += [image] if image else []
                pointed |= points
            text = "\n".join(texts)
        else:
            text = text_of(content, f"{field}.content", where)
        turns.append(Message(cast(Role, role), text))
    if pointed and not around:
        raise DataError(
            f"{where}: an image block in 'messages' names no picture and the record has no 'images'. Name it."
        )
    image = only_image(shown, where)
    if image:
        turns = [Message(turn.role, without_placeholders(turn.text)) for turn in turns]
    return Record(conversation(turns, "messages", where), image, where)


def _block(block: Any, field: str, where: str, images: Path) -> tuple[str | None, Path | None, bool]:
    """(its text, its picture, whether it points to the record's own pictures)"""
    block = object_of(block, field, where)
    sort = required(block, "type", where, f"{field}.type")
    if sort == "text":
        return text_of(required(block, "text", where, f"{field}.text"), f"{field}.text", where), None, False
    if sort not in ("image", "image_url"):
        raise wrong(where, f"{field}.type", f"is {sort!r}", "Known types: text, image, image_url.")
    for key in _HOLDERS:
        if block.get(key) is not None:
            named, place = block[key], f"{field}.{key}"
            if isinstance(named, dict):
                named, place = required(named, "url", where, f"{place}.url"), f"{place}.url"
            return None, image_path(named, place, where, images), False
    return None, None, True
