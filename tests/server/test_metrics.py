"""/healthz, /readyz and /metrics: what is counted, what is never told, and who may read it."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from adapter.base.template import Message
from adapter.errors import BadInput, LoadError
from adapter.serve.engine import Engine
from adapter.serve.request import Answer, Client, GenerationRequest, SamplingParams
from adapter.serve.store import AdapterStore
from adapter.server import openai_api
from adapter.server.generation import EngineProvider
from adapter.server.limits import Limits
from adapter.server.metrics import CountedEngine, Metrics, routes
from adapter.server.request_guard import RequestGuard
from tests.app_process import PATIENCE, wait_until
from tests.fake_engine import FakeCatalog, ReadyProvider
from tests.server.asgi import LOCAL, NAMED, STRANGER, limit, send
from tests.tiny_models import save_one_and_two

HELLO = (Message("user", "hello there"),)
GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
KEY = "a key"
FROM_ELSEWHERE = [
    {"address": STRANGER, "base": NAMED},
    {"base": NAMED},  # a proxy of this machine that keeps Host, or a name that was rebound
    {"headers": {"X-Forwarded-For": STRANGER}},
]
Figures = dict[tuple[str, ...], float]


class Server:
    """The tiny engine as app.py serves it: limited, and counted."""

    def __init__(self, engine: Engine, store: AdapterStore) -> None:
        self.metrics = Metrics(store)
        self.engine = CountedEngine(engine, Limits(public=True), self.metrics)

    def ask(self, **request: Any) -> Answer:
        return self.engine.submit(GenerationRequest(**{"messages": HELLO, "sampling": GREEDY, **request}))

    def figures(self) -> Figures:
        """All samples by their name and the values of their labels, which are in alphabetical order."""
        text = self.metrics.render(ReadyProvider(self.engine)).decode()
        return {
            (sample.name.removeprefix("llama_adapter_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    def endings(self) -> Figures:
        return {key[1:]: value for key, value in self.figures().items() if key[0] == "requests_total"}


@pytest.fixture
def server(tmp_path: Path, tiny_base: Any, tiny_fingerprint: Any) -> Iterator[Server]:
    save_one_and_two(tiny_fingerprint, tmp_path)
    store = AdapterStore(tmp_path)
    with closing(Engine(tiny_base, store)) as engine:
        yield Server(engine, store)


def test_answers_are_counted_by_adapter_and_ending(server):
    whole = list(server.ask())
    text = "".join(event.text for event in whole)
    stats = [whole[-1].stats, list(server.ask(adapter="one"))[-1].stats]
    list(server.ask(stop=(text[4:7],)))
    list(server.ask(adapter="one", mix=(("two", 0.5),)))
    list(server.ask(adapter="two", max_seconds=1e-9))
    with pytest.raises(BadInput):
        server.ask(messages=(Message("user", "x" * 1000),))
    with pytest.raises(LoadError):
        server.ask(adapter="nobody")
    assert server.endings() == {
        ("base", "length"): 1,
        ("one", "length"): 1,
        ("base", "stop"): 1,
        ("mix", "length"): 1,
        ("two", "time"): 1,
        ("base", "refused"): 1,
        ("other", "error"): 1,
    }
    found = server.figures()
    assert found["generated_tokens_total", "one"] == stats[1].new_tokens == 20
    assert found["prompt_tokens_total", "one"] == stats[1].prompt_tokens
    assert found["prompt_tokens_total", "base"] == 2 * stats[0].prompt_tokens
    assert 0 < found["cached_prompt_tokens_total", "base"] < stats[0].prompt_tokens  # of the second answer
    assert found["time_to_first_token_seconds_count",] == 4 + bool(found.get(("generated_tokens_total", "two")))
    assert found["time_to_first_token_seconds_sum",] >= sum(s.queue_s + s.prefill_s for s in stats)


def test_nothing_of_a_request_is_told(server):
    secret = "xyzzy"
    client = Client("198.51.100.77", f"session {secret}")
    list(server.ask(messages=(Message("user", f"my {secret}"),), client=client, stop=(f"stop {secret}",)))
    hostile = f'{secret}"}} 1\nllama_adapter_ready 7\n'
    for request in ({"adapter": hostile}, {"adapter": "one", "mix": ((hostile, 1.0),)}):
        with pytest.raises(LoadError):
            server.ask(**request)
    text = server.metrics.render(ReadyProvider(server.engine)).decode()
    assert secret not in text and "198.51.100" not in text and "llama_adapter_ready 7" not in text
    assert ("other", "error") in server.endings() and ("mix", "error") in server.endings()


class Served:
    """The three routes behind the guard, as app.py has them."""

    def __init__(self, public: bool, auth: str | None = None, provider: Any = None) -> None:
        provider = provider or ReadyProvider(SimpleNamespace(replicas=dict))
        page = Route("/config", PlainTextResponse("page"))
        guard = Middleware(RequestGuard, limits=Limits(public), uploads=Path("nowhere"))
        own = routes(provider, Metrics(FakeCatalog()), auth)
        self.application = Starlette(routes=[*own, page], middleware=[guard])

    def ask(self, path: str, headers: Any = None, base: str = LOCAL, address: str = "127.0.0.1") -> httpx.Response:
        return send(self.application, ("GET", path, {"headers": headers}), base=base, address=address)[0]


@pytest.mark.parametrize("request_", FROM_ELSEWHERE)
@pytest.mark.parametrize("key", [None, KEY])
def test_strangers_read_no_figures(request_, key, monkeypatch):
    monkeypatch.setenv(openai_api.KEY_VARIABLE, key or "")
    served = Served(public=True)
    refused = served.ask("/metrics", **request_)
    assert refused.status_code == 403 and "key of /v1" in refused.text
    for path in ("/healthz", "/readyz"):
        assert served.ask(path, **request_).status_code == 200
    headers = {**request_.get("headers", {}), "Authorization": f"Bearer {KEY}"}
    assert served.ask("/metrics", **{**request_, "headers": headers}).status_code == (200 if key else 403)


def test_guesses_are_limited_and_probes_are_not(monkeypatch):
    """The page's password is a key, too. Figures take no place of /v1's."""
    limit(monkeypatch, login=3, request=2, session=2, call=0)
    served, sent = Served(public=True, auth="me:secret"), {"address": STRANGER, "base": NAMED}
    right, guess = ({"Authorization": f"Bearer me:{word}"} for word in ("secret", "guess"))
    assert served.ask("/metrics", right, **sent).status_code == 200
    assert served.ask("/metrics", **sent).status_code == 403
    assert served.ask("/v1/models", **sent).status_code == 429
    assert [served.ask("/metrics", guess, **sent).status_code for _ in range(5)] == [401, 401, 401, 429, 429]
    assert served.ask("/metrics", right, **sent).status_code == 429
    assert [served.ask("/config", **sent).status_code for _ in range(3)] == [200, 200, 429]
    assert [served.ask("/healthz", **sent).status_code for _ in range(3)] == [200, 200, 200]


def test_readiness_is_that_of_the_model():
    engine = SimpleNamespace(failure=None, replicas=dict, describe=lambda: "tiny")
    proceed = threading.Event()

    def load(report: Any) -> Any:
        report("Loading tiny")
        proceed.wait()
        return engine

    loader = EngineProvider(load)
    served = Served(public=True, provider=loader)
    loader.start()
    wait_until(lambda: "tiny" in loader.status().text)
    waits = served.ask("/readyz", address=STRANGER)
    assert waits.status_code == 503 and waits.json()["state"] == "loading"
    assert waits.json()["reason"].startswith("Loading tiny (")
    assert served.ask("/healthz").json() == {"state": "alive"}
    proceed.set()
    assert loader.ended.wait(PATIENCE)
    assert served.ask("/readyz").json() == {"state": "ready"}
    engine.failure = "It has failed."
    broken = served.ask("/readyz")
    assert broken.status_code == 503 and broken.json() == {"state": "failed", "reason": "It has failed."}
    assert served.ask("/healthz").status_code == 200 and "llama_adapter_ready 0.0" in served.ask("/metrics").text
