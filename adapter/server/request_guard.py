"""ASGI middleware before everything else: which requests reach the page and /v1, by route and by sender, and what
the page may load.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import compile_path, get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter.server import texts
from adapter.server.openai_api import error_response
from adapter.server.openai_schema import ApiError

Kind = Literal["", "body", "login", "upload", "stream", "file", "v1", "figures", "health"]


@dataclass(frozen=True)
class Route:
    """A route of the server. methods: none means all; kind: what middleware.py limits requests to it by."""

    path: str
    methods: tuple[str, ...] = ("GET",)
    kind: Kind = ""
    pattern: re.Pattern[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", compile_path(self.path)[0])


_POST = ("POST",)
_READING = ("GET", "HEAD", "OPTIONS")
_LOGOUT = Route("/logout")
# /v1, what watches the server, and what the page, gradio_client and the commands in docs/api.md request of
# Gradio 6.31. Gradio has some 80 routes more: they record, proxy, stream, edit code, and run private events by
# name.
ROUTES = (
    Route("/", ("GET", "HEAD")),
    Route("/config"),
    Route("/theme.css"),
    Route("/favicon.ico"),
    Route("/assets/{path:path}"),
    Route("/static/{path:path}"),
    Route("/login", _POST, "login"),
    _LOGOUT,
    Route("/gradio_api/info"),
    Route("/gradio_api/startup-events"),
    Route("/gradio_api/app_id"),  # asked by a page that has lost its server, until it is back
    Route("/gradio_api/heartbeat/{session_hash}", kind="stream"),
    Route("/gradio_api/queue/join", _POST, "body"),
    Route("/gradio_api/queue/data", kind="stream"),
    Route("/gradio_api/run/predict", _POST, "body"),
    Route("/gradio_api/cancel", _POST, "body"),
    Route("/gradio_api/reset", _POST, "body"),
    *(
        route
        for name in ("chat", "v2/chat", "adapters", "v2/adapters")
        for route in (
            Route(f"/gradio_api/call/{name}", _POST, "body"),
            Route(f"/gradio_api/call/{name}/{{event_id}}", kind="stream"),
        )
    ),
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
# Neither host.docker.internal nor 0.0.0.0: browsers do not say Sec-Fetch-Site to them, so a GET that a page
# elsewhere sends there would look like a program's.
_LOOPBACK = re.compile(r"(localhost\.?|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
# What proxies add. nginx adds none of them by itself and replaces Host by its own, but speaks HTTP/1.0.
_OF_PROXIES = ("forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip")


def find_route(scope: Scope) -> Route | None:
    """The allowed route of a request, matched as Starlette's router does; None if there is none.

    But for a path that ends in a line break, to which the router's patterns are blind.
    """
    path = get_route_path(scope)
    for route in ROUTES:
        if (not route.methods or scope["method"] in route.methods) and route.pattern.fullmatch(path):
            return route
    return None


class RequestGuard:
    """Refuses what is no request of the page's or of a program's own.

    That is every route but ROUTES; requests that a page elsewhere makes a browser send; and on a server for this
    machine only whatever does not come from it, as far as the request tells.
    """

    def __init__(self, app: ASGIApp, public: bool, files: Path, frames: str = "") -> None:
        """public: whether others may ask; files: the folder that file= serves from, that of uploads.

        frames: the origins of other pages that may show this one in a frame, as in a content security policy.
        """
        self._app, self._public, self._policy = app, public, (_POLICY + frames).strip()
        self._folders = {Path(os.path.abspath(files)), Path(os.path.realpath(files))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = self._policy
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif (refusal := self._refusal(scope, route := find_route(scope))) is not None:
            await refuse(scope, *refusal)(scope, receive, send_with_policy)
        else:
            if route is _LOGOUT:
                # By default Gradio ends all sessions of the user, and here all visitors are the same one.
                scope = {**scope, "query_string": b"all_session=false"}
            try:
                await self._app(scope, receive, send_with_policy)
            except RuntimeError as error:
                # Gradio's streams look for their event when they have begun. They have told it to the client by
                # now, and each request would log a traceback.
                if route is None or route.kind != "stream" or not isinstance(error.__cause__, HTTPException):
                    raise
                await send({"type": "http.response.body"})

    def _refusal(self, scope: Scope, route: Route | None) -> tuple[int, str] | None:
        """Status and sentence, or None for a request that may pass."""
        headers = Headers(scope=scope)
        if not self._public:
            if not is_local(scope, headers):
                return 403, texts.FOR_THIS_MACHINE_ONLY
            if _is_of_another_page(headers) and not _opens_the_page(scope, headers):
                return 403, texts.OF_ANOTHER_PAGE
        elif _is_of_another_page(headers) and (
            scope["method"] not in _READING or route is _LOGOUT or "origin" in headers
        ):
            # With an origin even GET: its page wants to read the answer, which Gradio would allow to any (6.31).
            return 403, texts.OF_ANOTHER_PAGE
        if route is None or (route.kind == "file" and not self._may_serve(get_route_path(scope))):
            return 404, texts.NOTHING_HERE
        return None

    def _may_serve(self, path: str) -> bool:
        named = path.partition("file=")[2]
        return "\0" not in named and any(Path(os.path.abspath(named)).is_relative_to(f) for f in self._folders)


def is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a program on this machine asks, and no proxy for another one.

    A page elsewhere may have its own name resolved to this machine: its requests then name it as Host.
    """
    if scope.get("http_version") == "1.0":
        return False
    if any(name in _OF_PROXIES or name.startswith("x-forwarded-") for name in headers):
        return False
    named = headers.getlist("host") or [""]
    # The origin is what the browser's own address line shows, whatever a proxy has made of Host.
    named += [origin.partition("://")[2] for origin in headers.getlist("origin")]
    return all(_LOOPBACK.fullmatch(name) for name in named)


def _is_of_another_page(headers: Headers) -> bool:
    """Whether a browser says that a page of another origin sends this. Other programs have no origin.

    Browsers send Sec-Fetch-Site to https and loopback addresses. Elsewhere Origin is compared with Host, which a
    proxy may have changed.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _opens_the_page(scope: Scope, headers: Headers) -> bool:
    """Whether a link elsewhere was followed, into a tab and not into a frame of the other page."""
    return (
        scope["method"] == "GET"
        and get_route_path(scope) == "/"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def refuse(scope: Scope, status: int, text: str) -> Response:
    """The response that a program of OpenAI's reads, or the page."""
    if get_route_path(scope).startswith("/v1/"):
        return error_response(ApiError(status, text))
    return PlainTextResponse(text, status)
