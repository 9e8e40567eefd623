"""The page as it is built: adapter cards, examples, endpoints for programs, and its command line."""

import importlib
import re
import socket
from types import SimpleNamespace

import gradio as gr
import pytest

import app
from adapter.errors import LoadError
from adapter.serve.settings import PAGE_PENALTY, SHIPPED
from adapter.serve.store import AdapterStore
from adapter.server.generation import AdapterCatalog
from adapter.ui import theme
from adapter.ui.toasts import refusal, toast
from tests.app_process import ROOT
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider
from train.ui import texts as train_texts


def test_errors_for_a_browser_have_no_detail_and_no_markup(toasts):
    shown = "Adapter 'a' is not &lt;b&gt;JSON&lt;/b&gt;."
    error = LoadError("Adapter 'a' is not <b>JSON</b>.", "/home/me/a")
    toast(error)
    toast(str(error))
    assert toasts == [shown, shown] and refusal(error).message == shown


def test_every_text_is_there():
    for file in [*(ROOT / "adapter").rglob("*.py"), *(ROOT / "train").rglob("*.py")]:
        source = file.read_text(encoding="utf-8")
        for module, alias in re.findall(r"from adapter\.ui\.texts import (\w+)(?: as (\w+))?", source):
            names = set(re.findall(rf"\b{alias or module}\.(\w+)", source)) if module != "read" else ()
            module = importlib.import_module(f"adapter.ui.texts.{module}") if names else None
            assert not [name for name in names if not hasattr(module, name)], file
    for file in (ROOT / "train" / "ui").glob("*.py"):
        names = re.findall(r"\btexts\.([A-Z]\w+)", file.read_text(encoding="utf-8"))
        assert not [name for name in names if not hasattr(train_texts, name)], file


def test_beside_another_base_the_page_begins_without_the_shipped_adapters():
    for catalog in AdapterCatalog(), AdapterCatalog(shipped=False):
        for _ in range(2):
            names = {name for _, name in theme.picker_choices(catalog)}
            assert names == {"", *(catalog.shipped * ("extract", "pirate", "see", "tutor"))}
            assert bool(theme.examples(catalog)) == catalog.shipped
            catalog.bind(AdapterStore(SHIPPED))  # whose names stay taken


def test_a_model_card_loads_nothing_into_the_browser():
    catalog = FakeCatalog()
    card = theme.model_card(catalog, "poet")
    assert "<h2>poet</h2>" in card and "as trained" in card and "<img" not in card
    assert "without a card" in theme.model_card(catalog, "see")
    assert "frozen base" in theme.model_card(catalog, "")
    assert "without a card" in theme.model_card(catalog, "gone")
    hostile = "!![x](http://far.away/x.png) ![y][z] \\![w](javascript:a) <img src=x>\n\n[z]: http://far.away"
    catalog.card_text = lambda name: hostile
    card = theme.model_card(catalog, "poet")
    assert "<img" not in card and 'href="javascript' not in card and card.count("<a href") == 2


def test_endpoints_for_programs():
    page = app.build_page(ReadyProvider(EchoEngine()), FakeCatalog())
    # A block that is entered again while it is open takes those behind it to another place.
    room = next(block for block in page.blocks.values() if block.elem_id == "room")
    assert [block.elem_id for block in room.children] == ["talk", "inside-column"]
    endpoints = page.get_api_info()["named_endpoints"]
    assert set(endpoints) == {"/chat"} and page.api_open is False
    parameters = endpoints["/chat"]["parameters"]
    names = ["message", "image", "adapter", "strength", "temperature", "top_p", "max_tokens", "seed"]
    assert [parameter["parameter_name"] for parameter in parameters] == [
        *names, "mix", "mix_strength", "top_k", "min_p", "repetition_penalty", "stop", "system"
    ]  # fmt: skip
    assert parameters[-3]["parameter_default"] == PAGE_PENALTY > 1
    assert all(parameter["parameter_has_default"] for parameter in parameters[1:])


@pytest.mark.parametrize("public", [False, True])
def test_strangers_neither_delete_adapters_nor_use_this_machines_login(public, monkeypatch, toasts):
    page = app.build_page(ReadyProvider(EchoEngine()), FakeCatalog(), public=public)
    assert ("delete-adapter" in {block.elem_id for block in page.blocks.values()}) is not public
    assert page.analytics_enabled is False and page.delete_cache == (3600, 86400)
    monkeypatch.setattr("adapter.ui.chat.adapter_upload_panel.get_token", lambda: "ours")
    monkeypatch.setattr(FakeCatalog, "bound", lambda _: None, raising=False)
    login: list[object] = []
    monkeypatch.setattr("adapter.server.adapter_upload.add_from_hub", lambda *given: login.append(given[-1]))
    [upload] = {event.fn for event in page.fns.values() if event.name == "upload_adapter"}
    upload([], "", "user/name", gr.EventData(SimpleNamespace(elem_id="hub-fetch"), {}))
    assert login == [False if public else "ours"]


def test_a_taken_port_is_one_line_and_exit_1(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and f"127.0.0.1:{port}" in message
    assert "--host" in message and "--port" in message
