"""The part of the side column where a visitor brings an adapter. Knows components; the checks are in upload.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.server.libraries import import_libraries
from adapter.server.settings import EngineProvider
from adapter.ui import theme as look
from adapter.ui.chat_events import toast
from adapter.ui.status import PRIVATE, Picker
from adapter.ui.texts import page as texts

log = logging.getLogger(__name__)

_FILES = [".zip", ".json", ".safetensors", ".md"]


def bring_an_adapter(
    provider: EngineProvider, store: look.Cards, picker: Picker, others: Sequence[Picker]
) -> None:
    """Lay it out and connect it: what comes in is chosen in `picker`, and can be chosen in the others."""
    with gr.Accordion(texts.BRING, open=False, elem_id="bring"):
        gr.Markdown(texts.BRING_HINT, elem_classes="hint")
        files = gr.File(label=texts.BRING_FILES, file_count="multiple", file_types=_FILES, height=140)
        name = gr.Textbox(label=texts.BRING_NAME, placeholder=texts.BRING_NAME_HINT, max_lines=1, max_length=40)
        button = gr.Button(texts.BRING_BUTTON, variant="secondary")

    def bring_it(paths: list[str] | None, wanted: str) -> tuple[Any, ...]:
        # Seconds of imports, so not at the top: the page is there before them.
        import_libraries()
        from adapter.server.adapter_upload import bring

        try:
            if (engine := provider.engine()) is None:
                raise BadInput(texts.BRING_LATER)
            brought = bring(
                [Path(path) for path in paths or ()], wanted or "", store.bound(), engine.base.fingerprint
            )
        except AdapterError as error:
            toast(error)
            return gr.skip(), gr.skip(), gr.skip(), *[gr.skip()] * len(others)
        except Exception:
            log.exception("an adapter could not be brought")
            toast(AdapterError(texts.FAILED))
            return gr.skip(), gr.skip(), gr.skip(), *[gr.skip()] * len(others)
        gr.Info(texts.brought(brought.name) if brought.new else texts.brought_before(brought.name), duration=6)
        choices = look.picker_choices(store)
        more = [gr.update(choices=look.short_choices(choices, other.none or "")) for other in others]
        return None, "", gr.update(choices=choices, value=brought.name), *more

    outputs = [files, name, picker.component, *[other.component for other in others]]
    # One after the other: each may take a while and some hundred megabytes.
    button.click(bring_it, [files, name], outputs, concurrency_limit=1, concurrency_id="bring", **PRIVATE)
