"""Requests to an ASGI application without a server, and its routes."""

import asyncio
from typing import Any

import httpx
import pytest

from adapter.server import limits
from tests.app_process import PATIENCE

LOCAL, NAMED = "http://127.0.0.1:7860", "http://chat.example"
STRANGER, SOMEBODY_ELSE = "203.0.113.7", "198.51.100.9"


def asgi_client(
    application: Any, address: str = "127.0.0.1", base: str = LOCAL, raises: bool = True
) -> httpx.AsyncClient:
    """A client at `address`. base: the address that it asks; raises: errors too, as uvicorn logs them."""
    transport = httpx.ASGITransport(application, raise_app_exceptions=raises, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url=base, timeout=PATIENCE)


def send(application: Any, *requests: tuple[str, str, dict[str, Any]], **about: Any) -> list[httpx.Response]:
    """The responses to (method, path, what httpx takes), one after the other. about: as `asgi_client`."""

    async def sent() -> list[httpx.Response]:
        async with asgi_client(application, **about) as client:
            return [await client.request(method, path, **more) for method, path, more in requests]

    return asyncio.run(sent())


def served_routes(application: Any) -> set[tuple[str, str]]:
    """(method, path) of all that a FastAPI application answers, that of its mounted ones and routers included."""
    found: set[tuple[str, str]] = set()

    def walk(rows: list[Any]) -> None:
        for row in rows:
            for inner in (getattr(row, "original_router", None), getattr(row, "app", None)):
                if hasattr(inner, "routes"):
                    walk(inner.routes)
            if hasattr(row, "path"):
                found.update((method, row.path) for method in getattr(row, "methods", None) or {"GET"})

    walk(application.routes)
    return found


def limit(monkeypatch: pytest.MonkeyPatch, **most: int) -> None:
    """Lower limits of one address, by their names in RATES and PLACES, for a Limits that is made then."""
    for name, size in most.items():
        for table in (limits.RATES, limits.PLACES):
            if name in table:
                monkeypatch.setitem(table, name, (size, *table[name][1:]))
