"""The endpoints for programs that use gradio_client, /chat and /adapters. Names, descriptions and labels are the
manual that Gradio's API page shows.

Knows Gradio's components and the store's names; what an answer is, is in requests.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from adapter.errors import AdapterError
from adapter.server.settings import BASE_ONLY, EngineProvider, Settings, answer_once, public_text, wait_or_say
from adapter.ui import theme as look
from adapter.ui.texts import page as texts


def api(provider: EngineProvider, store: look.Cards, model: dict[str, Any]) -> None:
    """Add the endpoints to the current Blocks. model: what every event has that touches the model."""

    def chat(
        message: str,
        image: str | None = None,
        adapter: str | None = None,
        strength: float = 1.0,
        temperature: float = 0.1,
        top_p: float = 0.75,
        max_tokens: float = 256,
        seed: float | None = None,
        mix: str | None = None,
        mix_strength: float = 1.0,
    ) -> Iterator[str]:
        sampling = temperature, top_p, max_tokens, seed
        settings = Settings(adapter or BASE_ONLY, strength, *sampling, mix, mix_strength)
        yield from answer_once(provider, store, message, image, settings)

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
            gr.Textbox(label=texts.API_ADAPTER),
            gr.Number(1.0, label=texts.API_STRENGTH),
            gr.Number(0.1, label=texts.API_TEMPERATURE),
            gr.Number(0.75, label=texts.API_TOP_P),
            gr.Number(256, label=texts.API_MAX_TOKENS, precision=0),
            gr.Number(None, label=texts.API_SEED, precision=0),
            gr.Textbox(label=texts.API_MIX),
            gr.Number(1.0, label=texts.API_MIX_STRENGTH),
        ]
        answer, list_ = gr.Textbox(label=texts.API_ANSWER), gr.JSON(label=texts.API_LIST)
        about = {"api_name": "chat", "api_description": texts.API_CHAT}
        gr.Button("chat").click(chat, inputs, answer, **about, **model)
        about = {"api_name": "adapters", "api_description": texts.API_ADAPTERS}
        gr.Button("adapters").click(adapters, None, list_, **about)
