"""The chat tab: its components, and which event calls which handler."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from adapter.serve.settings import BASE_ONLY, MAX_STOPS, MAX_SYSTEM, Settings, slider
from adapter.server.generation import MAX_CHARACTERS, AdapterCatalog, EngineProvider
from adapter.ui import theme
from adapter.ui.chat.adapter_upload_panel import adapter_upload_panel, own_adapter_panel
from adapter.ui.chat.chatbot import LATEX, VerbatimChatbot
from adapter.ui.chat.client_api import add_api_endpoints
from adapter.ui.chat.conversation_store import ConversationStore
from adapter.ui.chat.corrections import CorrectionsPanel, corrections_panel
from adapter.ui.chat.events import ChatEvents
from adapter.ui.chat.xray import LOGS_JS, about_line
from adapter.ui.compare.filmstrip import films_html
from adapter.ui.gradio_internals import subclass_component
from adapter.ui.images import write_upload
from adapter.ui.inside.panel import inside_panel
from adapter.ui.session import Conversations
from adapter.ui.status import MODEL, PRIVATE, QUEUED, UNQUEUED, Picker
from adapter.ui.texts import page as texts
from adapter.ui.theme import ExampleCard
from adapter.ui.toasts import toast

# Components by the name of their setting: the `inputs_kwargs` of an event listener.
SettingsInputs = dict[str, Any]


class TabParts(NamedTuple):
    """The components of a tab that other parts of the page update."""

    pickers: list[Picker]
    message_box: gr.MultimodalTextbox
    corrections: CorrectionsPanel | None = None
    view: gr.Radio | None = None
    chat: gr.Chatbot | None = None
    conversations: Conversations | None = None
    store: ConversationStore | None = None


def chat_tab(
    page: gr.Blocks, provider: EngineProvider, catalog: AdapterCatalog, uploads: bool = True, public: bool = False
) -> TabParts:
    """Lays the chat out inside `page` and connects it.

    uploads: whether visitors may upload adapters. public: whether others than this machine may ask; then nobody
    renames or deletes here what others brought.
    """
    examples = [_copied_to_uploads(example) for example in theme.examples()]
    sent = ", ".join(f"{name}: data => trigger('{name}', data)" for name in ("open", "note", "link"))
    js = f"window.chatPage.connect({{{sent}}})"
    listed = gr.HTML(theme.conversations_html(), elem_id="conversations", padding=False, js_on_load=js)
    with gr.Row(equal_height=False, elem_id="room"):
        with gr.Column(elem_id="talk"):
            chat = _chatbot(examples, catalog)
            corrections = corrections_panel(page)
            with gr.Column(elem_id="dock"):
                with gr.Row(elem_id="who"):
                    settings = _adapter_choice(catalog)
                    with gr.Accordion(texts.MORE, open=False, elem_id="more"):
                        own = _settings_panel(catalog, settings)
                        store = ConversationStore(provider, catalog)
                        pickers = [Picker(settings["adapter"]), Picker(settings["mix"], texts.NO_MIX)]
                        if uploads:
                            adapter_upload_panel(page, provider, catalog, pickers, corrections.around, public)
                            with own:
                                if not public:
                                    own_adapter_panel(catalog, pickers[0])
                settings["xray"], drawing, line = about_line(page, chat)
                box = message_box(texts.PLACEHOLDER, "box")
                context = gr.HTML(elem_id="context", padding=False)
        with gr.Column(elem_id="inside-column"):
            inside_panel(provider, store.conversations)
    lines = json.dumps([texts.CONTEXT, texts.CONTEXT_NEARLY_FULL])
    js = f"messages => window.chatPage.contextLine(messages, {lines})"
    chat.change(None, chat, context, js=js, **UNQUEUED)
    opened = store.connect(page, listed, chat, box, settings)
    events = ChatEvents(provider, catalog, examples, store)
    _connect(events, store, opened, chat, box, settings, drawing)
    # The chat tells no change where only what X-ray reads was added to an answer (Gradio 6.31).
    store.to_browser.change(None, chat, drawing, js=LOGS_JS, **UNQUEUED)
    corrected = [*store.outputs, corrections.known]
    chat.edit(events.correct, [store.id, corrections.known], corrected, **QUEUED)
    line.all(_read_all, None, settings["others"], **QUEUED)
    add_api_endpoints(provider, catalog)
    return TabParts(pickers, box, corrections, chat=chat, conversations=store.conversations, store=store)


def _chatbot(examples: list[ExampleCard], catalog: AdapterCatalog) -> gr.Chatbot:
    """Lays out the conversation. An empty one shows a recorded film and the examples."""
    film = films_html([name for _, name in theme.picker_choices(catalog)])
    return VerbatimChatbot(
        show_label=False,
        label=texts.CONVERSATION,
        height="70dvh",  # page.css fits it to the window
        buttons=["copy"],
        editable="all",
        group_consecutive_messages=False,  # an edit then keeps the picture, see conversation.py
        latex_delimiters=LATEX,
        allow_tags=False,
        placeholder=f"{texts.EMPTY_CHAT}\n\n{film}",
        examples=[_example_card(example) for example in examples],
        elem_id="chat",
    )


def _adapter_choice(catalog: AdapterCatalog) -> SettingsInputs:
    """Lays out the adapters, a row of chips, and the strength."""
    choices = theme.picker_choices(catalog)
    first = theme.FIRST_ADAPTER if theme.FIRST_ADAPTER in [name for _, name in choices] else BASE_ONLY
    picker = AdapterRadio(choices, value=first, label=texts.ADAPTER, elem_id="picker")
    strength = gr.Slider(
        **slider("strength"), label=texts.STRENGTH, buttons=[], interactive=bool(first), elem_id="strength"
    )
    return {"adapter": picker, "strength": strength}


def _settings_panel(catalog: AdapterCatalog, settings: SettingsInputs) -> gr.Column:
    """Lays out what is seldom changed, and adds it to the settings; returns a place for more."""
    picker = settings["adapter"]
    with gr.Column(elem_id="own-adapter") as own:
        pass
    with gr.Accordion(texts.ABOUT, open=False, elem_id="about"):
        about = gr.HTML(theme.model_card(catalog, picker.value))
    with gr.Accordion(texts.MIX, open=False, elem_id="mix"):
        short = theme.short_choices(picker.choices, texts.NO_MIX)
        mix = gr.Dropdown(short, value=BASE_ONLY, label=texts.SECOND_ADAPTER, filterable=False)
        mix_strength = gr.Slider(**slider("mix_strength"), label=texts.SECOND_STRENGTH, info=texts.SECOND_INFO)
    with gr.Accordion(texts.SAMPLING, open=False):
        settings |= {"mix": mix, "mix_strength": mix_strength, **sampling_inputs()}
    with gr.Accordion(texts.SYSTEM_PROMPT, open=False):
        settings["system"] = gr.Textbox(
            label=texts.SYSTEM_PROMPT,
            show_label=False,
            info=texts.SYSTEM_INFO,
            placeholder=texts.SYSTEM_PLACEHOLDER,
            max_length=MAX_SYSTEM,
            lines=3,
        )
    others = gr.Radio(texts.OTHERS_CHOICES, value=Settings().others, label=texts.OTHERS, info=texts.OTHERS_INFO)
    settings["others"] = others

    def describe(name: str | None) -> tuple[str, Any]:
        return theme.model_card(catalog, name or BASE_ONLY), gr.update(interactive=bool(name))

    picker.change(describe, picker, [about, settings["strength"]], **UNQUEUED)
    picker.input(_choose_alone, mix, mix, **QUEUED)
    return own


def _read_all() -> str:
    toast(texts.READS_ALL, 5)
    return "all"


def _any_adapter(_: gr.Radio, name: Any) -> str | None:
    return name if isinstance(name, str) else None


# Gradio's answers an adapter that has just been deleted or renamed with an error; handlers say what is missing.
AdapterRadio: Any = subclass_component(
    "AdapterRadio", gr.Radio, {"__module__": __name__, "preprocess": _any_adapter}
)


def _choose_alone(mix: str | None) -> Any:
    """Another adapter is chosen: what was mixed into the one before does not follow it."""
    if not mix:
        return gr.skip()
    toast(texts.not_taken_along(mix), 6)
    return BASE_ONLY


def message_box(placeholder: str, elem_id: str) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        show_label=False,
        label=texts.MESSAGE,
        placeholder=placeholder,
        file_types=["image"],
        file_count="single",
        max_plain_text_length=10 * MAX_CHARACTERS,
        max_lines=8,
        elem_id=elem_id,
        elem_classes="box",
    )


def sampling_inputs() -> SettingsInputs:
    return {
        "temperature": gr.Slider(**slider("temperature"), label=texts.TEMPERATURE, info=texts.TEMPERATURE_INFO),
        "top_p": gr.Slider(**slider("top_p"), label=texts.TOP_P),
        "top_k": gr.Slider(**slider("top_k"), label=texts.TOP_K, info=texts.TOP_K_INFO),
        "min_p": gr.Slider(**slider("min_p"), label=texts.MIN_P, info=texts.MIN_P_INFO),
        "repetition_penalty": gr.Slider(
            **slider("repetition_penalty"), label=texts.PENALTY, info=texts.PENALTY_INFO
        ),
        "max_tokens": gr.Slider(**slider("max_tokens"), label=texts.MAX_TOKENS),
        # Not gr.Number: an empty one shows and sends 0 (gradio 6.31).
        "seed": gr.Textbox(label=texts.SEED, placeholder=texts.NEW_SEED, max_lines=1, max_length=20),
        "stop": gr.Textbox(label=texts.STOP, info=texts.STOP_INFO, lines=1, max_lines=MAX_STOPS),
    }


def _connect(
    events: ChatEvents,
    store: ConversationStore,
    opened: Any,
    chat: gr.Chatbot,
    box: gr.MultimodalTextbox,
    settings: SettingsInputs,
    branches: Any,
) -> None:
    """opened: the event of a conversation that is opened; branches: whose event `branch` begins one."""
    turn = {
        "inputs_kwargs": settings,
        "outputs": store.outputs,
        "show_progress": "hidden",
        # An answer of another conversation may still be pending: by default Gradio's page then drops a message
        # without a word (6.31). Of two events of one conversation the second is refused.
        "trigger_mode": "multiple",
        **MODEL,
        **PRIVATE,
    }
    box.submit(events.send, [box, store.id], **turn)
    chat.retry(events.retry, store.id, **turn)
    chat.edit(events.edit, store.id, **turn)
    chat.option_select(events.choose_option, store.id, **turn)
    chat.example_select(events.send_example, store.id, **turn)
    opened.then(events.follow, store.id, **turn)
    branches.branch(events.branch, store.id, **turn)
    box.stop(events.stop, store.id, store.outputs, **UNQUEUED)
    chat.undo(events.undo, store.id, store.outputs, **QUEUED)
    settings["xray"].input(events.xray, [settings["xray"], store.id], chat, **QUEUED)


def _copied_to_uploads(example: ExampleCard) -> ExampleCard:
    """The example with its picture copied to the uploads, the only files that a message may name.

    As a static path the copy is not deleted by age.
    """
    if example.picture is None:
        return example
    copy = write_upload(Path(example.picture).read_bytes())
    gr.set_static_paths(copy)
    return replace(example, picture=copy)


def _example_card(example: ExampleCard) -> Any:
    card: dict[str, Any] = {"text": example.text, "display_text": example.label}
    return {**card, "files": [example.picture]} if example.picture else card
