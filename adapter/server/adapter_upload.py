"""An adapter that a visitor brings: checked in a folder of its own, then put among the others in one step.

Knows files, the store and the base's fingerprint; knows no Gradio. Nothing that holds code is ever opened.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter.base import embedded
from adapter.errors import AdapterError, BadInput, LoadError
from adapter.formats import peft_adapter as peft
from adapter.formats.convert import model_card, open_foreign
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, save_adapter
from adapter.method.config import BaseFingerprint, check_name
from adapter.serve.store import AdapterStore
from adapter.server.archive import Limits, unpack

MOST_BYTES = 256 * 2**20  # of what is sent (as the page takes it), and again of what it unpacks to
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
# A run's whole folder is welcome; all but the adapter is left there.
ZIP_LIMITS = Limits(
    500, MOST_BYTES, MOST_BYTES, endings=(".json", ".safetensors", ".md", *_PICKLES), kind="adapter"
)
_LONGEST_CARD, _LONGEST_CONFIG = 200_000, 100_000  # bytes
_STALE_SECONDS = 3600
_NEEDED = f"Give a zip of its folder, or {CONFIG} and {WEIGHTS} together."


@dataclass(frozen=True)
class Brought:
    """name: of the adapter in the store; new: whether it was not there before."""

    name: str
    new: bool


def bring(files: Sequence[Path], name: str, store: AdapterStore, base: BaseFingerprint) -> Brought:
    """Put the adapter in `files` into the store's folder for new ones; under `name`, or its own if that is empty.

    files: one zip, or the adapter's loose files. Raises BadInput or LoadError with a sentence; then nothing has
    changed. Safe to call from several threads and processes at once.
    """
    if not files:
        raise BadInput(f"Drop an adapter first. {_NEEDED}")
    if sum(file.stat().st_size for file in files) > MOST_BYTES:
        raise BadInput(f"An adapter may have {MOST_BYTES // 2**20} MB; this is more.")
    try:
        into = store.incoming
        with _staging(into) as staging:
            found, own_name = _opened(files, staging / ".opened")  # no adapter is called so
            chosen = check_name(name.strip() or re.sub(r"[^A-Za-z0-9_-]+", "-", own_name).strip("-_"), taken=())
            folder = staging / chosen  # errors name the folder
            if (found / peft.CONFIG).is_file() and not (found / CONFIG).is_file():
                _converted(found, folder, base)
            else:
                _picked(found, folder)
            _check(folder, store, base)
            return _placed(folder, into, store)
    except OSError as error:
        raise LoadError(
            f"The adapter cannot be kept on the server ({error.strerror or type(error).__name__}). "
            "Somebody there has to make room, or let the folder be written."
        ) from error


@contextlib.contextmanager
def _staging(into: Path) -> Iterator[Path]:
    """A hidden folder beside the adapters, on the same disk: no store sees it, and a rename can end it."""
    into.mkdir(parents=True, exist_ok=True)
    for stale in into.glob(".incoming-*"):  # of a server that was killed
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".incoming-", dir=into))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _opened(files: Sequence[Path], folder: Path) -> tuple[Path, str]:
    """The folder that holds the adapter's files, below `folder`, and the name that they came with."""
    folder.mkdir()
    zips = [file for file in files if file.suffix.lower() == ".zip"]
    if not zips:
        for file in files:
            _refuse_pickle(file.name)
            if file.name not in (CONFIG, WEIGHTS, CARD, peft.CONFIG, peft.WEIGHTS[0]):
                raise BadInput(f"'{_shown(file.name)}' is no part of an adapter. {_NEEDED}")
            shutil.copyfile(file, folder / file.name)
        return folder, ""
    if len(files) > 1:
        raise BadInput(f"One zip at a time, and nothing beside it. {_NEEDED}")
    unpack(zips[0], folder, ZIP_LIMITS)
    written = [file for file in folder.rglob("*") if file.is_file()]
    if not any(file.name in (WEIGHTS, peft.WEIGHTS[0]) for file in written):
        for file in written:
            _refuse_pickle(file.name)
    roots = sorted({file.parent for file in written if file.name in (CONFIG, peft.CONFIG)})
    if not roots:
        raise BadInput(f"There is no {CONFIG} in this zip, so no adapter. {_NEEDED}")
    if len(roots) > 1:
        raise BadInput(f"This zip holds {len(roots)} adapters. Bring them one at a time.")
    return roots[0], zips[0].stem if roots[0] == folder else roots[0].name


def _picked(found: Path, folder: Path) -> None:
    """Take over what belongs to an adapter, and nothing else."""
    folder.mkdir()
    if not (found / WEIGHTS).is_file():
        raise BadInput(f"{WEIGHTS} is missing. {_NEEDED}")
    for name in (CONFIG, WEIGHTS, CARD):
        if (found / name).is_file():
            os.replace(found / name, folder / name)
    for name, longest in ((CONFIG, _LONGEST_CONFIG), (CARD, _LONGEST_CARD)):
        if (folder / name).is_file() and (folder / name).stat().st_size > longest:
            raise BadInput(f"{name} has more than {longest // 1000} kB. Shorten it.")


def _converted(found: Path, folder: Path, base: BaseFingerprint) -> None:
    """PEFT's ADAPTION_PROMPT as one of ours."""
    if not (found / peft.WEIGHTS[0]).is_file():
        raise BadInput(f"{peft.WEIGHTS[0]} is missing beside {peft.CONFIG}. Bring both.")
    opened = open_foreign(found, folder.name, base)
    save_adapter(opened.adapter, folder, model_card(folder.name, opened.adapter, opened))


def _check(folder: Path, store: AdapterStore, base: BaseFingerprint) -> None:
    """Load it once, as strictly as for an answer. Raises LoadError or BadInput."""
    vision = load_adapter(folder, base).config.vision
    if vision is not None and vision.encoder not in _encoders(store):
        raise BadInput(
            f"Adapter '{folder.name}' sees through the encoder '{_shown(vision.encoder)}', which is not here. "
            f"Bring one that uses {embedded.ENCODER}."
        )


def _encoders(store: AdapterStore) -> set[str]:
    """Those that are in use already: any other would have to be fetched from somewhere."""
    found = {embedded.ENCODER}
    for name in store.names():
        with contextlib.suppress(AdapterError):
            vision = store.card(name).config.vision
            found |= {vision.encoder} if vision is not None else set()
    return found


def _placed(folder: Path, into: Path, store: AdapterStore) -> Brought:
    """Move the folder among the adapters; one of the same name is never replaced."""
    name = next((known for known in store.names() if known.lower() == folder.name.lower()), None)
    if name is not None:
        there = store.folder(name)
        same, _, _ = filecmp.cmpfiles(folder, there, [CONFIG, WEIGHTS], shallow=False)
        if len(same) == 2:
            return Brought(name, new=False)
        raise _taken(name)
    for file in folder.iterdir():
        file.chmod(0o644)
    try:
        os.rename(folder, into / folder.name)
    except OSError as error:
        if (into / folder.name).exists():  # somebody was faster, or a training run has the name
            raise _taken(folder.name) from error
        raise
    return Brought(folder.name, new=True)


def _taken(name: str) -> BadInput:
    return BadInput(f"There is another adapter called '{name}' already. Give this one a name of its own.")


def _refuse_pickle(name: str) -> None:
    if Path(name).suffix.lower() in _PICKLES:
        raise BadInput(
            f"'{_shown(name)}' can hold code, so it is not opened here. If you trust it, convert it on your own "
            "machine with `python -m adapter convert`, and bring what that writes."
        )


def _shown(text: str) -> str:
    """A stranger's text, fit for a sentence."""
    return re.sub(r"[^\w./@:+,() -]", "?", text)[:80]
