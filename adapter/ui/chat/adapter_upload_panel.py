"""Where a visitor uploads an adapter or opens one from the Hub, and deletes what was added here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import get_token

from adapter.errors import BadInput
from adapter.serve.settings import BASE_ONLY
from adapter.server.generation import AdapterCatalog, import_libraries
from adapter.ui import images, theme
from adapter.ui.chat.conversation_store import ConversationStore, sent_text
from adapter.ui.status import PRIVATE, QUEUED, Picker
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_toasts, toast

_FILE_TYPES = [".zip", ".json", ".safetensors", ".md"]
# A question about the repository that the page's address names, #adapter=owner/name.
_LINK_JS = r"""
const named = location.hash.replace(/%(2f|40)/gi, unescape).match(/^#adapter=([\w.-]+\/[\w.-]+(@[\w./-]+)?)$/);
const question = element.closest('#hub-link');
question.toggleAttribute('data-asked', named);
element.querySelector('code').textContent = named?.[1];
element.addEventListener('click', ({target}) => {
  if (!target.matches('button')) return;
  history.replaceState(null, '', location.pathname + location.search);
  if (target.matches('.primary')) trigger('submit', {repository: named[1]});
  else question.toggleAttribute('data-asked', false);
});
"""


def hub_question() -> gr.HTML:
    """Lays out the question about the repository that the page's address names, over the page."""
    html = f"<p>{texts.linked_adapter('<code></code>')}</p>"
    html += f'<button class="sm primary">{texts.HUB_BUTTON}</button> '
    html += f'<button class="sm secondary">{texts.HUB_LEAVE}</button>'
    return gr.HTML(html, js_on_load=_LINK_JS, elem_id="hub-link")


def adapter_upload_panel(store: ConversationStore, pickers: Sequence[Picker], link: gr.HTML, public: bool) -> None:
    """What is added is selected in the first picker. public: then nothing is fetched with this machine's login."""
    provider, catalog, (picker, *others) = store.provider, store.catalog, pickers
    with gr.Accordion(texts.UPLOAD, open=False, elem_id="adapter-upload"):
        gr.Markdown(texts.UPLOAD_HINT, elem_classes="hint")
        files = gr.File(label=texts.UPLOAD_FILES, file_count="multiple", file_types=_FILE_TYPES, height=140)
        name = gr.Textbox(label=texts.UPLOAD_NAME, placeholder=texts.UPLOAD_NAME_HINT, max_lines=1, max_length=40)
        button = gr.Button(texts.UPLOAD_BUTTON, variant="secondary")
        repository = gr.Textbox(label=texts.HUB, placeholder=texts.HUB_HINT, max_lines=1, max_length=200)
        fetch = gr.Button(texts.HUB_BUTTON, variant="secondary", elem_id="hub-fetch")

    def upload_adapter(paths: list[str] | None, own_name: str, field: str, event: gr.EventData) -> tuple[Any, ...]:
        """Updates of (files, name, the pickers, the link's question)."""
        import_libraries()
        # Imported here, because it takes seconds and the page is served before.
        from adapter.server.adapter_upload import add_adapter, add_from_hub

        with errors_as_toasts("the upload of an adapter"):
            if (engine := provider.engine()) is None:
                raise BadInput(texts.UPLOAD_LATER)
            place = catalog.bound(), engine.base.fingerprint
            if (pressed := getattr(event.target, "elem_id", "")) in ("hub-fetch", "hub-link"):
                images.count_upload()
                wanted = sent_text(event, "repository") or field or ""
                named = "" if pressed == "hub-link" else own_name or ""
                added, new = add_from_hub(wanted, named, *place, (not public and get_token()) or False)
            else:
                files_sent = [Path(path) for path in paths or ()]
                added, new = add_adapter(files_sent, own_name or "", *place)
                for path in files_sent:  # an added adapter counts no longer as an upload
                    if path.suffix != ".json":  # equal files of all visitors are one
                        path.unlink(missing_ok=True)
            toast((texts.adapter_uploaded if new else texts.adapter_already_here)(added), 6)
            choices = theme.picker_choices(catalog)
            followers = [other.update(choices, BASE_ONLY) for other in others]
            return None, "", picker.update(choices, added), *followers, gr.update(visible=False)
        return (gr.skip(),) * (3 + len(pickers))

    # One at a time: a check may take seconds and some hundred megabytes of memory.
    once = {"concurrency_limit": 1, "concurrency_id": "adapter-upload", **PRIVATE}
    outputs = [files, name, *[one.component for one in pickers], link]
    gr.on([button.click, fetch.click, link.submit], upload_adapter, [files, name, repository], outputs, **once)


def own_adapter_panel(catalog: AdapterCatalog, picker: Picker) -> gr.Button:
    """Lays out deleting; returns the button for an adapter that was added here."""
    delete = gr.Button(texts.DELETE, visible=False, size="sm", elem_id="delete-adapter")
    undo = gr.Button(visible=False, size="sm", elem_id="undo-delete")
    deleted = gr.State(("", ""))  # the name and the token of the last one

    def change(selected: str, last: tuple[str, str], event: gr.EventData) -> tuple[Any, ...]:
        from adapter.server.adapter_upload import delete_adapter, restore_adapter

        with errors_as_toasts("a change of an adapter"):
            store, pressed = catalog.bound(), getattr(event.target, "elem_id", "")
            if pressed == "delete-adapter":
                chosen, last = BASE_ONLY, (selected, delete_adapter(selected, store))
            else:
                chosen, last = restore_adapter(*last, store), ("", "")
            button = gr.update(visible=bool(last[0]), value=texts.undo_delete(last[0]))
            return picker.update(theme.picker_choices(catalog), chosen), button, last
        return (gr.skip(),) * 3

    outputs = [picker.component, undo, deleted]
    gr.on([delete.click, undo.click], change, [picker.component, deleted], outputs, **QUEUED)
    return delete
