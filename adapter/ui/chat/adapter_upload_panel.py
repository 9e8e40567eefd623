"""Where a visitor uploads an adapter or opens one from the Hub, and renames or deletes one that was added here.

What they do to files is in server/adapter_upload.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from huggingface_hub import get_token

from adapter.errors import AdapterError, BadInput
from adapter.formats import hub
from adapter.serve.settings import BASE_ONLY
from adapter.server.generation import AdapterCatalog, EngineProvider, import_libraries
from adapter.ui import theme
from adapter.ui.status import PRIVATE, QUEUED, UNQUEUED, Picker
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_toasts, toast

if TYPE_CHECKING:
    from adapter.method.config import BaseFingerprint
    from adapter.serve.store import AdapterStore
    from adapter.server.adapter_upload import UploadedAdapter

_FILE_TYPES = [".zip", ".json", ".safetensors", ".md"]


# The repository that the page's address names, #adapter=owner/name; otherwise what is in the field.
_LINKED = r"""field => {
  const named = decodeURIComponent(location.hash).match(/^#adapter=([\w.@/-]{3,200})$/);
  return named ? named[1] : field;
}"""
_LEAVE = "() => history.replaceState(null, '', location.pathname + location.search)"


def adapter_upload_panel(
    page: gr.Blocks,
    provider: EngineProvider,
    catalog: AdapterCatalog,
    pickers: Sequence[Picker],
    questions: gr.Column,
    public: bool,
) -> None:
    """Lays the panel out in the current Blocks and connects it.

    An added adapter is selected in the first of the pickers and becomes a choice of the others. questions: the
    place for one that the page's address names. public: whether others than this machine may ask; then nothing is
    fetched with its login on the Hub.
    """
    picker, *others = pickers
    with gr.Accordion(texts.UPLOAD, open=False, elem_id="adapter-upload"):
        gr.Markdown(texts.UPLOAD_HINT, elem_classes="hint")
        files = gr.File(label=texts.UPLOAD_FILES, file_count="multiple", file_types=_FILE_TYPES, height=140)
        name = gr.Textbox(label=texts.UPLOAD_NAME, placeholder=texts.UPLOAD_NAME_HINT, max_lines=1, max_length=40)
        button = gr.Button(texts.UPLOAD_BUTTON, variant="secondary")
        repository = gr.Textbox(label=texts.HUB, placeholder=texts.HUB_HINT, max_lines=1, max_length=200)
        fetch = gr.Button(texts.HUB_BUTTON, variant="secondary")
    with questions, gr.Column(visible=False, elem_id="hub-link") as link:
        linked = gr.Markdown()
        with gr.Row():
            fetch_linked = gr.Button(texts.HUB_BUTTON, variant="primary", size="sm", min_width=80)
            leave = gr.Button(texts.HUB_LEAVE, size="sm", min_width=80)
    count = 2 + len(others)

    def add(act: Callable[[AdapterStore, BaseFingerprint], UploadedAdapter]) -> tuple[Any, ...]:
        """Updates of (files, the pickers, the link's question)."""
        with errors_as_toasts("the upload of an adapter"):
            if (engine := provider.engine()) is None:
                raise BadInput(texts.UPLOAD_LATER)
            uploaded = act(catalog.bound(), engine.base.fingerprint)
            said = texts.adapter_uploaded if uploaded.new else texts.adapter_already_here
            toast(said(uploaded.name), 6)
            choices = theme.picker_choices(catalog)
            followers = [other.update(choices, None) for other in others]
            return None, picker.update(choices, uploaded.name), *followers, gr.update(visible=False)
        return (gr.skip(),) * (1 + count)

    def upload_adapter(paths: list[str] | None, wanted_name: str) -> tuple[Any, ...]:
        # Imported here, because it takes seconds and the page is served before.
        import_libraries()
        from adapter.server.adapter_upload import add_adapter

        return add(lambda *store: add_adapter([Path(path) for path in paths or ()], wanted_name or "", *store))

    def fetch_adapter(repository: str) -> tuple[Any, ...]:
        import_libraries()
        from adapter.server.adapter_upload import add_from_hub

        token = False if public else get_token() or False
        return add(lambda store, base: add_from_hub(repository or "", store, base, token))

    def show_link(repository: str) -> tuple[Any, ...]:
        named = hub.parse(repository or "") is not None
        return gr.update(visible=named), texts.linked_adapter(repository) if named else "", repository

    outputs = [files, picker.component, *[other.component for other in others], link]
    # One at a time: a check may take seconds and some hundred megabytes of memory.
    once = {"concurrency_limit": 1, "concurrency_id": "adapter-upload", **PRIVATE}
    button.click(upload_adapter, [files, name], outputs, **once)
    gr.on([fetch.click, fetch_linked.click], fetch_adapter, repository, outputs, **once)
    gr.on([leave.click, fetch_linked.click], None, js=_LEAVE, **UNQUEUED)
    leave.click(lambda: gr.update(visible=False), None, link, **UNQUEUED)
    page.load(show_link, repository, [link, linked, repository], js=_LINKED, **UNQUEUED)


def own_adapter_panel(catalog: AdapterCatalog, picker: Picker) -> None:
    """Lays out, in the current Blocks, what can be done to the adapter in `picker` if it was added here.

    The other pickers follow by themselves, see status.py.
    """
    with gr.Row(visible=False, elem_id="own-actions") as actions:
        name = gr.Textbox(
            label=texts.RENAME,
            show_label=False,
            submit_btn=texts.RENAME,
            max_lines=1,
            max_length=40,
            min_width=140,
        )
        delete = gr.Button(texts.DELETE, size="sm", min_width=70, scale=0, elem_id="delete-adapter")
    undo = gr.Button(visible=False, size="sm", elem_id="undo-delete")
    deleted = gr.State(("", ""))  # the name and the token of the last one

    def show(selected: str | None) -> tuple[Any, str]:
        try:
            own = bool(selected) and catalog.card(selected or "").own
        except AdapterError:
            own = False
        return gr.update(visible=own), selected or ""

    def apply(act: Callable[[AdapterStore], tuple[str, tuple[str, str]]]) -> tuple[Any, ...]:
        """Updates after `act`, which returns the adapter to select, and what Undo puts back from now on."""
        with errors_as_toasts("a change of an adapter"):
            chosen, last = act(catalog.bound())
            button = gr.update(visible=bool(last[0]), value=texts.undo_delete(last[0]))
            return picker.update(theme.picker_choices(catalog), chosen), button, last
        return gr.skip(), gr.skip(), gr.skip()

    def rename(selected: str, new_name: str, last: tuple[str, str]) -> tuple[Any, ...]:
        from adapter.server.adapter_upload import rename_adapter

        return apply(lambda store: (rename_adapter(selected, new_name or "", store), last))

    def remove(selected: str) -> tuple[Any, ...]:
        from adapter.server.adapter_upload import delete_adapter

        return apply(lambda store: (BASE_ONLY, (selected, delete_adapter(selected, store))))

    def restore(last: tuple[str, str]) -> tuple[Any, ...]:
        from adapter.server.adapter_upload import restore_adapter

        return apply(lambda store: (restore_adapter(*last, store), ("", "")))

    outputs = [picker.component, undo, deleted]
    picker.component.change(show, picker.component, [actions, name], **UNQUEUED)
    name.submit(rename, [picker.component, name, deleted], outputs, **QUEUED)
    delete.click(remove, picker.component, outputs, **QUEUED)
    undo.click(restore, deleted, outputs, **QUEUED)
