"""Four bits for weights that no grid holds: perplexity and an adapter's loss in each format.

The embedded base's own weights lie on a grid of four bits, so it is trained first, all of it, in fp32 on English
prose, until its weights have left that grid. The perplexity is that of other prose, read by the forward pass that
serves; the adapter is trained on the fp32 weights and scored on each format.
"""

from __future__ import annotations

import tempfile
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.base.llama import Base, load_base
from adapter.base.packed import quantize
from tests.bench.base import WINDOW, WINDOWS, perplexity, prose
from tests.bench.programs import print_head, print_row
from tests.tiny_models import random_adapter

STEPS, LENGTH, RATE = 200, 64, 6e-4
ADAPTER_STEPS = 30
SENSITIVE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(quantization="none", device="cpu", dtype=torch.float32)
        ids = torch.tensor(base.tokenizer(prose(), verbose=False).input_ids)
        later = ids[WINDOWS * WINDOW :]  # what is measured is not learnt
        train_base(base, later)
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        base = load_base(folder, "none", "cpu", torch.float32)
        adapter = random_adapter(base.fingerprint, gate=0.1, prompt_length=8, insertion_layers=24)
        train_adapter(base, adapter, later)
        exact = perplexity(base, prose()), perplexity(base, prose(), adapter(base.model))
        print_head("format", "MB", "perplexity", "against fp32, %", "with the adapter", "against fp32, %")
        print_row("fp32", round(base.memory_bytes / 2**20), f"{exact[0]:.3f}", "", f"{exact[1]:.3f}", "")
        for name, options in formats().items():
            with mock.patch.multiple(quantize, **options):
                measured = load_base(folder, name.partition(",")[0], "cpu")
            with torch.inference_mode():
                found = perplexity(measured, prose()), perplexity(measured, prose(), adapter(measured.model))
            change = [f"{100 * (one / other - 1):+.2f}" for one, other in zip(found, exact, strict=True)]
            size = round(measured.memory_bytes / 2**20)
            print_row(name, size, f"{found[0]:.3f}", change[0], f"{found[1]:.3f}", change[1])


def formats() -> dict[str, dict[str, Any]]:
    """Quantisations by their names, and what of `quantize` is another there."""

    def plain(values: Tensor) -> tuple[Tensor, Tensor]:
        low, high = values.amin(2), values.amax(2)
        return ((high - low) / 15).half(), low.half()

    def eight(part: str) -> dict[str, Any]:
        return {"_SENSITIVE": (part, "lm_head")}

    return {
        "packed-int8": {},
        "packed-int4, ends of each group": {"_searched": plain},
        "packed-int4": {},
        **{f"packed-int4, {part} in 8 bits": eight(part) for part in SENSITIVE},
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
