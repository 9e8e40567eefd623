"""What is shown of a run, wherever that is, and what can be done with it: stop, go on, chat, download, publish."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from adapter.errors import BadInput
from adapter.ui.chat.tab import TabParts
from adapter.ui.status import PRIVATE, QUEUED, UNQUEUED
from adapter.ui.toasts import errors_as_toasts
from train.publish import check_repo, machine_token, push
from train.ui import texts
from train.ui.events import TrainEvents


class RunView(NamedTuple):
    """In the order of the updates of TrainEvents.panel."""

    html: gr.HTML
    stop: gr.Button
    go_on: gr.Button
    chat: gr.Button
    download: gr.DownloadButton
    publish: gr.Accordion


def can_sign_in() -> bool:
    """Whether this is a Space whose visitors can sign in with their account of the Hub."""
    installed = all(importlib.util.find_spec(name) for name in ("authlib", "itsdangerous"))
    return bool(os.environ.get("SPACE_ID") and os.environ.get("OAUTH_CLIENT_ID")) and installed


def run_view(place: str, html: str, handlers: TrainEvents, name: Any, owner: Any) -> RunView:
    """Lays a run out in the current Blocks. place: begins the ids; name, owner: components, as in Shown."""
    shown = gr.HTML(html, elem_id=f"{place}-run", padding=False)
    with gr.Row(elem_classes="actions"):
        stop, go_on, chat = (
            gr.Button(text, size="sm", visible=False, min_width=80, elem_id=f"{place}-{key}")
            for key, text in (("stop", texts.STOP), ("go_on", texts.GO_ON), ("chat", texts.CHAT_WITH))
        )
        download = gr.DownloadButton(
            texts.DOWNLOAD, size="sm", visible=False, min_width=80, elem_id=f"{place}-download"
        )
    with gr.Accordion(texts.PUBLISH, open=False, visible=False, elem_id=f"{place}-publish") as panel:
        sign_in = can_sign_in()
        gr.Markdown(texts.PUBLISH_SIGNED_IN if sign_in else texts.PUBLISH_HINT, elem_classes="hint")
        if sign_in:
            gr.LoginButton(size="sm")
        repo = gr.Textbox(label=texts.REPOSITORY, placeholder=texts.REPOSITORY_HINT, max_length=96, max_lines=1)
        button = gr.Button(texts.PUBLISH_BUTTON, size="sm")
        result = gr.Markdown()

    def publish(name: str, owner: str, repo: str, visitor: gr.OAuthToken | None) -> str:
        with errors_as_toasts("the publication of an adapter"):
            return publish_run(handlers, name, owner, repo, None if visitor is None else visitor.token)
        return ""

    one = {"concurrency_limit": 1, "concurrency_id": "publish", "show_progress_on": result, **PRIVATE}
    button.click(publish, [name, owner, repo], result, **one)
    return RunView(shown, stop, go_on, chat, download, panel)


def publish_run(handlers: TrainEvents, name: str, owner: str, repo: str, visitors_token: str | None) -> str:
    """Sends a run's adapter to the Hub, and returns what is said of it. Raises AdapterError.

    With the token of the visitor who has signed in; with this machine's only where nobody else may ask.
    """
    if visitors_token is None and handlers.public:
        raise BadInput(texts.PUBLISH_NOT_HERE)
    run = handlers.runs.get(handlers.own(name, owner))
    if run is None or run.alive or not run.adapter:
        raise BadInput(texts.NOT_THERE)
    repo = (repo or "").strip()
    check_repo(repo)
    watched = handlers.runs.watched(run.name)
    section = texts.before_and_after(run.record.question, watched[0].text, watched[-1].text) if watched[1:] else ""
    url = push(handlers.runs.folder / run.name, repo, visitors_token or machine_token(), section)
    return texts.published(repo, url)


def connect(view: RunView, run: list[Any], again: tuple[Any, ...], tabs: gr.Tabs, chat: TabParts) -> None:
    """What the buttons do. run: the components of its name and of the visitor's secret; again: handler, inputs and
    outputs of the event that shows it anew, of which the last is a timer.
    """
    handlers, timer = again[0].__self__, again[2][-1]
    store = chat.store
    assert store is not None

    def chat_with(name: str, box: dict[str, Any] | None, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        yield from handlers.chat_with(store, name, box, request)

    for button, act in ((view.stop, handlers.stop), (view.go_on, handlers.resume)):
        button.click(act, run, None, **QUEUED).then(*again, **UNQUEUED)
    view.chat.click(chat_with, [run[0], chat.message_box], [tabs, timer, *store.opened], **QUEUED)
