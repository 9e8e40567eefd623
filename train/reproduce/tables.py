"""The paper's tables from the results of runs, and its claims as inequalities over the figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.evaluate.intervals import Interval, difference, log_ratio, over_seeds
from train.evaluate.report import markdown_table
from train.formats.scienceqa import Problem, chance, columns
from train.reproduce.runs import PLANS, STRENGTHS, Plan

Result = Mapping[str, Any]
Cell = str | float | int | Interval | None
LEARNT = 0.4  # nats a token: most questions without a picture are answered by then


def smoothed(losses: Sequence[float], keep: float = 0.9) -> list[float]:
    """Running means over about ten steps."""
    means, running = [], losses[0]
    for loss in losses:
        running = keep * running + (1 - keep) * loss
        means.append(running)
    return means


def steps_until_learnt(losses: Sequence[float]) -> int:
    """Steps until the smoothed loss is below LEARNT; all of them if it never is."""
    return next((step for step, loss in enumerate(smoothed(losses), 1) if loss < LEARNT), len(losses))


def perplexity(run: Result, strength: float = 1.0) -> float:
    """Of unrelated text: exp of the mean loss of its windows."""
    return math.exp(statistics.fmean(run["unrelated"][str(strength)]))


# What a run's results say, by the names that plan.yaml uses; those of one run are the same for every seed.
OF_ONE: dict[str, Callable[[Result], Cell]] = {
    "parameters": lambda run: run["parameters"],
    "megabytes": lambda run: run["bytes"] / 1e6,
}
MEASURES: dict[str, Callable[[Result], float]] = {
    "seconds": lambda run: run["seconds"],
    "speed": lambda run: run["tokens"] / run["seconds"],
    "learning": lambda run: steps_until_learnt(run["losses"]),
    "last loss": lambda run: statistics.fmean(run["losses"][-max(1, len(run["losses"]) // 10) :]),
    "validation loss": lambda run: statistics.fmean(run["val"]["loss"]),
    "validation": lambda run: 100 * statistics.fmean(run["val"]["right"]),
    "seen": lambda run: 100 * statistics.fmean(run["seen"]["right"]),
    "perplexity": perplexity,
}


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        return f"{self.title}\n\n{markdown_table(self.head, [map(_format_cell, row) for row in self.rows])}\n"


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

    results: by name of the run. problems: of the test split. layers: of the base.
    """

    def __init__(
        self, results: Mapping[str, Result], problems: Sequence[Problem], plan: Plan, layers: int
    ) -> None:
        self.results, self.problems, self.plan = results, problems, plan
        epochs = [round(steps * plan.batch_size / plan.few) for steps in plan.long]
        # For names in plan.yaml.
        self._names = {
            "layers": layers, "third": layers // 3, "two_thirds": 2 * layers // 3, "learnt": LEARNT,
            "few": plan.few, "short_epochs": epochs[0], "long_epochs": epochs[1],
        }  # fmt: skip

    def runs(self, group: str) -> list[Result]:
        """The results of the group's finished runs, by seed."""
        return [self.results[name] for seed in self.plan.seeds if (name := f"{group}-{seed}") in self.results]

    def right(self, group: str, column: str) -> list[list[float]]:
        """By seed and question, 100 where the answer is right.

        column: of ScienceQA's table, or "blind": the test's questions without a picture.
        """
        chosen = [not p.has_image if column == "blind" else column in columns(p) for p in self.problems]
        return [
            [100.0 * right for right, on in zip(run["test"]["right"], chosen, strict=True) if on]
            for run in self.runs(group)
        ]

    def cell(self, group: str, measure: str) -> Cell:
        """A measure of a group's runs; None if no problem counts there."""
        if measure in OF_ONE:
            return OF_ONE[measure](self.runs(group)[0])
        if measure in MEASURES:
            return over_seeds([MEASURES[measure](run) for run in self.runs(group)])
        if group == "chance":
            return chance(self.problems).get(measure)
        found = self.right(group, measure)
        return over_seeds([statistics.fmean(values) for values in found]) if found and found[0] else None

    def tables(self) -> list[Table]:
        """Rows of runs that have not been performed are left out."""
        tables = [self._table(name, spec) for name, spec in PLANS["tables"].items()]
        return [table for table in (*tables, self._strengths()) if table.rows]

    def _table(self, name: str, spec: Mapping[str, Any]) -> Table:
        named = spec["columns"].items()
        seeds = self.plan.seeds
        head = [
            h for title, m in named for h in ([f"{title} {s}" for s in seeds] if m == "each seed" else [title])
        ]
        rows = []
        for group, label in spec["rows"].items():
            if not (self.runs(group) or group == "chance"):
                continue
            cells: list[Cell] = [label.format(**self._names)]
            for _, measure in named:
                if measure == "each seed":
                    runs = (self.results.get(f"{group}-{seed}") for seed in seeds)
                    cells += [
                        None if run is None else 100 * statistics.fmean(run["test"]["right"]) for run in runs
                    ]
                else:
                    cells.append(self.cell(group, measure))
            rows.append(tuple(cells))
        titles = tuple(title.format(**self._names) for title in (spec["first"], *head))
        return Table(name, spec["title"].format(**self._names), titles, tuple(rows))

    def _strengths(self) -> Table:
        found = self.by_strength()
        head = ["strength", *(f"{name}: {what}" for name in found for what in ("perplexity", "accuracy, %"))]
        rows = [
            (f"{s:g}", *(cell for run in found.values() for cell in (perplexity(run, s), run["accuracy"][str(s)])))
            for s in STRENGTHS
        ]
        title = f"The same at other strengths (seed {self.plan.seeds[0]})"
        return Table("strengths", title, tuple(head), tuple(rows if found else ()))

    def by_strength(self) -> dict[str, Result]:
        """Runs that were measured at each strength, by a name for people."""
        runs = {name: f"{group}-{self.plan.seeds[0]}" for group, name in PLANS["strengths"].items()}
        return {name: self.results[run] for name, run in runs.items() if run in self.results}


@dataclass(frozen=True)
class Claim:
    """What is claimed, what was measured, and whether that supports the claim; None: it leaves the claim open."""

    text: str
    measured: str
    held: bool | None

    @property
    def row(self) -> tuple[str, str, str]:
        return {True: "yes", False: "NO", None: "not decided"}[self.held], self.text, self.measured


def claims(figures: Figures) -> list[Claim]:
    """The paper's claims, and this project's of `keep`, in the order of the tables."""
    found = []
    for row in PLANS["claims"]:
        # Of each trained group two seeds are needed: one tells nothing of the spread.
        lacking = [group for group in row["of"] if len(figures.runs(group)) < (1 if group == "base" else 2)]
        few = f"too few runs of {' and '.join(lacking)}", None
        measured, held = few if lacking else _measured(figures, row["kind"], row["of"], row["by"], row["bound"])
        found.append(Claim(row["claim"], measured, held))
    return found


def _measured(figures: Figures, kind: str, of: Sequence[str], on: str, bound: float) -> tuple[str, bool | None]:
    """What was measured, for a person, and whether the claim holds; `plan.yaml` says what the kinds are."""
    if kind == "points":
        right = [figures.right(group, on) for group in of]
        if not right[0][0]:
            return "no such questions", None
        found = difference(*right)
        means = [statistics.fmean(map(statistics.fmean, side)) for side in right]
        return f"{means[0]:.1f} against {means[1]:.1f} %: {_range(found, '+.1f')} points", found.exceeds(bound)
    if kind == "rise":
        found = difference(*([run["val"]["loss"] for run in figures.runs(group)] for group in of))
        return f"by {_range(found, '+.2f')} nats", found.exceeds(bound)
    if kind == "size":
        ours, theirs = (OF_ONE[on](figures.runs(group)[0]) for group in of)
        assert isinstance(ours, float) and isinstance(theirs, float)
        return f"{ours:.1f} MB against {theirs:.1f} MB", ours <= theirs * bound
    if kind == "exact":
        base = figures.runs("base")[0]
        runs = [run for group in of if group != "base" for run in figures.runs(group)]
        values = [perplexity(run, 0.0) for run in runs]
        measured = f"perplexity {min(values):.4f} to {max(values):.4f}, of the base {perplexity(base):.4f}"
        return measured, all(run["unrelated"]["0.0"] == base["unrelated"]["1.0"] for run in runs)
    first, second = (statistics.fmean(MEASURES[on](run) for run in figures.runs(group)) for group in of)
    if kind == "least":
        found = log_ratio(*([MEASURES[on](run) for run in figures.runs(group)] for group in of))
        measured = f"{first:.0f} against {second:.0f} s on the processor: {_times(found)}"
        return measured, found.exceeds(math.log(bound))
    found = difference(*([run["unrelated"]["1.0"] for run in figures.runs(group)] for group in of))
    less = Interval(-found.mean, found.half).exceeds(-math.log(bound))
    return f"{on} {first:.1f} against {second:.1f}: {_times(found)}", less


def _times(found: Interval) -> str:
    """Of the logarithm of a ratio."""
    mean, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    return f"{mean:.2f} times ({low:.2f} to {high:.2f})"


def _range(found: Interval, form: str) -> str:
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"
