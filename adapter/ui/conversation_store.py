"""A conversation beyond the open page: kept in the browser, exported, imported, linked, and as a command.

The components of "This conversation" and what their events do. Knows Gradio; what is kept and how is in kept.py,
what the browser does itself in page.js. The server keeps nothing.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.serve import transcript
from adapter.serve.settings import BASE_ONLY, PANEL, Settings
from adapter.server.settings import EngineProvider
from adapter.ui import conversation as talk
from adapter.ui import conversation_json as kept
from adapter.ui import theme as look
from adapter.ui.chat_events import toast
from adapter.ui.command_line import command
from adapter.ui.conversation import History
from adapter.ui.status import QUICK, TELLING
from adapter.ui.texts import page as texts

log = logging.getLogger(__name__)

KEY = "llama-adapter:"  # as in page.js
SECRET = "kept by this page"  # Gradio wants one. What is kept is the visitor's own, and lies in their own browser.
SAVE_SECONDS = 2.0  # between two while an answer is being written
LOOKING_SECONDS = 60.0  # for adapters, after the program has started


class Keeping:
    """Made where "This conversation" is to stand; `connect` when the chat is there.

    outputs: what `watch` adds to the updates of an event.
    """

    def __init__(self, provider: EngineProvider, store: look.Cards) -> None:
        self.provider, self.store = provider, store
        with gr.Accordion(texts.THIS_CONVERSATION, open=False, elem_id="this-conversation"):
            with gr.Row():
                self._export = gr.Button(texts.EXPORT, size="sm", min_width=60)
                self._import = gr.UploadButton(texts.IMPORT, file_types=[".json"], size="sm", min_width=60)
                self._link = gr.Button(texts.COPY_LINK, size="sm", min_width=60)
            self._code = look.command_box(texts.NO_CODE, texts.CODE, "code")
        self._words = gr.BrowserState({}, storage_key=f"{KEY}words", secret=SECRET)
        self._pictures = gr.BrowserState({}, storage_key=f"{KEY}pictures", secret=SECRET)
        self._settings = gr.BrowserState({}, storage_key=f"{KEY}settings", secret=SECRET)
        # What passes between an event's part here and its part in the browser.
        self._passed, self._told = gr.Textbox(visible=False), gr.Textbox(visible=False)
        self._fewer = gr.Button(visible="hidden", elem_id="fewer-pictures")
        self.outputs = [self._words, self._pictures, self._code]

    def watch(self, handler: Callable[..., Iterator[tuple[Any, ...]]]) -> Callable[..., Iterator[tuple[Any, ...]]]:
        """The handler of an event whose updates begin with the chat's: with `outputs` behind them."""

        @functools.wraps(handler)
        def watched(*arguments: Any) -> Iterator[tuple[Any, ...]]:
            before = next((a for a in arguments if isinstance(a, list)), [])
            save, due = self._saver(before), 0.0
            for update in handler(*arguments):
                history, now = update[0], time.monotonic()
                ended = isinstance(history, list) and not talk.being_answered(history)
                if ended or (isinstance(history, list) and now >= due):
                    due = now + SAVE_SECONDS
                    yield *update, *save(history)
                else:
                    yield *update, *[gr.skip()] * len(self.outputs)

        return watched

    def watch_once(self, handler: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """As `watch`, for a handler that answers once. It always saves."""

        @functools.wraps(handler)
        def watched(*arguments: Any) -> tuple[Any, ...]:
            before = next((a for a in arguments if isinstance(a, list)), [])
            update = handler(*arguments)
            if not isinstance(update[0], list):
                return *update, *[gr.skip()] * len(self.outputs)
            return *update, *self._saver(before)(update[0])

        return watched

    def _saver(self, before: History) -> Callable[[History], tuple[Any, ...]]:
        known: dict[str, str] = {}
        names: list[str] | None = None

        def save(history: History) -> tuple[Any, ...]:
            nonlocal names
            if self.provider.engine() is None and talk.latest_picture(history):
                return gr.skip(), gr.skip(), gr.skip()  # what reads pictures is not loaded yet
            if names is None:
                names = kept.to_browser(before, known)[1]
            words, now = kept.to_browser(history, known)
            shown = gr.skip()
            if now != names:
                names = now
                shown = self._kept_pictures(history)
            return words, shown, self._command(history)

        return save

    def _kept_pictures(self, history: History) -> dict[str, str]:
        found, dropped = kept.pictures_of(history)
        if dropped:
            gr.Info(texts.pictures_dropped(dropped), duration=8)
        return found

    def _command(self, history: History) -> str:
        engine = self.provider.engine()
        if engine is None or talk.being_answered(history):
            return texts.NO_CODE
        return command(history, engine.base, self.store) or texts.NO_CODE

    # Events.

    def connect(
        self, page: gr.Blocks, chat: gr.Chatbot, settings: Mapping[str, Any], busy: Callable[..., bool]
    ) -> None:
        """settings: the chat's components by field; busy: whether a session is being answered."""
        panel = [settings[name] for name in PANEL]
        everything = [chat, *self.outputs, *panel, self._told]
        passed = self._passed

        restored = page.load(
            self.restore,
            [self._words, self._pictures, self._settings, passed],
            [self._told, chat, self._code, *panel],
            js="(words, pictures, settings) => [words, pictures, settings, window.talkPage.linked()]",
            **TELLING,
        )
        restored.then(None, js="() => { window.talkPage.restored = true; }", **QUICK)
        restored.then(self.tell_missing, self._told, None, **TELLING)
        gr.on(
            [component.change for component in panel],
            None,
            [self._settings, *panel],
            self._settings,
            js="(kept, ...values) => (window.talkPage.restored ? { values } : kept)",
            **QUICK,
        )
        self._fewer.click(self.fewer, self._pictures, self._pictures, **TELLING)
        chat.clear(lambda: (*self._saver([])([])[:1], {}, texts.NO_CODE), None, self.outputs, **QUICK)

        def take(file: str, request: gr.Request) -> tuple[Any, ...]:
            if busy(request.session_hash):
                gr.Info(texts.STILL_ANSWERING, duration=6)
                return *(gr.skip(),) * (len(everything) - 1), ""
            return self.take(file)

        taken = self._import.upload(take, self._import, everything, **TELLING)
        taken.then(None, self._told, None, js="told => told && window.talkPage.leaveLink()", **QUICK)
        exported = self._export.click(self.export, [chat, *panel], passed, **TELLING)
        save = f"text => window.talkPage.save('{texts.EXPORT_NAME}', text)"
        exported.success(None, passed, None, js=save, **QUICK)
        linked = self._link.click(self.link, chat, passed, **TELLING)
        copied = linked.success(
            None,
            passed,
            [passed, self._told],
            js="async packed => { const to = window.talkPage.address(packed);"
            " return [to, await window.talkPage.copy(to)]; }",
            **QUICK,
        )
        copied.then(_tell_link, [passed, self._told], None, **TELLING)

    def restore(self, words: Any, shown: Any, settings: Any, packed: str | None) -> tuple[Any, ...]:
        """The page as it was left, or with the conversation of a link, which replaces nothing yet."""
        history: History = []
        try:
            if packed:
                history = kept.from_link(packed)
                gr.Info(texts.LINK_OPENED, duration=8)
        except BadInput as error:
            toast(error)
        try:
            history = history or kept.from_browser(words, shown)
        except OSError:
            log.exception("a conversation could not be restored")
        values = kept.kept_values(settings)
        chosen = _chosen(values)
        return chosen, history or gr.skip(), self._command(history), *self._panel(values)

    def tell_missing(self, chosen: str) -> None:
        """Say which of the adapters that were chosen are not there, once the server knows what is."""
        wanted = json.loads(chosen or "[]")
        deadline = time.monotonic() + LOOKING_SECONDS
        while wanted and self._unknown() and time.monotonic() < deadline:
            time.sleep(0.25)
        for name in sorted(set(wanted) - set(self.store.names())):
            gr.Info(texts.adapter_gone(name), duration=8)

    def _unknown(self) -> bool:
        """Whether the adapters are still being looked up."""
        return not self.store.names() and self.provider.status().state == "loading"

    def take(self, file: str) -> tuple[Any, ...]:
        """An imported file: the conversation, its settings, and a word for the browser that it was taken.

        Says what is wrong, and changes nothing then.
        """
        try:
            if Path(file).stat().st_size > transcript.MAX_BYTES:
                raise BadInput(texts.import_too_large(transcript.MAX_BYTES))
            found = transcript.read(Path(file).read_bytes())
            history = kept.history_of(found.parts)
        except BadInput as error:
            toast(error)
            return *(gr.skip(),) * (1 + len(self.outputs) + len(PANEL)), ""
        words, _ = kept.to_browser(history, {})
        values = kept.kept_values(found.settings)
        self.tell_missing(_chosen(values))
        shown = history, words, self._kept_pictures(history), self._command(history)
        return *shown, *self._panel(values), "taken"

    def _panel(self, values: dict[str, Any]) -> list[Any]:
        """Updates of the side panel. An adapter that is not there any more is left for the base."""
        names, unknown = self.store.names(), self._unknown()
        updates = []
        for field in PANEL:
            value = values.get(field)
            if field not in values:
                updates.append(gr.skip())
            elif field in ("adapter", "mix"):
                updates.append(self._pick(value, names, unknown, field == "mix"))
            else:
                updates.append(gr.update(value=value))
        return updates

    def _pick(self, value: Any, names: list[str], unknown: bool, short: bool) -> Any:
        choices = look.picker_choices(self.store)
        if value and unknown:
            choices.append((value, value))
        elif value not in names:
            value = BASE_ONLY
        # With the choices: a session's own are those of an empty store until it has heard of others.
        return gr.update(choices=look.short_choices(choices, texts.NO_MIX) if short else choices, value=value)

    def export(self, history: History, *values: Any) -> str:
        if not history:
            gr.Info(texts.NOTHING_TO_EXPORT, duration=4)
            return ""
        try:
            return kept.to_file(history, Settings.checked(dict(zip(PANEL, values, strict=True))))
        except BadInput as error:
            toast(error)
            return ""

    def link(self, history: History) -> str:
        try:
            if not history:
                raise BadInput(texts.NOTHING_TO_EXPORT)
            return kept.to_link(history)
        except AdapterError as error:
            toast(error)
            return ""

    def fewer(self, shown: Any) -> dict[str, str]:
        """The browser's storage is full: the oldest pictures make room."""
        found = kept.fewer(shown)
        if shown:
            gr.Info(texts.STORAGE_FULL, duration=8)
        return found


def _chosen(values: dict[str, Any]) -> str:
    return json.dumps([values[field] for field in ("adapter", "mix") if values.get(field)])


def _tell_link(address: str, copied: str) -> None:
    if address:
        gr.Info(texts.LINK_COPIED if copied else texts.link_to_copy(address), duration=8 if copied else 60)
