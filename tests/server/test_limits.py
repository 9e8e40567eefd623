"""Limits by address: rates and places, the engine that counts, and what the guard before the page lets in."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from adapter.errors import BadInput
from adapter.serve.request import Answer, Client, GenerationEvent, Mailbox
from adapter.server import limits, request_body
from adapter.server.limits import Limits, RateLimited, TokenBuckets
from adapter.server.metrics import CountedEngine
from adapter.server.openai_api import error_response
from adapter.server.openai_schema import ApiError
from adapter.server.request_guard import MESSAGE_BYTES, RequestGuard
from tests.app_process import PATIENCE
from tests.server.asgi import NAMED, SOMEBODY_ELSE, STRANGER, asgi_client, limit, send


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# Rates, places and addresses.


@given(st.integers(1, 5), st.lists(st.tuples(st.floats(0, 20), st.sampled_from("ab")), max_size=60))
@settings(deadline=None)
def test_no_window_exceeds_bucket_and_refill(size, asked):
    clock = Clock()
    buckets = TokenBuckets(size, 10, clock)
    given_at: dict[str, list[float]] = {"a": [], "b": []}
    for pause, key in asked:
        clock.now += pause
        if wait := buckets.take(key):
            assert wait <= 10 / size + 1e-6
            clock.now += wait + 1e-6
            assert not buckets.take(key), "it was enough to wait so long"
        given_at[key].append(clock.now)
    for times in given_at.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                assert last - first + 1 <= size + (times[last] - times[first]) * size / 10 + 1e-6


@pytest.mark.parametrize(
    ("public", "address", "key"),
    [
        (False, "127.0.0.1", None),
        (True, "127.0.0.1", "127.0.0.1"),  # a tunnel's visitors
        (True, f"::ffff:{STRANGER}", STRANGER),
        (True, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
    ],
)
def test_key_of_an_address(public, address, key):
    assert Limits(public).key(address) == key


# The engine.


class Engine:
    """Keeps no answer."""

    error: Exception | None = None

    def submit(self, request: Any) -> Answer:
        if self.error:
            raise self.error
        return Answer(Mailbox(), lambda: None)


def asked_by(address: str) -> Any:
    return SimpleNamespace(answers=1, client=Client(address))


def limited(clock: Clock) -> tuple[Engine, Any]:
    engine = Engine()
    metrics: Any = SimpleNamespace(label=lambda request: "", ended=lambda label, last: None)
    return engine, CountedEngine(engine, Limits(True, clock), metrics)


def test_answer_holds_its_slot_until_it_has_ended():
    clock = Clock()
    engine, counted = limited(clock)
    held = [counted.submit(asked_by(STRANGER)) for _ in range(limits.ANSWERS_AT_ONCE)]
    clock.now += 60
    with pytest.raises(RateLimited, match="for your address already"):
        counted.submit(asked_by(STRANGER))
    held.pop(0).mailbox.put(GenerationEvent(finish_reason="cancelled"))
    held.append(counted.submit(asked_by(STRANGER)))
    with pytest.raises(RateLimited):
        counted.submit(asked_by(STRANGER))
    for answer in held:
        answer.mailbox.put(BadInput("It failed."))
    engine.error = BadInput("no")
    for _ in range(3):  # a request that the engine refuses holds none
        with pytest.raises(BadInput):
            counted.submit(asked_by(STRANGER))
    slots = counted._limits._places["answer"]
    slots.acquire("nobody")
    assert slots._taken == {"nobody": 1}


def test_answers_of_one_request_are_counted_at_once():
    clock = Clock()
    limited = Limits(True, clock)
    for _ in range(2):
        limited.hold("answer", STRANGER, limits.ANSWERS_AT_ONCE)()
    with pytest.raises(RateLimited) as refused:
        for _ in range(limits.ANSWERS_PER_MINUTE):
            limited.hold("answer", STRANGER, limits.ANSWERS_AT_ONCE)()
    limited.hold("answer", STRANGER, 0)()
    clock.now += refused.value.retry_after
    limited.hold("answer", STRANGER, limits.ANSWERS_AT_ONCE)()


def test_one_address_leaves_inspections_to_others():
    """Eight wait or run in all."""
    engine, counted = limited(Clock())
    most, depth = limits.PLACES["inspection"][0], []

    def inspect(request: Any, answer_ids: Any) -> str:
        depth.append(request)
        if len(depth) <= most:  # while this one runs
            return counted.inspect(asked_by(STRANGER if len(depth) < most else SOMEBODY_ELSE), ())
        with pytest.raises(RateLimited, match="looked into"):
            counted.inspect(asked_by(STRANGER), ())
        return "inspected"

    engine.inspect = inspect
    for _ in range(2):  # their places are free again
        depth.clear()
        assert counted.inspect(asked_by(STRANGER), ()) == "inspected"


UPLOAD, JOIN, V1 = "/gradio_api/upload", "/gradio_api/queue/join", "/v1/chat/completions"


def page_behind_guard(folder: Path, hold: asyncio.Event | None = None, most: int = 1000) -> Starlette:
    async def page(request: Request) -> PlainTextResponse:
        if hold is not None:
            await hold.wait()
        wrong, body = request.headers.get("authorization", "right") != "right", await request.body()
        return PlainTextResponse(
            f"the page of {len(body)}".ljust(1000 * ("assets" in request.url.path)),
            401 if wrong else 400 if body == b"?" else 200,
        )

    return Starlette(
        routes=[Route("/{path:path}", page, methods=["GET", "POST"])],
        exception_handlers={ApiError: lambda _, error: error_response(error)},  # as /v1 has
        middleware=[Middleware(RequestGuard, limits=Limits(True), uploads=folder, most=most)],
    )


def sent(page: Starlette, *requests: tuple[str, str, dict[str, Any]], address: str = STRANGER) -> list[Any]:
    return send(page, *requests, address=address, base=NAMED)


async def pieces(count: int = 1, size: int = 1) -> Any:
    for _ in range(count):
        yield b"x" * size


@pytest.mark.parametrize(
    ("limited", "request_", "said"),
    [
        ({}, ("POST", UPLOAD, {"content": b"x"}), "60 uploads an hour"),
        ({"megabyte": 3}, ("POST", UPLOAD, {"content": b"x"}), "3 MB of uploads a day"),
        ({"request": 3}, ("POST", JOIN, {"content": b"{}"}), "3 requests a minute"),
        ({"program": 3}, ("GET", "/v1/models", {}), "3 requests a minute"),
        ({"session": 3}, ("GET", "/config", {}), "3 new pages a minute"),
        ({"session": 3}, ("GET", "/gradio_api/heartbeat/x", {}), "3 new pages a minute"),
        ({"kilobyte": 3}, ("GET", "/assets/a.js", {}), "3 kB of files a minute"),
        ({"answer": 3}, ("POST", V1, {"content": b"?"}), "3 answers a minute"),  # 400: a damaged picture
    ],
)
def test_requests_are_limited_by_address(tmp_path, monkeypatch, limited, request_, said):
    limit(monkeypatch, **limited)
    page, most = page_behind_guard(tmp_path), int(said.split()[0])
    *passed, last = sent(page, *[request_] * (most + 1))
    assert 429 not in {response.status_code for response in passed}
    assert last.status_code == 429 and said in last.text and int(last.headers["retry-after"]) > 0
    told = last.json()["detail"] if request_[1] == JOIN else last.text
    assert ("error" in last.json()) if request_[1].startswith("/v1/") else told.startswith(said)
    assert sent(page, request_, address=SOMEBODY_ELSE)[0].status_code != 429


def test_wrong_keys_count_as_logins(tmp_path, monkeypatch):
    monkeypatch.setitem(limits.RATES, "login", (20, 86_400, "tries a minute"))  # none comes back on a slow machine
    page = page_behind_guard(tmp_path)
    right, wrong = (("GET", "/v1/models", {"headers": {"authorization": key}}) for key in ("right", "guess"))
    assert {response.status_code for response in sent(page, *[right] * 50)} == {200}
    answers = sent(page, *[wrong] * 25, right, ("POST", "/login", {"content": b""}))
    assert [response.status_code for response in answers] == [401] * 20 + [429] * 7
    assert sent(page, right, address=SOMEBODY_ELSE)[0].status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (UPLOAD, pieces, 411),
        (UPLOAD, b"x" * (2**16 + 1001), 413),
        (JOIN, b"x" * MESSAGE_BYTES, 200),
        (JOIN, b"x" * (MESSAGE_BYTES + 1), 413),
        (V1, pieces, 200),  # which reads its bodies itself
    ],
)
def test_a_body_states_its_length_which_is_limited(tmp_path, path, body, status):
    content = body() if callable(body) else body
    assert sent(page_behind_guard(tmp_path), ("POST", path, {"content": content}))[0].status_code == status


@pytest.mark.parametrize("path", [UPLOAD, JOIN, "/login"])
def test_a_body_is_not_longer_than_it_states(tmp_path, path):
    """A chunked request may state a length too, which then says nothing."""
    stated = {"headers": {"Content-Length": "3000", "Transfer-Encoding": "chunked"}}
    bodies = ({"content": pieces(count, 1000), **stated} for count in (1000, 3))
    longer, right = sent(page_behind_guard(tmp_path, most=10_000), *(("POST", path, body) for body in bodies))
    assert longer.status_code == 413 and right.text == "the page of 3000"


def test_a_body_that_does_not_arrive_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.05)
    said: list[Any] = []

    async def never() -> Any:
        await asyncio.Event().wait()

    async def take(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": JOIN, "root_path": "", "query_string": b""}
    scope |= {"headers": [(b"content-length", b"3"), (b"host", b"here")], "client": (STRANGER, 1)}
    asyncio.run(asyncio.wait_for(page_behind_guard(tmp_path)(scope, never, take), PATIENCE))
    assert said[0]["status"] == 408


def test_uploads_are_refused_when_the_folder_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(request_body, "FOLDER_BYTES", 100)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 85)
    upload, larger = (("POST", UPLOAD, {"content": b"x" * size}) for size in (10, 20))
    first, second = sent(page_behind_guard(tmp_path), upload, larger)
    assert first.status_code == 200 and second.status_code == 507 and "no room" in second.text
    monkeypatch.setattr(request_body, "FOLDER_FILES", 1)
    assert sent(page_behind_guard(tmp_path), upload)[0].status_code == 507


@pytest.mark.parametrize("path", [JOIN, V1])
def test_values_are_counted_before_they_are_parsed(tmp_path, path, monkeypatch):
    monkeypatch.setattr(request_body, "VALUES_AT_ONCE", 1000)
    limit(monkeypatch, value=2000)
    page = page_behind_guard(tmp_path)

    def status(body: bytes, address: str = STRANGER, path: str = path) -> int:
        return sent(page, ("POST", path, {"content": body}), address=address)[0].status_code

    for many in (b"[" + b"[]," * 600, b"0," * 1001, b'{"a":1,' * 501, b"[" * 1001, rb"\u002c" * 1001):
        assert status(many) == 413
    assert [status(b"0," * 900) for _ in range(4)] == [200] * 3 + [429]
    assert status(b'"' + b"x" * 100_000 + b'"', SOMEBODY_ELSE) == 200
    assert status(b"," * 900, SOMEBODY_ELSE, UPLOAD) == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", f"/{path}") for path in ("gradio_api/queue/data", "gradio_api/heartbeat/x", "assets/a.js", "")),
        *(("POST", JOIN), ("GET", "/v1/models")),
    ],
)
def test_open_connections_are_limited(tmp_path, method, path, monkeypatch):
    limit(monkeypatch, stream=3, page=3, file=3, call=3, body=3)
    other = "/gradio_api/heartbeat/y" if path.endswith("data") else "/gradio_api/queue/data"

    async def scenario() -> None:
        hold = asyncio.Event()
        async with asgi_client(page_behind_guard(tmp_path, hold), STRANGER, NAMED) as client:
            opened = [asyncio.create_task(client.request(method, path)) for _ in range(3)]
            opened.append(asyncio.create_task(client.get(other)))  # an open page takes no place of an answer
            for _ in range(100):  # until all have come as far as they can
                await asyncio.sleep(0)
            refused = await asyncio.wait_for(client.request(method, path), PATIENCE)
            assert refused.status_code == 429 and "3 connections" in refused.text
            hold.set()
            assert {(await task).status_code for task in opened} == {200}
            assert (await client.request(method, path)).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), None], ids=["full", "gone"])
def test_what_was_written_of_a_broken_upload_is_deleted(tmp_path, error):
    """Gradio's own parser never deletes it."""

    async def upload(scope: Any, receive: Any, send: Any) -> None:
        (tmp_path / "tmpabcd").write_bytes(b"half")
        if error is not None:
            raise error
        await PlainTextResponse("the client went away", 400)(scope, receive, send)

    [broken] = send(RequestGuard(upload, Limits(False), tmp_path), ("POST", UPLOAD, {}))
    assert broken.status_code == (507 if error else 400)
    assert error is None or "disk may be full" in broken.text
    assert list(tmp_path.iterdir()) == []
