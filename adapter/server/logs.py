"""The server's log on stderr: what visitors send can neither begin a line in it nor steer a terminal."""

from __future__ import annotations

import logging

from adapter.errors import printable

_FORMAT = "%(levelname)s %(name)s: %(message)s"


class InertFormatter(logging.Formatter):
    """A message is one line; the lines of a traceback are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return "\n".join(f"  {printable(line)}" for line in lines)


def set_up_logs() -> None:
    """Logs warnings of all libraries and what the server does. Call it again once uvicorn has its own handlers."""
    logging.basicConfig(level=logging.WARNING, format=_FORMAT)
    logging.getLogger("adapter").setLevel(logging.INFO)
    for name in (None, "uvicorn", "uvicorn.error", "uvicorn.access"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(InertFormatter(_FORMAT))
