"""The endpoints for programs that use gradio_client, /chat and /adapters.

Names, types and descriptions are the manual that gradio_client prints.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import PAGE_PENALTY, PANEL, Settings
from adapter.server.generation import (
    AdapterCatalog,
    EngineProvider,
    browser_text,
    check_length,
    client_of,
    wait_for,
)
from adapter.ui.answer_stream import build_request, uses_picture
from adapter.ui.images import open_upload
from adapter.ui.status import MODEL, REDRAW_SECONDS
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_refusals


def add_api_endpoints(provider: EngineProvider, catalog: AdapterCatalog) -> None:
    """Adds the endpoints to the current Blocks."""
    default = Settings()

    def chat(  # the names and defaults of its arguments are those of gradio_client's calls
        message: str,
        request: gr.Request,
        image: dict[str, Any] | None = None,
        adapter: str | None = None,
        strength: float = default.strength,
        temperature: float = default.temperature,
        top_p: float = default.top_p,
        max_tokens: int = default.max_tokens,
        seed: int | None = None,
        mix: str | None = None,
        mix_strength: float = default.mix_strength,
        top_k: int = default.top_k,
        min_p: float = default.min_p,
        repetition_penalty: float = PAGE_PENALTY,
        stop: str | None = None,
        system: str | None = None,
    ) -> Iterator[str]:
        values = {name: value for name, value in locals().items() if name in PANEL}
        with errors_as_refusals():
            for name in ("adapter", "mix", "stop"):
                values[name] = value.strip() if isinstance(value := values[name] or "", str) else value
            if not isinstance(message, str) or not message.strip():
                raise BadInput(texts.EMPTY_MESSAGE)
            path = image.get("path") if isinstance(image, dict) else None
            if image is not None and not isinstance(path, str):
                raise BadInput(texts.WRONG_VALUE)
            check_length(message)
            for _ in wait_for(provider):
                pass
            settings = Settings.checked(values)
            if path and not uses_picture(catalog, settings):
                raise BadInput(texts.image_not_seen(settings.adapter or None))
            picture = open_upload(path) if path is not None else None
            asked = build_request((Message("user", message),), settings, picture, client_of(request))
            engine, text = provider.engine(), ""
            assert engine is not None
            with closing(engine.submit(asked)) as events:
                for arrived in events.event_lists(REDRAW_SECONDS):
                    if new := "".join(event.text for event in arrived):
                        text += new
                        yield text
            yield text

    def adapters() -> list[dict[str, Any]]:
        with errors_as_refusals():
            for _ in wait_for(provider):
                pass
        return [describe(name) for name in catalog.names()]

    def describe(name: str) -> dict[str, Any]:
        try:
            card = catalog.card(name)
        except AdapterError as error:
            return {"name": name, "error": html.escape(browser_text(error), quote=False)}
        return {"name": name, "description": card.description, "visual": card.is_visual, "bytes": card.bytes}

    gr.api(chat, api_name="chat", api_description=texts.API_CHAT, **MODEL)
    gr.api(adapters, api_name="adapters", api_description=texts.API_ADAPTERS)
