"""A training run: steps over all processes, evaluation, saves that survive anything, and resuming.

Knows batches and one adapter; knows nothing of recipes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from adapter.base.llama import Base
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import load_adapter
from train.config import TrainConfig
from train.data import Batch, Batches, Example, Position, Row, Skipped, Tokeniser, collate
from train.feature_cache import Pictures
from train.interrupt import stop_signals
from train.loop import evaluate, learnt, total_loss
from train.metrics import Figures
from train.run_folder import RunFolder, TrainError

_NOT_FINITE = 10  # steps in a row that give up a run


class Stopped(TrainError):
    """Somebody stopped the run; it is saved."""


@dataclass
class _Progress:
    """Everything beside tensors that a continuation needs."""

    step: int = 0
    position: Position = field(default_factory=Position)
    best: float = math.inf
    best_step: int = 0
    worse: int = 0  # evaluations since the best
    held_out: float = math.nan
    running: float = math.nan  # loss, averaged over about the last twenty steps
    not_finite: int = 0  # steps in a row
    tokens: int = 0
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)


def train(
    config: TrainConfig,
    base: Base,
    examples: Callable[[str], Iterable[Example | None]],
    folder: Path,
    adapter: Adapter,
    *,
    pictures: Pictures | None = None,
    skipped: Skipped | None = None,
    resume: bool = False,
    accelerator: Accelerator | None = None,
    tensorboard: bool = False,
) -> tuple[Adapter, float]:
    """Train `adapter`, which changes, and return the best one and its held-out loss; `folder` then holds it.

    examples("train") is endless, examples("validation") is not. Every process calls this with the same arguments.
    Raises TrainError if the folder is in use, holds another run, or cannot be written, and Stopped after Ctrl-C.
    """
    run = _Run(config, base, folder, adapter, pictures, skipped, accelerator, tensorboard)
    try:
        run.start(resume)
        return run.to_the_end(examples)
    finally:
        run.close()


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        base: Base,
        folder: Path,
        adapter: Adapter,
        pictures: Pictures | None,
        skipped: Skipped | None,
        accelerator: Accelerator | None,
        tensorboard: bool,
    ) -> None:
        if not config.steps:
            raise ValueError("steps must be known: from epochs, only whoever has the data can tell")
        self.config, self.base, self.folder = config, base, RunFolder(folder)
        self.adapter = adapter.to(base.device).train()
        self.accelerator = accelerator or Accelerator(cpu=base.device.type == "cpu")
        self.main = self.accelerator.is_main_process
        self.skipped = skipped or Skipped(self._say)
        self.pictures = pictures
        self.tokeniser = Tokeniser(base.tokenizer, config.template, config.max_length, self.skipped)
        self.progress = _Progress()
        self.parameters = learnt(adapter, config.learn)
        gates = [p for p in self.parameters if p is adapter.gates]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters if p is not adapter.gates], "lr": config.lr},
                *([{"params": gates, "lr": config.gate_lr, "weight_decay": 0.0}] if gates else []),
            ],
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
        )
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, max(1, int(config.warmup * config.steps)), config.steps
        )
        self.tensorboard = tensorboard
        self.figures: Figures | None = None  # of the main process

    def _say(self, text: str) -> None:
        if self.main:
            tqdm.write(text)

    # Its folder.

    def start(self, resume: bool) -> None:
        """Make the folder this run's own and load what it holds of it; all processes fail together, or none."""
        problem = ""
        if self.main:
            try:
                self.folder.open(resume)
            except TrainError as error:
                problem = str(error)
        if problem := _from_main(self.accelerator, problem):
            raise TrainError(problem)
        if resume:
            self._load()
        if self.main:
            self.figures = Figures(self.folder.path, self.progress.step, self._say, self.tensorboard)

    def _load(self) -> None:
        state = self.folder.load(dataclasses.asdict(self.config), self.base.fingerprint)
        self.adapter.load_state_dict(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        progress = state["progress"]
        self.progress = _Progress(**{**progress, "position": Position(**progress["position"])})
        self.skipped.places.update(self.progress.skipped)
        self._say(f"going on after step {self.progress.step} of {self.config.steps}")

    def close(self) -> None:
        """Let others have the folder."""
        if self.figures is not None:
            self.figures.close()
        self.folder.close()

    def _save(self, final: bool = False) -> None:
        self.progress.skipped = sorted(self.skipped.places)
        state = {
            "config": dataclasses.asdict(self.config),
            "base": dataclasses.asdict(self.base.fingerprint),
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }
        self._try(lambda: self.folder.save(state), final)

    def _save_best(self, final: bool) -> None:
        self._try(lambda: self.folder.save_adapter(self.adapter), final)

    def _try(self, save: Callable[[], None], final: bool) -> None:
        """What cannot be written is told and tried again at the next save; the last good one stays."""
        if not self.main:
            return
        try:
            save()
        except TrainError as error:
            if final:
                raise
            self._say(f"warning: {error} Training goes on.")

    # Steps.

    def to_the_end(self, examples: Callable[[str], Iterable[Example | None]]) -> tuple[Adapter, float]:
        config, progress = self.config, self.progress
        held_out = self._held_out(examples("validation"))
        if not progress.step:
            self._measure(held_out, "untrained_loss")
        batches = Batches(examples("train"), self.tokeniser, config.batch_size, config.seed, progress.position)
        bar = tqdm(
            total=config.steps, initial=progress.step, desc=config.name, unit="step", dynamic_ncols=True,
            disable=None if self.main else True,  # no bar in a file
        )  # fmt: skip
        with bar, stop_signals() as asked:
            for rows in batches:
                if progress.step >= config.steps or self._enough():
                    break
                started = time.perf_counter()
                stop = self._step(rows, bool(asked))
                progress.step += 1
                progress.position = batches.position
                progress.seconds += time.perf_counter() - started
                last = progress.step == config.steps
                if progress.step % config.eval_every == 0 or last:
                    self._evaluate(held_out, last)
                if progress.step % (config.save_every or config.eval_every) == 0 or last or stop:
                    self._save(final=stop or last)
                bar.update()
                bar.set_postfix(self._shown())
                if stop and not last:
                    raise Stopped(
                        f"stopped after step {progress.step} of {config.steps}. Everything is saved in "
                        f"'{self.folder.path}': the same command with --resume goes on from there."
                    )
        return self._finish()

    def _step(self, rows: list[Row], stop: bool) -> bool:
        """One update from the rows of all processes; True if any of them was asked to stop."""
        config, world = self.config, self.accelerator.num_processes
        mine = rows[self.accelerator.process_index :: world]
        if self.pictures is not None:
            mine = self.pictures.usable(mine)
        # [loss, supervised tokens, tokens, asked to stop], summed over processes with the gradients.
        sums = torch.zeros(4, dtype=torch.float64)
        sums[3] = float(stop)
        size = -(-len(mine) // config.accumulate) if mine else 1
        for start in range(0, len(mine), size):
            batch = self._batch(mine[start : start + size])
            total = total_loss(self.base.model, self.adapter, batch, config.disjoint)
            self.accelerator.backward(total)
            sums[0] += total.item()
            sums[1] += batch.supervised
            sums[2] += batch.tokens
        sums = self._reduce(sums)
        self.progress.tokens += int(sums[2])
        norm = self._update(int(sums[1]))
        loss = float(sums[0]) / max(float(sums[1]), 1.0)
        if math.isfinite(loss) and sums[1]:
            before = self.progress.running
            self.progress.running = loss if math.isnan(before) else 0.95 * before + 0.05 * loss
        self._record(loss, norm)
        return bool(sums[3])

    def _batch(self, rows: list[Row]) -> Batch:
        encode = self.pictures.features if self.pictures is not None else None
        return collate(rows, self.tokeniser.pad, encode).to(self.base.device)

    def _reduce(self, sums: Tensor) -> Tensor:
        """Sum gradients and `sums` over processes.

        By hand and in one piece: the gradients are a megabyte, and rows without a picture leave the visual
        projection without any, which wrappers of the module have to be told.
        """
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.accelerator.num_processes == 1:
            return sums
        flat = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        flat = self.accelerator.reduce(flat, "sum")
        for p, piece in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = piece.view_as(p)
        return self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()

    def _update(self, supervised: int) -> float:
        """Take the step; returns the gradients' norm. What is not finite is passed over, and told."""
        for p in self.parameters:
            assert p.grad is not None
            p.grad /= max(supervised, 1)
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm):
            self.progress.not_finite += 1
            self._say(f"warning: a gradient is not finite at step {self.progress.step + 1}; the step is left out")
            if self.progress.not_finite == _NOT_FINITE:
                raise TrainError(
                    f"{_NOT_FINITE} steps in a row had a gradient that is not finite. The last save is in "
                    f"'{self.folder.path}'. Use a smaller lr, or clip_norm: 1."
                )
        else:
            self.progress.not_finite = 0
            if supervised:
                self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm

    def _enough(self) -> bool:
        return bool(self.config.patience) and self.progress.worse >= self.config.patience

    # Evaluation and figures.

    def _held_out(self, examples: Iterable[Example | None]) -> list[Batch]:
        """This process's share of the held-out batches."""
        rows = self.tokeniser.rows(itertools.islice(examples, self.config.held_out))
        size = max(1, self.config.batch_size // self.accelerator.num_processes // self.config.accumulate)
        pieces = [rows[i : i + size] for i in range(0, len(rows), size)]
        pieces = pieces[self.accelerator.process_index :: self.accelerator.num_processes]
        if self.pictures is not None:
            pieces = [self.pictures.usable(piece) for piece in pieces]
        return [self._batch(piece) for piece in pieces if piece]

    def _measure(self, held_out: list[Batch], name: str = "held_out_loss") -> int:
        """Take the loss on what is held out; returns of how many tokens."""
        progress, started = self.progress, time.perf_counter()
        total, count = evaluate(self.base.model, self.adapter, held_out)
        sums = torch.tensor([total, count], dtype=torch.float64, device=self.accelerator.device)
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        progress.held_out = total / count if count else math.nan
        if self.figures is not None:
            took = round(time.perf_counter() - started, 3)
            self.figures.record(progress.step, **{name: progress.held_out}, evaluation_seconds=took)
            self.figures.by_layer(progress.step, self.adapter.gates.detach())
        return int(count)

    def _evaluate(self, held_out: list[Batch], last: bool) -> None:
        """Measure, and keep the adapter in the folder if it is the best so far."""
        progress, count = self.progress, self._measure(held_out)
        said = ", ".join(f"{name} {value}" for name, value in self._shown().items())
        self._say(f"{self.config.name} step {progress.step}: {said}")
        if progress.held_out < progress.best or not count:
            progress.best, progress.best_step, progress.worse = progress.held_out, progress.step, 0
            self._save_best(last)
        else:
            progress.worse += 1

    def _finish(self) -> tuple[Adapter, float]:
        progress = self.progress
        if self._enough():
            self._say(f"stopped early: no better for {progress.worse} evaluations")
        if self.skipped.places:
            self._say(f"{len(self.skipped.places)} examples were skipped")
        if not progress.best_step:
            self._save_best(final=True)  # no evaluation was finite
        self.accelerator.wait_for_everyone()
        best = load_adapter(self.folder.path, self.base.fingerprint, self.base.device)
        if self.main:
            self.folder.finish()
        return best, progress.held_out if math.isinf(progress.best) else progress.best

    def _shown(self) -> dict[str, str]:
        progress = self.progress
        speed = progress.tokens / progress.seconds if progress.seconds else 0.0
        return {
            "loss": f"{progress.running:.3f}",
            "held_out": f"{progress.held_out:.3f}",
            "tokens_s": f"{speed:.0f}",
            "gate": f"{self.adapter.gates.detach().abs().max():.3f}",
        }

    def _record(self, loss: float, norm: float) -> None:
        if self.figures is None:
            return
        progress, gates = self.progress, self.adapter.gates.detach()
        self.figures.record(
            progress.step + 1,
            loss=loss,
            gradient_norm=norm,
            largest_gate=float(gates.abs().max()),
            lr=self.schedule.get_last_lr()[0],
            tokens=progress.tokens,
            seconds=round(progress.seconds, 3),
        )
        self.figures.watch(progress.step + 1, gates, self.adapter.config.gate_activation)


def _from_main(accelerator: Accelerator, text: str) -> str:
    """What the main process says, in every process."""
    if accelerator.num_processes == 1:
        return text
    from accelerate.utils import broadcast_object_list

    return str(broadcast_object_list([text])[0])
