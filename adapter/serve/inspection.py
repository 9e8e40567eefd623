"""The numbers behind the pictures: what each token of an answer took from the adapter's prompts, from the adapter
and from the picture.

An answer is read once more after it was given, by passes of this module's own: nothing stays on the shared model,
and no other request is touched. Knows the base, adapters and token ids; knows nothing of requests or pages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapter.base.llama import Base
from adapter.base.template import Message, encode_prompt
from adapter.errors import BadInput
from adapter.method.adapter import Adapter
from adapter.method.attention import LayerPrompts, PromptKV, grouped
from adapter.method.deltas import Deltas
from adapter.method.vision import VisualFeatures
from adapter.serve.detokenizer import TextStream

_CHUNK = 64  # positions whose logits are held at a time: a vocabulary is wide
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Part:
    """What an answer has of one adapter of L insertion layers, H heads and K prompts.

    layers: the L layers by the base's count. gates: [L, H], strength * act(g), as they multiplied the prompts'
    attention: 0 where muted. prompt_weights: [T, L, K], the prompts' softmax, which sums to 1, as the mean over
    heads weighted by |gate|: a head that is nearly shut has a say only so far as it is heard. Where all gates are
    zero it is the plain mean.
    """

    layers: tuple[int, ...]
    gates: Tensor
    prompt_weights: Tensor


@dataclass(frozen=True)
class Inspection:
    """What is known of an answer of T tokens that one adapter gave, or several that were mixed.

    All tensors are fp32 on the CPU, log-probabilities natural ones (nats). A token's numbers are those of the
    position before it, where it was chosen.

    parts: the adapters in order; what follows is of all together. layers: the L layers where any of them has
    prompts. shares: [T, L, H], a / (a + b) with a the length (L2 norm) of what the gated prompt terms add to a
    head and b that of its attention over the words, the vectors that zero-init attention adds (arXiv 2303.16199,
    section 3.2). It is 0 where the gate is, 1/2 where both are equally long and at most 1, in whatever units a
    layer's values are; what points against the words counts like what points along with them.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]  # the text that came with each; empty for one that ends the answer or half a character
    parts: tuple[Part, ...]
    layers: tuple[int, ...]
    shares: Tensor
    logprobs: Tensor  # [T], as answered: with the adapters, and the picture if there is one
    base_logprobs: Tensor  # [T], of the frozen base
    blind_logprobs: Tensor | None = None  # [T], with the adapters but without the picture; None if there is none

    @property
    def drawn(self) -> Tensor:
        """[T] in 0 to 1: how much each token drew on the prompts, the mean of its shares over layers and heads."""
        return self.shares.mean(dim=(1, 2))

    @property
    def influence(self) -> Tensor:
        """[T]: log p with the adapter minus log p of the frozen base, in nats."""
        return self.logprobs - self.base_logprobs

    @property
    def grounding(self) -> Tensor | None:
        """[T]: log p with the picture minus log p without, in nats; None if there is no picture."""
        return None if self.blind_logprobs is None else self.logprobs - self.blind_logprobs


def inspect(
    base: Base,
    adapter: Adapter,
    messages: Sequence[Message],
    answer_ids: Sequence[int],
    features: VisualFeatures | None = None,
    strength: float = 1.0,
) -> Inspection:
    """Look into an answer that `adapter` gave to `messages`, at this strength and with the picture in `features`.

    Raises BadInput as `look_into`, for several pictures and for a picture shown to an adapter of text.
    """
    if features is not None and len(features) != 1:
        raise BadInput(f"Look into one answer with one picture at a time, not {len(features)}.")
    prompt_ids = encode_prompt(base.tokenizer, messages, adapter.config.template)
    with torch.no_grad():
        shown = adapter(base.model, features).scaled(strength)
        blind = None if features is None else adapter(base.model).scaled(strength)
    return look_into(base, [adapter], prompt_ids, answer_ids, shown, blind)


def look_into(
    base: Base,
    adapters: Sequence[Adapter],
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    shown: PromptKV,
    blind: PromptKV | None = None,
) -> Inspection:
    """Look into an answer that was given with `shown`: one entry, which mixes the terms of `adapters` in order.

    blind: the same without the picture, if one was shown. One pass over prompt and answer sees everything; the
    base, and the adapters without the picture, are one pass each. All have the same shape, so that what makes no
    difference is exactly 0. Raises BadInput for no or too long an answer and for ids that the base does not have.
    """
    owners = {layer: [i for i, a in enumerate(adapters) if layer in a.config.layers] for layer in shown.layers}
    notes = _Notes(len(answer_ids), owners)
    logprobs = log_probs(base, prompt_ids, answer_ids, replace(shown, watch=notes))
    parts = []
    for index, adapter in enumerate(adapters):
        layers, length = tuple(adapter.config.layers), adapter.config.prompt_length
        terms = [shown.layers[layer][owners[layer].index(index)] for layer in layers]
        gates = torch.stack([term.gates[0].float().cpu() for term in terms])
        weights = torch.stack([notes.weights[index, layer][:, :length] for layer in layers], dim=1)
        parts.append(Part(layers, gates, weights))
    layers = tuple(sorted(shown.layers))
    text = TextStream(base.tokenizer)
    return Inspection(
        token_ids=tuple(answer_ids),
        tokens=tuple(text.push(i) for i in answer_ids),
        parts=tuple(parts),
        layers=layers,
        shares=torch.stack([notes.shares[layer] for layer in layers], dim=1),
        logprobs=logprobs,
        base_logprobs=log_probs(base, prompt_ids, answer_ids),
        blind_logprobs=None if blind is None else log_probs(base, prompt_ids, answer_ids, blind),
    )


class _Notes:
    """The watch of one pass: what the last `length` positions of each insertion layer drew on the prompts.

    owners: by layer, which adapter each of its terms is of.
    """

    def __init__(self, length: int, owners: Mapping[int, Sequence[int]]) -> None:
        self._length = length
        self._owners = owners
        self.shares: dict[int, Tensor] = {}  # [T, H] by layer
        self.weights: dict[tuple[int, int], Tensor] = {}  # [T, K] by adapter and layer

    def __call__(
        self, layer: int, query: Tensor, words: Tensor, terms: tuple[LayerPrompts, ...], scaling: float
    ) -> None:
        query = query[:, :, -self._length :].float()  # [1, H, T, head_dim]
        added = torch.zeros_like(query)
        for owner, prompts in zip(self._owners[layer], terms, strict=True):
            keys, values = prompts.keys.float(), prompts.values.float()  # [1, Hkv, K, head_dim]
            scores = grouped(query, keys.shape[1]) @ keys.transpose(2, 3) * scaling
            if prompts.score_mask is not None:
                scores = scores + prompts.score_mask
            softmax = scores.softmax(-1)  # [1, Hkv, H / Hkv * T, K]
            gates = prompts.gates[0].float()  # [H]
            added += (softmax @ values).view_as(query) * gates[:, None, None]
            heard = gates.abs() if gates.any() else torch.ones_like(gates)
            weights = softmax.view(*query.shape[1:3], -1)  # [H, T, K]
            self.weights[owner, layer] = torch.einsum("h,htk->tk", heard / heard.sum(), weights).cpu()
        lengths = added[0].norm(dim=-1).T  # [T, H]
        both = lengths + words[0, -self._length :].float().norm(dim=-1)
        self.shares[layer] = (lengths / both.clamp(min=torch.finfo(both.dtype).tiny)).cpu()


@torch.no_grad()
def log_probs(
    base: Base, prompt_ids: Sequence[int], answer_ids: Sequence[int], prompt_kv: PromptKV | None = None
) -> Tensor:
    """Log-probability of each token of an answer after a prompt and the answer's tokens before it: [T], in nats.

    prompt_kv: one entry, such as adapters mixed or `muted`; None is the frozen base. The pass is transformers'
    own, so on a packed base the numbers lie within bfloat16's rounding of those the engine streamed. fp32, on
    the CPU. Raises BadInput for no or too long an answer and for ids that the base does not have.
    """
    ids, length = [*prompt_ids, *answer_ids], len(answer_ids)
    vocabulary = base.fingerprint.vocab_size
    if not prompt_ids or not answer_ids:
        raise BadInput("There is no answer to look into. Ask something first.")
    if not all(0 <= i < vocabulary for i in ids):
        raise BadInput(f"Token ids must be numbers from 0 to {vocabulary - 1}.")
    if len(ids) > base.context_length:
        raise BadInput(f"Prompt and answer have {len(ids)} tokens and this base reads {base.context_length}.")
    tokens = torch.tensor([ids], device=base.device)
    read = base.model.model(input_ids=tokens[:, :-1], use_cache=False, prompt_kv=prompt_kv)
    hidden = read.last_hidden_state[0, -length:]  # [T, hidden_size]
    found = []
    for states, chosen in zip(hidden.split(_CHUNK), tokens[0, -length:].split(_CHUNK), strict=True):
        logits = base.model.lm_head(states).float()  # [64, vocab_size]
        found.append(logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(found).cpu()


def muted(kv: PromptKV, layers: Collection[int] = (), heads: Collection[int] = ()) -> PromptKV:
    """The same prompts with gates at zero in some layers and heads; several calls add up.

    layers: by the base's count, whole ones; what else an adapter of the V2 family changes there goes too, and
    its final norm with layer -1. heads: these in all layers, or in `layers` alone if both are given. With every
    layer muted the answer is the frozen base's, bit for bit. Raises BadInput for one that is not there.
    """
    tuned = {layer for layer, _ in (*kv.deltas.linears, *kv.deltas.norms)} if kv.deltas is not None else set()
    _known("layer", layers, {*kv.layers, *tuned})
    _known("head", heads, range(next((p.gates.shape[1] for terms in kv.layers.values() for p in terms), 0)))
    there = set(layers) if layers else set(kv.layers) if heads else set()
    prompts = {
        i: tuple(replace(p, gates=_shut(p.gates, heads)) for p in terms) if i in there else terms
        for i, terms in kv.layers.items()
    }
    deltas = kv.deltas
    if deltas is not None and not heads:
        linears = {key: delta for key, delta in deltas.linears.items() if key[0] not in there}
        norms = {key: delta for key, delta in deltas.norms.items() if key[0] not in there}
        deltas = Deltas(linears, norms, deltas.size) if linears or norms else None
    return PromptKV(prompts, kv.size, deltas)


def _shut(gates: Tensor, heads: Collection[int]) -> Tensor:
    """[U, H] with zeros at these heads, or at all."""
    if not heads:
        return torch.zeros_like(gates)
    return gates.index_fill(1, torch.tensor(sorted(heads), device=gates.device), 0.0)


def _known(what: str, asked: Collection[int], there: Collection[int]) -> None:
    if unknown := sorted(set(asked) - set(there)):
        which = f"Choose from {min(there)} to {max(there)}, or unmute it." if there else "It has no prompts."
        raise BadInput(f"This adapter has nothing to mute in {what} {unknown[0]}. {which}")


def table(found: Inspection) -> str:
    """An inspection for people: a row a token with its numbers, and below it the answer as strips of blocks.

    A strip has a character for each token. What was drawn on the prompts differs little between tokens, so that
    its strip runs from the lowest to the highest; the others start at 0, and "-" is below.
    """
    columns: dict[str, Tensor] = {"drawn %": found.drawn * 100, "influence": found.influence}
    if found.grounding is not None:
        columns["grounding"] = found.grounding
    columns["log p"] = found.logprobs
    width = max(14, *(len(repr(text)) for text in found.tokens))
    lines = [f"{'token':{width}}" + "".join(f"{name:>12}" for name in columns)]
    for text, *values in zip(found.tokens, *(column.tolist() for column in columns.values()), strict=True):
        lines.append(f"{text!r:{width}}" + "".join(f"{value:12.2f}" for value in values))
    columns.pop("log p")
    lows = {name: float(v.min()) if name == "drawn %" else 0.0 for name, v in columns.items()}
    strips = [f"{n:10} {_strip(v, lows[n])}  {lows[n]:.2f} to {v.max():.2f}" for n, v in columns.items()]
    lines += ["", *strips]
    gap = f"influence, log p: nats over the frozen base, in all {found.influence.sum():+.1f}"
    if found.grounding is not None:
        gap += f"; grounding: nats over no picture, in all {found.grounding.sum():+.1f}"
    return "\n".join([*lines, "drawn: the prompts' part of what attention gave, mean over layers and heads", gap])


def _strip(values: Tensor, low: float) -> str:
    """One block a number, in eighths of the way from `low` to the largest."""
    eighths = (values - low) / (values.max() - low).clamp(min=1e-9) * 8
    return "".join("-" if v < -0.5 else _BLOCKS[max(0, round(v))] for v in eighths.tolist())
