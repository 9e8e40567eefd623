"""Loading in the background: libraries, status lines, failures, and the store that is empty until then."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from adapter.errors import Busy, LoadError
from adapter.server.generation import wait_for
from adapter.server.limits import LimitedProvider, Limits
from adapter.server.loader import LazyStore, LoadStatus, ModelLoader
from adapter.ui.status import _status as status_line
from tests.app_process import PATIENCE
from tests.fake_engine import FakeCatalog


def test_the_loader_reports_and_then_has_the_engine() -> None:
    proceed, engine = threading.Event(), SimpleNamespace(failure=None)

    def load(report: Any) -> tuple[Any, str]:
        report("Converting")
        proceed.wait()
        return engine, "a base on a device"

    loader = ModelLoader(load)
    loader.start()
    lines = wait_for(loader)
    assert next(lines).startswith(("Converting", "Loading"))
    proceed.set()
    list(lines)
    assert loader.engine() is engine and loader.status() == LoadStatus("ready", "a base on a device")


def test_the_status_line_tells_that_the_engine_has_failed_since() -> None:
    engine = SimpleNamespace(base=None, failure=None)
    loader = ModelLoader(lambda report: (engine, "a base"))  # type: ignore[arg-type,return-value]
    loader.load_here()
    provider = LimitedProvider(loader, Limits(False))
    assert "a base" in status_line(provider)
    engine.failure = "It has stopped."
    assert provider.status() == LoadStatus("failed", "It has stopped.")
    assert "It has stopped." in status_line(provider)


@pytest.mark.parametrize(
    ("error", "message"),
    [(LoadError("No space left. Free some."), "Free some"), (ValueError("x"), "log says why")],
)
def test_a_failure_is_raised_for_whoever_waits(error: Exception, message: str) -> None:
    def load(report: Any) -> tuple[Any, str]:
        raise error

    loader = ModelLoader(load)
    loader.start()
    with pytest.raises(LoadError, match=message):
        list(wait_for(loader))


def test_a_lazy_store_is_empty_until_bound() -> None:
    store = LazyStore()
    assert store.names() == []
    with pytest.raises(Busy):
        store.card("see")
    store.bind(FakeCatalog())  # type: ignore[arg-type]
    assert store.names() == ["poet", "see"]


# A server starts while a page is open already: the loader, and the Train tab's timer.
AT_ONCE = """
import sys, threading
from pathlib import Path
from adapter.server.loader import import_libraries
from train.ui.metrics import MetricsTail
assert "torch" not in sys.modules

def loader():
    import_libraries()
    from adapter.serve.engine import Engine

failed = []
threading.excepthook = lambda args: failed.append(repr(args.exc_value))
threads = [threading.Thread(target=loader), threading.Thread(target=MetricsTail, args=[Path("nowhere")])]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
"""


@pytest.mark.slow
def test_libraries_can_be_imported_by_concurrent_threads():
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
