"""The filmstrip: one answer at five strengths of its adapter, written in one batch, and a slider between them.

All five are in the page; the slider shows another of them, and the words that differ from the next lower strength
glow.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from itertools import pairwise

import gradio as gr

from adapter.errors import BadInput
from adapter.serve.settings import Settings
from adapter.ui import theme
from adapter.ui.answer_stream import with_seed
from adapter.ui.comparison import Pane, mark
from adapter.ui.status import UNQUEUED
from adapter.ui.texts import page as texts

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
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


def film_html(frames: Sequence[Pane], caption: str = "") -> str:
    shown = f"<p>{html.escape(caption)}</p>" if caption else ""
    parts = "".join(f'<div class="frame">{frame.to_html()}</div>' for frame in frames)
    return f'{shown}<div class="frames">{parts}</div>'


def recorded_film() -> str:
    """The film of an example: what the shipped base and adapter once answered.

    Recorded by `python -m tests.ui.compare.test_filmstrip_example`, which checks it as well.
    """
    if not theme.FILM_EXAMPLE.is_file():
        return ""
    example = json.loads(theme.FILM_EXAMPLE.read_text(encoding="utf-8"))
    frames = frames_of(Settings.checked(example["settings"]))
    for frame, answer in zip(frames, example["answers"], strict=True):
        frame.text, frame.tokens, frame.notes = answer["text"], answer["tokens"], answer["notes"]
    mark_frames(frames)
    return film_html(frames, texts.film_example(example["message"], example["settings"]["adapter"]))


def filmstrip(elem_id: str, value: str = "") -> gr.HTML:
    """Lays out a slider and the film that it moves through."""
    with gr.Column(elem_id=elem_id, elem_classes="filmstrip"):
        slider = gr.Slider(
            *(STRENGTHS[0], STRENGTHS[-1], 1.0),
            step=0.5,
            label=texts.SHOWN_STRENGTH,
            info=texts.STRENGTH_INFO,
            buttons=[],
        )
        film = gr.HTML(value, elem_classes="answer")
    slider.change(None, slider, None, js=_SHOW_JS % elem_id, **UNQUEUED)
    return film
