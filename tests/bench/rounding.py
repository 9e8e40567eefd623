"""Four bits for weights that no grid holds: distance from fp32, perplexity and an adapter in each format.

The weights of the embedded base lie on a grid of four bits. All of it is trained, in fp32 on English prose,
and then written down in another way that computes the same: scales of channels move from norms to matrices
and from one to the next, which leaves no group of weights on a grid. It is measured on other prose, by the
forward pass that serves; the adapter is trained on the fp32 weights.
"""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.base.llama import Base, load_base
from adapter.base.packed import quantize
from tests.bench.base import WINDOW, WINDOWS, perplexity, prose, read
from tests.bench.programs import print_head, print_row
from tests.tiny_models import random_adapter

STEPS, LENGTH, RATE = 200, 64, 6e-4
ADAPTER_STEPS = 30
COMPARED = 4  # windows whose distributions are compared


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(quantization="none", device="cpu", dtype=torch.float32)
        ids = torch.tensor(base.tokenizer(prose(), verbose=False).input_ids)
        later = ids[WINDOWS * WINDOW :]  # what is measured is not learnt
        train_base(base, later)
        move_scales(base)
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        base = load_base(folder, "none", "cpu", torch.float32)
        adapter = random_adapter(base.fingerprint, gate=0.1, prompt_length=8, insertion_layers=24)
        train_adapter(base, adapter, later)
        exact = perplexity(base, prose()), perplexity(base, prose(), adapter(base.model))
        likely = [logits.log_softmax(-1) for logits, _ in read(base, prose(), COMPARED)]
        print_head("format", "MB", "nats from fp32", "perplexity", "in %", "with the adapter", "in %")
        print_row("fp32", round(base.memory_bytes / 2**20), "", f"{exact[0]:.2f}", "", f"{exact[1]:.2f}", "")
        for name, options in formats().items():
            with mock.patch.multiple(quantize, **options) if options else nullcontext():
                measured = load_base(folder, name.partition(",")[0], "cpu")
            with torch.inference_mode():
                found = perplexity(measured, prose()), perplexity(measured, prose(), adapter(measured.model))
            change = [f"{100 * (one / other - 1):+.2f}" for one, other in zip(found, exact, strict=True)]
            size = round(measured.memory_bytes / 2**20)
            apart = f"{divergence(measured, likely):.4f}"
            print_row(name, size, apart, f"{found[0]:.2f}", change[0], f"{found[1]:.2f}", change[1])


@torch.inference_mode()
def divergence(base: Base, likely: Sequence[Tensor]) -> float:
    """KL divergence of a token's distribution from that of fp32, in nats: perplexity may improve by chance."""
    found = [
        F.kl_div(logits.log_softmax(-1), exact, log_target=True, reduction="batchmean")
        for (logits, _), exact in zip(read(base, prose(), len(likely)), likely, strict=True)
    ]
    return torch.stack(found).mean().item()


def formats() -> dict[str, dict[str, Any]]:
    """Quantisations by their names, and what of `quantize` is another there."""

    def plain(values: Tensor) -> tuple[Tensor, Tensor]:
        low, high = values.amin(2), values.amax(2)
        return ((high - low) / 15).half(), low.half()

    return {
        "packed-int8": {},
        "packed-int4, all layers, ends of each group": {"_searched": plain, "_SMALL": ()},
        "packed-int4": {},
        "packed-int4, all layers": {"_SMALL": ()},
        "nf4": {},
    }


def train_base(base: Base, ids: Tensor) -> None:
    model = base.model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 20) * (1 - step / STEPS)
        loss_of(base, ids, step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False).eval()


@torch.no_grad()
def move_scales(base: Base) -> None:
    config = base.model.config
    torch.manual_seed(0)

    def move(give: Tensor, take: Tensor, repeats: int = 1) -> None:
        scales = torch.empty(config.num_key_value_heads, len(give) // config.num_key_value_heads)
        scales.uniform_(-0.3, 0.3).exp_()
        give.mul_(scales.flatten()[:, None])
        take.div_(scales.repeat_interleave(repeats, 0).flatten())

    for layer in base.model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.mul_(norm.weight)
            norm.weight.fill_(1)
        move(mlp.up_proj.weight, mlp.down_proj.weight)
        groups = config.num_attention_heads // config.num_key_value_heads
        move(attention.v_proj.weight, attention.o_proj.weight, groups)


def train_adapter(base: Base, adapter: torch.nn.Module, ids: Tensor) -> None:
    optimizer = torch.optim.AdamW(adapter.requires_grad_(True).parameters(), 5e-3, weight_decay=0)
    for step in range(ADAPTER_STEPS):
        loss_of(base, ids, step, adapter(base.model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapter.requires_grad_(False)


def loss_of(base: Base, ids: Tensor, step: int, prompts: object = None) -> Tensor:
    start = step * LENGTH % (len(ids) - LENGTH - 1)
    window = ids[start : start + LENGTH + 1]
    logits = base.model(input_ids=window[None, :-1], use_cache=False, prompt_kv=prompts)
    return F.cross_entropy(logits.logits[0], window[1:])
