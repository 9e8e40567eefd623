"""OpenAI's completions beside the page: a FastAPI application below /v1."""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapter.errors import AdapterError, BadForm, BadInput, Busy, Closing, ContextOverflow, EngineBroken, LoadError
from adapter.serve.request import GenerationEvent, GenerationRequest, GenerationStats, async_event_lists
from adapter.server import openai_schema
from adapter.server.generation import FAILED, AdapterCatalog, EngineProvider, browser_text, client_of
from adapter.server.openai_schema import BASE, ApiError, Body
from adapter.server.request_body import bounded

if TYPE_CHECKING:
    from adapter.server.generation import ServingEngine

log = logging.getLogger(__name__)
T = TypeVar("T")

KEY_VARIABLE = "LLAMA_ADAPTER_API_KEY"
NO_KEY = "A key is needed: Authorization: Bearer KEY."
MAX_BODY = 32 * 2**20  # a picture of the largest size as base64, and words
MAX_OPEN = 48  # requests at once, for each engine, whose other places are left to the page
BODIES_BYTES = 128 * 2**20  # of all bodies in memory, half of one network, without the first WORDS_BYTES of each
WORDS_BYTES = 2**18
CHUNK_SECONDS = 0.05  # between two chunks of a stream: of a fast answer each has several tokens
_REFUSALS: dict[type[AdapterError], tuple[int, str | None]] = {
    ContextOverflow: (400, "context_length_exceeded"),
    BadInput: (400, None),
    Closing: (503, "closing"),
    Busy: (429, "busy"),
    EngineBroken: (503, "model_failed"),
}


def find_key(auth: str | None) -> bytes | None:
    """The key that a client must show, see `Api`."""
    key = os.environ.get(KEY_VARIABLE, "").strip() or auth
    return None if key is None else key.encode().strip()  # no header ends in a blank


def shows_key(request: Request, key: bytes) -> bool:
    """Whether a request has the header Authorization: Bearer KEY."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.encode("latin-1").strip(), key)


class Api:
    """An ASGI application for /v1. Checks the key and the number of open requests before it reads a body. Each is
    submitted in a thread of its own: slow pictures and grammars block neither the event loop nor others' texts.
    """

    def __init__(
        self,
        provider: EngineProvider,
        store: AdapterCatalog,
        auth: str | None = None,
        prepare: Callable[[Request], None] = lambda request: None,
    ) -> None:
        """A client's key is LLAMA_ADAPTER_API_KEY, or else the page's USER:PASS; without both none is asked for.
        prepare: called with a request in the context in which the engine is asked.
        """
        self._provider, self._store, self._key, self._prepare = provider, store, find_key(auth), prepare
        self._pool = ThreadPoolExecutor(8 * MAX_OPEN, "openai-api")
        self._open = 0  # requests
        self._bytes: Counter[str] = Counter()  # of the bodies that are read or parsed, by network
        self._since = int(time.time())
        self._routes = FastAPI(openapi_url=None)  # docs/api.md is the documentation
        self._add_completions("/chat/completions", openai_schema.ChatCompletionRequest)
        self._add_completions("/completions", openai_schema.CompletionRequest)

        @self._routes.get("/models")
        @self._routes.get("/models/{name:path}")
        async def models(name: str = "") -> Response:
            engine = self._engine()
            return _json(await self._in_thread(lambda: self._models(engine, name.strip("/"))))

        async def answer_error(request: Request, error: Exception) -> Response:
            return error_response(error)

        for kind in (ApiError, AdapterError, HTTPException, Exception):
            self._routes.add_exception_handler(kind, answer_error)

    def _add_completions(self, path: str, kind: type[Body]) -> None:
        # The body is read by hand: within a limit of bytes and seconds, and parsed in a thread.
        @self._routes.post(path)
        async def completions(request: Request) -> Response:
            completion = await self._begin(request, kind, self._engine())
            if not completion.body.stream:
                events = await _until_disconnect(request, completion.events())
                # Log-probabilities of twenty long answers are 60 MB.
                return await self._in_thread(lambda: _json(completion.whole(events)))
            chunks = completion.chunks()
            # What fails before the first chunk still gets a status of its own.
            first = await _until_disconnect(request, anext(chunks))
            headers = {"Cache-Control": "no-cache"}
            # A client that takes nothing for a minute holds its place no longer.
            return EventSourceResponse(_chain(first, chunks), headers=headers, sep="\n", send_timeout=60)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/")
        if path.startswith("/v1/"):  # a proxy has stripped the page's prefix, which root_path has still
            scope = {**scope, "root_path": "/v1", "path": path}
        self._open += 1
        try:
            if self._key is not None and not shows_key(Request(scope), self._key):
                raise ApiError(401, NO_KEY, code="invalid_api_key")
            engine = self._provider.engine()
            most = MAX_OPEN * max(1, 0 if engine is None else len(engine.replicas()))
            if self._open > most:
                raise Busy(f"{most} requests are open already. Try again in a minute.")
            await self._routes(scope, receive, send)
        except (ApiError, Busy) as error:
            await error_response(error)(scope, receive, send)
        except (ClientDisconnect, TimeoutError):  # it reads no more
            pass
        except Exception as error:
            # FastAPI has answered it already, and raises it once more.
            log.error("A request to /v1 failed", exc_info=error)
        finally:
            self._open -= 1

    def _engine(self) -> ServingEngine:
        if (engine := self._provider.engine()) is not None:
            return engine
        status = self._provider.status()
        code = "model_failed" if status.state == "failed" else "model_loading"
        raise ApiError(503, f"The model is not there: {status.text.rstrip('.')}.", code=code)

    @asynccontextmanager
    async def _read(self, request: Request) -> AsyncIterator[bytearray]:
        """Yields the body, whose bytes count until the block ends but for WORDS_BYTES, so that pictures keep no
        words out. Raises ApiError, and Busy for too many.
        """
        body, mine, client = bytearray(), 0, client_of(request)
        too_long = f"The body is larger than {MAX_BODY // 2**20} MB. Make the picture smaller."
        try:
            async for piece in Request(request.scope, bounded(request.receive, MAX_BODY, too_long)).stream():
                body += piece
                more = max(0, len(body) - WORDS_BYTES) - mine
                most = BODIES_BYTES - self._bytes.total()
                if not client.is_local:
                    most = min(most, BODIES_BYTES // 2 - self._bytes[client.network])
                if more > 0 and more > most:
                    raise Busy("Many large requests are being read already. Try again in a minute.")
                mine += more
                self._bytes[client.network] += more
            yield body
        finally:
            self._bytes -= {client.network: mine}

    async def _begin(self, request: Request, kind: type[Body], engine: ServingEngine) -> _RunningCompletion:
        async with self._read(request) as raw:  # it is in memory no longer than this
            return await self._in_thread(lambda: self._submit(request, openai_schema.parse(raw, kind), engine))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._pool, run, work)

    def _submit(self, request: Request, body: Body, engine: ServingEngine) -> _RunningCompletion:
        self._prepare(request)
        requests = body.to_requests(self._store.names(), engine.base, client_of(request))
        try:
            return _RunningCompletion(body, requests, engine)
        except BadForm as error:
            raise ApiError(400, browser_text(error), body.form_field) from error

    def _models(self, engine: ServingEngine, wanted: str) -> dict[str, Any]:
        """The models in OpenAI's fields, and in `adapter` ours; or the one that is wanted. Raises ApiError."""
        base = engine.base.fingerprint
        about = {"object": "model", "created": self._since, "owned_by": "llama-adapter", "root": base.name}

        def model(name: str, kind: str, description: str, size: int, fingerprint: object) -> dict[str, Any]:
            given = {"kind": kind, "description": description, "bytes": size, "fingerprint": vars(fingerprint)}
            return {"id": name, **about, "adapter": given}

        models = {BASE: model(BASE, "base", f"The frozen base, {base.name}", engine.base.memory_bytes, base)}
        for name in self._store.names():
            with suppress(LoadError):  # it cannot be used either
                card = self._store.card(name)
                if name == base.name or card.config.base.differences(base):
                    continue
                kind = "visual" if card.config.is_visual else "text"
                models.setdefault(name, model(name, kind, card.description, card.bytes, card.config.base))
        if not wanted:
            return {"object": "list", "data": list(models.values())}
        return models[openai_schema.find_model(wanted, models, base.name) or BASE]


class _RunningCompletion:
    """The engine's answers to one request as OpenAI's JSON: whole, or as the chunks of a stream."""

    def __init__(self, body: Body, requests: list[GenerationRequest], engine: ServingEngine) -> None:
        """Starts all answers, or none."""
        self.body, self._base = body, engine.base
        self._ended: dict[int, GenerationStats] = {}
        with ExitStack() as begun:
            self._answers = [begun.enter_context(closing(engine.submit(request))) for request in requests]
            self._open = begun.pop_all()
        self._events = async_event_lists(dict(enumerate(self._answers)), CHUNK_SECONDS)
        self._name = body.object_name
        self._about = {
            "id": f"{'cmpl' if self._name == 'text_completion' else 'chatcmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }

    async def events(self) -> list[list[GenerationEvent]]:
        """Returns the events of each answer once all have ended."""
        found: list[list[GenerationEvent]] = [[] for _ in self._answers]
        with self._open:
            async for index, events in self._events:
                found[index] += events
                self._count(index, events)
        return found

    def whole(self, found: list[list[GenerationEvent]]) -> dict[str, Any]:
        choices = [self.body.choice(index, events, self._base) for index, events in enumerate(found)]
        return {**self._about, "object": self._name, "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, str]]:
        """Server-sent events. An error is raised in place of the first one; after it, it is the last one."""
        begun: set[int] = set()
        include_usage = self.body.stream_options.include_usage
        with self._open:
            try:
                async for index, events in self._events:
                    self._count(index, events)
                    if not any(event.is_output or event.prompt_logprobs for event in events):
                        continue  # it waits, or its prompt is being read
                    for choice in self.body.chunks(index, events, self._base, index not in begun):
                        begun.add(index)
                        yield self._data(choices=[choice], **({"usage": None} if include_usage else {}))
                if include_usage:
                    yield self._data(choices=[], usage=self._usage())
                yield {"data": "[DONE]"}
            except Exception as error:
                if not begun:
                    raise
                if not isinstance(error, (AdapterError, ApiError)):
                    log.error("A stream of /v1 failed", exc_info=error)
                yield {"data": json.dumps(_public(error)[1])}

    def _data(self, **fields: Any) -> dict[str, str]:
        name = f"{self._name}.chunk" if self._name == "chat.completion" else self._name
        return {"data": json.dumps({**self._about, "object": name, **fields})}

    def _count(self, index: int, events: list[GenerationEvent]) -> None:
        if (stats := events[-1].stats) is not None:
            self._ended[index] = stats

    def _usage(self) -> dict[str, Any]:
        """A prompt counts once, however many choices it has."""
        prompts = [self._ended[index] for index in range(0, len(self._ended), self.body.n)]
        prompt = sum(s.prompt_tokens for s in prompts)
        new = sum(s.new_tokens for s in self._ended.values()) if self.body.max_tokens else 0
        cached = {"cached_tokens": sum(s.cached_tokens for s in prompts)}
        total = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
        return {**total, "prompt_tokens_details": cached}


async def _chain(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for item in rest:
        yield item


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


def _public(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, without anything of this machine in it."""
    status, text, param, code = 500, FAILED, None, None
    if isinstance(error, ApiError):  # written here, and the addresses in it are the API's
        status, text, param, code = error.status, str(error), error.param, error.code
    elif isinstance(error, AdapterError):
        text = browser_text(error)
        status, code = next((found for kind, found in _REFUSALS.items() if isinstance(error, kind)), (500, None))
    elif isinstance(error, HTTPException):
        status = error.status_code
        what = "This address takes other methods" if status == 405 else "There is nothing here"
        text = f"{what}. Try POST /v1/chat/completions, POST /v1/completions or GET /v1/models."
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": text, "type": kind, "param": param, "code": code}}


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Not JSONResponse: half a character, which an address may hold, is written as its escape.
    return Response(json.dumps(content), status, headers, "application/json")


def error_response(error: Exception) -> Response:
    """An error as OpenAI's client reads it."""
    status, body = _public(error)
    headers = dict(getattr(error, "headers", None) or {})
    if status in (429, 503) and body["error"]["code"] != "model_failed":
        headers["Retry-After"] = str(getattr(error, "retry_after", 5))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json(body, status, headers)
