"""The page in this process over an engine that echoes what it is told: for all that is not about answers.

A file of tests imports `url`, in place of the real page's, and `closed_gate` where an answer is to wait.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gradio import route_utils, state_holder
from starlette.middleware import Middleware

import app
from adapter.server import deployment
from adapter.server.limits import Limits
from adapter.server.request_guard import UPLOAD_BYTES, RequestGuard
from adapter.ui.gradio_internals import close_page, guard
from adapter.ui.preload import preload_links
from tests.app_process import PATIENCE
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider
from train.ui.runs import TrainingRuns


class GatedEngine(EchoEngine):
    """An engine whose answers wait after their first piece while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.newest: Any = None

    def submit(self, request: Any) -> Any:
        answer = self.newest = super().submit(request)
        events = answer.mailbox.events

        def gated() -> Iterator[Any]:
            yield next(events)
            assert self.gate.wait(PATIENCE)
            yield from events

        answer.mailbox.events = gated()
        return answer


ENGINE, CATALOG = GatedEngine(), FakeCatalog()


@pytest.fixture
def closed_gate() -> Iterator[GatedEngine]:
    ENGINE.gate.clear()
    yield ENGINE
    ENGINE.error = None
    ENGINE.gate.set()


@contextmanager
def served(build: Callable[[], Any], uploads: Path) -> Iterator[str]:
    """The address of a page that this process builds and serves meanwhile, as app.py does."""
    with pytest.MonkeyPatch.context() as process:
        process.setenv("GRADIO_TEMP_DIR", str(uploads))
        process.setattr(route_utils, "get_fn", route_utils.get_fn)  # put back afterwards
        process.setattr(state_holder, "SessionState", state_holder.SessionState)
        page, limits = build(), Limits(False)
        guard(page, app.SESSIONS, limits)
        door = Middleware(RequestGuard, limits=limits, uploads=uploads, preload=preload_links())
        yield app.launch(page, deployment.find_place(deployment.parse([]), {}), UPLOAD_BYTES, [], [door])
        close_page(page)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runs = TrainingRuns(tmp_path_factory.mktemp("runs"))
    build = partial(app.build_page, ReadyProvider(ENGINE), CATALOG, runs=runs)
    with served(build, tmp_path_factory.mktemp("uploads")) as address:
        yield address
