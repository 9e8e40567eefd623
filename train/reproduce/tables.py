"""The paper's tables from the runs' results. Knows results as data; writes markdown and CSV, runs nothing."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.formats.scienceqa import COLUMNS, Problem
from train.reproduce.plan import SEEDS, Plan, shares
from train.reproduce.runs import STRENGTHS
from train.reproduce.scoring import chance, table_row

Results = Mapping[str, Mapping[str, Any]]
Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading; `name` is that of its file."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *(tuple(map(_shown, row)) for row in self.rows)]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.head, *self.rows])
        return text.getvalue()


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


class Figures:
    """What the tables and claims are made of. results: by the name of the run; problems: of the test split."""

    def __init__(self, results: Results, problems: Sequence[Problem], plan: Plan, layers: int) -> None:
        self.results, self.problems, self.plan, self.layers = results, problems, plan, layers

    def columns(self, run: str) -> dict[str, float]:
        """Percent right on the test in each of COLUMNS."""
        return table_row(self.problems, self.results[run]["test"]["right"])

    def unseen_by(self, run: str) -> float:
        """Percent right on the test's problems without a picture."""
        right = self.results[run]["test"]["right"]
        return percent([r for r, p in zip(right, self.problems, strict=True) if not p.has_image])

    def all_layers(self, init: str, column: str) -> list[float]:
        """One figure for each of SEEDS."""
        return [self.columns(f"{init}-{seed}")[column] for seed in SEEDS]

    def tables(self) -> list[Table]:
        return [self._two(), self._three(), self._four(), self._five(), self._six(), self._forgetting()]

    def _two(self) -> Table:
        named = {
            "random choice": chance(self.problems),
            "frozen base": self.columns("base"),
            "text-only adapter": self.columns("text"),
            "multi-modal adapter": self.columns("zero-0"),
        }
        rows = tuple((name, *(row.get(c) for c in COLUMNS)) for name, row in named.items())
        return Table("table2", "Table 2: accuracy on the test split, %", ("", *COLUMNS), rows)

    def _three(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for run, name in (
            ("text", "this adapter, text only"),
            ("lora", "LoRA, rank 8"),
            ("full", "full fine-tuning"),
        ):
            found = self.results[run]
            seconds, columns = found["seconds"], self.columns(run)
            rows.append(
                (
                    name,
                    found["parameters"],
                    found["bytes"] / 1e6,
                    seconds,
                    found["tokens"] / seconds,
                    self.unseen_by(run),
                    columns.get("NO"),
                    columns["Avg"],
                )
            )
        sizes = ("", "trained parameters", "file, MB", "training, s", "tokens/s")
        head = (*sizes, "without a picture, %", "NO, %", "Avg, %")
        title = (
            "Table 3: against LoRA and full fine-tuning; the same batches, no pictures shown to any of the three"
        )
        return Table("table3", title, head, tuple(rows))

    def _four(self) -> Table:
        third, two_thirds, every = shares(self.layers)
        rows: list[tuple[Cell, ...]] = []
        for count, run in ((third, f"layers-{third}"), (two_thirds, f"layers-{two_thirds}"), (every, "zero-0")):
            found, columns = self.results[run], self.columns(run)
            image, average = columns.get("IMG"), columns["Avg"]
            rows.append((count, found["parameters"], found["seconds"], self.unseen_by(run), image, average))
        head = (
            "insertion layers",
            "trained parameters",
            "training, s",
            "without a picture, %",
            "IMG, %",
            "Avg, %",
        )
        return Table(
            "table4", "Table 4: how many layers are given prompts (multi-modal adapter)", head, tuple(rows)
        )

    def _five(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for init in ("zero", "random"):
            averages, images = self.all_layers(init, "Avg"), self.all_layers(init, "IMG")
            losses = [final_loss(self.results[f"{init}-{seed}"]["losses"]) for seed in SEEDS]
            rows.append((f"{init}-init", *averages, *spread(averages), spread(images)[0], spread(losses)[0]))
        head = ("", *(f"Avg, seed {seed}" for seed in SEEDS), "mean", "deviation", "IMG, mean", "last loss, mean")
        title = "Table 5: gates that start at zero and at random, the same budget (multi-modal adapter), %"
        return Table("table5", title, head, tuple(rows))

    def _six(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for steps in self.plan.long:
            found = self.results[f"long-{steps}"]
            rows.append(
                (
                    round(steps * self.plan.batch_size / self.plan.few),
                    final_loss(found["losses"]),
                    statistics.fmean(found["val"]["loss"]),
                    percent(found["seen"]["right"]),
                    percent(found["val"]["right"]),
                    self.columns(f"long-{steps}")["Avg"],
                )
            )
        head = ("epochs", "training loss", "validation loss", "seen problems, %", "validation, %", "test, %")
        title = f"Table 6: training on after over-fitting, on {self.plan.few} problems (multi-modal adapter)"
        return Table("table6", title, head, tuple(rows))

    def _forgetting(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for run, name in (("text", "text-only adapter"), ("zero-0", "multi-modal adapter")):
            found = self.results[run]
            rows += [
                (f"{name}, strength {s:g}", found["perplexity"][str(s)], found["accuracy"][str(s)])
                for s in STRENGTHS
            ]
        for run, name in (("lora", "LoRA"), ("full", "full fine-tuning"), ("base", "frozen base")):
            rows.append((name, self.results[run]["perplexity"]["-"], self.unseen_by(run)))
        title = "Forgetting: perplexity of unrelated text, and accuracy on the test's problems without a picture"
        return Table("forgetting", title, ("", "perplexity", "accuracy, %"), tuple(rows))


def percent(right: Sequence[float]) -> float:
    return 100 * sum(right) / max(len(right), 1)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def final_loss(losses: Sequence[float]) -> float:
    """Mean of the last tenth."""
    return statistics.fmean(losses[-max(1, len(losses) // 10) :])
