"""ASGI middleware before everything else: which requests reach the page and /v1, and what the page may load."""

import asyncio
import contextlib
import logging
import os
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import compile_path, get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter.server.generation import FAILED, client_of, is_local
from adapter.server.limits import Limits, RateLimited
from adapter.server.openai_api import error_response
from adapter.server.request_body import SEND_LESS, RequestRefused, bounded, counting_values, is_full

log = logging.getLogger(__name__)
Kind = Literal[
    "page", "opening", "heartbeat", "body", "login", "upload", "stream", "file", "v1", "figures", "health"
]

MESSAGE_BYTES = 8 * 2**20  # of a request that is no upload: a conversation with its kept pictures is the largest
UPLOAD_BYTES = 40 * 2**20
ADAPTER_BYTES = 256 * 2**20  # of an upload where visitors may upload adapters
_FORM_BYTES = 2**16  # around an uploaded file
_NAME_BYTES = 255  # of a file; the system raises where a longer one is looked for
_RANGE = re.compile(r"(bytes=[0-9]{0,18}-[0-9]{0,18})?")  # at others Gradio fails (6.31)
_WITHOUT_LENGTH = "A request must say how long it is."
FOR_THIS_MACHINE_ONLY = (
    "This page was started for its own machine only, and this request comes from elsewhere or through a proxy. "
    "Whoever runs it can let others in by starting it with --public."
)


@dataclass(frozen=True)
class Rule:
    """What requests of one kind are limited by, in names of Limits. place: what each holds until it is answered,
    "body" for one that has to state its length; act: what such a body counts as; values: whether those of its
    JSON count.
    """

    rate: Literal["request", "session", "program"]
    place: str | None = None
    act: str | None = None
    values: bool = False


_NO_ROOM = "There is no room for this file: the disk may be full. Try again later, or send words only."
# None for health: it costs nothing, and a probe that is refused would have the server started again.
RULES: dict[Kind, Rule | None] = {
    "page": Rule("request", "file"),
    "opening": Rule("session", "file"),
    "heartbeat": Rule("session", "page"),
    "file": Rule("request", "file"),
    "stream": Rule("request", "stream"),
    "body": Rule("request", "body", values=True),
    "login": Rule("request", "body", act="login"),
    "upload": Rule("request", "body", act="upload"),
    "v1": Rule("program", "call", values=True),
    "figures": Rule("program"),  # which are shown to who has the key of /v1
    "health": None,
}


@dataclass(frozen=True)
class Route:
    """A route of the server. methods: none means all."""

    path: str
    methods: tuple[str, ...] = ("GET",)
    kind: Kind = "page"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return compile_path(self.path)[0]


_POST = ("POST",)
_READING = ("GET", "HEAD", "OPTIONS")
_LOGOUT = Route("/logout")
# /v1, what watches the server, and what the page, gradio_client and docs/api.md request of Gradio 6.31, which has
# some 80 routes more: they record, proxy, stream, edit code, and run private events by name.
ROUTES = (
    Route("/", ("GET", "HEAD"), "opening"),
    Route("/config", kind="opening"),
    Route("/theme.css"),
    Route("/favicon.ico"),
    Route("/assets/{path:path}"),
    Route("/static/{path:path}"),
    Route("/login", _POST, "login"),
    _LOGOUT,
    Route("/login/huggingface"),  # of a Space whose visitors sign in, to publish what they have trained
    Route("/login/callback"),
    Route("/gradio_api/info"),
    Route("/gradio_api/startup-events"),
    Route("/gradio_api/app_id"),  # asked by a page that has lost its server, until it is back
    Route("/gradio_api/heartbeat/{session_hash}", kind="heartbeat"),
    Route("/gradio_api/queue/join", _POST, "body"),
    Route("/gradio_api/queue/data", kind="stream"),
    Route("/gradio_api/run/predict", _POST, "body"),  # events with queue=False
    Route("/gradio_api/cancel", _POST, "body"),
    Route("/gradio_api/reset", _POST, "body"),
    Route("/gradio_api/call/chat", _POST, "body"),
    Route("/gradio_api/call/chat/{event_id}", kind="stream"),
    Route("/gradio_api/call/v2/chat", _POST, "body"),
    Route("/gradio_api/call/v2/chat/{event_id}", kind="stream"),
    Route("/gradio_api/upload", _POST, "upload"),
    Route("/gradio_api/upload_progress", kind="stream"),
    Route("/gradio_api/file={path_or_url:path}", ("GET", "HEAD"), "file"),
    Route("/v1/{path:path}", (), "v1"),
    Route("/healthz", ("GET", "HEAD"), "health"),
    Route("/readyz", ("GET", "HEAD"), "health"),
    Route("/metrics", ("GET", "HEAD"), "figures"),
)

# What the page may load and from where, whatever text ends up in it. Gradio writes its configuration into inline
# scripts and compiles the functions of events that run in the browser (6.31).
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self' "
)


async def not_understood(*_: object) -> JSONResponse:
    # FastAPI's own response repeats the body, and fails where that cannot be JSON: NaN, half characters, bytes.
    return JSONResponse({"detail": "This request is none that is known at this address."}, 422)


async def _perhaps_not_understood(request: Request, error: Exception) -> JSONResponse:
    # Gradio 6.31 raises so for parameters that an endpoint lacks.
    if traceback.extract_tb(error.__traceback__)[-1].name == "construct_args":
        return await not_understood()
    raise error


# Of the page's application; /v1 has its own.
EXCEPTION_HANDLERS: dict[type[Exception], Callable[..., Any]] = {
    RequestValidationError: not_understood,
    TypeError: _perhaps_not_understood,
    AttributeError: _perhaps_not_understood,
    Exception: lambda *_: JSONResponse({"detail": FAILED}, 500),  # the server's log has the error
}


class RequestGuard:
    """Refuses routes that are not in ROUTES, and requests that another site's page makes a browser send; on a
    local server also requests from elsewhere, on a public one those that exceed `limits`.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        uploads: Path,
        most: int = UPLOAD_BYTES,
        frames: str = "",
        preload: str = "",
    ) -> None:
        """uploads: the folder of this process's uploads alone, from which file= serves; most: bytes of one;
        frames: origins of pages that may show this one in a frame; preload: the page's header `Link`.
        """
        self._app, self._limits, self._uploads, self._most = app, limits, uploads, most
        self._policy, self._preload = (_POLICY + frames).strip(), preload
        self._folders = {Path(os.path.abspath(uploads)), Path(os.path.realpath(uploads))}
        self._uploading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self._policy
                if self._preload and get_route_path(scope) == "/":
                    headers["Link"] = self._preload
                    headers["Cache-Control"] = "no-store"  # a restored tab's events may be another version's
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        with contextlib.ExitStack() as held:
            try:
                route = self._find_allowed(scope)
                rule = RULES[route.kind] if self._limits.public else None
                limited: tuple[Receive, Send] = receive, send_with_policy
                if rule is not None:
                    limited = await self._limit(rule, scope, *limited, held)
                await self._pass_on(route, scope, *limited)
            except (RequestRefused, RateLimited) as error:
                if isinstance(error, RateLimited):
                    error = RequestRefused(429, str(error), error.retry_after)
                if get_route_path(scope).startswith("/v1/"):
                    response: Response = error_response(error)
                elif scope["method"] in _READING or get_route_path(scope).endswith("/upload"):
                    response = PlainTextResponse(str(error), error.status, error.headers)
                else:  # as Gradio's page reads it
                    response = JSONResponse({"detail": str(error)}, error.status, error.headers)
                await response(scope, receive, send_with_policy)

    def _find_allowed(self, scope: Scope) -> Route:
        """The route of a request that may be made at all. Raises RequestRefused, also for a path that ends in a
        line break, to which the router's patterns are blind.
        """
        headers, path, method = Headers(scope=scope), get_route_path(scope), scope["method"]
        matching = (r for r in ROUTES if method in (r.methods or (method,)) and r.pattern.fullmatch(path))
        refused, route = _is_of_another_page(headers), next(matching, None)
        if self._limits.public:
            # With an origin even GET: its page wants to read the answer, which Gradio would allow to any (6.31).
            refused &= method not in _READING or route is _LOGOUT or "origin" in headers
        elif not is_local(scope, headers):
            raise RequestRefused(403, FOR_THIS_MACHINE_ONLY)
        else:
            # A link elsewhere that was followed, into a tab and not into a frame of the other page.
            opens = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            refused &= not (opens and method == "GET" and path == "/")
        if refused:
            text = "A web page of another address sent this request. Open this page itself, in a tab of its own."
            raise RequestRefused(403, text)
        if path.endswith("/login/callback") and b"error=" in scope["query_string"]:  # Gradio (6.31) fails
            raise RequestRefused(403, "Hugging Face has not signed you in. Go back to the page and try again.")
        nothing_here = RequestRefused(404, "There is nothing at this address.")
        if route is None or max(map(len, path.encode("utf-8", "replace").split(b"/"))) > _NAME_BYTES:
            raise nothing_here
        if route.kind == "file":
            named = path.partition("file=")[2]
            if not _RANGE.fullmatch(headers.get("range", "")):
                raise nothing_here
            if "\0" in named or not any(Path(os.path.abspath(named)).is_relative_to(f) for f in self._folders):
                raise nothing_here
        return route

    async def _limit(
        self, rule: Rule, scope: Scope, receive: Receive, send: Send, held: contextlib.ExitStack
    ) -> tuple[Receive, Send]:
        """Count a request by its address; returns what limits and counts body and answer. held: gets what is to
        be done when it has been answered. Raises RequestRefused and RateLimited.
        """
        address = client_of(Request(scope)).address

        def count_values(count: int) -> None:
            try:
                self._limits.count("value", address, count)
            except RateLimited as error:
                raise RequestRefused(429, str(error), error.retry_after) from None

        async def send_counting(message: Message) -> None:
            act, count = {400: "answer", 401: "login"}.get(message.get("status", 0), ""), 1
            if rule.act == "login":  # a right password was no guess
                act, count = "login" * (message.get("status") == 200), -1
            if rule.place == "file" and "headers" in message:
                act, count = "kilobyte", int(Headers(raw=message["headers"]).get("content-length", 0)) // 1000
            if act:
                with contextlib.suppress(RateLimited):
                    self._limits.count(act, address, count)
            await send(message)

        self._limits.count(rule.rate, address)
        if rule.place == "file":
            self._limits.count("kilobyte", address, 0)
        if rule.place is not None:
            held.callback(self._limits.hold(rule.place, address))
        if rule.rate == "program":
            self._limits.count("login", address, 0)
            if scope["method"] == "POST":  # its picture is decoded before the engine counts an answer
                self._limits.count("answer", address, 0)
        if rule.place == "body":
            receive = bounded(receive, await self._check_length(rule, scope, address), _WITHOUT_LENGTH)
        if rule.values:
            receive = counting_values(receive, count_values)
        return receive, send_counting if {rule.place, rule.rate, rule.act} & {"file", "program", "login"} else send

    async def _check_length(self, rule: Rule, scope: Scope, address: str) -> int:
        """The body's length as the request states it, if it may be so long."""
        stated = Headers(scope=scope).get("content-length", "")
        if not stated.isdecimal():
            raise RequestRefused(411, _WITHOUT_LENGTH)
        length, is_upload = int(stated), rule.act == "upload"
        if is_upload and length > self._most + _FORM_BYTES:
            most = f"The upload is larger than {self._most // 2**20} MB."
            raise RequestRefused(413, f"{most} Make it smaller, or send one file at a time.")
        if not is_upload and length > MESSAGE_BYTES:
            raise RequestRefused(413, f"The request is larger than {MESSAGE_BYTES // 2**20} MB. {SEND_LESS}")
        if rule.act is not None:
            self._limits.count(rule.act, address)
        if is_upload:
            self._limits.count("megabyte", address, 1 + (length >> 20))
        if is_upload and await asyncio.to_thread(is_full, self._uploads, length):
            raise RequestRefused(507, _NO_ROOM)
        return length

    async def _pass_on(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """Gives the request to the application, mends what Gradio 6.31 makes of some. Raises RequestRefused."""
        if route is _LOGOUT:
            # By default Gradio ends all sessions of the user, and here all visitors are the same one.
            scope = {**scope, "query_string": b"all_session=false"}
        elif get_route_path(scope) == "/":  # Gradio raises for `page`, where there is one page
            scope = {**scope, "query_string": b""}
        self._uploading += route.kind == "upload"
        try:
            await self._app(scope, receive, send)
        except RuntimeError as error:
            # Gradio's streams look for their event when they have begun; the client has been told by now.
            if route.kind != "stream" or not isinstance(error.__cause__, HTTPException):
                raise
            await send({"type": "http.response.body"})
        except OSError as error:
            if route.kind != "upload":
                raise
            log.error("An upload cannot be kept: %s", error.strerror or error)
            raise RequestRefused(507, _NO_ROOM) from None
        finally:
            self._uploading -= route.kind == "upload"
            if route.kind == "upload" and not self._uploading:
                # Gradio forgets a file that never becomes whole. In the event loop no upload begins meanwhile.
                for file in self._uploads.glob("tmp*"):
                    with contextlib.suppress(OSError):
                        file.unlink()


def _is_of_another_page(headers: Headers) -> bool:
    """Whether a browser says that a page of another origin sends this; programs have none. Sec-Fetch-Site comes
    to https and loopback; elsewhere Origin is compared with Host, which a proxy may have changed.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()
