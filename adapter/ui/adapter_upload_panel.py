"""The part of the side column where a visitor uploads an adapter. The checks are in server/adapter_upload.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.server.generation import AdapterCatalog, EngineProvider
from adapter.server.loader import import_libraries
from adapter.ui import theme
from adapter.ui.status import PRIVATE, Picker, toast
from adapter.ui.texts import page as texts

log = logging.getLogger(__name__)

_FILE_TYPES = [".zip", ".json", ".safetensors", ".md"]


def adapter_upload_panel(
    provider: EngineProvider, catalog: AdapterCatalog, picker: Picker, others: Sequence[Picker]
) -> None:
    """Lays the panel out in the current Blocks and connects it.

    An uploaded adapter is selected in `picker` and becomes a choice of the others.
    """
    with gr.Accordion(texts.UPLOAD, open=False, elem_id="adapter-upload"):
        gr.Markdown(texts.UPLOAD_HINT, elem_classes="hint")
        files = gr.File(label=texts.UPLOAD_FILES, file_count="multiple", file_types=_FILE_TYPES, height=140)
        name = gr.Textbox(label=texts.UPLOAD_NAME, placeholder=texts.UPLOAD_NAME_HINT, max_lines=1, max_length=40)
        button = gr.Button(texts.UPLOAD_BUTTON, variant="secondary")

    def upload_adapter(paths: list[str] | None, wanted_name: str) -> tuple[Any, ...]:
        # Imported here, because it takes seconds and the page is served before.
        import_libraries()
        from adapter.server.adapter_upload import add_adapter

        unchanged = [gr.skip()] * (3 + len(others))
        try:
            if (engine := provider.engine()) is None:
                raise BadInput(texts.UPLOAD_LATER)
            files = [Path(path) for path in paths or ()]
            uploaded = add_adapter(files, wanted_name or "", catalog.bound(), engine.base.fingerprint)
        except AdapterError as error:
            toast(error)
            return tuple(unchanged)
        except Exception:
            log.exception("an adapter could not be uploaded")
            toast(AdapterError(texts.FAILED))
            return tuple(unchanged)
        message = (
            texts.adapter_uploaded(uploaded.name) if uploaded.new else texts.adapter_already_here(uploaded.name)
        )
        gr.Info(message, duration=6)
        choices = theme.picker_choices(catalog)
        return None, "", picker.update(choices, uploaded.name), *[other.update(choices, None) for other in others]

    outputs = [files, name, picker.component, *[other.component for other in others]]
    # One upload at a time: a check may take seconds and some hundred megabytes of memory.
    button.click(
        upload_adapter, [files, name], outputs, concurrency_limit=1, concurrency_id="adapter-upload", **PRIVATE
    )
