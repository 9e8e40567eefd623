"""Memory that a base needs in each quantisation, and memory that this machine has. Loads nothing.

The need is computed from the config: linear layers in few bits, the rest in 16, and the KV cache of the shortest
conversation that is of use. From both follows what "auto" means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from adapter.base.hf_folder import tensor_shapes
from adapter.errors import LoadError

# Names in messages; `load_base` calls bf16 "none".
KINDS = ("nf4", "int8", "packed", "bf16")
_ROOMY = 4  # conversations whose KV caches must fit beside a base on a GPU before it gets 16 bits a weight


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a loaded base; `mapped` of them are memory-mapped files on a CPU, which the system can page out.

    cache: bytes of the KV cache of one conversation, beside it.
    """

    bytes: int
    mapped: int
    cache: int = 0


@dataclass(frozen=True)
class DeviceMemory:
    """Total and free bytes of one device."""

    total: int
    free: int

    def holds(self, need: MemoryNeed, mapped: bool) -> bool:
        """False if base and cache certainly do not fit. mapped: mapped files do not count against free memory."""
        whole = need.bytes + need.cache
        return whole <= self.total and whole - (need.mapped if mapped else 0) <= self.free


def needs(config: Any, dtype: torch.dtype = torch.bfloat16) -> dict[str, MemoryNeed]:
    """The memory of a LLaMA with this LlamaConfig in each of KINDS; `dtype` is that of unquantised tensors."""
    shapes = tensor_shapes(config)
    linears = [shape for name, shape in shapes.items() if name.endswith("_proj.weight")]
    linear_count, rows = sum(map(prod, linears)), sum(shape[0] for shape in linears)
    head = config.vocab_size * config.hidden_size
    plain = (sum(map(prod, shapes.values())) - linear_count) * dtype.itemsize  # embeddings, head, norms
    untied_head = 0 if config.tie_word_embeddings else head * dtype.itemsize
    stored = plain if config.dtype in (None, dtype) else 0  # else it is cast, into memory that is not mapped
    packed = (linear_count + head) * 17 // 16  # a scale in fp16 for each group of 32 weights of an output
    whole = linear_count * dtype.itemsize + plain
    cache = _conversation(config) * kv_bytes_per_token(config, dtype)
    return {
        # nf4 has an fp32 scale for each block of 64 weights.
        "nf4": MemoryNeed(linear_count // 2 + linear_count // 16 + plain, stored, cache),
        "int8": MemoryNeed(linear_count + 4 * rows + plain, stored, cache),
        "packed": MemoryNeed(packed + plain - untied_head, 0, cache),
        "bf16": MemoryNeed(whole, whole if stored else 0, cache),
    }


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def _conversation(config: Any) -> int:
    """Tokens of the shortest conversation that is of use: a base must leave room for its KV cache."""
    return min(config.max_position_embeddings, 2048)


def half_precision(device: str) -> torch.dtype:
    """The 16-bit numbers that a device multiplies: bf16, but fp16 on a GPU without it."""
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def choose_quantization(config: Any, device: str, dtype: torch.dtype) -> tuple[str, str]:
    """What "auto" means for a base with this LlamaConfig: a quantization for `load_base`, and why.

    On a GPU that is none where there is room, because nf4 must be unpacked for each product.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return "packed", "processors multiply packed weights fastest"
    if kind != "cuda":
        return "none", f"nothing is known of other products on {kind}"
    if getattr(config, "quantization_config", None):
        return "none", "its weights are quantised already"
    unquantised, free = needs(config, dtype)["bf16"], cuda(device).free
    need = unquantised.bytes + _ROOMY * unquantised.cache
    what = f"16 bits a weight and the KV caches of {_ROOMY} conversations take {_gigabytes(need)}"
    if need <= free:
        return "none", f"{what}, and {_gigabytes(free)} are free"
    return "nf4", f"{what}, and only {_gigabytes(free)} are free"


def require(name: str, config: Any, quantization: str, device: str, dtype: torch.dtype) -> None:
    """Raise LoadError with all sizes if the base surely does not fit on `device` with one conversation's cache.

    A base that was quantised by others is let through: its size is not known from its config.
    """
    if getattr(config, "quantization_config", None):
        return
    by_kind = needs(config, dtype)
    on_cpu = not device.startswith("cuda")
    room = ram() if on_cpu else cuda(device)
    kind = "bf16" if quantization == "none" else quantization
    if quantization == "packed":
        # Weights that four bits hold exactly are packed in four.
        kind = min(("packed", "nf4"), key=lambda k: by_kind[k].bytes)
    if room.holds(by_kind[kind], mapped=on_cpu):
        return
    possible = [k for k in KINDS if room.holds(by_kind[k], on_cpu) and (on_cpu or k != "packed")]
    sizes = ", ".join(f"{k} {_gigabytes(by_kind[k].bytes)}" for k in KINDS if on_cpu or k != "packed")
    where = "memory" if on_cpu else f"memory on {device}"
    remedy = f"Load it as {' or '.join(possible)}" if possible else "Choose a smaller base"
    raise LoadError(
        f"'{name}' does not fit into memory: it takes {sizes}, and its KV cache for one conversation of "
        f"{_conversation(config):,} tokens {_gigabytes(by_kind[kind].cache)} more; {_gigabytes(room.free)} of "
        f"{where} are free. {remedy}, or end other programs."
    )


def ram() -> DeviceMemory:
    """The memory of this machine, or of this process's control group where that is less."""
    machine, swap = psutil.virtual_memory(), psutil.swap_memory()
    total, free = machine.total + swap.total, machine.available + swap.free
    for limit, used in _group_limits():
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return DeviceMemory(total, free)


def available(device: torch.device) -> int:
    """Free bytes of a device."""
    return (cuda(str(device)) if device.type == "cuda" else ram()).free


def cuda(device: str) -> DeviceMemory:
    free, total = torch.cuda.mem_get_info(torch.device(device))
    return DeviceMemory(total, free)


def control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[Path]:
    """The folder of each control group (version 2) that this process is in, the innermost first."""
    try:
        rows = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for path in (path for number, _, path in rows if number == "0"):
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _group_limits(**places: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of each control group that limits this process's memory; without the page cache."""
    for folder in control_groups(**places):
        try:
            limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
            rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            inactive = next((int(number) for name, number in rows if name == "inactive_file"), 0)
        except (OSError, ValueError):  # "max", or not seen from inside this container
            continue
        yield limit, used - inactive


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e8 else f"{count / 1e6:.0f} MB"


def to_device(values: Sequence[object], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor on `device`.

    `torch.tensor(values, device="cuda")` waits until the GPU has done all its work; a copy from pinned memory is
    queued behind it.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
