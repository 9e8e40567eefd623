"""Adapters on disk: a directory with config.json, adapter.safetensors and a model card README.md.

Loading is strict: what is missing, unexpected, misshapen, not finite or out of range is an error, never skipped.
"""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapter.errors import LoadError, WrongBase, first_line
from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.config import CARD, CONFIG, WEIGHTS, AdapterConfig, BaseFingerprint, base_label
from adapter.method.label_projection import LabelProjection

log = logging.getLogger(__name__)

_HEADER_BYTES = 10 * 2**20  # more than the names of any adapter's tensors take


def save_adapter(adapter: Adapter, folder: Path, card: str | None = None) -> None:
    """Writes `adapter` into `folder`. Where only the weights change, a reader sees the old adapter or the new one;
    where the config does, the folder is no adapter for a moment.

    Raises OSError when the disk is full or the folder cannot be written; nearly always the old adapter stays then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = adapter.config.to_json()
    current = folder / CONFIG
    tensors = {name: t.detach().cpu().contiguous() for name, t in adapter.state_dict().items()}
    with contextlib.ExitStack() as others:  # are written before anything is replaced
        for file, text in ((current, config), (folder / CARD, card)):
            if text is not None:
                others.enter_context(atomic_write(file)).write_text(text, encoding="utf-8")
        with atomic_write(folder / WEIGHTS) as temporary:
            temporary.write_bytes(save(tensors, metadata={"format": "pt"}))  # save_file writes for the owner alone
            if current.exists() and current.read_text(encoding="utf-8") != config:
                # Weights of another shape are coming: without config.json the folder is no adapter for a moment.
                current.unlink()


def read_config(folder: Path) -> AdapterConfig:
    """The configuration of the adapter in `folder`. Raises LoadError."""
    try:
        with open(folder / CONFIG, encoding="utf-8-sig") as file:
            text = file.read(1_000_000)
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(
            f"'{folder.name}' is not an adapter: {CONFIG} cannot be read. "
            "Give a folder that `python -m train` wrote.",
            f"{folder / CONFIG}: {first_line(error)}",
        ) from error
    return AdapterConfig.from_json(text, folder.name)


def adapter_digest(folder: Path) -> str:
    """The digest of an adapter's numbers and configuration. Raises LoadError if there is no adapter."""
    read_config(folder)  # raises LoadError if there is none
    files = [folder / CONFIG, folder / WEIGHTS]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()[:16]


def check_base(config: AdapterConfig, name: str, base: BaseFingerprint) -> None:
    """Raises WrongBase if the adapter called `name` was made for another base."""
    if differences := config.base.differences(base):
        made_for = base_label(config.base.name)
        named = f"it names: {made_for}" if made_for != base.name else "it was made for"
        raise WrongBase(
            f"Adapter '{name}' was made for {made_for} and does not fit {base.name}: "
            f"{'; '.join(differences)}. Load the base {named}."
        )


def load_adapter(folder: Path, base: BaseFingerprint | None = None, device: torch.device | str = "cpu") -> Adapter:
    """The adapter in `folder`, frozen, in eval mode. Raises LoadError if it is wrong, or for another base."""
    config = read_config(folder)
    if base is not None:
        check_base(config, folder.name, base)
        if config.base.weights and base.weights and config.base.weights != base.weights:
            warning = "Adapter '%s' was trained on other weights of the same shape (%s): answers may differ."
            log.warning(warning, folder.name, config.base.name)
    try:
        with torch.device("meta"):
            adapter = Adapter(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # sizes that no tensor can have
        raise LoadError(
            f"Adapter '{folder.name}': {CONFIG} names sizes that cannot be. Download or train the adapter again."
        ) from error
    expected = dict(adapter.state_dict())
    found = _read_tensors(folder, most_bytes=_HEADER_BYTES + 8 * sum(like.numel() for like in expected.values()))
    for problem, which in (("lacks", set(expected) - set(found)), ("has unexpected", set(found) - set(expected))):
        if which:
            raise _broken(folder, f"{problem} {ascii(min(which))[1:-1][:80]}")
    tensors = {name: _checked(folder, name, found[name], like).to(device) for name, like in expected.items()}
    adapter.load_state_dict(tensors, assign=True)
    labels = adapter.projection
    if isinstance(labels, LabelProjection) and (table := labels.wrong_table(config.base.vocab_size)):
        raise _broken(folder, f"projection.{table} holds numbers that are out of range")
    return adapter.requires_grad_(False).eval()


def _read_tensors(folder: Path, most_bytes: int) -> dict[str, Tensor]:
    # Into memory of our own. A mapped file that somebody shortens later ends the whole process (SIGBUS).
    try:
        with open(folder / WEIGHTS, "rb") as file:
            if os.fstat(file.fileno()).st_size > most_bytes:
                raise _broken(folder, f"is far larger than {CONFIG} says")
            data = file.read()
            if int.from_bytes(data[:8], "little") > _HEADER_BYTES:  # its tensors, even empty ones, are all built
                raise _broken(folder, "has a header that is far too long")
            return load(data)
    except FileNotFoundError as error:
        raise _broken(folder, "is missing") from error
    except OSError as error:
        raise LoadError(f"Adapter '{folder.name}': {WEIGHTS} cannot be read.", str(error)) from error
    except (SafetensorError, KeyError) as error:  # KeyError: a number format that torch has not
        raise _broken(folder, "is damaged", f"{folder / WEIGHTS}: {first_line(error)}") from error


def _checked(folder: Path, name: str, tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.shape != like.shape:
        raise _broken(folder, f"{name} has shape {tuple(tensor.shape)}, not {tuple(like.shape)}")
    if like.is_floating_point() != tensor.is_floating_point() or tensor.dtype.itemsize == 1 < like.dtype.itemsize:
        raise _broken(folder, f"{name} has type {tensor.dtype}, not {like.dtype}")
    tensor = tensor.to(like.dtype)
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise _broken(folder, f"{name} holds numbers that are not finite")
    return tensor


def _broken(folder: Path, problem: str, detail: str = "") -> LoadError:
    return LoadError(f"Adapter '{folder.name}': {WEIGHTS} {problem}. Download or train the adapter again.", detail)
