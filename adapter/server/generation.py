"""The way to an answer, for the page and for OpenAI's API: libraries, adapters and the engine, which are loaded in
the background; who asks; how long a message may be; how an error is told to strangers.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from starlette.datastructures import Headers
from starlette.types import Scope

from adapter.errors import AdapterError, BadInput, Busy, LoadError, with_detail
from adapter.serve.request import Answer, Client, EngineStatistics, GenerationRequest

if TYPE_CHECKING:
    from adapter.base.llama import Base
    from adapter.serve.inspection import Inspection
    from adapter.serve.store import AdapterCard, AdapterStore

log = logging.getLogger(__name__)
_IMPORT_LOCK = threading.Lock()
FAILED = "Something went wrong on the server; its log has the details. Try again."
DEFAULT_QUESTION = "What is in this picture?"  # of a picture that comes without a word
MAX_CHARACTERS = 20_000  # of one message
STATUS_SECONDS = 0.25  # between the status lines of who waits for the model
# Neither host.docker.internal nor 0.0.0.0: browsers do not say Sec-Fetch-Site to them, so a GET that a page
# elsewhere sends there would look like a program's.
_LOOPBACK = re.compile(r"(localhost\.?|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
# What proxies add. nginx adds none by itself and replaces Host by its own, but spoke HTTP/1.0 before 1.29.7.
_OF_PROXIES = ("forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip")


def import_libraries() -> None:
    """Import torch and transformers, which takes seconds. One thread at a time: their modules import each other
    in circles, and a second thread would see half a module. Raises ImportError.
    """
    with _IMPORT_LOCK:
        for name in ("adapter.serve.engine", "adapter.serve.store"):
            importlib.import_module(name)
        with contextlib.suppress(Exception):  # load_base says why, and takes torch's products
            importlib.import_module("adapter.base.packed.integer_product").compile_products()


class ServingEngine(Protocol):
    """What the page and the API need of an engine. failure: why it answers nothing any more, or None. replicas:
    the figures of each engine that computes for it, by a label ("" for the one in this process); returns at once.
    """

    base: Base

    @property
    def failure(self) -> str | None: ...

    def describe(self) -> str:
        """One line for people: the base, and what runs where."""

    def submit(self, request: GenerationRequest) -> Answer: ...

    def inspect(self, request: GenerationRequest, answer_ids: Sequence[int]) -> Inspection: ...

    def replicas(self) -> Mapping[str, EngineStatistics]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class LoadStatus:
    """How far loading is, or that the engine has failed; text is one line for people."""

    state: Literal["loading", "ready", "failed"]
    text: str


class EngineProvider:
    """Runs `load`, which may report progress, and holds the engine that it returns. status: how far loading is."""

    def __init__(self, load: Callable[[Callable[[str], None]], ServingEngine]) -> None:
        self._load = load
        self._engine: ServingEngine | None = None
        self._began = time.monotonic()
        self._status = LoadStatus("loading", "Loading the model")
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self.load_here, name="model-loader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def load_here(self) -> None:
        """Load in the caller's thread."""
        self._began = time.monotonic()
        try:
            engine = self._load(self._report)
            log.info("%s: ready after %.1f s", engine.describe(), time.monotonic() - self._began)
            self._engine = engine
        except AdapterError as error:
            self._status = LoadStatus("failed", str(error))
            log.error("%s", with_detail(error))
        except Exception as error:
            text = "The model could not be loaded; the server's log says why. Mend that and start again."
            self._status = LoadStatus("failed", text)
            log.exception("loading the model failed: %s", error)
        self.ended.set()

    def close(self) -> bool:
        """Close the engine. Returns False if the model is still being loaded, which cannot be stopped."""
        if self._engine is not None:
            self._engine.close()
        return not self._thread.is_alive()

    def engine(self) -> ServingEngine | None:
        """The engine, or None while it is being loaded or if that failed (status says which)."""
        return self._engine

    def status(self) -> LoadStatus:
        if self._engine is not None:
            failure = self._engine.failure
            return LoadStatus("failed", failure) if failure else LoadStatus("ready", self._engine.describe())
        if self._status.state != "loading":
            return self._status
        return LoadStatus("loading", f"{self._status.text} ({time.monotonic() - self._began:.0f} s)")

    def _report(self, text: str) -> None:
        self._status = LoadStatus("loading", text)


class AdapterCatalog:
    """The adapter store of a page that is up before the libraries that read adapters; empty until `bind`.
    shipped: whether the page shows the shipped adapters, which are of the embedded base.
    """

    def __init__(self, shipped: bool = True) -> None:
        self.shipped = shipped
        self._store: AdapterStore | None = None

    def bind(self, store: AdapterStore) -> None:
        self._store = store

    def bound(self) -> AdapterStore:
        """The store itself. Raises Busy while there is none."""
        if self._store is None:
            raise Busy("The adapters are still being looked up. Try again in a few seconds.")
        return self._store

    def names(self) -> list[str]:
        """The names of the adapters that the page shows."""
        return [] if self._store is None else self._store.names(self.shipped)

    def taken(self) -> list[str]:
        """Names of adapters, also of those that the page does not show: no new one may have them."""
        return [] if self._store is None else self._store.names()

    def card(self, name: str) -> AdapterCard:
        return self.bound().card(name)

    def card_text(self, name: str) -> str:
        return "" if self._store is None else self._store.card_text(name)


def wait_for(provider: EngineProvider) -> Iterator[str]:
    """Yields status lines until the engine is there. Raises LoadError if loading failed."""
    while provider.engine() is None:
        status = provider.status()
        if status.state == "failed":
            raise LoadError(f"The model is not loaded. {status.text}")
        yield f"{status.text}."
        provider.ended.wait(STATUS_SECONDS)


def check_length(text: str) -> None:
    """Raises BadInput for a message that is too long."""
    if len(text) > MAX_CHARACTERS:
        said = f"This message has {len(text):,} characters; at most {MAX_CHARACTERS:,} fit."
        raise BadInput(f"{said} Shorten it, or send it in parts.")


def client_of(request: Any) -> Client:
    """Who sends a request of Starlette's or of Gradio's, which has a page's session too. The address is the
    connection's, or what a proxy that uvicorn trusts says of it.
    """
    connection = getattr(request, "client", None)
    return Client(connection.host if connection else "", getattr(request, "session_hash", None) or "")


def is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a request's headers are those of a direct one from this machine: none of a proxy, and only loopback
    names in Host and Origin. A foreign site may resolve its own name to this machine (DNS rebinding).
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
    """The error's sentence for a browser. The detail goes to the log, except that of what the visitor sent."""
    if error.detail and not isinstance(error, BadInput):
        log.warning("%s", with_detail(error))
    return str(error)
