"""Adapters on disk: a directory with config.json, adapter.safetensors and a model card README.md.

Loading is strict: what is missing, unexpected, misshapen or not finite is an error, never skipped.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapter.config import AdapterConfig, BaseFingerprint
from adapter.errors import LoadError
from adapter.modules import Adapter

CONFIG, WEIGHTS, CARD = "config.json", "adapter.safetensors", "README.md"


def save_adapter(adapter: Adapter, folder: Path, card: str | None = None) -> None:
    """Write `adapter` into `folder`; whoever reads meanwhile sees the old one or the new one, never half.

    Raises OSError when the disk is full or the folder cannot be written; what was there before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = adapter.config.to_json()
    current = folder / CONFIG
    if current.exists() and current.read_text() != config:
        # Weights of another shape are coming: without config.json the folder is no adapter for a moment.
        current.unlink()
    tensors = {name: t.detach().cpu().contiguous() for name, t in adapter.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    if card is not None:
        with replacing(folder / CARD) as temporary:
            temporary.write_text(card)
    with replacing(current) as temporary:
        temporary.write_text(config)


@contextlib.contextmanager
def replacing(path: Path):
    """A temporary sibling of `path` to write to, renamed over it once it is safely on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_config(folder: Path) -> AdapterConfig:
    """The configuration of the adapter in `folder`. Raises LoadError."""
    try:
        text = (folder / CONFIG).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(
            f"'{folder.name}' is not an adapter: {CONFIG} cannot be read. "
            "Give a folder that `python -m train` wrote."
        ) from error
    return AdapterConfig.from_json(text, folder.name)


def load_adapter(folder: Path, base: BaseFingerprint | None = None, device: torch.device | str = "cpu") -> Adapter:
    """The adapter in `folder`, frozen and ready to serve. Raises LoadError that says what is wrong.

    base: the loaded base's fingerprint; an adapter for another one is refused.
    """
    config = read_config(folder)
    if base is not None and (differences := config.base.differences(base)):
        raise LoadError(
            f"Adapter '{folder.name}' was made for {config.base.name} and does not fit {base.name}: "
            f"{'; '.join(differences)}. Load the base it names: {config.base.name}."
        )
    with torch.device("meta"):
        adapter = Adapter(config)
    expected = dict(adapter.state_dict())
    tensors = {}
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device=str(device)) as file:
            names = set(file.keys())
            for problem, which in (
                ("lacks", set(expected) - names),
                ("has unexpected", names - set(expected)),
            ):
                if which:
                    raise _broken(folder, f"{problem} {', '.join(sorted(which))}")
            for name, like in expected.items():
                tensor = file.get_tensor(name)
                if tensor.shape != like.shape:
                    raise _broken(folder, f"{name} has shape {tuple(tensor.shape)}, not {tuple(like.shape)}")
                if like.is_floating_point() != tensor.is_floating_point():
                    raise _broken(folder, f"{name} has type {tensor.dtype}, not {like.dtype}")
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise _broken(folder, f"{name} holds numbers that are not finite")
                tensors[name] = tensor.to(like.dtype)
    except (OSError, SafetensorError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise _broken(folder, reason) from error
    adapter.load_state_dict(tensors, assign=True)
    return adapter.requires_grad_(False).eval()


def _broken(folder: Path, problem: str) -> LoadError:
    return LoadError(f"Adapter '{folder.name}': {WEIGHTS} {problem}. Download or train the adapter again.")
