"""What the open page keeps up to date: the header's line about the model, and every picker of adapters.

Knows Gradio's components and the store's names; knows no engine and no conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from adapter.serve.settings import BASE_ONLY
from adapter.server.settings import EngineProvider, without_folders
from adapter.ui import theme as look
from adapter.ui.texts import page as texts

PRIVATE = {"api_visibility": "private"}
QUICK = {"queue": False, "show_progress": "hidden", **PRIVATE}
# Of events that may say something: toasts come through the queue only (gradio 6.31). Nobody waits there.
TELLING = {"concurrency_limit": None, "show_progress": "hidden", **PRIVATE}
LOADING_SECONDS, READY_SECONDS = 1.0, 5.0


class Picker(NamedTuple):
    """A component that chooses an adapter.

    none: what a dropdown, which shows names only, calls "no adapter"; None for the cards, which have a text for
    it. favourite: which of look.favourites it chooses by itself when the first adapters turn up.
    """

    component: gr.Radio | gr.Dropdown
    none: str | None = None
    favourite: int | None = None

    def update(self, choices: list[tuple[str, str]], value: str | None) -> Any:
        """value: None leaves the one that is chosen by now."""
        shown = choices if self.none is None else look.short_choices(choices, self.none)
        return gr.update(choices=shown, **({} if value is None else {"value": value}))

    def first_value(self, names: list[str], value: str) -> str:
        if value or self.favourite is None or not names:
            return value
        found = look.favourites(names)
        return found[min(self.favourite, len(found) - 1)]


def header(provider: EngineProvider) -> gr.HTML:
    """The top of the page; returns the line about the model."""
    with gr.Row(elem_id="top"):
        gr.HTML(look.header_html(), elem_id="head")
        return gr.HTML(_status(provider), elem_id="status")


def keep_fresh(provider: EngineProvider, store: look.Cards, status: gr.HTML, pickers: Sequence[Picker]) -> None:
    """Ask again every few seconds, while the page is open, what there is."""
    known = gr.State(look.picker_choices(store))
    gone = gr.Textbox(visible="hidden", show_label=False)  # names, a line each
    timer = gr.Timer(LOADING_SECONDS)

    def refresh(choices: list[tuple[str, str]], *selected: str | None) -> tuple[Any, ...]:
        before = [(label, value) for label, value in choices]  # lists, once they were in a browser
        now = look.picker_choices(store)
        ready = provider.status().state == "ready"
        news = _status(provider), now, gr.Timer(READY_SECONDS if ready else LOADING_SECONDS)
        if now == before:
            return *news, "", *[gr.skip()] * len(pickers)
        names = [value for _, value in now if value]
        values = [value or BASE_ONLY for value in selected]
        missing = "\n".join(sorted({value for value in values if value} - set(names)))
        values = [value if value in names else BASE_ONLY for value in values]
        if len(before) == 1:
            values = [picker.first_value(names, value) for picker, value in zip(pickers, values, strict=True)]
        updates = [
            picker.update(now, None if value == (old or BASE_ONLY) else value)
            for picker, value, old in zip(pickers, values, selected, strict=True)
        ]
        return *news, missing, *updates

    components = [picker.component for picker in pickers]
    event = {"inputs": [known, *components], "outputs": [status, known, timer, gone, *components]}
    # A change of the first picker too: an adapter that was just brought is to be in all of them at once.
    gr.on([timer.tick, components[0].change], refresh, **event, **QUICK)
    gone.change(_tell_gone, gone, None, **TELLING)


def _tell_gone(names: str) -> None:
    for name in names.splitlines():
        gr.Info(texts.adapter_gone(name), duration=8)


def _status(provider: EngineProvider) -> str:
    status = provider.status()
    return look.status_html(status, without_folders(status.text))
