"""Files of other programs as named tensors, and checks of what is in them. Never runs code that is in a file."""

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapter.errors import LoadError, first_line
from adapter.method.config import Template

# Numbers in the prompts of one adapter, far above any real one: more is a mistake or an attack on memory.
MAX_NUMBERS = 2**27
_UNREADABLE = (
    *(zipfile.BadZipFile, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError),
    *(struct.error, AssertionError, AttributeError),  # by torch and pickle, of a damaged file
)
_GLOBAL = re.compile(r"GLOBAL (\S+)")  # how torch names the function that a pickle wants to call


@dataclass(frozen=True)
class ForeignAdapter:
    """A text adapter as its file describes it; what the file leaves open is None or empty.

    prompts: [L, K, hidden_size]; gates: [L, H], or [L, 1] where one gate serves all heads; fp32.
    layers: indices of the insertion layers, lowest first.
    """

    prompts: Tensor
    gates: Tensor
    layers: Sequence[int]
    template: Template | None = None
    base: str = ""  # the base that the source names
    assumed: Mapping[str, str] = field(default_factory=dict)  # row of the model card -> why it is assumed


def sanitize(text: object) -> str:
    """A stranger's text for one line of a card or a terminal."""
    return re.sub(r"[^\w./@:+,() -]", "?", str(text))[:200]


def broken(path: Path, problem: str) -> LoadError:
    return LoadError(f"'{path.name}': {problem}. Download it again, or ask its maker.")


def _damaged(path: Path, why: str, detail: str = "") -> LoadError:
    return LoadError(f"'{path.name}' is damaged or only half a download{why}. Download it again.", detail)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a file by name, and what else it holds (`args`, `config`, ...). Raises LoadError."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise LoadError(f"'{path.name}' cannot be read. Check the path.", f"{path}: {error.strerror}") from error
    if head.startswith(b"version https://git-lfs"):
        raise LoadError(f"'{path.name}' is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`.")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except (OSError, SafetensorError) as error:
            raise _damaged(path, "", first_line(error)) from error
    return _find_state_dict(path, _unpickle(path, head))


def _unpickle(path: Path, head: bytes) -> Any:
    try:
        is_zip = zipfile.is_zipfile(path)
        if head.startswith(b"PK") and not is_zip:
            raise _damaged(path, ": its end is missing")
        if is_zip:
            with zipfile.ZipFile(path) as archive:  # torch only stores; compressed data could unpack to anything
                if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                    raise _damaged(path, ": it was compressed, which torch.save never does")
        # A full training checkpoint keeps its command line as a Namespace, which is data. mmap: it also holds the
        # whole base and the optimizer state, which are not needed.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (*_UNREADABLE, pickle.UnpicklingError) as error:
        if match := _GLOBAL.search(str(error)):
            raise LoadError(
                f"'{path.name}' holds code, which is not run, or is only half a download. "
                "Download it again, or ask its maker for the bare tensors, best as .safetensors.",
                sanitize(match.group(1)),
            ) from error
        raise _damaged(path, ", or no weights", sanitize(first_line(error).partition(" In PyTorch")[0])) from error


def _find_state_dict(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors at the top level of the file, or under `model` or `state_dict`."""
    if not isinstance(content, Mapping):
        raise LoadError(f"'{path.name}' holds a {type(content).__name__}, no tensors. Give an adapter's file.")
    extras: dict[str, Any] = {}
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            extras = {str(name): value for name, value in content.items() if name != key}
            content = content[key]
            break
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise LoadError(f"'{path.name}' holds no tensors. Give an adapter's file.")
    return tensors, extras


def to_float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A copy of `tensor` in fp32. Raises LoadError unless it is dense, floating-point and finite."""
    ordinary = tensor.is_floating_point() and tensor.dtype.itemsize > 1
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or not ordinary:
        raise broken(path, f"{sanitize(name)} has type {tensor.dtype}, not one of ordinary floating-point numbers")
    if tensor.numel() > MAX_NUMBERS:
        raise broken(path, f"{sanitize(name)} has {tensor.numel():,} numbers, far more than an adapter has")
    copied = tensor.detach().float().clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(copied).all():
        raise broken(path, f"{sanitize(name)} holds numbers that are not finite")
    return copied


def stack_gates(path: Path, gates: Mapping[int, Tensor], name: str) -> Tensor:
    """Gates by layer, each (H,) with ones around it or one number, as [layers, H or 1]. name: has {}."""
    rows = []
    for index, gate in sorted(gates.items()):
        if max(gate.shape, default=1) != gate.numel() or gate.ndim > 4 or not gate.numel():
            raise broken(path, f"{name.format(index)} has shape {tuple(gate.shape)}, not one gate or one a head")
        rows.append(to_float32(path, name.format(index), gate).flatten())
    counts = sorted({len(row) for row in rows})
    if len(counts) > 1:
        raise broken(path, f"some of its layers have {counts[0]} gates and others {counts[1]}")
    return torch.stack(rows)
