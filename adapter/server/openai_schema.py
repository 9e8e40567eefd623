"""The body of OpenAI's chat completions as pydantic models, and the engine's request that it asks for.

Fields that are not declared here are ignored, as other servers do. A declared one that would change the answer but
cannot be had is refused by name. Knows nothing of HTTP.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from adapter.base.template import Message, Role
from adapter.errors import BadInput
from adapter.serve.settings import (
    BASE_ONLY,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    MaxTokens,
    MinP,
    Others,
    RepetitionPenalty,
    Seed,
    Settings,
    Strength,
    Temperature,
    TopK,
    TopP,
    explain,
)
from adapter.server.generation import check_length
from adapter.server.texts import DEFAULT_QUESTION

if TYPE_CHECKING:
    from PIL import Image

    from adapter.serve.request import Client, GenerationRequest

BASE = "base"  # the frozen base's name, beside its own
MAX_MESSAGES = 256
MAX_MIX = 4
_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant"
}  # fmt: skip
_DEFAULT = Settings()
# Whose sentences are used.
_SETTINGS = {
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("max_tokens", "seed", "strength", "mix_strength", "others"),
}


class ApiError(Exception):
    """A refusal: the HTTP status, a sentence, and OpenAI's `param` (the field it is about) and `code`."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def _only(*allowed: Any) -> AfterValidator:
    """Refuses all values but those that ask for nothing."""
    possible = f" but {json.dumps(allowed[0])}" if allowed else ""

    def check(value: Any) -> Any:
        # By type too: True equals 1.
        if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            return value
        raise PydanticCustomError("unsupported_value", "nothing{possible}", {"possible": possible})

    return AfterValidator(check)


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class ImageUrl(_Body):
    url: str = Field(description="data:image/png;base64,...; nothing is fetched from other addresses")


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ImagePart(_Body):
    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(lambda url: {"url": url} if isinstance(url, str) else url)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part],
        BeforeValidator(lambda text: [{"type": "text", "text": text}] if isinstance(text, str) else text),
    ]
    name: str | None = Field(None, description="who gave an answer: a model's name")
    tool_calls: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only()] = None


class StreamOptions(_Body):
    include_usage: StrictBool = False


class JsonSchema(_Body):
    name: str = ""
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: StrictBool = True  # the answer is held to the schema either way


class TextFormat(_Body):
    type: Literal["text"]


class JsonObjectFormat(_Body):
    type: Literal["json_object"]


class JsonSchemaFormat(_Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatCompletionRequest(_Body):
    """OpenAI's body; `top_k`, `min_p`, `repetition_penalty` are vLLM's; `strength` and those below it ours."""

    model: str = Field(description="base, or the name of an adapter")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: StrictBool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: Temperature = _DEFAULT.temperature
    top_p: TopP = _DEFAULT.top_p
    top_k: TopK = _DEFAULT.top_k
    min_p: MinP = _DEFAULT.min_p
    repetition_penalty: RepetitionPenalty = _DEFAULT.repetition_penalty
    max_tokens: MaxTokens = _DEFAULT.max_tokens
    max_completion_tokens: MaxTokens | None = None
    seed: Seed = _DEFAULT.seed
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
        Field(max_length=MAX_STOPS),
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    ] = []
    strength: Strength = _DEFAULT.strength
    mix: dict[str, Strength] = Field({}, max_length=MAX_MIX, description="further adapters with their strengths")
    others: Others = Field(_DEFAULT.others, description="what is read of answers that other models gave, by name")
    response_format: ResponseFormat | None = Field(
        None, description="the form of the answer; without one, that of the adapter; text: none"
    )
    grammar: str | None = Field(None, description="a form as a Lark grammar, in place of response_format")
    # What cannot be had here, with the values that ask for nothing.
    n: Annotated[Any, _only(1)] = 1
    logprobs: Annotated[Any, _only(False)] = False
    presence_penalty: Annotated[Any, _only(0)] = 0
    frequency_penalty: Annotated[Any, _only(0)] = 0
    logit_bias: Annotated[Any, _only({})] = None
    modalities: Annotated[Any, _only(["text"])] = None
    audio: Annotated[Any, _only()] = None
    tools: Annotated[Any, _only([])] = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    functions: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only("none", "auto")] = None
    web_search_options: Annotated[Any, _only()] = None

    @property
    def has_picture(self) -> bool:
        return any(isinstance(part, ImagePart) for message in self.messages for part in message.content)

    @property
    def form_field(self) -> str | None:
        """The field that names a form."""
        if self.grammar is not None:
            return "grammar"
        return None if isinstance(self.response_format, TextFormat | None) else "response_format"

    def form(self) -> str | None:
        """As in GenerationRequest, which the engine checks. Raises ApiError."""
        from adapter.serve.form import JSON_OBJECT, NO_FORM, json_schema_form

        asked = self.response_format
        if self.grammar is not None and not isinstance(asked, TextFormat | None):
            raise ApiError(400, "Give either response_format or grammar.", "grammar")
        if self.repetition_penalty > 1 and self.form_field:
            text = "An answer with a form has no 'repetition_penalty'. Leave one of them out."
            raise ApiError(400, text, "repetition_penalty")
        if self.grammar == "":
            raise ApiError(400, "The form cannot be used: the grammar is empty.", "grammar")
        if self.grammar is not None:
            return self.grammar
        if isinstance(asked, JsonSchemaFormat):
            try:
                return json_schema_form(asked.json_schema.json_schema)
            except BadInput as error:
                raise ApiError(400, str(error), self.form_field) from error
        return None if asked is None else NO_FORM if isinstance(asked, TextFormat) else JSON_OBJECT

    def to_request(self, adapters: Collection[str], base: str, client: Client) -> GenerationRequest:
        """The engine's request. adapters: the names that there are; base: the name of the frozen base.

        Raises ApiError, and BadInput for a picture that cannot be read or a message that is too long.
        """
        from adapter.serve.request import GenerationRequest, SamplingParams

        adapter = find_model(self.model, adapters, base)
        messages, picture = _conversation(self.messages, (BASE, base))
        if self.stream_options.include_usage and not self.stream:
            raise ApiError(400, "stream_options needs stream: true.", "stream_options")
        for name in self.mix:
            if name not in adapters:
                there = ", ".join(sorted(adapters)) or "none"
                raise ApiError(400, f"There is no adapter '{name[:100]}' to mix in. Choose from: {there}.", "mix")
        return GenerationRequest(
            messages=messages,
            adapter=adapter,
            image=None if picture is None else _decode_picture(picture),
            strength=self.strength,
            sampling=SamplingParams(
                self.temperature,
                self.top_p,
                self.max_completion_tokens or self.max_tokens,
                self.seed,
                self.top_k,
                self.min_p,
                self.repetition_penalty,
            ),
            mix=tuple(self.mix.items()),
            others=self.others,
            stop=tuple(self.stop),
            form=self.form(),
            client=client,
        )


def parse(body: bytes | bytearray) -> ChatCompletionRequest:
    """Raises ApiError with one sentence about the first thing that is wrong."""
    try:
        return ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0]) from None


def find_model(model: str, adapters: Collection[str], base: str) -> str | None:
    """The adapter that a model's name means, None for the frozen base. Raises ApiError for an unknown one.

    BASE is always the base; its own name is too, unless an adapter has that name.
    """
    if model == BASE:
        return None
    if model in adapters:
        return model
    if model == base:
        return None
    there = ", ".join([BASE, *sorted(set(adapters) - {BASE})])
    raise ApiError(404, f"There is no model '{model[:100]}'. Choose one of: {there}.", "model", "model_not_found")


_KINDS = {
    "string": "a text", "bool": "true or false", "int": "a whole number", "dict": "an object", "list": "a list",
    "model": "an object",
}  # fmt: skip
_SENTENCES = {
    "missing": "'{where}' is missing.",
    "literal_error": f"'{{where}}' must be one of: {', '.join(_ROLES)}.",
    "too_long": "'{where}' takes {max_length} at most.",
    "string_too_long": "'{where}' takes {max_length} characters at most.",
    "too_short": "'{where}' must not be empty.",
    "string_too_short": "'{where}' must not be empty.",
}


def _refusal(problem: ErrorDetails) -> ApiError:
    """One sentence that names the field, as OpenAI's clients show it."""
    kind, context = problem["type"], problem.get("ctx", {})
    where = _path(problem["loc"])
    if kind == "json_invalid":
        return ApiError(400, f"The body is not JSON that can be read ({str(context.get('error'))[:100]}).")
    if not where:
        return ApiError(400, "The body must be a JSON object.")
    top = "max_tokens" if where == "max_completion_tokens" else "mix_strength" if where[:4] == "mix." else where
    if kind == "unsupported_value":
        return ApiError(400, f"Nothing{context['possible']} is possible for '{where}' here.", where, kind)
    if where == "model" and kind == "missing":
        text = "Name a model: one of GET /v1/models."
    elif top in _SETTINGS:
        text = explain(problem, top, f"'{where}'")
    elif kind.startswith("union_tag"):
        types = "text, json_object or json_schema" if where == "response_format" else "text or image_url"
        text = f"'{where}' must be {'' if where == 'response_format' else 'a part '}of type {types}."
    elif where.endswith(".content"):
        text = f"'{where}' must be a text or a list of parts."
    elif kind in _SENTENCES:
        text = _SENTENCES[kind].format(where=where, **context)
    else:
        text = f"'{where}' must be {_KINDS.get(kind.partition('_')[0], 'of another kind')}."
    return ApiError(400, text, where)


def _path(location: tuple[int | str, ...]) -> str:
    """messages[0].content[1].text"""
    path = ""
    for index, step in enumerate(location):
        if index >= 2 and location[index - 2] == "content" and isinstance(location[index - 1], int):
            continue  # pydantic names the kind of part here
        if index == 1 and location[0] == "response_format":
            continue  # and here the type of form
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)[:100]
    return path


def _conversation(
    messages: list[ChatMessage], base_names: Collection[str]
) -> tuple[tuple[Message, ...], str | None]:
    """The texts, neighbours of one speaker joined, and the data URL of the newest picture.

    A picture without a word asks what the page asks. base_names: those of the frozen base.
    """
    joined: list[Message] = []
    newest = None
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        text = "\n".join(part.text for part in message.content if isinstance(part, TextPart))
        pictures = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
        check_length(text)
        if pictures and message.role != "user":
            raise ApiError(400, f"'{where}' may hold pictures in messages of the user only.", where)
        if len(pictures) > 1:
            raise ApiError(400, "One picture a message can be read. Send one.", where)
        for url in pictures:
            head, comma, _ = url[:200].lower().partition(",")
            if not head.startswith("data:") or not comma or not head.endswith(";base64"):
                text = "Pictures come as data URLs (data:image/png;base64,...)"
                raise ApiError(400, f"{text}: nothing is fetched from other addresses.", where)
            newest = url
        if not text.strip():
            if not pictures:
                continue
            text = ""  # a neighbour may have the words
        role = _ROLES[message.role]
        name = message.name if role == "assistant" else None
        name = BASE_ONLY if name in base_names else name
        if joined and (joined[-1].role, joined[-1].name) == (role, name):
            text = "\n\n".join(filter(None, (joined.pop().text, text)))
        joined.append(Message(role, text, name=name))
    return tuple(m if m.text else replace(m, text=DEFAULT_QUESTION) for m in joined), newest


def _decode_picture(url: str) -> Image.Image:
    from adapter.base.image_file import MAX_BYTES, open_image

    data = url.partition(",")[2]
    if len(data) * 3 // 4 > MAX_BYTES + 1024:
        raise ApiError(413, f"The picture is larger than {MAX_BYTES // 2**20} MB. Make it smaller.", "messages")
    try:
        decoded = base64.b64decode("".join(data.split()), validate=True)
    except ValueError:
        raise ApiError(400, "The picture's data URL is not base64 that can be read.", "messages") from None
    return open_image(decoded)
