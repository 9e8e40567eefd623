"""The panel Inside: why the newest answer came out as it did, and which layers and heads the next does without.

Its components and what its events do. Numbers are the engine's, pictures are in inside_html.py, what happens in
the browser alone in inside.js and mute.js. Nothing is computed, or even asked for, while the panel is closed.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.server.settings import EngineProvider, wait_for, without_folders
from adapter.ui import conversation as talk
from adapter.ui import inside_charts as inside_html
from adapter.ui.answer_record import Record, read_record
from adapter.ui.conversation import History
from adapter.ui.images import from_uploads, open_picture
from adapter.ui.status import PRIVATE, QUICK
from adapter.ui.texts import inside as texts
from adapter.ui.texts import page as page_texts

if TYPE_CHECKING:
    from adapter.serve.inspection import Inspection
    from adapter.serve.request import GenerationRequest

log = logging.getLogger(__name__)

MOST_TOKENS = 512  # of an answer that are looked at
_KEPT = 16
COLOURS = [(texts.DRAWN, "drawn"), (texts.INFLUENCE, "influence"), (texts.GROUNDING, "grounding")]
# Updates of what the page says, the gates, the tokens, their colours and one token.
Updates = tuple[Any, ...]

_STATIC = Path(__file__).parent / "static"
_PICTURES = (_STATIC / "inside.js").read_text(encoding="utf-8")
_CHIPS = (_STATIC / "mute.js").read_text(encoding="utf-8")
# Numbers only: what stands in a template would be run.
_CHIP = (
    '${(Array.isArray(value) ? value : []).map(Number).map((n, i) => (i ? "" : `<span>${title}</span>`) + '
    '`<button type="button" data-n="${n}" aria-label="${unmute} ${n}">${n} <b>×</b></button>`).join("")}'
)
# A new value of the hidden field is what asks for the numbers. While an answer is written, or the panel is closed,
# it stays as it is. The conversation stands for itself, in short.
_ASK = """(history, wanted) => {
  history = history ?? [];
  if (%s || history.at(-1)?.metadata?.status === 'pending') return wanted;
  const text = JSON.stringify(history);
  let sum = 0;
  for (let i = 0; i < text.length; i++) sum = (sum * 31 + text.charCodeAt(i)) | 0;
  return history.length + ':' + text.length + ':' + sum;
}"""
_CLOSED = "!document.querySelector('#inside .label-wrap.open')"


class Look(NamedTuple):
    """What was found in one answer: its numbers, the adapters' names and how many tokens there are in all."""

    found: Inspection
    names: list[str]
    total: int


class Panel(NamedTuple):
    """What the chat has to do with the panel: muted layers and heads as settings, and a button that asks anew."""

    mutes: list[Any]
    again: gr.Button


class Inside:
    """The handlers of the panel; safe for any number of sessions at once.

    The latest looks are kept, so that a click on a token costs no pass. Whoever clicks after theirs is gone gets
    it made again from the conversation.
    """

    def __init__(self, provider: EngineProvider) -> None:
        self.provider = provider
        self._lock = threading.Lock()
        self._looks: OrderedDict[str, Look] = OrderedDict()

    def show(self, history: History, colour: str) -> Iterator[Updates]:
        """Look into the newest answer and draw it, or say why there is nothing to see."""
        try:
            for status in self._waiting(history):
                yield _only(status)
            look, record = self._look(history)
        except AdapterError as error:
            yield _only(without_folders(str(error)))
            return
        except Exception:
            log.exception("an answer could not be looked into")
            yield _only(page_texts.FAILED)
            return
        muted = record.settings.mute_layers, record.settings.mute_heads
        colours = COLOURS if look.found.grounding is not None else COLOURS[:2]
        chosen = colour if colour in [value for _, value in colours] else "drawn"
        yield (
            "",
            inside_html.gates_html(look.found, look.names, muted),
            inside_html.answer_html(look.found, self._keep(look), look.total),
            gr.update(choices=colours, value=chosen, visible=True),
            inside_html.said_html(texts.CLICK_A_TOKEN),
        )

    def token(self, history: History, event: gr.EventData) -> Any:
        """A token that was clicked: its numbers and its map."""
        data = event._data if isinstance(event._data, dict) else {}
        index, key = data.get("index"), data.get("key")
        with self._lock:
            look = self._looks.get(key) if isinstance(key, str) else None
        try:
            if look is None:
                look, _ = self._look(history)
        except AdapterError as error:
            return inside_html.said_html(without_folders(str(error)))
        except Exception:
            log.exception("an answer could not be looked into")
            return inside_html.said_html(page_texts.FAILED)
        if type(index) is not int or not 0 <= index < len(look.found.tokens):
            return gr.skip()
        return inside_html.token_html(look.found, index, look.names)

    def _waiting(self, history: History) -> Iterator[str]:
        """What is said until there is something to see. Raises AdapterError if there will be nothing."""
        _record_of(history)
        for status in wait_for(self.provider):
            yield without_folders(page_texts.waiting_for_model(status))
        yield texts.LOOKING

    def _look(self, history: History) -> tuple[Look, Record]:
        """Raises AdapterError, which says why an answer cannot be looked into."""
        answered, record = _record_of(history)
        engine = self.provider.engine()
        if engine is None:
            raise BadInput(self.provider.status().text)
        request = _request(answered, record)
        found = engine.inspect(request, record.token_ids[:MOST_TOKENS])
        names = [texts.part(name, strength) for name, strength in request.parts]
        return Look(found, names, len(record.token_ids)), record

    def _keep(self, look: Look) -> str:
        """Keep a look; returns the key that only its own page knows."""
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._looks[key] = look
            while len(self._looks) > _KEPT:
                self._looks.popitem(last=False)
        return key


def _record_of(history: History) -> tuple[talk.Answered, Record]:
    """The newest answer and how it came about. Raises BadInput if that is not known or holds no adapter."""
    lines = [entry for entry in history if talk.kind(entry) == talk.STATS]
    if not lines and not any(message.role == "assistant" for message in talk.to_messages(history)):
        raise BadInput(texts.NO_ANSWER)
    answered = talk.newest_answer(history)
    record = None if answered is None else read_record(answered.record)
    # An older answer may have a record where the newest has none.
    if answered is None or record is None or not talk.record_of(lines[-1]):
        raise BadInput(texts.NO_RECORD)
    if not record.settings.adapter and not record.settings.mix:
        raise BadInput(texts.NO_GATES)
    if record.picture and answered.picture is None:
        raise BadInput(texts.NO_PICTURE)
    return answered, record


def _request(answered: talk.Answered, record: Record) -> GenerationRequest:
    """The request that was answered, but for how its tokens were chosen."""
    from adapter.serve.request import GenerationRequest

    settings = record.settings
    return GenerationRequest(
        messages=answered.messages,
        adapter=settings.adapter or None,
        image=open_picture(from_uploads(answered.picture)) if record.picture and answered.picture else None,
        strength=settings.strength,
        mix=((settings.mix, settings.mix_strength),) if settings.mix else (),
        mute_layers=tuple(settings.mute_layers),
        mute_heads=tuple(settings.mute_heads),
    )


def _only(text: str) -> Updates:
    """Nothing to see but a sentence."""
    return inside_html.said_html(text), "", "", gr.update(visible=False), ""


def inside_panel(provider: EngineProvider, chat: gr.Chatbot, model: dict[str, Any]) -> Panel:
    """Lay the panel out inside the current Blocks and connect it. model: of every event that touches the model."""
    # Outside of the accordion, whose content is not there before it is opened first.
    wanted = gr.Textbox(visible="hidden", show_label=False, elem_id="inside-wanted")
    with gr.Accordion(texts.INSIDE, open=False, elem_id="inside") as accordion:
        said = gr.HTML(inside_html.said_html(texts.LOOKING), elem_id="inside-said")
        with gr.Row(elem_id="inside-maps"):
            with gr.Column(scale=4, min_width=300):
                gates = gr.HTML("", js_on_load=_PICTURES, apply_default_css=False, elem_id="inside-gates")
                with gr.Row(elem_id="inside-mutes"):
                    again = gr.Button(texts.ASK_AGAIN, size="sm", elem_id="inside-again")
                    unmute = gr.Button(texts.UNMUTE_ALL, size="sm", elem_id="inside-unmute")
                    mutes = [_chips("layer", texts.MUTED_LAYERS), _chips("head", texts.MUTED_HEADS)]
            with gr.Column(scale=7, min_width=300):
                colour = gr.Radio(
                    COLOURS, value="drawn", label=texts.COLOUR_OF, elem_id="inside-colour", visible=False
                )
                answer = gr.HTML("", js_on_load=_PICTURES, apply_default_css=False, elem_id="inside-answer")
                token = gr.HTML("", js_on_load=_PICTURES, apply_default_css=False, elem_id="inside-token")
    handlers = Inside(provider)
    told = {"show_progress": "hidden", **PRIVATE}
    opened = {"inputs": [chat, wanted], "outputs": wanted, **QUICK}
    accordion.expand(None, js=_ASK % "false", **opened)
    chat.change(None, js=_ASK % _CLOSED, **opened)
    wanted.change(handlers.show, [chat, colour], [said, gates, answer, colour, token], **model, **told)
    answer.token(handlers.token, chat, token, **model, **told)
    unmute.click(None, js="() => [[], []]", outputs=mutes, **QUICK)
    return Panel(mutes, again)


def _chips(kind: str, title: str) -> gr.HTML:
    """What is muted of one kind, as a list of numbers that the browser changes by itself."""
    return gr.HTML(
        [],
        html_template=_CHIP,
        js_on_load=_CHIPS,
        kind=kind,
        title=title,
        unmute=texts.UNMUTE[kind],
        elem_id=f"mute-{kind}s",
        elem_classes="chips",
    )
