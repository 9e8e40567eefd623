"""How an answer came about: the settings, the seed that was drawn and its tokens, as a text beside the answer.

The text has been in a browser, so that everything in it is checked before it is used. Knows no Gradio.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from adapter.ui.requests import Settings

_MOST_TOKENS = 4096
_MOST_CHARACTERS = 100_000


@dataclass(frozen=True)
class Record:
    """settings: those that answered, with the seed that was used; picture: whether a picture was looked at."""

    settings: Settings
    token_ids: tuple[int, ...]
    picture: bool

    def to_text(self) -> str:
        return json.dumps({**self.settings._asdict(), "token_ids": self.token_ids, "picture": self.picture})


def read_record(text: str) -> Record | None:
    """The record in a text; None if it is none, whatever somebody has made of it."""
    try:
        if len(text) > _MOST_CHARACTERS:
            return None
        fields = json.loads(text)
        ids, picture = _whole(fields.pop("token_ids"), _MOST_TOKENS), fields.pop("picture")
        numbers = [fields[name] for name in ("strength", "temperature", "top_p", "max_tokens", "mix_strength")]
        names = [fields["adapter"], fields["mix"] or ""]
        fields["mute_layers"] = _whole(fields["mute_layers"], 1024)
        fields["mute_heads"] = _whole(fields["mute_heads"], 1024)
        (seed,) = _whole([fields["seed"]], 1)
        right = all(type(n) in (int, float) for n in numbers) and all(type(n) is str for n in names)
        if not right or type(picture) is not bool:
            return None
        return Record(Settings(**{**fields, "seed": seed}), ids, picture)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _whole(values: Sequence[object], most: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > most or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError("these are not whole numbers")
    return tuple(v for v in values if isinstance(v, int))
