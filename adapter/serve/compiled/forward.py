"""The compiled pass of one base: what it reads is checked and laid out here, and its helper threads live here."""

import contextlib
import threading
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.activations import SiLUActivation

from adapter.base.llama import Base
from adapter.base.packed.integer_product import GROUP, whole_blocks, whole_groups
from adapter.base.packed.native import SCORES_BYTES
from adapter.base.packed.quantize import PackedLinear
from adapter.errors import LoadError
from adapter.method.attention import PromptKV
from adapter.method.deltas import FINAL_NORM, LINEARS, NORMS, Deltas, linear_sizes
from adapter.serve.compiled.layers import ENTRY, LAYER, PLAN, TERM, TOKEN, compile_work
from adapter.serve.kv_cache import KVCache, Slot


class CompiledPrompts:
    """The prompts and deltas of a row in the form that the compiled pass reads. `address` is 0 for none."""

    def __init__(self, prompts: PromptKV | None, base: Base) -> None:
        """Raises LoadError unless all that compiled code will read has the base's sizes."""
        self.address = 0
        self._kept: list[Any] = []  # whose addresses are in the table
        if prompts is None:
            return
        sizes, deltas = base.fingerprint, prompts.deltas or Deltas({}, {})
        used = {*prompts.layers, *(layer for layer, _ in deltas.linears)}
        used |= {layer for layer, name in deltas.norms if name in NORMS}
        if prompts.size != 1 or used - set(range(sizes.num_hidden_layers)):
            raise _misfit(f"{prompts.size} entries, for layers {sorted(used)}")
        table = np.zeros(sizes.num_hidden_layers + 1, ENTRY)
        for layer, terms in prompts.layers.items():
            records = np.zeros(len(terms), TERM)
            for record, term in zip(records, terms, strict=True):
                length = term.keys.shape[2]
                if length == 0 or term.mask is not None:
                    raise _misfit("no prompts, or masked ones")
                shape = (sizes.num_key_value_heads, length, sizes.head_dim)
                record["length"] = length
                record["keys"] = self._keep(term.keys, torch.bfloat16, *shape)
                record["values"] = self._keep(term.values, torch.bfloat16, *shape)
                record["gates"] = self._keep(term.gates, torch.float32, sizes.num_attention_heads)
            self._kept.append(records)
            table[layer]["terms"], table[layer]["first_term"] = len(records), records.ctypes.data
        for (layer, name), norm in deltas.norms.items():
            place = table[-1] if name == FINAL_NORM else table[layer]
            place[NORMS[0] if name == FINAL_NORM else name] = self._keep(norm, torch.float32, sizes.hidden_size)
        linears = linear_sizes(sizes, base.model.config.intermediate_size)
        for (layer, name), delta in deltas.linears.items():
            (outputs, inputs), record = linears[name], table[layer]["linears"][LINEARS.index(name)]
            if delta.bias is not None:
                record["bias"] = self._keep(delta.bias, torch.float32, outputs)
            if delta.scale is not None:
                record["scale"] = self._keep(delta.scale, torch.float32, outputs)
            if (delta.down is None) != (delta.up is None):
                raise _misfit("half a LoRA")
            if delta.down is not None and delta.up is not None:
                record["rank"] = rank = delta.down.shape[1]
                record["down"] = self._keep(delta.down, torch.float32, rank, inputs)
                record["up"] = self._keep(delta.up.transpose(1, 2), torch.float32, rank, outputs)
        self._kept.append(table)
        self.address = table.ctypes.data

    def _keep(self, tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
        """The address of a tensor of one entry, [1, *shape], contiguous and in `dtype`."""
        if tuple(tensor.shape) != (1, *shape) or tensor.device.type != "cpu":
            raise _misfit(f"{tuple(tensor.shape)} numbers on {tensor.device} where the base has {(1, *shape)}")
        tensor = tensor.to(dtype).contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _misfit(what: str) -> LoadError:
    return LoadError(f"This adapter does not fit the base: it has {what}. Convert or train it again.")


class CompiledForward:
    """The pass of a packed base on a CPU, for one thread at a time: the same bits however tokens are divided."""

    reads_ragged = True

    @staticmethod
    def suits(base: Base) -> bool:
        """Whether all linear layers are packed, in a LLaMA of usual sizes in bfloat16 on a CPU."""
        model, config = base.model, base.model.config
        linears = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, PackedLinear))]
        return (
            all(isinstance(m, PackedLinear) for m in linears)
            and all(isinstance(layer.mlp.act_fn, (torch.nn.SiLU, SiLUActivation)) for layer in model.model.layers)
            and model.dtype == torch.bfloat16
            and 2 * len(model.model.rotary_emb.inv_freq) == config.head_dim  # whole heads are rotated
            and config.num_attention_heads % config.num_key_value_heads == 0
            and base.device.type == "cpu"
        )

    def __init__(self, base: Base, threads: int) -> None:
        """Raises what numba and LLVM raise where they cannot compile."""
        config = base.model.config
        self._base, self._work = base, compile_work()
        self._rotary, self._embedding = base.model.model.rotary_emb, base.model.model.embed_tokens
        self._vocabulary, self._capacity = config.vocab_size, 0
        self._pool_shape = (config.num_hidden_layers, 2, config.num_key_value_heads, config.head_dim)
        self._kept: list[Any] = []  # whose addresses are in the plan
        self._widths = _buffer_widths(config)
        self._buffers: dict[str, Tensor] = {}
        self._plan = torch.zeros(PLAN.itemsize // 8, dtype=torch.int64)  # torch's memory begins with a cache line
        group = config.num_attention_heads // config.num_key_value_heads
        scratch = group * (config.head_dim + 2) + group * SCORES_BYTES // 4
        self._fill(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            mlp=config.intermediate_size,
            vocabulary=config.vocab_size,
            threads=threads,
            constants=self._keep(torch.tensor([config.rms_norm_eps, config.head_dim**-0.5], dtype=torch.float32)),
            model=self._weights(base),
            scratch=self._keep(torch.empty(threads, scratch, dtype=torch.float32)),
            scratch_bytes=4 * scratch,
        )
        self._helpers: list[_Helper] = []
        with contextlib.suppress(RuntimeError):  # no more threads for this process: those there are do all
            for thread in range(1, threads):
                self._helpers.append(_Helper(self._work, self._plan, thread))

    def close(self) -> None:
        for helper in self._helpers:
            helper.close()

    def prepare(self, prompts: PromptKV | None) -> Any:
        return CompiledPrompts(prompts, self._base)

    def stack(self, prepared: Sequence[CompiledPrompts]) -> Any:
        return list(prepared)

    def __call__(
        self,
        cache: KVCache,
        ids: Sequence[Sequence[int]],
        slots: Sequence[Slot],
        starts: Sequence[int],
        prompts: Sequence[CompiledPrompts],
        every: bool = False,
    ) -> Tensor:
        pool, rows = cache.data, _token_records(ids, slots, starts, prompts, every)
        tokens, capacity, outputs = len(rows), pool.shape[3], int(rows["output"].max()) + 1
        is_laid_out = pool.dtype == torch.bfloat16 and pool.is_contiguous() and rows["place"].max() < capacity
        if not is_laid_out or (*pool.shape[:3], pool.shape[4]) != self._pool_shape:
            raise ValueError("the KV cache is not of this base, or a token has no place in it")
        if tokens > self._capacity:  # what pads a row to whole groups stays zero
            self._buffers = {k: torch.zeros(tokens, w, dtype=torch.float32) for k, w in self._widths.items()}
            self._fill(**{name: buffer.data_ptr() for name, buffer in self._buffers.items()})
            self._capacity = tokens
        embedded = self._embedding(torch.tensor([token for new in ids for token in new])).float()
        self._buffers["stream"][:tokens] = embedded
        positions = torch.from_numpy(rows["place"] - rows["start"])
        angles = self._rotary(embedded, positions[None])  # cosines and sines, of two equal halves
        rotation = torch.cat([part[0, :, : part.shape[2] // 2] for part in angles], 1)
        logits = torch.empty(outputs, whole_blocks(self._vocabulary), dtype=torch.float32)
        self._fill(
            tokens=tokens,
            outputs=outputs,
            rows=rows.ctypes.data,
            rotation=rotation.data_ptr(),
            pool=pool.data_ptr(),
            capacity=capacity,
            logits=logits.data_ptr(),
        )
        for helper in self._helpers:
            helper.wake()
        self._work(self._plan.data_ptr(), 0)
        return logits[:, : self._vocabulary]

    def _weights(self, base: Base) -> int:
        """The address of the weights of all layers."""
        table = np.zeros(len(base.model.model.layers) + 1, LAYER)
        for record, layer in zip(table[:-1], base.model.model.layers, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            record["attention_norm"] = self._keep(layer.input_layernorm.weight.float())
            record["mlp_norm"] = self._keep(layer.post_attention_layernorm.weight.float())
            linears = [getattr(attention, f"{name}_proj") for name in ("q", "k", "v", "o")]
            linears += [getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")]
            record["linears"] = [(self._keep(linear.weight), linear.bits) for linear in linears]
        head = base.model.lm_head
        table[-1]["attention_norm"] = self._keep(base.model.model.norm.weight.float())
        table[-1]["linears"][0] = (self._keep(head.weight), head.bits)
        self._kept.append(table)
        return table.ctypes.data

    def _fill(self, **numbers: int) -> None:
        plan = self._plan.numpy().view(PLAN)
        for name, number in numbers.items():
            plan[name] = number

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _token_records(
    ids: Sequence[Sequence[int]],
    slots: Sequence[Slot],
    starts: Sequence[int],
    entries: Sequence[CompiledPrompts],
    every: bool,
) -> np.ndarray:
    """A TOKEN for each new token of the rows. It attends to the places from its row's first to its own."""
    rows = list(zip(ids, slots, starts, entries, strict=True))
    if any(start + len(new) > slot.tokens for new, slot, start, _ in rows):  # it would be another row's slot
        raise RuntimeError("the row has outgrown its slot")
    tokens = [
        (slot.start + place, slot.start, entry.address, -1)
        for new, slot, start, entry in rows
        for place in range(start, start + len(new))
    ]
    records = np.array(tokens, TOKEN)
    outputs = range(len(tokens)) if every else [end - 1 for end in accumulate(map(len, ids))]
    records["output"][outputs] = range(len(outputs))
    return records


def _buffer_widths(config: Any) -> dict[str, int]:
    """Floats of a token in each of the plan's buffers."""
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    hidden, mlp = whole_groups(config.hidden_size), whole_groups(config.intermediate_size)
    widest = max(hidden, mlp, whole_groups(queries))
    return {
        "stream": config.hidden_size,
        "normed": hidden,
        "qkv": whole_blocks(queries) + 2 * whole_blocks(keys),
        "attended": whole_groups(queries),
        "projected": whole_blocks(config.hidden_size),
        "gate_up": 2 * whole_blocks(config.intermediate_size),
        "activated": mlp,
        "integers": widest // 4,
        "scales": 2 * widest // GROUP,
        "last_integers": hidden // 4,
        "last_scales": 2 * hidden // GROUP,
    }


class _Helper:
    """A thread that takes pieces of the passes. It sleeps when there have been none for some microseconds."""

    def __init__(self, work: Any, plan: Tensor, thread: int) -> None:
        self._call, self._plan, self._thread = work, plan, thread
        self._wake = threading.Semaphore(0)
        self._asleep = self._closed = False
        threading.Thread(target=self._work, name=f"engine helper {thread}", daemon=True).start()

    def wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._wake.release()

    def close(self) -> None:
        self._closed = True
        self._wake.release()

    def _work(self) -> None:
        while not self._closed:
            self._asleep = True
            self._wake.acquire()
            self._call(self._plan.data_ptr(), self._thread)
