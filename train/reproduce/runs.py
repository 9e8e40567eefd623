"""One run: what is trained, how, and what is measured of it. Each is a process of its own and leaves one file.

Knows the trainer, its peers and the scores; knows nothing of tables or of which runs there are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from adapter.base.embedded import BASE, ENCODER
from adapter.base.llama import Base, load_base
from adapter.errors import AdapterError
from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.config import VisionConfig
from adapter.method.projection import GlobalProjection
from train.config import TrainConfig
from train.job import train
from train.loop import new_adapter
from train.precision import load_to_train
from train.reproduce.benchmark import MAX_LENGTH, TEMPLATE, Benchmark
from train.reproduce.peers import RANK, RATES, Peer
from train.reproduce.scoring import Answers, Extra, adapted, answer, bare, perplexity

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_COMPONENTS = 64  # of the pictures' features that the projection starts from
_HIDDEN = 256  # of the projection


@dataclass(frozen=True)
class Run:
    """What is trained and measured.

    method: "base", "adapter", "lora" or "full". questions: so many to train on, again and again; 0: all there are.
    """

    name: str
    method: str = "adapter"
    pictures: bool = False
    init: Literal["zero", "random"] = "zero"
    layers: int | None = None  # None: all
    seed: int = 0
    steps: int = 0
    questions: int = 0
    batch_size: int = 16
    forgetting: bool = False  # measure unrelated text too; of an adapter at each of STRENGTHS

    def key(self, benchmark: str) -> str:
        """Changes with the settings, the benchmark's fingerprint and the recipe below."""
        recipe = [asdict(self.config(None)) if self.steps else {}, RATES, RANK, _COMPONENTS, _HIDDEN]
        text = json.dumps([asdict(self), recipe, benchmark])
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def config(self, vision: VisionConfig | None) -> TrainConfig:
        """The trainer's settings: those of the small base's recipes."""
        return TrainConfig(
            name=self.name,
            description="Answers multiple-choice questions by letter.",
            steps=self.steps,
            batch_size=self.batch_size,
            lr=4e-3,
            gate_lr=2e-2,
            clip_norm=1.0,
            prompt_std=0.2,
            prompt_norm=True,
            insertion_layers=self.layers,
            init=self.init,
            template=TEMPLATE,
            vision=vision,
            eval_every=self.steps,
            held_out=0,  # the last adapter counts, as in the paper, not the best
            max_length=MAX_LENGTH,
            seed=self.seed,
        )


def perform(run: Run, benchmark: Benchmark, out: Path, text: str) -> Path:
    """Do the run, unless its result is in `out` already, and return the result's file. text: of no relation."""
    path = result_path(run, benchmark, out)
    if path.exists():
        return path
    folder = out / "runs" / run.name
    shutil.rmtree(folder, ignore_errors=True)  # what is left of a run that was stopped, or of another setting
    measured = _Measured(run, benchmark, text)
    if run.method == "base":
        measured.bare(load_to_train(BASE, "bf16", device="cpu"))
    elif run.method == "adapter":
        measured.adapter(folder)
    else:
        measured.peer()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"run": asdict(run), **measured.result}, indent=1) + "\n")
    return path


def result_path(run: Run, benchmark: Benchmark, out: Path) -> Path:
    return out / "results" / f"{run.key(benchmark.fingerprint)}.json"


class _Measured:
    """The figures of one run, as they come in."""

    def __init__(self, run: Run, benchmark: Benchmark, text: str) -> None:
        self.run, self.benchmark, self.text = run, benchmark, text
        self.result: dict[str, Any] = {}

    def bare(self, base: Base) -> None:
        self._answers(base, bare)
        self.result["perplexity"] = {"-": perplexity(base, self.text)}

    def adapter(self, folder: Path) -> None:
        run, benchmark = self.run, self.benchmark
        base = load_to_train(BASE, "bf16", device="cpu")
        vision = _vision(benchmark) if run.pictures else None
        config = run.config(vision)
        adapter = new_adapter(config, base)
        if isinstance(adapter.projection, GlobalProjection):
            whiten(adapter.projection, _training_levels(benchmark))

        def examples(split: str) -> Any:
            return benchmark.examples(run.pictures, run.questions, run.seed) if split == "train" else ()

        trained, _ = train(config, base, examples, folder, adapter)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        self._trained(
            adapter.num_parameters, steps[-1]["seconds"], steps[-1]["tokens"], [s["loss"] for s in steps]
        )
        self.result["bytes"] = (folder / "adapter.safetensors").stat().st_size
        self.result["largest_gate"] = steps[-1]["largest_gate"]
        self._answers(base, adapted(base, trained))
        if run.forgetting:
            self._strengths(base, trained)

    def _strengths(self, base: Base, adapter: Adapter) -> None:
        """Unrelated text, and the test's problems without a picture, at each strength."""
        problems = [p for p in self.benchmark.splits["test"] if not p.has_image]
        self.result["perplexity"], self.result["accuracy"] = {}, {}
        for strength in STRENGTHS:
            extra = adapted(base, adapter, strength)
            self.result["perplexity"][str(strength)] = perplexity(base, self.text, extra)
            found = answer(base, problems, self.benchmark, extra, shown=False)
            self.result["accuracy"][str(strength)] = found.accuracy()

    def peer(self) -> None:
        run = self.run
        base = load_base(BASE, quantization="none", device="cpu")
        peer = Peer(run.method, base)
        losses, seconds, tokens = peer.train(
            self.benchmark.examples(False, run.questions, run.seed), run.steps, run.batch_size, run.seed
        )
        self._trained(peer.num_parameters, seconds, tokens, losses)
        self.result["bytes"] = peer.file_bytes
        self._answers(base, bare)
        if run.forgetting:
            self.result["perplexity"] = {"-": perplexity(base, self.text)}

    def _trained(self, parameters: int, seconds: float, tokens: int, losses: list[float]) -> None:
        self.result |= {"parameters": parameters, "seconds": seconds, "tokens": tokens, "losses": losses}

    def _answers(self, base: Base, extra: Extra) -> None:
        splits = self.benchmark.splits
        for split in ("val", "test"):
            self.result[split] = _plain(answer(base, splits[split], self.benchmark, extra, self.run.pictures))
        seen = splits["train"][: self.run.questions or None][: len(splits["val"])]
        self.result["seen"] = _plain(answer(base, seen, self.benchmark, extra, self.run.pictures))


def whiten(projection: GlobalProjection, levels: torch.Tensor) -> None:
    """Let the projection's first layer start from the main components of the training pictures' features.

    All drawings look alike to an encoder of photographs: what tells them apart is a small part of its features,
    and a random first layer would take most of the budget to find it. Knows no answers. levels: [N, feature_size]
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


def _training_levels(benchmark: Benchmark) -> torch.Tensor:
    shown = [benchmark.features[p.id].levels for p in benchmark.splits["train"] if p.has_image]
    return torch.cat(shown)


def _vision(benchmark: Benchmark) -> VisionConfig:
    if not benchmark.features:
        raise AdapterError(f"No problem of '{benchmark.folder}' has a picture. Fetch ScienceQA's images too.")
    size = next(iter(benchmark.features.values())).levels.shape[1]
    return VisionConfig(encoder=ENCODER, projection="global", feature_size=size, hidden=_HIDDEN)


def _plain(answers: Answers) -> dict[str, Any]:
    return {"right": [int(r) for r in answers.right], "loss": [round(x, 4) for x in answers.loss]}
