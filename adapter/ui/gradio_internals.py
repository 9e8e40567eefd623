"""Every private name of Gradio that the page depends on, in Python, JavaScript and CSS.

Nothing else in this project may use one, but for the routes in adapter/server/request_guard.py.
tests/ui/test_gradio_internals.py checks each name against the installed Gradio, and requirements.txt bounds its
version because of this file.
"""

from __future__ import annotations

import os
from abc import ABCMeta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio import processing_utils, routes, tunneling
from gradio.context import LocalContext

from adapter.server.connections import ImpatientProtocol
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from starlette.requests import Request

# Photographs that come with Gradio; one of them is an example in the empty chat.
PHOTOGRAPHS = Path(gr.__file__).parent / "media_assets" / "images"

# Class names of Gradio's elements, from the style sheets and scripts in static/.
CSS_CLASSES = {
    "page": ("gradio-container", "main", "app", "dark", "divider", "tab-wrapper", "tabitem", "selected"),
    "blocks": ("block", "padded", "form", "row", "column", "wrap", "primary", "prose", "html-container"),
    "accordion": ("label-wrap",),
    "chatbot": (
        *("bot", "bot-row", "user", "user-row", "component", "message", "message-row", "message-wrap"),
        *("message-buttons", "message-buttons-right", "icon-button-wrapper", "flex-wrap", "edit-textarea"),
        *("option", "options", "placeholder", "placeholder-content", "image-container"),
        *("example", "examples", "example-content", "example-image-container"),
        *("example-text", "example-text-content"),
    ),
    "multimodal textbox": (
        *("full-container", "submit-button", "stop-button", "thumbnail-item", "delete-button"),
    ),
}
# Values of attributes in their selectors, as written in Gradio's scripts.
ATTRIBUTES = ("accordion-content", "Copy message")


class StrictBlocks(gr.Blocks):
    """Blocks that answer malformed input values with one sentence, and do not log them.

    Gradio would put the values into its error message and its log.
    """

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if len(inputs) < len(block_fn.inputs):
            raise gr.Error(texts.TOO_FEW_VALUES, print_exception=False)

    async def preprocess_data(self, *values: Any, **more: Any) -> list[Any]:
        try:
            return await super().preprocess_data(*values, **more)
        except (gr.Error, TypeError, ValueError, LookupError, AttributeError) as error:
            if isinstance(error, gr.Error) and not error.print_exception:
                raise  # the page's own, a sentence for the visitor
            raise gr.Error(texts.WRONG_VALUE, print_exception=False) from error


def subclass_component(name: str, parent: type, methods: dict[str, Any]) -> Any:
    """A subclass of a Gradio component that uses its parent's frontend.

    Bypasses Gradio's metaclass, which would write a .pyi file beside the module that defines the class.
    """
    return ABCMeta.__new__(type(parent), name, (parent,), {"is_template": True, **methods})


def refuse_remote_files() -> None:
    """Make Gradio refuse files that a request names by an http address; by itself it downloads them."""

    async def refuse(*_: object, **__: object) -> str:
        raise gr.Error(texts.NOTHING_IS_FETCHED, print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse


def set_upload_folder(folder: Path) -> None:
    """Makes Gradio keep all its files in `folder`. Call it before the page is built.

    Some of its modules have read the variable when they were imported, and one makes a folder there.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    routes.DEFAULT_TEMP_DIR = str(folder)


def limit_connections(page: gr.Blocks) -> None:
    """Make the server of a launched page close connections that say nothing or are too many."""
    page.server.config.http_protocol_class = ImpatientProtocol  # looked up for each new connection


def close_page(page: gr.Blocks) -> None:
    """Stop the server of a launched page at once, and its share link.

    `close` alone waits for the event streams of open pages, which never end.
    """
    if page.server is not None:
        page.server.force_exit = True
    page.close(verbose=False)
    for tunnel in tunneling.CURRENT_TUNNELS:
        tunnel.kill()


def set_current_request(request: Request, blocks: gr.Blocks) -> None:
    """Tell the package `spaces` whose GPU quota counts in this thread; Gradio does so for its own events only."""
    if LocalContext.request.get(None) is None:
        LocalContext.request.set(gr.Request(request))
        LocalContext.blocks.set(blocks)
