"""Honest visitors: one person's connection to the server, the questions, and the answers to compare.

Speaks HTTP as a browser does (the page's queue of events) and as programs do (/chat and /v1); knows no attacks.
"""

import base64
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from adapter.server.transcript import FORMAT, VERSION
from adapter.ui.texts import page as texts
from tests.app_process import LONG_PATIENCE as PATIENCE

# What the page calls the settings, whose order among an event's inputs is that of its layout.
LABELS = {
    "adapter": texts.ADAPTER,
    "strength": texts.STRENGTH,
    "temperature": texts.TEMPERATURE,
    "top_p": texts.TOP_P,
    "max_tokens": texts.MAX_TOKENS,
    "seed": texts.SEED,
    "mix": texts.SECOND_ADAPTER,
    "mix_strength": texts.SECOND_STRENGTH,
    "repetition_penalty": texts.PENALTY,
    "xray": texts.XRAY,
}
USER, PASSWORD = "visitor", "open sesame"
KEY = {"Authorization": f"Bearer {USER}:{PASSWORD}"}
FILE_DATA = {"_type": "gradio.FileData"}

CHAT_SETTINGS = (  # parameters of /chat behind message and image
    *("adapter", "strength", "temperature", "top_p", "max_tokens", "seed", "mix", "mix_strength"),
    *("top_k", "min_p", "repetition_penalty", "stop", "system"),
)


class NoAnswer(Exception):
    """What the server said in place of an answer."""


class Answer(NamedTuple):
    """tokens: their ids through the page, their number through /v1, nothing through /chat."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """through: "page", the chat's own event; "chat", the endpoint for programs; "v1"; "stream", /v1 in chunks.

    settings: by the names of Settings. said: earlier turns, (question, answer); for "page" and /v1.
    """

    text: str
    through: str = "v1"
    adapter: str = ""
    picture: Path | None = None
    said: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class Connection:
    """One person's HTTP client. address: the loopback address that the person comes from."""

    def __init__(self, url: str, address: str, *, signed_in: bool = True) -> None:
        transport = httpx.HTTPTransport(local_address=address)
        self.http = httpx.Client(base_url=url, transport=transport, timeout=PATIENCE)
        self.session = secrets.token_hex(6)
        self._uploads: dict[Path, str] = {}
        self._config: dict[str, Any] = {}
        if signed_in:
            self.http.headers.update(KEY)
            given = self.http.post("/login", data={"username": USER, "password": PASSWORD})
            assert given.status_code == 200, given.text

    def close(self) -> None:
        self.http.close()

    @property
    def config(self) -> dict[str, Any]:
        """The page's components and events."""
        self._config = self._config or self.http.get("/config").json()
        return self._config

    def event(self, name: str) -> dict[str, Any]:
        return next(d for d in self.config["dependencies"] if d["api_name"] == name)

    def defaults(self, event: str) -> list[Any]:
        """The values of an event's inputs in a page that was just opened."""
        held = {c["id"]: c["props"].get("value") for c in self.config["components"]}
        return [held[number] for number in self.event(event)["inputs"]]

    def join(self, event: str, data: Any, **more: Any) -> httpx.Response:
        """Put an event into the page's queue. more: further fields, or others."""
        body = {"data": data, "fn_index": self.event(event)["id"], "session_hash": self.session, **more}
        headers = {"Content-Type": "application/json"}
        return self.http.post("/gradio_api/queue/join", content=json.dumps(body), headers=headers)

    def fire(self, event: str, data: list[Any], **more: Any) -> tuple[Any, str]:
        """Fire an event; returns its last outputs, None if it failed, and the texts of its toasts."""
        joined = self.join(event, data, **more)
        if joined.status_code != 200:
            raise NoAnswer(f"{joined.status_code} {joined.text[:300]}")
        toasts = []
        for message in self.updates():
            if message["msg"] == "log":
                toasts.append(message["log"])
            elif message["msg"] == "process_completed":
                output = message["output"]
                if not message["success"]:
                    return None, " ".join([*toasts, str(output.get("error"))])
                return output["data"], " ".join(toasts)
        raise NoAnswer(" ".join([*toasts, "The stream of updates ended without the answer."]))

    def fire_for_text(self, event: str, data: list[Any], **more: Any) -> str:
        """All that an event is answered, as text."""
        joined = self.join(event, data, **more)
        if joined.status_code != 200:
            return joined.text
        return "\n".join(map(json.dumps, self.updates()))

    def updates(self, seconds: float = PATIENCE) -> Iterator[dict[str, Any]]:
        """What the server sends to this session until an event has ended. seconds: raises after so long, whatever
        heartbeats come.
        """
        deadline = time.monotonic() + seconds
        route = f"/gradio_api/queue/data?session_hash={self.session}"
        with self.http.stream("GET", route, timeout=seconds) as response:
            if response.status_code != 200:
                raise NoAnswer(f"{response.status_code} {response.read()[:300].decode()}")
            for line in response.iter_lines():
                if time.monotonic() > deadline:
                    raise NoAnswer(f"No answer in {seconds:.0f} seconds.")
                if line.startswith("data:"):
                    yield (message := json.loads(line[5:]))
                    if message["msg"] in ("process_completed", "unexpected_error", "close_stream"):
                        return

    def upload(self, file: Path) -> dict[str, Any]:
        """The uploaded file as an input of an event; it is sent once."""
        if file not in self._uploads:
            sent = self.http.post("/gradio_api/upload", files={"files": (file.name, file.read_bytes())})
            if sent.status_code != 200:
                raise NoAnswer(f"{sent.status_code} {sent.text[:300]}")
            self._uploads[file] = sent.json()[0]
        return {"path": self._uploads[file], "orig_name": file.name, "meta": FILE_DATA}

    def ask(self, question: Question) -> Answer:
        """Raises NoAnswer with what the server said instead."""
        if question.through == "page":
            return self.send(self.asked(question))
        ways = {"chat": self._ask_chat, "v1": self._ask_v1, "stream": self._ask_stream}
        return ways[question.through](question)

    def message(self, text: str, files: Any = (), said: Any = (), **settings: Any) -> list[Any]:
        """The inputs of the page's event "send" in a new conversation, with the turns `said` before."""
        # As an open page does every few seconds: the session learns which adapters there are.
        self.fire("refresh", self.defaults("refresh"))
        data = self.defaults("send")
        labels = {c["id"]: c["props"].get("label") for c in self.config["components"]}
        inputs = [labels[number] for number in self.event("send")["inputs"]]
        document = {"format": FORMAT, "version": VERSION, "messages": as_messages(said, "text")}
        opened = {"id": secrets.token_hex(6), "text": json.dumps(document)}
        self.fire("open", [], event_data=opened)
        data[:2] = [{"text": text, "files": list(files)}, opened["id"]]
        for name, value in settings.items():
            data[inputs.index(LABELS[name])] = str(value) if name == "seed" else value
        return data

    def asked(self, question: Question) -> list[Any]:
        """As `message`, for a question."""
        files = [] if question.picture is None else [self.upload(question.picture)]
        return self.message(question.text, files, question.said, adapter=question.adapter, **question.settings)

    def send(self, data: list[Any]) -> Answer:
        outputs, toasts = self.fire("send", data)
        if outputs is None:
            raise NoAnswer(toasts)
        for kept in [output for output in outputs if isinstance(output, str) and output.startswith('{"keep"')]:
            answer = json.loads(kept)["keep"]["document"]["messages"][-1]
            if "token_ids" in answer.get("record", {}):
                return Answer(answer["text"], tuple(answer["record"]["token_ids"]))
        raise NoAnswer(f"{toasts} {json.dumps(outputs[0])[-300:]}")

    def _ask_chat(self, question: Question) -> Answer:
        data = self.defaults("chat")
        data[0] = question.text
        data[1] = None if question.picture is None else self.upload(question.picture)
        for name, value in {"adapter": question.adapter, **question.settings}.items():
            data[2 + CHAT_SETTINGS.index(name)] = value
        outputs, said = self.fire("chat", data)
        if outputs is None:
            raise NoAnswer(said)
        return Answer(outputs[0], ())

    def _ask_v1(self, question: Question) -> Answer:
        response = self.http.post("/v1/chat/completions", json=completion(question))
        if response.status_code != 200:
            raise NoAnswer(f"{response.status_code} {response.text[:300]}")
        answer = response.json()
        count = answer["usage"]["completion_tokens"]
        return Answer(answer["choices"][0]["message"]["content"], (count,))

    def _ask_stream(self, question: Question) -> Answer:
        body = {**completion(question), "stream": True, "stream_options": {"include_usage": True}}
        text, count = "", 0
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise NoAnswer(f"{response.status_code} {response.read()[:300].decode()}")
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return Answer(text, (count,))
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise NoAnswer(line[:300])
                    text += "".join(choice["delta"].get("content", "") for choice in event["choices"])
                    count = (event.get("usage") or {}).get("completion_tokens", count)
        raise NoAnswer(f"The stream ended after {text!r}.")


def as_messages(said: Any, key: str) -> list[dict[str, str]]:
    """Turns, (question, answer), with a text under `key`."""
    roles = ("user", "assistant")
    return [{"role": role, key: text} for turn in said for role, text in zip(roles, turn, strict=True)]


def completion(question: Question) -> dict[str, Any]:
    """The question as a body of /v1/chat/completions."""
    settings = dict(question.settings)
    if "mix" in settings:
        settings["mix"] = {settings["mix"]: settings.pop("mix_strength")}
    content: Any = question.text
    if question.picture is not None:
        content = [{"type": "text", "text": question.text}, image_part(question.picture.read_bytes())]
    messages = [*as_messages(question.said, "content"), {"role": "user", "content": content}]
    return {"model": question.adapter or "base", "messages": messages, **settings}


def image_part(data: bytes, kind: str = "png") -> dict[str, Any]:
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def questions(adapters: tuple[str, ...], visual: str, picture: Path, tokens: int) -> list[Question]:
    """What people ask: greedy and with seeds, base and adapters, alone and mixed, long talks, and a picture.

    adapters: two that read text; visual: one that reads pictures; tokens: of an answer at most.
    """
    one, two = adapters
    greedy = {"temperature": 0.0, "max_tokens": tokens}
    sampled = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "max_tokens": tokens, "repetition_penalty": 1.1}
    mixed = {**greedy, "mix": two, "mix_strength": 0.5}
    talk = (("What is bread made of?", "Flour, water, salt and yeast."), ("And cake?", "Flour, eggs and sugar."))
    asked = []
    for through in ("page", "v1", "chat", "stream"):
        asked += [
            Question("What is the sun?", through, settings=greedy),
            Question("How do I bake bread?", through, one, settings=greedy),
            Question("Meeting with Tom on Friday at 3 pm.", through, two, settings=greedy),
            Question("What is this?", through, visual, picture, settings=greedy),
            Question("Name three colours.", through, one, settings=mixed),
            Question("Write about the sea.", through, settings=sampled),
            Question("Tell me of your day.", through, two, settings={**sampled, "strength": 0.7}),
        ]
    asked += [Question("How long does it take?", way, one, said=talk, settings=greedy) for way in ("page", "v1")]
    return asked
