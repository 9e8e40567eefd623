"""Fakes for tests of the page and the API: an echoing engine, its provider, an adapter catalog, a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from adapter.errors import AdapterError, LoadError
from adapter.method.checkpoint import read_config
from adapter.serve.request import Answer, EngineStatistics, FinishReason, GenerationEvent, GenerationStats, Mailbox
from adapter.serve.store import SHIPPED
from adapter.server.generation import LoadStatus


class FakeFingerprint(SimpleNamespace):
    def differences(self, base: Any) -> list[str]:
        return []


@dataclass
class FakeCard:
    name: str
    description: str = "what it does"
    bytes: int = 621_000
    own: bool = False
    config: Any = field(
        default_factory=lambda: SimpleNamespace(base=FakeFingerprint(name="echo"), is_visual=False, vision=None)
    )


class FakeCatalog:
    """A catalog of a text adapter, "poet", and a visual one, "see"."""

    shipped = True

    def __init__(self) -> None:
        self.cards = {name: FakeCard(name) for name in ("poet", "see")}
        see = self.cards["see"].config
        see.is_visual, see.vision = True, read_config(SHIPPED / "see").vision

    def names(self) -> list[str]:
        return sorted(self.cards)

    taken = names

    def card(self, name: str) -> FakeCard:
        if name not in self.cards:
            raise LoadError(f"There is no adapter '{name}'. Choose one of: {', '.join(self.cards)}.")
        return self.cards[name]

    def card_text(self, name: str) -> str:
        return f"# {name}\n\n![x](http://far.away/x.png) <img src=x> as trained" if name == "poet" else ""


class EchoEngine:
    """Answers in three pieces, "you said: ", the last message and "!", and records the requests.

    error: raised in place of the second piece; ending: of the answers.
    """

    base = SimpleNamespace(
        fingerprint=SimpleNamespace(name="echo", vocab_size=100),
        quantization="none",
        device=SimpleNamespace(type="cpu"),
        context_length=100,
    )

    def __init__(self, error: Exception | None = None, ending: FinishReason = "stop") -> None:
        self.requests: list[Any] = []
        self.closed = 0
        self.error = error
        self.ending = ending

    def replicas(self) -> dict[str, Any]:
        return {"": EngineStatistics(cache_capacity=90)}  # less than the base's context

    def submit(self, request: Any) -> EchoAnswer:
        self.requests.append(request)
        return EchoAnswer(self, request)


class EchoAnswer(Answer):
    def __init__(self, engine: EchoEngine, request: Any) -> None:
        super().__init__(EchoMailbox(engine, request.messages[-1].text), lambda: None)
        self.engine = engine

    def cancel(self) -> None:
        self.mailbox.cancelled = True

    def close(self) -> None:
        self.engine.closed += 1


class EchoMailbox(Mailbox):
    """The first piece comes alone and the rest together, when asked for."""

    def __init__(self, engine: EchoEngine, message: str) -> None:
        super().__init__()
        self.cancelled, self.begun, self.last = False, False, AdapterError("none")
        self.events = self._generate(engine, message)

    def _generate(self, engine: EchoEngine, message: str) -> Iterator[GenerationEvent]:
        for index, text in enumerate(["you said: ", message, "!"]):
            if engine.error and index == 1:
                raise engine.error
            stats = GenerationStats(5, index + 1, 0.0, 0.0, 0.1)
            if self.cancelled:
                yield GenerationEvent(finish_reason="cancelled", stats=stats)
                return
            last = index == 2
            yield GenerationEvent(text, 7, -0.1, engine.ending if last else None, stats if last else None)

    def empty(self) -> bool:
        return False

    def take(self) -> list[GenerationEvent | AdapterError]:
        try:
            event = next(self.events)
            first = not event.is_output or not self.begun
            self.begun = event.is_output
            return [event] if first else [event, *self.events]
        except AdapterError as error:
            return [error]


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
