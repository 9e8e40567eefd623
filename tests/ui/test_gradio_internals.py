"""Gradio's private names that the page uses are still there. A failure names what moved and what uses it."""

import asyncio
import inspect
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio import http_server, route_utils, routes, state_holder
from gradio.data_classes import FileData, ListFiles, _StaticFiles
from gradio.queueing import Queue
from gradio.server_messages import ProcessCompletedMessage
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount, Route
from starlette.testclient import TestClient

from adapter.serve.request import Client
from adapter.server import limits
from adapter.server.request_guard import ROUTES, RequestGuard
from adapter.ui import conversation, images
from adapter.ui import gradio_internals as internals
from adapter.ui.chat.chatbot import VerbatimChatbot, to_view
from adapter.ui.conversation import Entry
from adapter.ui.texts import page as texts

ROOT = Path(internals.__file__).parents[2]


@pytest.mark.parametrize(
    ("where", "call"),
    [
        (gr.Blocks.process_api, "await self.postprocess_data("),
        (gr.blocks.Block, "processing_utils.async_ssrf_protected_download("),
        (gr.blocks.Block, "is_template"),  # selects the parent's frontend
        (routes, "blocks._queue.push("),
        (Queue.start_processing, "asyncio.sleep(self.sleep_when_free)"),
        (state_holder.StateHolder, "SessionState(self.blocks)"),
        (http_server.Server.__mro__[1], "force_exit"),
        (http_server, "s.bind((LOCALHOST_NAME, port))"),
        (route_utils.CustomCORSMiddleware, "self.is_valid_origin("),
    ],
)
def test_what_is_replaced_is_what_gradio_calls(where, call):
    assert call in inspect.getsource(where)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[gr.Blocks, TestClient]:
    """A page that keeps three sessions, of which one address may begin four; and its client."""
    monkeypatch.setattr(route_utils, "get_fn", route_utils.get_fn)  # put back afterwards
    monkeypatch.setattr(state_holder, "SessionState", state_holder.SessionState)
    monkeypatch.setattr(route_utils, "GradioMultiPartParser", route_utils.GradioMultiPartParser)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setitem(limits.RATES, "session", (4, 3600, "new pages an hour"))
    with gr.Blocks() as page:
        box = gr.Textbox()
        box.change(str, box, box, queue=False)
        box.submit(str, box, box, api_name="chat")
        box.blur(lambda text: images.count_upload(2**30 * (text == "large")), box, queue=False)
        box.focus(None, js="() => 1")
    page.queue()
    page.show_error, page.max_file_size = False, None
    internals.guard(page, 3, limits.Limits(public=True))
    door = Middleware(RequestGuard, limits=limits.Limits(public=True), uploads=tmp_path)
    served = gr.routes.App.create_app(page, app_kwargs={"middleware": [door]})
    return page, TestClient(served, raise_server_exceptions=False)


@pytest.mark.parametrize(("route", "event"), [("run/predict", 0), ("queue/join", 1), ("call/chat", None)])
def test_new_sessions_are_counted_before_they_are_made(sessions, route, event):
    page, client = sessions

    def ask(session: str) -> Any:
        named = {} if event is None else {"fn_index": event, "session_hash": session}  # /call makes new ones only
        return client.post(f"/gradio_api/{route}", json={"data": ["x"], **named})

    assert [ask(name).status_code for name in "abcd"] == [200] * 4
    made = len(page.state_holder.session_data)
    refused = ask("e")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 800
    assert "new pages" in refused.json()["detail"], "which Gradio's page shows"
    assert len(page.state_holder.session_data) == made
    if event is not None:
        assert ask("d").status_code == 200, "one that is known is not counted"
        long = ask("x" * 10_000)
        assert long.status_code == 422 and texts.WRONG_VALUE in long.text and len(long.text) < 200


@pytest.mark.parametrize("forged", [{"fn_index": 10**9}, {"fn_index": -1}, {"fn_index": 3}, {"session_hash": ""}])
def test_events_that_do_not_exist_and_sessions_without_a_name_are_answered(sessions, forged):
    """By itself Gradio fails in the middle of the queue, with 500 and a traceback in the log."""
    _, client = sessions
    body = {"data": ["x"], "fn_index": 1, "session_hash": "a", **forged}
    answered = client.post("/gradio_api/queue/join", json=body)
    assert answered.status_code == 422 and texts.WRONG_VALUE in answered.text


@pytest.mark.parametrize(("sent", "most"), [("x", limits.UPLOADS_PER_HOUR), ("large", 1)])
def test_files_that_an_event_writes_count_as_uploads(sessions, sent, most):
    """Of a conversation that is opened, or of rows that are typed."""
    _, client = sessions
    body = {"data": [sent], "fn_index": 2, "session_hash": "a"}
    answered = [client.post("/gradio_api/run/predict", json=body).status_code for _ in range(most + 1)]
    assert answered == [*[200] * most, 500]


def test_files_that_an_event_names_leave_no_others(sessions, tmp_path):
    """By itself Gradio makes an empty one for each, until the folder holds as many as it may."""
    (named := tmp_path / "a.json").touch()
    sent = ListFiles([FileData(path=str(named))] * 9)
    assert gr.File(file_count="multiple").preprocess(sent) == [str(named)] * 9
    assert os.listdir(tmp_path) == ["a.json"]


def test_one_address_leaves_places_in_the_queue_to_others(sessions, monkeypatch):
    """By itself Gradio tells everybody that the queue is full."""
    page, client = sessions
    monkeypatch.setattr(limits, "EVENTS_AT_ONCE", 2)
    page._queue.max_size = 3

    def ask(address: str) -> Any:
        monkeypatch.setattr(internals, "client_of", lambda request: Client(getattr(request, "of", address)))
        asked = client.post("/gradio_api/queue/join", json={"data": ["x"], "fn_index": 1, "session_hash": "a"})
        for queue in page._queue.event_queue_per_concurrency_id.values():
            for event in queue.queue:
                event.request = SimpleNamespace(of=getattr(event.request, "of", address))
        return asked

    assert [ask("203.0.113.7").status_code for _ in range(2)] == [200] * 2
    refused = ask("203.0.113.7")
    assert refused.status_code == 429 and refused.headers["retry-after"] == "5" and "under way" in refused.text
    assert ask("198.51.100.9").status_code == 200


def test_an_upload_has_few_files(sessions):
    """Gradio keeps each of a thousand open until the last has come: all that a process may have."""
    files = [("files", (f"{i}.png", b"x")) for i in range(17)]
    statuses = [sessions[1].post("/gradio_api/upload", files=files[:count]).status_code for count in (16, 17)]
    assert statuses == [200, 400]
    assert sessions[1].post("/gradio_api/upload", files=files[:1], data={"x": "no file"}).status_code == 400


def test_pictures_of_conversations_are_deleted_by_age_and_those_of_examples_are_not(sessions, monkeypatch):
    monkeypatch.setattr(_StaticFiles, "all_paths", [])
    sent, example = (Path(images.write_upload(data)) for data in (b"sent", b"example"))
    gr.set_static_paths([example])
    for paths in sessions[0].temp_file_sets:
        for path in paths:
            paths.add(images.write_upload(path.encode()))  # while Gradio looks for old ones
            paths.add(f"{path}/of a visitor")
        assert not any("visitor" in path for path in paths)
    route_utils.delete_files_created_by_app(sessions[0], None)
    assert example.exists() and not sent.parent.exists()


def test_names_of_uploads_are_bounded(sessions):
    """Gradio keeps each that a client asks about."""
    uploads = routes.file_upload_statuses
    for number in range(9):
        assert not uploads._signals[str(number)].is_set()
        uploads.track(str(number))
    assert uploads._signals["8"].is_set() and len(uploads._signals) == len(uploads._statuses) == 3


def test_sessions_that_are_in_use_are_kept(sessions):
    """Gradio drops those that came first, and with them answers that are on their way."""
    page, client = sessions
    for name in "abcd":
        body = {"data": ["x"], "fn_index": 1, "session_hash": name}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        assert page._queue.pending_messages_per_session["a"] is not None  # as its reader does all the time
        if name == "b":
            del page._queue.pending_messages_per_session["a"]  # as a stream does that is cut
    del page._queue.pending_messages_per_session["c"]  # it makes no difference how many there are
    assert set(page._queue.pending_messages_per_session) == {"a", "c", "d"}
    assert len(page._queue.pending_event_ids_session) == 3


def test_no_other_file_imports_from_inside_gradio():
    inside = re.compile(r"^\s*(?:from|import) gradio\b(?! as gr$).*", re.MULTILINE)
    for path in [*ROOT.glob("adapter/**/*.py"), *ROOT.glob("train/**/*.py"), ROOT / "app.py"]:
        found = inside.findall(path.read_text(encoding="utf-8"))
        assert not found or path == Path(internals.__file__), f"{path.relative_to(ROOT)}: {found}"


def test_a_value_that_is_no_choice_is_answered_by_one_sentence_and_not_logged():
    """Gradio's own sentence names the value, its Python type and all choices, and its log gets a traceback."""
    with internals.StrictBlocks() as page:
        gr.Button().click(lambda chosen: None, gr.Dropdown(["one", "two"], value="one"))
    assert asyncio.run(page.preprocess_data(page.fns[0], ["two"], None)) == ["two"]
    with pytest.raises(gr.Error, match="of another kind") as raised:
        asyncio.run(page.preprocess_data(page.fns[0], ["/secret"], None))
    assert not raised.value.print_exception and "secret" not in str(raised.value)


def test_routes():
    with gr.Blocks() as page:
        pass
    # As app.py adds them.
    ours = [Mount("/v1", PlainTextResponse("v1"))]
    ours += [Route(path, PlainTextResponse("x"), methods=["GET"]) for path in ("/healthz", "/readyz", "/metrics")]
    served = gr.routes.App.create_app(page, app_kwargs={"routes": ours})

    def serves(method: str, path: str) -> bool:
        scope = {"type": "http", "path": path, "method": method, "root_path": "", "headers": []}
        return any(one.matches(scope)[0] == Match.FULL for one in served.router.routes)

    assert not serves("GET", "/gradio_api/nothing") and not serves("POST", "/config")
    for route in ROUTES:
        if route.path.startswith("/login/"):  # of a Space whose visitors sign in
            continue
        path = re.sub(r"\{\w+(:path)?\}", "x", route.path)
        for method in route.methods or ("GET", "POST"):
            assert serves(method, path), f"nothing serves {method} {path}: see adapter/server/request_guard.py"


def test_a_session_holds_nothing_of_what_was_sent(sessions):
    page, client = sessions
    secret = "a secret of mine"
    asked = {"data": [secret], "fn_index": 0, "session_hash": "a"}
    assert secret in client.post("/gradio_api/run/predict", json=asked).text
    assert secret not in repr(vars(page.state_holder["a"]))


def sent(page: gr.Blocks, session: str, size: int, address: str = "203.0.113.7") -> Any:
    """An event of the session whose result has so many bytes; nobody fetches it."""
    request = SimpleNamespace(client=SimpleNamespace(host=address))
    event = SimpleNamespace(session_hash=session, alive=True, _id="x", request=request)
    page._queue.send_message(event, ProcessCompletedMessage(output={"data": ["x" * size]}, success=True))
    return event


def begin(page: gr.Blocks, *names: str) -> dict[str, Any]:
    """Open sessions in the queue, as joining it does; returns their messages, which change."""
    pending: Any = page._queue.pending_messages_per_session
    pending.max_size = 100
    for name in names:
        pending[name] = None
    return pending


def test_results_that_nobody_fetches_are_bounded(sessions, monkeypatch):
    page, _ = sessions
    monkeypatch.setattr(internals, "UNREAD_BYTES", 10_000)
    pending = begin(page, "read", "other", *"abcdef")
    page._queue.send_message(sent(page, "read", 0), ProcessCompletedMessage(output={"a": "\ud83d"}, success=True))
    assert [pending["read"].get_nowait().output for _ in range(2)][1] == {"a": "?"}  # which can be sent
    for name in ("other", *"abcdef", "read"):
        sent(page, name, 3000, "198.51.100.9" if name == "other" else "203.0.113.7")
        if name != "read":
            pending["read"].fetched = time.monotonic()  # its stream fetches one after the other
    assert set(pending) == {"other", "read", "f"}
    assert pending["read"].get_nowait().output["data"] == ["x" * 3000] and pending["read"].size == 0
    assert not sent(page, "a", 3000).alive, "nothing more is computed for it"
    for _ in range(20):  # one that fetches may get any number
        assert sent(page, "read", 3000).alive and pending["read"].get_nowait()
    sent(page, "f", 20_000)
    assert set(pending) == {"other", "read"}, "nor may a single session have more"


def test_results_that_are_not_fetched_for_minutes_are_dropped(sessions):
    page, _ = sessions
    pending = begin(page, *"abcd")
    for name in "ab":
        sent(page, name, 10)
    for name in "ac":
        pending[name].fetched -= internals.UNREAD_SECONDS + 1
    sent(page, "d", 10)
    assert sent(page, "c", 10).alive and set(pending) == {"b", "c", "d"}, "one that has fetched all stays"


def test_updates_are_what_gradio_would_send():
    with internals.StrictBlocks() as page:
        words, chat, skipped, box = gr.Textbox(), VerbatimChatbot(), gr.Textbox(), gr.MultimodalTextbox()
        said = [*conversation.user_turn("hello"), Entry("assistant", "**Good** day")]

        def update() -> tuple[Any, ...]:
            return "new", to_view(said, []), gr.skip(), gr.update(value={"text": "x", "files": []}, stop_btn=True)

        gr.Button().click(update, None, [words, chat, skipped, box])
    (event,) = page.fns.values()
    made = asyncio.run(page.process_api(event, [], root_path="http://a.example"))["data"]
    plain: Any = asyncio.run(gr.Blocks.postprocess_data(page, event, update(), None))
    assert [as_json(made[i]) for i in (0, 2, 3)] == [as_json(plain[i]) for i in (0, 2, 3)]
    rows = [row for shown in to_view(said, []) for row in shown.rows]
    assert made[1] == gr.Chatbot.postprocess(gr.Chatbot(), rows).model_dump()


def test_updates_of_a_long_conversation_leave_the_event_loop_to_others():
    """Twenty readers of 2 MB each: the loop is held for less than 20 ms, here by the processor's time."""
    said = [Entry("assistant", "x" * 1000) for _ in range(2000)]
    with internals.StrictBlocks() as page:
        gr.Button().click(lambda: None, None, VerbatimChatbot())
    (event,) = page.fns.values()
    known = to_view(said, [])
    held: list[float] = []

    async def write() -> None:
        for number in range(20):
            rows = to_view([*said, Entry("assistant", "so far " * number)], known)
            begun = time.thread_time()
            data = await page.postprocess_data(event, rows, None)
            data = page.handle_streaming_diffs(event, data, session_hash="a", run="b", final=False)
            held.append(time.thread_time() - begun)
            assert number == 0 or len(data[0]) == 1, "one edit"

    asyncio.run(write())
    assert sorted(held)[10] < 0.02


def as_json(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value
