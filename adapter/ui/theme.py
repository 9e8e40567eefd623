"""How the page looks: theme, style sheets, the adapter cards and the examples. Its words are in texts.py."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import gradio as gr

from adapter.errors import AdapterError
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from adapter.serve.store import AdapterCard, AdapterStore
    from adapter.server.loader import LoadStatus

# The message box while an answer is being written, and when it is done. Neither touches what is typed meanwhile.
ANSWERING = {"submit_btn": False, "stop_btn": True}
IDLE = {"submit_btn": True, "stop_btn": False}
# Which adapters the panes of a comparison begin with, if they are there.
FAVOURITES = ("pirate", "extract", "see")
# page.css for the whole, and one of its own for each part that needs many rules.
STYLE_SHEETS = sorted((Path(__file__).parent / "static").glob("*.css"))
# What the page does by itself in the browser; goes into its head.
SCRIPT = Path(__file__).parent / "static" / "page.js"
ICON = Path(__file__).parent / "static" / "icon.png"
DRAWING = Path(__file__).parents[2] / "assets" / "examples" / "traffic-light.png"


class Cards(Protocol):
    """What the page needs of an adapter store."""

    def names(self) -> list[str]: ...

    def card(self, name: str) -> AdapterCard: ...

    def card_text(self, name: str) -> str: ...

    def bound(self) -> AdapterStore: ...

    def folder(self, name: str) -> Path: ...


@dataclass(frozen=True)
class Example:
    """A card of the empty chat: sends `text` (and `picture`) with `adapter`, if that is installed.

    label: one or two lines; the first is set in bold.
    """

    label: str
    text: str
    adapter: str
    picture: str | None = None


def examples() -> list[Example]:
    """Two texts, a photograph that comes with Gradio, and a drawing."""
    photograph = Path(gr.__file__).parent / "media_assets" / "images" / "cheetah1.jpg"
    question = texts.DEFAULT_QUESTION
    return [
        Example(
            texts.EXAMPLE_EXTRACT,
            texts.EXAMPLE_EXTRACT_MESSAGE,
            "extract",
        ),
        Example(texts.EXAMPLE_PIRATE, texts.EXAMPLE_PIRATE_MESSAGE, "pirate"),
        Example(texts.EXAMPLE_PHOTOGRAPH, question, "see", str(photograph)),
        Example(texts.EXAMPLE_DRAWING, question, "see", str(DRAWING)),
    ]


def about(store: Cards, name: str) -> str:
    """The chosen adapter's model card as Markdown that loads nothing from anywhere."""
    if not name:
        return texts.ABOUT_BASE
    try:
        text = store.card_text(name)
    except AdapterError:
        text = ""
    text = text.replace("![", "[").replace("<", "&lt;")
    return re.sub(r"^(#+) ", r"##\1 ", text, flags=re.MULTILINE) or texts.NO_CARD


def picker_choices(store: Cards) -> list[tuple[str, str]]:
    """(label, value) of each adapter. A label has three lines; the style sheet makes a card of it."""
    choices = [(texts.PICK_BASE, "")]
    for name in store.names():
        try:
            card = store.card(name)
        except AdapterError:
            choices.append((texts.pick_broken(name), name))
            continue
        kind = texts.SEES_PICTURES if card.is_visual else texts.READS_TEXT
        choices.append((f"{name}\n{_clip(card.description)}\n{kind} · {size(card.bytes)}", name))
    return choices


def short_choices(choices: list[tuple[str, str]], none: str) -> list[tuple[str, str]]:
    """The picker's choices as a dropdown has them: names only. none: the label of "no adapter"."""
    return [(value or none, value) for _, value in choices]


def favourites(names: list[str]) -> list[str]:
    """The names, those that show most first."""
    return sorted(names, key=lambda name: FAVOURITES.index(name) if name in FAVOURITES else len(FAVOURITES))


def pane_html(body: str, line: str = "", *, muted: bool = False) -> str:
    """A pane of the comparison. body: HTML, already escaped; line: plain text below it; muted: the page speaks."""
    below = f'<div class="stats">{html.escape(line)}</div>' if line else ""
    return f'<div class="words{" muted" if muted else ""}">{body}</div>{below}'


def command_box(text: str, label: str, elem_id: str) -> gr.Textbox:
    """A command line to be copied."""
    return gr.Textbox(
        text,
        label=label,
        lines=2,
        max_lines=8,
        interactive=False,
        buttons=["copy"],
        elem_id=elem_id,
        elem_classes="command",
    )


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def status_html(status: LoadStatus, text: str) -> str:
    """The header's line about the model; text: the status for people, without folders of this machine."""
    return f'<div class="status {status.state}"><i></i>{html.escape(text)}</div>'


def header_html() -> str:
    return f"<h1>{html.escape(texts.TITLE)}</h1><p>{html.escape(texts.SENTENCE)}</p>"


def _clip(text: str, limit: int = 110) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + "…"


def theme() -> gr.themes.Base:
    """System fonts only: the page asks nobody on the internet for anything."""
    accent = gr.themes.colors.teal
    return gr.themes.Base(
        primary_hue=accent,
        secondary_hue=accent,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"],
        font_mono=["ui-monospace", "SF Mono", "Cascadia Code", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_border_width="0px",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#134e4a66",
        slider_color="*primary_600",
        slider_color_dark="*primary_500",
    )
