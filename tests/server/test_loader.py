"""Loading in the background: libraries, status lines, failures, and the store that is empty until then."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from adapter.errors import Busy, LoadError
from adapter.server.generation import wait_for
from adapter.server.limits import CountedProvider, Limits
from adapter.server.loader import LazyStore, LoadStatus, ModelLoader
from adapter.ui.status import _status as status_line
from tests.app_process import PATIENCE, ROOT
from tests.fake_engine import FakeCatalog


def test_the_loader_reports_and_then_has_the_engine() -> None:
    proceed, engine = threading.Event(), SimpleNamespace(failure=None, describe=lambda: "a base on a device")

    def load(report: Any) -> Any:
        report("Converting")
        proceed.wait()
        return engine

    loader = ModelLoader(load)
    loader.start()
    lines = wait_for(loader)
    assert next(lines).startswith(("Converting", "Loading"))
    proceed.set()
    list(lines)
    assert loader.engine() is engine and loader.status() == LoadStatus("ready", "a base on a device")


def test_the_status_line_tells_that_the_engine_has_failed_since() -> None:
    base = SimpleNamespace(memory_bytes=2**20)
    engine = SimpleNamespace(base=base, failure=None, describe=lambda: "a base", replicas=dict)
    loader = ModelLoader(lambda report: engine)  # type: ignore[arg-type,return-value]
    loader.load_here()
    provider = CountedProvider(loader, Limits(False))
    assert "a base" in status_line(provider)
    engine.failure = "It has stopped."
    assert provider.status() == LoadStatus("failed", "It has stopped.")
    assert "It has stopped." in status_line(provider)


@pytest.mark.parametrize(
    ("error", "message"),
    [(LoadError("No space left. Free some."), "Free some"), (ValueError("x"), "log says why")],
)
def test_who_waits_is_told_of_a_failure_as_soon_as_it_happens(error: Exception, message: str) -> None:
    proceed = threading.Event()

    def load(report: Any) -> Any:
        proceed.wait()
        raise error

    loader = ModelLoader(load)
    loader.start()
    provider = CountedProvider(loader, Limits(False))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(provider.wait, threading.TIMEOUT_MAX)
        proceed.set()
        waiting.result(PATIENCE)
    with pytest.raises(LoadError, match=message):
        list(wait_for(loader))


def test_a_lazy_store_is_empty_until_bound() -> None:
    store = LazyStore()
    assert store.names() == []
    with pytest.raises(Busy):
        store.card("see")
    store.bind(FakeCatalog())  # type: ignore[arg-type]
    assert store.names() == ["poet", "see"]


# `python app.py` until a base is loaded, while an open page already looks for trained adapters, and has answered.
# Prints the imported modules and the collector's state.
START = """
import contextlib, gc, json, runpy, sys, threading
from pathlib import Path
folder, sys.argv = sys.argv[1], ["app.py", "--port", "0"]
with contextlib.suppress(SystemExit):  # its arguments are read after its imports
    runpy.run_path("app.py", run_name="__main__")
collects = gc.isenabled()

import app
from train.ui.runs import saved_files
assert "torch" not in sys.modules
arguments = app.parse(["--base", folder])
loader = app.make_loader(arguments, app.find_place(arguments), app.LazyStore())
failed = []
threading.excepthook = lambda args: failed.append(repr(args.exc_value))
threads = [threading.Thread(target=loader.load_here), threading.Thread(target=saved_files, args=[Path("nowhere")])]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed and loader.status().state == "ready", (failed, loader.status())

from adapter.base.template import Message
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
sampling = SamplingParams(max_new_tokens=2)
list(loader.engine().submit(GenerationRequest((Message("user", "hello"),), sampling=sampling)))
modules = [name for name, module in sys.modules.items() if module is not None]
collector = [collects, gc.isenabled(), gc.get_freeze_count() > 100_000]
print(json.dumps({"modules": modules, "collector": collector}))
loader.close()
"""
# Each takes a tenth of a second or more.
NEEDLESS = {"timm", "skimage", "matplotlib", "peft", "bitsandbytes", "ray", "train.job"}


@pytest.mark.slow
def test_a_start_imports_nothing_that_serving_does_not_need(tiny_folder: Any) -> None:
    command = [sys.executable, "-c", START, str(tiny_folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"torch", "gradio", "transformers"} <= set(found["modules"])
    assert NEEDLESS.isdisjoint(found["modules"])
    # The garbage collector is off while the program starts; what is loaded is never looked through again.
    assert found["collector"] == [False, True, True]
