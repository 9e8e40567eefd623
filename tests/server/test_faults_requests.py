"""Malformed and forged requests to a real server: nothing of the machine or of others leaks, and it goes on."""

import json
import random
import re
import secrets
from collections.abc import Iterator
from typing import Any

import gradio as gr
import httpx
import pytest

import app
from adapter.server.generation import FAILED, AdapterCatalog
from adapter.server.transcript import FORMAT, VERSION
from tests.app_process import ROOT, AppProcess
from tests.fake_engine import EchoEngine, ReadyProvider
from tests.server.asgi import served_routes
from tests.soak.attacks import random_json
from tests.soak.people import FILE_DATA, Connection

pytestmark = pytest.mark.slow
# What no response may hold: paths and files of this machine, stack traces.
SECRETS = re.compile(r"Traceback|site-packages|root:x:0|File \"|lib/python3|" + re.escape(str(ROOT)))
PATHS = [
    "../../../../etc/passwd",
    "%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "/proc/self/environ",
    "app.py",
    f"{ROOT}/assets/../app.py",
    f"{ROOT}/assets/%2e%2e/app.py",
    "C:\\Windows\\win.ini",
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "\x00",
    "é" * 300,
]


@pytest.fixture
def visitor(server: AppProcess) -> Iterator[Connection]:
    """Afterwards the page must answer as before."""
    before = server.answer(model="one")
    connection = Connection(server.url, "127.0.0.1", signed_in=False)
    yield connection
    connection.close()
    assert server.answer(model="one") == before
    server.check_alive()


def routes() -> list[tuple[str, str]]:
    """(method, path) of all that the page's server answers, including what a later Gradio adds."""
    served = gr.routes.App.create_app(app.build_page(ReadyProvider(EchoEngine()), AdapterCatalog()))
    return sorted({("POST", "/v1/chat/completions"), ("GET", "/v1/{path}")} | served_routes(served))


def assert_no_leak(response: httpx.Response) -> None:
    """No stack trace and no path of the machine; a server error is one sentence."""
    text = response.text
    for path in sorted(PATHS, key=len, reverse=True):
        text = text.replace(path, "")  # repeated from the request
    assert not SECRETS.search(text), (response.request.method, response.request.url, text[:500])
    if response.status_code >= 500 and "/v1/" not in str(response.request.url):
        assert response.json() == {"detail": FAILED}, (response.request.url, text[:500])


def test_garbage_on_every_route(visitor):
    rng, asked = random.Random(0), routes()
    assert len(asked) > 50
    statuses: dict[int, int] = {}
    for method, path in asked * 2:
        address = re.sub(r"\{[^}]*\}", lambda _: rng.choice(PATHS), path)
        body = json.dumps(random_json(rng, places=PATHS)).encode() if rng.random() < 0.7 else rng.randbytes(300)
        headers = {"content-type": rng.choice(["application/json", "multipart/form-data", "x", "text/plain"])}
        try:
            with visitor.http.stream(method, address, content=body, headers=headers) as response:
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                # An event stream may never end: it is not read.
                if "event-stream" not in response.headers.get("content-type", ""):
                    response.read()
                    assert_no_leak(response)
        except (httpx.InvalidURL, httpx.ProtocolError, httpx.NetworkError):
            continue  # not even HTTP, or hung up on
    assert statuses.get(200, 0) < sum(statuses.values()) / 2, statuses
    assert len(statuses) > 3 and sum(statuses.values()) > len(asked) and max(statuses) < 500, statuses


FILE_PART = b'--x\r\nContent-Disposition: form-data; name="files"; %b\r\n\r\nabc\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        ("/gradio_api/queue/join", b'{"data": Infinity}', "application/json"),
        ("/gradio_api/run/predict", b'{"data": [1]}', "application/json"),
        ("/gradio_api/cancel", b'"\\ud800"', "application/json"),
        ("/gradio_api/reset", bytes(range(256)), "text/plain"),
        ("/gradio_api/call/v2/chat", b'{"of no name": 1}', "application/json"),
        ("/gradio_api/upload", FILE_PART % b"filename*=utf-8''%ff", "multipart/form-data; boundary=x"),
        ("/gradio_api/upload", FILE_PART % b"", "multipart/form-data; boundary=x"),
        ("/assets/" + "a" * 300, None, ""),
    ],
)
def test_a_request_that_makes_no_sense_is_no_fault_of_the_server(visitor, path, content, kind):
    method = "GET" if content is None else "POST"
    response = visitor.http.request(method, path, content=content, headers={"content-type": kind})
    assert 400 <= response.status_code < 500 and "\ud800" not in response.text


def test_only_this_machine_may_ask(server, visitor):
    """The program itself is behind the guard, whose rules tests/server/test_request_guard.py has."""
    assert "Only this machine may ask" in server.log
    request = visitor.http.request
    for method, path in [("GET", "/config"), ("POST", "/gradio_api/upload"), ("POST", "/v1/chat/completions")]:
        assert request(method, path, headers={"Host": "evil.example"}).status_code == 403, (method, path)
    assert request("POST", "/gradio_api/process_recording").status_code == 404
    assert server.get("/v1/models").status_code == server.get("/config").status_code == 200


def forged(path: str) -> Iterator[list[dict[str, Any]]]:
    """Conversations that name a file of the machine in every way that a message can."""
    file = {"path": path, "meta": FILE_DATA, "url": path}
    for picture in (path, f"file={path}", f"file://{path}", [path], file, {"file": file}):
        yield [{"role": "user", "picture": picture}, {"role": "user", "text": "what?"}]
    for content in ([{"type": "file", "file": file}], [{"type": "component", "component": "file", "value": file}]):
        yield [{"role": "user", "content": content, "text": f'<img src="file={path}">'}]
        yield [{"role": "assistant", "text": "x", "about": path, "record": {"log": path, "content": content}}]


def test_forged_conversations_expose_no_file(server, visitor):
    secret = server.folder / "secret.md"
    secret.write_text("a secret of this server")
    inside = ROOT / "CONTRIBUTING.md"  # in the program's own folder, from which Gradio copies what an answer names
    for path in (str(secret), str(inside), "/etc/passwd"):
        for messages in forged(path):
            document = json.dumps({"format": FORMAT, "version": VERSION, "messages": messages})
            opened = {"id": secrets.token_hex(6), "text": document}  # a known id shows what the server has
            said = visitor.fire_for_text("open", [], event_data=opened)
            assert "a secret" not in said and "root:x" not in said and "Traceback" not in said
            assert "process_completed" in said and re.search('what[?]|img src|"x"', said), "not opened: " + said
    copies = [path.name for path in server.uploads.rglob("*") if path.is_file()]
    assert not {"secret.md", "CONTRIBUTING.md", "passwd"} & set(copies)


def test_missing_and_mistyped_values_are_reported_and_not_logged(server, visitor):
    before, long = len(server.log), "x" * 100_000
    said = visitor.fire_for_text("send", [{"text": long, "files": []}])
    assert "The request lacks a value" in said and "xxxx" not in said
    values = ["hi", None, "", 1.0, 0.1, 0.75, 4]
    values += visitor.defaults("chat")[len(values) :]
    for place, wrong in [(3, long), (3, [1]), (4, {"x": 1}), (6, long), (7, "q"), (1, 5), (1, "/etc/passwd")]:
        said = visitor.fire_for_text("chat", [wrong if i == place else value for i, value in enumerate(values)])
        assert re.search("of another kind|Input should be|whole number", said), (place, wrong, said[:500])
        assert "xxxx" not in said
    assert "message is empty" in visitor.fire_for_text("chat", [None, *values[1:]])
    assert len(server.log) - before < 5_000
