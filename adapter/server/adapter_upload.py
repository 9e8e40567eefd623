"""Adapters of visitors: an upload is checked in a staging folder, then moved into the store in one step; what was
uploaded or trained here can be deleted and put back. Files that can hold code are never opened.
"""

import contextlib
import filecmp
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from adapter.base import embedded
from adapter.errors import AdapterError, BadInput, LoadError
from adapter.files import names_lock
from adapter.formats import hub
from adapter.formats.tensors import sanitize
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter
from adapter.method.config import MAX_NAME_LENGTH, BaseFingerprint, check_name
from adapter.serve.form import check_form
from adapter.serve.store import AdapterStore
from adapter.server.archive import ArchiveLimits, unpack
from adapter.server.request_guard import ADAPTER_BYTES

MAX_BYTES = ADAPTER_BYTES  # of an upload, and again of what it unpacks to
FOLDER_ADAPTERS, FOLDER_BYTES = 500, 8 * 2**30  # of the store's folder for new ones, in which runs lie too
_FILES = {CONFIG: 100_000, WEIGHTS: MAX_BYTES, CARD: 200_000}  # of an adapter, and the bytes that each may have
DELETED, DELETED_SECONDS = ".deleted", 86_400  # a folder beside the adapters, and how long it keeps one at least
_RUN_LOCK = ".lock"  # of a training run, see train/run_folder.py
_NEEDED = f"Give a zip of its folder, or {CONFIG} and {WEIGHTS} together."
# A training run's whole folder may be uploaded; only the adapter is taken from it.
_ENDINGS = (".json", ".safetensors", ".md", *hub.PICKLES)
ZIP_LIMITS = ArchiveLimits(500, MAX_BYTES, MAX_BYTES, endings=_ENDINGS, kind="adapter", needed=_NEEDED)


def add_adapter(files: Sequence[Path], name: str, store: AdapterStore, base: BaseFingerprint) -> tuple[str, bool]:
    """Adds an adapter, a zip or its loose files, to the store's folder for new ones, as `name` or its own name.
    Returns its name there, and whether it is new. Raises BadInput or LoadError and then has changed nothing.
    Threads and processes may call it at once.
    """
    if not files or not all(file.is_file() for file in files):
        raise BadInput(f"Drop an adapter first, or again if it has been added. {_NEEDED}")
    into = store.incoming
    try:
        into.mkdir(parents=True, exist_ok=True)
        for stale in into.glob(".incoming-*"):  # left by a server that was killed
            with contextlib.suppress(OSError):
                if time.time() - stale.stat().st_mtime > 3600:
                    shutil.rmtree(stale, ignore_errors=True)
        # Hidden beside the adapters: stores do not see it, and a rename from it is atomic.
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=into, ignore_cleanup_errors=True) as staging:
            source, own_name = _unpack(files, Path(staging, ".unpacked"))  # no adapter has such a name
            if not (source / WEIGHTS).is_file():
                raise BadInput(f"{WEIGHTS} is missing. {_NEEDED}")
            folder = Path(staging, check_name(name.strip() or _to_name(own_name)))  # errors name the folder
            folder.mkdir()
            for part, most in _FILES.items():
                if (source / part).is_file():
                    if (source / part).stat().st_size > most:
                        raise BadInput(f"{part} has more than {most // 1000} kB. Shorten it.")
                    os.replace(source / part, folder / part)
            config = load_adapter(folder, base).config  # as strictly as for an answer
            if config.form is not None:
                check_form(config.form)
            if config.vision is not None and config.vision.encoder not in _known_encoders(store):
                seen = f"sees through the encoder '{sanitize(config.vision.encoder)}', which is not here"
                other = f"Bring one that uses {embedded.ENCODER}, or add it there: python -m adapter convert."
                raise BadInput(f"Adapter '{folder.name}' {seen}. {other}")
            with names_lock(into):
                return _move_into_store(folder, into, store)
    except OSError as error:
        text = "The adapter cannot be kept: somebody on the server has to make room, or let the folder be written."
        raise LoadError(text, str(error)) from error


def add_from_hub(
    place: str, name: str, store: AdapterStore, base: BaseFingerprint, token: str | bool
) -> tuple[str, bool]:
    """Adds the adapter of `owner/name[@revision]`, as `name` or its own. token: of who asks, or False.
    Raises BadInput or LoadError and then has kept nothing.
    """
    if (repository := hub.parse(place.strip())) is None:
        raise BadInput("An adapter on the Hub is named as owner/name.")
    with tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
        files = hub.download(*repository, (CONFIG, WEIGHTS, CARD), Path(folder), MAX_BYTES, token)
        if not files:
            raise BadInput(f"'{repository[0]}' holds no adapter of this program.")
        own_name = _to_name(repository[0].partition("/")[2])
        return add_adapter(files, name.strip() or own_name[:MAX_NAME_LENGTH], store, base)


def _to_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")


def _unpack(files: Sequence[Path], folder: Path) -> tuple[Path, str]:
    """The folder below `folder` with the adapter's files, and the name that they came with."""
    folder.mkdir()
    zips = [file for file in files if file.suffix.lower() == ".zip"]
    if not zips:
        for file in files:
            _refuse_pickle(file.name)
            if file.name not in _FILES or (folder / file.name).exists():
                raise BadInput(f"'{sanitize(file.name)}' is no part of an adapter, or comes twice. {_NEEDED}")
            shutil.copyfile(file, folder / file.name)
        return folder, ""
    if len(files) > 1:
        raise BadInput(f"One zip at a time, and nothing beside it. {_NEEDED}")
    unpack(zips[0], folder, ZIP_LIMITS)
    written = [file for file in folder.rglob("*") if file.is_file()]
    if not any(file.name == WEIGHTS for file in written):
        for file in written:
            _refuse_pickle(file.name)
    roots = sorted({file.parent for file in written if file.name == CONFIG})
    if not roots:
        raise BadInput(f"There is no {CONFIG} in this zip, so no adapter. {_NEEDED}")
    if not all(root.is_relative_to(roots[0]) for root in roots):  # those below it are steps of its run
        raise BadInput(f"This zip holds {len(roots)} adapters. Bring them one at a time.")
    return roots[0], zips[0].stem if roots[0] == folder else roots[0].name


def _known_encoders(store: AdapterStore) -> set[str]:
    """Encoders in use already: any other would have to be downloaded."""
    encoders = {embedded.ENCODER}
    for name in store.names():
        with contextlib.suppress(AdapterError):
            vision = store.card(name).config.vision
            encoders |= {vision.encoder} if vision is not None else set()
    return encoders


def delete_adapter(name: str, store: AdapterStore) -> str:
    """Moves an adapter that was added here aside; returns the token to restore it. Raises BadInput, LoadError."""
    with names_lock(store.incoming), _own_folder(name, store) as folder:
        aside = store.incoming / DELETED
        for old in aside.glob("*"):
            if time.time() - old.stat().st_mtime > DELETED_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        token = str(time.time())
        _move(folder, aside / token / name)
        return token


def restore_adapter(name: str, token: str, store: AdapterStore) -> str:
    """Puts a deleted adapter back, and returns its name. Raises BadInput or LoadError."""
    with names_lock(store.incoming):
        if name.lower() in {other.lower() for other in (*store.names(), *os.listdir(store.incoming))}:
            raise BadInput(f"There is another adapter called '{name}' now. Delete that one first, then undo this.")
        deleted = store.incoming / DELETED / token / name
        if not (deleted / WEIGHTS).exists():
            raise BadInput(f"“{name}” was deleted for good meanwhile.")
        check_room(store.incoming, (deleted / WEIGHTS).stat().st_size)
        _move(deleted, store.incoming / name)
        return name


@contextlib.contextmanager
def _own_folder(name: str, store: AdapterStore) -> Iterator[Path]:
    """The folder of an adapter that was added here, while no training run writes to it."""
    if not store.card(name).own:
        raise BadInput(f"“{name}” was not added here, so it stays as it is.")
    folder = store.folder(name)
    lock = FileLock(folder / _RUN_LOCK, timeout=0)
    try:
        if (folder / _RUN_LOCK).exists():
            lock.acquire()
        yield folder
    except Timeout as error:
        raise BadInput(f"“{name}” is being trained. Wait for the end of that, or stop it.") from error
    finally:
        lock.release()


def _move(folder: Path, to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, to)
    except OSError as error:
        raise LoadError(f"“{folder.name}” could not be moved. It is as it was.", str(error)) from error


def _move_into_store(folder: Path, into: Path, store: AdapterStore) -> tuple[str, bool]:
    """Moves the folder into the store; an adapter of the same name is never replaced."""
    # In any case of its letters: some systems tell no cases apart, and people hardly. Runs have their names too.
    names = {*store.names(), *(path.name for path in into.iterdir())}
    name = next((known for known in sorted(names) if known.lower() == folder.name.lower()), None)
    if name is not None:
        files = [CONFIG, WEIGHTS]
        there = store.folder(name) if name in store.names() else None
        if there is None or filecmp.cmpfiles(folder, there, files, shallow=False)[0] != files:
            raise BadInput(f"There is another adapter called '{name}' already. Give this one a name of its own.")
        return name, False
    check_room(into, (folder / WEIGHTS).stat().st_size)
    for file in folder.iterdir():
        file.chmod(0o644)
    os.rename(folder, into / folder.name)
    return folder.name, True


def check_room(into: Path, more: int) -> None:
    """Raises BadInput where an adapter with `more` bytes of weights is one too many for the folder, in which runs
    that were stopped keep their data.
    """
    weights, taken = list(into.glob(f"*/{WEIGHTS}")), more
    data = (
        Path(root, name) for run in into.iterdir() for root, _, names in os.walk(run / "data") for name in names
    )
    for file in (*weights, *data):
        with contextlib.suppress(OSError):  # just deleted
            taken += file.lstat().st_size + 4096  # what is small takes a block
    if len(weights) >= FOLDER_ADAPTERS or taken > FOLDER_BYTES:
        raise BadInput("The server has no place for more adapters. Somebody there has to delete some first.")


def _refuse_pickle(name: str) -> None:
    if Path(name).suffix.lower() in hub.PICKLES:
        raise BadInput(
            f"'{sanitize(name)}' can hold code, so it is not opened here. If you trust it, convert it on your "
            "own machine with `python -m adapter convert`, and bring what that writes."
        )
