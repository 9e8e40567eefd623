"""The live parts of an open page: the header's status line, and every picker of adapters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from adapter.serve.settings import BASE_ONLY
from adapter.server.generation import AdapterCatalog, EngineProvider
from adapter.ui import theme
from adapter.ui.texts import page as texts

PRIVATE = {"api_visibility": "private"}
UNQUEUED = {"queue": False, "show_progress": "hidden", **PRIVATE}
# Of events whose newest counts: Gradio drops one that comes while another is pending, this runs it afterwards.
NEWEST = {"trigger_mode": "always_last", **UNQUEUED}
# Options of events that may show a toast, which Gradio sends through its queue only (6.31).
QUEUED = {"concurrency_limit": None, "show_progress": "hidden", **PRIVATE}
# Options of every event that runs the model. Their limit is above the engine's, whose scheduler decides the order.
MODEL = {"concurrency_id": "model", "concurrency_limit": 64}
POLL_SECONDS_LOADING, POLL_SECONDS_READY = 1.0, 5.0
# Text goes out at most this often: each time costs Gradio a pass over the whole conversation.
REDRAW_SECONDS = 0.08
# Gradio's page drops the first of two updates that arrive within one frame (6.31).
FRAME_SECONDS = 0.1


class Picker(NamedTuple):
    """A component that selects an adapter. none: the label of "no adapter" in a dropdown; None for a radio."""

    component: Any
    none: str | None = None

    def update(self, choices: list[tuple[str, str]], value: str | None) -> Any:
        """value: None keeps the selection."""
        shown = choices if self.none is None else theme.short_choices(choices, self.none)
        return gr.update(choices=shown, **({} if value is None else {"value": value}))


def header(provider: EngineProvider) -> gr.HTML:
    """Lays out the top of the page; returns the status line."""
    names = {"picture": texts.SHOW_PICTURE, "message": texts.MESSAGE, "correct": texts.SAY_IT_LIKE_THIS}
    names |= {"film": texts.FILM_BUTTON, "film-name": texts.AT_FIVE_STRENGTHS, "before": texts.ANSWER_BEFORE}
    names |= {"after": texts.ANSWER_AFTER}  # of buttons, for page.js
    with gr.Row(elem_id="top"):
        gr.HTML(f"<h1 {theme.data_attributes(names)}>{texts.TITLE}</h1>", elem_id="head", padding=False)
        status = gr.HTML(_status(provider), elem_id="status", padding=False)
        gone = theme.status_html("failed", texts.SERVER_GONE, 'role="alert"')
        gr.HTML(gone, elem_id="server-gone", padding=False)
        return status


def refresh_periodically(
    provider: EngineProvider,
    catalog: AdapterCatalog,
    status: gr.HTML,
    pickers: Sequence[Picker],
    chosen: Sequence[Any],
    describe: Callable[[str], Sequence[Any]],
) -> None:
    """Updates the status line and the pickers every few seconds, and at once when the first picker has changed: an
    adapter that was brought appears in all of them. chosen, describe: as in TabParts.
    """
    components = [picker.component for picker in pickers]
    known = gr.State((theme.picker_choices(catalog), components[0].value))  # and which adapter is described
    timer = gr.Timer(POLL_SECONDS_LOADING)

    def refresh(known: tuple[list[tuple[str, str]], str], *selected: str | None) -> tuple[Any, ...]:
        name, now = selected[0] or BASE_ONLY, theme.picker_choices(catalog)
        seconds = POLL_SECONDS_READY if provider.status().state == "ready" else POLL_SECONDS_LOADING
        shown = [gr.skip()] * len(chosen) if known == (now, name) else describe(name)
        updates = _status(provider), (now, name), gr.Timer(seconds), *shown
        if now == known[0]:
            return *updates, *[gr.skip()] * len(pickers)
        names = [value for _, value in now if value]
        values = [value if value in names else BASE_ONLY for value in selected]
        if known[1] not in (BASE_ONLY, *names):  # deleted: what was mixed into it does not answer alone
            values[1] = BASE_ONLY
        changed = [
            picker.update(now, None if value == (old or BASE_ONLY) else value)
            for picker, value, old in zip(pickers, values, selected, strict=True)
        ]
        return *updates, *changed

    outputs = [status, known, timer, *chosen, *components]
    gr.on([timer.tick, components[0].change], refresh, [known, *components], outputs, **NEWEST)


def _status(provider: EngineProvider) -> str:
    status = provider.status()
    return theme.status_html(status.state, status.text)
