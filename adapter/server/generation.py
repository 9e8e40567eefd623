"""What the page and OpenAI's API share on the way to an answer: where the engine and the adapters come from, who
asks, how long a message may be, and how an error is told to strangers.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import Headers
from starlette.types import Scope

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
# Neither host.docker.internal nor 0.0.0.0: browsers do not say Sec-Fetch-Site to them, so a GET that a page
# elsewhere sends there would look like a program's.
_LOOPBACK = re.compile(r"(localhost\.?|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
# What proxies add. nginx adds none of them by itself and replaces Host by its own, but speaks HTTP/1.0.
_OF_PROXIES = ("forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip")


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


def is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a program on this machine asks, and no proxy for another one.

    A page elsewhere may have its own name resolved to this machine: its requests then name it as Host.
    """
    if scope.get("http_version") == "1.0":
        return False
    if any(name in _OF_PROXIES or name.startswith("x-forwarded-") for name in headers):
        return False
    named = headers.getlist("host") or [""]
    # The origin is what the browser's own address line shows, whatever a proxy has made of Host.
    named += [origin.partition("://")[2] for origin in headers.getlist("origin")]
    return all(_LOOPBACK.fullmatch(name) for name in named)


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
