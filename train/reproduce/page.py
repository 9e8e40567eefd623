"""The report: reproduce.md, with plots as PNG in reproduce/."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapter.base.embedded import ENCODER
from train.evaluate.report import markdown_table
from train.reproduce.runs import PLANS, STRENGTHS
from train.reproduce.tables import Figures, Table, claims, perplexity, smoothed

_NAME = "reproduce"  # of the report and of the folder beside it: docs/ holds both as they are
_PAGE = Path(__file__).with_name("page.md")


def write_report(
    figures: Figures,
    out: Path,
    *,
    command: str,
    base: str,
    data: str,
    sizes: dict[str, int],
    missing: Sequence[str],
) -> str:
    """Writes reproduce.md and its plots, in reproduce/, into `out`, and returns the report's text.

    command: that the user gave. data: a sentence on where the problems come from. sizes: problems by split.
    missing: names of runs that have not been performed, whose rows are left out.
    """
    tables, files = figures.tables(), out / _NAME
    files.mkdir(exist_ok=True)
    pictures = {path.stem: f"{_NAME}/{path.name}" for path in plot(figures, tables, files)}
    plan, results = figures.plan, figures.results.values()
    parts = []
    for table in tables:
        parts.append(table.markdown())
        below = (name for name in pictures if PLANS["plots"][name]["below"] == table.name)
        parts += [f"![{name}]({pictures[name]})\n" for name in below]
    rows = [c.row for c in claims(figures)]
    text = _PAGE.read_text(encoding="utf-8").format(
        command=command,
        provenance=_provenance(results),
        missing=f"**Not all runs are finished.** Missing: {', '.join(missing)}.\n\n" if missing else "",
        data=data,
        claims=markdown_table(("held", "claim", "measured, and its 95 % interval"), rows),
        tables="\n".join(parts),
        base=base,
        precision=_listed(result["precision"] for result in results),
        encoder=ENCODER,
        seeds=_listed(map(str, plan.seeds)),
        steps=plan.steps,
        batch_size=plan.batch_size,
        few=plan.few,
        keep=PLANS["runs"]["keep"]["keep"],
        **sizes,
    )
    (out / f"{_NAME}.md").write_text(text, encoding="utf-8")
    return text


def _provenance(results: Iterable[Mapping[str, Any]]) -> str:
    """What the runs were performed with, when, and what they cost."""
    results = list(results)
    times = sorted(result["time"] for result in results)
    values = {name: _listed(result[name] for result in results) for name in ("commit", "processor", "torch")}
    hours = sum(result["total_seconds"] for result in results) / 3600
    return (
        f"{len(results)} runs, begun from {times[0]} to {times[-1]} UTC; {hours:.1f} hours of one core in all. "
        f"Commit {values['commit']}; {values['processor']}; Python {platform.python_version()}, "
        f"torch {values['torch']}."
    )


def _listed(values: Iterable[str]) -> str:
    *others, last = sorted(set(values))
    return f"{', '.join(others)} and {last}" if others else last


def plot(figures: Figures, tables: Sequence[Table], out: Path) -> list[Path]:
    """Writes the plots of plan.yaml whose runs are finished into `out`, and returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, spec in PLANS["plots"].items():
        rows = PLANS["tables"][spec["table"]]["rows"] if "table" in spec else {}
        groups = {**spec.get("runs", {}), **spec.get("beside", {}), **rows}
        if not all(figures.runs(group) for group in groups):
            continue
        canvas, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
        try:
            _draw(axes, spec, figures, tables)
            axes.set(title=spec["title"], xlabel=spec.get("x", ""), ylabel=spec["y"])
            axes.set_ylim(*spec.get("limits", (None, None)))
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
            written.append(out / f"{name}.png")
            canvas.savefig(written[-1], dpi=130)
        finally:
            pyplot.close(canvas)
    return written


def _draw(axes: Any, spec: Mapping[str, Any], figures: Figures, tables: Sequence[Table]) -> None:
    """The lines or bars of a plot; kind: bars by column, losses of runs, rows of a table, or strengths."""
    runs, kind = spec.get("runs", {}), spec["kind"]
    for number, (group, label) in enumerate(runs.items()):
        if kind == "bars":
            found = figures.mean_columns(group)
            places = [place + (number - 1) * 0.8 / len(runs) for place in range(len(found))]
            axes.bar(places, found.values(), 0.8 / len(runs), label=label)
            axes.set_xticks(range(len(found)), found)
        elif kind == "losses":
            for seed, run in enumerate(figures.runs(group)):
                losses = smoothed(run["losses"])
                axes.plot(
                    range(1, len(losses) + 1), losses, f"C{number}", alpha=0.8, label=None if seed else label
                )
        else:
            run = figures.by_strength()[PLANS["strengths"][group]]
            axes.plot(STRENGTHS, [perplexity(run, s) for s in STRENGTHS], marker="o", label=label)
    for (group, label), style in zip(spec.get("beside", {}).items(), ("--", ":"), strict=False):
        value = statistics.fmean(map(perplexity, figures.runs(group)))
        axes.axhline(value, color="black", linestyle=style, label=label)
        axes.set_yscale("log")
    if kind != "rows":
        return
    table = next(table for table in tables if table.name == spec["table"])
    x = [float(str(row[0])) for row in table.rows]
    axes.set_xticks(x)
    right = axes.twinx() if "right" in spec else axes
    for number, name in enumerate([*spec["lines"], *spec.get("right", ())]):
        at, cells = (
            right if name in spec.get("right", ()) else axes,
            [row[table.head.index(name)] for row in table.rows],
        )
        means, halves = [c.mean for c in cells], [c.half or 0 for c in cells]  # type: ignore[union-attr]
        at.errorbar(x, means, halves, color=f"C{number}", marker="o", capsize=3)
        axes.plot([], [], f"C{number}", marker="o", label=name)
    if right is not axes:
        right.set(ylabel="%", ylim=(0, 100))
