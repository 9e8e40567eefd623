"""What takes seconds to import is imported by one thread, whoever is the first to need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.app_process import PATIENCE

# A server starts while a page is open already: the loader, and the Train tab's timer.
AT_ONCE = """
import sys, threading
from pathlib import Path
from adapter.server.loader import import_libraries
from train.ui.runs import read_progress
assert "torch" not in sys.modules

def loader():
    import_libraries()
    from adapter.serve.engine import Engine

failed = []
threading.excepthook = lambda args: failed.append(repr(args.exc_value))
threads = [threading.Thread(target=loader), threading.Thread(target=read_progress, args=[Path("nowhere")])]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
"""


@pytest.mark.slow
def test_threads_that_need_them_at_once_all_get_them():
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
