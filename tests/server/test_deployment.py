"""Where the page is served: the command line, a Space without a GPU, how the program ends, and its log."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from adapter.base import embedded
from adapter.server.deployment import Place, find_place, parse
from adapter.server.limits import ANSWERS_PER_MINUTE
from tests.app_process import PATIENCE, ROOT, AppProcess, app_process

SPACE = {"SYSTEM": "spaces", "SPACE_ID": "me/page", "GRADIO_SERVER_NAME": "0.0.0.0"}


# The front matter, and the command line.


def place(command: str = "", **environment: str) -> Place:
    return find_place(parse(command.split()), environment)


@pytest.mark.parametrize(
    ("command", "environment", "expected"),
    [
        ("", {}, {"host": "127.0.0.1", "port": None, "space": False, "public": False, "training": True}),
        ("--no-train", {}, {"training": False}),
        ("--share", {}, {"share": True, "public": True, "training": False}),
        ("--host 0.0.0.0", {}, {"public": True, "training": False}),
        ("", {"GRADIO_SERVER_NAME": "0.0.0.0"}, {"host": "0.0.0.0", "public": True, "training": False}),
        ("--public --train", {}, {"training": True}),
        ("", SPACE, {"host": "0.0.0.0", "port": 7860, "public": True, "training": False}),
        ("--share", SPACE, {"share": False, "public": True}),  # a Space has its address
        ("", {**SPACE, "LLAMA_ADAPTER_TRAIN": "1", "GRADIO_SERVER_PORT": "90"}, {"training": True, "port": 90}),
    ],
)
def test_arguments_and_environment_describe_the_place(command, environment, expected):
    assert {name: getattr(place(command, **environment), name) for name in expected} == expected


def test_password_may_come_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("LLAMA_ADAPTER_AUTH", "me:secret")
    assert place().auth == "me:secret" and place("--auth you:other").auth == "you:other"
    with pytest.raises(SystemExit):
        parse(["--help"])
    monkeypatch.setenv("LLAMA_ADAPTER_AUTH", "secret")
    with pytest.raises(SystemExit):
        parse([])
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err


# Real processes.


@contextlib.contextmanager
def space(folder: Path, base: Path, *arguments: str, **environment: str) -> Iterator[AppProcess]:
    """The program over a tiny base, with an empty home folder and just this environment."""
    cache = folder / "cache"
    cache.mkdir()
    encoder = embedded.encoder_weights().parent
    (cache / encoder.name).symlink_to(encoder)
    inherited = {"PATH": os.environ["PATH"], "HOME": str(folder), "LLAMA_ADAPTER_CACHE": str(cache)}
    environment |= {"OMP_NUM_THREADS": "1"}
    arguments = "--base", str(base), *arguments
    with app_process(folder, *arguments, inherited=inherited, environment=environment) as server:
        yield server


@pytest.mark.slow
def test_space_without_gpu(tmp_path, tiny_folder):
    from gradio_client.exceptions import AppError

    with space(tmp_path, tiny_folder, **SPACE) as server:
        # Behind the proxy: https, the Space's own name, and visitors with addresses.
        name = "me-page.hf.space"
        proxied = {"Host": name, "X-Forwarded-Proto": "https", "X-Forwarded-Host": name}
        response = server.get("/config", headers=proxied)
        assert "frame-ancestors 'self' https://huggingface.co" in response.headers["content-security-policy"]
        config = response.json()
        assert config["root"] == "https://me-page.hf.space"
        parts = {component["props"].get("elem_id") for component in config["components"]}
        assert "upload_adapter" not in {event["api_name"] for event in config["dependencies"]}
        assert "compare" in parts and not parts & {"adapter-upload", "train", "train-start", "train-upload"}
        # The address that counts is the last one that no proxy of the Space's network has.
        mine = {"X-Forwarded-For": "8.8.8.8, 203.0.113.7, 10.1.2.3"}
        there, far = server.client(headers=mine), "203.0.113.7, 10.1.2.3"
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as program, ThreadPoolExecutor(8) as pool:
            asked = pool.map(
                lambda i: program.post(
                    "/v1/chat/completions", json=body, headers={"X-Forwarded-For": f"8.8.8.{i}, {far}"}
                ),
                range(2 * ANSWERS_PER_MINUTE),
            )
            refused = [answer for answer in asked if answer.status_code == 429]
        assert len(refused) > 0 and int(refused[0].headers["retry-after"]) >= 1
        with pytest.raises(AppError, match="address"), ThreadPoolExecutor(8) as pool:  # answers of the page count
            list(pool.map(lambda _: there.predict(message="hi", max_tokens=1, api_name="/chat"), range(60)))
        assert server.complete(headers={"X-Forwarded-For": "203.0.113.8, 10.1.2.3"}, tokens=1).status_code == 200
        # A file that is only named is not fetched.
        named = {"path": "https://example.com/x.png", "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(AppError, match="nothing is fetched"):
            there.predict(message="hi", image=named, api_name="/chat")


def stream(server: AppProcess, seen: list[str]) -> None:
    """Reads a long answer line by line, until it ends or fails or the server is gone."""
    body = {"model": "base", "stream": True, "max_tokens": 2000, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "Tell me a very long story about a fox and a bear."}]
    with (
        contextlib.suppress(httpx.HTTPError),
        httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE) as response,
    ):
        for line in response.iter_lines():
            seen.append(line)


# The log.

PROGRAM = r"""
import logging
from adapter.server.deployment import set_up_logs
attack = "nobody\nERROR adapter: forged\r\x1b[2J\u202e\ud800"
logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
set_up_logs()
log = logging.getLogger("adapter.server")
log.warning("There is no '%s'", attack)
try:
    raise ValueError(attack)
except ValueError:
    log.exception("failed")
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.propagate = True
    logging.getLogger("uvicorn").propagate = False
    uvicorn.exception("failed")
"""


def test_the_log_is_not_forged():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, timeout=PATIENCE)
    lines = ended.stderr.decode().splitlines()
    assert ended.returncode == 0 and [line for line in lines if not line.startswith("  ")] == [
        r"WARNING adapter.server: There is no 'nobody\nERROR adapter: forged\r\x1b[2J\u202e\ud800'",
        "ERROR adapter.server: failed",
        "ERROR uvicorn.error: failed",
    ]
    assert all(line.isprintable() for line in lines) and sum("forged" in line for line in lines) == 3
