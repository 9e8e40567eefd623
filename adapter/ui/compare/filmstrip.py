"""The filmstrip: one answer at five strengths of its adapter, written in one batch, and a slider between them.

All five are in the page; the slider shows another of them, and the words that differ from the next lower strength
glow.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gradio as gr

from adapter.errors import BadInput
from adapter.serve.settings import Settings
from adapter.ui import theme
from adapter.ui.answer_stream import with_seed
from adapter.ui.comparison import Pane, mark
from adapter.ui.status import UNQUEUED
from adapter.ui.texts import inside as inside_texts
from adapter.ui.texts import page as texts

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
SHADES = (0.5, 1.5, 3.0, 5.0)  # nats from which a word has the next darker shade, as in xray.js
XRAY_KEY = (
    f'<span class="xray-key">{html.escape(inside_texts.LESS_LIKELY)}<i></i>'
    f"{html.escape(inside_texts.MORE_LIKELY)}</span>"
)
# page.css shows the frame of this number.
_SHOW_JS = "strength => { document.querySelector('#%s').dataset.frame = Math.round(2 * strength); }"


def frames_of(settings: Settings) -> list[Pane]:
    """An empty frame for each strength. Raises BadInput for the frozen base."""
    if not settings.adapter:
        raise BadInput(texts.FILM_NEEDS_ADAPTER)
    settings = with_seed(settings)
    return [Pane(settings.replace(strength=strength)) for strength in STRENGTHS]


def mark_frames(frames: Sequence[Pane]) -> None:
    for lower, frame in pairwise(frames):
        mark(frame, lower, texts.at_strength(lower.settings.strength))


def film_html(frames: Sequence[Pane]) -> str:
    return "".join(f'<div class="frame">{frame.to_html()}</div>' for frame in frames)


def recorded_films() -> list[dict[str, Any]]:
    """What the shipped base and adapters once answered: one film an adapter.

    Recorded by `python -m tests.ui.compare.test_filmstrip_example`, which checks them as well.
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
            frames = "".join(f"<p>{_words_html(answer).strip()}</p>" for answer in film["answers"])
            drawing = base64.b64encode(theme.DRAWING.read_bytes()).decode() if name == "see" else ""
            picture = f'<img alt="" src="data:image/png;base64,{drawing}">' if drawing else ""
            parts.append(
                f'<div class="film film-{html.escape(name)}"><p>{picture}{html.escape(film["message"])}</p>'
                f"<footer>{html.escape(texts.film_recorded(name))}{XRAY_KEY}</footer>"
                f'<div class="frames">{frames}</div></div>'
            )
    return "".join(parts)


def _words_html(words: Sequence[tuple[str, int]]) -> str:
    """Words in the colours of the X-ray. Their shades are from -4 to 4, as xray.js draws them."""
    parts = []
    for word, shade in words:
        bare = word.lstrip()
        parts.append(html.escape(word[: len(word) - len(bare)]))
        side = "above" if shade > 0 else "below"
        parts.append(
            f'<span class="{side}-{abs(shade)}">{html.escape(bare)}</span>' if shade else html.escape(bare)
        )
    return "".join(parts)


def shade(influence: float) -> int:
    """influence: in nats, how much likelier the adapter made a word."""
    steps = sum(abs(influence) >= bound for bound in SHADES)
    return steps if influence > 0 else -steps


def filmstrip(elem_id: str) -> gr.HTML:
    """Lays out a slider and the film that it moves through."""
    with gr.Column(elem_id=elem_id, elem_classes="filmstrip"):
        slider = gr.Slider(
            *(STRENGTHS[0], STRENGTHS[-1], 1.0),
            step=0.5,
            label=texts.SHOWN_STRENGTH,
            info=texts.STRENGTH_INFO,
            buttons=[],
        )
        film = gr.HTML(theme.pane_html(texts.EMPTY_PANE, muted=True), elem_classes="answer")
    slider.change(None, slider, None, js=_SHOW_JS % elem_id, **UNQUEUED)
    return film
