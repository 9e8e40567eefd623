"""Loads libraries and model in the background while the page is already up."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from adapter.errors import AdapterError, Busy, with_detail

if TYPE_CHECKING:
    from adapter.base.llama import Base
    from adapter.serve.inspection import Inspection
    from adapter.serve.request import Answer, EngineStatistics, GenerationRequest
    from adapter.serve.store import AdapterCard, AdapterStore

log = logging.getLogger(__name__)
_IMPORT_LOCK = threading.Lock()


def import_libraries() -> None:
    """Import torch and transformers, which takes seconds. For code that may run before the model is loaded.

    One thread at a time: their modules import each other in circles, and of two threads that begin at once Python
    lets one see half a module. Raises ImportError.
    """
    with _IMPORT_LOCK:
        for name in ("adapter.serve.engine", "adapter.serve.store"):
            importlib.import_module(name)
        importlib.import_module("adapter.base.packed.integer_product").compile_products()


class ServingEngine(Protocol):
    """What the page and the API need of an engine, wherever it computes; adapter.serve.engine.Engine is one.

    failure: why it answers nothing any more, as a sentence; None while it does. replicas: the figures of each
    engine that computes for it, by a short label ("" for the one in this process); returns at once.
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


class ModelLoader:
    """Runs `load` and holds the engine that it returns; until then `status` says how far it is.

    load: is passed a function that reports progress; returns the engine.
    """

    def __init__(self, load: Callable[[Callable[[str], None]], ServingEngine]) -> None:
        self._load = load
        self._engine: ServingEngine | None = None
        self._began = time.monotonic()
        self._status = LoadStatus("loading", "Loading the model")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)

    def start(self) -> None:
        """Load in a background thread."""
        self._began = time.monotonic()
        self._thread.start()

    def load_here(self) -> None:
        """Load in the caller's thread."""
        self._began = time.monotonic()
        self._run()

    def close(self) -> bool:
        """Close the engine. Returns False if the model is still being loaded, which cannot be stopped."""
        if self._engine is not None:
            self._engine.close()
        return not self._thread.is_alive()

    def engine(self) -> ServingEngine | None:
        """The engine, or None while it is being loaded or if that failed (status says which)."""
        return self._engine

    def status(self) -> LoadStatus:
        if self._engine is not None and (failure := self._engine.failure) is not None:
            return LoadStatus("failed", failure)
        status = self._status
        if status.state == "ready" and self._engine is not None:
            return LoadStatus("ready", self._engine.describe())
        if status.state != "loading":
            return status
        return LoadStatus("loading", f"{status.text} ({time.monotonic() - self._began:.0f} s)")

    def wait(self, seconds: float) -> None:
        """Return after so many seconds, or as soon as loading has ended."""
        self._ended.wait(seconds)

    def _report(self, text: str) -> None:
        self._status = LoadStatus("loading", text)

    def _run(self) -> None:
        try:
            self._engine = self._load(self._report)
            description = self._engine.describe()
        except AdapterError as error:
            self._status = LoadStatus("failed", str(error))
            log.error("%s", with_detail(error))
        except Exception as error:
            self._status = LoadStatus(
                "failed",
                "The model could not be loaded; the server's log says why. Mend that and start again.",
            )
            log.exception("loading the model failed: %s", error)
        else:
            self._status = LoadStatus("ready", description)
            log.info("%s: ready after %.1f s", description, time.monotonic() - self._began)
        self._ended.set()


class LazyStore:
    """The adapter store of a page that is up before the libraries that read adapters; empty until `bind`."""

    def __init__(self) -> None:
        self._store: AdapterStore | None = None

    def bind(self, store: AdapterStore) -> None:
        self._store = store

    def bound(self) -> AdapterStore:
        """The store itself. Raises Busy while there is none."""
        if self._store is None:
            raise Busy("The adapters are still being looked up. Try again in a few seconds.")
        return self._store

    def names(self) -> list[str]:
        return [] if self._store is None else self._store.names()

    def card(self, name: str) -> AdapterCard:
        return self.bound().card(name)

    def card_text(self, name: str) -> str:
        return "" if self._store is None else self._store.card_text(name)

    def folder(self, name: str) -> Path:
        """Where adapter `name` lies."""
        return self.bound().folder(name)
