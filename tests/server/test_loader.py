"""Loading in the background: libraries, status lines, failures, and the store that is empty until then."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from adapter.errors import LoadError
from adapter.server.generation import EngineProvider, LoadStatus, wait_for
from adapter.ui.status import _status as status_line
from tests.app_process import PATIENCE


def test_the_status_line_tells_that_the_engine_has_failed_since():
    engine = SimpleNamespace(failure=None, describe=lambda: "a base", replicas=dict)
    loader = EngineProvider(lambda report: engine)
    loader.start()
    loader.ended.wait(PATIENCE)
    assert "a base" in status_line(loader)
    engine.failure = "It has stopped."
    assert loader.status() == LoadStatus("failed", "It has stopped.")
    assert "It has stopped." in status_line(loader)


def test_who_waits_is_told_of_a_failure_as_soon_as_it_happens():
    proceed = threading.Event()

    def load(report: Any) -> Any:
        proceed.wait()
        raise ValueError("x")

    loader = EngineProvider(load)
    loader.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(loader.ended.wait, PATIENCE)
        proceed.set()
        assert waiting.result(PATIENCE)
    with pytest.raises(LoadError, match="log says why"):
        list(wait_for(loader))
