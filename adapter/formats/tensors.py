"""Other programs' files as named tensors, and what is read out of them. Runs no code that is in a file.

Knows .pth, .bin and .safetensors; knows nothing of what the names in them mean.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapter.errors import LoadError

# Numbers in the prompts of one adapter, far above what anybody trains: more is a mistake or an attack on memory.
MOST_NUMBERS = 2**27
_CODE = re.compile(r"GLOBAL (\S+)")  # how torch names what a pickle wants to call


@dataclass(frozen=True)
class ForeignAdapter:
    """A text adapter as its file tells it; what the file leaves open is None or empty.

    prompts: [L, K, hidden_size]; gates: [L, H], or [L, 1] where one gate serves all heads; fp32.
    layers: indices of the insertion layers, lowest first; total: layers of its base.
    """

    format: str
    prompts: Tensor
    gates: Tensor
    layers: tuple[int, ...]
    total: int | None = None
    gate_activation: str | None = None
    template: str | None = None
    base: str = ""  # the base that the source names
    assumed: Mapping[str, str] = field(default_factory=dict)  # a row of its card, and why


def plain(text: object) -> str:
    """A stranger's text, fit for one line of a card or a terminal."""
    return re.sub(r"[^\w./@:+,() -]", "?", str(text))[:200]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a file by name, and what lies beside them (`args`, `config`, ...). Raises LoadError."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise LoadError(f"'{path}' cannot be read ({error.strerror}). Check the path.") from error
    if head.startswith(b"version https://git-lfs"):
        raise LoadError(f"'{path.name}' is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`.")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except (OSError, SafetensorError) as error:
            raise _damaged(path, str(error)) from error
    return _state(path, _unpickled(path, head))


def _unpickled(path: Path, head: bytes) -> Any:
    zipped = zipfile.is_zipfile(path)
    if head.startswith(b"PK") and not zipped:
        raise _damaged(path, "its end is missing")
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:  # torch stores; what is compressed could unpack to anything
                if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                    raise _damaged(path, "it was compressed, which torch.save never does")
        # A full training checkpoint keeps its command line as a Namespace, which is data. mmap: it also holds a
        # whole base and its optimizer, of which nothing is wanted.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if found := _CODE.search(str(error)):
            raise LoadError(
                f"'{path.name}' holds code ({plain(found.group(1))}), which is not run. "
                "Ask its maker for the bare tensors, best as .safetensors."
            ) from error
        raise _damaged(path, "or no file of tensors at all") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError) as error:
        raise _damaged(path, (str(error).splitlines() or [type(error).__name__])[0]) from error


def _state(path: Path, loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors directly in the file, or under `model` or `state_dict`."""
    if not isinstance(loaded, Mapping):
        raise LoadError(
            f"'{path.name}' holds a {type(loaded).__name__}, not named tensors. Give an adapter's file."
        )
    beside: dict[str, Any] = {}
    for key in ("model", "state_dict"):
        if isinstance(loaded.get(key), Mapping):
            beside = {str(name): value for name, value in loaded.items() if name != key}
            loaded = loaded[key]
            break
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        if "optimizer" in loaded or {"state", "param_groups"} <= set(loaded):
            raise LoadError(
                f"'{path.name}' holds the state of an optimizer and no model. "
                "Give the checkpoint that was saved beside it."
            )
        raise LoadError(f"'{path.name}' holds no tensors. Give an adapter's file.")
    return tensors, beside


def floats(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A copy of `tensor` in fp32. Raises LoadError unless it is an ordinary tensor of finite numbers."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
        raise wrong(path, f"{plain(name)} has type {tensor.dtype}, not one of ordinary floating-point numbers")
    if tensor.numel() > MOST_NUMBERS:
        raise wrong(path, f"{plain(name)} has {tensor.numel():,} numbers, far more than an adapter has")
    copied = tensor.detach().float().clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(copied).all():
        raise wrong(path, f"{plain(name)} holds numbers that are not finite")
    return copied


def stacked_gates(path: Path, gates: Mapping[int, Tensor], name: str) -> Tensor:
    """Gates by layer as [layers, H] or [layers, 1]: each may be (H,) with ones around it, or one number.

    name: of the tensors, with {} for the layer.
    """
    rows = []
    for index, gate in sorted(gates.items()):
        if max(gate.shape, default=1) != gate.numel() or gate.ndim > 4 or not gate.numel():
            raise wrong(path, f"{name.format(index)} has shape {tuple(gate.shape)}: no gate, and no gate a head")
        rows.append(floats(path, name.format(index), gate).flatten())
    counts = sorted({len(row) for row in rows})
    if len(counts) > 1:
        raise wrong(path, f"some of its layers have {counts[0]} gates and others {counts[1]}")
    return torch.stack(rows)


def stacked_prompts(path: Path, prompts: Mapping[int, Tensor], name: str) -> Tensor:
    """Prompts by layer, each [K, hidden_size], as [layers, K, hidden_size]. name: with {} for the layer."""
    for index, prompt in prompts.items():
        if prompt.ndim != 2 or not prompt.numel():
            raise wrong(path, f"{name.format(index)} has shape {tuple(prompt.shape)}, not (K, hidden_size)")
    shapes = {tuple(prompt.shape) for prompt in prompts.values()}
    if len(shapes) > 1:
        raise wrong(path, f"its layers have prompts of different shapes: {sorted(shapes)}")
    if sum(prompt.numel() for prompt in prompts.values()) > MOST_NUMBERS:
        raise wrong(path, "its prompts have far more numbers than an adapter has")
    return torch.stack([floats(path, name.format(index), prompt) for index, prompt in sorted(prompts.items())])


def same_layers(path: Path, prompts: Mapping[int, Tensor], gates: Mapping[int, Tensor]) -> tuple[int, ...]:
    """The insertion layers, which have both prompts and gates and no gap. Raises LoadError."""
    if odd := sorted(set(prompts) ^ set(gates)):
        raise wrong(path, f"layer {odd[0]} has {'prompts' if odd[0] in prompts else 'a gate'} only")
    layers = tuple(sorted(prompts))
    if layers[-1] - layers[0] + 1 != len(layers):
        raise wrong(path, f"its layers {', '.join(map(str, layers))} have gaps; an adapter has the topmost ones")
    return layers


def wrong(path: Path, problem: str) -> LoadError:
    """`problem` is about what a file holds."""
    return LoadError(f"'{path.name}': {problem}. Download it again, or ask its maker.")


def _damaged(path: Path, reason: str) -> LoadError:
    return LoadError(f"'{path.name}' is damaged or only half a download ({plain(reason)}). Download it again.")
