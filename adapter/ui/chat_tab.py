"""The chat tab: its components and which event calls which turn. Logic is in turns.py, looks in look.py."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components.chatbot import ExampleMessage
from gradio.context import Context

from adapter.serve.settings import BASE_ONLY, slider
from adapter.server.settings import MAX_CHARACTERS, EngineProvider
from adapter.ui import theme as look
from adapter.ui.adapter_upload_panel import bring_an_adapter
from adapter.ui.camera import camera_html
from adapter.ui.chat_events import ChatTurns
from adapter.ui.chatbot import Conversation
from adapter.ui.client_api import api
from adapter.ui.conversation_store import Keeping
from adapter.ui.inside_panel import inside_panel
from adapter.ui.status import PRIVATE, QUICK, TELLING, Picker
from adapter.ui.texts import page as texts

# Every event that touches the model shares this id: the limit holds for the page and the API together. The
# engine's own queue decides whose turn it is, so that Gradio lets through as many as that takes in.
MODEL = {"concurrency_id": "model", "concurrency_limit": 64}


def chat_tab(provider: EngineProvider, store: look.Cards, bringing: bool = True) -> list[Picker]:
    """Lay the chat out inside the current Blocks and connect it; the pickers are to be kept up to date.

    bringing: whether visitors may bring adapters.
    """
    examples = look.examples()
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            chat = Conversation(
                show_label=False,
                label=texts.CONVERSATION,
                height="70dvh",  # page.css fits it to the window
                buttons=["copy"],
                editable="user",
                group_consecutive_messages=False,  # so that an edit keeps the picture, see conversation.py
                latex_delimiters=[],
                allow_tags=False,
                placeholder=texts.EMPTY_CHAT,
                examples=[_card(example) for example in examples],
                elem_id="chat",
            )
            with gr.Column(elem_id="compose"):
                box = message_box(texts.PLACEHOLDER, "box")
                gr.HTML(camera_html(), elem_id="camera", padding=False)
        with gr.Column(scale=3, min_width=280, elem_id="side"):
            picker = gr.Radio(
                look.picker_choices(store),
                value=BASE_ONLY,
                label=texts.ADAPTER,
                elem_id="picker",
                elem_classes="cards",
            )
            strength = gr.Slider(**slider("strength"), label=texts.STRENGTH, info=texts.STRENGTH_INFO)
            with gr.Accordion(texts.ABOUT, open=False, elem_id="about"):
                about = gr.Markdown(look.about(store, BASE_ONLY))
            with gr.Accordion(texts.MIX, open=False, elem_id="mix"):
                choices = look.short_choices(look.picker_choices(store), texts.NO_MIX)
                mix = gr.Dropdown(choices, value=BASE_ONLY, label=texts.SECOND_ADAPTER, filterable=False)
                mix_strength = gr.Slider(
                    **slider("mix_strength"), label=texts.SECOND_STRENGTH, info=texts.SECOND_INFO
                )
            with gr.Accordion(texts.SAMPLING, open=False):
                sampling = sampling_controls()
            keeping = Keeping(provider, store)
            pickers = [Picker(picker), Picker(mix, texts.NO_MIX)]
            if bringing:
                bring_an_adapter(provider, store, pickers[0], pickers[1:])
    inside = inside_panel(provider, chat, MODEL)
    mixed = {"mix": mix, "mix_strength": mix_strength}
    mutes = dict(zip(("mute_layers", "mute_heads"), inside.mutes, strict=True))
    settings = {"adapter": picker, "strength": strength, **sampling, **mixed, **mutes}
    # Icons and pictures of the examples are served from copies; answers must name those.
    handlers = ChatTurns(provider, store, _served(examples, chat), tuple(settings))
    _connect(handlers, keeping, chat, box, settings, inside.again)
    picker.change(lambda name: look.about(store, name), picker, about, **QUICK)
    api(provider, store, MODEL)
    return pickers


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


def sampling_controls() -> dict[str, Any]:
    """Components for temperature, top-p, max tokens and seed, by field of Settings."""
    return {
        "temperature": gr.Slider(**slider("temperature"), label=texts.TEMPERATURE, info=texts.TEMPERATURE_INFO),
        "top_p": gr.Slider(**slider("top_p"), label=texts.TOP_P),
        "max_tokens": gr.Slider(**slider("max_tokens"), label=texts.MAX_TOKENS),
        # Not gr.Number: an empty one shows and sends 0 (gradio 6.31).
        "seed": gr.Textbox(label=texts.SEED, placeholder=texts.NEW_SEED, max_lines=1, max_length=20),
    }


def _connect(
    handlers: ChatTurns,
    keeping: Keeping,
    chat: gr.Chatbot,
    box: gr.MultimodalTextbox,
    settings: dict[str, Any],
    again: gr.Button,
) -> None:
    kept = keeping.outputs
    values = list(settings.values())
    turn = {"outputs": [chat, box, settings["adapter"], *kept], "show_progress": "hidden", **MODEL, **PRIVATE}
    box.submit(keeping.watch(handlers.send), [box, chat, *values], **turn)
    gr.on([chat.retry, again.click], keeping.watch(handlers.retry), [chat, *values], **turn)
    chat.edit(keeping.watch(handlers.edit), [chat, *values], **turn)
    chat.option_select(keeping.watch(handlers.choose), [chat, *values], **turn)
    chat.example_select(keeping.watch(handlers.example), [chat, *values], **turn)
    box.stop(keeping.watch_once(handlers.stop), chat, [chat, box, *kept], **QUICK)
    chat.clear(handlers.clear, None, box, **QUICK)
    chat.undo(keeping.watch_once(handlers.undo), chat, [chat, box, *kept], **TELLING)
    page = Context.root_block
    assert page is not None
    keeping.connect(page, chat, settings, handlers.busy)
    # From a link's conversation on to one's own.
    going_on = [box.submit, chat.retry, chat.edit, chat.option_select, chat.example_select, chat.undo, chat.clear]
    gr.on([*going_on, again.click], None, None, None, js="() => window.talkPage.leaveLink()", **QUICK)


def _card(example: look.Example) -> ExampleMessage:
    card: ExampleMessage = {"text": example.text, "display_text": example.label}
    if example.picture:
        card["files"] = [example.picture]
    return card


def _served(examples: list[look.Example], chat: gr.Chatbot) -> list[look.Example]:
    served = []
    for example, card in zip(examples, chat.examples or [], strict=True):
        files = card.get("files") or []
        picture = files[0]["path"] if files else None
        if picture:
            chat.keep_in_cache.add(picture)  # a day-old copy would be deleted as an upload is
        served.append(look.Example(example.label, example.text, example.adapter, picture))
    return served
