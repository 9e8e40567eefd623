"""The forward pass of a packed base on a CPU, compiled: all layers of several tokens in one call.

A prompt read in any chunks, an answer and a batch all give the same bits. Helper threads take pieces of the work
if they are awake; nobody waits for one to begin. Knows tensors; knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.activations import SiLUActivation

from adapter.base.llama import Base
from adapter.base.packed.integer_product import GROUP, whole_blocks, whole_groups
from adapter.base.packed.native import SCORES_BYTES
from adapter.base.packed.quantize import PackedLinear
from adapter.method.attention import PromptKV
from adapter.method.deltas import FINAL_NORM, LINEARS, NORMS
from adapter.serve.compiled import layers as at


class Entry:
    """The prompts and deltas of a row in the form that the compiled pass reads. `address` is 0 for none."""

    def __init__(self, prompts: PromptKV | None, layers: int) -> None:
        self.address = 0
        self._kept: list[Tensor] = []  # whose addresses are in the table
        if prompts is None:
            return
        if prompts.size != 1:
            raise ValueError("the prompts of one row are one entry")
        table = torch.zeros(layers + 1, at.DELTAS, dtype=torch.int64)
        for layer, terms in prompts.layers.items():
            rows = [
                [
                    term.keys.shape[2],
                    self._keep(term.keys.bfloat16()),
                    self._keep(term.values.bfloat16()),
                    self._keep(term.gates.float()),
                ]
                for term in terms
            ]
            table[layer, 2], table[layer, 3] = len(rows), self._keep(torch.tensor(rows))
        if prompts.deltas is not None:
            for (layer, name), norm in prompts.deltas.norms.items():
                column = 0 if name == FINAL_NORM else NORMS.index(name)
                table[layer, column] = self._keep(norm.float())  # the final norm's layer is -1
            for (layer, name), delta in prompts.deltas.linears.items():
                first = 4 + 5 * LINEARS.index(name)
                columns = None if delta.up is None else delta.up.transpose(1, 2)
                for i, tensor in enumerate((delta.bias, delta.scale, delta.down, columns)):
                    if tensor is not None:
                        table[layer, first + i] = self._keep(tensor.float())
                if delta.down is not None:
                    table[layer, first + 4] = delta.down.shape[1]
        self.address = self._keep(table)

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


class CompiledPass:
    """The compiled forward pass of one base, with its buffers and helper threads. For one thread at a time."""

    @staticmethod
    def suits(base: Base) -> bool:
        """Whether a base can be run: every linear layer is packed, and it is a LLaMA in bfloat16 on a CPU.

        What is unusual in its sizes is left to torch, which checks them: compiled code would read past the ends.
        """
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
        config, model = base.model.config, base.model.model
        self._work = at.compile_work()
        self._rotary, self._embedding = model.rotary_emb, model.embed_tokens
        self._kept: list[Tensor] = []
        self._buffers: dict[int, Tensor] = {}
        self._plan = torch.zeros(at.PLAN, dtype=torch.int64)
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        hidden, mlp = whole_groups(config.hidden_size), whole_groups(config.intermediate_size)
        widest = max(hidden, mlp, whole_groups(queries))
        self._widths = {
            at.STREAM: config.hidden_size, at.NORMED: hidden, at.ATTENDED: whole_groups(queries),
            at.QKV: whole_blocks(queries) + 2 * whole_blocks(keys), at.PROJECTED: whole_blocks(config.hidden_size),
            at.GATE_UP: 2 * whole_blocks(config.intermediate_size), at.ACTIVATED: mlp,
            at.SCALES: 2 * widest // GROUP, at.LAST_SCALES: 2 * hidden // GROUP,
            at.INTEGERS: widest // 4, at.LAST_INTEGERS: hidden // 4,
        }  # fmt: skip
        constants = torch.tensor([config.rms_norm_eps, config.head_dim**-0.5])
        self._fill({
            at.LAYERS: config.num_hidden_layers, at.HIDDEN: config.hidden_size, at.MLP: config.intermediate_size,
            at.HEADS: config.num_attention_heads, at.KV_HEADS: config.num_key_value_heads,
            at.HEAD_DIM: config.head_dim, at.VOCABULARY: config.vocab_size, at.THREADS: threads,
            at.CONSTANTS: self._keep(constants),
        })  # fmt: skip
        self._vocabulary = config.vocab_size
        records = []
        for layer in model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            linears = (
                attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
                mlp.gate_proj, mlp.up_proj, mlp.down_proj,
            )  # fmt: skip
            norms = [self._keep(n.weight.float()) for n in (layer.input_layernorm, layer.post_attention_layernorm)]
            records.append([*norms, *(value for linear in linears for value in self._weight(linear))])
        last = [self._keep(model.norm.weight.float()), 0, *self._weight(base.model.lm_head)]
        records.append(last + [0] * (at.WEIGHTS - len(last)))
        group = config.num_attention_heads // config.num_key_value_heads
        scratch = group * (config.head_dim + 2) + group * SCORES_BYTES // 4
        self._fill({
            at.MODEL: self._keep(torch.tensor(records)), at.SCRATCH_BYTES: 4 * scratch,
            at.SCRATCH: self._keep(torch.empty(threads, scratch)),
        })  # fmt: skip
        self._capacity = 0
        self._helpers: list[_Helper] = []
        with contextlib.suppress(RuntimeError):  # no more threads for this process: those there are do all
            for thread in range(1, threads):
                self._helpers.append(_Helper(self._work, self._plan, thread))

    def close(self) -> None:
        for helper in self._helpers:
            helper.close()

    def __call__(
        self,
        pool: Tensor,
        ids: Sequence[int],
        places: Sequence[int],
        starts: Sequence[int],
        entries: Sequence[Entry],
        outputs: Sequence[int],
    ) -> Tensor:
        """Read tokens, each into its place in the pool, [layers, 2, Hkv, capacity, head_dim] in bfloat16.

        starts: the place of the first token of each token's row, entries: its row's prompts. A token attends to
        the places from start to its own. outputs: indices of the tokens, in ascending order, behind which the
        logits are wanted. Returns these, [outputs, vocab_size] in fp32.
        """
        tokens = len(ids)
        if tokens > self._capacity:
            self._allocate(tokens)
        embedded = self._embedding(torch.tensor(ids)).float()
        self._buffers[at.STREAM][:tokens] = embedded
        place, start = torch.tensor(places), torch.tensor(starts)
        angles = self._rotary(embedded, (place - start)[None])  # cosines and sines, of two equal halves
        rotation = torch.cat([part[0, :, : part.shape[2] // 2] for part in angles], 1)
        fields = torch.full((tokens, at.FIELDS), -1)
        fields[:, at.PLACE], fields[:, at.START] = place, start
        fields[:, at.ENTRY] = torch.tensor([entry.address for entry in entries])
        fields[outputs, at.OUTPUT] = torch.arange(len(outputs))
        logits = torch.empty(len(outputs), whole_blocks(self._vocabulary))
        self._fill({
            at.TOKENS: tokens, at.OUTPUTS: len(outputs), at.ROWS: fields.data_ptr(), at.LOGITS: logits.data_ptr(),
            at.ROTATION: rotation.data_ptr(), at.POOL: pool.data_ptr(), at.CAPACITY: pool.shape[3],
        })  # fmt: skip
        for helper in self._helpers:
            helper.wake()
        self._work(self._plan.data_ptr(), 0)
        return logits[:, : self._vocabulary]

    def _fill(self, numbers: dict[int, int]) -> None:
        for name, number in numbers.items():
            self._plan[name] = number

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _weight(self, linear: Any) -> tuple[int, int]:
        return self._keep(linear.weight), linear.bits

    def _allocate(self, tokens: int) -> None:
        """Buffers for a pass of so many tokens. What pads a row to whole groups stays zero."""
        self._buffers = {name: torch.zeros(tokens, width) for name, width in self._widths.items()}
        self._fill({name: buffer.data_ptr() for name, buffer in self._buffers.items()})
        self._capacity = tokens


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
