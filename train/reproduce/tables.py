"""The paper's tables from the results of all runs, and its claims as inequalities over the figures.

Claims are computed, not asserted. Knows results as data and renders markdown and CSV; performs no runs.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.formats.scienceqa import COLUMNS, Problem
from train.reproduce.runs import SEEDS, STRENGTHS, Plan, layer_shares
from train.reproduce.scoring import chance, table_row

Results = Mapping[str, Mapping[str, Any]]
Cell = str | float | int | None
_GAP = 25.0  # points on image questions that a picture must be worth
_SLACK = 2.0  # points that count as equal: about one deviation of a test of some hundred problems


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading. name: of its file, without the suffix."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *(tuple(map(_format_cell, row)) for row in self.rows)]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.head, *self.rows])
        return text.getvalue()


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


class Figures:
    """The figures of tables, claims and plots. results: by name of the run. problems: of the test split."""

    def __init__(self, results: Results, problems: Sequence[Problem], plan: Plan, layers: int) -> None:
        self.results, self.problems, self.plan, self.layers = results, problems, plan, layers

    def columns(self, run: str) -> dict[str, float]:
        """Percent right on the test split in each of COLUMNS."""
        return table_row(self.problems, self.results[run]["test"]["right"])

    def without_picture(self, run: str) -> float:
        """Percent right on those test problems that have no picture."""
        right = self.results[run]["test"]["right"]
        return percent([r for r, p in zip(right, self.problems, strict=True) if not p.has_image])

    def per_seed(self, init: str, column: str) -> list[float]:
        """A column of the runs with all layers, for each of SEEDS."""
        return [self.columns(f"{init}-{seed}")[column] for seed in SEEDS]

    def tables(self) -> list[Table]:
        return [self._table2(), self._table3(), self._table4(), self._table5(), self._table6(), self._forgetting()]

    def _table2(self) -> Table:
        named = {
            "random choice": chance(self.problems),
            "frozen base": self.columns("base"),
            "text-only adapter": self.columns("text"),
            "multi-modal adapter": self.columns("zero-0"),
        }
        rows = tuple((name, *(row.get(c) for c in COLUMNS)) for name, row in named.items())
        return Table("table2", "Table 2: accuracy on the test split, %", ("", *COLUMNS), rows)

    def _table3(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for run, name in (
            ("text", "this adapter, text only"),
            ("lora", "LoRA, rank 8"),
            ("full", "full fine-tuning"),
        ):
            result, columns = self.results[run], self.columns(run)
            seconds = result["seconds"]
            cost = (result["parameters"], result["bytes"] / 1e6, seconds, result["tokens"] / seconds)
            rows.append((name, *cost, self.without_picture(run), columns.get("NO"), columns["Avg"]))
        cost_head = ("trained parameters", "file, MB", "training, s", "tokens/s")
        head = ("", *cost_head, "without a picture, %", "NO, %", "Avg, %")
        title = (
            "Table 3: against LoRA and full fine-tuning; the same batches, no pictures shown to any of the three"
        )
        return Table("table3", title, head, tuple(rows))

    def _table4(self) -> Table:
        third, two_thirds, every = layer_shares(self.layers)
        rows: list[tuple[Cell, ...]] = []
        for count, run in ((third, f"layers-{third}"), (two_thirds, f"layers-{two_thirds}"), (every, "zero-0")):
            result, columns = self.results[run], self.columns(run)
            accuracies = (self.without_picture(run), columns.get("IMG"), columns["Avg"])
            rows.append((count, result["parameters"], result["seconds"], *accuracies))
        cost_head = ("insertion layers", "trained parameters", "training, s")
        head = (*cost_head, "without a picture, %", "IMG, %", "Avg, %")
        title = "Table 4: how many layers are given prompts (multi-modal adapter)"
        return Table("table4", title, head, tuple(rows))

    def _table5(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for init in ("zero", "random"):
            averages, images = self.per_seed(init, "Avg"), self.per_seed(init, "IMG")
            losses = [final_loss(self.results[f"{init}-{seed}"]["losses"]) for seed in SEEDS]
            rows.append((f"{init}-init", *averages, *spread(averages), spread(images)[0], spread(losses)[0]))
        head = ("", *(f"Avg, seed {seed}" for seed in SEEDS), "mean", "deviation", "IMG, mean", "last loss, mean")
        title = "Table 5: gates that start at zero and at random, the same budget (multi-modal adapter), %"
        return Table("table5", title, head, tuple(rows))

    def _table6(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for steps in self.plan.long:
            result = self.results[f"long-{steps}"]
            epochs = round(steps * self.plan.batch_size / self.plan.few)
            losses = (final_loss(result["losses"]), statistics.fmean(result["val"]["loss"]))
            seen_and_val = (percent(result["seen"]["right"]), percent(result["val"]["right"]))
            rows.append((epochs, *losses, *seen_and_val, self.columns(f"long-{steps}")["Avg"]))
        head = ("epochs", "training loss", "validation loss", "seen problems, %", "validation, %", "test, %")
        title = f"Table 6: training on after over-fitting, on {self.plan.few} problems (multi-modal adapter)"
        return Table("table6", title, head, tuple(rows))

    def _forgetting(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for run, name in (("text", "text-only adapter"), ("zero-0", "multi-modal adapter")):
            perplexity, accuracy = self.results[run]["perplexity"], self.results[run]["accuracy"]
            rows += [(f"{name}, strength {s:g}", perplexity[str(s)], accuracy[str(s)]) for s in STRENGTHS]
        for run, name in (("lora", "LoRA"), ("full", "full fine-tuning"), ("base", "frozen base")):
            rows.append((name, self.results[run]["perplexity"]["-"], self.without_picture(run)))
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


# Claims.


@dataclass(frozen=True)
class Claim:
    """What is claimed, what was measured, and whether the measurement supports the claim."""

    text: str
    measured: str
    held: bool

    def markdown(self) -> str:
        return f"| {'yes' if self.held else 'NO'} | {self.text} | {self.measured} |"


def claims(figures: Figures) -> list[Claim]:
    return [
        _adapter_learns(figures),
        *_pictures_help(figures),
        _more_layers_help(figures),
        _zero_init_helps(figures),
        *_training_on_is_harmless(figures),
        *_adapter_is_cheap(figures),
        *_adapter_forgets_less(figures),
    ]


def _adapter_learns(figures: Figures) -> Claim:
    base, text = figures.without_picture("base"), figures.without_picture("text")
    return Claim(
        "the text-only adapter answers what the frozen base cannot (table 2)",
        f"without a picture: base {base:.1f} %, adapter {text:.1f} %",
        text > base + _SLACK,
    )


def _pictures_help(figures: Figures) -> list[Claim]:
    text, visual = figures.columns("text").get("IMG", 0.0), figures.columns("zero-0").get("IMG", 0.0)
    guess = chance(figures.problems).get("IMG", 0.0)
    blind, sighted = figures.without_picture("text"), figures.without_picture("zero-0")
    return [
        Claim(
            f"pictures are worth {_GAP:g} points or more on image questions (table 2)",
            f"IMG: chance {guess:.1f} %, text-only {text:.1f} %, multi-modal {visual:.1f} %",
            visual >= text + _GAP,
        ),
        Claim(
            "the multi-modal adapter loses nothing elsewhere (table 2)",
            f"without a picture: text-only {blind:.1f} %, multi-modal {sighted:.1f} %",
            sighted >= blind - _SLACK,
        ),
    ]


def _more_layers_help(figures: Figures) -> Claim:
    third, two_thirds, every = layer_shares(figures.layers)
    found = [figures.columns(run)["Avg"] for run in (f"layers-{third}", f"layers-{two_thirds}", "zero-0")]
    return Claim(
        "more insertion layers, more right answers (table 4)",
        f"{third}, {two_thirds}, {every} layers: " + ", ".join(f"{value:.1f}" for value in found) + " %",
        found[0] < found[2] and found[0] <= found[1] + _SLACK and found[1] <= found[2] + _SLACK,
    )


def _zero_init_helps(figures: Figures) -> Claim:
    zero, random = figures.per_seed("zero", "Avg"), figures.per_seed("random", "Avg")
    (mean, deviation), (other, others) = spread(zero), spread(random)
    return Claim(
        "zero-init attention beats random-init at every seed (table 5; the paper: by 43 points)",
        f"{mean:.1f} ± {deviation:.1f} % against {other:.1f} ± {others:.1f} %: {mean - other:+.1f} points",
        min(zero) > max(random),
    )


def _training_on_is_harmless(figures: Figures) -> list[Claim]:
    first, last = (f"long-{figures.plan.long[i]}" for i in (0, -1))
    losses = [statistics.fmean(figures.results[run]["val"]["loss"]) for run in (first, last)]
    before, after = figures.columns(first)["Avg"], figures.columns(last)["Avg"]
    return [
        Claim(
            "long training over-fits: validation loss rises (table 6)",
            f"from {losses[0]:.2f} to {losses[1]:.2f} nats",
            losses[1] > losses[0],
        ),
        Claim(
            "and yet the test's accuracy does not fall (table 6)",
            f"from {before:.1f} to {after:.1f} %",
            after >= before - _SLACK,
        ),
    ]


def _adapter_is_cheap(figures: Figures) -> list[Claim]:
    ours, lora, full = (figures.results[run] for run in ("text", "lora", "full"))
    speed = full["seconds"] / ours["seconds"]
    right = [figures.without_picture(run) for run in ("text", "lora", "full")]
    return [
        Claim(
            "three times faster than full fine-tuning (table 3)",
            f"{speed:.1f} times; LoRA takes {lora['seconds'] / ours['seconds']:.1f} times as long as the adapter",
            speed >= 3,
        ),
        Claim(
            "as good as full fine-tuning and LoRA (table 3)",
            f"without a picture: adapter {right[0]:.1f} %, LoRA {right[1]:.1f} %, full {right[2]:.1f} %",
            right[0] >= max(right[1:]) - _SLACK,
        ),
        Claim(
            "a file of at most a hundredth of the model's (table 3)",
            f"{ours['bytes'] / 1e6:.1f} MB against {full['bytes'] / 1e6:.1f} MB",
            ours["bytes"] <= full["bytes"] / 100,
        ),
    ]


def _adapter_forgets_less(figures: Figures) -> list[Claim]:
    base = figures.results["base"]["perplexity"]["-"]
    ours = figures.results["text"]["perplexity"]
    lora, full = (figures.results[run]["perplexity"]["-"] for run in ("lora", "full"))
    return [
        Claim(
            "at strength 0 the base is back, exactly",
            f"perplexity {ours['0.0']:.4f}, of the base {base:.4f}",
            ours["0.0"] == base,
        ),
        Claim(
            "at strength 1 it forgets less than full fine-tuning and LoRA",
            f"perplexity: adapter {ours['1.0']:.1f}, LoRA {lora:.1f}, full {full:.1f}",
            ours["1.0"] <= min(lora, full),
        ),
    ]
