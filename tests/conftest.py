"""Fixtures that all tests share: tiny random LLaMAs, the real embedded base, and the page with that base.

Importing this also decides what every test and every program that a test starts finds in its process. Fixtures
import what they need: the process that only hands tests to pytest-xdist's workers loads no torch.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
# Tests neither see nor change what was trained or uploaded on this machine.
os.environ["LLAMA_ADAPTER_RUNS"] = tempfile.mkdtemp(prefix="runs-")
os.environ["LLAMA_ADAPTER_FEATURES"] = tempfile.mkdtemp(prefix="features-")
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="gradio-")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapter.errors import AdapterError
from tests.app_process import FAULTY_APP, ROOT, AppProcess, app_process, tiny_app_process

if TYPE_CHECKING:
    from adapter.base.llama import AdaptedLlama, Base
    from adapter.method.config import BaseFingerprint

for name in [n for n in os.environ if n.startswith(("LLAMA_ADAPTER_", "GRADIO_SERVER_", "GRADIO_ROOT_"))]:
    if not name.endswith(("_CACHE", "_RUNS", "_FEATURES")):
        del os.environ[name]  # of whoever develops
# A script that starts the tests in the background leaves SIGINT ignored, and programs inherit that: Ctrl-C, which
# some tests send, would do nothing.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FOLDERS = [f"{folder}{os.sep}" for folder in (ROOT, tempfile.gettempdir(), Path.home()) if folder != Path("/")]

# `make test` gives each worker a file at a time. These take longest and are started first: otherwise one worker
# would still run one of them when the other has nothing left.
LONGEST = (
    "test_page_storage.py",
    "test_page.py",
    "test_job.py",
    "test_cluster.py",
    "test_deployment.py",
    "test_page_list.py",
    "test_reproduce.py",
    "test_page_train.py",
    "test_journeys.py",
    "test_zero_gpu.py",
    "test_page_inside.py",
    "test_soak.py",
    "test_runs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    # Most models here are tiny: a second thread costs more than it gives, and far more beside other programs.
    torch.set_num_threads(1)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))  # stable: the rest stays as it is


def pytest_sessionfinish() -> None:
    for folder in ("LLAMA_ADAPTER_RUNS", "LLAMA_ADAPTER_FEATURES", "GRADIO_TEMP_DIR"):
        shutil.rmtree(os.environ[folder], ignore_errors=True)


@pytest.fixture(autouse=True)
def no_error_names_a_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sentences of errors, which browsers show, name no folder of this machine, whatever a test makes fail."""
    named: list[str] = []
    init = AdapterError.__init__

    def checked(self: AdapterError, sentence: str, *detail: str) -> None:
        named.extend(sentence for folder in FOLDERS if folder in sentence)
        init(self, sentence, *detail)

    monkeypatch.setattr(AdapterError, "__init__", checked)
    yield
    assert named == [], "what names a folder is an error's detail"


@pytest.fixture(scope="session")
def tiny() -> AdaptedLlama:
    """A random LLaMA with grouped queries, fp32, frozen."""
    from tests.tiny_models import random_llama

    return random_llama()


@pytest.fixture(scope="session")
def tiny_fingerprint() -> BaseFingerprint:
    from tests.tiny_models import FINGERPRINT

    return FINGERPRINT


@pytest.fixture(scope="session")
def base() -> Base:
    """The embedded base as served by default on this machine."""
    from adapter.base.llama import load_base

    return load_base()


@pytest.fixture(scope="session")
def tiny_base(tiny: AdaptedLlama) -> Base:
    """The tiny LLaMA with a tokenizer of one token a printable character; token 96 ends an answer."""
    from adapter.base.llama import Base
    from tests.tiny_models import FINGERPRINT, character_tokenizer

    return Base(tiny, character_tokenizer(), FINGERPRINT, "none", 0)


@pytest.fixture(scope="session")
def packed_base(tiny_base: Base) -> Base:
    """The tiny LLaMA in bfloat16, its linear layers packed in eight bits."""
    from adapter.base.llama import Base
    from adapter.base.packed.quantize import quantize_linears

    model = copy.deepcopy(tiny_base.model).bfloat16()
    quantize_linears(model)
    return Base(model, tiny_base.tokenizer, tiny_base.fingerprint, "packed-int8", 0)


@pytest.fixture(scope="session")
def tiny_folder(tiny_base, tmp_path_factory) -> Path:
    """The tiny base on disk, for programs that load it."""
    from tests.tiny_models import save_base

    return save_base(tiny_base.model, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", params=[4, 2], ids=["mha", "gqa"])
def small(request, tmp_path_factory) -> tuple[AdaptedLlama, Path]:
    """A random LLaMA with logits of ordinary size, without and with grouped queries, fp32; and its folder."""
    from tests.tiny_models import random_llama, save_base

    model = random_llama(seed=1, std=0.15, random_norms=True, num_key_value_heads=request.param)
    return model, save_base(model, tmp_path_factory.mktemp("small"))


@pytest.fixture
def toasts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the toasts that the code under test shows."""
    import gradio as gr  # most tests need no page

    texts: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: texts.append(text))
    monkeypatch.setattr(gr, "Info", lambda text, **_: texts.append(text))
    return texts


# The page. One server and, in each file, one browser for all tests that need the real base in a real program: a
# worker of the test run starts it once.


@pytest.fixture(scope="session")
def real_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppProcess]:
    """app.py on the embedded base with the shipped adapters. Its answers can be slowed down."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "adapters").mkdir()
    with app_process(folder, "--adapters", str(folder / "adapters"), program=FAULTY_APP) as server:
        yield server


@pytest.fixture(scope="module")
def server(request: Any, tiny_folder: Path, tiny_fingerprint: Any, tmp_path_factory: Any) -> Iterator[AppProcess]:
    """The program over the endless tiny base, for a file that damages it or what is sent to it."""
    seconds = getattr(request.module, "STEP_SECONDS", 0.0)
    with tiny_app_process(tmp_path_factory.mktemp("server"), tiny_folder, tiny_fingerprint, seconds) as found:
        yield found


@pytest.fixture(scope="module")
def url(real_page: AppProcess) -> str:
    """The address of the page that `visit` opens. A file that needs another page overrides this."""
    return f"{real_page.url}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. One a file: while it runs, Playwright's event loop does."""
    playwright = pytest.importorskip("playwright.sync_api")
    from tests.browser import CHROMIUM, QUIET

    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Callable[..., Any]]:
    """Opens the page as a new visitor. Afterwards none has seen an error in it or a request to another machine."""
    from tests.browser import LATE_STREAM, Visitor

    visitors: list[Visitor] = []

    def new(width: int = 1440, height: int = 900, late: int = 0, locale: str = "en-US") -> Visitor:
        """late: milliseconds by which the stream of results is."""
        context = browser.new_context(viewport={"width": width, "height": height}, locale=locale)
        if late:
            context.add_init_script(LATE_STREAM.replace("MILLISECONDS", str(late)))
        visitors.append(Visitor(context, url))
        return visitors[-1]

    yield new
    for visitor in visitors:
        visitor.context.close()
        assert visitor.complaints == []
        assert [u for u in visitor.requested if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", u)] == []
