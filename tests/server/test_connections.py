"""Connections that say nothing, over a real uvicorn."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from adapter.server import middleware
from adapter.server.middleware import ImpatientProtocol
from tests.app_process import PATIENCE, wait_until

HEAD = b"GET / HTTP/1.1\r\nHost: here\r\n"
Address = tuple[str, int]


@contextlib.contextmanager
def serving(trusted: str = "127.0.0.1", release: threading.Event | None = None) -> Iterator[Address]:
    """A server's address. trusted: the proxies that may name visitors; release: what its answers wait for."""

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if release is not None:
            await anyio.to_thread.run_sync(release.wait, PATIENCE)
        await PlainTextResponse("the page")(scope, receive, send)

    quiet: dict[str, Any] = {"log_level": "critical", "lifespan": "off", "port": 0}
    server = uvicorn.Server(uvicorn.Config(page, http=ImpatientProtocol, forwarded_allow_ips=trusted, **quiet))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[:2]
    server.should_exit = server.force_exit = True
    thread.join(PATIENCE)


def read_to_the_end(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1000):
            said += piece
    return said


def is_answered(connection: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        connection.sendall(HEAD + b"\r\n")
        return connection.recv(1000).startswith(b"HTTP/1.1 200")
    return False


@pytest.mark.parametrize("sent", [b"", b"GET ", HEAD, HEAD + b"\r\n" + HEAD])
def test_a_request_that_does_not_begin_is_given_up(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(middleware, "HEAD_SECONDS", 0.2)
    with serving() as address, socket.create_connection(address, PATIENCE) as connection:
        connection.sendall(sent)
        assert read_to_the_end(connection).count(b"the page") == sent.count(b"\r\n\r\n")


def test_an_answer_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "HEAD_SECONDS", 0.2)
    release = threading.Event()
    with serving(release=release) as address, socket.create_connection(address, PATIENCE) as asking:
        asking.sendall(HEAD + b"Connection: close\r\n\r\n")
        with socket.create_connection(address, PATIENCE) as silent:
            assert read_to_the_end(silent) == b""  # so that the time is over
        release.set()
        assert read_to_the_end(asking).endswith(b"the page")


@pytest.mark.parametrize(("trusted", "served"), [("", 3), ("127.0.0.1", 6)])
def test_connections_of_one_address_are_limited(
    monkeypatch: pytest.MonkeyPatch, trusted: str, served: int
) -> None:
    """But not those of a proxy, through which everybody comes."""
    monkeypatch.setattr(middleware, "CONNECTIONS_AT_ONCE", 3)
    with serving(trusted) as address, contextlib.ExitStack() as opened:
        held = [opened.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(6)]
        assert [is_answered(connection) for connection in held] == [True] * served + [False] * (6 - served)
        held[0].close()
        wait_until(lambda: is_answered(opened.enter_context(socket.create_connection(address, PATIENCE))))
