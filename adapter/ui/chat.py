"""The chat tab: its components and which event calls which turn. Logic is in turns.py, looks in look.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.components.chatbot import ExampleMessage

from adapter.errors import AdapterError
from adapter.ui import look
from adapter.ui.requests import (
    BASE_ONLY,
    MAX_CHARACTERS,
    MAX_STRENGTH,
    EngineProvider,
    Settings,
    answer_once,
    public_text,
    wait_or_say,
    without_folders,
)
from adapter.ui.turns import ChatTurns

# Every event that touches the model shares this id: the limit holds for the page and the API together. The
# engine's own queue decides whose turn it is, so that Gradio lets through as many as that takes in.
MODEL = {"concurrency_id": "model", "concurrency_limit": 64}
PRIVATE = {"api_visibility": "private"}
LOADING_SECONDS, READY_SECONDS = 1.0, 5.0


def chat_tab(provider: EngineProvider, store: look.Cards) -> None:
    """Lay the chat out inside the current Blocks and connect it."""
    examples = look.examples()
    with gr.Row(elem_id="top"):
        gr.HTML(look.header_html(), elem_id="head")
        status = gr.HTML(_status(provider), elem_id="status")
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
                placeholder=look.EMPTY_CHAT,
                examples=[_card(example) for example in examples],
                elem_id="chat",
            )
            box = gr.MultimodalTextbox(
                show_label=False,
                label="Message",
                placeholder=look.PLACEHOLDER,
                file_types=["image"],
                file_count="single",
                max_plain_text_length=10 * MAX_CHARACTERS,
                max_lines=8,
                elem_id="box",
            )
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
            with gr.Accordion("Sampling", open=False):
                temperature = gr.Slider(
                    0, 2, 0.1, step=0.05, label="Temperature", info="0 takes the likeliest word"
                )
                top_p = gr.Slider(0.05, 1, 0.75, step=0.05, label="Top-p")
                max_tokens = gr.Slider(16, 1024, 256, step=16, label="Max tokens")
                seed = gr.Number(None, label="Seed", precision=0, minimum=0, info="Empty: a new one each time")
    settings = [picker, strength, temperature, top_p, max_tokens, seed]
    # Icons and pictures of the examples are served from copies; answers must name those.
    handlers = ChatTurns(provider, store, _served(examples, chat))
    _connect(handlers, chat, box, settings)
    told = {"queue": False, "show_progress": "hidden", **PRIVATE}
    picker.change(lambda name: look.about(store, name), picker, about, **told)
    _refresh(provider, store, status, picker)
    _api(provider, store)


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


def _refresh(provider: EngineProvider, store: look.Cards, status: gr.HTML, picker: gr.Radio) -> None:
    """Keep the status line and the picker up to date while the page is open."""
    known = gr.State(look.picker_choices(store))
    timer = gr.Timer(LOADING_SECONDS)

    def refresh(selected: str, choices: list[tuple[str, str]]) -> tuple[Any, ...]:
        now = [tuple(choice) for choice in look.picker_choices(store)]
        update = gr.skip()
        if now != [tuple(choice) for choice in choices]:
            gone = selected not in [value for _, value in now]
            if gone:
                gr.Info(f"The adapter “{selected}” is gone; the frozen base answers now.")
            update = gr.Radio(choices=now, value=BASE_ONLY if gone else selected)
        ready = provider.status().state == "ready"
        return _status(provider), update, now, gr.Timer(READY_SECONDS if ready else LOADING_SECONDS)

    event = {"inputs": [picker, known], "outputs": [status, picker, known, timer]}
    gr.on([timer.tick], refresh, **event, queue=False, show_progress="hidden", **PRIVATE)


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
    ) -> Iterator[str]:
        """Answer one message; streams the text so far. `image` needs an adapter that sees (/adapters)."""
        settings = Settings(adapter or BASE_ONLY, strength, temperature, top_p, max_tokens, seed)
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
        ]
        gr.Button("chat").click(chat, inputs, gr.Textbox(label="answer"), api_name="chat", **MODEL)
        gr.Button("adapters").click(adapters, None, gr.JSON(label="adapters"), api_name="adapters")


def _status(provider: EngineProvider) -> str:
    status = provider.status()
    return look.status_html(status, without_folders(status.text))


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
