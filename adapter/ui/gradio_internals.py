"""Every private name of Gradio's Python that the page depends on.

Nothing else in this project may use one, but for gradio_queue.py and the routes in
adapter/server/request_guard.py. requirements.txt bounds Gradio's version because of these, and of the class names
in static/*.css and static/*.js.
"""

from __future__ import annotations

import os
from abc import ABCMeta
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils, routes, tunneling
from gradio.context import LocalContext
from starlette.requests import Request

from adapter.ui.texts import page as texts
from adapter.ui.toasts import refusal

# Photographs that come with Gradio; one of them is an example in the empty chat.
PHOTOGRAPHS = Path(gr.__file__).parent / "media_assets" / "images"


@dataclass
class Unconverted:
    """A component's value as it is sent, of which what stays is the same object from update to update.

    By itself Gradio converts and copies all messages of a Chatbot for each update within its event loop, which
    takes 50 ms for a long conversation (6.31). It does not look into this.
    """

    value: list[Any]


def _converted(data: list[Any]) -> list[Any]:
    return [value.value if isinstance(value, Unconverted) else value for value in data]


class StrictBlocks(gr.Blocks):
    """Blocks that answer malformed input values with one sentence and do not log them, as Gradio would; and whose
    updates cost what is new in them.
    """

    def launch(self, *values: Any, **more: Any) -> Any:
        """As Gradio's, which gives up where its first page takes 3 seconds, as on a busy machine (6.31)."""
        return super().launch(*values, **more, _frontend=False)

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if len(inputs) < len(block_fn.inputs):
            raise refusal(texts.TOO_FEW_VALUES)

    async def preprocess_data(self, *values: Any, **more: Any) -> list[Any]:
        try:
            return await super().preprocess_data(*values, **more)
        except (gr.Error, TypeError, ValueError, LookupError, AttributeError) as error:
            if isinstance(error, gr.Error) and not error.print_exception:
                raise  # the page's own, a sentence for the visitor
            raise refusal(texts.WRONG_VALUE) from error

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """As Gradio's, which makes each component anew that an update skips, with its schema (6.31)."""
        values = [predictions] if len(block_fn.outputs) == 1 else predictions
        if not isinstance(values, list | tuple) or len(values) != len(block_fn.outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        new = [i for i, value in enumerate(values) if value != gr.skip()]
        part, shown = copy(block_fn), list(values)
        part.outputs, given = [block_fn.outputs[i] for i in new], [values[i] for i in new]
        if new:
            made = await super().postprocess_data(part, given[0] if len(new) == 1 else given, state)
            for i, value in zip(new, made, strict=True):
                shown[i] = value
        return shown

    def handle_streaming_diffs(self, block_fn: Any, data: list[Any], **of: Any) -> list[Any]:
        return super().handle_streaming_diffs(block_fn, _converted(data), **of)

    async def process_api(self, *values: Any, **more: Any) -> dict[str, Any]:
        output = await super().process_api(*values, **more)
        return {**output, "data": _converted(output["data"])}


def subclass_component(name: str, parent: type, methods: dict[str, Any]) -> Any:
    """A subclass of a Gradio component that uses its parent's frontend.

    Bypasses Gradio's metaclass, which would write a .pyi file beside the module that defines the class.
    """
    return ABCMeta.__new__(type(parent), name, (parent,), {"is_template": True, **methods})


def refuse_remote_files() -> None:
    """Make Gradio refuse files that a request names by an http address; by itself it downloads them."""

    async def refuse(*_: object, **__: object) -> str:
        raise refusal(texts.NOTHING_IS_FETCHED)

    processing_utils.async_ssrf_protected_download = refuse


def set_upload_folder(folder: Path) -> None:
    """Makes Gradio keep all its files in `folder`. Call it before the page is built.

    Some of its modules have read the variable when they were imported, and one makes a folder there.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    routes.DEFAULT_TEMP_DIR = str(folder)


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
