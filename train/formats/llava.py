"""LLaVA's format: conversations of from and value, with "<image>" where the picture goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapter.base.template import Message, Role
from train.formats.record import (
    Record,
    conversation,
    images_of,
    list_of,
    object_of,
    only_image,
    required,
    text_of,
    without_placeholders,
    wrong,
)

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


def fits(value: dict[str, Any]) -> bool:
    return "conversations" in value


def parse(value: dict[str, Any], where: str, images: Path) -> Record:
    """Placeholders leave the text when there is a picture, which the model gets as prompts. Raises DataError."""
    image = only_image(images_of(value, where, images), where)
    turns = []
    for i, item in enumerate(list_of(required(value, "conversations", where), "conversations", where)):
        field = f"conversations[{i}]"
        item = object_of(item, field, where)
        speaker = required(item, "from", where, f"{field}.from")
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise wrong(where, f"{field}.from", f"is {speaker!r}", f"Known speakers: {', '.join(_ROLES)}.")
        text = text_of(required(item, "value", where, f"{field}.value"), f"{field}.value", where)
        turns.append(Message(_ROLES[speaker], without_placeholders(text) if image else text))
    return Record(conversation(turns, "conversations", where), image, where)
