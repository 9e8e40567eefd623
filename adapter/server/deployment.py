"""Where the page is served and what follows: address, password, what visitors may do; the server's log."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter.errors import printable
from adapter.server.limits import ANSWERS_AT_ONCE, ANSWERS_PER_MINUTE, UPLOADS_PER_HOUR

FIRST_PORT = 7860
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"
AUTH_VARIABLE = "LLAMA_ADAPTER_AUTH"
TRAIN_VARIABLE = "LLAMA_ADAPTER_TRAIN"
RUNS_VARIABLE = "LLAMA_ADAPTER_RUNS"
FRAMES_VARIABLE = "LLAMA_ADAPTER_FRAMES"
# As in adapter.base.llama, which imports torch.
QUANTIZATIONS = ("auto", "packed-int8", "packed-int4", "nf4", "int8", "none")
LOCAL = {"127.0.0.1", "localhost", "::1"}
# Visitors of a Space come through proxies of its own network, which alone are believed about addresses.
PROXIES_OF_A_SPACE = "127.0.0.1,::1,10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fc00::/7"


@dataclass(frozen=True)
class Place:
    """host, port: to listen on, port None being the first free one. auth: USER:PASS.

    public: whether others than programs on this machine may ask; if not, their requests are refused. training:
    whether visitors may train adapters and upload their own. frames: the origins of pages that may show this one
    in a frame, as in a content security policy.
    """

    host: str
    port: int | None
    share: bool
    space: bool
    zero_gpu: bool
    auth: str | None
    public: bool
    training: bool
    frames: str


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py", description="Chat with a frozen LLaMA through swappable adapters."
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, help=f"port (default: the first free one from {FIRST_PORT})")
    parser.add_argument(
        "--base", metavar="NAME", help="Hugging Face id or folder of a LLaMA (default: the embedded one)"
    )
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="auto")
    parser.add_argument(
        "--adapters",
        metavar="DIR",
        type=Path,
        action="append",
        help="another folder of adapters, looked into before assets/adapters; may be repeated",
    )
    parser.add_argument(
        "--cache-gb",
        metavar="N",
        type=float,
        help="gigabytes for the keys and values of running and earlier conversations (default: a third of the "
        "memory that is free once the base is loaded, or what 16 whole conversations take if that is less)",
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="answer by replicas on Ray: `local` starts them here, `auto` or an address joins a cluster",
    )
    parser.add_argument(
        "--replicas",
        metavar="N",
        type=_replicas,
        help="replicas of the base (default 1); `1-4` starts more of them where many wait. With --cluster",
    )
    parser.add_argument("--share", action="store_true", help="open a public link through gradio.live")
    parser.add_argument(
        "--public",
        action="store_true",
        help="others may ask, through a proxy on this machine for example; implied by --share and another --host",
    )
    parser.add_argument(
        "--auth",
        metavar="USER:PASS",
        default=os.environ.get(AUTH_VARIABLE) or None,
        help=f"ask for this name and password; {AUTH_VARIABLE} in the environment is not seen by other users",
    )
    parser.add_argument(
        "--train",
        action=argparse.BooleanOptionalAction,
        help="whether visitors may train adapters and bring their own (default: if only this machine may ask)",
    )
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of app.py, checked; ends the program with a sentence where they are wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.auth is not None and not all(arguments.auth.partition(":")):
        parser.error(f"--auth and {AUTH_VARIABLE} need USER:PASS, both parts non-empty")
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        parser.error(f"--port must lie between 1 and 65535, got {arguments.port}")
    if arguments.cache_gb is not None and not 0 < arguments.cache_gb < 1e6:
        parser.error(f"--cache-gb must be a number of gigabytes above 0, got {arguments.cache_gb}")
    if arguments.replicas is not None and not arguments.cluster:
        parser.error("--replicas needs --cluster: local for this machine")
    arguments.replicas = arguments.replicas or (1, 1)
    arguments.cache_bytes = None if arguments.cache_gb is None else int(arguments.cache_gb * 1e9)
    for folder in arguments.adapters or ():
        if folder.is_file():
            parser.error(f"--adapters {folder} is a file; name the folder that the adapters are in")
    return arguments


def _replicas(text: str) -> tuple[int, int]:
    """The least and the most: "2" or "1-4"."""
    found = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text)
    least, most = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"replicas are a number of at least 1, or two such as 1-4, not {text!r}")
    return least, most


def find_place(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Place:
    """The place that arguments and environment describe."""
    space = bool(environment.get("SPACE_ID"))
    host = arguments.host or ("0.0.0.0" if space else "127.0.0.1")
    port = arguments.port
    if space and port is None:
        given = environment.get("GRADIO_SERVER_PORT", "")
        port = int(given) if given.isdecimal() else FIRST_PORT
    share = arguments.share and not space  # a Space has its public address
    public = arguments.public or space or share or host not in LOCAL
    return Place(
        host=host,
        port=port,
        share=share,
        space=space,
        zero_gpu=space
        and environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
        and importlib.util.find_spec("spaces") is not None,
        auth=arguments.auth,
        public=public,
        training=_may_train(arguments.train, environment.get(TRAIN_VARIABLE, ""), public),
        frames=" ".join(environment.get(FRAMES_VARIABLE, "https://huggingface.co" if space else "").split()),
    )


def _may_train(asked: bool | None, variable: str, public: bool) -> bool:
    """Not for strangers by default: training takes the machine for minutes, and an upload is their file."""
    if asked is not None:
        return asked
    if variable:
        return variable.lower() in ("1", "true", "yes", "on")
    return not public


def describe_access(place: Place) -> str:
    """What strangers may do here, in one line."""
    acts = "chat, send pictures, train and bring adapters" if place.training else "chat and send pictures"
    if not place.public:
        return f"Only this machine may ask: it may {acts}, without limits. --public lets others in."
    who = "Who knows the password" if place.auth else "Whoever reaches this address"
    password = "" if place.auth else " --auth USER:PASS asks for a password."
    answers = f"{ANSWERS_PER_MINUTE} answers a minute, {ANSWERS_AT_ONCE} at once"
    return f"{who} may {acts}. One address gets {answers}, and {UPLOADS_PER_HOUR} uploads an hour.{password}"


def runs_folder() -> Path:
    """The folder of adapters that are trained or uploaded here. May not exist yet."""
    return Path(os.environ.get(RUNS_VARIABLE) or Path(__file__).parents[2] / "runs").expanduser().absolute()


# What visitors send can neither begin a line of the log nor steer a terminal.


class InertFormatter(logging.Formatter):
    """A message is one line; the lines of a traceback are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return "\n".join(f"  {printable(line)}" for line in lines)


def set_up_logs() -> None:
    """Logs warnings of all libraries and what the server does. Call it again once uvicorn has its own handlers."""
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT)
    logging.getLogger("adapter").setLevel(logging.INFO)
    for name in (None, "uvicorn", "uvicorn.error", "uvicorn.access"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(InertFormatter(LOG_FORMAT))
