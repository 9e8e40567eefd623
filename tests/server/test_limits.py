"""Limits by address: rates and slots, the limited engine, and the middleware before the page."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from adapter.errors import BadInput, Busy
from adapter.serve.request import Answer, Client, Mailbox
from adapter.server import limits, middleware
from adapter.server.limits import CountedProvider, Limits, RateLimited, Slots, TokenBuckets
from adapter.server.middleware import RequestLimits
from adapter.server.openai_api import error_response
from adapter.server.openai_schema import ApiError
from tests.app_process import PATIENCE

SOMEBODY, ELSE = "203.0.113.7", "198.51.100.9"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Token buckets.


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from("ab")), max_size=60),
)
@settings(deadline=None)
def test_no_window_exceeds_bucket_and_refill(size: int, asked: list[tuple[float, str]]) -> None:
    clock = Clock()
    buckets = TokenBuckets(size, 10, clock)
    given_at: dict[str, list[float]] = {"a": [], "b": []}
    for pause, key in asked:
        clock.now += pause
        wait = buckets.take(key)
        assert 0 <= wait <= 10 / size + 1e-6
        if not wait:
            given_at[key].append(clock.now)
    for times in given_at.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                assert last - first + 1 <= size + (times[last] - times[first]) * size / 10 + 1e-6


def test_waiting_retry_after_is_enough() -> None:
    clock = Clock()
    buckets = TokenBuckets(3, 60, clock)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    wait = buckets.take("a")
    assert wait == pytest.approx(20)
    assert buckets.take("b") == 0, "buckets are independent"
    clock.now += wait / 2
    assert buckets.take("a") == pytest.approx(10), "asking costs nothing"
    clock.now += wait / 2 + 1e-6
    assert buckets.take("a") == 0


def test_buckets_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MAX_ADDRESSES", 100)
    clock = Clock()
    buckets = TokenBuckets(2, 60, clock)
    for number in range(1000):
        buckets.take(str(number))
    assert len(buckets) == 100
    clock.now += 61
    buckets.take("new")
    assert len(buckets) == 1, "a bucket that is full again is as if it had never been used"


# Slots.


def test_slots_are_acquired_and_released() -> None:
    slots = Slots(2)
    assert [slots.acquire("a"), slots.acquire("a"), slots.acquire("a"), slots.acquire("b")] == [
        True,
        True,
        False,
        True,
    ]
    slots.release("a")
    assert slots.acquire("a") and not slots.acquire("a")
    for key in "aab":
        slots.release(key)
    assert slots.acquire("c") and slots._taken == {"c": 1}, "nobody is remembered who holds no place"


# Addresses.


@pytest.mark.parametrize(
    ("public", "address", "key"),
    [
        (False, "127.0.0.1", None),
        (False, SOMEBODY, None),
        (True, "127.0.0.1", "127.0.0.1"),  # a tunnel's visitors
        (True, "::ffff:203.0.113.7", SOMEBODY),
        (True, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        (True, "", ""),  # all whose address is unknown
    ],
)
def test_key_of_an_address(public: bool, address: str, key: str | None) -> None:
    assert Limits(public).key(address) == key


# The engine.


class Engine:
    """Counts requests, and keeps no answer."""

    base = "base"

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None

    def submit(self, request: Any) -> Answer:
        if self.error:
            raise self.error
        self.asked += 1
        return Answer(Mailbox(), lambda: None)

    def inspect(self, request: Any, answer_ids: Any) -> str:
        return f"inspected {answer_ids}"

    def close(self) -> None: ...


def asked_by(address: str) -> Any:
    return SimpleNamespace(client=Client(address))


def limited(clock: Clock) -> tuple[Engine, Any]:
    engine = Engine()
    provider = SimpleNamespace(engine=lambda: engine, status=lambda: "status", wait=None)
    limited_engine = CountedProvider(provider, Limits(True, clock)).engine()  # type: ignore[arg-type]
    assert limited_engine is not None
    return engine, limited_engine


def test_answers_are_limited_by_address() -> None:
    clock = Clock()
    engine, counted = limited(clock)
    for _ in range(limits.ANSWERS_PER_MINUTE):
        counted.submit(asked_by(SOMEBODY)).close()
    with pytest.raises(RateLimited, match="30 answers a minute .* again in 2 seconds") as refused:
        counted.submit(asked_by(SOMEBODY))
    assert isinstance(refused.value, Busy) and refused.value.retry_after == 2
    counted.submit(asked_by(ELSE))
    clock.now += refused.value.retry_after
    counted.submit(asked_by(SOMEBODY))
    assert engine.asked == limits.ANSWERS_PER_MINUTE + 2


def test_answer_holds_its_slot_until_dropped() -> None:
    clock = Clock()
    engine, counted = limited(clock)
    held = [counted.submit(asked_by(SOMEBODY)) for _ in range(limits.ANSWERS_AT_ONCE)]
    clock.now += 60
    with pytest.raises(RateLimited, match="for your address already"):
        counted.submit(asked_by(SOMEBODY))
    del held[0]
    gc.collect()
    held.append(counted.submit(asked_by(SOMEBODY)))
    with pytest.raises(RateLimited):
        counted.submit(asked_by(SOMEBODY))
    held.clear()
    engine.error = BadInput("no")
    for _ in range(3):  # a request that the engine refuses holds none
        with pytest.raises(BadInput):
            counted.submit(asked_by(SOMEBODY))
    slots = counted._limits._places["answer"][0]
    slots.acquire("nobody")
    assert slots._taken == {"nobody": 1}


def test_inspections_have_their_own_limit() -> None:
    engine, counted = limited(Clock())
    for _ in range(limits.INSPECTIONS_PER_MINUTE):
        assert counted.inspect(asked_by(SOMEBODY), (1, 2)) == "inspected (1, 2)"
    with pytest.raises(RateLimited, match="looks inside"):
        counted.inspect(asked_by(SOMEBODY), (1,))
    counted.submit(asked_by(SOMEBODY))
    assert engine.asked == 1 and counted.base == "base"


def test_one_address_leaves_inspections_to_others() -> None:
    """Eight wait or run in all."""
    engine, counted = limited(Clock())
    depth = []

    def inspect(request: Any, answer_ids: Any) -> str:
        depth.append(request)
        if len(depth) <= limits.INSPECTIONS_AT_ONCE:  # while this one runs
            return counted.inspect(asked_by(SOMEBODY if len(depth) < limits.INSPECTIONS_AT_ONCE else ELSE), ())
        with pytest.raises(RateLimited, match="looked into"):
            counted.inspect(asked_by(SOMEBODY), ())
        return "inspected"

    engine.inspect = inspect  # type: ignore[method-assign]
    for _ in range(2):  # their places are free again
        depth.clear()
        assert counted.inspect(asked_by(SOMEBODY), ()) == "inspected"


# The middleware.


def page_behind_limits(
    folder: Path, public: bool = True, hold: asyncio.Event | None = None, most: int = 1000, reads: bool = False
) -> Starlette:
    async def page(request: Request) -> PlainTextResponse:
        if hold is not None:
            await hold.wait()
        if request.headers.get("authorization", "right") != "right":
            return PlainTextResponse("wrong", 401)
        return PlainTextResponse(f"the page of {len(await request.body())}" if reads else "the page")

    routes = [Route("/{path:path}", page, methods=["GET", "POST"])]
    return Starlette(
        routes=routes,
        exception_handlers={ApiError: lambda _, error: error_response(error)},  # as /v1 has
        middleware=[Middleware(RequestLimits, limits=Limits(public), folder=folder, most=most)],
    )


def sent(app: Starlette, *requests: tuple[str, str, dict[str, Any]], address: str = SOMEBODY) -> list[Any]:
    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return [await client.request(method, path, **more) for method, path, more in requests]

    return asyncio.run(all_of_them())


UPLOAD = ("POST", "/gradio_api/upload", {"content": b"x" * 10})


def test_uploads_are_limited_by_address(tmp_path: Path) -> None:
    app = page_behind_limits(tmp_path)
    responses = sent(app, *[UPLOAD] * (limits.UPLOADS_PER_HOUR + 1))
    assert {r.status_code for r in responses[:-1]} == {200}
    last = responses[-1]
    assert last.status_code == 429 and "60 uploads an hour" in last.text
    assert 55 <= int(last.headers["retry-after"]) <= 60
    assert sent(app, UPLOAD, address=ELSE)[0].status_code == 200
    assert sent(app, ("GET", "/", {}))[0].text == "the page", "all else is open"


def test_upload_length_is_required_and_limited(tmp_path: Path) -> None:
    async def pieces() -> Any:
        yield b"x"

    app = page_behind_limits(tmp_path)
    unknown, large, right = sent(
        app,
        ("POST", "/gradio_api/upload", {"content": pieces()}),
        ("POST", "/gradio_api/upload", {"content": b"x" * (2**16 + 1001)}),
        UPLOAD,
    )
    assert (unknown.status_code, large.status_code, right.status_code) == (411, 413, 200)


def test_uploads_are_refused_when_the_folder_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "FOLDER_BYTES", 100)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 85)
    first, second = sent(page_behind_limits(tmp_path), UPLOAD, UPLOAD)
    assert first.status_code == 200 and second.status_code == 507 and "no room" in second.text
    monkeypatch.setattr(middleware, "FOLDER_FILES", 1)
    assert sent(page_behind_limits(tmp_path), UPLOAD)[0].status_code == 507


def test_requests_are_limited_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUESTS_PER_MINUTE", 5)
    small = ("POST", "/gradio_api/run/predict", {"content": b"{}"})
    app = page_behind_limits(tmp_path)
    statuses = [response.status_code for response in sent(app, *[small] * 3, *[("GET", "/config", {})] * 4)]
    assert statuses == [200] * 5 + [429] * 2
    assert sent(app, small, address=ELSE)[0].status_code == 200


def test_requests_of_programs_are_limited_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALLS_PER_MINUTE", 3)
    app, models = page_behind_limits(tmp_path), ("GET", "/v1/models", {})
    responses = sent(app, *[models] * 4)
    assert [response.status_code for response in responses] == [200] * 3 + [429]
    assert "3 requests a minute" in responses[-1].json()["error"]["message"]
    assert sent(app, models, address=ELSE)[0].status_code == 200


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict", "/v1/chat/completions"])
def test_values_are_counted_before_they_are_parsed(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "VALUES_AT_ONCE", 1000)
    monkeypatch.setattr(limits, "VALUES_PER_MINUTE", 2000)
    app = page_behind_limits(tmp_path, reads=True)
    kinds: list[bytes] = [b"[" + b"[]," * 600, b"0," * 1001, b'{"a":1,' * 501, b"[" * 1001]
    responses = sent(app, *[("POST", path, {"content": body}) for body in kinds])
    assert [response.status_code for response in responses] == [413] * 4
    assert all("1,000 values" in response.text for response in responses)
    wide = [("POST", path, {"content": b"0," * 900})] * 4
    assert [response.status_code for response in sent(app, *wide)] == [200] * 3 + [429]
    assert sent(app, ("POST", path, {"content": b'"' + b"x" * 100_000 + b'"'}), address=ELSE)[0].status_code == 200
    assert sent(app, ("POST", "/gradio_api/upload", {"content": b"," * 900}), address=ELSE)[0].status_code == 200


def test_local_requests_are_not_limited(tmp_path: Path) -> None:
    app = page_behind_limits(tmp_path, public=False)
    uploads = [("POST", "/gradio_api/upload", {"content": b"x" * 100_000})] * (limits.UPLOADS_PER_HOUR + 5)
    assert {r.status_code for r in sent(app, *uploads, address="127.0.0.1")} == {200}


def test_messages_state_a_length_that_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MESSAGE_BYTES", 2**20)
    app, path = page_behind_limits(tmp_path), "/gradio_api/queue/join"

    async def pieces() -> Any:
        yield b"x"

    bodies = pieces(), b"x" * (2**20 + 1), b"x" * 2**20
    unknown, large, right = sent(app, *[("POST", path, {"content": body}) for body in bodies])
    assert (unknown.status_code, large.status_code, right.status_code) == (411, 413, 200)
    assert "larger than 1 MB" in large.text
    # /v1 reads its bodies itself, and says why not in its own way.
    assert sent(app, ("POST", "/v1/chat/completions", {"content": pieces()}))[0].status_code == 200


def test_logins_are_limited(tmp_path: Path) -> None:
    login = ("POST", "/login", {"content": b"username=a&password=b"})
    *right, last = sent(page_behind_limits(tmp_path), *[login] * (limits.LOGINS_PER_MINUTE + 1))
    assert {r.status_code for r in right} == {200} and last.status_code == 429 and "20 tries" in last.text


def test_wrong_keys_count_as_logins(tmp_path: Path) -> None:
    app = page_behind_limits(tmp_path)
    right = ("GET", "/v1/models", {"headers": {"authorization": "right"}})
    wrong = ("GET", "/v1/models", {"headers": {"authorization": "guess"}})
    assert {r.status_code for r in sent(app, *[right] * 50)} == {200}
    answers = sent(app, *[wrong] * (limits.LOGINS_PER_MINUTE + 5), right, ("POST", "/login", {"content": b""}))
    assert [r.status_code for r in answers] == [401] * limits.LOGINS_PER_MINUTE + [429] * 7
    assert "20 tries" in answers[-2].json()["error"]["message"]
    assert sent(app, right, address=ELSE)[0].status_code == 200


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/login"])
def test_a_body_is_not_longer_than_it_states(tmp_path: Path, path: str) -> None:
    """A chunked request may state a length too, which then says nothing."""

    async def pieces(count: int) -> Any:
        for _ in range(count):
            read.append(1)
            yield b"x" * 1000

    def body(count: int) -> dict[str, Any]:
        return {"content": pieces(count), "headers": {"Content-Length": "3000", "Transfer-Encoding": "chunked"}}

    read: list[int] = []
    app = page_behind_limits(tmp_path, reads=True, most=10_000)
    longer, right = sent(app, ("POST", path, body(1000)), ("POST", path, body(3)))
    assert longer.status_code == 413 and right.text == "the page of 3000"
    assert len(read) < 3 + 10, "the rest is not read"


def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)
    said: list[Any] = []

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/gradio_api/queue/join",
        "root_path": "",
        "query_string": b"",
    }
    scope |= {"headers": [(b"content-length", b"3")], "client": (SOMEBODY, 1), "query_string": b""}
    app = page_behind_limits(tmp_path, reads=True)
    asyncio.run(asyncio.wait_for(app(scope, never, send), PATIENCE))
    assert said[0]["status"] == 408


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/queue/data", "/gradio_api/heartbeat/x", "/gradio_api/queue/join", "/v1/chat/completions",
     "/v1/models"],
)  # fmt: skip
def test_open_connections_are_limited(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STREAMS_AT_ONCE", "CALLS_AT_ONCE", "BODIES_AT_ONCE"):
        monkeypatch.setattr(limits, name, 3)
    method = "POST" if path.endswith("join") else "GET"

    async def scenario() -> None:
        hold = asyncio.Event()
        transport = httpx.ASGITransport(app=page_behind_limits(tmp_path, hold=hold), client=(SOMEBODY, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            opened = [asyncio.create_task(client.request(method, path)) for _ in range(3)]
            for _ in range(100):  # until all three have come as far as they can
                await asyncio.sleep(0)
            refused = await asyncio.wait_for(client.request(method, path), PATIENCE)
            assert refused.status_code == 429 and "3 connections" in refused.text
            assert ("error" in refused.json()) if "/v1/" in path else refused.text.startswith("3 connections")
            hold.set()
            assert {(await task).status_code for task in opened} == {200}
            assert (await client.request(method, path)).status_code == 200

    asyncio.run(scenario())
