"""Fakes for tests of the page and the API: an echoing engine, its provider, an adapter catalog, a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adapter.errors import LoadError
from adapter.serve.request import GenerationEvent, GenerationStats
from adapter.server.loader import LoadStatus


@dataclass
class FakeCard:
    name: str
    description: str = "what it does"
    is_visual: bool = False
    bytes: int = 621_000


class FakeCatalog:
    """A catalog of a text adapter, "poet", and a visual one, "see"."""

    def __init__(self) -> None:
        self.cards = {"poet": FakeCard("poet"), "see": FakeCard("see", is_visual=True)}

    def names(self) -> list[str]:
        return sorted(self.cards)

    def card(self, name: str) -> FakeCard:
        if name not in self.cards:
            raise LoadError(f"There is no adapter '{name}'. Choose one of: {', '.join(self.cards)}.")
        return self.cards[name]

    def folder(self, name: str) -> Path:
        return Path("adapters") / name

    def card_text(self, name: str) -> str:
        return f"# {name}\n\n![x](http://far.away/x.png) <img src=x> as trained" if name == "poet" else ""


class EchoEngine:
    """Answers in three pieces, "you said: ", the last message and "!", and records the requests.

    error: raised in place of the second piece; queue_length: requests that are served before.
    """

    base = SimpleNamespace(
        fingerprint=SimpleNamespace(name="echo"), quantization="none", device=SimpleNamespace(type="cpu")
    )

    def __init__(self, error: Exception | None = None, queue_length: int = 0) -> None:
        self.requests: list[Any] = []
        self.closed = 0
        self.error = error
        self.queue_length = queue_length

    def submit(self, request: Any) -> EchoAnswer:
        self.requests.append(request)
        return EchoAnswer(self, request)


class EchoAnswer:
    def __init__(self, engine: EchoEngine, request: Any) -> None:
        self.engine = engine
        self.cancelled = False
        self.events = self._generate(request.messages[-1].text)

    def _generate(self, message: str) -> Iterator[GenerationEvent]:
        for position in reversed(range(self.engine.queue_length)):
            yield GenerationEvent(position=position)
        for index, text in enumerate(["you said: ", message, "!"]):
            if self.engine.error and index == 1:
                raise self.engine.error
            stats = GenerationStats(5, index + 1, 0.0, 0.0, 0.1)
            if self.cancelled:
                yield GenerationEvent(finish_reason="cancelled", stats=stats)
                return
            last = index == 2
            yield GenerationEvent(text, 7, -0.1, "stop" if last else None, stats if last else None)

    def __iter__(self) -> Iterator[GenerationEvent]:
        return self.events

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.engine.closed += 1


class ReadyProvider:
    """A provider whose engine is loaded."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def engine(self) -> Any:
        return self._engine

    def status(self) -> LoadStatus:
        return LoadStatus("ready", "ready")


def event_request(session: str = "me", address: str = "192.0.2.1") -> Any:
    """The gr.Request of an event."""
    return SimpleNamespace(session_hash=session, client=SimpleNamespace(host=address))
