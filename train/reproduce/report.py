"""The report: the paper's tables from the results of runs, and its claims as inequalities over them."""

import math
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adapter.base.embedded import ENCODER
from adapter.files import atomic_write
from train.evaluate.intervals import Interval, difference, over_seeds
from train.evaluate.report import markdown_table
from train.formats.scienceqa import Problem, chance, columns
from train.reproduce.runs import PLANS, STRENGTHS

Result = Mapping[str, Any]
Cell = str | float | int | Interval | None
_SMOOTHING = 0.9  # weight of the previous value in the running mean of the loss
_LEARNT = 0.4  # nats a token: most questions without a picture are answered by then


def _steps_until_learnt(losses: Sequence[float]) -> int:
    """Steps until the running mean over about ten of them is below _LEARNT; all of them if it never is."""
    running = losses[0]
    for step, loss in enumerate(losses, 1):
        running = _SMOOTHING * running + (1 - _SMOOTHING) * loss
        if running < _LEARNT:
            return step
    return len(losses)


def _perplexity(run: Result, strength: float = 1.0) -> float:
    """The perplexity of the unrelated text: exp of the mean loss of its windows."""
    return math.exp(statistics.fmean(run["unrelated"][str(strength)]))


# What a run's results say, by the names that plan.yaml uses; those of one run are the same for every seed.
_OF_ONE: dict[str, Callable[[Result], float]] = {
    "parameters": lambda run: run["parameters"],
    "megabytes": lambda run: run["bytes"] / 1e6,
}
_MEASURES: dict[str, Callable[[Result], float]] = {
    "seconds": lambda run: run["seconds"],
    "speed": lambda run: run["tokens"] / run["seconds"],
    "learning": lambda run: _steps_until_learnt(run["losses"]),
    "last loss": lambda run: statistics.fmean(run["losses"][-max(1, len(run["losses"]) // 10) :]),
    "validation loss": lambda run: statistics.fmean(run["val"]["loss"]),
    "validation": lambda run: 100 * statistics.fmean(run["val"]["right"]),
    "seen": lambda run: 100 * statistics.fmean(run["seen"]["right"]),
    "perplexity": _perplexity,
}


def _format_cell(cell: Cell) -> str:
    if isinstance(cell, Interval):
        digits = 1 if abs(cell.mean) >= 10 else 2
        return f"{cell.mean:.{digits}f}" + ("" if cell.half is None else f" ± {cell.half:.{digits}f}")
    if isinstance(cell, float):
        return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return "-" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


class Figures:
    """The figures of tables and claims, of the runs that are finished.

    results: by name of the run. problems: of the test split. layers: of the base.
    """

    def __init__(
        self, results: Mapping[str, Result], problems: Sequence[Problem], plan: SimpleNamespace, layers: int
    ) -> None:
        self.results, self.problems, self.plan = results, problems, plan
        epochs = [round(steps * plan.batch_size / plan.few) for steps in plan.long]
        # For names in plan.yaml.
        self._names = {
            "layers": layers, "third": layers // 3, "two_thirds": 2 * layers // 3, "learnt": _LEARNT,
            "few": plan.few, "short_epochs": epochs[0], "long_epochs": epochs[1],
        }  # fmt: skip

    def runs(self, group: str) -> list[Result]:
        """The results of the group's finished runs, by seed."""
        return [self.results[name] for seed in self.plan.seeds if (name := f"{group}-{seed}") in self.results]

    def tables(self) -> dict[str, str]:
        """The Markdown of each table by name. Rows of runs that have not been performed are left out."""
        found = {}
        for name, spec in PLANS["tables"].items():
            head, rows = [spec.get("first", "")], []
            for title, measure in spec["columns"].items():
                head += [f"{title} {s}" for s in self.plan.seeds] if measure == "each seed" else [title]
            for group, label in spec["rows"].items():
                if self.runs(group) or group == "chance":
                    cells = [cell for measure in spec["columns"].values() for cell in self._cells(group, measure)]
                    rows.append([label, *map(_format_cell, cells)])
            found[name] = self._markdown(spec["title"], head, rows)
        seed = self.plan.seeds[0]
        runs = {name: self.results.get(f"{group}-{seed}") for group, name in PLANS["strengths"].items()}
        done = {name: run for name, run in runs.items() if run is not None}
        head = ["strength", *(f"{name}: {what}" for name in done for what in ("perplexity", "accuracy, %"))]
        rows = []
        for s in STRENGTHS if done else ():
            cells = [cell for run in done.values() for cell in (_perplexity(run, s), run["accuracy"][str(s)])]
            rows.append([f"{s:g}", *map(_format_cell, cells)])
        found["strengths"] = self._markdown(f"The same at other strengths (seed {seed})", head, rows)
        return {name: text for name, text in found.items() if text}

    def _markdown(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        """Empty without rows."""
        return f"{title}\n\n{markdown_table(head, rows)}\n".format(**self._names) if rows else ""

    def _cells(self, group: str, measure: str) -> list[Cell]:
        """A measure of a group's runs, in as many cells as it has columns; None if no problem counts there."""
        runs = self.runs(group)
        if measure in _OF_ONE:
            return [_OF_ONE[measure](runs[0])]
        if measure in _MEASURES:
            return [over_seeds([_MEASURES[measure](run) for run in runs])]
        if measure == "each seed":
            by_seed = (self.results.get(f"{group}-{seed}") for seed in self.plan.seeds)
            return [None if run is None else 100 * statistics.fmean(run["test"]["right"]) for run in by_seed]
        if group == "chance":
            return [chance(self.problems).get(measure)]
        found = self._right(group, measure)
        return [over_seeds([statistics.fmean(values) for values in found]) if found and found[0] else None]

    def _right(self, group: str, column: str) -> list[list[float]]:
        """By seed and question, 100 where it is right.

        column: of ScienceQA's, or "blind": without a picture, or "context": of those, with a context.
        """
        own = [() if p.image else ("blind", "context") if p.hint else ("blind",) for p in self.problems]
        chosen = [column in (*columns(p), *more) for p, more in zip(self.problems, own, strict=True)]
        return [
            [100.0 * right for right, on in zip(run["test"]["right"], chosen, strict=True) if on]
            for run in self.runs(group)
        ]

    def claims(self) -> list[tuple[str, str, str]]:
        """The paper's claims, and this project's of `keep`: whether each held, what it says, what was measured."""
        found = []
        for row in PLANS["claims"]:
            # Of each trained group two seeds are needed: one tells nothing of the spread.
            lacking = [group for group in row["of"] if len(self.runs(group)) < (1 if group == "base" else 2)]
            few = f"too few runs of {' and '.join(lacking)}", None
            measured, held = few if lacking else self._measured(row["kind"], row["of"], row["by"], row["bound"])
            found.append(({True: "yes", False: "NO", None: "not decided"}[held], row["claim"], measured))
        return found

    def _measured(self, kind: str, of: Sequence[str], on: str, bound: float) -> tuple[str, bool | None]:
        """What was measured, for a person, and whether the claim holds; `plan.yaml` says what the kinds are."""
        runs = [self.runs(group) for group in of]
        places = {(run["precision"], run["processor"]) for side in runs for run in side}
        if kind in ("exact", "least") and len(places) > 1:
            return "measured on several processors", None
        if kind == "points":
            right = [self._right(group, on) for group in of]
            if not right[0][0]:
                return "no such questions", None
            found = difference(*right)
            means = [statistics.fmean(map(statistics.fmean, side)) for side in right]
            return f"{means[0]:.1f} against {means[1]:.1f} %: {_range(found, '+.1f')} points", found.exceeds(bound)
        if kind == "rise":
            found = difference(*([run["val"]["loss"] for run in side] for side in runs))
            return f"by {_range(found, '+.2f')} nats", found.exceeds(bound)
        if kind == "size":
            ours, theirs = (_OF_ONE[on](side[0]) for side in runs)
            return f"{ours:.1f} MB against {theirs:.1f} MB", ours <= theirs * bound
        if kind == "exact":
            *adapted, (base,) = runs
            back = [_perplexity(run, 0.0) for side in adapted for run in side]
            measured = f"perplexity {min(back):.4f} to {max(back):.4f}, of the base {_perplexity(base):.4f}"
            losses = base["unrelated"]["1.0"]
            return measured, all(run["unrelated"]["0.0"] == losses for side in adapted for run in side)
        values = [[_MEASURES[on](run) for run in side] for side in runs]
        first, second = (math.exp(statistics.fmean(map(math.log, side))) for side in values)  # as the ratio's
        if kind == "least":
            found = difference(*([[math.log(value)] for value in side] for side in values))
            measured = f"{first:.0f} against {second:.0f} s on the processor: {_times(found)}"
            return measured, found.exceeds(math.log(bound))
        found = difference(*([run["unrelated"]["1.0"] for run in side] for side in runs))
        less = Interval(-found.mean, found.half).exceeds(-math.log(bound))
        return f"{on} {first:.1f} against {second:.1f}: {_times(found)}", less


def _times(found: Interval) -> str:
    """Formats the logarithm of a ratio as that ratio with its interval."""
    mean, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    return f"{mean:.2f} times ({low:.2f} to {high:.2f})"


def _range(found: Interval, form: str) -> str:
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


def write_report(
    figures: Figures, out: Path, command: str, base: str, data: str, sizes: dict[str, int], missing: Sequence[str]
) -> str:
    """Writes reproduce.md into `out`, and returns the report's text.

    command: that the user gave. data: a sentence on where the problems come from. sizes: problems by split.
    missing: names of runs that have not been performed, whose rows are left out.
    """
    plan, results = figures.plan, list(figures.results.values())
    times = sorted(result["time"] for result in results)
    used = {
        name: _listed(result[name] for result in results) for name in ("commit", "processor", "torch", "precision")
    }
    hours = sum(result["total_seconds"] for result in results) / 3600
    provenance = (
        f"{len(results)} runs, begun from {times[0]} to {times[-1]} UTC; {hours:.1f} hours of one core in all. "
        f"Commit {used['commit']}; {used['processor']}; Python {platform.python_version()}, torch {used['torch']}."
    )
    page = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    text = page.format(
        command=command,
        provenance=provenance,
        missing=f"**Not all runs are finished.** Missing: {', '.join(missing)}.\n\n" if missing else "",
        data=data,
        claims=markdown_table(("held", "claim", "measured, and its 95 % interval"), figures.claims()),
        tables="\n".join(figures.tables().values()),
        base=base,
        precision=used["precision"],
        encoder=ENCODER,
        seeds=_listed(map(str, plan.seeds)),
        steps=plan.steps,
        batch_size=plan.batch_size,
        few=plan.few,
        keep=PLANS["runs"]["keep"]["keep"],
        **sizes,
    )
    with atomic_write(out / "reproduce.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _listed(values: Iterable[str]) -> str:
    *others, last = sorted(set(values))
    return f"{', '.join(others)} and {last}" if others else last
