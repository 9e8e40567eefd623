"""The published LLaMA-Adapter V1 for text: prompts of all insertion layers in one tensor, a gate for every layer.

`adapter_query.weight` [L*K, hidden_size], `layers.{i}.attention.gate` [1, H, 1, 1] (one number before April 2023)
for all N layers, of which the topmost L are used. Alone, or in a training checkpoint with the whole base.
The file does not say whether gates pass through tanh (its training code) or not (its inference code).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapter.errors import LoadError
from adapter.files import atomic_write
from adapter.formats.tensors import ForeignAdapter, broken, sanitize, stack_gates, to_float32
from adapter.method.adapter import Adapter

FORMAT, NAME = "official-v1", "official LLaMA-Adapter V1"
PROMPTS = "adapter_query.weight"
_GATE = re.compile(r"layers\.(\d{1,4})\.attention\.gate")
# The rest of a training checkpoint.
_BASE = re.compile(
    r"(tok_embeddings|output|norm)\.weight|(layers\.\d+\.attention\.(inner_attention\.)?)?rope\.freqs"
    r"|layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123]|attention_norm|ffn_norm)\.weight"
)


def read(
    path: Path, tensors: Mapping[str, Tensor], extras: Mapping[str, Any], stated: int | None
) -> ForeignAdapter:
    """stated: L, as given by the user. Raises LoadError for a broken file, or if L is not known without it."""
    gates = {int(m.group(1)): t for name, t in tensors.items() if (m := _GATE.fullmatch(name))}
    for name in tensors:
        if name != PROMPTS and not (_GATE.fullmatch(name) or _BASE.fullmatch(name)):
            raise broken(path, f"{sanitize(name)} is no part of a V1 adapter")
    total = len(gates)
    if missing := sorted(set(range(max(gates, default=0) + 1)) - set(gates)):
        raise broken(path, f"the gate of layer {missing[0]} is missing; a V1 file has one for every layer")
    rows = tensors[PROMPTS]
    if rows.ndim != 2 or not rows.numel():
        raise broken(path, f"{PROMPTS} has shape {tuple(rows.shape)}, not (L*K, hidden_size)")
    all_gates = stack_gates(path, gates, "layers.{}.attention.gate")  # [N, H or 1]
    count, assumed = _insertion_layers(path, len(rows), all_gates, stated, extras.get("args"))
    prompts = to_float32(path, PROMPTS, rows).view(count, -1, rows.shape[1])
    gates_of_layers, layers = all_gates[total - count :].clone(), range(total - count, total)
    return ForeignAdapter(prompts, gates_of_layers, layers, "alpaca", assumed=assumed)


def _insertion_layers(
    path: Path, rows: int, gates: Tensor, stated: int | None, args: Any
) -> tuple[int, dict[str, str]]:
    """L and what is assumed: as stated, from the training arguments, or down to the lowest layer with a gate."""
    total = len(gates)
    choices = ", ".join(str(n) for n in range(1, total + 1) if rows % n == 0)
    count = getattr(args, "adapter_layer", None) if stated is None else stated
    if count is not None:
        if type(count) is not int or not 1 <= count <= total or rows % count:
            raise LoadError(
                f"'{path.name}' has {rows} prompts and {total} layers: {count!r} insertion layers do not fit. "
                f"--layers can be one of {choices}."
            )
        return count, {}
    active = gates.ne(0).any(dim=1).nonzero()
    count = total - int(active[0]) if len(active) else 0
    if not count or rows % count:
        raise LoadError(
            f"'{path.name}' does not tell how its {rows} prompts are shared out among layers. "
            f"State it with `convert --layers`, one of {choices} (the published 7B has 30)."
        )
    return count, {"prompts": "down to the lowest layer whose gate is not zero. `convert --layers` states L."}


def write(adapter: Adapter, folder: Path) -> str:
    """Write the flat .pth into `folder`; returns a note for its reader. Exact."""
    config, heads = adapter.config, adapter.config.base.num_attention_heads
    unused = torch.zeros(config.layers.start, heads)
    tensors = {PROMPTS: adapter.prompts.detach().flatten(0, 1).contiguous()}
    for index, gate in enumerate(torch.cat([unused, adapter.gates.detach()])):
        tensors[f"layers.{index}.attention.gate"] = gate.reshape(1, heads, 1, 1).clone()
    name = f"llama_adapter_len{config.prompt_length}_layer{config.insertion_layers}.pth"
    with atomic_write(folder / name) as temporary:
        torch.save(tensors, temporary)
    how = "pass them through tanh" if config.gate_activation == "tanh" else "use them as they are, without tanh"
    hidden = f"Gates of zero hide how many layers have prompts: `--layers {config.insertion_layers}` says so."
    length = f"The official program needs adapter_len={config.prompt_length}. Template: {config.template}."
    return f"{name}: the file cannot say how its gates are meant: {how}. {hidden} {length}"
