"""The endpoints for programs that use gradio_client, /chat and /adapters.

Names, descriptions and labels are the manual that gradio_client prints.
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
        image: str | None = None,
        adapter: str | None = None,
        strength: float = default.strength,
        temperature: float = default.temperature,
        top_p: float = default.top_p,
        max_tokens: float = default.max_tokens,
        seed: float | None = None,
        mix: str | None = None,
        mix_strength: float = default.mix_strength,
        top_k: float = default.top_k,
        min_p: float = default.min_p,
        repetition_penalty: float = PAGE_PENALTY,
        stop: str | None = None,
        system: str | None = None,
    ) -> Iterator[str]:
        values = {
            "adapter": (adapter or "").strip(),
            "strength": strength,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
            "mix": (mix or "").strip(),
            "mix_strength": mix_strength,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "stop": stop or "",
            "system": system,
        }
        yield from stream_answer(provider, catalog, message, image, values, request)

    def adapters() -> list[dict[str, Any]]:
        try:
            for _ in wait_for(provider):
                pass
        except AdapterError as error:
            raise refusal(error) from None
        return [_describe(catalog, name) for name in catalog.names()]

    with gr.Column(visible=False):
        inputs = [
            gr.Textbox(label=texts.API_MESSAGE),
            gr.File(label=texts.API_IMAGE, type="filepath"),
            *[_settings_input(name) for name in PANEL],
        ]
        answer, listing = gr.Textbox(label=texts.API_ANSWER), gr.JSON(label=texts.API_LIST)
        gr.Button("chat").click(chat, inputs, answer, api_name="chat", api_description=texts.API_CHAT, **MODEL)
        gr.Button("adapters").click(
            adapters, None, listing, api_name="adapters", api_description=texts.API_ADAPTERS
        )


def _describe(catalog: AdapterCatalog, name: str) -> dict[str, Any]:
    try:
        card = catalog.card(name)
    except AdapterError as error:
        return {"name": name, "error": public_text(error)}
    return {"name": name, "description": card.description, "visual": card.is_visual, "bytes": card.bytes}


def _settings_input(name: str) -> Any:
    """The component that documents a setting of /chat."""
    field = Settings.model_fields[name]
    if name in ("adapter", "mix", "stop", "system"):
        return gr.Textbox(label=field.description)
    precision = 0 if name in ("max_tokens", "seed", "top_k") else None
    default = PAGE_PENALTY if name == "repetition_penalty" else field.default
    return gr.Number(default, label=field.description, precision=precision)


def stream_answer(
    provider: EngineProvider,
    catalog: AdapterCatalog,
    message: str | None,
    picture: str | None,
    values: Mapping[str, Any],
    request: gr.Request,
) -> Iterator[str]:
    """Answers one message without a conversation; each item is the whole text so far.

    values: unchecked settings by name. Raises gr.Error with a sentence that says what to change.
    """
    try:
        if not message or not message.strip():
            raise BadInput(texts.EMPTY_MESSAGE)
        check_length(message)
        for _ in wait_for(provider):
            pass
        settings = Settings.checked(values)
        if not uses_picture(catalog, settings) and picture:
            raise BadInput(texts.image_not_seen(settings.adapter or None))
        image = None if picture is None else open_upload(picture)
        generation = build_request((Message("user", message),), settings, image, client_of(request))
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
