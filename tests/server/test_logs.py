"""Nothing that a visitor sends forges a line of the log or reaches a terminal as more than text."""

from __future__ import annotations

import subprocess
import sys

from tests.app_process import PATIENCE, ROOT

PROGRAM = r"""
import logging
from adapter.server.logs import set_up_logs
attack = "nobody\nERROR adapter: forged\r\x1b[2J\u202e\ud800"
logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
set_up_logs()
log = logging.getLogger("adapter.server")
log.warning("There is no '%s'", attack)
try:
    raise ValueError(attack)
except ValueError:
    log.exception("failed")
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.propagate = True
    logging.getLogger("uvicorn").propagate = False
    uvicorn.exception("failed")
"""


def test_the_log_is_not_forged() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, timeout=PATIENCE)
    lines = ended.stderr.decode().splitlines()
    assert ended.returncode == 0 and [line for line in lines if not line.startswith("  ")] == [
        r"WARNING adapter.server: There is no 'nobody\nERROR adapter: forged\r\x1b[2J\u202e\ud800'",
        "ERROR adapter.server: failed",
        "ERROR uvicorn.error: failed",
    ]
    assert all(line.isprintable() for line in lines) and sum("forged" in line for line in lines) == 3
