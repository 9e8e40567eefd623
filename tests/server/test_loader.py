"""Loading in the background: libraries, status lines, failures, and the store that is empty until then."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from adapter.errors import LoadError
from adapter.server.generation import wait_for
from adapter.server.limits import CountedProvider, Limits
from adapter.server.loader import LoadStatus, ModelLoader
from adapter.ui.status import _status as status_line
from tests.app_process import PATIENCE


def test_the_status_line_tells_that_the_engine_has_failed_since() -> None:
    base = SimpleNamespace(memory_bytes=2**20)
    engine = SimpleNamespace(base=base, failure=None, describe=lambda: "a base", replicas=dict)
    loader = ModelLoader(lambda report: engine)  # type: ignore[arg-type,return-value]
    loader.start()
    loader.wait(PATIENCE)
    provider = CountedProvider(loader, Limits(False))
    assert "a base" in status_line(provider)
    engine.failure = "It has stopped."
    assert provider.status() == LoadStatus("failed", "It has stopped.")
    assert "It has stopped." in status_line(provider)


def test_who_waits_is_told_of_a_failure_as_soon_as_it_happens() -> None:
    proceed = threading.Event()

    def load(report: Any) -> Any:
        proceed.wait()
        raise ValueError("x")

    loader = ModelLoader(load)
    loader.start()
    provider = CountedProvider(loader, Limits(False))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(provider.wait, threading.TIMEOUT_MAX)
        proceed.set()
        waiting.result(PATIENCE)
    with pytest.raises(LoadError, match="log says why"):
        list(wait_for(loader))
