"""The paper's tables from the results of runs, and its claims as inequalities over the figures.

Claims are computed, not asserted. Knows results as data and renders markdown and CSV; performs no runs.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.evaluate.scienceqa import chance, table_row
from train.formats.scienceqa import COLUMNS, Problem, columns
from train.reproduce.intervals import Interval, difference, over_seeds, ratio
from train.reproduce.runs import STRENGTHS, Plan, layer_shares

Result = Mapping[str, Any]
Cell = str | float | int | Interval | None
_GAP = 25.0  # points on image questions that a picture must be worth
_SLACK = 2.0  # points that count as equal
_LEARNT = 0.4  # nats a token: most questions without a picture are answered by then
METHODS = {
    "text": "this adapter, text only",
    "keep": "the same with keep",
    "lora": "LoRA, rank 8",
    "full": "full fine-tuning",
}


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
        """An interval takes two columns: its mean, and half its width."""
        wide = [any(isinstance(row[i], Interval) for row in self.rows) for i in range(len(self.head))]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            [cell for name, two in zip(self.head, wide, strict=True) for cell in (name, f"{name} ±")[: 1 + two]]
        )
        for row in self.rows:
            cells = zip(row, wide, strict=True)
            writer.writerow([value for cell, two in cells for value in _values(cell)[: 1 + two]])
        return text.getvalue()


def _values(cell: Cell) -> tuple[Any, Any]:
    return (cell.mean, cell.half) if isinstance(cell, Interval) else (cell, None)


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Interval):
        digits = 1 if abs(cell.mean) >= 10 else 2
        return f"{cell.mean:.{digits}f}" + ("" if cell.half is None else f" ± {cell.half:.{digits}f}")
    if isinstance(cell, float):
        return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


class Figures:
    """The figures of tables, claims and plots, of the runs that are finished.

    results: by name of the run. problems: of the test split.
    """

    def __init__(
        self, results: Mapping[str, Result], problems: Sequence[Problem], plan: Plan, layers: int
    ) -> None:
        self.results, self.problems, self.plan, self.layers = results, problems, plan, layers

    def runs(self, group: str) -> list[Result]:
        """The results of the group's finished runs, by seed."""
        return [self.results[name] for seed in self.plan.seeds if (name := f"{group}-{seed}") in self.results]

    def has(self, *groups: str) -> bool:
        return all(self.runs(group) for group in groups)

    def over_seeds(self, group: str, value: Callable[[Result], float]) -> Interval:
        return over_seeds([value(run) for run in self.runs(group)])

    def right(self, group: str, chosen: Callable[[Problem], bool]) -> list[list[float]]:
        """By seed and question, 100 where the answer is right, of the chosen questions of the test split."""
        return [
            [100.0 * right for right, p in zip(run["test"]["right"], self.problems, strict=True) if chosen(p)]
            for run in self.runs(group)
        ]

    def accuracy(self, group: str, column: str) -> Interval | None:
        """Percent right on the test split, in one of COLUMNS; None if no problem counts there."""
        found = self.right(group, in_column(column))
        return over_seeds([statistics.fmean(values) for values in found]) if found and found[0] else None

    def without_picture(self, group: str) -> Interval:
        return over_seeds([statistics.fmean(values) for values in self.right(group, has_no_picture)])

    def mean_columns(self, group: str) -> dict[str, float]:
        """Percent right in each of COLUMNS, the mean over the seeds."""
        by_question = zip(*(run["test"]["right"] for run in self.runs(group)), strict=True)
        return table_row(self.problems, [statistics.fmean(right) for right in by_question])

    def long(self) -> list[str]:
        return [f"long-{steps}" for steps in self.plan.long]

    def by_layers(self) -> dict[int, str]:
        """Groups by their number of insertion layers."""
        third, two_thirds, every = layer_shares(self.layers)
        return {third: f"layers-{third}", two_thirds: f"layers-{two_thirds}", every: "zero"}

    def tables(self) -> list[Table]:
        """Rows of runs that have not been performed are left out."""
        tables = [
            self._table2(), self._table3(), self._table4(), self._table5(), self._table6(),
            self._forgetting(), self._strengths(),
        ]  # fmt: skip
        return [table for table in tables if table.rows]

    def _table2(self) -> Table:
        groups = {"base": "frozen base", "text": "text-only adapter", "zero": "multi-modal adapter"}
        guess = chance(self.problems)
        rows: list[tuple[Cell, ...]] = [("random choice", *(guess.get(c) for c in COLUMNS), None)]
        for group, name in groups.items():
            if self.has(group):
                found = (self.accuracy(group, column) for column in COLUMNS)
                rows.append((name, *found, self.without_picture(group)))
        head = ("", *COLUMNS, "without a picture")
        return Table("table2", "Table 2: accuracy on the test split, %", head, tuple(rows))

    def _table3(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for group, name in METHODS.items():
            if not self.has(group):
                continue
            first = self.runs(group)[0]
            cost = (
                first["parameters"],
                first["bytes"] / 1e6,
                self.over_seeds(group, lambda run: run["seconds"]),
                self.over_seeds(group, lambda run: run["tokens"] / run["seconds"]),
            )
            accuracies = (self.without_picture(group), self.accuracy(group, "NO"), self.accuracy(group, "Avg"))
            rows.append((name, *cost, *accuracies))
        cost_head = ("trained parameters", "file, MB", "training, CPU s", "tokens per CPU s")
        head = ("", *cost_head, "without a picture, %", "NO, %", "Avg, %")
        title = "Table 3: against LoRA and full fine-tuning; the same batches, no pictures shown to any of them"
        return Table("table3", title, head, tuple(rows))

    def _table4(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for count, group in self.by_layers().items():
            if self.has(group):
                seconds = self.over_seeds(group, lambda run: run["seconds"])
                steps = self.over_seeds(group, lambda run: steps_until_learnt(run["losses"]))
                accuracies = (self.accuracy(group, "IMG"), self.accuracy(group, "Avg"))
                parameters = self.runs(group)[0]["parameters"]
                rows.append((count, parameters, seconds, steps, self.without_picture(group), *accuracies))
        steps_head = f"steps until the training loss is {_LEARNT:g}"
        cost_head = ("insertion layers", "trained parameters", "training, CPU s", steps_head)
        head = (*cost_head, "without a picture, %", "IMG, %", "Avg, %")
        title = "Table 4: how many layers are given prompts (multi-modal adapter)"
        return Table("table4", title, head, tuple(rows))

    def _table5(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for group in ("zero", "random"):
            if self.has(group):
                by_seed = [
                    statistics.fmean(self.results[name]["test"]["right"]) * 100 if name in self.results else None
                    for name in (f"{group}-{seed}" for seed in self.plan.seeds)
                ]
                means = (self.accuracy(group, "Avg"), self.accuracy(group, "IMG"))
                loss = self.over_seeds(group, lambda run: final_loss(run["losses"]))
                rows.append((f"{group}-init", *by_seed, *means, loss))
        head = ("", *(f"Avg, seed {seed}" for seed in self.plan.seeds), "Avg", "IMG", "last loss")
        title = "Table 5: gates that start at zero and at random, the same budget (multi-modal adapter), %"
        return Table("table5", title, head, tuple(rows))

    def _table6(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for steps, group in zip(self.plan.long, self.long(), strict=True):
            if self.has(group):
                measures: list[Callable[[Result], float]] = [
                    lambda run: final_loss(run["losses"]),
                    lambda run: statistics.fmean(run["val"]["loss"]),
                    lambda run: 100 * statistics.fmean(run["seen"]["right"]),
                    lambda run: 100 * statistics.fmean(run["val"]["right"]),
                ]
                epochs = round(steps * self.plan.batch_size / self.plan.few)
                found = (self.over_seeds(group, measure) for measure in measures)
                rows.append((epochs, *found, self.accuracy(group, "Avg")))
        head = ("epochs", "training loss", "validation loss", "seen problems, %", "validation, %", "test, %")
        title = f"Table 6: training on after over-fitting, on {self.plan.few} problems (multi-modal adapter)"
        return Table("table6", title, head, tuple(rows))

    def _forgetting(self) -> Table:
        names = {"base": "frozen base", **METHODS, "zero": "multi-modal adapter"}
        rows = [
            (name, self.over_seeds(group, lambda run: run["perplexity"]["1.0"]), self.without_picture(group))
            for group, name in names.items()
            if self.has(group)
        ]
        title = "Forgetting: perplexity of unrelated text, and accuracy on the test's problems without a picture"
        return Table("forgetting", title, ("", "perplexity", "accuracy, %"), tuple(rows))

    def _strengths(self) -> Table:
        found = self.by_strength()
        rows = tuple(
            (f"{s:g}", *(run[measure][str(s)] for run in found.values() for measure in ("perplexity", "accuracy")))
            for s in (STRENGTHS if found else ())
        )
        head = ("strength", *(f"{name}: {what}" for name in found for what in ("perplexity", "accuracy, %")))
        title = f"The same at other strengths (seed {self.plan.seeds[0]})"
        return Table("strengths", title, head, rows)

    def by_strength(self) -> dict[str, Result]:
        """Runs that were measured at each strength, by a name for people."""
        names = {"text": "text only", "keep": "text only with keep", "zero": "multi-modal"}
        first = self.plan.seeds[0]
        return {
            name: self.results[f"{group}-{first}"]
            for group, name in names.items()
            if f"{group}-{first}" in self.results
        }


def in_column(column: str) -> Callable[[Problem], bool]:
    return lambda problem: column in columns(problem)


def has_no_picture(problem: Problem) -> bool:
    return not problem.has_image


def final_loss(losses: Sequence[float]) -> float:
    """Mean of the last tenth."""
    return statistics.fmean(losses[-max(1, len(losses) // 10) :])


def smoothed(losses: Sequence[float], keep: float = 0.9) -> list[float]:
    """Running means over about ten steps."""
    means, running = [], losses[0]
    for loss in losses:
        running = keep * running + (1 - keep) * loss
        means.append(running)
    return means


def steps_until_learnt(losses: Sequence[float]) -> int:
    """Steps until the smoothed loss is below _LEARNT; all of them if it never is."""
    return next((step for step, loss in enumerate(smoothed(losses), 1) if loss < _LEARNT), len(losses))


# Claims.


@dataclass(frozen=True)
class Claim:
    """What is claimed, what was measured, and whether that supports the claim; None: it leaves the claim open."""

    text: str
    measured: str
    held: bool | None

    def markdown(self) -> str:
        verdict = {True: "yes", False: "NO", None: "not decided"}[self.held]
        return f"| {verdict} | {self.text} | {self.measured} |"


def claims(figures: Figures) -> list[Claim]:
    """The paper's claims, and this project's of `keep`, in the order of the tables."""
    third, two_thirds, every = figures.by_layers().values()
    first, last = figures.long()[0], figures.long()[-1]
    slack = f"within {_SLACK:g} points"
    without, average, image = has_no_picture, in_column("Avg"), in_column("IMG")
    return [
        _better(figures, "the text-only adapter answers what the frozen base cannot (table 2)",
                "text", "base", without),
        _better(figures, f"pictures are worth {_GAP:g} points or more on image questions (table 2)",
                "zero", "text", image, _GAP),
        _better(figures, f"the multi-modal adapter loses nothing elsewhere, {slack} (table 2)",
                "zero", "text", without, -_SLACK),
        _faster(figures, "three times faster than full fine-tuning (table 3)", "text", "full", 3),
        _better(figures, f"as good as full fine-tuning, {slack} (table 3)", "text", "full", without, -_SLACK),
        _better(figures, f"as good as LoRA, {slack} (table 3)", "text", "lora", without, -_SLACK),
        _small_file(figures),
        _better(figures, "two thirds of the layers are better than one (table 4)", two_thirds, third, average),
        _better(figures, "all layers are better than two thirds (table 4)", every, two_thirds, average),
        _better(figures, "zero-init attention beats random-init (table 5; the paper: by 43 points)",
                "zero", "random", average),
        _over_fits(figures, last, first),
        _better(figures, f"and yet the test's accuracy does not fall, {slack} (table 6)",
                last, first, average, -_SLACK),
        _base_is_back(figures),
        _forgets_less(figures, "it forgets less than full fine-tuning", "text", "full"),
        _forgets_less(figures, "it forgets less than LoRA", "text", "lora"),
        _forgets_less(figures, "trained with keep, it forgets less than LoRA", "keep", "lora"),
        _better(figures, f"and keep costs no accuracy, {slack}", "keep", "text", without, -_SLACK),
    ]  # fmt: skip


def _claim(
    figures: Figures, text: str, groups: Sequence[str], measure: Callable[[], tuple[str, bool | None]]
) -> Claim:
    """Of each trained group two seeds are needed: one tells nothing of the spread."""
    lacking = [group for group in groups if len(figures.runs(group)) < (1 if group == "base" else 2)]
    if lacking:
        return Claim(text, f"too few runs of {' and '.join(lacking)}", None)
    return Claim(text, *measure())


def _better(
    figures: Figures, text: str, ours: str, theirs: str, chosen: Callable[[Problem], bool], least: float = 0.0
) -> Claim:
    """Claims that `ours` is right on the chosen questions at least so many points more often."""

    def measure() -> tuple[str, bool | None]:
        first, second = figures.right(ours, chosen), figures.right(theirs, chosen)
        if not first[0]:
            return "no such questions", None
        means = [statistics.fmean(map(statistics.fmean, side)) for side in (first, second)]
        found = difference(first, second)
        measured = f"{means[0]:.1f} against {means[1]:.1f} %: {_range(found, '+.1f')} points"
        return measured, found.exceeds(least)

    return _claim(figures, text, (ours, theirs), measure)


def _range(found: Interval, form: str) -> str:
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


def _times(found: Interval) -> str:
    """Of the logarithm of a ratio."""
    mean, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    return f"{mean:.2f} times ({low:.2f} to {high:.2f})"


def _faster(figures: Figures, text: str, ours: str, theirs: str, times: float) -> Claim:
    def measure() -> tuple[str, bool | None]:
        sides = [[run["seconds"] for run in figures.runs(group)] for group in (theirs, ours)]
        found = ratio(*sides)
        means = [statistics.fmean(side) for side in sides]
        measured = f"{means[0]:.0f} against {means[1]:.0f} s on the processor: {_times(found)}"
        return measured, found.exceeds(math.log(times))

    return _claim(figures, text, (ours, theirs), measure)


def _small_file(figures: Figures) -> Claim:
    def measure() -> tuple[str, bool | None]:
        ours, full = (figures.runs(group)[0]["bytes"] for group in ("text", "full"))
        return f"{ours / 1e6:.1f} MB against {full / 1e6:.1f} MB", ours <= full / 100

    return _claim(figures, "a file of at most a hundredth of the model's (table 3)", ("text", "full"), measure)


def _over_fits(figures: Figures, last: str, first: str) -> Claim:
    def measure() -> tuple[str, bool | None]:
        late, early = ([run["val"]["loss"] for run in figures.runs(group)] for group in (last, first))
        found = difference(late, early)
        return f"by {_range(found, '+.2f')} nats", found.exceeds(0)

    return _claim(figures, "long training over-fits: validation loss rises (table 6)", (last, first), measure)


def _base_is_back(figures: Figures) -> Claim:
    def measure() -> tuple[str, bool | None]:
        base = figures.runs("base")[0]["perplexity"]["1.0"]
        ours = [run["perplexity"]["0.0"] for group in ("text", "zero") for run in figures.runs(group)]
        return (
            f"perplexity {min(ours):.4f} to {max(ours):.4f}, of the base {base:.4f}",
            all(value == base for value in ours),
        )

    return _claim(figures, "at strength 0 the base is back, exactly", ("text", "zero", "base"), measure)


def _forgets_less(figures: Figures, text: str, ours: str, theirs: str) -> Claim:
    def measure() -> tuple[str, bool | None]:
        sides = [[run["perplexity"]["1.0"] for run in figures.runs(group)] for group in (theirs, ours)]
        found = ratio(*sides)
        means = [statistics.fmean(side) for side in sides]
        less = Interval(-found.mean, found.half)
        return f"perplexity {means[1]:.1f} against {means[0]:.1f}: {_times(less)}", found.exceeds(0)

    return _claim(figures, text, (ours, theirs), measure)
