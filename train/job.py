"""A training run: steps over all processes, evaluation, saving, resuming, and stopping on Ctrl-C."""

import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from adapter.base.decoder import set_gradient_checkpointing
from adapter.base.llama import Base
from adapter.errors import with_detail
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import load_adapter
from train.config import TrainConfig
from train.input.batches import Batch, Batches, Prefetch, StreamPosition, collate
from train.input.examples import Example, SkippedExamples
from train.input.features import FeatureCache
from train.input.keep import OWN_TEXT, KeepRows, own_rows
from train.input.rows import TokenisedRow, Tokeniser, num_supervised
from train.loop import (
    averaged,
    evaluate,
    make_optimizer,
    rate_factor,
    total_divergence,
    total_loss,
    trainable_parameters,
)
from train.processes import check_same, in_main, sum_gradients, summed
from train.run_folder import STATE, RunFolder, TrainError, run_identity
from train.tracker import MetricsWriter

_KEEP_WEIGHT = 2.0  # of a row's divergence, beside a row's loss; docs/log.md has the trials
_MOST_EMPTY_STEPS = 50  # steps in a row whose rows were all passed over, after which a run fails
_MOST_NOT_FINITE = 10  # steps in a row with a gradient that is not finite, after which a run fails
_SLOWER = "Use a smaller learning rate (lr), or clip_norm: 1."  # what helps against numbers that are not finite


class Stopped(TrainError):
    """The run was asked to stop; its state is saved."""


@dataclass
class _Progress:
    """Everything but tensors that a continuation needs. The names of its fields are those in state.pt."""

    step: int = 0
    position: StreamPosition = field(default_factory=StreamPosition)
    best: float = math.inf
    best_step: int = 0
    worse: int = 0  # evaluations since the best one
    held_out: float = math.nan
    running: float = math.nan  # exponential average of the loss over about the last twenty steps
    not_finite: int = 0  # steps in a row
    tokens: int = 0
    seconds: float = 0.0  # of steps alone
    wall_seconds: float = 0.0  # of everything
    processor_seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """loss: held-out loss in nats a token of the adapter of step `step`, or NaN. steps: how many were taken. wall,
    processor: seconds by the clock and of the first process's CPU time, with those of the runs that it resumed.
    """

    loss: float
    step: int
    steps: int
    wall: float = field(default=0.0, compare=False)
    processor: float = field(default=0.0, compare=False)


class _StepInput(NamedTuple):
    """What one step reads here. position: of the next step. keep_weight: of keep_batches' divergence."""

    batches: list[Batch]
    keep_batches: list[Batch]
    keep_weight: float
    position: StreamPosition


@dataclass(eq=False)
class Job:
    """A run that trains `adapter` in place. Only the first process reads and writes its `folder`.

    examples("train") is endless, examples("validation") finite. inputs: as in `run_identity`. on_finish: called in
    the first process with the adapter and the outcome; until it returns, the run can be resumed.
    """

    config: TrainConfig
    base: Base
    examples: Callable[[str], Iterable[Example | None]]
    folder: RunFolder
    adapter: Adapter
    feature_cache: FeatureCache | None = None
    skipped: SkippedExamples = field(default_factory=SkippedExamples)
    resume: bool = False
    accelerator: Accelerator = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    on_finish: Callable[[Adapter, Outcome], None] = lambda *_: None

    def __post_init__(self) -> None:
        config, base = self.config, self.base
        self.adapter = self.adapter.to(base.device)
        self.accelerator = self.accelerator or Accelerator(mixed_precision="no", cpu=base.device.type == "cpu")
        self.is_main = self.accelerator.is_main_process
        template, size = config.template, base.fingerprint.vocab_size
        self.tokeniser = Tokeniser(base.tokenizer, template, config.max_length, self.skipped, size)
        self.progress = _Progress()
        self.parameters = trainable_parameters(self.adapter, config.learn)
        self.average = averaged(self.adapter, config.average) if config.average else None
        self.optimizer = make_optimizer(self.adapter, self.parameters, config)
        # Gradients are of summed losses, and so hardly small: they overflow fp16 rather than vanish in it.
        self.scaler = torch.amp.GradScaler(
            base.device.type, init_scale=2.0**8, growth_interval=200, enabled=base.model.dtype == torch.float16
        )
        self.scaler.scale(torch.zeros((), device=base.device))  # or it has no scale in a process without rows
        self.since = 0.0  # when the current step began, its waiting for rows included
        self.empty_steps = 0  # steps since the last one that had something to learn
        self.counted = time.perf_counter(), time.process_time()  # the clocks at the last call of _count_time
        self.keep: KeepRows | None = None
        self.metrics: MetricsWriter | None = None  # of the main process

    def run(self) -> tuple[Adapter, Outcome]:
        """The adapter that config.save names, which `folder` then holds. Raises TrainError; on Ctrl-C, Stopped."""
        layers = self.base.model.model
        set_gradient_checkpointing(layers, self.config.gradient_checkpointing)
        try:
            self._start()
            self._take_steps()
            return self._finish()
        finally:
            set_gradient_checkpointing(layers, False)
            if self.metrics is not None:
                self.metrics.close()
            self.folder.close()

    @property
    def result(self) -> Adapter:
        """What is evaluated and saved: the averaged adapter, or the one that is trained."""
        return self.adapter if self.average is None else cast(Adapter, self.average.module)

    def _log(self, text: str) -> None:
        if self.is_main:
            say(text)

    # Opening, saving and resuming.

    def _start(self) -> None:
        """Opens the run's folder and loads its state; either all processes raise TrainError or none does."""
        config = self.config

        def open_folder() -> list[list[int]]:
            self.folder.open(self.resume)
            file = self.folder.path / OWN_TEXT
            return own_rows(self.base, config.template, config.seed, file, self.resume) if config.keep else []

        rows = in_main(self.accelerator, open_folder)
        self.keep = KeepRows(rows, config.seed) if config.keep else None
        text = "" if self.keep is None else self.keep.digest
        self.identity = run_identity(config, self.base.fingerprint, {**self.inputs, "keep_text": text})
        check_same((self.identity, self.resume, config.save_every, config.checkpoint_every, self.base.model.dtype))
        if self.resume:
            self._load()

        def open_metrics() -> None:
            self.metrics = MetricsWriter(self.folder.path, config, self.progress.step, self.accelerator, self._log)

        in_main(self.accelerator, open_metrics)

    def _load(self) -> None:
        state = in_main(self.accelerator, lambda: self.folder.load(self.identity))
        self.adapter.load_state_dict(state["adapter"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # none where the run had bf16
            self.scaler.load_state_dict(state["scaler"])
        progress = state["progress"]
        self.progress = _Progress(**{**progress, "position": StreamPosition(**progress["position"])})
        self.skipped.places.update(self.progress.skipped)
        self._log(f"going on after step {self.progress.step} of {self.config.steps}")

    def _share_skipped(self) -> None:
        """Tells the first process, which logs and saves for all, which pictures the others could not read."""
        for place, reason in gather_object(self.skipped.take_new()):
            self.skipped.add(place, reason)

    def _save(self, required: bool) -> None:
        self._share_skipped()
        self.progress.skipped = sorted(self.skipped.places)
        self._count_time()
        state = {
            "identity": self.identity,
            "adapter": self.adapter.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }
        self._try_to_save(lambda: self.folder.save(state), required)

    def _count_time(self) -> None:
        """Adds what has passed since the last call."""
        progress, (wall, processor) = self.progress, self.counted
        self.counted = time.perf_counter(), time.process_time()
        progress.wall_seconds += self.counted[0] - wall
        progress.processor_seconds += self.counted[1] - processor

    def _try_to_save(self, save: Callable[[], None], required: bool) -> bool:
        """Saves in the main process; all learn whether it did. A failure is only logged unless `required`."""

        def attempt() -> bool:
            try:
                save()
            except TrainError as error:
                if required:
                    raise
                self._log(f"warning: {error} Training goes on.")
                say(with_detail(error), sys.stderr)
                return False
            return True

        return in_main(self.accelerator, attempt)

    # Steps.

    def _take_steps(self) -> None:
        config, progress = self.config, self.progress
        held_out = self._held_out_batches()
        self._share_skipped()
        if not progress.step:
            tokens = self._evaluate(held_out, "untrained_loss")
            if not tokens and config.held_out and any(self.examples("validation")):
                raise TrainError(
                    "Nothing that was held out can be used: no picture of it can be read, no answer is within "
                    "max_length, or the base lacks its tokens. Mend the data, or set held_out: 0."
                )
            if config.checkpoint_every:  # no numbered adapter is without a state to go on from
                self._save(required=False)
        examples = self.examples("train")
        batches = Batches(examples, self.tokeniser, config.batch_size, config.seed, progress.position)
        bar = tqdm(
            total=config.steps, initial=progress.step, desc=config.name, unit="step", dynamic_ncols=True,
            disable=None if self.is_main else True,  # None: no bar unless stderr is a terminal
        )  # fmt: skip
        step_inputs = Prefetch(partial(self._step_inputs, batches))
        with bar, stop_signals() as stop_requests, step_inputs:
            self.since = time.perf_counter()
            while progress.step < config.steps and not self._out_of_patience():
                step_input = next(step_inputs)
                stop = self._step(step_input, bool(stop_requests))
                stop |= bool(stop_requests) and self.accelerator.num_processes == 1  # of all: with the next sums
                progress.step += 1
                progress.position = step_input.position
                last = progress.step == config.steps
                self._after_step(held_out, last, stop)
                bar.update()
                bar.set_postfix(self._status())
                if stop and not last:
                    raise Stopped(
                        f"stopped after step {progress.step} of {config.steps}. Everything is saved: the same "
                        "command with --resume goes on from there.",
                        str(self.folder.path),
                    )

    def _after_step(self, held_out: list[Batch], last: bool, stop: bool) -> None:
        """Evaluates and saves what is due; the time that this takes is not the steps'."""
        config, step = self.config, self.progress.step
        numbered = bool(config.checkpoint_every) and step % config.checkpoint_every == 0
        if numbered:
            self._try_to_save(lambda: self.folder.save_adapter(self.result, step), required=False)
        # The state is saved with each new best adapter: an older state would not know the one in the folder.
        new_best = (step % config.eval_every == 0 or last) and self._evaluate_and_save(held_out, last)
        if new_best or step % (config.save_every or config.eval_every) == 0 or numbered or last or stop:
            self._save(required=stop or last)
        self.since = time.perf_counter()

    def _step_inputs(self, batches: Batches, stopping: Callable[[], bool]) -> Iterator[_StepInput]:
        """Endless; changes only `batches`, `feature_cache` and `skipped`, so that a thread can run ahead."""
        config = self.config
        if self.base.device.type == "cuda":
            torch.cuda.set_device(self.base.device)  # each thread has its own
        for step, rows in enumerate(batches, self.progress.step):
            keep_rows: list[TokenisedRow] = []
            if self.keep is not None:
                # In batches of their own: beside shorter rows they would be mostly padding.
                keep_rows = self.keep.draw(step, rows, math.ceil(config.keep * config.batch_size))
            # Gradients are divided by the supervised tokens of all processes: of `rows` with readable pictures.
            weight = _KEEP_WEIGHT * config.keep * num_supervised(rows) / max(num_supervised(keep_rows), 1)
            own, own_keep = (self._micro_batches(self._own_share(r), stopping) for r in (rows, keep_rows))
            yield _StepInput(own, own_keep, weight, batches.position)

    def _own_share(self, items: list[Any]) -> list[Any]:
        """This process's items, of those that all processes have alike."""
        return items[self.accelerator.process_index :: self.accelerator.num_processes]

    def _micro_batches(self, rows: list[TokenisedRow], stopping: Callable[[], bool]) -> list[Batch]:
        """The rows of this process, with the features of their pictures, in `accumulate` pieces."""
        if self.feature_cache is not None:
            rows = self.feature_cache.with_features(rows, stopping)
        size = -(-len(rows) // self.config.accumulate) or 1
        batches = [collate(rows[i : i + size]) for i in range(0, len(rows), size)]
        if self.base.device.type == "cuda":  # in pinned memory, from which a GPU copies while the CPU goes on
            batches = [batch.map(torch.Tensor.pin_memory) for batch in batches]
        return batches

    def _step(self, step_input: _StepInput, stop: bool) -> bool:
        """One update from the rows of all processes. Returns whether any process was asked to stop."""
        device = self.base.device
        # [loss, supervised tokens, tokens, asked to stop, divergence, its positions], summed with the gradients
        sums = torch.zeros(6, dtype=torch.float64)
        sums[3] = float(stop)
        for batch in step_input.batches:
            loss = total_loss(self.base.model, self.adapter, batch.to(device))
            self.scaler.scale(loss).backward()
            sums[0] += loss.item()
            sums[1] += batch.supervised
            sums[2] += batch.tokens
        for batch in step_input.keep_batches:
            divergence = total_divergence(self.base.model, self.adapter, batch.to(device))
            self.scaler.scale(step_input.keep_weight * divergence).backward()
            sums[4] += divergence.item()
            sums[5] += batch.supervised
        sums = sum_gradients(self.accelerator, self.parameters, sums)
        self.progress.tokens += int(sums[2])
        norm = self._update(int(sums[1]))
        mean_loss = float(sums[0]) / float(sums[1]) if sums[1] else math.nan
        if math.isfinite(mean_loss):
            before = self.progress.running
            self.progress.running = mean_loss if math.isnan(before) else 0.95 * before + 0.05 * mean_loss
        self.progress.seconds += time.perf_counter() - self.since
        self._record(mean_loss, norm, float(sums[4]) / max(float(sums[5]), 1.0))
        return bool(sums[3])

    def _update(self, supervised: int) -> float:
        """Takes the optimiser's step, unless a gradient is not finite. Returns the norm of the gradients."""
        config, progress = self.config, self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor(progress.step, config.steps, config.warmup)
        self.scaler.unscale_(self.optimizer)
        for p in self.parameters:
            assert p.grad is not None
            p.grad /= max(supervised, 1)
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm):
            progress.not_finite += 1
            also = " and the loss scale of fp16 halved" if self.scaler.is_enabled() else ""
            self._log(f"warning: a gradient is not finite at step {progress.step + 1}; the step is left out{also}")
            if progress.not_finite == min(_MOST_NOT_FINITE, config.steps):
                text = f"{progress.not_finite} steps in a row had a gradient that is not finite."
                raise TrainError(f"{text} {_SLOWER}", f"the run's folder is {self.folder.path}")
        else:
            progress.not_finite = 0
            self.empty_steps = 0 if supervised else self.empty_steps + 1
            if self.empty_steps == _MOST_EMPTY_STEPS:
                text = f"Nothing was learnt in {self.empty_steps} steps in a row: every row was passed over."
                raise TrainError(f"{text} --check lists why.", f"the run's folder is {self.folder.path}")
            if supervised:
                self.scaler.step(self.optimizer)
                if self.average is not None:
                    self.average.update_parameters(self.adapter)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm

    def _out_of_patience(self) -> bool:
        return bool(self.config.patience) and self.progress.worse >= self.config.patience

    def _finish(self) -> tuple[Adapter, Outcome]:
        progress = self.progress
        if self._out_of_patience():
            self._log(f"stopped early: no better for {progress.worse} evaluations")
        self._share_skipped()
        if self.skipped.places:
            self._log(f"{len(self.skipped.places)} examples were skipped")
        loss, step = progress.best, progress.best_step
        if self.config.save == "last" or not progress.best_step:  # 0: no evaluation was finite
            if not all(p.isfinite().all() for p in self.result.parameters()):
                raise TrainError(f"The adapter's numbers are not finite. {_SLOWER}", str(self.folder.path))
            self._try_to_save(lambda: self.folder.save_adapter(self.result), required=True)
            self.adapter.load_state_dict(self.result.state_dict())
            loss, step = progress.held_out, progress.step
        else:
            # The other processes may be on machines that do not see the folder.
            tensors = in_main(self.accelerator, lambda: load_adapter(self.folder.path).state_dict())
            self.adapter.load_state_dict(tensors)
        self.adapter.requires_grad_(False)
        self._count_time()
        outcome = Outcome(loss, step, progress.step, progress.wall_seconds, progress.processor_seconds)
        if self.is_main:
            self.on_finish(self.adapter, outcome)
            (self.folder.path / STATE).unlink(missing_ok=True)  # the run is complete and cannot be resumed
        return self.adapter, outcome

    # Evaluation and metrics.

    def _held_out_batches(self) -> list[Batch]:
        """This process's share of the held-out batches."""
        rows = self.tokeniser.rows(itertools.islice(self.examples("validation"), self.config.held_out))
        size = max(1, self.config.batch_size // self.accelerator.num_processes)
        parts = self._own_share([rows[i : i + size] for i in range(0, len(rows), size)])
        return [batch.to(self.base.device) for part in parts for batch in self._micro_batches(part, lambda: False)]

    def _evaluate(self, held_out: list[Batch], name: str = "held_out_loss") -> int:
        """Measures and records the held-out loss. Returns the number of tokens that it is the mean of."""
        progress, started = self.progress, time.perf_counter()
        total, count = evaluate(self.base.model, self.result, held_out)
        total, count = summed(self.accelerator, torch.tensor([total, count], dtype=torch.float64)).tolist()
        progress.held_out = total / count if count else math.nan
        if self.metrics is not None:
            seconds = round(time.perf_counter() - started, 3)
            self.metrics.record(progress.step, **{name: progress.held_out}, evaluation_seconds=seconds)
        return int(count)

    def _evaluate_and_save(self, held_out: list[Batch], last: bool) -> bool:
        """Whether it is the best adapter so far, and saved."""
        progress, count = self.progress, self._evaluate(held_out)
        if last and not progress.tokens:
            raise TrainError(
                "Nothing was learnt: every row that was met was passed over. --check lists what is wrong."
            )
        status = ", ".join(f"{name} {value}" for name, value in self._status().items())
        self._log(f"{self.config.name} step {progress.step}: {status}")
        better = progress.held_out < progress.best or not count
        # _finish reads the best adapter from the disk: one that could not be saved does not count as the best.
        saved = True
        if better or self.config.save == "last":
            saved = self._try_to_save(lambda: self.folder.save_adapter(self.result), required=last)
        if better and saved:
            progress.best, progress.best_step, progress.worse = progress.held_out, progress.step, 0
        elif not better and progress.tokens:  # else it has met only rows that cannot be learnt
            progress.worse += 1
        return better and saved

    def _status(self) -> dict[str, str]:
        progress = self.progress
        speed = progress.tokens / progress.seconds if progress.seconds else 0.0
        return {
            "loss": f"{progress.running:.3f}",
            "held_out": f"{progress.held_out:.3f}",
            "tokens_s": f"{speed:.0f}",
            "gate": f"{self.adapter.gates.detach().abs().max():.3f}",
        }

    def _record(self, loss: float, norm: float, divergence: float) -> None:
        if self.metrics is None:
            return
        progress, gates = self.progress, self.adapter.gates.detach()
        self.metrics.record(
            progress.step + 1,
            loss=loss,
            gradient_norm=norm,
            largest_gate=float(gates.abs().max()),
            lr=self.optimizer.param_groups[0]["lr"],
            tokens=progress.tokens,
            seconds=round(progress.seconds, 3),
            **({} if self.keep is None else {"divergence": divergence}),
        )
        if self.adapter.gates.requires_grad:
            self.metrics.check_gates(progress.step + 1, gates, self.adapter.config.gate_activation)


def say(text: str, file: Any = None) -> None:
    """Prints a line above the progress bar. Ignores OSError: the output may go to a file on a full disk."""
    with contextlib.suppress(OSError, RuntimeError):  # of a signal within another write
        tqdm.write(text.encode(errors="backslashreplace").decode(), file=file)  # a file's name need not be UTF-8
        (file or sys.stdout).flush()  # a batch system's log is read while the run goes on


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list. Ctrl-C after one raises KeyboardInterrupt, but
    SIGTERM changes nothing: batch systems send it to a process and to its group.
    """
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        say("stopping after this step; Ctrl-C to stop at once")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
