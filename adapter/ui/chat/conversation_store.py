"""Keeping and opening conversations: in the browser's storage, a file and a link. And the answer's command line.

The panel "This conversation" and its event handlers. The formats are in conversation_json.py; conversations.js has
the browser's storage and the list of conversations.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import BASE_ONLY, PANEL, Settings
from adapter.server import transcript
from adapter.server.generation import AdapterCatalog, EngineProvider
from adapter.server.texts import UPLOAD_NOT_KEPT
from adapter.ui import conversation, theme
from adapter.ui.chat import conversation_json
from adapter.ui.chat.command_line import command_line
from adapter.ui.conversation import History
from adapter.ui.session import Conversation, Conversations
from adapter.ui.status import QUEUED, UNQUEUED
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_toasts, toast

PICKERS = ("adapter", "mix")  # the settings that are chosen from adapters
OTHERS = tuple(name for name in PANEL if name not in PICKERS)
MAX_ID = 100
# What the browser may have said on the page, by name.
NOTES = {
    "storage-full": texts.STORAGE_FULL,
    "one-picture": texts.ONE_PICTURE,
    "no-picture": texts.NO_PICTURE,
    "nothing": texts.NOTHING_TO_EXPORT,
    "copied": texts.LINK_COPIED,
}


class Updates(NamedTuple):
    """Updates of what an event of the chat may change, in the order of ConversationStore.outputs."""

    chat: Any = gr.skip()
    box: Any = gr.skip()
    id: Any = gr.skip()
    to_browser: Any = gr.skip()
    command: Any = gr.skip()
    adapter: Any = gr.skip()
    mix: Any = gr.skip()


class ConversationStore:
    """Lays out its panel when constructed; `connect` adds the events once the chat exists.

    id: the component with the id of the conversation that the page shows; outputs: of the events that return
    Updates.
    """

    SECONDS = 2.0  # between two times that the browser keeps an answer while it is written

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog) -> None:
        self.provider, self.catalog, self.conversations = provider, catalog, Conversations()
        self.outputs: list[Any] = []
        self.opened: list[Any] = []  # and the other settings: outputs of what opens a conversation
        with gr.Accordion(texts.THIS_CONVERSATION, open=False, elem_id="this-conversation"):
            with gr.Row():
                self._export = gr.Button(texts.EXPORT, size="sm", min_width=60)
                self._import = gr.UploadButton(texts.IMPORT, file_types=[".json"], size="sm", min_width=60)
                self._link = gr.Button(texts.COPY_LINK, size="sm", min_width=60)
            self._command = theme.command_box(texts.NO_COMMAND_LINE, texts.COMMAND_LINE, "code")
        self.id = gr.Textbox(visible=False)
        # JSON for conversations.js, which reads it when it changes. Not gr.BrowserState: five million characters
        # are all that it has room for.
        self._to_browser = gr.Textbox(visible="hidden", show_label=False, max_lines=1)

    def connect(
        self, page: gr.Blocks, listed: gr.HTML, chat: gr.Chatbot, box: gr.Component, settings: dict[str, Any]
    ) -> Any:
        """Returns the event that opens a conversation. listed: the list of conversations, whose script sends it;
        settings: the chat's components by name.
        """
        self.outputs = [chat, box, self.id, self._to_browser, self._command, *[settings[name] for name in PICKERS]]
        panel, names = [settings[name] for name in PANEL], json.dumps(PANEL)
        self.opened = [*self.outputs, *[settings[name] for name in OTHERS]]
        # Two at once are told apart by their ids.
        opening = listed.open(self.open, None, self.opened, trigger_mode="multiple", **QUEUED)
        js = f"(id, ...values) => window.chatPage.opened(id, {names}, values)"
        opening.then(None, [self.id, *panel], None, js=js, **UNQUEUED)
        page.load(None, js="() => window.chatPage.begin()", **UNQUEUED)
        page.unload(self._forget)
        listed.note(note, **QUEUED)
        self._to_browser.change(None, self._to_browser, js="text => window.chatPage.receive(text)", **UNQUEUED)
        chat.clear(None, js="() => window.chatPage.clear()", **UNQUEUED)
        js = f"(...values) => window.chatPage.storeSettings({names}, values)"
        gr.on([component.change for component in panel], None, panel, js=js, **UNQUEUED)
        self._import.upload(self.import_file, self._import, self.opened, **QUEUED)
        self._export.click(None, js=f"() => window.chatPage.export('{texts.EXPORT_NAME}')", **UNQUEUED)
        self._link.click(self.link, None, self._to_browser, inputs_kwargs=settings, **QUEUED)
        return opening

    def _forget(self, request: gr.Request) -> None:
        self.conversations.forget(request.session_hash)

    # What the browser keeps.

    def keep(self, shown: Conversation, history: History | None = None, key: str = "") -> Updates:
        """Shows a conversation, and lets the browser keep it. history: with an answer that is being written, under
        `key`, in place of the conversation's own.

        The pictures that the browser does not have are sent at the beginning and at the end, because the page may
        miss an update.
        """
        history = shown.history if history is None else history
        document, packed = conversation_json.to_browser(history, shown.pictures)
        writing, begins = conversation.is_streaming(history), key != shown.answer
        shown.answer = key
        kept: dict[str, Any] = {"id": shown.id, "document": {**document, "answer": key} if writing else document}
        if begins or not writing:
            kept["pictures"] = packed.pictures(shown.kept)
        if not writing:
            shown.kept |= kept["pictures"].keys()
        if packed.dropped and not shown.dropped:
            toast(texts.not_kept_by_browser(packed.dropped))
        shown.dropped = packed.dropped
        return Updates(chat=history, to_browser=json.dumps({"keep": kept}), command=self._command_line(history))

    @staticmethod
    def new_key() -> str:
        """Of an answer, as secret as the browser's storage."""
        return secrets.token_urlsafe(16)

    @staticmethod
    def reopen() -> str:
        """Lets the browser send the conversation again, which the server has forgotten."""
        return json.dumps({"open": secrets.token_hex(4)})  # only a text that differs is a change

    def _command_line(self, history: History) -> str:
        engine = self.provider.engine()
        if engine is None or conversation.is_streaming(history):
            return texts.NO_COMMAND_LINE
        return command_line(history, engine.base, self.catalog) or texts.NO_COMMAND_LINE

    # What is opened.

    def open(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Shows the conversation that the browser sends from its storage, an empty one, or that of a link, which
        is not kept yet.
        """
        data = event._data if isinstance(event._data, dict) else {}
        sent = {name: value for name, value in data.items() if isinstance(value, str)}
        values = conversation_json.from_stored_settings(sent.get("settings", ""))
        history: History = []
        linked = sent.get("link", "")
        with errors_as_toasts("a conversation that was opened"):
            if linked:
                history, own = conversation_json.from_link(linked)
                values |= own
                toast(texts.LINK_OPENED)
            else:
                history = conversation_json.from_browser(sent.get("document", ""), sent.get("pictures", ""))
        shown = self.conversations.open(request.session_hash, sent.get("id", "")[:MAX_ID], history)
        shown.answer = sent.get("answer", "")
        document, packed = conversation_json.to_browser(history, shown.pictures)
        shown.kept, shown.dropped = set(packed.paths), packed.dropped
        to_browser = json.dumps({"unsaved": document}) if linked else gr.skip()
        return self._opened(shown, values, to_browser)

    def import_file(self, file: str, request: gr.Request) -> tuple[Any, ...]:
        with errors_as_toasts("an import"):
            try:
                if Path(file).stat().st_size > transcript.MAX_BYTES:
                    raise BadInput(texts.import_too_large(transcript.MAX_BYTES))
                imported = transcript.read(Path(file).read_bytes())
                history = conversation_json.to_history(imported.messages)
            except OSError:
                raise AdapterError(UPLOAD_NOT_KEPT) from None
            if imported.dropped:
                toast(texts.not_imported(imported.dropped))
            shown = self.conversations.open(request.session_hash, secrets.token_urlsafe(12), history)
            values = conversation_json.from_stored_settings(imported.settings)
            return self._opened(shown, values, self.keep(shown).to_browser)
        return *Updates(), *[gr.skip()] * len(OTHERS)

    def begin(
        self, settings: dict[str, Any], message: dict[str, Any] | None, request: gr.Request
    ) -> tuple[Any, ...]:
        """Shows a new conversation with these settings, and a message in its box. Updates of `opened`."""
        shown = self.conversations.open(request.session_hash, secrets.token_urlsafe(12), [])
        updates = list(self._opened(shown, settings, self.keep(shown).to_browser))
        if message is not None:
            updates[1] = gr.update(value=message, **theme.SHOW_SUBMIT_BUTTON)
        return tuple(updates)

    def _opened(self, shown: Conversation, values: dict[str, Any], to_browser: Any) -> tuple[Any, ...]:
        """Updates that show a conversation and its settings. An adapter that does not exist becomes the frozen
        base; while adapters are still unknown status.py does that later.
        """
        pickers, known, names = {}, theme.picker_choices(self.catalog), self.catalog.names()
        loading = not names and self.provider.status().state == "loading"
        for name in PICKERS:
            value, choices = values.get(name), known
            if value and loading:
                choices = [*known, (value, value)]
            elif value and value not in names:
                toast(texts.adapter_missing(value))
                value = BASE_ONLY
            # The choices, because a page may have been built when the catalog was still empty.
            short = theme.short_choices(choices, texts.NO_MIX) if name == "mix" else choices
            pickers[name] = gr.update(choices=short, **({} if value is None else {"value": value}))
        others = [values.get(name, gr.skip()) for name in OTHERS]
        box, command = gr.update(**theme.SHOW_SUBMIT_BUTTON), self._command_line(shown.history)
        return *Updates(shown.history, box, shown.id, to_browser, command, **pickers), *others

    def link(self, request: gr.Request, **settings: Any) -> Any:
        with errors_as_toasts("a link"):
            if not (history := self.conversations.history(request.session_hash)):
                raise BadInput(texts.NOTHING_TO_EXPORT)
            link = conversation_json.to_link(history, Settings.checked(settings))
            return json.dumps({"copy": link, "again": secrets.token_hex(4)})
        return gr.skip()


def note(event: gr.EventData) -> None:
    """Shows a note that a script asks for. A name that is none is not shown: page.js then needs the event only."""
    data = event._data if isinstance(event._data, dict) else {}
    name, address = data.get("name"), data.get("address")
    if isinstance(name, str) and name in NOTES:
        toast(NOTES[name])
    elif isinstance(address, str) and len(address) < 2 * conversation_json.MAX_LINK:
        toast(texts.link_to_copy(address), 60)
