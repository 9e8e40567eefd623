"""The command line of the page: composes the rooms and serves them. Holds no logic of its own."""

import argparse
import contextlib
import gc
import inspect
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from adapter.base.threads import share_arenas, sleep_when_idle

if __name__ == "__main__":
    # Until the base is loaded: the collector would look through the growing modules again and again, which was a
    # quarter of the time to the first answer. make_provider switches it on again.
    gc.disable()

# Read by Gradio and the hub's client when they are imported: nothing here phones home.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

sleep_when_idle()
share_arenas()

if os.environ.get("SPACES_ZERO_GPU"):
    # Before torch, whose CUDA it stands in for; on a ZeroGPU Space it is installed.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its workers are forked
    with contextlib.suppress(ImportError):
        import spaces
_find_file = inspect.getfile


def _find_no_component(object: Any) -> str:
    """Gradio (6.31) is imported in half the time without the type stubs that it writes for editors."""
    if type(object).__name__ == "ComponentMeta":
        raise OSError("a component of Gradio, of which no stub is to be written")
    return _find_file(object)


with patch.object(inspect, "getfile", _find_no_component):
    import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Mount

from adapter.base import embedded
from adapter.errors import LoadError
from adapter.serve.settings import SHIPPED
from adapter.server import deployment, openai_api
from adapter.server.deployment import Place
from adapter.server.generation import AdapterCatalog, EngineProvider, ServingEngine, import_libraries
from adapter.server.limits import Limits
from adapter.server.metrics import CountedEngine, Metrics, routes
from adapter.server.request_guard import ADAPTER_BYTES, EXCEPTION_HANDLERS, UPLOAD_BYTES, RequestGuard
from adapter.ui import gradio_internals, theme
from adapter.ui.chat.tab import chat_tab
from adapter.ui.compare.tab import compare_tab
from adapter.ui.gradio_internals import StrictBlocks
from adapter.ui.preload import preload_links
from adapter.ui.status import header, refresh_periodically
from adapter.ui.texts import page as texts
from train.ui.runs import TrainingRuns
from train.ui.tab import STYLE_SHEET, train_tab
from train.ui.texts import stopped_with_server

QUEUE_SIZE = 64
SESSIONS = 1000  # that Gradio knows; the browser keeps the conversations


def build_page(
    provider: EngineProvider,
    store: AdapterCatalog,
    training: bool = True,
    runs: TrainingRuns | None = None,
    base: str = embedded.BASE,
    public: bool = False,
) -> gr.Blocks:
    """The whole page over an engine that may still be loading and a store of adapters.

    training: whether visitors may train adapters here and upload their own; runs: what they train; base: its name;
    public: whether others than this machine may ask.
    """
    daily = {"delete_cache": (3600, 86400)}  # uploads older than a day are deleted, looked for every hour
    with StrictBlocks(title=texts.TITLE, analytics_enabled=False, fill_width=True, **daily) as page:
        status = header(provider)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(texts.CHAT, id="chat", elem_id="chat-tab"):
                chat = chat_tab(page, provider, store, uploads=training, public=public)
            with gr.Tab(texts.COMPARE, id="compare"):
                comparing = compare_tab(provider, store, tabs, chat)
            if training:
                with gr.Tab(texts.TRAIN, id="train"):
                    runs = runs or TrainingRuns(deployment.runs_folder())
                    train_tab(page, tabs, runs, chat, base, public)
        refresh_periodically(provider, store, status, [*chat.pickers, *comparing], chat.chosen, chat.describe)
        page.queue(max_size=QUEUE_SIZE, api_open=False)
    return page


def make_provider(
    arguments: argparse.Namespace, place: Place, store: AdapterCatalog, limits: Limits, metrics: Metrics
) -> EngineProvider:
    """A provider that binds `store` first, so that the picker fills early, and then loads the base."""

    def load(report: Callable[[str], None]) -> ServingEngine:
        report("Starting")
        # Takes seconds, so not at the top: the page is up meanwhile.
        import_libraries()
        from adapter.base.llama import load_base
        from adapter.method.config import base_label
        from adapter.serve.engine import Engine
        from adapter.serve.store import AdapterStore

        runs = deployment.runs_folder()
        name = arguments.base or embedded.BASE
        adapters = AdapterStore(*arguments.adapters, runs, SHIPPED, incoming=runs)
        store.bind(adapters)
        if name == embedded.BASE:
            report(f"Fetching and converting {name}, the first time only")
            embedded.base_folder()
        if arguments.cluster:
            starts = arguments.cluster == "local"
            report(f"Starting replicas of {base_label(name)}" if starts else "Joining the cluster")
            settings = arguments.quantization, arguments.cache_bytes, arguments.replicas
            try:
                from adapter.cluster.engine import connect
            except ImportError as error:
                needs = "--cluster needs Ray: .venv/bin/pip install -e '.[cluster]' in the folder of this program."
                raise LoadError(needs, str(error)) from error
            return connect(arguments.cluster, name, *settings, adapters, arguments.keep_packed)
        report(f"Loading {base_label(name)}")
        if place.zero_gpu:
            from adapter.server.zero_gpu import ZeroGpuEngine, load_for_zero_gpu

            base = load_for_zero_gpu(name, arguments.quantization)
            return ZeroGpuEngine(base, adapters, spaces.GPU, gr.Error)
        base = load_base(name, arguments.quantization, keep_packed=arguments.keep_packed)
        return Engine(base, adapters, cache_bytes=arguments.cache_bytes)

    def load_counted(report: Callable[[str], None]) -> ServingEngine:
        try:
            return cast(ServingEngine, CountedEngine(load(report), limits, metrics))
        finally:
            if not gc.isenabled():
                gc.freeze()  # what is loaded stays: no later collection looks through it and holds up a token
                gc.enable()

    return EngineProvider(load_counted)


def launch(page: gr.Blocks, place: Place, most: int, own: list[BaseRoute], middleware: list[Middleware]) -> str:
    """Serves the page and the program's own routes; returns the address. most: bytes of an upload."""
    _, url, shared = page.launch(
        server_name=f"[{place.host}]" if ":" in place.host else place.host,
        server_port=place.port,
        auth=tuple(place.auth.split(":", 1)) if place.auth else None,
        auth_message=texts.SIGN_IN,
        share=place.share,
        theme=theme.gradio_theme(),
        css_paths=[*theme.STYLE_SHEETS, STYLE_SHEET],
        head=theme.HEAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        favicon_path=theme.ICON,
        max_file_size=most,
        quiet=True,
        max_threads=2 * QUEUE_SIZE,  # each answer that is being streamed holds one
        state_session_capacity=SESSIONS,
        prevent_thread_lock=True,
        # Of the FastAPI application that Gradio serves the page with.
        app_kwargs={"exception_handlers": EXCEPTION_HANDLERS, "routes": own, "middleware": middleware},
    )
    return shared or url


def serve(arguments: argparse.Namespace, place: Place, uploads: Path) -> int:
    """Serves until a signal comes. uploads: the folder that Gradio keeps uploads in."""
    gradio_internals.refuse_remote_files()
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if (path := os.environ.get("GRADIO_ROOT_PATH", "")).startswith("/"):
        os.environ["GRADIO_ROOT_PATH"] = path.rstrip("/")  # with a slash at its end Gradio would find no route
    if place.space:
        os.environ.setdefault("FORWARDED_ALLOW_IPS", deployment.PROXIES_OF_A_SPACE)  # uvicorn reads it
    shipped = arguments.base in (None, embedded.BASE) or SHIPPED in map(Path.resolve, arguments.adapters)
    store = AdapterCatalog(shipped)
    limits, metrics = Limits(place.public), Metrics(store)
    provider = make_provider(arguments, place, store, limits, metrics)
    if place.zero_gpu:
        provider.load_here()  # spaces keeps what is on the GPU before the launch for its workers
    most = ADAPTER_BYTES if place.training else UPLOAD_BYTES
    runs = TrainingRuns(deployment.runs_folder())
    page = build_page(provider, store, place.training, runs, arguments.base or embedded.BASE, place.public)
    gradio_internals.guard(page, SESSIONS, limits)

    def prepare(request: Request) -> None:
        if place.zero_gpu:
            gradio_internals.set_current_request(request, page)

    api = openai_api.Api(provider, store, place.auth, prepare)
    own_routes = [Mount("/v1", api), *routes(provider, metrics, place.auth)]
    frames, preload = place.frames, preload_links()
    door = Middleware(RequestGuard, limits=limits, uploads=uploads, most=most, frames=frames, preload=preload)
    try:
        # At an address that is not this machine's, Gradio would try a hundred ports, five seconds each.
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        socket.create_server((place.host, place.port or 0), family=family).close()
        if direct != "*":  # Gradio asks the page that it has started once, which no proxy reaches
            beside = filter(None, (direct, "localhost", place.host))
            os.environ["no_proxy"] = ",".join(beside) if place.share else "*"
        url = launch(page, place, most, own_routes, [door])
        os.environ.pop("no_proxy", None)  # on macOS it would hide the proxies of the system's settings
        os.environ.update({"no_proxy": direct} if direct else {})
    except (OSError, UnicodeError):  # Gradio's words are about its own parameters
        where = place.host if place.port is None else f"{place.host}:{place.port}"
        print(
            f"Cannot listen on {where}. Give a --host that is an address of this machine and a --port that is "
            "free, or neither, nor GRADIO_SERVER_NAME: then it is this machine only, and the first free port.",
            file=sys.stderr,
        )
        return 1
    try:
        deployment.set_up_logs()
        print(f"Open {url} (Ctrl+C stops it)", flush=True)
        print(deployment.describe_access(place), flush=True)
        if not place.zero_gpu:
            provider.start()
        while True:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray takes it away
            time.sleep(1)
    finally:
        close(page, provider, runs, uploads)


def close(page: gr.Blocks, provider: EngineProvider, runs: TrainingRuns, uploads: Path) -> None:
    """Close everything before the interpreter exits: a thread inside torch would then abort the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(130))  # the second signal
    with ThreadPoolExecutor(1) as pool:  # a run is saved while answers end
        ended = pool.submit(runs.close)
        idle = provider.close()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it complains of connections that are cut
        gradio_internals.close_page(page)
    if (saved := ended.result()) is not None:
        print(stopped_with_server(saved), flush=True)
    if not idle:
        shutil.rmtree(uploads, ignore_errors=True)
        os._exit(0)


def main(argv: list[str] | None = None) -> int:
    arguments = deployment.parse(argv)
    place = deployment.find_place(arguments)
    deployment.set_up_logs()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C
    deployment.allow_open_files()
    with contextlib.ExitStack() as stack:
        try:
            uploads = stack.enter_context(deployment.upload_folder(os.environ.get("GRADIO_TEMP_DIR")))
        except OSError as error:
            print(f"Cannot keep uploads: {error}. Let GRADIO_TEMP_DIR name a folder to write to.", file=sys.stderr)
            return 1
        gradio_internals.set_upload_folder(uploads)
        try:
            return serve(arguments, place, uploads)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
