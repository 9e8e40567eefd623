"""How an answer came about: the settings, the seed that was drawn and its tokens, as a text beside the answer.

The text has been in a browser, so that everything in it is checked before it is used. Knows no Gradio.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from adapter.serve.settings import Settings

_MOST_TOKENS = 4096
_MOST_CHARACTERS = 100_000
_NONE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what a text that is no record raises


@dataclass(frozen=True)
class Record:
    """settings: those that answered, with the seed that was used; picture: whether a picture was looked at."""

    settings: Settings
    token_ids: tuple[int, ...]
    picture: bool

    def to_text(self) -> str:
        return json.dumps({**self.settings.model_dump(), "token_ids": self.token_ids, "picture": self.picture})


def settings_text(settings: Settings) -> str:
    """What stands for a record as long as there is no whole answer, or where its tokens are left out."""
    return json.dumps(settings.model_dump())


def read_record(text: str) -> Record | None:
    """The record in a text; None if it is none, whatever somebody has made of it."""
    try:
        fields = _fields(text)
        ids, picture = _whole(fields.pop("token_ids"), _MOST_TOKENS), fields.pop("picture")
        return Record(_settings(fields), ids, picture) if type(picture) is bool else None
    except _NONE:
        return None


def read_settings(text: str) -> Settings | None:
    """The settings in a text that may hold a whole record or those alone; None if there are none."""
    try:
        fields = _fields(text)
        return _settings({name: value for name, value in fields.items() if name not in ("token_ids", "picture")})
    except _NONE:
        return None


def _fields(text: str) -> dict[str, Any]:
    if len(text) > _MOST_CHARACTERS:
        raise ValueError("this is too long")
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("this is no object")
    return fields


def _settings(fields: dict[str, Any]) -> Settings:
    if missing := set(Settings.model_fields) - set(fields):
        raise KeyError(*missing)
    (seed,) = _whole([fields["seed"]], 1)
    # An answer that its time limit cut off before the first token was recorded with 0.
    return Settings.model_validate({**fields, "seed": seed, "max_tokens": fields["max_tokens"] or 1})


def _whole(values: object, most: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > most or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError("these are not whole numbers")
    return tuple(v for v in values if isinstance(v, int))
