"""The chat tab: its components, and which event calls which handler."""

import html
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import gradio as gr

from adapter.errors import AdapterError
from adapter.serve.settings import BASE_ONLY, MAX_STOPS, MAX_SYSTEM, Settings, slider
from adapter.server.generation import MAX_CHARACTERS, AdapterCatalog, EngineProvider
from adapter.ui import theme
from adapter.ui.chat.adapter_upload_panel import adapter_upload_panel, hub_question, own_adapter_panel
from adapter.ui.chat.chatbot import LATEX, VerbatimChatbot
from adapter.ui.chat.conversation_store import ConversationStore
from adapter.ui.chat.corrections import CorrectionsPanel, corrections_panel
from adapter.ui.chat.events import ChatEvents, add_api_endpoint
from adapter.ui.gradio_internals import subclass_component
from adapter.ui.inside.panel import inside_panel
from adapter.ui.status import MODEL, PRIVATE, QUEUED, UNQUEUED, Picker
from adapter.ui.texts import page as texts
from adapter.ui.theme import ExampleCard
from adapter.ui.toasts import toast


class TabParts(NamedTuple):
    """What others use. chosen, describe: what is shown of the first picker's adapter, and its updates by name."""

    pickers: list[Picker]
    message_box: gr.MultimodalTextbox
    chosen: Sequence[Any]
    describe: Callable[[str], Sequence[Any]]
    corrections: CorrectionsPanel
    chat: gr.Chatbot
    store: ConversationStore


def chat_tab(
    page: gr.Blocks, provider: EngineProvider, catalog: AdapterCatalog, uploads: bool = True, public: bool = False
) -> TabParts:
    """Lays the chat out. uploads: whether visitors may add adapters; public: nobody may delete one."""
    examples = theme.examples(catalog)
    js = "window.chatPage.connect({ open: data => trigger('open', data), act: data => trigger('act', data) })"
    link = hub_question() if uploads else None
    words = {name: html.escape(text) for name, text in vars(texts).items() if isinstance(text, str)}
    list_html = (theme.STATIC / "conversations.html").read_text(encoding="utf-8").format_map(words)
    listed = gr.HTML(list_html, elem_id="conversations", padding=False, js_on_load=js)
    with gr.Row(equal_height=False, elem_id="room"):
        with gr.Column(elem_id="talk"):
            chat = _chatbot(examples, catalog)
            corrections = corrections_panel(page)
            with gr.Column(elem_id="dock"):
                with gr.Row(elem_id="who"):
                    choices = theme.picker_choices(catalog)
                    is_there = theme.FIRST_ADAPTER in [name for _, name in choices]
                    first = theme.FIRST_ADAPTER if is_there else BASE_ONLY
                    radio = AdapterRadio(choices, value=first, label=texts.ADAPTER, elem_id="picker")
                    shown = {"label": texts.STRENGTH, "buttons": [], "interactive": bool(first)}
                    strength = gr.Slider(**slider("strength"), **shown, elem_id="strength")
                    settings: dict[str, Any] = {"adapter": radio, "strength": strength}
                    with gr.Accordion(texts.MORE, open=False, elem_id="more"):
                        pickers, own = [Picker(radio)], []
                        if uploads and not public:
                            own = [own_adapter_panel(catalog, pickers[0])]
                        about = _settings_panel(catalog, settings)
                        pickers.append(Picker(settings["mix"], texts.NO_MIX))
                        store = ConversationStore(provider, catalog)
                        if link is not None:
                            adapter_upload_panel(store, pickers, link, public)
                settings["xray"], drawing = _about_line()
                box = message_box(texts.PLACEHOLDER, "box")
                context = gr.HTML(elem_id="context", padding=False)
        with gr.Column(elem_id="inside-column"):
            inside_panel(provider, store.conversations, store.id)
    opened = store.connect(listed, [chat, drawing, context], box, settings, corrections.known)
    _connect(ChatEvents(examples, store), store, opened, settings)
    # X-ray is on until somebody turns it off, which xray.js notes in the browser.
    begin = "() => { window.chatPage.begin(); return localStorage.getItem('llama-adapter:xray') !== 'off'; }"
    page.load(None, None, settings["xray"], js=begin, **UNQUEUED)
    page.unload(store.close)
    add_api_endpoint(provider, catalog)

    def describe(name: str) -> Sequence[Any]:
        is_own = False
        with suppress(AdapterError):
            is_own = bool(name) and catalog.card(name).own
        shown = [gr.update(visible=is_own) for _ in own]
        return theme.model_card(catalog, name), gr.update(interactive=bool(name)), *shown

    return TabParts(pickers, box, [about, strength, *own], describe, corrections, chat, store)


def _chatbot(examples: list[ExampleCard], catalog: AdapterCatalog) -> gr.Chatbot:
    """Lays out the conversation. An empty one shows a recorded film and the examples."""
    film = theme.films_html([name for _, name in theme.picker_choices(catalog)])
    return VerbatimChatbot(
        show_label=False,
        label=texts.CONVERSATION,
        buttons=["copy"],
        editable="all",
        group_consecutive_messages=False,  # an edit then keeps the picture, see conversation.py
        latex_delimiters=LATEX,
        allow_tags=False,
        placeholder=f"{texts.EMPTY_CHAT}\n\n{film}",
        examples=[
            {"text": one.text, "display_text": one.label, **({"files": [one.picture]} if one.picture else {})}
            for one in examples
        ],
        elem_id="chat",
    )


def _settings_panel(catalog: AdapterCatalog, settings: dict[str, Any]) -> gr.HTML:
    """Lays out what is seldom changed, and adds it to the settings; returns the adapter's card."""
    picker = settings["adapter"]
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

    def choose_alone(mix: str | None, read: str) -> tuple[Any, Any]:
        """Another adapter is chosen: what was mixed into the one before, or read all by it, does not follow."""
        if mix:
            toast(texts.not_taken_along(mix), 6)
        return BASE_ONLY if mix else gr.skip(), Settings().others if read == "all" else gr.skip()

    picker.input(choose_alone, [mix, others], [mix, others], **QUEUED)
    return about


# Gradio's answers an adapter that has just been deleted with an error; handlers say what is missing.
AdapterRadio: Any = subclass_component(
    "AdapterRadio", gr.Radio, {"preprocess": lambda _, name: name if isinstance(name, str) else None}
)


def _about_line() -> tuple[gr.Checkbox, gr.HTML]:
    """Lays out what is above the message. Returns X-ray's switch, and what draws it and `submit`s branches."""
    with gr.Row(elem_id="about-line"):
        gr.HTML('<p id="description"></p>', padding=False, elem_id="describes")
        switch = gr.Checkbox(True, label=texts.XRAY, container=False, elem_id="xray-switch")
        drawing = gr.HTML(
            [],
            html_template=theme.XRAY_KEY,
            js_on_load=(theme.STATIC / "xray.js").read_text(encoding="utf-8"),
            both=texts.BOTH,
            instead=texts.INSTEAD,
            own=texts.COULD,
            elem_id="xray",
        )
        js = "() => document.querySelector('#inside > .label-wrap').click()"
        gr.Button(texts.LOOK_INSIDE, size="sm", elem_id="inside-open").click(None, js=js, **UNQUEUED)
    return switch, drawing


def message_box(placeholder: str, elem_id: str) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        show_label=False,
        label=texts.MESSAGE,
        placeholder=placeholder,
        file_types=["image", ".jfif"],  # where the machine has no /etc/mime.types
        max_plain_text_length=10 * MAX_CHARACTERS,
        max_lines=8,
        elem_id=elem_id,
        elem_classes="box",
    )


def sampling_inputs() -> dict[str, Any]:
    """Components by the name of their setting, as the `inputs_kwargs` of an event listener."""
    sliders = {
        "temperature": (texts.TEMPERATURE, texts.TEMPERATURE_INFO),
        "top_p": (texts.TOP_P, None),
        "top_k": (texts.TOP_K, texts.TOP_K_INFO),
        "min_p": (texts.MIN_P, texts.MIN_P_INFO),
        "repetition_penalty": (texts.PENALTY, texts.PENALTY_INFO),
        "max_tokens": (texts.MAX_TOKENS, None),
    }
    return {
        **{name: gr.Slider(**slider(name), label=label, info=info) for name, (label, info) in sliders.items()},
        # Not gr.Number: an empty one shows and sends 0 (gradio 6.31).
        "seed": gr.Textbox(label=texts.SEED, placeholder=texts.NEW_SEED, max_lines=1, max_length=20),
        "stop": gr.Textbox(label=texts.STOP, info=texts.STOP_INFO, lines=1, max_lines=MAX_STOPS),
    }


def _connect(events: ChatEvents, store: ConversationStore, opened: Any, settings: dict[str, Any]) -> None:
    """opened: the event of a conversation that is opened."""
    chat, drawing, _, box, *_, known = store.outputs
    # An answer of another conversation may still be pending: by default Gradio's page then drops a message without
    # a word (6.31). Of two events of one conversation the second is refused.
    options = {"show_progress": "hidden", "trigger_mode": "multiple", **MODEL, **PRIVATE}
    turn = {"inputs_kwargs": settings, "outputs": store.outputs, **options}
    pressed = (chat.retry, chat.edit, chat.option_select, chat.example_select, drawing.submit)
    gr.on([box.submit, *pressed], events.send, [box, store.id, known], **turn)
    names = json.dumps([name for name in settings if name != "xray"])  # which comes last
    js = f"(id, ...values) => window.chatPage.opened(id, {names}, values)"
    opened.then(events.follow, store.id, js=js, **turn)
    box.stop(events.stop, store.id, store.outputs, **UNQUEUED)
    focus = "() => { if (matchMedia('(hover: hover)').matches) document.querySelector('#box textarea').focus(); }"
    chat.undo(events.undo, [box, store.id], store.outputs, **QUEUED).then(None, js=focus)
    settings["xray"].input(events.xray, [settings["xray"], store.id], drawing, **QUEUED)
