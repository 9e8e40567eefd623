"""Keeping and opening conversations: in the browser's storage, a file and a link. And the answer's command line.

The panel "This conversation" and its event handlers. The format is in conversation_json.py; conversations.js has
the browser's storage and the list of conversations, and makes files and links.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, NamedTuple

import gradio as gr

from adapter.errors import BadInput
from adapter.serve.settings import BASE_ONLY, PANEL
from adapter.server.generation import AdapterCatalog, EngineProvider, client_of
from adapter.ui import conversation, theme
from adapter.ui.chat import conversation_json
from adapter.ui.chat.before_after import before
from adapter.ui.chat.chatbot import to_rows
from adapter.ui.chat.command_line import command_line
from adapter.ui.conversation import History
from adapter.ui.session import Conversation, Conversations
from adapter.ui.status import MODEL, QUEUED, UNQUEUED
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_toasts, toast

PICKERS = ("adapter", "mix")  # the settings that are chosen from adapters
OTHERS = tuple(name for name in PANEL if name not in PICKERS)
MAX_ID = 100
MAX_ADDRESS = 20_000  # characters of a link; conversations.js makes none that is half as long
# What the browser may have said on the page, by name.
NOTES = {
    "storage-full": texts.STORAGE_FULL,
    "one-picture": texts.ONE_PICTURE,
    "no-picture": texts.NO_PICTURE,
    "nothing": texts.NOTHING_TO_EXPORT,
    "copied": texts.LINK_COPIED,
    "too-long": texts.LINK_TOO_LONG,
    "too-large": texts.FILE_TOO_LARGE,
    "not-opened": texts.NOT_OPENED,
}
_ACTIONS = (
    f'<button type="button" name="export">{texts.EXPORT}</button>'
    f'<button type="button" name="import">{texts.IMPORT}</button>'
    f'<input type="file" accept=".json" aria-label="{texts.IMPORT}" hidden>'
    f'<button type="button" name="link">{texts.COPY_LINK}</button>'
)


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

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog) -> None:
        self.provider, self.catalog, self.conversations = provider, catalog, Conversations()
        self.outputs: list[Any] = []
        self.opened: list[Any] = []  # and the other settings: outputs of what opens a conversation
        with gr.Accordion(texts.THIS_CONVERSATION, open=False, elem_id="this-conversation"):
            words = {"name": texts.EXPORT_NAME, "not-sent": texts.PICTURE_NOT_SENT}
            gr.HTML(f'<div class="actions" {theme.data_attributes(words)}>{_ACTIONS}</div>', padding=False)
            self._command = theme.command_box(texts.NO_COMMAND_LINE, texts.COMMAND_LINE, "code")
        self.id = gr.Textbox(visible=False)
        # JSON for conversations.js, which reads it when it changes. Not gr.BrowserState: five million characters
        # are all that it has room for.
        self.to_browser = gr.Textbox(visible="hidden", show_label=False, max_lines=1)

    def connect(
        self, page: gr.Blocks, listed: gr.HTML, chat: gr.Chatbot, box: gr.Component, settings: dict[str, Any]
    ) -> Any:
        """Returns the event that opens a conversation. listed: the list of conversations, whose script sends it;
        settings: the chat's components by name.
        """
        self.outputs = [chat, box, self.id, self.to_browser, self._command, *[settings[name] for name in PICKERS]]
        panel, names = [settings[name] for name in PANEL], json.dumps(PANEL)
        self.opened = [*self.outputs, *[settings[name] for name in OTHERS]]
        # Two at once are told apart by their ids.
        opening = listed.open(self.open, None, self.opened, trigger_mode="multiple", **QUEUED)
        js = f"(id, ...values) => window.chatPage.opened(id, {names}, values)"
        opening.then(None, [self.id, *panel], None, js=js, **UNQUEUED)
        page.load(None, js="() => window.chatPage.begin()", **UNQUEUED)
        page.unload(self._close)
        listed.note(note, **QUEUED)
        listed.link(self.link, None, self.to_browser, **{**QUEUED, **MODEL})
        self.to_browser.change(None, self.to_browser, js="text => window.chatPage.receive(text)", **UNQUEUED)
        js = f"(...values) => window.chatPage.storeSettings({names}, values)"
        gr.on([component.change for component in panel], None, panel, js=js, **UNQUEUED)
        return opening

    def _close(self, request: gr.Request) -> None:
        self.conversations.close(request.session_hash)

    def show(self, shown: Conversation, history: History | None = None) -> Updates:
        """history: with an answer that is being written, in place of the conversation's own."""
        shown.rows = to_rows(shown.history if history is None else history, shown.rows)
        return Updates(chat=shown.rows)

    def keep(self, shown: Conversation, history: History | None = None, begins: bool = True) -> Updates:
        """Shows a conversation as `show` does, and lets the browser keep it.

        begins: whether a visitor has changed it just now; then it gets its pictures too. They are sent again at
        the end of an answer, because the page may miss an update.
        """
        history = shown.history if history is None else history
        packed, writing = conversation_json.pack(history, shown.pictures), conversation.is_streaming(history)
        kept: dict[str, Any] = {"id": shown.id, "document": packed.document, "begins": begins}
        if begins or not writing:
            kept["pictures"] = packed.pictures(shown.kept)
        if not writing:
            shown.kept |= kept["pictures"].keys()
        if packed.dropped and not shown.dropped:
            toast(texts.not_kept_by_browser(packed.dropped))
        shown.dropped = packed.dropped
        updates = self.show(shown, history)
        return updates._replace(to_browser=json.dumps({"keep": kept}), command=self._command_line(history))

    @staticmethod
    def reopen() -> str:
        """Lets the browser send the conversation again, which the server has forgotten."""
        return json.dumps({"open": secrets.token_hex(4)})  # only a text that differs is a change

    def _command_line(self, history: History) -> str:
        engine = self.provider.engine()
        if engine is None or conversation.is_streaming(history):
            return texts.NO_COMMAND_LINE
        return command_line(history, engine.base, self.catalog) or texts.NO_COMMAND_LINE

    def open(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Shows a conversation that the browser sends: from its storage, a file or a link, or an empty one."""
        data = event._data if isinstance(event._data, dict) else {}
        sent = {name: value for name, value in data.items() if isinstance(value, str)}
        text, source = sent.get("text", ""), sent.get("source", "")
        with errors_as_toasts("a conversation that was opened"):
            if not (id := sent.get("id", "")[:MAX_ID]):
                raise BadInput(texts.WRONG_VALUE)
            if not source:
                history, values = conversation_json.read_stored(text)
            elif source == "link" and not text:
                raise BadInput(texts.LINK_UNREADABLE)
            else:
                history, values, dropped = conversation_json.read(text)
                if dropped:
                    toast(texts.not_imported(dropped))
                if source == "link":
                    toast(texts.LINK_OPENED)
            shown = self.conversations.open(request.session_hash, id, history)
            packed = conversation_json.pack(history, shown.pictures)
            shown.kept, shown.dropped = set() if source else set(packed.paths), packed.dropped
            # A link's is kept when it goes on; what the server has may be newer than what the browser had kept.
            is_new = source == "file" or shown.newest is not history
            updates = self.keep(shown, shown.newest) if is_new and shown.newest else self.show(shown)
            return self._opened(shown, updates, values)
        return *Updates(), *[gr.skip()] * len(OTHERS)

    def link(self, request: gr.Request) -> str:
        """What a link says before the newest answer: what the frozen base answers."""
        said = ""
        with errors_as_toasts("an answer for a link"):
            said = before(self.conversations.history(request.session_hash), self.provider, client_of(request))
        return json.dumps({"share": said, "again": secrets.token_hex(4)})

    def begin(
        self, settings: dict[str, Any], message: dict[str, Any] | None, request: gr.Request
    ) -> tuple[Any, ...]:
        """Shows a new conversation with these settings, and a message in its box. Updates of `opened`."""
        shown = self.conversations.open(request.session_hash, secrets.token_urlsafe(12), [])
        updates = list(self._opened(shown, self.keep(shown), settings))
        if message is not None:
            updates[1] = gr.update(value=message, **theme.SHOW_SUBMIT_BUTTON)
        return tuple(updates)

    def _opened(self, shown: Conversation, updates: Updates, values: dict[str, Any]) -> tuple[Any, ...]:
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
        box, command = gr.update(**theme.SHOW_SUBMIT_BUTTON), self._command_line(shown.history)
        updates = updates._replace(box=box, id=shown.id, command=command, **pickers)
        return *updates, *[values.get(name, gr.skip()) for name in OTHERS]


def note(event: gr.EventData) -> None:
    """Shows a note that a script asks for. A name that is none is not shown: page.js then needs the event only."""
    data = event._data if isinstance(event._data, dict) else {}
    name, address = data.get("name"), data.get("address")
    if isinstance(name, str) and name in NOTES:
        toast(NOTES[name])
    elif isinstance(address, str) and len(address) < MAX_ADDRESS:
        toast(texts.link_to_copy(address), 60)
