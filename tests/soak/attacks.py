"""Attackers. Each attack is a function of an Attacker that returns what it got, in a word or a status."""

import contextlib
import json
import random
import secrets
import socket
import string
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx
import torch
from safetensors.torch import load_file, save_file

from adapter.method.checkpoint import CONFIG, WEIGHTS
from adapter.server.transcript import FORMAT, VERSION
from tests.app_process import LONG_PATIENCE as PATIENCE
from tests.base.hostile_pictures import DECODED, REFUSED
from tests.soak.people import FILE_DATA, KEY, USER, Connection, NoAnswer, image_part

SECRETS = ("Traceback", "site-packages", "root:x:0", 'File "', "lib/python3")
LARGEST = 3.4e38  # rounds to infinity in bfloat16
ANSWER_TOKENS = 48
PAUSE = 0.2  # seconds between the attacks of one attacker: the honest need some of two cores


class Broken(Exception):
    """The attack had success: somebody got in, or a secret got out."""


@dataclass
class Attacker:
    """One attacker. network: the first three bytes of the addresses that it changes between.

    adapters: honest ones, the last one visual; evil: harmful ones that the server finds in its folder.
    """

    url: str
    network: str
    chance: random.Random
    adapters: tuple[str, ...]
    evil: tuple[str, ...]
    pictures: tuple[Path, ...]
    _connection: Connection | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"{self.network}.{self.chance.randrange(1, 250)}"

    def connection(self, moves: bool = True) -> Connection:
        """A signed-in client. moves: to a new address now and then, past the limits of one address."""
        if self._connection is None or (moves and self.chance.random() < 0.1):
            self.close()
            self._connection = Connection(self.url, self.address)
        self._connection.session = secrets.token_hex(6)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def stranger(self) -> httpx.Client:
        """A client that has not signed in, always of the same address."""
        transport = httpx.HTTPTransport(local_address=f"{self.network}.250")
        return httpx.Client(base_url=self.url, transport=transport, timeout=PATIENCE)

    def socket(self, buffer: int | None = None) -> socket.socket:
        """A bare connection. buffer: bytes that may arrive unread."""
        place = urlsplit(self.url)
        assert place.hostname is not None
        found = socket.socket()
        if buffer is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        found.settimeout(PATIENCE)
        found.bind((self.address, 0))
        found.connect((place.hostname, place.port))
        return found


Attack = Callable[[Attacker], str]


def checked(response: httpx.Response) -> str:
    """The status. Raises Broken if the response tells of the machine."""
    if "event-stream" not in response.headers.get("content-type", ""):
        text = response.read().decode(errors="replace")
        if found := [secret for secret in SECRETS if secret in text]:
            raise Broken(f"{response.request.method} {response.request.url} tells {found}: {text[:300]}")
    return str(response.status_code)


def complete(attacker: Attacker, body: dict[str, Any]) -> str:
    # Not json=, which refuses the half characters that some attacks send.
    return checked(attacker.connection().http.post("/v1/chat/completions", content=json.dumps(body)))


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


# Adapters that hurt.


def write_evil(good: Path, visual: Path, folder: Path) -> tuple[str, ...]:
    """Writes into `folder` adapters whose every number is finite and whose answers are not; returns their names.

    good, visual: adapters that are changed.
    """
    for name, source, which, value, changes in (
        ("huge-prompts", good, "prompts", 1e38, {}),
        ("largest-prompts", good, "prompts", LARGEST, {"prompt_norm": True}),
        ("huge-gates", good, "gates", LARGEST, {"gate_activation": "identity"}),
        ("huge-visual-prompts", visual, "prompts", 1e38, {}),
        ("huge-visual", visual, "projection", 1e35, {}),
    ):
        changed = {**json.loads((source / CONFIG).read_text()), **changes}
        tensors = load_file(source / WEIGHTS)
        for tensor in (t for key, t in tensors.items() if key.startswith(which) and t.is_floating_point()):
            signs = torch.where(torch.rand(tensor.shape) < 0.5, -1.0, 1.0)
            limit = torch.finfo(tensor.dtype).max
            tensor.copy_((signs * value).clamp(-limit, limit))
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / WEIGHTS)
        (folder / name / CONFIG).write_text(json.dumps(changed))
    return tuple(sorted(path.name for path in folder.iterdir()))


def overflow(attacker: Attacker) -> str:
    """Answers of an evil adapter, alone or mixed into an honest one."""
    chance, name = attacker.chance, attacker.chance.choice(attacker.evil)
    content: Any = "Say something." * chance.choice((1, 1, 20))
    if "visual" in name:
        content = [{"type": "text", "text": "What is this?"}, image_part(attacker.pictures[0].read_bytes())]
    body = {"model": name, "messages": user(content), "max_tokens": ANSWER_TOKENS}
    body |= {"temperature": chance.choice((0, 1.0)), "strength": chance.choice((1e-30, 0.5, 1, 2.0))}
    if chance.random() < 0.3:
        body |= {"model": chance.choice(attacker.adapters), "mix": {name: 2.0}}
        body["messages"] = user("Say something.")
    return complete(attacker, body)


# Garbage.

ROUTES = (Path(__file__).parent / "routes.txt").read_text().split()
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW")
KEYS = (
    *("data", "fn_index", "session_hash", "event_id", "event_data", "trigger_id", "messages", "model", "path"),
    *("component_id", "fn_name", "meta", "content", "role", "type", "file", "props", "stream", "max_tokens"),
)
PLACES = (
    "../../../etc/passwd",
    "/proc/self/environ",
    "app.py",
    "C:\\Windows\\win.ini",
    "file:///etc/passwd",
    "\x00",
)


def random_json(chance: random.Random, depth: int = 4, places: Sequence[str] = PLACES) -> Any:
    """Any JSON, often with the keys that the page's own requests have. places: of files, among its texts."""
    kind = chance.randrange(9) if depth else 9
    if kind < 3:
        keys = chance.sample(KEYS, chance.randrange(1, 6))
        return {key: random_json(chance, depth - 1, places) for key in keys}
    if kind == 3:
        return [random_json(chance, depth - 1, places) for _ in range(chance.randrange(5))]
    words = "".join(chance.choices(string.printable, k=20))
    values = (None, True, -1, 10**30, 0.5, "", words, "\ud800", FILE_DATA, {"__type__": "update"})
    return chance.choice((*values, chance.choice(places), chance.choice(places)))


def garbage(attacker: Attacker) -> str:
    """Any method at any route with any body and headers; signed in or not."""
    chance = attacker.chance
    headers = {
        "content-type": chance.choice(("application/json", "multipart/form-data; boundary=x", "text/plain", "x")),
        "accept": chance.choice(("*/*", "text/event-stream", "")),
        "range": chance.choice(("bytes=0-", "bytes=9999999999-", "x")),
    }
    sent = {key: value for key, value in headers.items() if chance.random() < 0.6}
    with contextlib.ExitStack() as stack:
        signed_in = chance.random() < 0.7
        http = attacker.connection().http if signed_in else stack.enter_context(attacker.stranger())
        method, route = chance.choice(METHODS), chance.choice(ROUTES)
        body = json.dumps(random_json(chance)).encode() if chance.random() < 0.7 else chance.randbytes(300)
        response = stack.enter_context(http.stream(method, route, content=body, headers=sent))
        if route == "/logout" and signed_in:
            attacker.close()
            attacker._connection = None
        return checked(response)


# The page's events.


def forged(attacker: Attacker) -> str:
    """An event of the page with wrong types, foreign files, states and sessions, or of a number that is none."""
    chance, connection = attacker.chance, attacker.connection()
    names = [d["api_name"] for d in connection.config["dependencies"] if not d["api_name"].startswith("js_fn")]
    name = chance.choice([n for n in names if n not in ("start", "resume")])  # a run would take all cores
    data = connection.defaults(name)
    for _ in range(chance.randrange(1, 4)):
        if data:
            data[chance.randrange(len(data))] = random_json(chance)
    more: dict[str, Any] = {}
    if chance.random() < 0.3:
        more["fn_index"] = chance.choice((-1, 10**9, "send", None, 1.5))
    if chance.random() < 0.3:
        more["session_hash"] = chance.choice(("", "../..", "x" * 5000, None, [1], "\x00"))
    if chance.random() < 0.3:
        more |= {"event_data": random_json(chance), "trigger_id": chance.choice((None, -1, "x", 10**20))}
    joined = connection.join(name, data, **more)
    status = checked(joined)
    if joined.status_code == 200 and "session_hash" not in more and chance.random() < 0.7:
        for message in connection.updates(seconds=3):
            if found := [secret for secret in SECRETS if secret in json.dumps(message)]:
                raise Broken(f"{name} tells {found}")
            if message["msg"] in ("process_completed", "unexpected_error"):
                return f"{status}, {'done' if message.get('success') else 'refused'}"
    return status


# Clients that leave, or stay.


def http_bytes(route: str, body: bytes) -> bytes:
    """A POST by hand."""
    lines = [f"POST {route} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", f"Authorization: {KEY['Authorization']}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def long_answer(attacker: Attacker) -> bytes:
    body = {"model": attacker.chance.choice(attacker.adapters), "messages": user("Go on."), "stream": True}
    return json.dumps({**body, "max_tokens": 2000}).encode()


def leave(attacker: Attacker) -> str:
    """Closes the socket at some stage of a streamed answer, politely or by a reset."""
    chance = attacker.chance
    whole = http_bytes("/v1/chat/completions", long_answer(attacker))
    stage = chance.choice(("body", "sent", "text"))
    with attacker.socket() as connection:
        if chance.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(whole[:-20] if stage == "body" else whole)
        received = b"" if stage != "text" else connection.recv(500)
        while received and b'"content"' not in received:
            received = connection.recv(500)
    return f"left: {stage}"


def never_read(attacker: Attacker) -> str:
    """Asks for a long answer and reads nothing of it for some seconds."""
    with attacker.socket(buffer=2048) as connection:
        connection.sendall(http_bytes("/v1/chat/completions", long_answer(attacker)))
        time.sleep(attacker.chance.uniform(1, 6))
    return "unread"


def unread(attacker: Attacker) -> str:
    """Opens one large conversation in many sessions of one address that fetch no result."""
    connection = attacker.connection(moves=False)
    rows = [{"role": "user", "text": "x" * 19_000}, {"role": "assistant", "text": "y" * 90_000}] * 10
    text, statuses = json.dumps({"format": FORMAT, "version": VERSION, "messages": rows}), []
    for _ in range(40):
        connection.session = secrets.token_hex(6)
        opened = {"id": "unread", "source": "file", "text": text}
        statuses.append(checked(connection.join("open", [], event_data=opened)))
    return ", ".join(sorted(set(statuses)))


# Pictures.


HURTFUL = (
    *("one bit, 144 megapixels", "more chunks than needed", "a large canvas", "a format that is not read"),
    *("a cut PNG", "a cut JPEG", "RGB, interlaced", "EXIF of 2.5 GB in a PNG"),
)


def write_pictures(honest: Path, folder: Path) -> tuple[Path, ...]:
    """An honest picture, then those that hurt, and what is none."""
    folder.mkdir()
    whole = honest.read_bytes()
    files = {
        "honest.png": whole,
        **{f"{number}.png": {**REFUSED, **DECODED}[name]() for number, name in enumerate(HURTFUL)},
        "script.png": b"<svg onload='alert(1)'/><script>1</script>",
        "empty.png": b"",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return tuple(folder / name for name in files)


def pictures(attacker: Attacker) -> str:
    """A picture that hurts, by /v1 or the chat."""
    chance = attacker.chance
    file, visual = chance.choice(attacker.pictures[1:]), attacker.adapters[-1]
    if chance.randrange(3) == 0:
        content = [{"type": "text", "text": "What is this?"}, image_part(file.read_bytes())]
        return complete(attacker, {"model": visual, "messages": user(content), "max_tokens": 4})
    connection = attacker.connection()
    data = connection.message("What is this?", [connection.upload(file)], adapter=visual, max_tokens=16)
    outputs, toasts = connection.fire("send", data)
    return "toast" if toasts or outputs is None else "answer"


# Storms and guesses.


def login(attacker: Attacker) -> str:
    """Guesses the password, at every spelling of the route and by the key of /v1."""
    chance, guess = attacker.chance, secrets.token_hex(4)
    with attacker.stranger() as http:
        if chance.random() < 0.3:
            response = http.get("/v1/models", headers={"Authorization": f"Bearer {USER}:{guess}"})
        else:
            route = chance.choice(("/login", "/login/", "/%2flogin", "/login?x=1", "/LOGIN", "/%6cogin"))
            response = http.post(route, data={"username": chance.choice((USER, "admin")), "password": guess})
        if response.status_code == 200 and (response.headers.get("set-cookie") or "data" in response.text):
            raise Broken(f"a guess got in: {response.request.url}")
        return checked(response)


def uploads(attacker: Attacker) -> str:
    """Uploads: too many at once, or one that is cut off."""
    http = attacker.connection().http
    if attacker.chance.random() < 0.5:
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(10**8)}
        begun = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"y" * 100_000
        return checked(http.post("/gradio_api/upload", content=iter([begun]), headers=headers))
    return checked(http.post("/gradio_api/upload", files=[("files", (f"{i}.png", b"z")) for i in range(300)]))


ATTACKS: tuple[Attack, ...] = (*(overflow, garbage, forged, leave, never_read, unread, pictures, login, uploads),)


def outcome(attack: Attack, attacker: Attacker) -> str:
    """What one attack got. Raises Broken."""
    try:
        return attack(attacker)
    except NoAnswer as said:
        status = str(said)[:3]
        return status if status.isdecimal() else f"no answer: {str(said)[:60]}"
    except (httpx.TimeoutException, TimeoutError):
        return "timeout"
    except (httpx.HTTPError, httpx.InvalidURL, h11.ProtocolError, OSError, UnicodeError) as error:
        return f"({type(error).__name__})"
