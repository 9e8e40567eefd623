"""Where the page is served and what follows: address, password, what visitors may do, uploads; the log."""

import argparse
import contextlib
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from adapter.base.embedded import QUANTIZATIONS
from adapter.errors import printable
from adapter.server.limits import ANSWERS_AT_ONCE, ANSWERS_PER_MINUTE, UPLOADS_PER_HOUR

FIRST_PORT = 7860
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"
AUTH_VARIABLE = "LLAMA_ADAPTER_AUTH"
FRAMES_VARIABLE = "LLAMA_ADAPTER_FRAMES"
# Visitors of a Space come through proxies of its own network, which alone are believed about addresses.
PROXIES_OF_A_SPACE = "127.0.0.1,::1,10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fc00::/7"
_PREFIX = "llama-adapter-"
_LOCK = ".lock-of-llama-adapter"  # marks a folder of uploads as made here


@dataclass(frozen=True)
class Place:
    """port: None for the first free one. public: whether others than programs on this machine may ask. training:
    whether visitors may train adapters and upload their own. frames: origins that may show the page in a frame.
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


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of app.py, checked; ends the program with a sentence where they are wrong."""
    parser = argparse.ArgumentParser("app.py", description="Chat with a frozen LLaMA through swappable adapters.")
    add, secret = parser.add_argument, os.environ.get(AUTH_VARIABLE) or None  # blanks alone are refused below
    add("--host", help="address to listen on (default GRADIO_SERVER_NAME, or 127.0.0.1: this machine only)")
    add("--port", type=int, help=f"port (default: the first free one from GRADIO_SERVER_PORT or {FIRST_PORT})")
    add("--base", metavar="NAME", help="Hugging Face id, folder or GGUF file (default: the embedded one)")
    add_quantization(parser)
    add_adapters(parser, "another folder of adapters, looked into before assets/adapters; may be repeated")
    what = "gigabytes for the keys and values of running and earlier conversations (default: a third of the "
    what += "memory that is free once the base is loaded, or what 16 whole conversations take if that is less)"
    add("--cache-gb", metavar="N", type=float, help=what)
    what = "answer by replicas on Ray: `local` starts them here, `auto` or an address joins a cluster"
    add("--cluster", metavar="ADDRESS", type=_cluster, help=what)
    what = "replicas of the base (default 1); `1-4` starts more of them where many wait. With --cluster"
    add("--replicas", metavar="N", type=_replicas, help=what)
    add("--share", action="store_true", help="open a public link through gradio.live")
    what = "others may ask, through a proxy on this machine for example; implied by --share and another --host"
    add("--public", action="store_true", help=what)
    what = f"ask for this name and password; {AUTH_VARIABLE} in the environment is not seen by other users"
    add("--auth", metavar="USER:PASS", default=secret and (secret.strip() or secret), help=what)
    what = "whether visitors may train adapters and bring their own (default: if only this machine may ask)"
    add("--train", action=argparse.BooleanOptionalAction, help=what)

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
    return arguments


def add_adapters(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --adapters, which takes folders only; one that is not there yet, which is said, may come."""

    def folder(text: str) -> Path:
        if Path(text).is_file():
            raise argparse.ArgumentTypeError(f"{text} is a file; name the folder that the adapters are in")
        if not Path(text).is_dir():
            print(f"There is no folder {text} yet; its adapters appear once there is.", file=sys.stderr)
        return Path(text)

    parser.add_argument("--adapters", metavar="DIR", type=folder, action="append", default=[], help=help)


def add_quantization(parser: argparse.ArgumentParser) -> None:
    """Adds --quantization and --keep-packed."""
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="auto")
    help = "keep the packed weights, if there is room on the disk, beside the base's files, to load faster "
    help += "next time"
    parser.add_argument("--keep-packed", action="store_true", help=help)


def _cluster(text: str) -> str:
    if text not in ("local", "auto") and re.fullmatch(r".+:[0-9]{1,5}", text) is None:
        raise argparse.ArgumentTypeError(f"a cluster is local, auto or HOST:PORT, not {text!r}")
    return text


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
    host = arguments.host or environment.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if space else "127.0.0.1")
    host, port = host.strip("[]").lower(), arguments.port
    if space and port is None:
        given = environment.get("GRADIO_SERVER_PORT", "")
        port = int(given) if given.isdecimal() else FIRST_PORT
    share = arguments.share and not space  # a Space has its public address
    public = arguments.public or space or share or host not in ("127.0.0.1", "localhost", "::1")
    # Not for strangers by default: training takes the machine for minutes, and an upload is their file.
    training = arguments.train
    if training is None:
        variable = environment.get("LLAMA_ADAPTER_TRAIN", "").strip().lower()
        training = variable in ("1", "true", "yes", "on") if variable else not public
    return Place(
        host=host,
        port=port,
        share=share,
        space=space,
        zero_gpu=space and environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"),
        auth=arguments.auth,
        public=public,
        training=training,
        frames=" ".join(environment.get(FRAMES_VARIABLE, "https://huggingface.co" if space else "").split()),
    )


def describe_access(place: Place) -> str:
    """What strangers may do here, in one line."""
    acts = "chat, send pictures, train and bring adapters" if place.training else "chat and send pictures"
    if not place.public:
        return f"Only this machine may ask: it may {acts}, without limits. --public lets others and proxies in."
    who = "Who knows the password" if place.auth else "Whoever reaches this address"
    password = "" if place.auth else " --auth USER:PASS asks for a password."
    answers = f"{ANSWERS_PER_MINUTE} answers a minute, {ANSWERS_AT_ONCE} at once"
    return f"{who} may {acts}. One address gets {answers}, and {UPLOADS_PER_HOUR} uploads an hour.{password}"


def allow_open_files() -> None:
    """Raise the soft limit of open files to 10,240, as far as the hard one allows: a browser opens six at first,
    so that the 256 of macOS are fewer than a class needs, and the usual 1,024 are not many.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 10_240 if hard == resource.RLIM_INFINITY else min(hard, 10_240)
        if 0 <= soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def runs_folder() -> Path:
    """The folder of adapters that are trained or uploaded here. May not exist yet."""
    return Path(os.environ.get("LLAMA_ADAPTER_RUNS") or Path(__file__).parents[2] / "runs").expanduser().absolute()


@contextlib.contextmanager
def upload_folder(parent: str | None) -> Iterator[Path]:
    """A new folder in `parent`, or where temporary files lie, for this user alone, deleted when the block ends.
    Those of this user's killed servers are deleted now, nothing else there. Raises OSError if it cannot be made.
    """
    below = Path(parent or tempfile.gettempdir())
    below.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in below.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):  # it is in use, or somebody else deletes it too
            own, mark = old.lstat().st_uid == os.geteuid(), old / _LOCK
            if own and mark.is_file() and not (old.is_symlink() or mark.is_symlink()):
                with FileLock(mark, timeout=0):
                    shutil.rmtree(old, ignore_errors=True)
    # Nobody can guess its name and put a link there: mkdtemp makes it, with rights for its owner alone. It gets a
    # name of its own once it is locked: another server that starts now would take it for a leftover.
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=below)).resolve()
    folder = new.with_name(f"{_PREFIX}{new.name.removeprefix('.new-')}")
    with FileLock(new / _LOCK):  # which the system drops when its owner dies, however it dies
        new.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class InertFormatter(logging.Formatter):
    """A message is one line, and those of a traceback are indented: what visitors send forges none of the log."""

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
