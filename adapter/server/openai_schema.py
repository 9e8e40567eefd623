"""The body of a chat completion, as OpenAI publishes it, to the engine's request. Knows nothing of HTTP.

Every field is checked: one that cannot be had here, or that nobody knows, is refused and not passed over.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from adapter.base.template import Message, Role
from adapter.server.settings import check_length
from adapter.ui.texts.page import DEFAULT_QUESTION

if TYPE_CHECKING:
    from PIL import Image

    from adapter.serve.request import GenerationRequest

BASE = "base"  # the frozen base's name, beside its own
MAX_MESSAGES = 256
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200
MAX_MIX = 4
_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant"
}  # fmt: skip

_READ = {
    "model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens", "max_completion_tokens",
    "stop", "seed", "strength", "mix",
}  # fmt: skip
# What says nothing about the answer, and hints that a model may leave aside.
_NO_MATTER = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "reasoning_effort", "verbosity", "prediction", "top_logprobs",
}  # fmt: skip
# What cannot be had here, with the values that ask for nothing.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
}


class ApiError(Exception):
    """An answer that is an error: status of HTTP, a sentence, and which field it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class Asked(NamedTuple):
    """What a body asks for."""

    model: str
    request: GenerationRequest
    stream: bool
    include_usage: bool


def decode(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises ApiError."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        fields = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON that can be read ({str(error)[:100]}).") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "The body must be a JSON object.")
    return fields


def read(fields: Mapping[str, Any], adapters: Collection[str], base: str, client: str = "") -> Asked:
    """Check all fields and make the engine's request.

    adapters: the names that there are; base: the name of the frozen base. Raises ApiError, and BadInput for
    values out of their ranges.
    """
    from adapter.serve.request import Client, GenerationRequest
    from adapter.serve.sampling import SamplingParams

    fields = {name: value for name, value in fields.items() if value is not None}
    _check_names(fields)
    model = _typed(fields, "model", str, None)
    if model is None:
        raise ApiError(400, "Name a model: one of GET /v1/models.", "model")
    adapter = known(model, adapters, base)
    messages, picture = _conversation(fields.get("messages"))
    stream = bool(_typed(fields, "stream", bool, False))
    options = _typed(fields, "stream_options", dict, {})
    if options and not stream:
        raise ApiError(400, "stream_options needs stream: true.", "stream_options")
    sampling: dict[str, Any] = {"seed": _typed(fields, "seed", int, None)}
    for field in ("temperature", "top_p"):
        if field in fields:
            sampling[field] = _number(fields[field], field)
    limit = _typed(fields, "max_tokens", int, None)
    limit = _typed(fields, "max_completion_tokens", int, limit)
    if limit is not None:
        sampling["max_new_tokens"] = limit
    request = GenerationRequest(
        messages=messages,
        adapter=adapter,
        image=None if picture is None else _picture(picture),
        strength=_number(fields.get("strength", 1.0), "strength"),
        sampling=SamplingParams(**sampling),
        mix=_mix(_typed(fields, "mix", dict, {}), adapters),
        stop=_stops(fields.get("stop", [])),
        client=Client(address=client),
    )
    return Asked(model, request, stream, bool(_typed(options, "include_usage", bool, False)))


def known(model: str, adapters: Collection[str], base: str) -> str | None:
    """The adapter that a model's name means, None for the frozen base. Raises ApiError for an unknown one.

    BASE is always the base; its own name is too, unless an adapter is called so.
    """
    if model == BASE:
        return None
    if model in adapters:
        return model
    if model == base:
        return None
    there = ", ".join([BASE, *sorted(set(adapters) - {BASE})])
    raise ApiError(404, f"There is no model '{model[:100]}'. Choose one of: {there}.", "model", "model_not_found")


def _check_names(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in _ONLY:
            # By type too: True equals 1.
            if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in _ONLY[name]):
                only = "".join(f" but {json.dumps(v)}" for v in _ONLY[name][:1])
                raise ApiError(400, f"Nothing{only} is possible for '{name}' here.", name, "unsupported_value")
        elif name not in _READ and name not in _NO_MATTER:
            raise ApiError(400, f"There is no field '{name[:100]}'.", name[:100], "unknown_parameter")


_NAMES = {str: "a text", bool: "true or false", int: "a whole number", dict: "an object"}


def _typed(fields: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ApiError(400, f"'{name}' must be {_NAMES[kind]}.", name)
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(400, f"'{name}' must be a number.", name)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # for the range's own sentence


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ApiError(400, f"'{where}' must be a text.", where)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"'{where}' holds half of a character (a lone surrogate).", where) from None
    return value


def _conversation(messages: Any) -> tuple[tuple[Message, ...], str | None]:
    """The texts, neighbours of one role joined, and the data URL of the newest picture.

    Who shows a picture without a word asks what the page asks.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "'messages' must be a list with one message at least.", "messages")
    if len(messages) > MAX_MESSAGES:
        raise ApiError(
            400, f"{len(messages)} messages; {MAX_MESSAGES} are the limit. Leave the oldest out.", "messages"
        )
    joined: list[Message] = []
    newest = None
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise ApiError(400, f"'{where}' must be an object with role and content.", where)
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise ApiError(400, f"'{where}.role' must be one of: {', '.join(_ROLES)}.", f"{where}.role")
        if message.get("tool_calls") or message.get("function_call"):
            raise ApiError(400, "There are no tools here.", where, "unsupported_value")
        text, picture = _content(message.get("content"), role, f"{where}.content")
        newest = picture or newest
        if not text.strip():
            if picture is None:
                continue
            text = ""  # a neighbour may have the words
        if joined and joined[-1].role == _ROLES[role]:
            text = "\n\n".join(filter(None, (joined.pop().text, text)))
        joined.append(Message(_ROLES[role], text))
    return tuple(m if m.text else Message(m.role, DEFAULT_QUESTION) for m in joined), newest


def _content(content: Any, role: str, where: str) -> tuple[str, str | None]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ApiError(400, f"'{where}' must be a text or a list of parts.", where)
    texts, pictures = [], []
    for index, part in enumerate(content):
        here = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(_text(part.get("text"), f"{here}.text"))
        elif kind == "image_url" and role == "user":
            pictures.append(_url(part.get("image_url"), f"{here}.image_url"))
        else:
            parts = "text or image_url" if role == "user" else "text"
            raise ApiError(400, f"'{here}' must be a part of type {parts}.", here)
    if len(pictures) > 1:
        raise ApiError(400, "One picture a message can be read. Send one.", where)
    text = "\n".join(texts)
    check_length(text)
    return text, pictures[0] if pictures else None


def _url(value: Any, where: str) -> str:
    url = _text(value.get("url") if isinstance(value, dict) else value, f"{where}.url")
    head, comma, _ = url[:200].lower().partition(",")
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        raise ApiError(
            400,
            "Pictures come as data URLs (data:image/png;base64,...): nothing is fetched from other addresses.",
            where,
        )
    return url


def _picture(url: str) -> Image.Image:
    from adapter.method.vision import MAX_BYTES, open_image

    data = url.partition(",")[2]
    if len(data) * 3 // 4 > MAX_BYTES + 1024:
        raise ApiError(413, f"The picture is larger than {MAX_BYTES // 2**20} MB. Make it smaller.", "messages")
    try:
        decoded = base64.b64decode("".join(data.split()), validate=True)
    except ValueError:
        raise ApiError(400, "The picture's data URL is not base64 that can be read.", "messages") from None
    return open_image(decoded)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise ApiError(400, f"'stop' must be a text or a list of {MAX_STOPS} at most.", "stop")
    found = tuple(_text(stop, "stop") for stop in stops)
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in found):
        raise ApiError(400, f"A stop text has {MAX_STOP_CHARACTERS} characters at most.", "stop")
    return found


def _mix(value: Mapping[str, Any], adapters: Collection[str]) -> tuple[tuple[str, float], ...]:
    if len(value) > MAX_MIX:
        raise ApiError(400, f"'mix' takes {MAX_MIX} adapters at most.", "mix")
    for name in value:
        if name not in adapters:
            there = ", ".join(sorted(adapters)) or "none"
            raise ApiError(400, f"There is no adapter '{name[:100]}' to mix in. Choose from: {there}.", "mix")
    return tuple((name, _number(strength, f"mix.{name}")) for name, strength in value.items())
