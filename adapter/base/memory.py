"""Memory that a base needs in each quantisation, and memory that this machine has. Loads nothing."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from adapter.errors import LoadError

# Names in messages; `load_base` calls bf16 "none".
KINDS = ("packed-int4", "packed-int8", "nf4", "int8", "bf16")
_ROOMY = 4  # conversations whose KV caches must fit beside a base before it gets more bits a weight


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a loaded base, and beside it of the KV cache of one conversation."""

    bytes: int
    cache: int

    def fits(self, free: int) -> bool:
        return self.bytes + self.cache <= free


def needs(config: Any, dtype: torch.dtype = torch.bfloat16) -> dict[str, MemoryNeed]:
    """The memory of a LLaMA with this LlamaConfig in each of KINDS; `dtype` is that of unquantised tensors."""
    layers, hidden, heads = config.num_hidden_layers, config.hidden_size, config.head_dim
    queries, values = config.num_attention_heads * heads, config.num_key_value_heads * heads
    mlp = config.intermediate_size
    outputs, inputs = queries + 2 * values + 2 * mlp, queries + mlp
    linear, rows = layers * hidden * (outputs + inputs), layers * (outputs + 2 * hidden)
    shared = 0 if config.attention_bias or values >= hidden else 2 * layers * values * hidden  # kept in 8 bits
    table, width = config.vocab_size * hidden, dtype.itemsize  # the embedding, and again the head
    norms = hidden * (2 * layers + 1) * width
    four, eight = 5 / 8, 17 / 16  # bytes: fp16 scales for each group of 32 weights, in 4 bits minima too
    finer = eight - (eight - four) * getattr(config, "four_bits", 0)  # what a GGUF file has in four stays so
    tied = config.tie_word_embeddings
    plain, head = norms + (1 if tied else 2) * table * width, table * eight
    # Linear maps with a bias are not packed.
    biased = 2 * (queries + values) * config.attention_bias + 3 * mlp * config.mlp_bias
    whole = layers * hidden * biased * width + layers * outputs * width * bool(biased)
    packed = linear - layers * hidden * biased
    embedding = table * width if tied else head
    sizes = {
        "nf4": linear * 9 / 16 + plain,  # an fp32 scale for each block of 64 weights
        "int8": linear + 4 * rows + plain,
        "packed-int4": whole + packed * four + shared * (eight - four) + norms + head + embedding,
        "packed-int8": whole + packed * finer + norms + head + table * width,
        "bf16": linear * width + plain,
    }
    cache = _conversation(config) * kv_bytes_per_token(config, dtype)
    return {kind: MemoryNeed(int(size), cache) for kind, size in sizes.items()}


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

    More bits where there is room: on a CPU 8 or 4 of packed weights, on a GPU 16 or 4: nf4 is slower, as
    each product unpacks it.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        return "none", f"nothing is known of other products on {kind}"
    if getattr(config, "quantization_config", None):
        return "none", "its weights are quantised already"
    more, less, bits = ("packed-int8", "packed-int4", 8) if kind == "cpu" else ("bf16", "nf4", 16)
    free, sizes = free_bytes(device), needs(config, dtype)
    need, other = (sizes[name].bytes + _ROOMY * sizes[name].cache for name in (more, less))
    grid = " (4 bits for weights that they hold exactly)" if kind == "cpu" else ""
    what = f"{bits} bits a weight{grid} and the KV caches of {_ROOMY} conversations take {_gigabytes(need)}"
    if need <= free:
        why = f"{what}, and {_gigabytes(free)} are free; with {less} they would take {_gigabytes(other)}"
        return ("none" if more == "bf16" else more), why
    return less, f"{what}, and only {_gigabytes(free)} are free; so they take {_gigabytes(other)}"


def require(name: str, config: Any, quantization: str, device: str, dtype: torch.dtype, remedy: str = "") -> None:
    """Raise LoadError with all sizes if the base surely does not fit on `device` with one conversation's cache.

    remedy: said in place of the kinds that fit. A base that others have quantised passes, its size unknown.
    """
    by_kind, free = needs(config, dtype), free_bytes(device)
    # Weights that four bits hold exactly are packed in four.
    kind = {"none": "bf16", "packed-int8": "packed-int4"}.get(quantization, quantization)
    if getattr(config, "quantization_config", None) or by_kind[kind].fits(free):
        return
    offered = [k for k in KINDS if not (device.startswith("cuda") and k.startswith("packed"))]
    possible = [k for k in offered if by_kind[k].fits(free)]
    names = {k: "fp32" if (k, dtype.itemsize) == ("bf16", 4) else k for k in offered}
    sizes = ", ".join(f"{names[k]} {_gigabytes(by_kind[k].bytes)}" for k in offered)
    remedy = remedy or (f"Load it as {' or '.join(possible)}" if possible else "Choose a smaller base")
    raise LoadError(
        f"'{name}' does not fit into memory: it takes {sizes}, and its KV cache for one conversation of "
        f"{_conversation(config):,} tokens {_gigabytes(by_kind[kind].cache)} more; {_gigabytes(free)} are "
        f"free on {device}. {remedy}, or end other programs."
    )


def table(name: str, config: Any) -> str:
    """What a base of this LlamaConfig takes in each of KINDS, beside what is free here, as lines of text."""
    by_kind, free = needs(config), _gigabytes(free_bytes("cpu"))
    sizes = [*(by_kind[kind].bytes for kind in KINDS), by_kind["bf16"].cache]
    head = " " * len(name) + "".join(f"{kind:>13}" for kind in (*KINDS, "KV cache"))
    line = name + "".join(f"{_gigabytes(size):>13}" for size in sizes)
    return f"{head}\n{line}\n\nKV cache: of one conversation of {_conversation(config):,} tokens. Free: {free}."


def free_bytes(device: torch.device | str) -> int:
    """Returns the free bytes of a GPU; else of this machine or its control group, whichever has less."""
    if str(device).startswith("cuda"):
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
        return torch.cuda.mem_get_info(torch.device(device))[0] + cached
    free = psutil.virtual_memory().available  # all weights are read for each token: not from swap
    return min([free, *(max(limit - used, 0) for limit, used in _group_limits())])


def control_group_texts(
    *names: str, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[list[str]]:
    """The texts of these files of each control group (version 2) that this process is in and that has them."""
    try:
        rows = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for path in (path for number, _, path in rows if number == "0"):
        group = root / path.lstrip("/")
        for folder in (folder for folder in (group, *group.parents) if folder.is_relative_to(root)):
            with contextlib.suppress(OSError):  # not seen from inside this container
                yield [(folder / name).read_text() for name in names]


def _group_limits(**places: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of each control group that limits this process's memory; without files that none maps."""
    names = "memory.max", "memory.high", "memory.current", "memory.stat"
    for *limits, used, stat in control_group_texts(*names, **places):
        if found := [int(limit) for limit in limits if limit.strip() != "max"]:
            rows = {name: int(size) for name, size in map(str.split, stat.splitlines())}
            cached = rows.get("active_file", 0) + rows.get("inactive_file", 0) - rows.get("file_mapped", 0)
            yield min(found), int(used) - max(0, cached)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e8 else f"{count / 1e6:.0f} MB"


def to_device(values: Sequence[object], device: torch.device) -> Tensor:
    """Numbers of the host as a tensor on `device`; to a GPU a queued copy, which waits for none of its work."""
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)
