"""The page: reads the command line, composes the Blocks and serves them. Holds no model state."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by Gradio and the hub's client when they are imported: nothing here phones home.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Gradio's default folder for uploads is one for all users of a machine, who then lock each other out.
os.environ["GRADIO_TEMP_DIR"] = os.environ.get("GRADIO_TEMP_DIR") or str(
    Path(tempfile.gettempdir()) / f"llama-adapter-{getattr(os, 'getuid', lambda: 'uploads')()}"
)

if os.environ.get("SPACES_ZERO_GPU"):
    # Before torch, whose CUDA it stands in for; on a ZeroGPU Space it is installed.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its workers are forked
    with contextlib.suppress(ImportError):
        import spaces
import gradio as gr
from gradio import processing_utils
from gradio.blocks import BlockFunction
from gradio.context import LocalContext
from gradio.tunneling import CURRENT_TUNNELS
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from adapter.base.embedded import BASE
from adapter.server import openai_api
from adapter.server.deployment import PROXIES_OF_A_SPACE, Place, find_place, parse, port_problem, runs_folder
from adapter.server.generation import AdapterCatalog, EngineProvider
from adapter.server.libraries import import_libraries
from adapter.server.limits import SCOPE, UPLOAD_BYTES, Gate, LimitedProvider, Limits, address_of
from adapter.server.loader import LazyStore, ModelLoader
from adapter.server.upload_cleanup import HalfUploads
from adapter.ui import theme
from adapter.ui.chat_tab import chat_tab
from adapter.ui.compare_tab import compare_tab
from adapter.ui.status import header, refresh_periodically
from adapter.ui.texts import page as texts
from adapter.ui.texts.train import stopped_with_server
from train.ui.runs import TrainingRuns
from train.ui.tab import train_tab

if TYPE_CHECKING:
    from adapter.server.loader import ServingEngine

QUEUE_SIZE = 64
BROUGHT_BYTES = 256 * 2**20  # of an upload, where visitors may bring adapters
SESSIONS = 1000  # whose conversations Gradio keeps a copy of; the browser has its own


class Page(gr.Blocks):
    """Blocks that say in a sentence what is wrong with values, and do not write them to the log."""

    def validate_inputs(self, block_fn: BlockFunction, inputs: list[Any]) -> None:
        if len(inputs) < len(block_fn.inputs):
            raise gr.Error(texts.TOO_FEW_VALUES, print_exception=False)

    async def preprocess_data(self, *values: Any, **more: Any) -> list[Any]:
        try:
            return await super().preprocess_data(*values, **more)
        except gr.Error:
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise gr.Error(texts.WRONG_VALUE, print_exception=False) from error


def build_page(
    provider: EngineProvider,
    store: AdapterCatalog,
    training: bool = True,
    runs: TrainingRuns | None = None,
    base: str = BASE,
) -> gr.Blocks:
    """The whole page over an engine that may still be loading and a store of adapters.

    training: whether visitors may train adapters here, and bring their own; runs: what they train; base: its name.
    """
    # Uploads older than a day are deleted, looked for every hour.
    with Page(title=texts.TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        status = header(provider)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(texts.CHAT, id="chat"):
                chat = chat_tab(page, provider, store, uploads=training)
            with gr.Tab(texts.COMPARE, id="compare"):
                compare = compare_tab(provider, store)
            with gr.Tab(texts.TRAIN, id="train"):
                runs = runs or TrainingRuns(runs_folder())
                train_tab(tabs, runs, store, chat, compare, base, enabled=training)
        refresh_periodically(provider, store, status, [*chat.pickers, *compare.pickers])
    page.queue(max_size=QUEUE_SIZE, api_open=False)
    return page


def make_loader(arguments: argparse.Namespace, place: Place, store: LazyStore) -> ModelLoader:
    """A loader that binds `store` first, so that the picker fills early, and then brings up the base."""

    def load(report: Callable[[str], None]) -> tuple[ServingEngine, str]:
        report("Starting")
        # Seconds of imports, so not at the top: the page is there meanwhile.
        import_libraries()
        from adapter.base import embedded
        from adapter.base.llama import load_base
        from adapter.serve.engine import Engine
        from adapter.serve.store import SHIPPED, AdapterStore

        runs = runs_folder()
        adapters = AdapterStore(*(arguments.adapters or ()), runs, SHIPPED, incoming=runs)
        store.bind(adapters)
        name = arguments.base or embedded.BASE
        if name == embedded.BASE:
            report(f"Fetching and converting {name}, the first time only")
            embedded.base_folder()
        report(f"Loading {name}")
        if place.zero_gpu:
            from adapter.server.zero_gpu import ZeroGpuEngine, load_for_zero_gpu

            base = load_for_zero_gpu(name, arguments.quantization)
            return ZeroGpuEngine(base, adapters, spaces.GPU), base.describe()
        base = load_base(name, arguments.quantization)
        return Engine(base, adapters), base.describe()

    return ModelLoader(load)


def visitor() -> str:
    """The address of whoever is being served in this thread, "" for nobody."""
    if (request := LocalContext.request.get(None)) is not None and request.client is not None:
        return request.client.host
    return "" if (scope := SCOPE.get()) is None else address_of(scope)


async def fetch_nothing(*_: object, **__: object) -> str:
    """In the place of Gradio's download of a file that a browser or a program only names."""
    raise gr.Error(texts.NOTHING_IS_FETCHED, print_exception=False)


async def failed(*_: object) -> JSONResponse:
    """In the place of a bare status, where a route breaks; the server's log has the error."""
    return JSONResponse({"detail": texts.FAILED}, 500)


def serve(arguments: argparse.Namespace, place: Place) -> int:
    """Serve until a signal comes."""
    processing_utils.async_ssrf_protected_download = fetch_nothing
    if place.space:
        os.environ.setdefault("FORWARDED_ALLOW_IPS", PROXIES_OF_A_SPACE)  # uvicorn reads it
    store = LazyStore()
    loader = make_loader(arguments, place, store)
    if place.zero_gpu:
        loader.load_here()  # what is on the GPU before the launch, spaces lays by for its workers
    limits = Limits(place.public)
    uploads, most = Path(os.environ["GRADIO_TEMP_DIR"]), BROUGHT_BYTES if place.training else UPLOAD_BYTES
    provider = LimitedProvider(loader, limits, visitor)
    runs = TrainingRuns(runs_folder())
    page = build_page(provider, store, place.training, runs, arguments.base or BASE)
    try:
        _, url, shared = page.launch(
            server_name=place.host,
            server_port=place.port,
            auth=tuple(place.auth.split(":", 1)) if place.auth else None,
            share=place.share,
            theme=theme.gradio_theme(),
            css_paths=theme.STYLE_SHEETS,
            head=f"<script>{theme.SCRIPT.read_text(encoding='utf-8')}</script>",
            footer_links=["api"],
            run_history=False,
            enable_monitoring=False,
            show_error=False,  # only gr.Error's own text reaches the browser
            ssr_mode=False,
            favicon_path=theme.ICON,
            max_file_size=most,
            quiet=True,
            max_threads=2 * QUEUE_SIZE,  # each answer that is being streamed holds one
            state_session_capacity=SESSIONS,
            prevent_thread_lock=True,
            # The page's own server, as it is before the first request.
            app_kwargs={
                "exception_handlers": {Exception: failed},
                "routes": [openai_api.mount(provider, store, place.auth)],
                "middleware": [
                    Middleware(Gate, limits=limits, folder=uploads, most=most),
                    Middleware(HalfUploads, folder=uploads),
                ],
            },
        )
    except OSError as error:
        print(f"Cannot listen on {place.host}: {error}", file=sys.stderr)
        return 1
    try:
        print(f"Open {shared or url} (Ctrl+C stops it)", flush=True)
        for folder in arguments.adapters or ():
            if not folder.is_dir():
                print(f"There is no folder {folder} yet; its adapters appear once there is.", file=sys.stderr)
        if place.public and not place.auth and not place.space:
            print("Whoever can reach this address can chat; --auth USER:PASS asks for a password.", flush=True)
        if not place.zero_gpu:
            loader.start()
        threading.Event().wait()
    finally:
        close(page, loader, runs)
    return 0


def close(page: gr.Blocks, loader: ModelLoader, runs: TrainingRuns) -> None:
    """Let go of everything before the interpreter does: a thread that is in torch then would abort the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(130))  # whoever asks twice
    if name := runs.close():
        print(stopped_with_server(name), flush=True)
    idle = loader.close()
    if page.server is not None:
        page.server.force_exit = True  # open pages hold connections that never end
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it complains of just that
    page.close(verbose=False)
    for tunnel in CURRENT_TUNNELS:
        tunnel.kill()
    if not idle:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    place = find_place(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("adapter").setLevel(logging.INFO)
    if problem := port_problem(place.host, place.port):
        print(problem, file=sys.stderr)
        return 1
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C
    try:
        return serve(arguments, place)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
