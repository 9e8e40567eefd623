"""Connections that say nothing: each costs the server a file, of which a process has about a thousand.

Knows uvicorn's protocol for HTTP/1.1; knows no requests.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from adapter.serve.client import Client

HEAD_SECONDS = 20.0  # for the head of a request to arrive
CONNECTIONS_AT_ONCE = 256  # of one address; a browser opens six for each page


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request does not begin, and those that one address has too many of.

    By itself uvicorn waits for ever. A proxy that is trusted to name its visitors may have any number.
    """

    network = ""  # of a client that is counted
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if address not in getattr(self.app, "trusted_hosts", ()):
            self.network = Client(address).network
            same = sum(getattr(other, "network", "") == self.network for other in self.connections)
            if same > CONNECTIONS_AT_ONCE:
                transport.abort()
                return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_deadline()

    def _await_head(self) -> None:
        """Between requests uvicorn has its own, shorter time limit, until the first byte of the next one."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
