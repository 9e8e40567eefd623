"""The endpoints for programs that use gradio_client, /chat and /adapters.

Names, types and descriptions are the manual that gradio_client prints.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import gradio as gr

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import PAGE_PENALTY, PANEL, Settings
from adapter.server.generation import (
    AdapterCatalog,
    EngineProvider,
    check_length,
    client_of,
    public_text,
    wait_for,
)
from adapter.ui.answer_stream import build_request, uses_picture
from adapter.ui.images import open_upload
from adapter.ui.status import MODEL, REDRAW_SECONDS
from adapter.ui.texts import page as texts
from adapter.ui.toasts import refusal

log = logging.getLogger(__name__)


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
        for name in ("adapter", "mix", "stop"):
            values[name] = value.strip() if isinstance(value := values[name] or "", str) else value
        yield from stream_answer(provider, catalog, message, image, values, request)

    def adapters() -> list[dict[str, Any]]:
        try:
            for _ in wait_for(provider):
                pass
        except AdapterError as error:
            raise refusal(error) from None
        return [_describe(catalog, name) for name in catalog.names()]

    gr.api(chat, api_name="chat", api_description=texts.API_CHAT, **MODEL)
    gr.api(adapters, api_name="adapters", api_description=texts.API_ADAPTERS)


def _describe(catalog: AdapterCatalog, name: str) -> dict[str, Any]:
    try:
        card = catalog.card(name)
    except AdapterError as error:
        return {"name": name, "error": public_text(error)}
    return {"name": name, "description": card.description, "visual": card.is_visual, "bytes": card.bytes}


def stream_answer(
    provider: EngineProvider,
    catalog: AdapterCatalog,
    message: object,
    image: object,
    values: Mapping[str, Any],
    request: gr.Request,
) -> Iterator[str]:
    """Answers one message without a conversation; each item is the whole text so far.

    image: as a client uploads one; values: settings by name. None of these is checked. Raises gr.Error with a
    sentence that says what to change.
    """
    try:
        if not isinstance(message, str) or not message.strip():
            raise BadInput(texts.EMPTY_MESSAGE)
        path = image.get("path") if isinstance(image, dict) else image
        if not isinstance(path, str | None) or (image is not None and path is image):
            raise BadInput(texts.WRONG_VALUE)
        check_length(message)
        for _ in wait_for(provider):
            pass
        settings = Settings.checked(values)
        if not uses_picture(catalog, settings) and path:
            raise BadInput(texts.image_not_seen(settings.adapter or None))
        picture = None if path is None else open_upload(path)
        generation = build_request((Message("user", message),), settings, picture, client_of(request))
        engine, text = provider.engine(), ""
        assert engine is not None
        with closing(engine.submit(generation)) as events:
            for arrived in events.event_lists(REDRAW_SECONDS):
                if new := "".join(event.text for event in arrived):
                    text += new
                    yield text
        yield text
    except AdapterError as error:
        raise refusal(error) from None
    except Exception:
        log.exception("an API call failed")
        raise refusal(texts.FAILED) from None
