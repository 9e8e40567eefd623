"""OpenAI's chat completions beside the page: a FastAPI application below /v1.

Knows HTTP and the engine; what a body means is in openai_schema.py. Imports no Gradio.
"""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from fastapi import FastAPI
from jinja2 import TemplateError
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.errors import AdapterError, BadForm, BadInput, Busy, EngineBroken, LoadError
from adapter.server import texts
from adapter.server.generation import AdapterCatalog, EngineProvider, browser_text, client_of
from adapter.server.openai_schema import BASE, ApiError, ChatCompletionRequest, find_model, parse

if TYPE_CHECKING:
    from adapter.serve.request import Answer, GenerationEvent, GenerationStats
    from adapter.server.loader import ServingEngine

log = logging.getLogger(__name__)
T = TypeVar("T")

KEY_VARIABLE = "LLAMA_ADAPTER_API_KEY"
NO_KEY = "A key is needed: Authorization: Bearer KEY."
MAX_BODY = 32 * 2**20  # a picture of the largest size as base64, and words
MAX_OPEN = 48  # requests at once; the engine's other places are left to the page
BODY_SECONDS = 60.0
BODIES_BYTES = 128 * 2**20  # of all bodies in memory, without the first WORDS_BYTES of each
WORDS_BYTES = 2**18
RETRY_SECONDS = 5
CHUNK_SECONDS = 0.05  # between two chunks of a stream: of a fast answer each has several tokens
_FINISH_REASONS: dict[str | None, str] = {"stop": "stop", "length": "length", "time": "length"}


def mount(
    provider: EngineProvider,
    store: AdapterCatalog,
    auth: str | None = None,
    prepare: Callable[[Request], None] = lambda request: None,
) -> Mount:
    """Everything below /v1, for the page's server.

    The key that a client must show is LLAMA_ADAPTER_API_KEY, or else the page's USER:PASS; without both none is.
    prepare: called with each request in the context in which the engine is asked.
    """
    return Mount("/v1", _Guard(create_app(provider, store, prepare), find_key(auth)))


def find_key(auth: str | None) -> bytes | None:
    """The key that a client must show, see `mount`."""
    key = os.environ.get(KEY_VARIABLE, "").strip() or auth
    return None if key is None else key.encode().strip()  # no header ends in a blank


def shows_key(request: Request, key: bytes) -> bool:
    """Whether a request has the header Authorization: Bearer KEY."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.encode("latin-1").strip(), key)


def create_app(
    provider: EngineProvider, store: AdapterCatalog, prepare: Callable[[Request], None] = lambda request: None
) -> FastAPI:
    """The routes; errors have OpenAI's shape. The schema is at /openapi.json."""
    # Without the pages of documentation, which load their scripts from elsewhere.
    api = FastAPI(title="LLaMA-Adapter", docs_url=None, redoc_url=None)
    requests = _Requests(provider, store, prepare)
    # The body is read by hand: within a limit of bytes and seconds, and parsed in a thread.
    documented = {"content": {"application/json": {"schema": ChatCompletionRequest.model_json_schema()}}}

    @api.post("/chat/completions", openapi_extra={"requestBody": {**documented, "required": True}})
    async def chat_completions(request: Request) -> Response:
        completion, stream = await requests.begin(request)
        if not stream:
            return _json(await _until_disconnect(request, completion.whole()))
        # What fails before the first event still gets a status of its own.
        first = await _until_disconnect(request, completion.first_events())
        return EventSourceResponse(completion.chunks(first), headers={"Cache-Control": "no-cache"}, sep="\n")

    @api.get("/models")
    @api.get("/models/{name:path}")
    async def models(name: str = "") -> Response:
        return _json(await requests.models(name.strip("/")))

    async def answer_error(request: Request, error: Exception) -> Response:
        return error_response(error)

    for kind in (ApiError, AdapterError, HTTPException, Exception):
        api.add_exception_handler(kind, answer_error)
    return api


class _Requests:
    """Reads requests and gives them to the engine, in threads: the page shares the event loop.

    Pictures wait for each other to be decoded, and words do not wait for pictures. A form that is new is tried for
    seconds, or waits for others: nobody waits for a thread of these.
    """

    def __init__(
        self, provider: EngineProvider, store: AdapterCatalog, prepare: Callable[[Request], None]
    ) -> None:
        self._provider, self._store, self._prepare = provider, store, prepare
        self._words = ThreadPoolExecutor(4, "openai-api")
        self._pictures = ThreadPoolExecutor(4, "openai-api-pictures")
        self._forms = ThreadPoolExecutor(MAX_OPEN, "openai-api-forms")
        self._bodies = _BodyMemory()
        self._since = int(time.time())

    async def begin(self, request: Request) -> tuple[_Completion, bool]:
        """Submits a request; tells whether it is to be streamed. The body is in memory only until it returns."""
        engine = self._engine()
        with self._bodies.counted() as count:
            raw = await _read_body(request, count)
            body = await _in_thread(self._words, lambda: parse(raw))
            pool = self._forms if body.form_field else self._pictures if body.has_picture else self._words
            return await _in_thread(pool, lambda: self._submit(request, body, engine))

    async def models(self, wanted: str) -> dict[str, Any]:
        """As `_models`."""
        engine = self._engine()
        return await _in_thread(self._words, lambda: _models(engine, self._store, self._since, wanted))

    def _engine(self) -> ServingEngine:
        if (engine := self._provider.engine()) is not None:
            return engine
        status = self._provider.status()
        code = "model_failed" if status.state == "failed" else "model_loading"
        raise ApiError(503, f"The model is not there: {status.text.rstrip('.')}.", code=code)

    def _submit(
        self, request: Request, body: ChatCompletionRequest, engine: ServingEngine
    ) -> tuple[_Completion, bool]:
        self._prepare(request)
        generation = body.to_request(self._store.names(), engine.base.fingerprint.name, client_of(request))
        try:
            return _Completion(body, engine.submit(generation)), body.stream
        except TemplateError:  # some bases' templates want user and assistant to take turns
            said = "The base's chat template refuses these roles in this order."
            raise ApiError(400, said, "messages") from None
        except BadForm as error:
            raise ApiError(400, browser_text(error), body.form_field) from error


async def _in_thread(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, contextvars.copy_context().run, work)


class _Guard:
    """ASGI middleware: admits requests by key and number, before anything of them is read."""

    def __init__(self, app: ASGIApp, key: bytes | None) -> None:
        self._app = app
        self._key = key
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # FastAPI closes web sockets, for which there is no route
            await self._app(scope, receive, send)
            return
        self._open += 1
        try:
            try:
                self._admit(Request(scope))
            except (ApiError, Busy) as error:
                await error_response(error)(scope, receive, send)
                return
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass
        except Exception as error:
            # FastAPI has answered it already, and raises it once more.
            log.error("A request to /v1 failed", exc_info=error)
        finally:
            self._open -= 1

    def _admit(self, request: Request) -> None:
        if self._key is not None and not shows_key(request, self._key):
            raise ApiError(401, NO_KEY, code="invalid_api_key")
        if self._open > MAX_OPEN:
            raise Busy(f"{MAX_OPEN} requests are open already. Try again in a minute.")


class _Completion:
    """One answer of the engine as OpenAI's JSON: whole, or as the chunks of a stream."""

    def __init__(self, body: ChatCompletionRequest, answer: Answer) -> None:
        self._answer = answer
        self._events = answer.async_event_lists(CHUNK_SECONDS)
        self._include_usage = body.stream_options.include_usage
        self._about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}

    async def whole(self) -> dict[str, Any]:
        text = ""
        with closing(self._answer):
            async for events in self._events:
                text += _text(events)
        event = events[-1]
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(event)}
        return {**self._about, "object": "chat.completion", "choices": [choice], "usage": _usage(event.stats)}

    async def first_events(self) -> list[GenerationEvent]:
        return await anext(self._events)

    async def chunks(self, events: list[GenerationEvent]) -> AsyncIterator[dict[str, str]]:
        """Server-sent events from the first events of the engine on. An error in mid-stream is the last one."""
        with closing(self._answer):
            try:
                yield self._chunk({"role": "assistant", "content": ""})
                while (last := events[-1]).finish_reason is None:
                    if text := _text(events):
                        yield self._chunk({"content": text})
                    events = await anext(self._events)
                finish_reason = _finish_reason(last)
                if text := _text(events):
                    yield self._chunk({"content": text})
                yield self._chunk({}, finish_reason)
                if self._include_usage:
                    yield self._data(choices=[], usage=_usage(last.stats))
                yield {"data": "[DONE]"}
            except Exception as error:
                yield {"data": json.dumps(_public(error)[1])}

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, str]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._data(choices=[choice], **({"usage": None} if self._include_usage else {}))

    def _data(self, **fields: Any) -> dict[str, str]:
        return {"data": json.dumps({**self._about, "object": "chat.completion.chunk", **fields})}


def _models(engine: ServingEngine, store: AdapterCatalog, since: int, wanted: str) -> dict[str, Any]:
    """The list of models, or the wanted one. Raises ApiError if there is none of that name."""
    base = engine.base.fingerprint.name
    about = {"object": "model", "created": since, "owned_by": "llama-adapter", "root": base}
    models: list[dict[str, Any]] = [
        {"id": BASE, **about, "visual": False, "description": f"The frozen base, {base}"}
    ]
    for name in store.names():
        try:
            card = store.card(name)
        except LoadError:
            continue  # it cannot be used either
        models.append({"id": name, **about, "visual": card.is_visual, "description": card.description})
    if not wanted:
        return {"object": "list", "data": models}
    name = find_model(wanted, [model["id"] for model in models], base) or BASE
    return next(model for model in models if model["id"] == name)


async def _until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`. Raises ClientDisconnect, with `work` cancelled, if the client leaves before."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class _BodyMemory:
    """Counts the bytes of bodies that are read or parsed. Used in the event loop only."""

    def __init__(self) -> None:
        self._taken = 0

    @contextmanager
    def counted(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that counts the bytes of one body so far, until the block ends; it raises Busy.

        The first WORDS_BYTES are free, so that nobody's pictures keep words out.
        """
        mine = 0

        def count(size: int) -> None:
            nonlocal mine
            more = max(0, size - WORDS_BYTES) - mine
            if more > 0 and self._taken + more > BODIES_BYTES:
                raise Busy("Many large requests are being read already. Try again in a minute.")
            mine += more
            self._taken += more

        try:
            yield count
        finally:
            self._taken -= mine


async def _read_body(request: Request, count: Callable[[int], None]) -> bytes | bytearray:
    """count: called with the bytes so far."""
    too_large = ApiError(413, f"The body is larger than {MAX_BODY // 2**20} MB. Make the picture smaller.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY:
                    raise too_large
                count(len(body))
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.") from None
    return body


def _text(events: list[GenerationEvent]) -> str:
    return "".join(event.text for event in events)


def _finish_reason(event: GenerationEvent) -> str:
    if event.finish_reason not in _FINISH_REASONS:
        raise Busy("The answer was cut off on the server. Ask again.")
    return _FINISH_REASONS[event.finish_reason]


def _usage(stats: GenerationStats | None) -> dict[str, Any]:
    assert stats is not None
    prompt, new = stats.prompt_tokens, stats.new_tokens
    cached = {"cached_tokens": stats.cached_tokens}
    total = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
    return {**total, "prompt_tokens_details": cached}


def _public(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, without anything of this machine in it."""
    status, text, param, code = 500, texts.FAILED, None, None
    if isinstance(error, AdapterError):
        text = browser_text(error)
    if isinstance(error, ApiError):  # written here, and the addresses in it are the API's
        text, status, param, code = str(error), error.status, error.param, error.code
    elif isinstance(error, HTTPException):
        status = error.status_code
        if status == 405:
            text = f"Only {(error.headers or {}).get('Allow', 'GET')} is answered here."
        else:
            text = "There is nothing here. Try POST /v1/chat/completions or GET /v1/models."
    elif isinstance(error, BadInput):
        status = 400
    elif isinstance(error, Busy):
        status, code = 429, "busy"
    elif isinstance(error, EngineBroken):
        status, code = 503, "model_failed"
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
