"""What fails on the server is told to browsers in sentences; the command line and the log have the details."""

import json
import secrets
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from safetensors import SafetensorError
from starlette.routing import Mount

import app
from adapter.base.llama import base_fingerprint
from adapter.errors import BadInput, Busy, LoadError
from adapter.method.checkpoint import save_adapter
from adapter.method.config import VisionConfig, base_label
from adapter.serve.engine import Engine
from adapter.serve.store import AdapterStore
from adapter.server import openai_api
from adapter.server.generation import AdapterCatalog, browser_text
from tests.fake_engine import ReadyProvider
from tests.soak.people import FILE_DATA, Connection
from tests.tiny_models import random_adapter
from tests.train.ui.test_data_upload import PNG, write_zip
from train import __main__ as train_main
from train.job import Stopped
from train.ui.runs import TrainingRuns

pytestmark = pytest.mark.slow

SECRET = "s3cret"
PLACES = f"/srv/{SECRET} folder/key.txt", rf"C:\Users\{SECRET}\key.txt", f"<img src={SECRET}>\x1b[2J\n{SECRET}"

ERRORS: list[BaseException] = [
    OSError(28, f"No space left on {SECRET}", PLACES[0]),
    FileNotFoundError(2, "No such file", PLACES[1]),
    RuntimeError(PLACES[2]),
    SafetensorError(f"Error while deserializing {PLACES[0]}"),
    json.JSONDecodeError(PLACES[0], SECRET, 0),
    zipfile.BadZipFile(PLACES[0]),
    LoadError("The thing cannot be read. Mend it.", PLACES[0]),
]


@pytest.mark.parametrize("kind, logged", [(LoadError, True), (Busy, True), (BadInput, False)])
def test_the_log_has_the_details_of_what_the_server_has_to_mend(caplog, kind, logged):
    assert browser_text(kind("No. Mend it.", PLACES[0])) == "No. Mend it."
    assert (SECRET in caplog.text) is logged


def test_a_fingerprint_names_no_folder(tiny_folder):
    """It is in /v1/models, in the status line and in every adapter that is trained."""
    assert base_fingerprint(str(tiny_folder)).name == tiny_folder.name
    assert base_label("path/to/llama") == "llama" and base_label("user/llama") == "user/llama"


@pytest.mark.parametrize(
    "error, shown",
    [
        (LoadError("No base. Mend it.", PLACES[0]), "error: No base. Mend it.\n"),
        (OSError(28, "No space", PLACES[0]), f"error: {train_main._FAILED}\n"),
        (Stopped("stopped after step 3 of 9.", PLACES[0]), "stopped after step 3 of 9.\n"),
    ],
)
def test_the_trainer_says_sentences_to_the_page_and_all_to_its_log(error, shown, monkeypatch, capsys):
    monkeypatch.setattr(train_main, "_run", Mock(side_effect=error))
    assert train_main.main(["--for-page"])
    written = capsys.readouterr()
    assert written.out == shown and SECRET in written.err
    assert train_main.main([]) and capsys.readouterr().out == ""


# Faults planted below everything that a browser can ask for.


class Browser(Connection):
    """A visitor who asks for everything that a fault may be in, and collects all that comes back."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, "127.0.0.1", signed_in=False)
        self.folder = folder

    def uploaded(self, name: str, data: bytes) -> dict[str, Any]:
        sent = self.http.post("/gradio_api/upload", files={"files": (name, data)})
        return {"path": sent.json()[0], "orig_name": name, "meta": FILE_DATA}

    def fresh(self) -> str:
        """As a page that was just opened. Returns the id of its new conversation."""
        self.session, id = secrets.token_hex(6), secrets.token_hex(6)
        self.fire_for_text("open", [], event_data={"id": id})
        return id

    def chat(self) -> str:
        _, _, known, _, *rest = self.defaults("send")
        said = ""
        for adapter, files in (("eye", [self.uploaded("a.png", PNG)]), ("one", [])):
            said += self.fire_for_text(
                "send", [{"text": "hello", "files": files}, self.fresh(), known, adapter, *rest]
            )
        return said

    def compare(self) -> str:
        _, view, count, _, *rest = self.defaults("send_1")
        self.fresh()
        return self.fire_for_text("send_1", [{"text": "hello", "files": []}, view, count, "one", *rest])

    def openai(self) -> str:
        said = self.http.get("/v1/models").text
        for stream in (False, True):
            body = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            said += self.http.post("/v1/chat/completions", json={**body, "stream": stream}).text
        return said

    def bring(self) -> str:
        names = "config.json", "adapter.safetensors"
        files = [self.uploaded(name, (self.folder / "one" / name).read_bytes()) for name in names]
        broken = self.uploaded("p.zip", write_zip(self.folder / "p.zip", {"config.json": b"{"}).read_bytes())
        said = self.fire_for_text("upload_adapter", [files, "guest", ""])
        return said + self.fire_for_text("upload_adapter", [[broken], "x", ""])

    def train(self) -> str:
        lines = "\n".join(json.dumps({"instruction": f"say {i}", "output": f"{i}"}) for i in range(8))
        files = {f"{i}.png": PNG for i in range(5)} | {f"{i}.txt": b"red" for i in range(5)}
        zipped = write_zip(self.folder / "p.zip", files).read_bytes()
        said, (_, *rest) = "", self.defaults("choose_upload")
        for name, data in (("rows.jsonl", lines.encode()), ("pictures.zip", zipped)):
            said += self.fire_for_text("choose_upload", [self.uploaded(name, data), *rest])
        owner, plan, _, *rest = self.defaults("start")
        said += self.fire_for_text("start", [owner, plan, "mine", *rest])
        return said + self.fire_for_text("panel", self.defaults("panel"))


FAULTS: dict[str, tuple[Callable[[Browser], str], ...]] = {
    "adapter.method.checkpoint._read_tensors": (Browser.chat, Browser.openai),
    "adapter.serve.prompts.load_encoder": (Browser.chat,),
    "adapter.base.image_file.read_image": (Browser.chat, Browser.train),
    "adapter.serve.scheduler.encode_prompt": (Browser.compare, Browser.openai),
    "adapter.serve.prompts.PromptKVBuilder.build": (Browser.chat, Browser.compare),
    "adapter.serve.engine.Engine.submit": (Browser.chat, Browser.compare, Browser.openai),
    "adapter.server.adapter_upload._move_into_store": (Browser.bring,),
    "adapter.server.archive._select": (Browser.bring, Browser.train),
    "train.ui.preview._tokeniser": (Browser.train,),
    "train.formats.sources.of_file": (Browser.train,),
    "train.ui.runs.TrainingRuns._launch": (Browser.train,),
}
PAIRS = [(place, ask) for place, asks in FAULTS.items() for ask in asks]


@pytest.fixture(scope="module")
def browser(
    tiny_base: Any, tiny_folder: Path, tiny_fingerprint: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """A visitor of the page of a real engine on the tiny base, in this process."""
    folder = tmp_path_factory.mktemp("texts")
    save_adapter(random_adapter(tiny_fingerprint), folder / "one")
    vision = VisionConfig(encoder="tf_efficientnet_lite0", feature_size=6, hidden=5)
    save_adapter(random_adapter(tiny_fingerprint, vision=vision), folder / "eye")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        environment.setattr(TrainingRuns, "_launch", Mock(side_effect=BadInput("No trainer is started here.")))
        store = AdapterStore(folder, incoming=folder)
        engine = Engine(tiny_base, store)
        catalog = AdapterCatalog()
        catalog.bind(store)
        provider: Any = ReadyProvider(engine)
        page = app.build_page(provider, catalog, runs=TrainingRuns(folder / "runs"), base=str(tiny_folder))
        routes = [Mount("/v1", openai_api.Api(provider, catalog))]
        _, url, _ = page.launch(
            prevent_thread_lock=True, quiet=True, ssr_mode=False, show_error=False, app_kwargs={"routes": routes}
        )
        visitor = Browser(url.rstrip("/"), folder)
        yield visitor
        visitor.close()
        page.close(verbose=False)
        engine.close()


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=lambda i: f"{PAIRS[i][0]}-{PAIRS[i][1].__name__}")
def test_no_fault_is_told_in_its_own_words(browser, monkeypatch, number):
    """A few of the errors at each place, in turn: all of them come at several."""
    place, ask = PAIRS[number]
    for error in (ERRORS[-1], ERRORS[5 * number % len(ERRORS)]):
        struck = []

        def fail(*_: Any, error: BaseException = error, struck: list[Any] = struck, **__: Any) -> Any:
            struck.append(error)
            raise error

        monkeypatch.setattr(place, fail)
        said = ask(browser)
        error.__traceback__ = error.__context__ = None  # the frames in it would keep what was asked
        assert SECRET not in said and "Traceback" not in said, (error, said)
        assert struck, "nothing came here: " + said
