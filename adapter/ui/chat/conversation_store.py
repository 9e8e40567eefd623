"""The panel "This conversation": opens and keeps it in the browser, files and links."""

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import gradio as gr

from adapter.errors import BadInput
from adapter.serve.request import Client
from adapter.serve.settings import BASE_ONLY, PANEL
from adapter.server.generation import AdapterCatalog, EngineProvider, client_of
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import build_request, whole_answer
from adapter.ui.chat import conversation_json
from adapter.ui.chat.chatbot import to_view
from adapter.ui.conversation import Entry, History
from adapter.ui.gradio_internals import Unconverted, sent
from adapter.ui.session import Conversation, Conversations, NotOpen
from adapter.ui.status import MODEL, QUEUED, UNQUEUED, Picker
from adapter.ui.texts import page as texts
from adapter.ui.toasts import errors_as_toasts, toast

PICKERS = {"adapter": None, "mix": texts.NO_MIX}  # the settings that are chosen from adapters, as Picker.none
OF_ADAPTER = ("strength", "others")  # settings that do not follow when the page itself switches the adapter
REST_OF_PANEL = tuple(name for name in PANEL if name not in (*PICKERS, *OF_ADAPTER))
# Names of texts that the browser's script may have shown as toasts.
NOTES = {
    *("STORAGE_FULL", "ONE_PICTURE", "NO_PICTURE", "NOTHING_TO_EXPORT", "KEPT_APART"),
    *("LINK_COPIED", "LINK_TOO_LONG", "FILE_TOO_LARGE", "NOT_OPENED"),
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
    xray: Any = gr.skip()
    context: Any = gr.skip()
    box: Any = gr.skip()
    id: Any = gr.skip()
    to_browser: Any = gr.skip()
    adapter: Any = gr.skip()
    mix: Any = gr.skip()
    strength: Any = gr.skip()
    others: Any = gr.skip()
    corrections: Any = gr.skip()


class ConversationStore:
    """Lays out its panel; `connect` adds the events once the chat exists. id: has the id of the conversation that
    is shown; outputs: of the events that return Updates; opened: these and the other settings, for what opens one.
    """

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog) -> None:
        self.provider, self.catalog, self.conversations = provider, catalog, Conversations()
        with gr.Accordion(texts.THIS_CONVERSATION, open=False, elem_id="this-conversation"):
            words = {"name": texts.EXPORT_NAME, "not-sent": texts.PICTURE_NOT_SENT}
            gr.HTML(f'<div class="actions" {theme.data_attributes(words)}>{_ACTIONS}</div>', padding=False)
        self.id = gr.Textbox(visible=False)
        # JSON for conversations.js. Not gr.BrowserState, which has room for five million characters in all.
        self.to_browser = gr.Textbox(visible="hidden", show_label=False, max_lines=1)

    def connect(
        self, listed: gr.HTML, chat: Sequence[Any], box: Any, settings: dict[str, Any], corrections: Any
    ) -> Any:
        """Returns the event that opens a conversation. listed: the list, whose script sends it."""
        switched = [settings[name] for name in (*PICKERS, *OF_ADAPTER)]
        self.outputs: list[Any] = [*chat, box, self.id, self.to_browser, *switched, corrections]
        self.opened: list[Any] = [*self.outputs, *[settings[name] for name in REST_OF_PANEL]]
        together = {**QUEUED, **MODEL, "trigger_mode": "multiple"}
        listed.act(self.act, None, [self.to_browser, settings["others"]], **together)
        self.to_browser.change(None, self.to_browser, js="text => window.chatPage.receive(text)", **UNQUEUED)
        panel = [settings[name] for name in PANEL]
        js = f"(...values) => window.chatPage.storeSettings({json.dumps(PANEL)}, values)"
        gr.on([component.change for component in panel], None, panel, js=js, **UNQUEUED)
        # Two at once are told apart by their ids.
        return listed.open(self.open, None, self.opened, trigger_mode="multiple", **QUEUED)

    def close(self, request: gr.Request) -> None:
        self.conversations.close(request.session_hash)

    def show(self, shown: Conversation, history: History | None = None) -> Updates:
        """history: with an answer that is being written, in place of the conversation's own."""
        history = shown.history if history is None else history
        shown.view = to_view(history, shown.view)
        xray = [entry.xray for entry in history if entry.role == "assistant"]
        records = (entry.record for entry in reversed(history) if entry.record and entry.record.context_length)
        context = ""  # how much of what the base reads the conversation has, from half of it on
        if (record := next(records, None)) and record.context_tokens > 0.5 * record.context_length:
            full = record.context_tokens > 0.8 * record.context_length
            say = texts.context_nearly_full if full else texts.context
            context = f'<span class="{"full" * full}">{say(record.context_tokens, record.context_length)}</span>'
        return Updates(shown.view, Unconverted(xray), context)

    def keep(self, shown: Conversation, history: History | None = None, begins: bool = True) -> Updates:
        """Shows a conversation as `show` does, and lets the browser keep it. begins: whether a visitor has changed
        it just now. Pictures are sent then, and again at the end of an answer: the page may miss an update.
        """
        history = shown.history if history is None else history
        packed, writing = conversation_json.pack(history), conversation.is_streaming(history)
        kept: dict[str, Any] = {"id": shown.id, "document": packed.document, "begins": begins}
        if begins or not writing:
            kept["pictures"] = packed.pictures(shown.kept)
        if not writing:
            shown.kept = set(packed.paths)
        if packed.dropped and not shown.dropped:
            toast(texts.not_kept_by_browser(packed.dropped))
        shown.dropped = packed.dropped
        return self.show(shown, history)._replace(to_browser=json.dumps({"keep": kept}))

    def open(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Shows a conversation that the browser sends: from its storage, a file or a link, or an empty one."""
        id, text, source = (sent_text(event, name) for name in ("id", "text", "source"))
        with errors_as_toasts("a conversation that was opened"):
            if not id:
                raise BadInput(texts.WRONG_VALUE)
            if source == "link" and not text:
                raise BadInput(texts.LINK_UNREADABLE)
            history, values, dropped = conversation_json.read(text, stored=not source)
            if source and dropped:
                toast(texts.not_imported(dropped))
            if source == "link":
                toast(texts.LINK_OPENED)
            shown = self.conversations.open(request.session_hash, id[:100], history)
            packed = conversation_json.pack(history)
            shown.kept, shown.dropped = set() if source else set(packed.paths), packed.dropped
            # A link's is kept when it goes on; what the server has may be newer than what the browser had kept.
            is_new, now = source == "file" or shown.newest != history, shown.newest
            updates = self.keep(shown, now, begins=bool(source)) if is_new and now else self.show(shown)
            return self._opened(shown, updates, values)
        return (gr.skip(),) * (len(Updates._fields) + len(REST_OF_PANEL))

    def act(self, event: gr.EventData, request: gr.Request) -> tuple[Any, Any]:
        """What else the browser's scripts ask for. Updates of what they get, and of what is read of others."""
        name, address, id = (sent_text(event, part) for part in ("name", "address", "id"))
        if name in NOTES:
            toast(getattr(texts, name))
        elif name == "all":
            toast(texts.READS_ALL, 5)
            return gr.skip(), "all"
        elif name == "awake" and self.conversations.shows(request.session_hash, ""):  # the server forgot it
            return json.dumps({"open": secrets.token_hex(4)}), gr.skip()
        elif name == "link":  # what it says before the newest answer
            said = ""
            with errors_as_toasts("an answer for a link"), suppress(NotOpen):
                said = self._of_base(self.conversations.shown(request.session_hash, id).newest, client_of(request))
            return json.dumps({"share": said, "of": id, "again": secrets.token_hex(4)}), gr.skip()
        elif 0 < len(address) < 20_000:  # conversations.js makes no link that is half as long
            toast(texts.link_to_copy(address), 60)
        return gr.skip(), gr.skip()

    def _of_base(self, history: History, client: Client) -> str:
        """What the frozen base answers to the newest question, as the page says it; "" where no adapter did."""
        last, engine = history[-1] if history else Entry("page"), self.provider.engine()
        record = last.record if last.role == "assistant" and not last.pending else None
        if record is None or engine is None or not record.settings.adapter:
            return ""
        plain = {"adapter": BASE_ONLY, "mix": BASE_ONLY, "max_tokens": 160}
        settings, asked = record.settings.replace(**plain), conversation.to_messages(history[:-1])
        text = whole_answer(engine, build_request(asked, settings, None, client))
        said = texts.at_strength_0(" ".join(text.split()))
        return "" if any(entry.text == said for entry in history) else said  # a link's has it already

    def begin(self, panel: dict[str, Any], message: dict[str, Any] | None, request: gr.Request) -> tuple[Any, ...]:
        """Shows a new conversation with these values, and a message in its box. Updates of `opened`."""
        shown = self.conversations.open(request.session_hash, secrets.token_urlsafe(12), [])
        return self._opened(shown, self.keep(shown), panel, **({} if message is None else {"value": message}))

    def _opened(self, shown: Conversation, updates: Updates, panel: dict[str, Any], **box: Any) -> tuple[Any, ...]:
        """Updates that show a conversation and its settings; an adapter that does not exist becomes the base."""
        pickers, known, names = {}, theme.picker_choices(self.catalog), self.catalog.names()
        for name, none in PICKERS.items():
            value, choices = panel.get(name), known
            if value and not self.catalog.taken():
                choices = [*known, (value, value)]
            elif value and value not in names:
                toast(texts.adapter_missing(value))
                panel, value = {**panel, "mix": BASE_ONLY}, BASE_ONLY  # which does not answer alone
            # The choices, because a page may have been built when the catalog was still empty.
            pickers[name] = Picker(None, none).update(choices, value)
        kept = {name: panel[name] for name in OF_ADAPTER if name in panel}
        updates = updates._replace(box={**theme.SUBMIT, **box}, id=shown.id, **pickers, **kept)
        return *updates, *[panel.get(name, gr.skip()) for name in REST_OF_PANEL]


def sent_text(event: gr.EventData, name: str) -> str:
    """A text that a script has sent with an event; empty for anything else."""
    return value if isinstance(value := sent(event).get(name), str) else ""
