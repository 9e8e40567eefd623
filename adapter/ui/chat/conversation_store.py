"""Saving and restoring a conversation: the browser's storage, a file, a link and a command line.

The panel "This conversation" and its event handlers. The formats are in conversation_json.py; conversations.js
has the browser's storage and the list of conversations. The server stores nothing.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve.settings import BASE_ONLY, PANEL, Settings
from adapter.server import transcript
from adapter.server.generation import AdapterCatalog, EngineProvider
from adapter.server.texts import UPLOAD_NOT_KEPT
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import answer_key
from adapter.ui.chat import conversation_json
from adapter.ui.chat.command_line import command_line
from adapter.ui.chat.conversation_json import Packed
from adapter.ui.conversation import History
from adapter.ui.conversation_states import CLEAR_STEP, ConversationStates, StaleEvent
from adapter.ui.status import QUEUED, UNQUEUED
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_toasts, refusal, toast

SAVE_SECONDS = 2.0  # between two saves while an answer is being streamed
WAIT_SECONDS = 60.0  # for the adapters of a server that has just started
PICKERS = ("adapter", "mix")  # the settings that are chosen from adapters


class ConversationStore:
    """Lays out its panel when constructed; `connect` adds the events once the chat exists.

    number: the component with the number of the state that the page shows. panel: the component for
    `panel_change`. answer: changes to the key of an answer that was being written when a conversation that is
    opened was stored. outputs: those whose updates `saving` and `saving_stream` append to a handler's.
    """

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog, states: ConversationStates) -> None:
        self.provider, self.catalog, self.states = provider, catalog, states
        with gr.Accordion(texts.THIS_CONVERSATION, open=False, elem_id="this-conversation"):
            with gr.Row():
                self._export = gr.Button(texts.EXPORT, size="sm", min_width=60)
                self._import = gr.UploadButton(texts.IMPORT, file_types=[".json"], size="sm", min_width=60)
                self._link = gr.Button(texts.COPY_LINK, size="sm", min_width=60)
            self._command = theme.command_box(texts.NO_COMMAND_LINE, texts.COMMAND_LINE, "code")
        # A number and JSON that conversations.js stores whenever they change. Not gr.BrowserState: five million
        # characters are all that it has room for.
        self._stored = gr.Textbox(visible="hidden", show_label=False, max_lines=1)
        # Values between the server's part of an event and the browser's.
        self._to_browser, self._from_browser = gr.Textbox(visible=False), gr.Textbox(visible=False)
        self.number, self.panel = gr.Textbox(visible=False), gr.Textbox(visible=False)
        self.answer = gr.Textbox(visible=False)
        self._storage_full = gr.Button(visible="hidden", elem_id="storage-full")
        self._open = gr.Button(visible="hidden", elem_id="open-conversation")
        self.outputs = [self._stored, self._command]

    # Saving with the updates of the chat's events.

    def saving_stream(
        self, handler: Callable[..., Iterator[tuple[Any, ...]]]
    ) -> Callable[..., Iterator[tuple[Any, ...]]]:
        """The handler with updates of `outputs` appended. Its updates begin with the history's and end with the
        number's.
        """

        @functools.wraps(handler)
        def handle(*inputs: Any, **settings: Any) -> Iterator[tuple[Any, ...]]:
            save, due = self._saver(inputs), 0.0
            for update in handler(*inputs, **settings):
                history, now = update[0], time.monotonic()
                finished = isinstance(history, list) and not conversation.is_streaming(history)
                if finished or (isinstance(history, list) and now >= due):
                    due = now + SAVE_SECONDS
                    yield *update, *save(history, update[-1])
                else:
                    yield *update, *[gr.skip()] * len(self.outputs)

        return handle

    def saving(self, handler: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """Like `saving_stream`, for a handler that returns one update."""

        @functools.wraps(handler)
        def handle(*inputs: Any) -> tuple[Any, ...]:
            update = handler(*inputs)
            if not isinstance(update[0], list):
                return *update, *[gr.skip()] * len(self.outputs)
            return *update, *self._saver(inputs)(update[0], update[-1])

        return handle

    def _saver(self, inputs: tuple[Any, ...]) -> Callable[[History, str], tuple[Any, ...]]:
        """A function from a history and its number to updates of `outputs`. inputs: of the event.

        The pictures that the browser does not have are sent at the beginning and at the end, because the page may
        miss an update.
        """
        before = next((value for value in inputs if isinstance(value, list)), [])
        session = next((value.session_hash for value in inputs if hasattr(value, "session_hash")), None)
        known: dict[str, tuple[str, int] | None] = {}
        sent: Packed | None = None
        dropped: object = None

        def save(history: History, number: str) -> tuple[Any, ...]:
            nonlocal sent, dropped
            first, streaming = sent is None, conversation.is_streaming(history)
            if sent is None:
                _, sent = conversation_json.to_browser(before, known)
                dropped = sent.dropped
            stored, packed = conversation_json.to_browser(history, known)
            if streaming:
                stored["answer"] = answer_key(session, number)
            if first or not streaming:
                stored["pictures"] = packed.pictures(sent.paths)
            if packed.dropped and not dropped:
                toast(texts.not_kept_by_browser(packed.dropped))
            dropped = packed.dropped
            return _numbered(stored, number), self._command_line(history)

        return save

    def _command_line(self, history: History) -> str:
        engine = self.provider.engine()
        if engine is None or conversation.is_streaming(history):
            return texts.NO_COMMAND_LINE
        return command_line(history, engine.base, self.catalog) or texts.NO_COMMAND_LINE

    # Events.

    def connect(
        self, page: gr.Blocks, chat: gr.Chatbot, box: gr.MultimodalTextbox, settings: dict[str, Any]
    ) -> None:
        """settings: the chat's components by name."""
        panel = [settings[name] for name in PANEL]
        pickers = [settings[name] for name in PICKERS]
        names = json.dumps(PANEL)
        shown = [self._from_browser, chat, self._command, self.number, self.answer, box]
        restore = {
            "fn": self.restore,
            "inputs": [*[self._stored] * 6, *panel],  # conversations.js puts its own values in place of the six
            "outputs": [*shown, self.panel, *pickers],
            "js": "async (a, b, c, d, e, f, ...panel) => [...await window.chatPage.stored(), ...panel]",
            **QUEUED,
        }
        restored = page.load(**restore)
        # Who has no conversation yet need not wait for it.
        page.load(None, None, self.number, js="() => window.chatPage.number()", **UNQUEUED)
        # If it fails, the page can be used, and what it has stored stays: a reload tries again.
        restored.failure(None, None, self.number, js="() => '1'", **UNQUEUED)
        ready = f"(...values) => window.chatPage.ready({names}, values)"
        restored.success(None, panel, None, js=ready, **UNQUEUED)
        # Meanwhile the page has no number, so that it sends nothing to the conversation before. That one stays in
        # sight: what is on its way of an answer arrives before the other conversation, and is replaced by it.
        js = f"number => window.chatPage.leave(number, {CLEAR_STEP}) && ''"
        opened = self._open.click(None, self.number, self.number, js=js, **UNQUEUED).then(**restore)
        opened.failure(None, None, self.number, js="() => window.chatPage.newest()", **UNQUEUED)
        opened.then(None, js="() => window.chatPage.opened()", **UNQUEUED)
        self._stored.change(None, self._stored, None, js="text => window.chatPage.store(text)", **UNQUEUED)
        for event in (restored, opened):
            event.then(self.toast_missing, self._from_browser, None, **QUEUED)
        changed = f"(change, ...values) => window.chatPage.changePanel({names}, change, values)"
        self.panel.change(None, [self.panel, *panel], panel, js=changed, **UNQUEUED)
        gr.on(
            [component.change for component in panel],
            None,
            panel,
            None,
            js=f"(...values) => window.chatPage.storeSettings({names}, values)",
            **UNQUEUED,
        )
        self._storage_full.click(lambda: toast(texts.STORAGE_FULL), **QUEUED)
        imported = [chat, self.number, *self.outputs, self.panel, *pickers, self._from_browser]
        uploaded = self._import.upload(self.import_file, [self._import, self.number, *panel], imported, **QUEUED)
        uploaded.then(self.toast_missing, self._from_browser, None, **QUEUED)
        exported = self._export.click(self.export, chat, self._to_browser, inputs_kwargs=settings, **QUEUED)
        save = f"text => window.chatPage.save('{texts.EXPORT_NAME}', text)"
        exported.success(None, self._to_browser, None, js=save, **UNQUEUED)
        linked = self._link.click(self.link, chat, self._to_browser, inputs_kwargs=settings, **QUEUED)
        copied = linked.success(
            None,
            self._to_browser,
            [self._to_browser, self._from_browser],
            js="async packed => { const to = window.chatPage.address(packed);"
            " return [to, await window.chatPage.copy(to)]; }",
            **UNQUEUED,
        )
        copied.then(_toast_link, [self._to_browser, self._from_browser], None, **QUEUED)

    def clear(self, chat: gr.Chatbot) -> Any:
        """Connects the browser's part of Clear: it deletes the conversation, and takes the next state's number."""
        outputs, cleared = [self.number, self._command], json.dumps(texts.NO_COMMAND_LINE)
        js = f"number => [window.chatPage.clear(number, {CLEAR_STEP}), {cleared}]"
        return chat.clear(None, self.number, outputs, js=js, **UNQUEUED)

    def restore(
        self,
        stored: str,
        pictures: str,
        settings: str,
        packed: str,
        answer: str,
        number: str,
        request: gr.Request,
        *panel: Any,
    ) -> tuple[Any, ...]:
        """Updates that show a stored conversation, an empty one, or that of a link, which is not stored yet.

        stored, pictures, settings: from the browser's storage; packed: from the link; answer: key of the one that
        was being written; number: of the new state, "0" in a page that is being loaded; panel: the side panel.
        """
        values = conversation_json.from_stored_settings(settings)
        loading = number == "0"
        if loading and not stored and not packed:
            return _selected(values), *[gr.skip()] * 5, *self._panel(values, panel, "1")
        if not loading:
            self.states.clear(request.session_hash, number, stop=False)
        try:
            with self.states.change(request.session_hash, number, texts.STILL_RESTORING) as change:
                history = conversation_json.from_browser(stored, pictures)
                with errors_as_toasts("a link"):
                    if packed:
                        history, sent = conversation_json.from_link(packed)
                        values |= sent
                        toast(texts.LINK_OPENED)
                number = str(self.states.finish(change))
        except StaleEvent as error:
            raise refusal(str(error)) from error
        box = gr.skip() if loading else gr.update(**theme.SHOW_SUBMIT_BUTTON)
        shown = history, self._command_line(history), number, answer, box
        return _selected(values), *shown, *self._panel(values, panel, number)

    def toast_missing(self, selected: str) -> None:
        """Names the selected adapters that do not exist, once the server knows its adapters."""
        names = _names(selected)
        deadline = time.monotonic() + WAIT_SECONDS
        while names and self._catalog_is_loading() and time.monotonic() < deadline:
            time.sleep(0.25)
        for name in sorted(set(names) - set(self.catalog.names())):
            toast(texts.adapter_missing(name))

    def _catalog_is_loading(self) -> bool:
        return not self.catalog.names() and self.provider.status().state == "loading"

    def import_file(self, file: str, number: str, request: gr.Request, *panel: Any) -> tuple[Any, ...]:
        """Updates of the chat, its number, `outputs` and the panel, and the selected adapters; none and "" if
        the file is refused.
        """
        unchanged = [gr.skip()] * (1 + len(self.outputs) + 1 + len(PICKERS))
        try:
            with self.states.change(request.session_hash, number, texts.STILL_RESTORING) as change:
                if Path(file).stat().st_size > transcript.MAX_BYTES:
                    raise BadInput(texts.import_too_large(transcript.MAX_BYTES))
                imported = transcript.read(Path(file).read_bytes())
                history = conversation_json.to_history(imported.messages)
                number = str(self.states.finish(change))
        except StaleEvent as error:
            return gr.skip(), refuse(error), *unchanged[1:], ""
        except BadInput as error:
            toast(error)
            return gr.skip(), *unchanged, ""
        except OSError:
            toast(AdapterError(UPLOAD_NOT_KEPT))
            return gr.skip(), *unchanged, ""
        stored, packed = conversation_json.to_browser(history, {})
        if imported.dropped:
            toast(texts.not_imported(imported.dropped))
        if packed.dropped:
            toast(texts.not_kept_by_browser(packed.dropped))
        values = conversation_json.from_stored_settings(imported.settings)
        stored |= {"pictures": packed.pictures(), "imported": True}
        outputs = _numbered(stored, number), self._command_line(history)
        return history, number, *outputs, *self._panel(values, panel, number), _selected(values)

    def _panel(self, values: dict[str, Any], seen: tuple[Any, ...], number: str) -> list[Any]:
        """Updates of the side panel and of the pickers' choices. An adapter that does not exist becomes the frozen
        base.
        """
        changes, pickers, known = {}, [], theme.picker_choices(self.catalog)
        for name, before in zip(PANEL, seen, strict=True):
            if name in values:
                changes[name] = before, values[name]
        for name in PICKERS:
            value, choices = values.get(name), known
            if value and self._catalog_is_loading():
                choices = [*known, (value, value)]
            elif name in changes and value not in self.catalog.names():
                changes[name] = changes[name][0], BASE_ONLY
            # The choices, because a page may have been built when the catalog was still empty.
            short = name == "mix"
            pickers.append(gr.update(choices=theme.short_choices(choices, texts.NO_MIX) if short else choices))
        return [panel_change(changes, number), *pickers]

    def export(self, history: History, **settings: Any) -> str:
        with errors_as_toasts("an export"):
            if not history:
                raise BadInput(texts.NOTHING_TO_EXPORT)
            file, dropped = conversation_json.to_file(history, Settings.checked(settings))
            if dropped:
                toast(texts.not_in_file(dropped))
            return file
        return ""

    def link(self, history: History, **settings: Any) -> str:
        with errors_as_toasts("a link"):
            if not history:
                raise BadInput(texts.NOTHING_TO_EXPORT)
            return conversation_json.to_link(history, Settings.checked(settings))
        return ""


def _names(selected: str) -> list[str]:
    """The names in what `_selected` wrote. A program may send any other text, and each toast takes memory."""
    try:
        names = json.loads(selected or "[]")
    except (ValueError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)][: len(PICKERS)] if isinstance(names, list) else []


def _selected(values: dict[str, Any]) -> str:
    """The names of the selected adapters as JSON."""
    return json.dumps([values[name] for name in PICKERS if values.get(name)])


def _numbered(stored: Any, number: str) -> str:
    """What conversations.js stores: the state's number, a line break, and JSON."""
    return f"{number}\n{json.dumps(stored)}"


def _toast_link(address: str, copied: str) -> None:
    if address:
        toast(texts.LINK_COPIED if copied else texts.link_to_copy(address), 8 if copied else 60)


def refuse(error: StaleEvent) -> Any:
    """Shows why an event changes nothing; returns an update of the number that the page should take over."""
    toast(str(error), 6)
    return gr.skip() if error.number is None else str(error.number)


def panel_change(changes: dict[str, tuple[Any, Any]], number: object) -> str:
    """An update of the side panel by conversations.js. changes: (value that the event saw, new value) by name.

    A value that the visitor has changed since the event began is the visitor's and stays. number: of the event,
    because only a text that differs from the one before is a change.
    """
    return json.dumps([number, changes])
