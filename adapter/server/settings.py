"""From what a page or a program sends to the engine's requests, and from errors to words for a browser.

Knows the engine's API and the limits of one message; of Gradio only its error class.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import Settings
from adapter.server.generation import (
    MAX_CHARACTERS,
    REDRAW_SECONDS,
    EngineProvider,
    check_length,
    public_text,
    wait_for,
    without_folders,
)
from adapter.ui import conversation as talk
from adapter.ui.conversation import History
from adapter.ui.images import open_picture
from adapter.ui.texts import page as texts
from adapter.ui.theme import Cards

if TYPE_CHECKING:
    from adapter.serve.request import GenerationRequest

__all__ = [
    "MAX_CHARACTERS",
    "REDRAW_SECONDS",
    "EngineProvider",
    "check_length",
    "public_text",
    "wait_for",
    "without_folders",
]

log = logging.getLogger(__name__)


def sees(store: Cards, settings: Settings) -> bool:
    """Whether an adapter of the settings sees pictures. Raises LoadError."""
    return any(store.card(name).is_visual for name in settings.adapters)


def make_request(
    history: History, settings: Settings, adapter: str | None, picture: str | None, client: str = ""
) -> GenerationRequest:
    """The engine's request for a conversation. Raises BadInput."""
    from adapter.serve.request import Client, GenerationRequest
    from adapter.serve.sampling import SamplingParams

    if settings.mix and settings.mix == adapter:
        raise BadInput(texts.mixed_with_itself(adapter))
    sampling = SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_tokens,
        seed=settings.seed,
    )
    return GenerationRequest(
        messages=talk.to_messages(history),
        adapter=adapter,
        image=None if picture is None else open_picture(picture),
        strength=settings.strength,
        sampling=sampling,
        mix=((settings.mix, settings.mix_strength),) if settings.mix else (),
        mute_layers=settings.mute_layers,
        mute_heads=settings.mute_heads,
        client=Client(session=client),
    )


def wait_or_say(provider: EngineProvider) -> None:
    """Return when the engine is there; gr.Error if it will never be."""
    try:
        for _ in wait_for(provider):
            pass
    except AdapterError as error:
        raise gr.Error(public_text(error), print_exception=False) from None


def answer_once(
    provider: EngineProvider, store: Cards, message: str, picture: str | None, values: Mapping[str, Any]
) -> Iterator[str]:
    """One message without a conversation, for programs: the text so far, again and again.

    values: settings by name, not checked yet. Raises gr.Error with a sentence that says what to change.
    """
    try:
        if not message.strip():
            raise BadInput(texts.EMPTY_MESSAGE)
        check_length(message)
        for _ in wait_for(provider):
            pass
        settings = Settings.checked(values)
        settings = settings.replace(adapter=settings.adapter.strip(), mix=settings.mix.strip())
        adapter = settings.adapter or None
        if not sees(store, settings) and picture:
            raise BadInput(texts.sees_nothing(adapter))
        request = make_request(talk.user_turn(message), settings, adapter, picture)
        engine, text, drawn = provider.engine(), "", 0.0
        assert engine is not None
        with closing(engine.submit(request)) as events:
            for event in events:
                text += event.text
                if event.text and time.monotonic() - drawn >= REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield text
        yield text
    except AdapterError as error:
        raise gr.Error(public_text(error), print_exception=False) from None
    except Exception:
        log.exception("an API call failed")
        raise gr.Error(texts.FAILED, print_exception=False) from None
