"""Stanford Alpaca's format: instruction, input, output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapter.base.template import Message
from train.formats.record import DataError, Record, images_of, only_image, required, text_of


def fits(value: dict[str, Any]) -> bool:
    return "instruction" in value and "output" in value


def parse(value: dict[str, Any], where: str, images: Path) -> Record:
    """The user says the instruction and, after a blank line, the input if there is one. Raises DataError."""
    instruction = text_of(required(value, "instruction", where), "instruction", where)
    given = value.get("input")
    given = "" if given is None else text_of(given, "input", where)
    output = text_of(required(value, "output", where), "output", where)
    request = "\n\n".join(part for part in (instruction, given) if part.strip())
    if not request:
        raise DataError(f"{where}: 'instruction' and 'input' are both empty. Fill one in, or take the record out.")
    messages = (Message("user", request), Message("assistant", output))
    return Record(messages, only_image(images_of(value, where, images), where), where)
