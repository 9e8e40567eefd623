"""The page's look: theme, style sheets, adapter cards, HTML snippets and examples. Its texts are in texts/."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from markdown_it import MarkdownIt

from adapter.errors import AdapterError, Busy
from adapter.serve.settings import SHIPPED
from adapter.server.generation import AdapterCatalog
from adapter.ui.gradio_internals import PHOTOGRAPH
from adapter.ui.images import data_url, write_upload
from adapter.ui.preload import styles_html
from adapter.ui.texts import page as texts

# Updates of a message box while an answer is being streamed, and afterwards. Neither changes its text.
STOP, SUBMIT = gr.update(submit_btn=False, stop_btn=True), gr.update(submit_btn=True, stop_btn=False)
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
FIRST_ADAPTER = "pirate"  # that a newcomer begins with
STATIC = Path(__file__).parent / "static"
STYLE_SHEETS = sorted(STATIC.glob("*.css"))
SCRIPTS = ("conversations.js", "page.js")  # go into the page's head, in this order
HEAD = "".join(f"<script>{(STATIC / js).read_text(encoding='utf-8')}</script>" for js in SCRIPTS) + styles_html()
ICON = STATIC / "icon.png"
DRAWING = SHIPPED.parent / "examples" / "traffic-light.png"
FILM_EXAMPLE = DRAWING.with_name("filmstrip.json")  # tests/ui/compare/test_filmstrip_example.py makes it
XRAY_KEY = f'<span class="xray-key">{texts.LESS_LIKELY}<i></i>{texts.MORE_LIKELY}</span>'


@dataclass(frozen=True)
class ExampleCard:
    """A card of the empty chat, which sends `text` (and `picture`) with `adapter`, if that is installed."""

    title: str
    text: str
    adapter: str
    picture: str | None = None

    @property
    def label(self) -> str:
        """What the card shows: its title, and the words that it sends."""
        return f"{self.title}\n“{self.text}”"


def examples(catalog: AdapterCatalog) -> list[ExampleCard]:
    """For the shipped adapters. Pictures are copied to the uploads, the only files that a message may name."""
    photograph, drawing = (write_upload(path.read_bytes()) for path in (PHOTOGRAPH, DRAWING))
    gr.set_static_paths([photograph, drawing])  # which are not deleted by age
    cards = [
        ExampleCard(texts.EXAMPLE_EXTRACT, texts.EXAMPLE_EXTRACT_MESSAGE, "extract"),
        ExampleCard(texts.EXAMPLE_PHOTOGRAPH, texts.EXAMPLE_PHOTOGRAPH_MESSAGE, "see", photograph),
        ExampleCard(texts.EXAMPLE_DRAWING, texts.EXAMPLE_DRAWING_MESSAGE, "see", drawing),
        ExampleCard(texts.EXAMPLE_TUTOR, texts.EXAMPLE_TUTOR_MESSAGE, "tutor"),
    ]
    return [card for card in cards if catalog.shipped and (SHIPPED / card.adapter).is_dir()]


def films_html(adapters: Sequence[str]) -> str:
    """The films of `adapters` for the empty chat. page.js shows the chosen one's, at its strength."""
    parts = []
    for film in json.loads(FILM_EXAMPLE.read_text(encoding="utf-8")):
        if (name := film["settings"]["adapter"]) in adapters:
            frames = "".join(f"<p>{''.join(map(_word_html, answer)).strip()}</p>" for answer in film["answers"])
            picture = f'<img alt="" src="{data_url(DRAWING.read_bytes())}">' if name == "see" else ""
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
    """(label, value) of each adapter, the frozen base first and those that were added here last. The first line of
    a label is its name, which page.css shows. Before the catalog is opened these are the shipped adapters.
    """
    choices, own = [(texts.BASE_CARD, "")], []
    for name in catalog.names() or sorted(folder.name for folder in SHIPPED.glob("*/") if catalog.shipped):
        try:
            card = catalog.card(name)
        except AdapterError as error:
            choices.append((name if isinstance(error, Busy) else texts.broken_card(name), name))
            continue
        description = ellipsize(card.description, 110)
        if not description:
            description = texts.no_description(card.config.prompt_length, card.config.insertion_layers)
        size = f"{card.bytes / 1e6:.1f} MB" if card.bytes >= 1e6 else f"{card.bytes / 1e3:.0f} kB"
        label = f"{name}\n{description}\n{size}"
        if card.own:
            own.append((f"{label}\n{texts.ADDED_HERE}", name))
        else:
            choices.append((label, name))
    return [*choices, *own]


def short_choices(choices: list[tuple[str, str]], none: str) -> list[tuple[str, str]]:
    """The choices of a dropdown, which shows names only. none: the label of "no adapter"."""
    return [(value or none, value) for _, value in choices]


def data_attributes(values: Mapping[str, str]) -> str:
    """Texts for a script, which reads them from data-*."""
    return " ".join(f'data-{name}="{html.escape(text)}"' for name, text in values.items())


def status_html(state: str, text: str, attributes: str = "") -> str:
    """The header's line about the model, or the server; text: without paths of this machine."""
    text = html.escape(text)
    return f'<div class="status {state}" tabindex="0" title="{text}" {attributes}><i></i><span>{text}</span></div>'


def ellipsize(text: str, limit: int) -> str:
    """The text on one line, cut after a word, or in a long one, if it has more than `limit` characters."""
    text = " ".join(text.split())
    cut = text[: limit - 1]
    words = cut.rsplit(" ", 1)[0]  # hardly any in a script without spaces
    return text if len(text) <= limit else (words if 2 * len(words) > limit else cut) + "…"


def gradio_theme() -> gr.themes.Base:
    """System fonts only: the page loads nothing from the internet."""
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        block_background_fill_dark="*neutral_900",
        block_label_background_fill="transparent",
        block_label_border_width="0px",
        color_accent_soft_dark="#134e4a66",
        slider_color="*primary_600",
        slider_color_dark="*primary_500",
    )
