"""The OpenAI endpoints: its own client against a scripted engine, garbage, and a real `python app.py`."""

import asyncio
import base64
import contextlib
import io
import json
import re
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import coffee
from starlette.applications import Starlette
from starlette.routing import Mount

import app
from adapter.base.llama import load_tokenizer
from adapter.errors import AdapterError, BadForm, Busy, Closing, ContextOverflow, EngineBroken, LoadError
from adapter.serve.detokenizer import TokenTexts
from adapter.serve.form import check_form
from adapter.serve.request import Answer, GenerationEvent, GenerationStats, Mailbox, TokenLogprob, TokenLogprobs
from adapter.serve.sampling import SamplingParams
from adapter.server import openai_api, openai_schema
from adapter.server.generation import DEFAULT_QUESTION, LoadStatus
from adapter.server.limits import Limits
from adapter.server.metrics import CountedEngine, Metrics
from adapter.server.openai_schema import ChatCompletionRequest, CompletionRequest
from tests.app_process import PATIENCE, ROOT, wait_until
from tests.base.hostile_pictures import encoded, png
from tests.fake_engine import FakeCatalog, ReadyProvider
from tests.server.asgi import asgi_client, limit, send
from tests.untrusted_json import ANY_JSON

HELLO = [{"role": "user", "content": "hello"}]
GOOD = {"model": "base", "messages": HELLO}
OF_ELSEWHERE = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://127.0.0.1:9/a"}}}


class Scripted:
    """An engine that says "you said: ", the last message and "!"."""

    def __init__(self) -> None:
        self.base = SimpleNamespace(fingerprint=SimpleNamespace(name="Tiny-LLaMA"), memory_bytes=2**20)
        self.requests: list[Any] = []
        self.at_once: Exception | None = None
        self.check_form: Callable[[str], None] = check_form

    def replicas(self) -> dict[str, Any]:
        return {}

    def submit(self, request: Any) -> Answer:
        if request.form:
            self.check_form(request.form)
        self.requests.append(request)
        if self.at_once:
            raise self.at_once
        mailbox = Mailbox()
        said = request.messages[-1].text if request.messages else ""
        threading.Thread(target=self.echo, args=(mailbox, said), daemon=True).start()
        return Answer(mailbox, lambda: None)

    def echo(self, mailbox: Mailbox, said: str) -> None:
        mailbox.put(GenerationEvent(position=0))
        mailbox.put(GenerationEvent("you said: ", 7, -0.1))
        mailbox.put(GenerationEvent(said, 7, -0.1))
        mailbox.put(GenerationEvent("!", 7, -0.1, "stop", GenerationStats(5, 3, 0.0, 0.0, 0.1, cached_tokens=2)))


@pytest.fixture(scope="module")
def openai() -> Any:
    return pytest.importorskip("openai")


@pytest.fixture
def engine() -> Scripted:
    return Scripted()


@pytest.fixture
def client(openai: Any, engine: Scripted, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """OpenAI's client of a page over `engine`, served as app.py serves it."""
    monkeypatch.delenv(openai_api.KEY_VARIABLE, raising=False)
    provider, store = ReadyProvider(engine), FakeCatalog()
    page = app.build_page(provider, store)
    routes = [Mount("/v1", openai_api.Api(provider, store))]
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, app_kwargs={"routes": routes})
    yield openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0)
    page.close(verbose=False)


def ask(
    engine: Any,
    method: str = "POST",
    path: str = "chat/completions",
    provider: Any = None,
    key: str | None = None,
    page: Any = None,
    **request: Any,
) -> httpx.Response:
    """One request without a server; json= or content=, headers= as httpx has them."""
    page = page or page_with(provider or ReadyProvider(engine), FakeCatalog(), key)
    return send(page, (method, f"/v1/{path}", request))[0]


def page_with(provider: Any, store: Any, key: str | None = None) -> Starlette:
    return Starlette(routes=[Mount("/v1", openai_api.Api(provider, store, key))])


def refused(response: httpx.Response, status: int) -> str:
    """The sentence of an error, which has OpenAI's shape."""
    error = response.json()["error"]
    assert response.status_code == status, response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text and error["message"]
    return error["message"]


def data_url(size: tuple[int, int] = (8, 6)) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(Image.new("RGB", size, "white"))).decode()


def shown(text: str, *urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}


def test_a_body_is_not_kept_while_its_answer_is_written(engine, monkeypatch):
    answer = openai_api._until_disconnect

    def weigh(*parts: Any) -> Any:
        wait_until(lambda: tracemalloc.get_traced_memory()[0] < 2**22)  # a thread lets go of it
        return answer(*parts)

    monkeypatch.setattr(openai_api, "_until_disconnect", weigh)
    png = base64.b64decode(data_url().partition(",")[2]) + bytes(2**23)
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    body = json.dumps({"model": "see", "messages": [shown("And this?", url)]}).encode()
    assert ask(engine, content=body).status_code == 200  # what is made once
    tracemalloc.start()
    assert ask(engine, content=body).status_code == 200
    tracemalloc.stop()


# OpenAI's own client.


def test_openai_client_answers_streams_and_models(client, engine):
    whole = client.chat.completions.create(
        model="poet", messages=HELLO, temperature=0.5, top_p=0.9, max_tokens=20, seed=7, stop=["\n"], user="me",
        extra_body={"strength": 0.5, "mix": {"see": 0.25}, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.2,
                    "others": "nothing"},
    )  # fmt: skip
    assert whole.choices[0].message.content == "you said: hello!" and whole.choices[0].finish_reason == "stop"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (5, 3, 8)
    assert whole.usage.prompt_tokens_details.cached_tokens == 2 and whole.model == "poet"
    request = engine.requests[0]
    assert request.others == "nothing"
    assert (request.adapter, request.strength) == ("poet", 0.5)
    assert (request.mix, request.stop) == ((("see", 0.25),), ("\n",))
    assert request.sampling == SamplingParams(0.5, 0.9, 20, 7, top_k=40, min_p=0.05, repetition_penalty=1.2)
    assert not request.end_repetition

    usage = {"include_usage": True}
    asked = {"stream": True, "stream_options": usage, "seed": -1, "extra_body": {"top_k": -1}}
    chunks = list(client.chat.completions.create(**GOOD, **asked))
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text for text in said if text) == "you said: hello!"
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.total_tokens == 8
    assert engine.requests[1].adapter is None and engine.requests[1].sampling.top_k == 0
    for first, seeds in ((-1, [None, None]), (-2, [-2, -1]), (2**63 - 1, [2**63 - 2, 2**63 - 1])):
        client.chat.completions.create(**GOOD, n=2, seed=first)
        assert [request.sampling.seed for request in engine.requests[-2:]] == seeds

    assert [model.id for model in client.models.list()] == ["base", "poet", "see"]
    assert client.models.retrieve("see").adapter["kind"] == "visual"
    assert client.models.retrieve("Tiny-LLaMA").id == "base"


@pytest.mark.parametrize("address, room, others", [("127.0.0.1", 1, 429), ("10.1.2.3", 2, 200)])
def test_large_bodies_share_their_memory_and_words_always_pass(engine, monkeypatch, address, room, others):
    """A network has half of it, so that slow bodies of one keep no others out."""
    page = page_with(ReadyProvider(engine), FakeCatalog())
    body = json.dumps(GOOD).encode()
    large = body + b" " * 2**21
    monkeypatch.setattr(openai_api, "BODIES_BYTES", room * (len(large) - openai_api.WORDS_BYTES))

    async def slowly(arrived: asyncio.Event, go_on: asyncio.Event) -> AsyncIterator[bytes]:
        yield large[:-1]
        arrived.set()  # it is asked for more
        await go_on.wait()
        yield large[-1:]

    async def together() -> None:
        arrived, go_on = asyncio.Event(), asyncio.Event()
        async with asgi_client(page, address) as client, asgi_client(page, "10.0.0.1") as other:
            post = partial(client.post, "/v1/chat/completions")
            first = asyncio.create_task(post(content=slowly(arrived, go_on)))
            waiting = asyncio.create_task(arrived.wait())
            await asyncio.wait({first, waiting}, return_when=asyncio.FIRST_COMPLETED)
            assert arrived.is_set(), "one large body has room"
            second = await post(content=large)
            assert "large requests" in refused(second, 429) and second.headers["retry-after"]
            assert (await other.post("/v1/chat/completions", content=large)).status_code == others
            assert (await post(content=body)).status_code == 200
            go_on.set()
            assert (await first).status_code == 200
            for _ in range(5):  # what was counted is given back
                assert (await post(content=large)).status_code == 200

    asyncio.run(together())


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_each_replica_has_places_for_programs(engine, monkeypatch, replicas):
    monkeypatch.setattr(openai_api, "MAX_OPEN", 3)
    engine.replicas = lambda: dict.fromkeys("ab"[:replicas])
    engine.echo = lambda *_: None  # answers do not end
    places = 3 * max(1, replicas)

    async def refused() -> list[int]:
        async with asgi_client(page_with(ReadyProvider(engine), FakeCatalog())) as client:
            asked = [
                asyncio.create_task(client.post("/v1/chat/completions", json=GOOD)) for _ in range(places + 1)
            ]
            done, held = await asyncio.wait(asked, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            for task in held:
                task.cancel()
            return [task.result().status_code for task in done]

    assert asyncio.run(refused()) == [429]


@pytest.mark.parametrize(("slow", "at_once"), [("picture", 4), ("form", 24)])
def test_words_do_not_wait_for_pictures_and_forms(engine, monkeypatch, slow, at_once):
    """Pictures that are decoded and forms that are checked have threads of their own."""
    begun, done = threading.Semaphore(0), threading.Event()

    def work(_: str) -> Image.Image:
        begun.release()
        assert done.wait(PATIENCE)
        return Image.new("RGB", (8, 6))

    monkeypatch.setattr(openai_schema, "_decode_picture", work)
    engine.check_form = work
    if slow == "picture":
        many = [{"model": "see", "messages": [shown("hello", data_url())]}] * 8
    else:
        many = [{**GOOD, "grammar": f'start: "{i}"'} for i in range(24)]

    async def answered() -> bool:
        async with asgi_client(page_with(ReadyProvider(engine), FakeCatalog())) as client:
            post = partial(client.post, "/v1/chat/completions")
            held = [asyncio.create_task(post(json=body)) for body in many]
            await asyncio.to_thread(lambda: [begun.acquire(timeout=PATIENCE) for _ in range(at_once)])
            words = [asyncio.create_task(each) for each in (client.get("/v1/models"), post(json=GOOD))]
            came, _ = await asyncio.wait(words, timeout=PATIENCE)
            done.set()
            assert {response.status_code for response in await asyncio.gather(*held, *words)} == {200}
            return len(came) == 2

    assert asyncio.run(answered())


# What a body may hold.


ALONE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url()}}]}
WHITE, QUESTION = {"role": "assistant", "content": "white", "name": "x"}, ("user", DEFAULT_QUESTION)
REFUSAL = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
TWO = shown("two", data_url((4, 3)))


@pytest.mark.parametrize(
    ("messages", "read", "size"),
    [
        (
            [{"role": "developer", "content": "Brief."}, shown("one", data_url()), WHITE, TWO, *HELLO],
            [("system", "Brief."), ("user", "one"), ("assistant", "white"), ("user", "two\n\nhello")],
            (4, 3),
        ),
        ([shown(" ", data_url().replace("data:", "DATA:").replace("base64", "BASE64"))], [QUESTION], (8, 6)),
        ([ALONE, WHITE, *HELLO], [QUESTION, ("assistant", "white"), ("user", "hello")], (8, 6)),
        ([ALONE, REFUSAL, *HELLO], [QUESTION, ("assistant", "No."), ("user", "hello")], (8, 6)),
    ],
)
def test_turns_are_joined_and_the_newest_picture_is_read(engine, messages, read, size):
    """A picture without a word asks what the page asks."""
    assert ask(engine, json={"model": "see", "messages": messages}).status_code == 200
    [request] = engine.requests
    assert [(m.role, m.text) for m in request.messages] == read
    assert {m.name for m in request.messages} == {None}, "no model of ours"
    assert request.image.size == size


TOOL = {"type": "function", "function": {"name": "go"}}


def test_a_tools_arguments_are_an_object_and_a_models_name_is_kept(engine):
    any_of = {"type": "function", "function": {"name": "go", "parameters": {}}}
    messages = [*HELLO, {**WHITE, "name": "see"}, *HELLO]
    body = {"model": "poet", "messages": messages, "tools": [any_of], "tool_choice": "required"}
    assert ask(engine, json=body).status_code == 200
    [request] = engine.requests
    assert '"type": "object"' in request.form and request.messages[1].name == "see"
    for parameters, closed in (({"properties": {}}, True), ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, False)):
        any_of["function"]["parameters"] = parameters
        assert ask(engine, json=body).status_code == 200
        assert ("additionalProperties" in engine.requests[-1].form) == closed


def test_v1_is_found_where_a_proxy_strips_the_prefix(engine):
    api = Mount("/v1", openai_api.Api(ReadyProvider(engine), FakeCatalog()))
    served = FastAPI(routes=[api], root_path="/llama")
    for path in ("/v1/models", "/llama/v1/models"):
        assert send(served, ("GET", path, {}))[0].status_code == 200


def test_what_other_programs_send_is_taken(engine):
    """Continue's limit, lm-eval's five stop texts, a text that was cut inside an emoji, llama.cpp's schema."""
    body = {**GOOD, "max_tokens": 4096, "stop": ["a", "b", "c", "d", "e"]}
    text = json.dumps(body | {"messages": [{"role": "user", "content": "half \ud83d of it"}]})
    form = {"type": "json_object", "schema": {"properties": {"a": {"type": "integer", "maximum": 2**53 - 1}}}}
    for path, sent in (
        ("completions/", {"content": text}),
        ("completions", {"json": body | {"response_format": form}}),
    ):
        assert ask(engine, path=f"chat/{path}", **sent).status_code == 200
    halved, formed = engine.requests
    assert halved.messages[0].text == "half ? of it" and '"a"' in formed.form
    assert halved.sampling.max_new_tokens == 2048 and len(halved.stop) == 5


HUGE = base64.b64encode(png(9_000, 9_000, 1, 0)).decode()


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"messages": [shown("x", "https://example.org/cat.png")]}, 400, "data URLs"),
        ({"messages": [shown("x", "data:image/png;base64," + HUGE)]}, 400, "egapixels"),
        ({"messages": [{"role": "user", "content": "x" * 20_001}]}, 400, "20,001 characters"),
        ({"model": "nobody"}, 404, "nobody"),
        ({"top_logprobs": 2}, 400, "needs logprobs"),
        ({"n": 21}, 400, "'n': Input should be less than or equal to 20"),
        ({"stop": ["x"] * 17}, 400, "'stop': List should have at most 16 items"),
        ({"logit_bias": {"a": 1}}, 400, "'logit_bias.a"),
        ({"tool_choice": "required", "tools": [TOOL, TOOL]}, 400, "no model here chooses"),
        ({"tool_choice": "required", "tools": [TOOL], "presence_penalty": 1}, 400, "no 'presence_penalty'"),
        ({"others": "some"}, 400, "'others': Input should be 'first sentence', 'all' or 'nothing'"),
        ({"mix": {"nobody": 1}}, 400, "nobody"),
        ({"response_format": OF_ELSEWHERE}, 400, "nothing is fetched"),
        ({"grammar": 'start: "a"', "response_format": {"type": "json_object"}}, 400, "either response_format or"),
    ],
)
def test_invalid_fields_are_refused_by_name(engine, changed, status, words):
    assert words in refused(ask(engine, json={**GOOD, **changed}), status)
    assert not engine.requests


def test_another_method_is_told_which_there_are(engine):
    [response] = send(page_with(ReadyProvider(engine), FakeCatalog()), ("DELETE", "/v1/models", {}))
    assert response.status_code == 405 and response.headers["allow"] == "GET"
    assert "takes other methods" in response.json()["error"]["message"]


def test_offsets_are_places_in_the_text_behind_halves_of_characters_and_control_tokens():
    tokenizer = load_tokenizer()
    texts, base, text = TokenTexts(tokenizer), SimpleNamespace(tokenizer=tokenizer), "naïve 🦙 then"
    prompt = [TokenLogprobs(texts.logprob(i, -1.0), ()) for i in tokenizer(text).input_ids]
    said = [(" on", " on"), ("<|im_start|>", ""), (" and", " and")]
    events = [GenerationEvent()]
    events += [GenerationEvent(t, 1, choices=TokenLogprobs(TokenLogprob(1, name, -1.0), ())) for name, t in said]
    events[-1] = replace(events[-1], finish_reason="stop")
    asked = CompletionRequest(model="base", prompt=text, max_tokens=3, echo=True, logprobs=0)
    for begin in [], [TokenLogprobs(TokenLogprob(0, "<s>", -1.0), ())]:  # which the text lacks
        events[0] = GenerationEvent(prompt_logprobs=(*begin, *prompt), position=0)
        offsets = asked.choice(0, events, base)["logprobs"]["text_offset"]
        assert offsets[len(begin + prompt) - 1 :] == [text.index(" then"), *(len(text) + n for n in (0, 3, 3))]


def test_a_form_is_counted_before_it_is_checked(engine, monkeypatch):
    limit(monkeypatch, answer=2)
    checked: list[str] = []

    def refuse(form: str) -> None:
        checked.append(form)
        raise BadForm("No.")

    engine.check_form = refuse
    counted: Any = CountedEngine(engine, Limits(public=True), Metrics(FakeCatalog()))
    page = page_with(ReadyProvider(counted), FakeCatalog())
    asked = [ask(engine, json={**GOOD, "grammar": "x"}, page=page) for _ in range(3)]
    assert [response.status_code for response in asked] == [400, 400, 429] and checked == ["x", "x"]
    assert asked[0].json()["error"]["param"] == "grammar"


PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url"])},
    optional={"text": ANY_JSON, "image_url": st.fixed_dictionaries({"url": ANY_JSON})},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user"]) | ANY_JSON, "content": st.text() | st.lists(PART) | ANY_JSON}
)
BODY = st.fixed_dictionaries(
    {"model": st.sampled_from(["base", "poet"]) | ANY_JSON, "messages": st.lists(MESSAGE, max_size=3) | ANY_JSON},
    optional=dict.fromkeys(ChatCompletionRequest.model_fields.keys() - {"model", "messages"}, ANY_JSON),
)
RAW_BODY = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["base", "poet"]),
        "prompt": st.text() | st.lists(st.integers() | st.text()) | ANY_JSON,
    },
    optional=dict.fromkeys(CompletionRequest.model_fields.keys() - {"model", "prompt"}, ANY_JSON),
)
ONE_PAGE = page_with(ReadyProvider(Scripted()), FakeCatalog())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@example(b"[" * 100_000)
@example(b'{"seed": ' + b"9" * 5000 + b"}")
@given(st.binary(max_size=60) | (BODY | RAW_BODY | ANY_JSON).map(lambda value: json.dumps(value).encode()))
def test_fuzz_bodies(body):
    for path in ("chat/completions", "completions"):
        response = ask(None, content=body, page=ONE_PAGE, path=path)
        assert response.status_code in (200, 400, 404), response.text
        if response.status_code != 200:
            refused(response, response.status_code)


# Who may ask, and when.


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (Busy("Full."), 429, "busy", True),
        (Closing(), 503, "closing", True),
        (ContextOverflow("9 tokens."), 400, "context_length_exceeded", False),  # by which LangChain shortens
        (LoadError("Adapter 'poet' is broken.", "/home/secret"), 500, None, False),
        (RuntimeError("secret /home/me/x.py"), 500, None, False),
        (EngineBroken("It has stopped."), 503, "model_failed", False),  # no client asks again by itself
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_engine(engine, error, status, code, retry, stream):
    engine.at_once = error
    response = ask(engine, json={**GOOD, "stream": stream})
    said = refused(response, status)
    assert "secret" not in response.text and response.json()["error"]["code"] == code
    assert ("retry-after" in response.headers) == retry
    if isinstance(error, AdapterError):
        assert said == str(error)
        engine.at_once = None  # it comes while the answer still waits
        engine.echo = lambda mailbox, _: [mailbox.put(e) for e in (GenerationEvent(position=3), error)]
        assert refused(ask(engine, json={**GOOD, "stream": stream}), status) == said
    assert ask(engine, "GET", "models").status_code == 200


@pytest.mark.parametrize(("method", "path"), [("POST", "chat/completions"), ("GET", "models")])
@pytest.mark.parametrize(("state", "retry"), [("loading", True), ("failed", False)])
def test_a_model_that_is_not_there(method, path, state, retry):
    provider = SimpleNamespace(engine=lambda: None, status=lambda: LoadStatus(state, "Loading (3 s)"))
    response = ask(None, method, path, provider)
    assert "Loading (3 s)" in refused(response, 503) and ("retry-after" in response.headers) == retry


@pytest.mark.parametrize(
    ("variable", "password", "shown", "status"),
    [
        ("", "me:secret", "Bearer me:secre", 401),
        ("", "me:secret", "bearer  me:secret", 200),
        ("", None, None, 200),
        ("voilà", None, "Bearer voilà", 200),
    ],
)
def test_bearer_key(engine, monkeypatch, variable, password, shown, status):
    monkeypatch.setenv(openai_api.KEY_VARIABLE, variable)
    headers = {} if shown is None else {"Authorization": shown.encode()}
    response = ask(engine, "GET", "models", key=password, headers=headers)
    assert response.status_code == status
    assert (response.headers.get("www-authenticate") == "Bearer") == (status == 401)


# The whole program.


@pytest.mark.slow
def test_programs_in_the_documents_run(openai, url, tmp_path, monkeypatch):
    """Every Python example of README.md and docs/api.md runs as it stands there but for the port."""
    Image.fromarray(coffee()).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    client = openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=30)
    assert len(client.models.list().data) > 1  # the model is there
    for document, count in (("README.md", 3), ("docs/api.md", 5)):
        text = (ROOT / document).read_text(encoding="utf-8")
        programs = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        assert len(programs) == count, document
        names: dict[str, Any] = {}  # a program may continue the one before it
        for program in programs:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(program.replace("http://127.0.0.1:7860", url.rstrip("/")), names)
            assert len(printed.getvalue().split()) > 3, program
            if ".models.list()" in program:
                assert "pirate" in printed.getvalue().splitlines()[0]
