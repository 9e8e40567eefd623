"""What the page and OpenAI's API share on the way to an answer: where the engine and the adapters come from, who
asks, how long a message may be, and how an error is told to strangers. Knows no Gradio.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from adapter.errors import AdapterError, BadInput, LoadError, with_detail
from adapter.serve.client import Client
from adapter.server import texts

if TYPE_CHECKING:
    from pathlib import Path

    from adapter.serve.inspection import Inspection
    from adapter.serve.request import Answer, GenerationRequest
    from adapter.serve.statistics import EngineStatistics
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


class WrappedEngine:
    """An engine before another one, to which it passes everything on. For classes that do more than that."""

    def __init__(self, engine: ServingEngine) -> None:
        self._engine = engine
        self.base = engine.base

    @property
    def failure(self) -> str | None:
        return self._engine.failure

    def describe(self) -> str:
        return self._engine.describe()

    def submit(self, request: GenerationRequest) -> Answer:
        return self._engine.submit(request)

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection:
        return self._engine.inspect(request, answer_ids)

    def replicas(self) -> Mapping[str, EngineStatistics]:
        return self._engine.replicas()

    def close(self) -> None:
        self._engine.close()


WrapsEngine = TypeVar("WrapsEngine", bound=WrappedEngine)


class WrappedProvider(Generic[WrapsEngine]):
    """A provider of another one's engine, wrapped. wrap: puts an engine before it."""

    def __init__(self, provider: EngineProvider, wrap: Callable[[ServingEngine], WrapsEngine]) -> None:
        self._provider, self._wrap = provider, wrap

    def engine(self) -> WrapsEngine | None:
        engine = self._provider.engine()
        return None if engine is None else self._wrap(engine)

    def status(self) -> LoadStatus:
        return self._provider.status()

    def wait(self, seconds: float) -> None:
        self._provider.wait(seconds)


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
