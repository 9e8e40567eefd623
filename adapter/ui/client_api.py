"""The endpoints for programs that use gradio_client, /chat and /adapters. Names, descriptions and labels are the
manual that Gradio's API page shows.

Knows Gradio's components and the store's names; what an answer is, is in requests.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from adapter.errors import AdapterError
from adapter.serve.settings import PANEL, Settings
from adapter.server.settings import EngineProvider, answer_once, public_text, wait_or_say
from adapter.ui import theme as look
from adapter.ui.texts import page as texts


def api(provider: EngineProvider, store: look.Cards, model: dict[str, Any]) -> None:
    """Add the endpoints to the current Blocks. model: what every event has that touches the model."""

    default = Settings()

    def chat(  # gradio_client takes the names of its arguments from here
        message: str,
        image: str | None = None,
        adapter: str | None = None,
        strength: float = default.strength,
        temperature: float = default.temperature,
        top_p: float = default.top_p,
        max_tokens: float = default.max_tokens,
        seed: float | None = None,
        mix: str | None = None,
        mix_strength: float = default.mix_strength,
    ) -> Iterator[str]:
        values = adapter, strength, temperature, top_p, max_tokens, seed, mix, mix_strength
        yield from answer_once(provider, store, message, image, dict(zip(PANEL, values, strict=True)))

    def adapters() -> list[dict[str, Any]]:
        wait_or_say(provider)
        cards: list[dict[str, Any]] = []
        for name in store.names():
            try:
                card = store.card(name)
            except AdapterError as error:
                cards.append({"name": name, "error": public_text(error)})
                continue
            about = {"description": card.description, "visual": card.is_visual, "bytes": card.bytes}
            cards.append({"name": name, **about})
        return cards

    with gr.Column(visible=False):
        inputs = [
            gr.Textbox(label=texts.API_MESSAGE),
            gr.File(label=texts.API_IMAGE, type="filepath"),
            *[_input(name) for name in PANEL],
        ]
        answer, list_ = gr.Textbox(label=texts.API_ANSWER), gr.JSON(label=texts.API_LIST)
        about = {"api_name": "chat", "api_description": texts.API_CHAT}
        gr.Button("chat").click(chat, inputs, answer, **about, **model)
        about = {"api_name": "adapters", "api_description": texts.API_ADAPTERS}
        gr.Button("adapters").click(adapters, None, list_, **about)


def _input(name: str) -> Any:
    """The component that documents a setting of /chat."""
    field = Settings.model_fields[name]
    if name in ("adapter", "mix"):
        return gr.Textbox(label=field.description)
    return gr.Number(
        field.default, label=field.description, precision=0 if name in ("max_tokens", "seed") else None
    )
