"""Clients of others, unchanged, against a server of the tiny model: log-probabilities, tools and raw prompts."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from adapter.method.checkpoint import load_adapter, save_adapter
from adapter.serve.engine import Engine
from adapter.serve.store import AdapterStore
from adapter.server import openai_api
from tests.app_process import PATIENCE, wait_until
from tests.fake_engine import ReadyProvider
from tests.tiny_models import random_adapter

pytestmark = pytest.mark.slow

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SHORT: dict[str, Any] = {"model": "one", "messages": HELLO, "temperature": 0, "max_tokens": 6}


class City(BaseModel):
    """A city."""

    name: Literal["Rome", "Oslo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_fingerprint: Any) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    save_adapter(random_adapter(tiny_fingerprint, 0, gate=2.0, description="The first"), folder / "one")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tiny_base: Any) -> Iterator[str]:
    store = AdapterStore(folder)
    with closing(Engine(tiny_base, store)) as engine:
        page = Starlette(routes=[Mount("/v1", openai_api.Api(ReadyProvider(engine), store))])
        server = uvicorn.Server(uvicorn.Config(page, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
        server.should_exit = True
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return pytest.importorskip("openai").OpenAI(base_url=url, api_key="none", max_retries=0)


def test_openai_log_probabilities(client):
    """Those of a stream are those of the whole answer, whose tokens spell it."""
    asked = {**SHORT, "logprobs": True, "top_logprobs": 3}
    [choice] = client.chat.completions.create(**asked).choices
    given = choice.logprobs.content
    assert "".join(one.token for one in given).removesuffix("<end>") == choice.message.content
    assert all(one.logprob == max(top.logprob for top in one.top_logprobs) for one in given), "it is greedy"
    assert all(len(one.top_logprobs) == 3 and bytes(one.bytes).decode() == one.token for one in given)
    parts = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**asked, stream=True)]
    streamed = [one for part in parts if part for one in part.content]
    assert [one.token for one in streamed] == [one.token for one in given]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in given], abs=1e-4)
    assert client.chat.completions.create(**SHORT).choices[0].logprobs is None


def test_openai_several_choices_have_the_next_seeds(client):
    sampled = {**SHORT, "temperature": 1.0, "top_p": 1.0}
    answer = client.chat.completions.create(**sampled, n=3, seed=5)
    said = [choice.message.content for choice in answer.choices]
    alone = [client.chat.completions.create(**sampled, seed=5 + i) for i in range(3)]
    assert said == [one.choices[0].message.content for one in alone] and len(set(said)) == 3
    assert answer.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**sampled, n=3, seed=5, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == said


def test_openai_penalties_and_biases(client):
    def said(**more: Any) -> str:
        return str(client.chat.completions.create(**SHORT, **more).choices[0].message.content)

    letter = str(ord("A") - 32)  # the tiny base has a token a character
    assert said(logit_bias={letter: 100}) == "AAAAAA" != said()
    biased = {"logit_bias": {letter: 12}}
    assert said(**biased).count("A") > said(**biased, frequency_penalty=2, presence_penalty=2).count("A")


def test_openai_raw_prompts(client):
    """Texts and ids are the same; `echo` with `logprobs` scores them, and a stream gives as much."""
    asked = {"model": "one", "temperature": 0, "max_tokens": 5, "logprobs": 2, "echo": True}
    ids = [ord(c) - 32 for c in "abc"]
    answer = client.completions.create(**asked, prompt=["abc", "ab"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    first, again, other, _ = answer.choices
    assert first.text == again.text and first.text.startswith("abc") and other.text.startswith("ab")
    assert client.completions.create(**asked, prompt=ids).choices[0].text == first.text
    given = first.logprobs
    assert "".join(given.tokens).removesuffix("<end>") == first.text and given.text_offset[:4] == [0, 1, 2, 3]
    assert given.token_logprobs[0] is given.top_logprobs[0] is None
    assert given.token_logprobs[1] == pytest.approx(other.logprobs.token_logprobs[1], abs=1e-4)
    long = {**asked, "prompt": "abc" * 40}  # is read in pieces
    whole, pieces = client.completions.create(**long).choices[0], client.completions.create(**long, stream=True)
    chunks = [chunk.choices[0] for chunk in pieces]
    assert "".join(chunk.text for chunk in chunks) == whole.text and chunks[-1].finish_reason
    streamed = [one for chunk in chunks for one in chunk.logprobs.token_logprobs]
    assert streamed[1:] == pytest.approx(whole.logprobs.token_logprobs[1:], abs=1e-4) and len(streamed) > 120
    unwritten = client.completions.create(**{**asked, "max_tokens": 0}, prompt="abc")
    scored = unwritten.choices[0]
    assert scored.text == "abc" and unwritten.usage.completion_tokens == 0 and len(scored.logprobs.tokens) == 3
    assert scored.logprobs.token_logprobs[1:] == pytest.approx(given.token_logprobs[1:3], abs=1e-4)


def test_openai_tools_and_models(client):
    """A function that is named is called, with a stream, too; else the answer is in words."""
    tool = {"type": "function", "function": {"name": "go", "parameters": City.model_json_schema()}}
    asked = {"model": "one", "messages": HELLO, "tools": [tool]}
    assert client.chat.completions.create(**asked, max_tokens=4).choices[0].message.content
    for choice in ("required", {"type": "function", "function": {"name": "go"}}):
        [answer] = client.chat.completions.create(**asked, tool_choice=choice).choices
        [call] = answer.message.tool_calls
        assert call.function.name == "go" and City.model_validate_json(call.function.arguments)
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        chunks = list(client.chat.completions.create(**asked, tool_choice=choice, stream=True))
        calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
        assert calls[0].function.name == "go" and calls[0].id
        assert City.model_validate_json("".join(c.function.arguments for c in calls))
    told = [*HELLO, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "ok"}]
    assert client.chat.completions.create(model="one", messages=told, max_tokens=4).choices[0].message.content

    assert [model.id for model in client.models.list()] == ["base", "one"]
    about = client.models.retrieve("one").adapter
    assert (about["kind"], about["description"]) == ("text", "The first") and about["bytes"] > 0
    assert about["fingerprint"]["vocab_size"] == 97


def test_litellm(url, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch a list of prices
    litellm = pytest.importorskip("litellm")
    asked = {**SHORT, "model": "openai/one", "api_base": url, "api_key": "none"}
    answer = litellm.completion(**asked, n=2, logprobs=True, top_logprobs=2, presence_penalty=0.5)
    assert len(answer.choices) == 2 and answer.choices[0].logprobs.content[0].top_logprobs
    words = litellm.text_completion(
        model="text-completion-openai/one", prompt="ab", max_tokens=3, api_base=url, api_key="none"
    )
    assert words.choices[0].text


def test_langchain(url):
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(model="one", base_url=url, api_key="none")
    for method in ("function_calling", "json_schema"):
        assert isinstance(chat.with_structured_output(City, method=method).invoke("hello"), City)
    said = chat.bind(logprobs=True, top_logprobs=2, max_tokens=3).invoke("hello")
    assert len(said.response_metadata["logprobs"]["content"]) == 3


def test_instructor(client):
    asked = pytest.importorskip("instructor").from_openai(client).chat.completions.create
    assert isinstance(asked(model="one", messages=HELLO, response_model=City), City)


# As shared/ of the data set hellaswag: a beginning, and four endings of which one follows.
ROWS = [
    ("A man sits on a roof. He", [" starts pulling up tiles.", " eats it.", " is a rope.", " sings to a cat."]),
    ("She pours milk into a cup, then", [" drinks.", " the sea is cold.", " runs a mile up.", " it is not."]),
    ("Two dogs run on the beach and", [" bark.", " read the paper today.", " cook.", " are a car."]),
]


@pytest.mark.parametrize("name", ["base", "one"])
def test_lm_eval_scores_over_http_as_the_trainers_own_class(name, url, folder, tiny_folder, tiny_base):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from train.evaluate.answerer import Answerer
    from train.evaluate.harness import HarnessModel

    try:
        over_http = LocalCompletionsAPI(
            base_url=f"{url}/completions",
            model=name,
            tokenizer=str(tiny_folder),
            tokenizer_backend="huggingface",
            batch_size=4,
        )
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    adapter = None if name == "base" else load_adapter(folder / name, tiny_base.fingerprint)
    asked = [
        Instance("loglikelihood", {}, (begun, ending), index)
        for begun, endings in ROWS
        for index, ending in enumerate(endings)
    ]
    found = over_http.loglikelihood(asked, disable_tqdm=True)
    expected = HarnessModel(Answerer(tiny_base, adapter)).loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
