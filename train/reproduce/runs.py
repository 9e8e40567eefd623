"""What one run trains and measures into its file of results, and how all those of `plan.yaml` are performed."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
import yaml
from filelock import FileLock, Timeout

from adapter.base.embedded import BASE, ENCODER
from adapter.base.llama import Base, load_base
from adapter.files import atomic_write, code_digest
from adapter.method.adapter import Adapter
from adapter.method.config import TuningConfig, VisionConfig
from adapter.method.projection import GlobalProjection
from train.config import TrainConfig
from train.evaluate.answerer import Answerer
from train.evaluate.report import code_version
from train.evaluate.tasks import text_windows, window_losses
from train.input.examples import Example
from train.job import Job
from train.loop import new_adapter
from train.precision import choose_precision, load_to_train, processor_name
from train.reproduce.baselines import train_baseline
from train.reproduce.benchmark import Benchmark, answer
from train.run_folder import RunFolder

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
INSTRUCTION = "Read the question and its choices, and answer with the letter of the one that is right."
_COMPONENTS = 64  # of the pictures' features that the projection starts from
PLANS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("plan.yaml").read_text(encoding="utf-8"))
# Of the code that this process runs. A commit's name says nothing about what has changed since, the digest does.
_COMMIT, _CODE = code_version() or "unknown", code_digest("adapter/**/*.py", "train/**/*.py")
FULL, QUICK = (SimpleNamespace(**PLANS[name]) for name in ("full", "quick"))


@dataclass(frozen=True)
class Run:
    """What is trained and measured.

    group: its runs differ by their seed only. method: "base", "adapter", "lora" or "full". plain: trained on
    problems without a picture, which can be answered from their text. init: "text" is zero-init with prompts that
    begin as what the layers read of an instruction. tuned: V2's norms, bias and scale too. rank: LoRA's. keep, lr:
    see TrainConfig; lr 0: the plan's. questions: number of problems to train on, repeatedly; 0: all. strengths: an
    adapter's perplexity and accuracy are measured at each of STRENGTHS.
    """

    group: str
    method: str = "adapter"
    pictures: bool = False
    plain: bool = False
    init: Literal["zero", "random", "text"] = "zero"
    tuned: bool = False
    rank: int = 0
    lr: float = 0.0
    layers: int | None = None  # None: all
    keep: float = 0.0
    seed: int = 0
    steps: int = 0
    questions: int = 0
    batch_size: int = 16
    strengths: bool = False

    @property
    def name(self) -> str:
        return f"{self.group}-{self.seed}"

    def config(self, vision: VisionConfig | None, intermediate_size: int = 1) -> TrainConfig:
        own = {name: getattr(self, name) for name in ("name", "steps", "batch_size", "seed", "keep")}
        own |= {"lr": self.lr} if self.lr else {}
        return TrainConfig(
            **PLANS["training"] | own, init="random" if self.init == "random" else "zero", vision=vision,
            tuning=TuningConfig(intermediate_size, norms=True, bias=True, scale=True) if self.tuned else None,
            insertion_layers=self.layers, eval_every=self.steps,
        )  # fmt: skip


def planned_runs(plan: SimpleNamespace, layers: int) -> list[Run]:
    """All runs: every row with the first seed, then with the next. plan: FULL or QUICK; layers: of the base."""
    runs = [Run("base", "base")]
    for seed in plan.seeds:
        for group, row in PLANS["runs"].items():
            settings = {"steps": plan.steps, **row, "strengths": "strengths" in row and seed == plan.seeds[0]}
            if "thirds" in row:
                settings["layers"] = settings.pop("thirds") * layers // 3
            if "long" in row:
                settings |= {"steps": plan.long[settings.pop("long")], "questions": plan.few}
            runs.append(Run(group, seed=seed, batch_size=plan.batch_size, **settings))
    return runs


@dataclass(frozen=True)
class Study:
    """Runs on one benchmark and one base, with their results in the folder `out`.

    text: unrelated to the benchmark. base: a name or folder that `load_base` takes.
    """

    benchmark: Benchmark
    out: Path
    text: str
    base: str = BASE

    def results_path(self, run: Run) -> Path:
        """Its name changes with settings, code, benchmark and base."""
        key = json.dumps([asdict(run), PLANS["training"], _CODE, self.text, self.benchmark.fingerprint, self.base])
        return self.out / "results" / f"{run.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"

    def perform_all(self, runs: Sequence[Run]) -> None:
        """Performs the runs without results, one after the other, but for those that another process performs."""
        (self.out / "results").mkdir(parents=True, exist_ok=True)
        for run in runs:
            path = self.results_path(run)
            with suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
                if not path.exists():
                    begun = datetime.now(UTC)
                    results = {"run": asdict(run), "time": f"{begun:%Y-%m-%d %H:%M}", **self.perform(run)}
                    with atomic_write(path) as temporary:
                        temporary.write_text(json.dumps(results, indent=1) + "\n")
                    minutes = (datetime.now(UTC) - begun).total_seconds() / 60
                    print(f"{run.name} took {minutes:.1f} minutes", flush=True)

    def finished(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Results by name of the run, of those runs that have been finished."""
        paths = {run.name: self.results_path(run) for run in runs}
        return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}

    def perform(self, run: Run) -> dict[str, Any]:
        """The figures of a run. Times are on the processor: on the wall they depend on what else it does."""
        started = time.process_time()
        precision, _ = choose_precision("auto", torch.device("cpu"))
        training: dict[str, Any] = {}
        if run.method in ("base", "adapter"):
            answerer = Answerer(load_to_train(self.base, precision, device="cpu"))
            if run.method == "adapter":
                adapter, training = self._train_adapter(run, answerer.base)
                answerer = replace(answerer, adapter=adapter)
        else:
            dtype = torch.float32 if precision == "fp32" else torch.bfloat16
            answerer = Answerer(load_base(self.base, quantization="none", device="cpu", dtype=dtype))
            sizes = {name: getattr(run, name) for name in ("steps", "batch_size", "seed", "lr", "rank")}
            training = train_baseline(answerer.base, self._examples(run), **sizes)
        splits = self.benchmark.splits
        parts = {"test": splits["test"]}
        if run.questions:  # after over-fitting: problems of validation, and those that were seen
            parts |= {"val": splits["val"], "seen": splits["train"][: run.questions]}
        windows = text_windows(answerer.base, self.text)

        def losses_of(system: Answerer) -> list[float]:
            """Of a token, by window: the same windows in every run, so that two runs compare window by window."""
            return [round(loss / count, 5) for loss, count in zip(*window_losses(system, windows), strict=True)]

        results: dict[str, Any] = {
            "precision": precision,
            "commit": _COMMIT,
            "processor": processor_name(),
            "torch": torch.__version__,
            **training,
            **{name: answer(answerer, part, self.benchmark, run.pictures) for name, part in parts.items()},
            "unrelated": {"1.0": losses_of(answerer)},
            "accuracy": {},
        }
        blind = [p for p in splits["test"] if not p.image]
        for strength in STRENGTHS if run.strengths else (0.0,) if run.method == "adapter" else ():
            weaker = replace(answerer, strength=strength)
            results["unrelated"][str(strength)] = losses_of(weaker)
            if run.strengths:
                right = answer(weaker, blind, self.benchmark, shown=False)["right"]
                results["accuracy"][str(strength)] = 100 * sum(right) / len(right)
        return results | {"total_seconds": time.process_time() - started}

    def _examples(self, run: Run) -> Iterator[Example]:
        return self.benchmark.examples(run.pictures, run.questions, run.seed, run.plain)

    def _train_adapter(self, run: Run, base: Base) -> tuple[Adapter, dict[str, Any]]:
        """The trained adapter, and what its training took."""
        folder, vision, benchmark = self.out / "runs" / self.results_path(run).stem, None, self.benchmark
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        seen = [benchmark.features[p.id].levels for p in benchmark.splits["train"] if p.image and run.pictures]
        if run.pictures:
            vision = VisionConfig(ENCODER, "global", feature_size=seen[0].shape[1], hidden=256)
        config = run.config(vision, base.model.config.intermediate_size)
        adapter = new_adapter(config, base)
        if isinstance(adapter.projection, GlobalProjection):
            _whiten(adapter.projection, torch.cat(seen))
        if run.init == "text":
            _begin_as_text(adapter, base, config.prompt_std)

        def examples(split: str) -> Any:
            return self._examples(run) if split == "train" else ()

        started = time.process_time()
        trained, _ = Job(config, base, examples, RunFolder(folder), adapter).run()
        seconds = time.process_time() - started
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines if '"loss"' in line]
        return trained, {
            "losses": [step["loss"] for step in steps],
            "seconds": seconds,
            "tokens": steps[-1]["tokens"],
            "parameters": adapter.num_parameters,
            "bytes": (folder / "adapter.safetensors").stat().st_size,
        }


@torch.no_grad()
def _begin_as_text(adapter: Adapter, base: Base, std: float) -> None:
    """Starts each layer's prompts from what it reads at the last tokens of INSTRUCTION.

    Their root mean square is `std`: norms take their scale away, and the learning rate is made for it.
    """
    reads: list[torch.Tensor] = []
    layers = base.model.model.layers
    hooks = [layer.register_forward_pre_hook(lambda _, given: reads.append(given[0])) for layer in layers]
    base.model(input_ids=torch.tensor([base.tokenizer(INSTRUCTION).input_ids]))
    for hook in hooks:
        hook.remove()
    for prompts, index in zip(adapter.prompts, adapter.config.layers, strict=True):
        read = reads[index][0, -len(prompts) :].float()
        prompts.copy_(std * read / read.square().mean(1, keepdim=True).sqrt())


def _whiten(projection: GlobalProjection, levels: torch.Tensor) -> None:
    """Starts the projection's first layer from the main components of the training pictures' features.

    All drawings look alike to an encoder of photographs: what tells them apart is a small part of its features,
    and a random first layer would take most of the budget to find it. No answer is used. levels: [N, feature_size]
    """
    first = projection.mlp[0]
    assert isinstance(first, torch.nn.Linear)
    with torch.no_grad():
        normed = projection.norm(levels)
        mean = normed.mean(0)
        _, sizes, directions = torch.linalg.svd(normed - mean, full_matrices=False)
        count = min(_COMPONENTS, len(levels) - 1, levels.shape[1])
        spread = sizes[:count] / len(levels) ** 0.5
        spread = spread.clamp(min=1e-3 * float(spread[0]))  # components of nothing but noise stay small
        mixed = torch.randn(first.out_features, count) / count**0.5
        weight = mixed @ (directions[:count] / spread[:, None])
        first.weight.copy_(weight)
        first.bias.copy_(-weight @ mean)
