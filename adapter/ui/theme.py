"""The page's look: theme, style sheets, adapter cards, HTML snippets and examples. Its texts are in texts/."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from markdown_it import MarkdownIt

from adapter.errors import AdapterError, Busy
from adapter.server.generation import AdapterCatalog
from adapter.ui.gradio_internals import PHOTOGRAPHS
from adapter.ui.preload import styles_html
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from adapter.server.generation import LoadStatus

# Updates of a message box while an answer is being streamed, and afterwards. Neither changes its text.
SHOW_STOP_BUTTON = {"submit_btn": False, "stop_btn": True}
SHOW_SUBMIT_BUTTON = {"submit_btn": True, "stop_btn": False}
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
_DESCRIPTION_CHARACTERS = 110  # on an adapter's card
# The adapters that the panes of a comparison start with, where they exist.
PREFERRED_ADAPTERS = ("pirate", "extract", "see")
FIRST_ADAPTER = "pirate"  # that a newcomer's chat begins with
STATIC = Path(__file__).parent / "static"
STYLE_SHEETS = sorted(STATIC.glob("*.css"))
SCRIPTS = ("conversations.js", "page.js")  # go into the page's head, in this order
HEAD = "".join(f"<script>{(STATIC / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)
HEAD += styles_html()
ICON = STATIC / "icon.png"
_ASSETS = Path(__file__).resolve().parents[2] / "assets"
SHIPPED = _ASSETS / "adapters"  # as in serve/store.py, which imports torch: the page is there before it
DRAWING = _ASSETS / "examples" / "traffic-light.png"
FILM_EXAMPLE = _ASSETS / "examples" / "filmstrip.json"


@dataclass(frozen=True)
class ExampleCard:
    """A card of the empty chat, which sends `text` (and `picture`) with `adapter`, if that is installed."""

    title: str
    text: str
    adapter: str
    picture: str | None = None

    @property
    def label(self) -> str:
        """What the card shows: its title, which is set in bold, and the words that it sends."""
        return f"{self.title}\n“{self.text}”"


def examples() -> list[ExampleCard]:
    """Texts, a photograph and a drawing, for the shipped adapters."""
    cards = [
        ExampleCard(texts.EXAMPLE_EXTRACT, texts.EXAMPLE_EXTRACT_MESSAGE, "extract"),
        ExampleCard(
            texts.EXAMPLE_PHOTOGRAPH, texts.EXAMPLE_PHOTOGRAPH_MESSAGE, "see", str(PHOTOGRAPHS / "cheetah1.jpg")
        ),
        ExampleCard(texts.EXAMPLE_DRAWING, texts.EXAMPLE_DRAWING_MESSAGE, "see", str(DRAWING)),
        ExampleCard(texts.EXAMPLE_TUTOR, texts.EXAMPLE_TUTOR_MESSAGE, "tutor"),
    ]
    return [card for card in cards if (SHIPPED / card.adapter).is_dir()]


def model_card(catalog: AdapterCatalog, name: str) -> str:
    """The adapter's model card as HTML without anything that its author could style or make the browser load."""
    if not name:
        return texts.ABOUT_BASE
    try:
        text = catalog.card_text(name)
    except AdapterError:
        text = ""
    tokens = _MARKDOWN.parse(text or texts.NO_CARD)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"  # below the title of the page
        for part in token.children or ():
            if part.type == "link_open":
                part.attrs |= {"target": "_blank", "rel": "noopener noreferrer"}
    return _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})


def picker_choices(catalog: AdapterCatalog) -> list[tuple[str, str]]:
    """(label, value) of each adapter, the frozen base first and those that were added here last.

    A label is its name and what page.js describes it by, line by line; page.css shows the first line. Before
    the catalog is opened, which takes seconds, these are the shipped adapters.
    """
    choices, own = [(texts.BASE_CARD, "")], []
    for name in catalog.names() or _shipped():
        try:
            card = catalog.card(name)
        except Busy:
            choices.append((name, name))
            continue
        except AdapterError:
            choices.append((texts.broken_card(name), name))
            continue
        description = ellipsize(card.description, _DESCRIPTION_CHARACTERS)
        if not description:
            description = texts.no_description(card.config.prompt_length, card.config.insertion_layers)
        label = f"{name}\n{description}\n{format_bytes(card.bytes)}"
        if card.own:
            own.append((f"{label}\n{texts.ADDED_HERE}", name))
        else:
            choices.append((label, name))
    return [*choices, *own]


def _shipped() -> list[str]:
    return sorted(folder.name for folder in SHIPPED.glob("*") if (folder / "config.json").is_file())


def short_choices(choices: list[tuple[str, str]], none: str) -> list[tuple[str, str]]:
    """The choices of a dropdown, which shows names only. none: the label of "no adapter"."""
    return [(value or none, value) for _, value in choices]


def preferred_first(names: list[str]) -> list[str]:
    order = {name: rank for rank, name in enumerate(PREFERRED_ADAPTERS)}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def pane_html(body: str, line: str = "", *, muted: bool = False) -> str:
    """A pane of the comparison. body: escaped HTML; line: the statistics; muted: the page's own message."""
    stats = f'<div class="stats">{html.escape(line)}</div>' if line else ""
    return f'<div class="answer-text{" muted" if muted else ""}">{body}</div>{stats}'


def command_box(text: str, label: str, elem_id: str) -> gr.Textbox:
    """A text box with a command line and a copy button."""
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


def format_bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def status_html(status: LoadStatus, text: str) -> str:
    """The header's line about the model; text: the status, without paths of this machine."""
    text = html.escape(text)
    return f'<div class="status {status.state}" title="{text}"><i></i><span>{text}</span></div>'


_ICONS = {
    "list": '<path d="M4 6h16M4 12h16M4 18h10"/>',
    "new": '<path d="M12 5v14M5 12h14"/>',
    "rename": '<path d="M4 20h4L19 9l-4-4L4 16zM13 7l4 4"/>',
    "delete": '<path d="M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13"/>',
    "close": '<path d="M6 6l12 12M18 6L6 18"/>',
}


def icon(name: str) -> str:
    return (
        '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" '
        f'stroke-linejoin="round" aria-hidden="true">{_ICONS[name]}</svg>'
    )


def data_attributes(values: Mapping[str, str]) -> str:
    """Texts for a script, which reads them from data-*."""
    return " ".join(f'data-{name}="{html.escape(text)}"' for name, text in values.items())


def icon_button(name: str, text: str, shown: str = "") -> str:
    """A button that conversations.js gives its behaviour by its name. shown: the text beside the icon."""
    shown = f"<span>{html.escape(shown)}</span>" if shown else ""
    return f'<button type="button" name="{name}" aria-label="{text}" title="{text}">{icon(name)}{shown}</button>'


def conversations_html() -> str:
    """The list of conversations, which conversations.js fills, its buttons, and the line with Undo."""
    attributes = data_attributes(
        {
            "untitled": texts.UNTITLED,
            "base": texts.BASE_NAME,
            "empty": texts.NO_CONVERSATIONS,
            "none": texts.NOTHING_FOUND,
            "forgotten": texts.NOTHING_IS_KEPT,
        }
    )
    rename, delete = icon_button("rename", texts.RENAME), icon_button("delete", texts.DELETE)
    row = f'<li><button type="button" name="open"><span></span><span></span></button>{rename}{delete}</li>'
    return (
        f"{icon_button('list', texts.CONVERSATIONS, texts.CONVERSATIONS)}"
        f"{icon_button('new', texts.NEW_CONVERSATION, texts.NEW)}"
        f'<div class="undo" role="status" data-text="{html.escape(texts.DELETED)}" hidden><span></span>'
        f'<button type="button" name="undo">{texts.UNDO}</button></div>'
        f'<dialog aria-label="{texts.CONVERSATIONS}" {attributes}><header><h2>{texts.CONVERSATIONS}</h2>'
        f"{icon_button('new', texts.NEW_CONVERSATION)}{icon_button('close', texts.CLOSE)}</header>"
        f'<input type="search" placeholder="{texts.SEARCH}" aria-label="{texts.SEARCH}">'
        f'<ul></ul><p role="status"></p><template>{row}</template></dialog>'
    )


def header_html() -> str:
    """page.js reads names of buttons from its data-*."""
    names = data_attributes(
        {
            "picture": texts.SHOW_PICTURE,
            "message": texts.MESSAGE,
            "correct": texts.SAY_IT_LIKE_THIS,
            "film": texts.FILM_BUTTON,
            "film-name": texts.AT_FIVE_STRENGTHS,
        }
    )
    return f"<h1 {names}>{html.escape(texts.TITLE)}</h1>"


def server_gone_html() -> str:
    """Takes the status line's place while the server does not answer, see page.js."""
    return f'<div class="status failed" role="alert"><i></i><span>{html.escape(texts.SERVER_GONE)}</span></div>'


def ellipsize(text: str, limit: int) -> str:
    """The text on one line, cut after a word if it has more than `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + "…"


def gradio_theme() -> gr.themes.Base:
    """System fonts only: the page loads nothing from the internet."""
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
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
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
