"""Uploads that break off: a full disk is a sentence for the browser, and what was written by then is removed.

Knows ASGI and Gradio's folder of uploads, in which a file on its way lies as tmp* until it is whole (6.31); Gradio
itself forgets one that never becomes whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.ui.texts import page as texts

log = logging.getLogger(__name__)

_IDLE_SECONDS = 20.0  # since the last write, if nobody here is sending anything: another server may have it
_STUCK_SECONDS = 600.0  # if somebody is


class HalfUploads:
    """ASGI middleware around the page."""

    def __init__(self, app: ASGIApp, folder: Path, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._app, self._folder, self._idle = app, folder, idle_seconds
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/gradio_api/upload"):
            await self._app(scope, receive, send)
            return
        status = 0

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._under_way += 1
        try:
            await self._app(scope, receive, noted)
        except OSError as error:
            if status:
                raise
            log.error("An upload cannot be kept: %s", error.strerror or error)
            await PlainTextResponse(texts.UPLOAD_NOT_KEPT, 507)(scope, receive, send)
        finally:
            self._under_way -= 1
            if not 200 <= status < 300:
                asyncio.get_running_loop().call_later(self._idle + 1, self._sweep_soon)

    def _sweep_soon(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, self._sweep)

    def _sweep(self) -> None:
        oldest = time.time() - (_STUCK_SECONDS if self._under_way else self._idle)
        for file in self._folder.glob("tmp*"):
            with contextlib.suppress(OSError):
                if file.is_file() and file.stat().st_mtime < oldest:
                    file.unlink()
