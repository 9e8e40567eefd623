"""What the page and OpenAI's API share on the way to an answer: where the engine and the adapters come from, who
asks, how long a message may be, and how an error is told to strangers.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from adapter.errors import AdapterError, BadInput, LoadError, with_detail
from adapter.serve.request import Client
from adapter.server import texts

if TYPE_CHECKING:
    from pathlib import Path

    from adapter.serve.store import AdapterCard, AdapterStore
    from adapter.server.loader import LoadStatus, ServingEngine

log = logging.getLogger(__name__)
MAX_CHARACTERS = 20_000  # of one message
STATUS_SECONDS = 0.25  # between the status lines of who waits for the model


class EngineProvider(Protocol):
    """Where the page and the API get their engine from: there is none until the model is loaded."""

    def engine(self) -> ServingEngine | None: ...

    def status(self) -> LoadStatus: ...

    def wait(self, seconds: float) -> None:
        """Return after so many seconds, or as soon as loading has ended."""


class AdapterCatalog(Protocol):
    """What the page and the API need of an adapter store; empty until the store is opened."""

    def names(self) -> list[str]: ...

    def card(self, name: str) -> AdapterCard: ...

    def card_text(self, name: str) -> str: ...

    def bound(self) -> AdapterStore: ...

    def folder(self, name: str) -> Path: ...


def wait_for(provider: EngineProvider) -> Iterator[str]:
    """Yields status lines until the engine is there. Raises LoadError if loading failed."""
    while provider.engine() is None:
        status = provider.status()
        if status.state == "failed":
            raise LoadError(texts.not_loaded(status.text))
        yield f"{status.text}."
        provider.wait(STATUS_SECONDS)


def check_length(text: str) -> None:
    """Raises BadInput for a message that is too long."""
    if len(text) > MAX_CHARACTERS:
        raise BadInput(texts.message_too_long(len(text), MAX_CHARACTERS))


def client_of(request: Any) -> Client:
    """Who sends a request of Starlette's or of Gradio's, which has the session of a page too.

    The address is the connection's, or what a proxy that uvicorn trusts says of it.
    """
    connection = getattr(request, "client", None)
    return Client(connection.host if connection else "", getattr(request, "session_hash", None) or "")


def browser_text(error: AdapterError) -> str:
    """The error's sentence, which a browser may show.

    The detail goes to the log, except that of what the visitor sent.
    """
    if error.detail and not isinstance(error, BadInput):
        log.warning("%s", with_detail(error))
    return str(error)


def public_text(error: AdapterError) -> str:
    """As `browser_text`, escaped as HTML."""
    return html.escape(browser_text(error), quote=False)
