"""The bodies of OpenAI's completions as pydantic models, the engine's requests that they ask for, and the answers.

Fields that are not declared here are ignored, as other servers do. A declared one that would change the answer but
cannot be had is refused by name, but for `tools` with `auto`.
"""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, StrictBool, ValidationError, model_validator

from adapter.base.image_file import open_image
from adapter.base.template import Message, Role
from adapter.errors import BadInput, Busy
from adapter.serve.form import JSON_OBJECT, NO_FORM, json_schema_form
from adapter.serve.request import (
    MAX_BIASES,
    MAX_TOP_LOGPROBS,
    Client,
    GenerationEvent,
    GenerationRequest,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
)
from adapter.serve.settings import (
    BASE_ONLY,
    MAX_SEED,
    MAX_STOPS,
    SAMPLING,
    MaxTokens,
    Number,
    Others,
    SamplingSettings,
    Settings,
    Stop,
    Strength,
    to_tokens,
)
from adapter.server.generation import DEFAULT_QUESTION, check_length

if TYPE_CHECKING:
    from adapter.base.llama import Base

BASE = "base"  # the frozen base's name, beside its own
MAX_MESSAGES = 256
MAX_MIX = 4
MAX_CHOICES = 20  # answers to one request; LangChain asks for as many at once
MAX_PROMPT_IDS = 100_000
_FINISH_REASONS: dict[str | None, str] = {"stop": "stop", "length": "length", "time": "length"}
_ROLES: dict[str, Any] = {"developer": "system", "tool": "user"}  # of those that no template knows
_DATA_URL = re.compile("data:[^,]{0,150};base64,", re.IGNORECASE)


class ApiError(Exception):
    """A refusal: the HTTP status, a sentence, and OpenAI's `param` (the field it is about) and `code`."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def _from_text(form: Callable[[str], Any]) -> BeforeValidator:
    """Lets a text stand for a larger value."""
    return BeforeValidator(lambda value: form(value) if isinstance(value, str) else value)


class _Body(BaseModel, extra="ignore", frozen=True):
    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None and (k, v) != ("top_k", -1)}  # off, for vLLM


class _OfType(_Body):
    """Has the field that its type names, if there is one of that name."""

    type: str

    @model_validator(mode="after")
    def _is_whole(self) -> _OfType:
        if self.type in type(self).model_fields and self.type not in self.model_fields_set:
            raise ValueError(f"'{self.type}' is missing")
        return self


class ImageUrl(_Body):
    url: str = Field(description="data:image/png;base64,...; nothing is fetched from other addresses")


class Part(_OfType):
    type: Literal["text", "refusal", "image_url"]
    text: str = ""
    refusal: str = ""
    image_url: Annotated[ImageUrl | None, _from_text(lambda url: {"url": url})] = None


class FunctionCall(_Body):
    name: str = ""
    arguments: str = ""


class ToolCall(_Body):
    function: FunctionCall


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[Part], _from_text(lambda text: [{"type": "text", "text": text}])] = []
    name: str | None = Field(None, description="who gave an answer: a model's name")
    tool_calls: list[ToolCall] = []

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise ValueError("'content' is missing")
        return self


class StreamOptions(_Body):
    include_usage: StrictBool = False


class JsonSchema(_Body):
    json_schema: dict[str, Any] = Field(alias="schema", description="held to, strict or not")


class ResponseFormat(_OfType):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    given: dict[str, Any] | None = Field(None, alias="schema", description="of a json_object")


class Function(_Body):
    name: str = Field(min_length=1, max_length=64)
    parameters: dict[str, Any] = {"properties": {}}


class Tool(_Body):
    type: Literal["function"]
    function: Function


class ToolChoice(_OfType):
    type: Literal["none", "auto", "required", "function"]
    function: FunctionCall | None = None


Penalty = Annotated[Number, Field(ge=-2, le=2)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS, strict=True)]


class _CompletionBody(_Body, SamplingSettings):
    """What both kinds of request have in common. `top_k`, `min_p` and `repetition_penalty` are vLLM's; `strength`
    and `mix` are ours.
    """

    model: str = Field(description="base, or the name of an adapter")
    stream: StrictBool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(1, ge=1, le=MAX_CHOICES, strict=True)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[TokenId, Bias] = Field({}, max_length=MAX_BIASES)
    stop: Annotated[list[Stop], Field(max_length=MAX_STOPS), _from_text(lambda stop: [stop])] = []
    mix: dict[str, Strength] = Field({}, max_length=MAX_MIX, description="further adapters with their strengths")

    def to_requests(self, adapters: Collection[str], base: Base, client: Client) -> list[GenerationRequest]:
        """The engine's requests: for each prompt its choices. adapters: the names that there are. Raises
        ApiError, and BadInput for a picture that cannot be read or a message that is too long.
        """
        base_name = base.fingerprint.name
        adapter = find_model(self.model, adapters, base_name)
        if self.stream_options.include_usage and not self.stream:
            raise ApiError(400, "stream_options needs stream: true.", "stream_options")
        for name in self.mix:
            if name not in adapters:
                there = ", ".join(sorted(adapters)) or "none"
                raise ApiError(400, f"There is no adapter '{name[:100]}' to mix in. Choose from: {there}.", "mix")
        sampling = SamplingParams(
            **{name: getattr(self, name) for name in (*SAMPLING, "presence_penalty", "frequency_penalty")},
            max_new_tokens=getattr(self, "max_completion_tokens", None) or max(1, self.max_tokens),
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
        )
        about: dict[str, Any] = {"adapter": adapter, "strength": self.strength, "client": client}
        about |= {"mix": tuple(self.mix.items()), "stop": tuple(self.stop)}
        seed = None if self.seed == -1 else self.seed  # as vLLM's clients say it
        seeds = [None if seed is None else min(seed, MAX_SEED - self.n + 1) + i for i in range(self.n)]
        prompts = self.prompts({**{name: name for name in adapters}, base_name: BASE_ONLY, BASE: BASE_ONLY})
        counts = chain([self.n * len(prompts)], repeat(0))  # one limit is asked for all of them at once
        return [
            GenerationRequest(**about, **prompt, sampling=replace(sampling, seed=seed), answers=next(counts))
            for prompt in prompts
            for seed in seeds
        ]

    def prompts(self, models: Mapping[str, str]) -> list[dict[str, Any]]:
        """What a GenerationRequest has of each prompt. models: the engine's names of those that may have written
        answers, by the API's. Raises as `to_requests`.
        """
        raise NotImplementedError


class ChatCompletionRequest(_CompletionBody):
    """A conversation to answer; `others` and `grammar` are ours."""

    object_name: ClassVar = "chat.completion"
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: MaxTokens | None = None
    logprobs: StrictBool = False
    top_logprobs: TopLogprobs = 0
    others: Others = Field(Settings().others, description="what is read of other models' answers, by name")
    response_format: ResponseFormat | None = Field(None, description="by default the adapter's; text: none")
    grammar: str | None = Field(None, min_length=1, description="a Lark grammar, in place of response_format")
    tools: list[Tool] = []
    tool_choice: Annotated[ToolChoice, _from_text(lambda type: {"type": type})] = ToolChoice(type="auto")

    @property
    def tool(self) -> Function | None:
        """The function whose call is asked for: a model of this size chooses none itself. Raises ApiError."""
        if self.tool_choice.type in ("none", "auto"):
            return None
        named = self.tool_choice.function and self.tool_choice.function.name
        found = [tool.function for tool in self.tools if named in (None, tool.function.name)]
        if len(found) != 1:
            text = "Name one of 'tools' in 'tool_choice': no model here chooses between several."
            raise ApiError(400, text, "tool_choice")
        return found[0]

    @property
    def form_field(self) -> str | None:
        """The field that names a form. Raises ApiError."""
        asked = None if self.response_format and self.response_format.type == "text" else self.response_format
        forms = {"response_format": asked, "grammar": self.grammar, "tools": self.tool}
        named = [name for name, form in forms.items() if form is not None]
        if len(named) > 1:
            text = "Give either response_format or grammar, or have a tool called, whose form is its own."
            raise ApiError(400, text, named[-1])
        return named[0] if named else None

    def form(self) -> str | None:
        """As in GenerationRequest, which the engine checks. Raises ApiError."""
        field = self.form_field
        if field is None:
            return NO_FORM if self.response_format else None
        for name, nothing in (("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0)):
            if getattr(self, name) != nothing:
                raise ApiError(400, f"An answer with a form has no '{name}'. Leave one of them out.", name)
        if self.grammar is not None:
            return self.grammar
        asked = self.response_format
        schema = None if asked is None else asked.json_schema.json_schema if asked.json_schema else asked.given
        if self.tool is not None:  # arguments are an object of those that are named, unless the schema says more
            named = {"additionalProperties": False} if "properties" in self.tool.parameters else {}
            schema = {**named, **self.tool.parameters, "type": "object"}
        try:
            return JSON_OBJECT if schema is None else json_schema_form(schema)
        except BadInput as error:
            raise ApiError(400, str(error), field) from error

    def prompts(self, models: Mapping[str, str]) -> list[dict[str, Any]]:
        """The conversation, with its form and its newest picture. Empties `messages`: to be called once."""
        messages, picture = _conversation(self.messages, models)
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs")
        top = max(1, self.top_logprobs) if self.logprobs else 0
        self.messages.clear()  # pictures of 30 MB, while the answer is written
        image = None if picture is None else _decode_picture(picture)
        about = {"others": self.others, "form": self.form(), "top_logprobs": top}
        return [{"messages": messages, "image": image, **about}]

    def choice(self, index: int, events: list[GenerationEvent], base: Base) -> dict[str, Any]:
        text = text_of(events)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.tool is not None:
            message |= {"content": None, "tool_calls": [self._call(text)]}
        ended = self._finish_reason(events[-1])
        return {"index": index, "message": message, "logprobs": self._logprobs(events), "finish_reason": ended}

    def chunks(self, index: int, events: list[GenerationEvent], base: Base, first: bool) -> list[dict[str, Any]]:
        """The next of a streamed answer. first: whether these are the first of its events."""
        deltas: list[tuple[dict[str, Any], Any, str | None]] = []
        if first:
            begun = {"content": ""} if self.tool is None else {"content": None, "tool_calls": [self._call("")]}
            deltas.append(({"role": "assistant", **begun}, None, None))
        text, logprobs = text_of(events), self._logprobs(events)
        if text or (logprobs and logprobs["content"]):
            call = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
            deltas.append(({"content": text} if self.tool is None else call, logprobs, None))
        if events[-1].finish_reason is not None:
            deltas.append(({}, None, self._finish_reason(events[-1])))
        return [
            {"index": index, "delta": delta, "logprobs": given, "finish_reason": ended}
            for delta, given, ended in deltas
        ]

    def _call(self, arguments: str) -> dict[str, Any]:
        assert self.tool is not None
        call = {"id": f"call_{uuid.uuid4().hex}", "type": "function"}
        function = {"name": self.tool.name, "arguments": arguments}
        return {**({"index": 0} if self.stream else {}), **call, "function": function}

    def _finish_reason(self, event: GenerationEvent) -> str:
        ended = finish_reason(event)
        return "tool_calls" if ended == "stop" and self.tool is not None else ended

    def _logprobs(self, events: Sequence[GenerationEvent]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return {
            "content": [
                {**_token(one.token), "top_logprobs": [_token(token) for token in one.top[: self.top_logprobs]]}
                for one in _choices(events)
            ]
        }


Ids = Annotated[list[Annotated[int, Field(strict=True)]], Field(max_length=MAX_PROMPT_IDS)]


def _to_prompts(value: Any) -> Any:
    """One prompt, or a list of them, as a list."""
    one = isinstance(value, str) or (isinstance(value, list) and value and all(type(i) is int for i in value))
    return [value] if one else value


class CompletionRequest(_CompletionBody):
    """Raw prompts to go on with, as texts or token ids."""

    object_name: ClassVar = "text_completion"
    prompt: Annotated[list[str | Ids], BeforeValidator(_to_prompts), Field(min_length=1, max_length=MAX_CHOICES)]
    max_tokens: Annotated[int, BeforeValidator(to_tokens), Field(ge=0, strict=True)] = 16
    echo: StrictBool = False
    logprobs: TopLogprobs | None = None
    best_of: Literal[1] = 1
    suffix: Literal[""] = ""
    response_format: Annotated[None, BeforeValidator(lambda it: None if it == {"type": "text"} else it)] = None
    grammar: None = None
    form_field: ClassVar = None

    def prompts(self, models: Mapping[str, str]) -> list[dict[str, Any]]:
        if not self.max_tokens and not self.echo:
            raise ApiError(400, "'max_tokens' may be 0 with echo: true only.", "max_tokens")
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise ApiError(400, f"{MAX_CHOICES} prompts times 'n' are the most at once.", "n")
        about = {
            "raw": True,
            "form": NO_FORM,
            "top_logprobs": 0 if self.logprobs is None else max(1, self.logprobs),
            "prompt_logprobs": self.echo and self.logprobs is not None,
        }
        found: list[dict[str, Any]] = []
        for prompt in self.prompt:
            if isinstance(prompt, str):
                check_length(prompt)
                found.append({**about, "messages": (Message("user", prompt),)})
            else:
                found.append({**about, "prompt_ids": tuple(prompt)})
        return found

    def choice(self, index: int, events: list[GenerationEvent], base: Base) -> dict[str, Any]:
        """A whole answer, after its prompt with `echo`."""
        [choice] = self.chunks(index, events, base, True)
        return choice

    def chunks(self, index: int, events: list[GenerationEvent], base: Base, first: bool) -> list[dict[str, Any]]:
        text, ended = text_of(events) if self.max_tokens else "", None
        if events[-1].finish_reason is not None:
            ended = finish_reason(events[-1]) if self.max_tokens else "length"
        begun = ""
        if first and self.echo:
            prompt = self.prompt[index // self.n]
            begun = prompt if isinstance(prompt, str) else base.tokenizer.decode(prompt)
        logprobs = self._logprobs(events, begun, base)
        return [{"index": index, "text": begun + text, "logprobs": logprobs, "finish_reason": ended}]

    def _logprobs(self, events: Sequence[GenerationEvent], begun: str, base: Base) -> dict[str, Any] | None:
        """The parallel lists of OpenAI's older form, those of the prompt first; a stream has no offsets. begun:
        the text of the prompt.
        """
        if self.logprobs is None:
            return None
        given = [one for event in events for one in event.prompt_logprobs]
        given += _choices(events) if self.max_tokens else []
        # Of two tokens with one text the likelier one counts.
        tops = [{t.text: t.logprob for t in (one.token, *one.top[: self.logprobs][::-1])} for one in given]
        known = [not math.isnan(one.logprob) for one in given]
        offsets, at, half = [], 0, list[int]()
        for token in [one.token for event in events for one in event.prompt_logprobs]:
            offsets.append(at)
            half.append(token.token_id)  # a character may take several tokens
            text = token.text if len(half) == 1 else base.tokenizer.decode(half)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                at, half = at + len(text), []
        more = max(0, at - len(begun))  # what tokens say before the text begins: <s>, a blank of the first word
        offsets = [max(0, place - more) for place in offsets]
        before = accumulate([len(event.text) for event in events], initial=len(begun))
        offsets += [at for at, event in zip(before, events, strict=False) if event.choices and self.max_tokens]
        return {
            "tokens": [one.token.text for one in given],
            "token_logprobs": [one.logprob if k else None for one, k in zip(given, known, strict=True)],
            "top_logprobs": [top if k else None for top, k in zip(tops, known, strict=True)],
            "text_offset": [] if self.stream else offsets,
        }


Body = ChatCompletionRequest | CompletionRequest


def text_of(events: Sequence[GenerationEvent]) -> str:
    return "".join(event.text for event in events)


def finish_reason(event: GenerationEvent) -> str:
    if event.finish_reason not in _FINISH_REASONS:
        raise Busy("The answer was cut off on the server. Ask again.")
    return _FINISH_REASONS[event.finish_reason]


def _choices(events: Sequence[GenerationEvent]) -> list[TokenLogprobs]:
    return [event.choices for event in events if event.choices is not None]


def _token(token: TokenLogprob) -> dict[str, Any]:
    half = "\N{REPLACEMENT CHARACTER}" in token.text
    return {"token": token.text, "logprob": token.logprob, "bytes": None if half else list(token.text.encode())}


def parse(body: bytes | bytearray, kind: type[Body]) -> Body:
    """Raises ApiError with one sentence about the first thing that is wrong, which names the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":  # half an emoji, where a client has cut a text, is a question mark
        with suppress(ValueError, RecursionError):
            whole = json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "replace")
            if whole != body:
                return parse(whole, kind)
    steps = [f"[{step}]" if isinstance(step, int) else f".{step[:100]}" for step in problem["loc"]]
    where, what = "".join(steps).removeprefix("."), problem["msg"].removeprefix("Value error, ")
    if where.startswith("prompt"):
        where, what = "prompt", f"A text, token ids, or a list of up to {MAX_CHOICES} of them is needed"
    elif problem["type"] == "none_required" or where in ("best_of", "suffix"):
        what = "It cannot be had here. Leave it out"
    raise ApiError(400, f"'{where or 'body'}': {what[:300]}.", where or None)


def find_model(model: str, adapters: Collection[str], base: str) -> str | None:
    """The adapter that a model's name means, None for the base: BASE or its own name. Raises ApiError."""
    if model in (BASE, base):
        return None
    if model in adapters:
        return model
    there = ", ".join([BASE, *sorted(set(adapters) - {BASE})])
    raise ApiError(404, f"There is no model '{model[:100]}'. Choose one of: {there}.", "model", "model_not_found")


def _conversation(
    messages: list[ChatMessage], models: Mapping[str, str]
) -> tuple[tuple[Message, ...], str | None]:
    """The texts, neighbours of one speaker joined, and the data URL of the newest picture. A tool's call is read
    as its arguments, what it says as the user's; a picture without a word asks what the page asks. A name that is
    no model's, as agents give them, counts for none.
    """
    joined: list[Message] = []
    newest = None
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        texts = [getattr(part, part.type) for part in message.content if part.type != "image_url"]
        text = "\n".join([*texts, *(call.function.arguments for call in message.tool_calls)])
        urls = [part.image_url.url for part in message.content if part.image_url and part.type == "image_url"]
        check_length(text)
        if urls and message.role != "user":
            raise ApiError(400, f"'{where}' may hold pictures in messages of the user only.", where)
        if len(urls) > 1:
            raise ApiError(400, "One picture a message can be read. Send one.", where)
        if urls and not _DATA_URL.match(urls[0]):
            what = "Pictures come as data URLs (data:image/png;base64,...)"
            raise ApiError(400, f"{what}: nothing is fetched from other addresses.", where)
        newest = urls[0] if urls else newest
        if not text.strip():
            if not urls:
                continue
            text = ""  # a neighbour may have the words
        role: Role = _ROLES.get(message.role, message.role)
        name = models.get(message.name or "") if role == "assistant" else None
        if joined and (joined[-1].role, joined[-1].name) == (role, name):
            text = "\n\n".join(filter(None, (joined.pop().text, text)))
        joined.append(Message(role, text, name=name))
    return tuple(m if m.text else replace(m, text=DEFAULT_QUESTION) for m in joined), newest


def _decode_picture(url: str) -> Image.Image:
    try:
        decoded = base64.b64decode("".join(url.partition(",")[2].split()), validate=True)
    except ValueError:
        raise ApiError(400, "The picture's data URL is not base64 that can be read.", "messages") from None
    return open_image(decoded)
