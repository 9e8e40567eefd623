"""What the adapter is compared with: PEFT's LoRA and full fine-tuning, on the same batches."""

import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save

from adapter.base.llama import Base
from train.config import TrainConfig
from train.input.batches import Batches, collate
from train.input.examples import Example
from train.input.rows import IGNORED, Tokeniser
from train.loop import rate_factor
from train.reproduce.benchmark import MAX_LENGTH, TEMPLATE


def train_baseline(
    base: Base, examples: Iterable[Example], steps: int, batch_size: int, seed: int, lr: float, rank: int
) -> dict[str, Any]:
    """Trains the base in place, by LoRA or (rank 0) whole, with fp32 copies of the weights for the optimiser.

    Batches are the trainer's for the same examples. Returns the loss of each step, seconds on the processor, and
    the numbers of tokens, of trained parameters and of bytes of a file of these.
    """
    torch.manual_seed(seed)  # of LoRA's initialisation
    model = base.model
    if rank:
        from peft import LoraConfig, inject_adapter_in_model

        maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=maps), model)
    else:
        model.requires_grad_(True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    started = time.process_time()
    masters = [p.detach().float().clone() for p in parameters]
    optimizer = torch.optim.AdamW(masters, lr=lr, betas=(0.9, 0.95), weight_decay=0.02, fused=True)
    batches = iter(Batches(examples, Tokeniser(base.tokenizer, TEMPLATE, MAX_LENGTH), batch_size, seed))
    losses, tokens = [], 0
    for step in range(steps):
        batch = collate(next(batches))
        # The trainer's loss: the mean over supervised tokens, with the head computed on those only.
        hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[:, :-1][supervised]).float(), targets[supervised])
        loss.backward()
        for master, p in zip(masters, parameters, strict=True):
            master.grad, p.grad = (None if p.grad is None else p.grad.float()), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.param_groups[0]["lr"] = lr * rate_factor(step, steps, TrainConfig.warmup)
        optimizer.step()
        with torch.no_grad():
            for master, p in zip(masters, parameters, strict=True):
                p.copy_(master)
        losses.append(loss.item())
        tokens += batch.tokens
    return {
        "losses": losses,
        "seconds": time.process_time() - started,
        "tokens": tokens,
        "parameters": sum(p.numel() for p in parameters),
        "bytes": len(save({str(i): p.detach() for i, p in enumerate(parameters)})),
    }
