"""The training of one adapter on one frozen base. Knows batches and modules; knows nothing of recipes."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from adapter.attention import PromptKV
from adapter.checkpoint import save_adapter
from adapter.config import AdapterConfig
from adapter.llama import AdaptedLlama, Base
from adapter.modules import Adapter
from adapter.vision import VisualFeatures
from train.config import TrainConfig
from train.data import IGNORED, Batch, Example, batches


def new_adapter(config: TrainConfig, base: Base) -> Adapter:
    """An untrained adapter for `base`: random prompts behind zero gates."""
    set_seed(config.seed)
    adapter = Adapter(
        AdapterConfig(
            base=base.fingerprint,
            prompt_length=config.prompt_length,
            insertion_layers=config.insertion_layers or base.fingerprint.num_hidden_layers,
            gate_activation=config.gate_activation,
            prompt_norm=config.prompt_norm,
            template=config.template,
            description=config.description,
            vision=config.vision,
        )
    )
    torch.nn.init.normal_(adapter.prompts, std=config.prompt_std)
    return adapter


def prompts_of(
    adapter: torch.nn.Module, model: AdaptedLlama, features: VisualFeatures | None, rows: torch.Tensor | None
) -> PromptKV:
    """Prompts for a batch; features and rows as in Batch: with rows, entry 0 is the adapter without a picture."""
    kv: PromptKV = adapter(model, features)
    return kv if rows is None else PromptKV.stack([adapter(model), kv])


def supervised_loss(model: AdaptedLlama, adapter: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens, in nats; the head runs on those positions only."""
    kv = prompts_of(adapter, model, batch.features, batch.rows)
    # Padding stands at the end, so causal attention alone keeps it from the supervised positions.
    hidden = model.model(
        input_ids=batch.input_ids, use_cache=False, prompt_kv=kv, prompt_rows=batch.rows
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    kept = targets != IGNORED
    logits = model.lm_head(hidden[:, :-1][kept])
    return F.cross_entropy(logits.float(), targets[kept])


def train(
    config: TrainConfig,
    base: Base,
    examples: Callable[[str], Iterable[Example]],
    folder: Path,
    adapter: Adapter,
) -> tuple[Adapter, float]:
    """Train `adapter` and save it in `folder`; returns it and its held-out loss.

    examples("train") is endless, examples("validation") is not. Only the adapter's parameters change.
    """
    accelerator = Accelerator()
    adapter.requires_grad_(True).train()
    gates = [adapter.gates]
    others = [p for p in adapter.parameters() if p is not adapter.gates]
    optimizer = torch.optim.AdamW(
        [
            {"params": others, "lr": config.lr},
            {"params": gates, "lr": config.gate_lr, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        weight_decay=config.weight_decay,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, int(config.warmup * config.steps)), config.steps)
    wrapped, optimizer, schedule = accelerator.prepare(adapter, optimizer, schedule)

    def make(source: Iterable[Example], rng: random.Random | None) -> Iterator[Batch]:
        return batches(source, base.tokenizer, config.template, config.batch_size, config.max_length, rng)

    held_out = list(make(itertools.islice(examples("validation"), config.held_out), None))
    source = make(examples("train"), random.Random(config.seed))
    bar = tqdm(source, total=config.steps, desc=config.name, unit="step", dynamic_ncols=True)
    held_out_loss, running = float("nan"), None
    started, tokens = time.perf_counter(), 0
    for step, batch in enumerate(bar, start=1):
        loss = supervised_loss(base.model, wrapped, batch)
        accelerator.backward(loss)
        if config.clip_norm is not None:
            accelerator.clip_grad_norm_(wrapped.parameters(), config.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        value = loss.item()
        running = value if running is None else 0.95 * running + 0.05 * value
        tokens += batch.tokens
        if step % config.eval_every == 0 or step == config.steps:
            held_out_loss = evaluate(base.model, adapter, held_out)
            save_adapter(adapter, folder)
            tqdm.write(f"{config.name} step {step}: loss {running:.3f}, held-out loss {held_out_loss:.3f}")
        speed = tokens / (time.perf_counter() - started)
        bar.set_postfix(loss=f"{running:.3f}", held_out=f"{held_out_loss:.3f}", tokens_s=f"{speed:.0f}")
        if step == config.steps:
            break
    bar.close()
    return adapter.requires_grad_(False).eval(), held_out_loss


@torch.no_grad()
def evaluate(model: AdaptedLlama, adapter: Adapter, held_out: Iterable[Batch]) -> float:
    """Mean loss per supervised token over `held_out`."""
    adapter.eval()
    total, count = 0.0, 0
    for batch in held_out:
        supervised = int((batch.labels != IGNORED).sum())
        total += supervised_loss(model, adapter, batch).item() * supervised
        count += supervised
    adapter.train()
    return total / max(count, 1)
