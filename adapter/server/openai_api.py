"""OpenAI's chat completions beside the page: who may ask, bodies in, JSON or server-sent events out.

Knows HTTP as ASGI has it, and the engine; what a body means is in openai_request.py. Imports no Gradio of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import json
import logging
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import TemplateError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.errors import AdapterError, BadInput, Busy, LoadError
from adapter.server.openai_schema import BASE, ApiError, Asked, decode, known, read
from adapter.server.settings import EngineProvider, without_folders
from adapter.ui.texts import page as texts
from adapter.ui.theme import Cards

if TYPE_CHECKING:
    from adapter.serve.request import Answer, GenerationEvent, GenerationStats
    from adapter.server.loader import ServingEngine

log = logging.getLogger(__name__)
T = TypeVar("T")

KEY_VARIABLE = "LLAMA_ADAPTER_API_KEY"
MAX_BODY = 32 * 2**20  # a picture of the largest size as base64, and words
MAX_OPEN = 48  # requests at once, whose bodies are in memory; the engine's other places are left to the page
BODY_SECONDS = 60.0
RETRY_SECONDS = 5
_ENDINGS: dict[str | None, str] = {"stop": "stop", "length": "length", "time": "length"}


def route(provider: EngineProvider, store: Cards, auth: str | None = None) -> Route:
    """Everything below /v1, for the page's server.

    The key that a client must show is LLAMA_ADAPTER_API_KEY, or else the page's USER:PASS; without both none is.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip() or auth
    return Route("/v1/{path:path}", OpenAIApi(provider, store, key), include_in_schema=False)


class OpenAIApi:
    """The ASGI application; path_params["path"] is what follows /v1/."""

    def __init__(self, provider: EngineProvider, store: Cards, key: str | None = None) -> None:
        self._provider = provider
        self._store = store
        self._key = None if key is None else key.encode().strip()  # no header ends in a blank
        self._open = 0
        self._since = int(time.time())
        # Bodies, pictures and tokens take their time: not that of the event loop, which the page shares.
        self._pool = ThreadPoolExecutor(4, "openai-api")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        self._open += 1
        try:
            request = Request(scope, receive)
            self._admit(request)
            response = await self._respond(request)
            await response(scope, receive, noted)
        except ClientDisconnect:
            pass
        except Exception as error:
            if begun:
                raise
            await error_response(error)(scope, receive, send)
        finally:
            self._open -= 1

    def _admit(self, request: Request) -> None:
        """Raise ApiError for whoever may not ask."""
        origin = request.headers.get("origin")
        # Gradio's CORS rules let every origin in on a public host; a page elsewhere has no business here.
        if origin is not None and (
            origin.partition("://")[2] != request.headers.get("host") or self._is_rebound(request, origin)
        ):
            raise ApiError(403, "Requests from pages of other origins are not answered.")
        shown = request.headers.get("authorization", "")
        scheme, _, key = shown.partition(" ")
        if self._key is not None and not (
            scheme.lower() == "bearer" and hmac.compare_digest(key.encode("latin-1").strip(), self._key)
        ):
            raise ApiError(401, "A key is needed: Authorization: Bearer KEY.", code="invalid_api_key")
        if self._open > MAX_OPEN:
            raise Busy(f"{MAX_OPEN} requests are open already. Try again in a minute.")

    def _is_rebound(self, request: Request, origin: str) -> bool:
        """Whether a page elsewhere may have had its name resolved to this machine, so that Host is its name too.

        Where a key is needed the name may be that of a proxy on this machine: no page elsewhere has the key.
        """
        here, _ = request.scope.get("server") or ("", None)
        asking = re.sub(r":\d*$", "", origin.partition("://")[2]).strip("[]")
        return self._key is None and _is_loopback(here) and not _is_loopback(asking)

    async def _respond(self, request: Request) -> ASGIApp:
        path = request.path_params["path"].strip("/")
        top, _, model = path.partition("/")
        method = {"chat/completions": "POST"}.get(path, "GET" if top == "models" else None)
        if method is None:
            raise ApiError(404, "There is nothing here. Try POST /v1/chat/completions or GET /v1/models.")
        if request.method != method:
            raise ApiError(405, f"Only {method} is answered here.")
        engine = self._engine()
        if method == "POST":
            return await self._complete(request, engine)
        return _json(await self._in_thread(self._models, engine, model))

    def _engine(self) -> ServingEngine:
        engine = self._provider.engine()
        if engine is None:
            status = self._provider.status()
            code = "model_failed" if status.state == "failed" else "model_loading"
            raise ApiError(503, f"The model is not there: {without_folders(status.text).rstrip('.')}.", code=code)
        return engine

    def _models(self, engine: ServingEngine, wanted: str) -> dict[str, Any]:
        """The list of models, or the one that is wanted."""
        base = engine.base.fingerprint.name
        about = {"object": "model", "created": self._since, "owned_by": "llama-adapter"}
        text = f"The frozen base, {base}"
        models: list[dict[str, Any]] = [{"id": BASE, **about, "root": base, "visual": False, "description": text}]
        for name in self._store.names():
            try:
                card = self._store.card(name)
            except LoadError:
                continue  # it cannot be used either
            more = {"root": base, "visual": card.is_visual, "description": card.description}
            models.append({"id": name, **about, **more})
        if not wanted:
            return {"object": "list", "data": models}
        name = known(wanted, [model["id"] for model in models], base) or BASE
        return next(model for model in models if model["id"] == name)

    async def _complete(self, request: Request, engine: ServingEngine) -> ASGIApp:
        body = await _body(request)
        client = request.client.host if request.client else ""

        def submit() -> tuple[Asked, Answer]:
            asked = read(decode(body), self._store.names(), engine.base.fingerprint.name, client)
            try:
                return asked, engine.submit(asked.request)
            except TemplateError:  # some bases' templates want user and assistant to take turns
                raise ApiError(
                    400, "The base's chat template refuses these roles in this order.", "messages"
                ) from None

        asked, answer = await self._in_thread(submit)
        reply = _Reply(asked, answer)
        if not asked.stream:
            whole = await _until_gone(request.receive, reply.whole())
            if whole is None:
                raise ClientDisconnect
            return _json(whole)
        # What fails before the first event still gets a status of its own.
        if await _until_gone(request.receive, reply.begin()) is None:
            raise ClientDisconnect
        return reply

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        context = contextvars.copy_context()  # who asks is in it
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, work, *arguments)


class _Reply:
    """One answer in OpenAI's words: `whole`, or after `begin` an ASGI response of server-sent events."""

    def __init__(self, asked: Asked, answer: Answer) -> None:
        self._asked = asked
        self._answer = answer
        self._events = aiter(answer)
        self._first: GenerationEvent | None = None
        self._about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    async def whole(self) -> dict[str, Any]:
        text = ""
        with closing(self._answer):
            async for event in self._events:
                text += event.text
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _ending(event)}
        about = {**self._about, "object": "chat.completion"}
        return {**about, "choices": [choice], "usage": _usage(event.stats)}

    async def begin(self) -> bool:
        """Wait for the first event, so that what fails at once is raised here."""
        self._first = await anext(self._events)
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # X-Accel-Buffering: a proxy in between passes each event on at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = StreamingResponse(self._chunks(), headers=headers, media_type="text/event-stream")
        with closing(self._answer):
            # StreamingResponse itself notices that the client is gone only when it has something to send.
            await _until_gone(receive, response.stream_response(send))

    async def _chunks(self) -> AsyncIterator[str]:
        """An error in mid-stream is the last event."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            event = self._first
            assert event is not None
            while event.finish_reason is None:
                if event.text:
                    yield self._chunk({"content": event.text})
                event = await anext(self._events)
            ending = _ending(event)
            if event.text:
                yield self._chunk({"content": event.text})
            yield self._chunk({}, ending)
            if self._asked.include_usage:
                yield self._data(choices=[], usage=_usage(event.stats))
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield f"data: {json.dumps(_public(error)[1])}\n\n"

    def _chunk(self, delta: dict[str, str], ending: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ending}
        usage = {"usage": None} if self._asked.include_usage else {}
        return self._data(choices=[choice], **usage)

    def _data(self, **fields: Any) -> str:
        return f"data: {json.dumps({**self._about, 'object': 'chat.completion.chunk', **fields})}\n\n"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.removeprefix("::ffff:")).is_loopback
    except ValueError:
        return False


async def _until_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """The result of `work`; None, with `work` cancelled, if the client leaves before."""

    async def leaving() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _body(request: Request) -> bytes:
    too_large = ApiError(413, f"The body is larger than {MAX_BODY // 2**20} MB. Make the picture smaller.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY:
        raise too_large

    async def collected() -> bytes:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise too_large
        return bytes(body)

    try:
        return await asyncio.wait_for(collected(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.") from None


def _ending(event: GenerationEvent) -> str:
    if event.finish_reason not in _ENDINGS:
        raise Busy("The answer was cut off on the server. Ask again.")
    return _ENDINGS[event.finish_reason]


def _usage(stats: GenerationStats | None) -> dict[str, Any]:
    assert stats is not None
    prompt, new = stats.prompt_tokens, stats.new_tokens
    cached = {"cached_tokens": stats.cached_tokens}
    total = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
    return {**total, "prompt_tokens_details": cached}


def _public(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, without anything of this machine in it."""
    text, param, code = without_folders(str(error)), None, None
    if isinstance(error, ApiError):  # written here, and the addresses in it are the API's
        text, status, param, code = str(error), error.status, error.param, error.code
    elif isinstance(error, BadInput):
        status = 400
    elif isinstance(error, Busy):
        status, code = 429, "busy"
    elif isinstance(error, AdapterError):
        status = 500
    else:
        log.error("A request to /v1 failed", exc_info=error)
        status, text = 500, texts.FAILED
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": text, "type": kind, "param": param, "code": code}}


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # Not JSONResponse, which fails on the half characters that an error may repeat from a body.
    return Response(json.dumps(content), status, headers, "application/json")


def error_response(error: Exception) -> Response:
    """An error as OpenAI's client reads it."""
    status, body = _public(error)
    headers = {}
    if status in (429, 503) and body["error"]["code"] != "model_failed":
        headers["Retry-After"] = str(getattr(error, "retry_after", RETRY_SECONDS))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json(body, status, headers)
