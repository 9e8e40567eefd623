"""A reference LLaMA with adaption prompts in fp64 for the tests of other programs' formats, and ways to run ours.

Written from the papers' equations (arXiv 2302.13971, 2303.16199), not from anybody's code.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from adapter.base.llama import AdaptedLlama, base_fingerprint
from adapter.formats.convert import Options, convert
from adapter.method.checkpoint import load_adapter

IDS = torch.arange(24).reshape(2, 12) * 7 % 97
HEADS, HEAD_DIM, LAYERS, HIDDEN = 4, 8, 4, 32
FREQUENCIES = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
# Meta's names of a layer's matrices and Hugging Face's.
NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def meta_weights(model: AdaptedLlama, in_pairs: bool = False) -> dict[str, Tensor]:
    """The model's weights under Meta's names, fp64, rows as Hugging Face orders them; in pairs: as Meta does."""
    state = {name: t.double() for name, t in model.state_dict().items()}
    found = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for i in range(LAYERS):
        for meta, hf in NAMES.items():
            weight = state[f"model.layers.{i}.{hf}.weight"]
            if in_pairs and meta in ("attention.wq", "attention.wk"):  # [H * head_dim, hidden]: halves to pairs
                weight = weight.view(-1, 2, HEAD_DIM // 2, HIDDEN).transpose(1, 2).reshape(weight.shape)
            found[f"layers.{i}.{meta}.weight"] = weight
    return found


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Meta's rotary embedding: neighbours (x0, x1), (x2, x3) ... are complex numbers. x: [..., T, head_dim]."""
    rotated = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(rotated).flatten(-2)


def rotate_halves(x: Tensor, angles: Tensor) -> Tensor:
    """Hugging Face's and LitGPT's: x0 goes with x_{d/2}."""
    one, two = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


def reference_logits(
    weights: Mapping[str, Tensor],
    ids: Tensor,
    prompts: Mapping[int, Tensor],
    gates: Mapping[int, Tensor],
    rotate: Callable[[Tensor, Tensor], Tensor],
    *,
    biases: Mapping[str, Tensor] = MappingProxyType({}),
    of_prompts: Mapping[str, Tensor] | None = None,
    seen: dict[int, Tensor] | None = None,
) -> Tensor:
    """Logits [B, T, vocab_size] in fp64.

    prompts: [K, hidden_size] or [B, K, hidden_size], gates (activated): [H], both by layer. of_prompts: the
    weights that project prompts, if others; biases: under the weights' names. seen: gets the softmax over the
    prompts by layer, [B, H, T, K].
    """
    weights = {name: values.double() for name, values in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + biases.get(f"{name}.bias", 0)

    def by_head(x: Tensor) -> Tensor:  # [B, T, ...] -> [B, H, T, head_dim]
        found = x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        return found.repeat_interleave(HEADS // found.shape[1], dim=1)

    length = ids.shape[1]
    angles = torch.outer(torch.arange(length, dtype=torch.float64), FREQUENCIES)
    future = torch.full((length, length), -math.inf, dtype=torch.float64).triu(1)
    hidden = weights["tok_embeddings.weight"][ids]
    for i in range(LAYERS):
        attention, feed_forward = f"layers.{i}.attention", f"layers.{i}.feed_forward"
        x = norm(hidden, f"layers.{i}.attention_norm")
        query, key = (rotate(by_head(linear(x, f"{attention}.{name}")), angles) for name in ("wq", "wk"))
        scores = query @ key.mT / math.sqrt(HEAD_DIM) + future
        out = scores.softmax(-1) @ by_head(linear(x, f"{attention}.wv"))
        if i in prompts:
            own = prompts[i].double().view(-1, *prompts[i].shape[-2:])  # no norm, no rotation
            key, value = (
                by_head(own @ (of_prompts or weights)[f"{attention}.{name}.weight"].double().T)
                for name in ("wk", "wv")
            )
            softmax = (query @ key.mT / math.sqrt(HEAD_DIM)).softmax(-1)
            out = out + gates[i].double().view(-1, 1, 1) * (softmax @ value)
            if seen is not None:
                seen[i] = softmax
        hidden = hidden + linear(out.transpose(1, 2).flatten(2), f"{attention}.wo")
        x = norm(hidden, f"layers.{i}.ffn_norm")
        inner = torch.nn.functional.silu(linear(x, f"{feed_forward}.w1")) * linear(x, f"{feed_forward}.w3")
        hidden = hidden + linear(inner, f"{feed_forward}.w2")
    return linear(norm(hidden, "norm"), "output" if "output.weight" in weights else "tok_embeddings")


def stepwise_logits(model, ids: Tensor, prefill: int = 7, **kwargs) -> Tensor:
    """Logits of all positions: the first `prefill` in one pass, then one by one with a cache."""
    out = model(input_ids=ids[:, :prefill], use_cache=True, **kwargs)
    logits = [out.logits]
    for i in range(prefill, ids.shape[1]):
        out = model(input_ids=ids[:, i : i + 1], cache=out.cache, use_cache=True, **kwargs)
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def converted_logits(model: AdaptedLlama, base: Path, source: Path, to: Path, **options) -> Tensor:
    """The logits of our model with `source`, converted into the folder `to` and loaded from there."""
    convert(str(source), to, Options(base=str(base), **options))
    return stepwise_logits(model, IDS, prompt_kv=load_adapter(to, base_fingerprint(str(base)))(model))
