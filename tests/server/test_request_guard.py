"""Which requests reach the page at all: routes, proxies, rebound names, other pages. Over Gradio's application."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

import app
from adapter.server.limits import Limits, TokenBuckets
from adapter.server.request_guard import FOR_THIS_MACHINE_ONLY, ROUTES, RequestGuard
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider
from tests.server.asgi import LOCAL, NAMED, STRANGER, send, served_routes

JOIN = "/gradio_api/queue/join"


class Page:
    """Gradio's application behind the guard, and which requests have come through to it."""

    def __init__(self, uploads: Path, public: bool, auth: Any = None, root_path: str = "") -> None:
        self.reached: list[str] = []
        reached = self.reached

        class Reached:
            def __init__(self, app: ASGIApp) -> None:
                self._app = app

            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                reached.append(f"{scope.get('method')} {scope['path']}")
                await self._app(scope, receive, send)

        page = app.build_page(ReadyProvider(EchoEngine()), FakeCatalog())
        # What launch() sets.
        page.auth, page.auth_message, page.share, page.max_file_size = auth, None, False, 10**6
        page.show_error, page.config, page.root_path = False, page.get_config_file(), root_path
        self.limits = Limits(public)
        guard = Middleware(RequestGuard, limits=self.limits, uploads=uploads)
        v1 = Mount("/v1", PlainTextResponse("v1"))
        self.served = gr.routes.App.create_app(
            page, app_kwargs={"middleware": [guard, Middleware(Reached)], "routes": [v1]}
        )

    def ask(self, method: str, path: str, headers: Any = None, base: str = LOCAL, **more: Any) -> httpx.Response:
        return self.ask_all((method, path, {"headers": headers, **more}), base=base)[0]

    def ask_all(self, *requests: tuple[str, str, dict[str, Any]], base: str = LOCAL) -> list[httpx.Response]:
        return send(self.served, *requests, base=base, address=STRANGER, raises=False)

    def status(self, method: str, path: str, headers: Any = None, base: str = LOCAL, **more: Any) -> int:
        return self.ask(method, path, headers, base, **more).status_code


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as environment:
        folder = tmp_path_factory.mktemp("uploads")
        environment.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def private(uploads: Path) -> Page:
    return Page(uploads, public=False)


@pytest.fixture(scope="module")
def public(uploads: Path) -> Page:
    return Page(uploads, public=True)


@pytest.fixture(scope="module")
def signed(uploads: Path) -> Page:
    """A public page that asks for a password, below a path."""
    return Page(uploads, public=True, auth=[("me", "secret")], root_path="/llama")


async def raw(app: ASGIApp, scope: Any) -> list[Any]:
    """What a scope as no client makes it is answered. The application must not wait for a body."""
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        raise AssertionError("there is no body")

    await app({"method": "GET", "path": "/", "root_path": "", "headers": [], **scope}, receive, send)
    return said


def test_refused_routes_do_not_reach_gradio(public):
    before = len(public.reached)
    with gr.Blocks() as page:
        pass
    for method, pattern in sorted(served_routes(gr.routes.App.create_app(page))):
        path = re.sub(r"\{[^}]*\}", "x", pattern)  # what varies
        if not any(route.pattern.match(path) and method in (route.methods or (method,)) for route in ROUTES):
            assert public.status(method, path) == 404, (method, path)
    assert public.status("GET", "/login/callback?error=access_denied&state=x") == 403, "who cancels at the Hub"
    others = [("POST", "/gradio_api/run/chat"), ("POST", "/gradio_api/call/undo"), ("GET", "/v1")]
    others += [("PUT", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("TRACE", "/config")]
    for method, path in others:
        assert public.status(method, path) == 404, (method, path)
    assert len(public.reached) == before


@pytest.mark.parametrize(
    "path",
    ["/login", "/llama/login", "/login/", "/%2flogin", "/LOGIN", "/x/%2e%2e/login", "/login%2f", "/%6cogin",
     "/login?x=/v1/", "/login%0A"],
)  # fmt: skip
def test_no_spelling_of_login_escapes_the_count(signed, monkeypatch, path):
    """Below a path, whether or not the proxy takes it away."""
    monkeypatch.setattr(signed.limits, "_rates", {**signed.limits._rates, "login": TokenBuckets(3, 60)})
    form = {"data": {"username": "me", "password": "guess"}}
    statuses = [response.status_code for response in signed.ask_all(*[("POST", path, form)] * 8)]
    tried = statuses.count(400)  # "Incorrect credentials", so that it was a guess
    assert tried in (0, 3) and set(statuses) <= {400, 404, 429}, statuses
    assert signed.status("POST", "/login", **form) == (429 if tried else 400)


@pytest.mark.parametrize(
    "named",
    ["http://127.0.0.1:1/", "https://example.com/x.png", "HTTP://example.com/x", "//example.com/x", "/etc/passwd",
     "app.py", "{uploads}/../secret", "{uploads}/%2e%2e/secret", "{uploads}-other/secret", "{uploads}/x%00y"],
)  # fmt: skip
def test_file_serves_uploads_only(public, uploads, named):
    for secret in (uploads.parent / "secret", Path(f"{uploads}-other") / "secret"):
        secret.parent.mkdir(exist_ok=True)
        secret.write_text("secret")
    before = len(public.reached)
    assert public.status("GET", f"/gradio_api/file={named.format(uploads=uploads)}") == 404
    assert len(public.reached) == before, "not even Gradio is asked"


# Who asks: a server for its own machine.


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "localhost.:7860", "127.1.2.3", "[::1]:7860"]
)
def test_this_machine_may_ask(private, host):
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for headers in ({"Host": host}, own):
        assert private.status("GET", "/config", headers) == 200
        assert private.status("POST", JOIN, headers, content=b"{}") == 422  # Gradio's own answer to it
        assert private.ask("POST", "/v1/chat/completions", headers).text == "v1"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.7"},
        {"Via": "1.1 proxy"},
        {"Host": "chat.example"},
        {"Host": "127.0.0.1.evil.example"},
        # A browser behind a proxy that replaces Host.
        {"Origin": "https://chat.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_through_a_proxy_or_by_a_rebound_name_nobody_may_ask(private, headers):
    refused_everywhere(private, headers, FOR_THIS_MACHINE_ONLY)
    assert "--public" in private.ask("GET", "/v1/models", headers).json()["error"]["message"]


def refused_everywhere(private: Page, headers: dict[str, str], words: str) -> None:
    before = len(private.reached)
    for method, path in [("GET", "/"), ("GET", "/config"), ("POST", JOIN), ("POST", "/gradio_api/upload")]:
        response = private.ask(method, path, headers)
        assert response.status_code == 403 and words in response.text, (method, path)
    assert private.ask("POST", "/v1/chat/completions", headers).json()["error"]["message"]
    assert len(private.reached) == before


def test_nginx_without_any_settings_is_noticed():
    """It names no visitor and replaces Host, but speaks HTTP/1.0, until its version 1.29.7."""
    reached: list[Any] = []

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["http_version"])

    guard = RequestGuard(page, Limits(False), Path("/tmp"))
    said = [
        asyncio.run(raw(guard, {"type": "http", "http_version": version, "headers": [(b"host", b"127.0.0.1")]}))
        for version in ("1.0", "1.1")
    ]
    assert said[0][0]["status"] == 403 and said[1] == [] and reached == ["1.1"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:3000"},  # another program's page on this machine
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
def test_pages_elsewhere_may_not_ask(private, headers):
    refused_everywhere(private, headers, "")


def test_a_link_elsewhere_opens_the_page(private):
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert private.status("GET", "/", followed) != 403 and private.reached[-1] == "GET /"
    assert private.status("POST", "/login", followed) == 403  # a form that is sent from there
    assert private.status("GET", "/logout", followed) == 403


# Who asks: a server for others.


@pytest.mark.parametrize(
    ("headers", "may"),
    [
        ({}, True),  # a program
        ({"Origin": "https://chat.example", "Host": "inner:7860", "Sec-Fetch-Site": "same-origin"}, True),
        ({"X-Forwarded-For": "203.0.113.7", "Via": "1.1 proxy"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": NAMED, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "https://other.chat.example", "Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_on_a_public_server_pages_elsewhere_change_nothing(public, headers, may):
    before = len(public.reached)
    for path in (JOIN, "/login", "/gradio_api/upload", "/v1/chat/completions"):
        assert (public.status("POST", path, headers, NAMED, content=b"{}") != 403) == may, path
    assert (len(public.reached) > before) == may
    assert (public.status("GET", "/logout", headers, NAMED) != 403) == may
    assert (public.status("GET", "/config", headers, NAMED) == 200) == may, "nor may they read it"


# Signing in and out.


@pytest.mark.parametrize("path", ["call/chat/unknown", "queue/data?session_hash=unknown"])
def test_a_stream_of_an_event_that_is_not_there_logs_nothing(public, path):
    """An open page asks for one after the server has been started again."""
    asked = ("GET", f"/gradio_api/{path}", {})  # raises what uvicorn logs
    assert "404: Not Found" in send(public.served, asked, base=NAMED, address=STRANGER)[0].text


def test_queries_that_gradio_fails_at_do_not_reach_it(tmp_path):
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(scope["query_string"].decode())(scope, receive, send)

    file, parts = f"/gradio_api/file={tmp_path}/a.png", ("bytes=0-", "bytes=1-2-3")
    requests = [("GET", "/?page=2", {}), *(("GET", file, {"headers": {"Range": r}}) for r in parts)]
    asked = send(RequestGuard(echo, Limits(False), tmp_path), *requests)
    assert asked[0].text == "" and [one.status_code for one in asked] == [200, 200, 404]


def test_right_passwords_are_no_guesses_and_signing_out_ends_nobody_elses_session(signed, monkeypatch):
    monkeypatch.setattr(signed.limits, "_rates", {**signed.limits._rates, "login": TokenBuckets(1, 3600)})
    form = {"data": {"username": "me", "password": "secret"}}
    mine, theirs = (dict(signed.ask("POST", "/login", **form).cookies) for _ in range(2))
    shown = [{"Cookie": "; ".join(f"{k}={v}" for k, v in cookies.items())} for cookies in (mine, theirs)]
    assert [signed.status("GET", "/config", headers) for headers in (*shown, {})] == [200, 200, 401]
    assert signed.status("GET", "/logout%0A", shown[0]) == 404
    assert signed.status("GET", "/logout?all_session=true", shown[0]) == 302
    assert [signed.status("GET", "/config", headers) for headers in shown] == [401, 200]
    wrong = {"data": {"username": "me", "password": "guess"}}
    assert [signed.status("POST", "/login", **one) for one in (wrong, form)] == [400, 429]
