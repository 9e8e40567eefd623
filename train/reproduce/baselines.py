"""What the adapter is compared with: PEFT's LoRA and full fine-tuning, on the same batches."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from safetensors.torch import save

from adapter.base.llama import Base
from train.config import TrainConfig
from train.input.batches import Batch, Batches, collate
from train.input.examples import Example
from train.input.rows import IGNORED, Tokeniser
from train.loop import rate_factor
from train.reproduce.benchmark import MAX_LENGTH, TEMPLATE

RATES = {"lora": 1e-3, "full": 5e-5}
RANK = 8
_WARMUP = TrainConfig.warmup  # the trainer's


class Baseline:
    """A base that is trained in place, with fp32 copies of the trained weights for the optimiser."""

    def __init__(self, method: str, base: Base, seed: int) -> None:
        torch.manual_seed(seed)  # of LoRA's initialisation
        self._method, self._base = method, base
        if method == "lora":
            from peft import LoraConfig, inject_adapter_in_model

            config = LoraConfig(
                r=RANK,
                lora_alpha=2 * RANK,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            )
            inject_adapter_in_model(config, base.model)
        else:
            base.model.requires_grad_(True)
        self._parameters = [p for p in base.model.parameters() if p.requires_grad]

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self._parameters)

    @property
    def file_bytes(self) -> int:
        """Size of the trained weights as a file."""
        return len(save({str(i): p.detach() for i, p in enumerate(self._parameters)}))

    def train(
        self, examples: Iterable[Example], steps: int, batch_size: int, seed: int
    ) -> tuple[list[float], float, int]:
        """Returns the loss of each step, seconds on the processor and tokens.

        Batches are the trainer's for the same examples.
        """
        started = time.process_time()
        masters = [p.detach().float().clone() for p in self._parameters]
        optimizer = torch.optim.AdamW(
            masters, lr=RATES[self._method], betas=(0.9, 0.95), weight_decay=0.02, fused=True
        )
        tokeniser = Tokeniser(self._base.tokenizer, TEMPLATE, MAX_LENGTH)
        batches = iter(Batches(examples, tokeniser, batch_size, seed))
        losses, tokens = [], 0
        for step in range(steps):
            batch = collate(next(batches), tokeniser.pad)
            loss = self._loss(batch)
            loss.backward()
            for master, p in zip(masters, self._parameters, strict=True):
                master.grad, p.grad = (None if p.grad is None else p.grad.float()), None
            torch.nn.utils.clip_grad_norm_(masters, 1.0)
            optimizer.param_groups[0]["lr"] = RATES[self._method] * rate_factor(step, steps, _WARMUP)
            optimizer.step()
            with torch.no_grad():
                for master, p in zip(masters, self._parameters, strict=True):
                    p.copy_(master)
            losses.append(loss.item())
            tokens += batch.tokens
        return losses, time.process_time() - started, tokens

    def _loss(self, batch: Batch) -> torch.Tensor:
        """The trainer's loss: the mean over supervised tokens, with the head computed on those only."""
        model = self._base.model
        hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORED
        return F.cross_entropy(model.lm_head(hidden[:, :-1][supervised]).float(), targets[supervised])
