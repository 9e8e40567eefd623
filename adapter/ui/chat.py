"""The chat tab: its components and which event calls which turn. Logic is in turns.py, looks in look.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.components.chatbot import ExampleMessage

from adapter.errors import AdapterError
from adapter.ui import look, texts
from adapter.ui.live import PRIVATE, Picker
from adapter.ui.requests import (
    BASE_ONLY,
    MAX_CHARACTERS,
    MAX_STRENGTH,
    EngineProvider,
    Settings,
    answer_once,
    public_text,
    wait_or_say,
)
from adapter.ui.turns import ChatTurns

# Every event that touches the model shares this id: the limit holds for the page and the API together. The
# engine's own queue decides whose turn it is, so that Gradio lets through as many as that takes in.
MODEL = {"concurrency_id": "model", "concurrency_limit": 64}


def chat_tab(provider: EngineProvider, store: look.Cards) -> list[Picker]:
    """Lay the chat out inside the current Blocks and connect it; the pickers are to be kept up to date."""
    examples = look.examples()
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            chat = gr.Chatbot(
                show_label=False,
                label="Conversation",
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
            box = message_box(texts.PLACEHOLDER, "box")
        with gr.Column(scale=3, min_width=280, elem_id="side"):
            picker = gr.Radio(look.picker_choices(store), value=BASE_ONLY, label="Adapter", elem_id="picker")
            strength = gr.Slider(
                0,
                MAX_STRENGTH,
                1.0,
                step=0.05,
                label="Strength",
                info="0 is the frozen base, 1 the adapter as trained",
            )
            with gr.Accordion("About this adapter", open=False, elem_id="about"):
                about = gr.Markdown(look.about(store, BASE_ONLY))
            with gr.Accordion(texts.MIX, open=False, elem_id="mix"):
                choices = look.short_choices(look.picker_choices(store), texts.NO_MIX)
                mix = gr.Dropdown(choices, value=BASE_ONLY, label="Second adapter", filterable=False)
                mix_strength = gr.Slider(
                    0, MAX_STRENGTH, 0.5, step=0.05, label="Second strength", info="Added on top of the first"
                )
            with gr.Accordion("Sampling", open=False):
                sampling = sampling_controls()
    settings = [picker, strength, *sampling, mix, mix_strength]
    # Icons and pictures of the examples are served from copies; answers must name those.
    handlers = ChatTurns(provider, store, _served(examples, chat))
    _connect(handlers, chat, box, settings)
    told = {"queue": False, "show_progress": "hidden", **PRIVATE}
    picker.change(lambda name: look.about(store, name), picker, about, **told)
    _api(provider, store)
    return [Picker(picker), Picker(mix, texts.NO_MIX)]


def message_box(placeholder: str, elem_id: str) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        show_label=False,
        label="Message",
        placeholder=placeholder,
        file_types=["image"],
        file_count="single",
        max_plain_text_length=10 * MAX_CHARACTERS,
        max_lines=8,
        elem_id=elem_id,
        elem_classes="box",
    )


def sampling_controls() -> list[Any]:
    """Temperature, top-p, max tokens and seed, in the order of Settings."""
    return [
        gr.Slider(0, 2, 0.1, step=0.05, label="Temperature", info="0 takes the likeliest word"),
        gr.Slider(0.05, 1, 0.75, step=0.05, label="Top-p"),
        gr.Slider(16, 1024, 256, step=16, label="Max tokens"),
        # Not gr.Number: an empty one shows and sends 0 (gradio 6.31).
        gr.Textbox(label="Seed", placeholder="A new one each time", max_lines=1, max_length=20),
    ]


def _connect(handlers: ChatTurns, chat: gr.Chatbot, box: gr.MultimodalTextbox, settings: list[Any]) -> None:
    updates = [chat, box, settings[0]]
    turn = {"outputs": updates, "show_progress": "hidden", **MODEL, **PRIVATE}
    box.submit(handlers.send, [box, chat, *settings], **turn)
    chat.retry(handlers.retry, [chat, *settings], **turn)
    chat.edit(handlers.edit, [chat, *settings], **turn)
    chat.option_select(handlers.choose, [chat, *settings], **turn)
    chat.example_select(handlers.example, [chat, *settings], **turn)
    quick = {"queue": False, "show_progress": "hidden", **PRIVATE}
    box.stop(handlers.stop, chat, [chat, box], **quick)
    chat.clear(handlers.clear, None, box, **quick)
    chat.undo(handlers.undo, chat, [chat, box], **quick)


def _api(provider: EngineProvider, store: look.Cards) -> None:
    """The endpoints for programs: /chat and /adapters."""

    def chat(
        message: str,
        image: str | None = None,
        adapter: str | None = None,
        strength: float = 1.0,
        temperature: float = 0.1,
        top_p: float = 0.75,
        max_tokens: float = 256,
        seed: float | None = None,
        mix: str | None = None,
        mix_strength: float = 1.0,
    ) -> Iterator[str]:
        """Answer one message; streams the text so far. `image` needs an adapter that sees (/adapters).

        `mix` names a second adapter, which is added to the first with its own strength.
        """
        sampling = temperature, top_p, max_tokens, seed
        settings = Settings(adapter or BASE_ONLY, strength, *sampling, mix, mix_strength)
        yield from answer_once(provider, store, message, image, settings)

    def adapters() -> list[dict[str, Any]]:
        """The adapters that can be named: name, description, visual, bytes."""
        wait_or_say(provider)
        cards: list[dict[str, Any]] = []
        for name in store.names():
            try:
                card = store.card(name)
            except AdapterError as error:
                cards.append({"name": name, "error": public_text(error)})
                continue
            about = {"description": card.description, "visual": card.is_visual, "bytes": card.bytes}
            cards.append({"name": name, **about})
        return cards

    with gr.Column(visible=False):
        inputs = [
            gr.Textbox(label="message"),
            gr.File(label="image", type="filepath"),
            gr.Textbox(label="adapter"),
            gr.Number(1.0, label="strength"),
            gr.Number(0.1, label="temperature"),
            gr.Number(0.75, label="top_p"),
            gr.Number(256, label="max_tokens", precision=0),
            gr.Number(None, label="seed", precision=0),
            gr.Textbox(label="mix"),
            gr.Number(1.0, label="mix_strength"),
        ]
        gr.Button("chat").click(chat, inputs, gr.Textbox(label="answer"), api_name="chat", **MODEL)
        gr.Button("adapters").click(adapters, None, gr.JSON(label="adapters"), api_name="adapters")


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
