"""Bodies of requests as they arrive: how long, how fast, with how many values, and with what room on the disk."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from adapter.server.limits import VALUES_AT_ONCE
from adapter.server.openai_schema import ApiError

BODY_SECONDS, BODY_BYTES_PER_SECOND = 30.0, 2**15  # a body may take so long, and more by what has arrived of it
FOLDER_BYTES, FOLDER_FILES = 4 * 2**30, 100_000  # of a day's uploads
SEND_LESS = "Start a new conversation, or send less."


class RequestRefused(ApiError, HTTPException):
    """A refusal, also of Starlette's kind, which FastAPI lets pass where it reads a body. retry_after: seconds."""

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        headers = None if retry_after is None else {"Retry-After": str(retry_after)}
        HTTPException.__init__(self, status, text, headers)
        self.status, self.param, self.code, self.retry_after = status, None, None, retry_after

    def __str__(self) -> str:
        return self.detail


def bounded(receive: Receive, most: int, too_long: str) -> Receive:
    """`receive` that raises RequestRefused: 408 for a body that is too slow, 413 (`too_long`) above `most`."""
    began, size, complete = anyio.current_time(), 0, False

    async def receive_bounded() -> Message:
        nonlocal size, complete
        if complete:  # what comes now is that the client leaves, at any time
            return await receive()
        deadline = began + BODY_SECONDS + size / BODY_BYTES_PER_SECOND
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                message = await receive()
        except TimeoutError:
            said = "The request took too long to arrive. Send it again, or send less."
            raise RequestRefused(408, said) from None
        size += len(message.get("body", b""))
        if size > most:
            raise RequestRefused(413, too_long)
        complete = not message.get("more_body", False)
        return message

    return receive_bounded


def counting_values(receive: Receive, count_all: Callable[[int], None]) -> Receive:
    """Counts a JSON body's commas and brackets before it is parsed. count_all: gets their number; may raise."""
    count = 0

    async def receive_counting() -> Message:
        nonlocal count
        message = await receive()
        if message["type"] == "http.request":
            count += sum(map(message.get("body", b"").count, (b"[", b"{", b",", b"\\u00")))  # also escaped
            if count > VALUES_AT_ONCE:
                raise RequestRefused(413, f"A request may have {VALUES_AT_ONCE:,} values. {SEND_LESS}")
            if not message.get("more_body", False):
                count_all(count)
        return message

    return receive_counting


def is_full(folder: Path, more: int) -> bool:
    """Whether `more` bytes do not fit into the folder of uploads: 4 GiB or a quarter of its disk (or memory)."""
    total, count, most = 0, 0, min(FOLDER_BYTES, shutil.disk_usage(folder).total // 4)
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # just deleted
                total += os.lstat(os.path.join(root, name)).st_size
                count += 1
    return total + more > most or count >= FOLDER_FILES
