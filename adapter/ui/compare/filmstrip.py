"""The filmstrip: one answer at five strengths of its adapter; and recorded ones, for the empty chat."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from adapter.errors import BadInput
from adapter.serve.settings import Settings
from adapter.ui import theme
from adapter.ui.comparison import Pane
from adapter.ui.images import data_url
from adapter.ui.texts import page as texts

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
XRAY_KEY = f'<span class="xray-key">{texts.LESS_LIKELY}<i></i>{texts.MORE_LIKELY}</span>'


def frames_of(settings: Settings) -> list[Pane]:
    """An empty frame for each strength. Raises BadInput for the frozen base."""
    if not settings.adapter:
        raise BadInput(texts.FILM_NEEDS_ADAPTER)
    return [Pane(settings.replace(strength=strength)) for strength in STRENGTHS]


def recorded_films() -> list[dict[str, Any]]:
    """What the shipped base and adapters once answered: one film an adapter. Recorded by `python -m
    tests.ui.compare.test_filmstrip_example`, which checks them as well.
    """
    if not theme.FILM_EXAMPLE.is_file():
        return []
    films: list[dict[str, Any]] = json.loads(theme.FILM_EXAMPLE.read_text(encoding="utf-8"))
    return films


def films_html(adapters: Sequence[str]) -> str:
    """The films of `adapters` for the empty chat. page.js shows the chosen one's, at its strength."""
    parts = []
    for film in recorded_films():
        if (name := film["settings"]["adapter"]) in adapters:
            frames = "".join(f"<p>{''.join(map(_word_html, answer)).strip()}</p>" for answer in film["answers"])
            picture = f'<img alt="" src="{data_url(theme.DRAWING.read_bytes())}">' if name == "see" else ""
            parts.append(
                f'<div class="film film-{html.escape(name)}"><p>{picture}{html.escape(film["message"])}</p>'
                f"<footer>{html.escape(texts.film_recorded(name))}{XRAY_KEY}</footer>"
                f'<div class="frames">{frames}</div></div>'
            )
    return "".join(parts)


def _word_html(word: tuple[str, int]) -> str:
    """A word in a colour of the X-ray. Its shade is from -4 to 4, as xray.js draws it."""
    text, shade = word
    bare = html.escape(text.lstrip())
    side = "above" if shade > 0 else "below"
    space = text[: len(text) - len(text.lstrip())]
    return space + (f'<span class="{side}-{abs(shade)}">{bare}</span>' if shade else bare)
