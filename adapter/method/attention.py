"""Zero-init attention (arXiv 2303.16199, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaAttention

from adapter.method.deltas import Deltas, stack_entries
from adapter.method.gradients import CausalAttention, PromptTerm

_MAX_CAUSAL_LENGTH = 1024  # tokens up to which training on a CPU uses CausalAttention, which keeps the scores

# Keys, values or masks of all rows, or of several runs of rows that make up the batch in order.
Runs = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class LayerPrompts:
    """The adaption prompts of one insertion layer, ready for attention.

    keys, values: [U, Hkv, K, head_dim], the frozen projections of U entries' prompts.
    gates: [U, H], already `strength * act(g)`; an entry that has no prompts here has gate 0.
    mask: [U, K], 0 where the prompt exists and -inf where an entry is shorter than K, or None.
    """

    keys: Tensor
    values: Tensor
    gates: Tensor
    mask: Tensor | None = None

    def select(self, rows: Tensor) -> LayerPrompts:
        """The entry of each row."""
        mask = None if self.mask is None else self.mask[rows]
        return LayerPrompts(self.keys[rows], self.values[rows], self.gates[rows], mask)


@dataclass(frozen=True)
class PromptKV:
    """The adapters of a forward pass: U entries for each insertion layer, by layer index.

    A layer has one LayerPrompts for each adapter of a mix; their gated terms are summed. An argument of the call,
    never stored on a module. The call's `prompt_rows`, [B], names the entry of each row; without it a
    single entry serves all rows, and U entries serve U rows in order.
    """

    layers: Mapping[int, tuple[LayerPrompts, ...]]
    size: int = 1  # U
    deltas: Deltas | None = None  # of V2 adapters, U entries
    # Called with each insertion layer's index, the queries after RoPE [B, H, T, head_dim], the prompt terms that
    # will be added, and the scaling. Scaled, mixed and stacked copies do not have it.
    observer: Callable[[int, Tensor, tuple[LayerPrompts, ...], float], None] | None = None

    def scaled(self, strength: float) -> PromptKV:
        """A copy with every gate and every delta multiplied by `strength`: alpha * act(g)."""
        if strength == 1.0:
            return self
        return PromptKV(
            {i: tuple(replace(p, gates=p.gates * strength) for p in terms) for i, terms in self.layers.items()},
            self.size,
            None if self.deltas is None else self.deltas.scaled(strength),
        )

    @staticmethod
    def mixed(parts: Sequence[PromptKV]) -> PromptKV:
        """One PromptKV with the gated terms of all parts, which have the same size."""
        layers: dict[int, tuple[LayerPrompts, ...]] = {}
        for part in parts:
            for index, terms in part.layers.items():
                layers[index] = (*layers.get(index, ()), *terms)
        deltas = [part.deltas for part in parts if part.deltas is not None]
        return PromptKV(layers, parts[0].size, Deltas.mixed(deltas) if deltas else None)

    @staticmethod
    def stack(entries: Sequence[PromptKV], multiple: int = 1) -> PromptKV:
        """One PromptKV with the entries of all, in order; prompt lengths, layers and numbers of terms may differ.

        multiple: the common prompt length is rounded up to a multiple of it; what is added is masked.
        """
        sizes = [entry.size for entry in entries]
        layers = {}
        for index in sorted({i for entry in entries for i in entry.layers}):
            terms = zip_longest(*(entry.layers.get(index, ()) for entry in entries))
            layers[index] = tuple(_stacked(of_entries, sizes, multiple) for of_entries in terms)
        return PromptKV(layers, sum(sizes), Deltas.stack([entry.deltas for entry in entries], sizes))


def _stacked(prompts: Sequence[LayerPrompts | None], sizes: Sequence[int], multiple: int) -> LayerPrompts:
    """One term of all entries, padded and masked to a common length; zeros with gate 0 for None."""
    present = [p for p in prompts if p is not None]
    length = max(p.keys.shape[2] for p in present)
    length = -(-length // multiple) * multiple
    masks = []
    for p, size in zip(prompts, sizes, strict=True):
        mask = None if p is None else p.mask
        shown = length if p is None else p.keys.shape[2]
        masks.append(present[0].keys.new_zeros(size, shown) if mask is None else mask)
    keys, values, gates = (
        stack_entries([None if p is None else getattr(p, name) for p in prompts], sizes, axis, length)
        for name, axis in (("keys", 2), ("values", 2), ("gates", None))
    )
    return LayerPrompts(keys, values, gates, stack_entries(masks, sizes, 1, length, float("-inf")))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(q k^T * scaling + mask) v, [B, T, H, size]: equations 5 and 8 without o_proj.

    query: [B, H, T, head_dim]; key: [B or 1, Hkv, S, head_dim]; value: [B or 1, Hkv, S, size]; mask: additive, the
    same for all T and H. Keys are not repeated: the heads of a group become further query positions.
    """
    batch, heads, length, head_dim = query.shape
    if key.shape[0] < batch:
        key, value = (t.expand(batch, -1, -1, -1) for t in (key, value))
    grouped = query.reshape(batch, key.shape[1], -1, head_dim)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, length, -1).transpose(1, 2)


def _attend_words(
    module: LlamaAttention, query: Tensor, key: Runs, value: Runs, mask: Runs | None, scaling: float
) -> Tensor:
    """Attention over words without o_proj, by the kernel that suits the inputs; see zero_init_attention."""
    if not isinstance(key, Tensor):
        if len(key) > 1:
            assert mask is not None
            queries = query.split([len(run) for run in key])
            return torch.cat([attend(*run, scaling) for run in zip(queries, key, value, mask, strict=True)])
        key, value, mask = key[0], value[0], None if mask is None else mask[0]
    assert isinstance(value, Tensor) and (mask is None or isinstance(mask, Tensor))
    length = query.shape[2]
    whole = mask is None and key.shape[2] == length <= _MAX_CAUSAL_LENGTH
    if whole and query.requires_grad and query.device.type == "cpu":
        return CausalAttention.apply(query, key, value, scaling)
    if length > 1:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)[0]
    return attend(query, key, value, mask, scaling)  # key of one entry: each token of a row is a row of its own


def zero_init_attention(
    module: LlamaAttention,
    query: Tensor,
    key: Runs,
    value: Runs,
    mask: Runs | None,
    prompt_kv: PromptKV | None,
    prompt_rows: Tensor | None,
) -> Tensor:
    """Zero-init attention (equations 5 to 8 without o_proj): attention over the words plus gated prompt terms.

    Two softmaxes, not one: equation 7 keeps the words' attention independent of the prompts, so that a zero
    gate leaves the frozen base's output exactly as it was. module: transformers' attention of this layer;
    query: [B, H, T, head_dim] after RoPE; key, value: [B or 1, Hkv, S, head_dim]; mask: of SDPA, None for causal.
    A serving cache gives them by runs, see Runs. Returns [B, T, H, head_dim], before o_proj.
    """
    scaling, index = module.scaling, module.layer_idx
    out = _attend_words(module, query, key, value, mask, scaling)
    if prompt_kv is None:
        return out
    terms = prompt_kv.layers.get(index, ())
    if prompt_kv.observer is not None and terms:
        prompt_kv.observer(index, query, terms, scaling)
    for prompts in terms:  # act(g) * softmax(q kp^T * scaling) vp, per head
        prompts = prompts if prompt_rows is None else prompts.select(prompt_rows)
        keys, values, mask = prompts.keys, prompts.values, prompts.mask
        if (query.requires_grad or keys.requires_grad) and query.device.type == "cpu":
            out = PromptTerm.apply(out, query, keys, values, prompts.gates, mask, scaling)
            continue
        term = attend(query, keys, values, None if mask is None else mask[:, None, None, :], scaling)
        out = torch.addcmul(out, term, prompts.gates[:, None, :, None])
    return out
