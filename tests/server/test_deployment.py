"""Where the page is served: the command line, a Space without a GPU, how the program ends, and its log.

A Space is imitated by a real `python app.py` with the environment that Hugging Face gives it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

import app
from adapter.base import embedded
from adapter.errors import LoadError
from adapter.server.deployment import Place, describe_access, find_place, parse
from adapter.server.limits import ANSWERS_PER_MINUTE
from tests.app_process import PATIENCE, ROOT, AppProcess, app_process, free_port
from tests.tiny_models import endless_base

SPACE = {"SYSTEM": "spaces", "SPACE_ID": "me/page", "GRADIO_SERVER_NAME": "0.0.0.0"}


# The front matter, and the command line.


def test_readme_front_matter_is_valid_for_spaces() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    needs = {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    assert front["sdk"] == "gradio" and needs["gradio"].specifier.contains(front["sdk_version"])
    assert (ROOT / front["app_file"]).is_file()
    assert tuple(map(int, front["python_version"].split("."))) >= (3, 10)
    assert re.fullmatch(r"\d+[mh]", front["startup_duration_timeout"])
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colours
    assert len(front["short_description"]) <= 60, "the Hub refuses longer ones"
    assert "spaces" not in needs, "Spaces installs it by itself"


def place(command: str = "", **environment: str) -> Place:
    return find_place(parse(command.split()), environment)


@pytest.mark.parametrize(
    ("command", "environment", "expected"),
    [
        ("", {}, {"host": "127.0.0.1", "port": None, "space": False, "public": False, "training": True}),
        ("--host ::1", {}, {"public": False, "training": True}),
        ("--no-train", {}, {"training": False}),
        ("", {"LLAMA_ADAPTER_TRAIN": "0"}, {"training": False}),
        ("--share", {}, {"share": True, "public": True, "training": False}),
        ("--host 0.0.0.0", {}, {"public": True, "training": False}),
        ("--public", {}, {"public": True, "training": False}),
        ("--public --train", {}, {"training": True}),
        ("", SPACE, {"host": "0.0.0.0", "port": 7860, "public": True, "training": False}),
        ("--share", SPACE, {"share": False, "public": True}),  # a Space has its address
        ("", {**SPACE, "GRADIO_SERVER_PORT": "7000"}, {"port": 7000}),
        ("--port 7001", {**SPACE, "GRADIO_SERVER_PORT": "7000"}, {"port": 7001}),
        ("", {**SPACE, "LLAMA_ADAPTER_TRAIN": "1"}, {"training": True}),
        ("--train", SPACE, {"training": True}),
        ("--no-train", {**SPACE, "LLAMA_ADAPTER_TRAIN": "1"}, {"training": False}),
    ],
)
def test_arguments_and_environment_describe_the_place(
    command: str, environment: dict[str, str], expected: dict[str, Any]
) -> None:
    found = place(command, **environment)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "Only this machine may ask: it may chat, send pictures, train and bring adapters, without"),
        ("--no-train", "Only this machine may ask: it may chat and send pictures, without limits."),
        ("--public", "Whoever reaches this address may chat and send pictures. One address gets 30 answers"),
        ("--share --train", "Whoever reaches this address may chat, send pictures, train and bring"),
        ("--public --auth me:secret", "Who knows the password may chat and send pictures."),
    ],
)
def test_a_line_at_start_says_what_strangers_may(command: str, sentence: str) -> None:
    here = place(command)
    line = describe_access(here)
    assert sentence in line and "secret" not in line
    assert ("--public" in line) == (not here.public)
    assert ("--auth" in line) == (here.public and here.auth is None)


def test_password_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMA_ADAPTER_AUTH", "me:secret")
    assert place().auth == "me:secret" and place("--auth you:other").auth == "you:other"
    with pytest.raises(SystemExit):
        parse(["--help"])
    monkeypatch.setenv("LLAMA_ADAPTER_AUTH", "secret")
    with pytest.raises(SystemExit):
        parse([])
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("command", "replicas"),
    [("local", (1, 1)), ("auto --replicas 3", (3, 3)), ("auto --replicas 1-4", (1, 4))]
    + [(f"auto --replicas={wrong}", None) for wrong in ("0", "4-1", "-1", "a", "1-", "")],
)
def test_replicas_are_a_number_or_a_range(command: str, replicas: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if replicas is not None:
        assert parse(f"--cluster {command}".split()).replicas == replicas
        return
    with pytest.raises(SystemExit):
        parse(f"--cluster {command}".split())
    assert "replicas are a number" in capsys.readouterr().err


def test_a_cluster_without_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "adapter.cluster.engine", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LoadError, match=r"pip install '\.\[cluster\]'"):
        app.import_cluster()


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
def test_space_without_gpu(tmp_path: Path, tiny_folder: Path) -> None:
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
        there = server.client(headers=mine)
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        with (
            httpx.Client(base_url=server.url, headers=mine, timeout=PATIENCE) as program,
            ThreadPoolExecutor(8) as pool,
        ):
            asked = pool.map(
                lambda _: program.post("/v1/chat/completions", json=body), range(ANSWERS_PER_MINUTE + 8)
            )
            refused = [answer for answer in asked if answer.status_code == 429]
        assert len(refused) > 0 and int(refused[0].headers["retry-after"]) >= 1
        with pytest.raises(AppError, match="address"):  # answers of the page are counted, too
            for _ in range(8):
                there.predict(message="hi", max_tokens=1, api_name="/chat")
        assert server.complete(headers={"X-Forwarded-For": "203.0.113.8"}, tokens=1).status_code == 200
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


@pytest.mark.slow
def test_ctrl_c_while_streaming_exits_cleanly(tiny_folder: Path, tmp_path: Path) -> None:
    with space(tmp_path, endless_base(tiny_folder, tmp_path / "base")) as server:
        seen: list[str] = []
        threading.Thread(target=stream, args=(server, seen), daemon=True).start()
        job = server.client().submit(message="hello", max_tokens=2000, api_name="/chat")
        server.wait_until(lambda: len(seen) > 3 and len(job.outputs()) > 1)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        ours = server.log.split("Open http")[1]
        assert not re.search("Traceback|terminate|Error|Exception", ours), ours


@pytest.mark.slow
def test_sigterm_while_loading_exits_cleanly() -> None:
    command = [sys.executable, "app.py", "--port", str(free_port())]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = b""
    while b"Open http" not in said:
        said += process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and b"Traceback" not in rest and b"terminate" not in rest, rest.decode()


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


def test_the_log_is_not_forged() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, timeout=PATIENCE)
    lines = ended.stderr.decode().splitlines()
    assert ended.returncode == 0 and [line for line in lines if not line.startswith("  ")] == [
        r"WARNING adapter.server: There is no 'nobody\nERROR adapter: forged\r\x1b[2J\u202e\ud800'",
        "ERROR adapter.server: failed",
        "ERROR uvicorn.error: failed",
    ]
    assert all(line.isprintable() for line in lines) and sum("forged" in line for line in lines) == 3
