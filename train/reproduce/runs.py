"""What one run trains and measures, and how all are performed; `plan.yaml` says which there are.

Each run leaves one file of results.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from filelock import FileLock, Timeout

from adapter.base.embedded import BASE, ENCODER
from adapter.base.llama import Base, load_base
from adapter.errors import AdapterError
from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.config import VisionConfig
from adapter.method.projection import GlobalProjection
from train.config import TrainConfig
from train.evaluate.answerer import Answerer
from train.evaluate.report import code_version
from train.evaluate.tasks import text_windows, window_losses
from train.job import Job
from train.loop import new_adapter
from train.precision import choose_precision, load_to_train, processor_name
from train.reproduce.baselines import RANK, RATES, Baseline
from train.reproduce.benchmark import Benchmark, answer
from train.run_folder import RunFolder

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_COMPONENTS = 64  # of the pictures' features that the projection starts from
_HIDDEN = 256  # of the projection
PLANS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("plan.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Plan:
    """The size of everything.

    train, val, test: problems; of a real data set at most so many. long: steps of two runs over `few` problems, of
    which the second goes on after over-fitting. text: characters of unrelated text to read, at most. seeds: of
    training.
    """

    steps: int
    train: int
    val: int
    test: int
    few: int
    long: list[int]
    text: int
    batch_size: int
    seeds: list[int]

    @property
    def counts(self) -> dict[str, int]:
        """Problems by split."""
        return {"train": self.train, "val": self.val, "test": self.test}


_version = cache(code_version)
FULL, QUICK = (Plan(**PLANS[name]) for name in ("full", "quick"))


@dataclass(frozen=True)
class Run:
    """What is trained and measured.

    group: its runs differ by their seed only. method: "base", "adapter", "lora" or "full". keep: see TrainConfig.
    questions: number of problems to train on, repeatedly; 0: all. strengths: an adapter's perplexity and accuracy
    are measured at each of STRENGTHS.
    """

    group: str
    method: str = "adapter"
    pictures: bool = False
    init: Literal["zero", "random"] = "zero"
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

    def key(self, benchmark: str, base: str = BASE) -> str:
        """Name of the results file: it changes with settings, code, the benchmark's fingerprint and the base."""
        recipe = [asdict(self.config(None)) if self.steps else {}, RATES, RANK, _COMPONENTS, _HIDDEN, _version()]
        text = json.dumps([asdict(self), recipe, benchmark, *([base] if base != BASE else [])])
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def config(self, vision: VisionConfig | None) -> TrainConfig:
        own = {name: getattr(self, name) for name in ("name", "steps", "batch_size", "init", "seed", "keep")}
        layers, every = self.layers, self.steps
        return TrainConfig(**PLANS["training"], **own, insertion_layers=layers, vision=vision, eval_every=every)


def planned_runs(plan: Plan, layers: int) -> list[Run]:
    """All runs: every row with the first seed, then with the next. layers: number of layers of the base."""
    runs = [Run("base", "base")]
    for seed in plan.seeds:
        for group, row in PLANS["runs"].items():
            settings = {"steps": plan.steps, **row, "strengths": row.get("strengths") and seed == plan.seeds[0]}
            if (thirds := settings.pop("thirds", None)) is not None:
                settings["layers"] = thirds * layers // 3
            if (which := settings.pop("long", None)) is not None:
                settings |= {"steps": plan.long[which], "questions": plan.few, "pictures": True}
            settings["strengths"] = bool(settings["strengths"])
            runs.append(Run(group, seed=seed, batch_size=plan.batch_size, **settings))
    return runs


# One run.


def results_path(run: Run, benchmark: Benchmark, out: Path, base: str = BASE) -> Path:
    return out / "results" / f"{run.key(benchmark.fingerprint, base)}.json"


def perform(run: Run, benchmark: Benchmark, out: Path, text: str, base: str = BASE) -> Path:
    """Performs the run, unless its results are in `out` already, and returns their file.

    text: unrelated to the benchmark. base: a name or folder that `load_base` takes.
    """
    path = results_path(run, benchmark, out, base)
    if path.exists():
        return path
    folder = out / "runs" / run.name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped, or that had other settings
    results = _measured(run, benchmark, folder, text, base)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"run": asdict(run), **results}, indent=1) + "\n")
    return path


def _measured(run: Run, benchmark: Benchmark, folder: Path, text: str, base_name: str) -> dict[str, Any]:
    """The figures of a run, which is trained in `folder`.

    Times are the process's on the processor: those of a clock on the wall would depend on what else it does.
    """
    started = time.process_time()
    precision, _ = choose_precision("auto", torch.device("cpu"))
    training: dict[str, Any] = {}
    if run.method == "base":
        answerer = Answerer(load_to_train(base_name, precision, device="cpu"))
    elif run.method == "adapter":
        base = load_to_train(base_name, precision, device="cpu")
        adapter, training = _train_adapter(run, benchmark, folder, base)
        answerer = Answerer(base, adapter)
    else:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        base = load_base(base_name, quantization="none", device="cpu", dtype=dtype)
        baseline = Baseline(run.method, base, run.seed)
        examples = benchmark.examples(False, run.questions, run.seed)
        losses, seconds, tokens = baseline.train(examples, run.steps, run.batch_size, run.seed)
        training = {"losses": losses, "seconds": seconds, "tokens": tokens, "parameters": baseline.num_parameters}
        training["bytes"] = baseline.file_bytes
        answerer = Answerer(base)
    splits, few = benchmark.splits, run.questions
    parts = {"test": splits["test"]}
    if few:  # after over-fitting: problems of validation, and those that were seen
        parts |= {"val": splits["val"], "seen": splits["train"][:few]}
    results: dict[str, Any] = {"precision": precision, **provenance(), **training}
    results |= {name: answer(answerer, problems, benchmark, run.pictures) for name, problems in parts.items()}
    windows = text_windows(answerer.base, text)

    def losses_of(system: Answerer) -> list[float]:
        """Of a token, by window: the same windows in every run, so that two runs compare window by window."""
        return [round(loss / count, 5) for loss, count in zip(*window_losses(system, windows), strict=True)]

    results |= {"unrelated": {"1.0": losses_of(answerer)}, "accuracy": {}}
    without_picture = [p for p in splits["test"] if not p.has_image]
    for strength in STRENGTHS if run.strengths else (0.0,) if run.method == "adapter" else ():
        weaker = replace(answerer, strength=strength)
        results["unrelated"][str(strength)] = losses_of(weaker)
        if run.strengths:
            right = answer(weaker, without_picture, benchmark, shown=False)["right"]
            results["accuracy"][str(strength)] = 100 * sum(right) / len(right)
    return results | {"total_seconds": time.process_time() - started}


def _train_adapter(run: Run, benchmark: Benchmark, folder: Path, base: Base) -> tuple[Adapter, dict[str, Any]]:
    """The trained adapter, and what its training took."""
    config = run.config(_vision_config(benchmark) if run.pictures else None)
    adapter = new_adapter(config, base)
    if isinstance(adapter.projection, GlobalProjection):
        levels = [benchmark.features[p.id].levels for p in benchmark.splits["train"] if p.has_image]
        whiten(adapter.projection, torch.cat(levels))

    def examples(split: str) -> Any:
        return benchmark.examples(run.pictures, run.questions, run.seed) if split == "train" else ()

    started = time.process_time()
    trained, _ = Job(config, base, examples, RunFolder(folder), adapter).run()
    seconds = time.process_time() - started
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    return trained, {
        "losses": [step["loss"] for step in steps],
        "seconds": seconds,
        "tokens": steps[-1]["tokens"],
        "parameters": adapter.num_parameters,
        "bytes": (folder / "adapter.safetensors").stat().st_size,
        "largest_gate": steps[-1]["largest_gate"],
    }


def provenance() -> dict[str, str]:
    """What a figure was measured with: commit, processor, torch, and the time in UTC."""
    return {
        "commit": _version() or "unknown",
        "processor": processor_name(),
        "torch": torch.__version__,
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


def whiten(projection: GlobalProjection, levels: torch.Tensor) -> None:
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


def _vision_config(benchmark: Benchmark) -> VisionConfig:
    if not benchmark.features:
        raise AdapterError(f"No problem of '{benchmark.folder}' has a picture. Fetch ScienceQA's images too.")
    size = next(iter(benchmark.features.values())).levels.shape[1]
    return VisionConfig(encoder=ENCODER, projection="global", feature_size=size, hidden=_HIDDEN)


# All runs.


def perform_all(runs: Sequence[Run], benchmark: Benchmark, out: Path, text: str, base: str = BASE) -> None:
    """Performs the runs whose results are not in `out` already, one after the other, but for those that another
    process performs. text: unrelated to the benchmark.
    """
    for run in runs:
        path = results_path(run, benchmark, out, base)
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
            if not path.exists():
                started = time.perf_counter()
                perform(run, benchmark, out, text, base)
                print(f"{run.name} took {(time.perf_counter() - started) / 60:.1f} minutes", flush=True)


def finished(runs: Sequence[Run], benchmark: Benchmark, out: Path, base: str = BASE) -> dict[str, Any]:
    """Results by name of the run, of those runs that have been finished."""
    paths = {run.name: results_path(run, benchmark, out, base) for run in runs}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
