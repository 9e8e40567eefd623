"""The page: reads the command line, composes the Blocks and serves them. Holds no model state."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

# Read by Gradio and the hub's client when they are imported: nothing here phones home.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Gradio's default folder for uploads is one for all users of a machine, who then lock each other out.
os.environ["GRADIO_TEMP_DIR"] = os.environ.get("GRADIO_TEMP_DIR") or str(
    Path(tempfile.gettempdir()) / f"llama-adapter-{getattr(os, 'getuid', lambda: 'uploads')()}"
)

import gradio as gr

from adapter.ui import look, openai_api, texts
from adapter.ui.chat import chat_tab
from adapter.ui.compare import compare_tab
from adapter.ui.live import header, keep_fresh
from adapter.ui.loader import LazyStore, ModelLoader
from adapter.ui.requests import EngineProvider

if TYPE_CHECKING:
    from adapter.engine import Engine

FIRST_PORT = 7860
MAX_UPLOAD = "40mb"
QUEUE_SIZE = 64
LOCAL = {"127.0.0.1", "localhost", "::1"}


def build_page(provider: EngineProvider, store: look.Cards) -> gr.Blocks:
    """The whole page over an engine that may still be loading and a store of adapters."""
    # Uploads older than a day are deleted, looked for every hour.
    with gr.Blocks(title=texts.TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        status = header(provider)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(texts.CHAT, id="chat"):
                pickers = chat_tab(provider, store)
            with gr.Tab(texts.COMPARE, id="compare"):
                pickers += compare_tab(provider, store)
        keep_fresh(provider, store, status, pickers)
    page.queue(max_size=QUEUE_SIZE, api_open=False)
    return page


def make_loader(arguments: argparse.Namespace, store: LazyStore) -> ModelLoader:
    """A loader that binds `store` first, so that the picker fills early, and then brings up the base."""

    def load(report: Callable[[str], None]) -> tuple[Engine, str]:
        report("Starting")
        # Seconds of imports, so not at the top: the page is there meanwhile.
        from adapter import embedded
        from adapter.engine import Engine
        from adapter.llama import load_base
        from adapter.store import SHIPPED, AdapterStore

        adapters = AdapterStore(*(arguments.adapters or ()), SHIPPED)
        store.bind(adapters)
        name = arguments.base or embedded.BASE
        if name == embedded.BASE:
            report(f"Fetching and converting {name}, the first time only")
            embedded.base_folder()
        report(f"Loading {name}")
        base = load_base(name, arguments.quantization)
        return Engine(base, adapters), base.describe()

    return ModelLoader(load)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="app.py", description="Chat with a frozen LLaMA through swappable adapters."
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, help=f"port (default: the first free one from {FIRST_PORT})")
    parser.add_argument(
        "--base", metavar="NAME", help="Hugging Face id or folder of a LLaMA (default: the embedded one)"
    )
    parser.add_argument("--quantization", choices=("auto", "nf4", "int8", "none"), default="auto")
    parser.add_argument(
        "--adapters",
        metavar="DIR",
        type=Path,
        action="append",
        help="another folder of adapters, looked into before assets/adapters; may be repeated",
    )
    parser.add_argument("--share", action="store_true", help="open a public link through gradio.live")
    parser.add_argument("--auth", metavar="USER:PASS", help="ask for this name and password")
    arguments = parser.parse_args(argv)
    if arguments.auth is not None and not all(arguments.auth.partition(":")):
        parser.error("--auth needs USER:PASS, both parts non-empty")
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        parser.error(f"--port must lie between 1 and 65535, got {arguments.port}")
    return arguments


def address(arguments: argparse.Namespace) -> tuple[str, int | None]:
    """Host and port to listen on; port None: the first free one. On Spaces, what Spaces expects."""
    if os.environ.get("SPACE_ID"):
        return arguments.host or "0.0.0.0", arguments.port or FIRST_PORT
    return arguments.host or "127.0.0.1", arguments.port


def port_problem(host: str, port: int) -> str | None:
    """Why `port` cannot be listened on, in one line; None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return (
                f"Cannot listen on {host}:{port}: {error.strerror}. "
                "Give another --port, or leave it out to take the first free one."
            )
    return None


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("adapter").setLevel(logging.INFO)
    host, port = address(arguments)
    if port is not None and (problem := port_problem(host, port)):
        print(problem, file=sys.stderr)
        return 1
    store = LazyStore()
    loader = make_loader(arguments, store)
    page = build_page(loader, store)
    try:
        _, url, shared = page.launch(
            server_name=host,
            server_port=port,
            auth=tuple(arguments.auth.split(":", 1)) if arguments.auth else None,
            share=arguments.share,
            theme=look.theme(),
            css_paths=look.STYLE_SHEETS,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            show_error=False,  # only gr.Error's own text reaches the browser
            ssr_mode=False,
            favicon_path=look.ICON,
            max_file_size=MAX_UPLOAD,
            quiet=True,
            max_threads=2 * QUEUE_SIZE,  # each answer that is being streamed holds one
            prevent_thread_lock=True,
            # Routes of the page's own server, there before the first request.
            app_kwargs={"routes": [openai_api.route(loader, store, arguments.auth)]},
        )
    except OSError as error:
        print(f"Cannot listen on {host}: {error}", file=sys.stderr)
        return 1
    print(f"Open {shared or url} (Ctrl+C stops it)", flush=True)
    for folder in arguments.adapters or ():
        if not folder.is_dir():
            print(f"There is no folder {folder} yet; its adapters appear once there is.", file=sys.stderr)
    if (shared or host not in LOCAL) and not arguments.auth and not os.environ.get("SPACE_ID"):
        print("Whoever can reach this address can chat; --auth USER:PASS asks for a password.", flush=True)
    loader.start()
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
