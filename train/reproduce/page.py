"""The report: reproduce.md, with plots as PNG in reproduce/."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from adapter.base.embedded import ENCODER
from train.evaluate.report import markdown_table
from train.reproduce.runs import PLANS, STRENGTHS
from train.reproduce.tables import Figures, perplexity, smoothed

_NAME = "reproduce"  # of the report and of the folder beside it: docs/ holds both as they are


def write_report(
    figures: Figures, out: Path, command: str, base: str, data: str, sizes: dict[str, int], missing: Sequence[str]
) -> str:
    """Writes reproduce.md and its plots, in reproduce/, into `out`, and returns the report's text.

    command: that the user gave. data: a sentence on where the problems come from. sizes: problems by split.
    missing: names of runs that have not been performed, whose rows are left out.
    """
    files = out / _NAME
    files.mkdir(exist_ok=True)
    pictures = {path.stem: f"{_NAME}/{path.name}" for path in plot(figures, files)}
    plan, results, parts = figures.plan, list(figures.results.values()), []
    for table, text in figures.tables().items():
        below = (name for name in pictures if PLANS["plots"][name]["below"] == table)
        parts += [text, *(f"![{name}]({pictures[name]})\n" for name in below)]
    times = sorted(result["time"] for result in results)
    used = {
        name: _listed(result[name] for result in results) for name in ("commit", "processor", "torch", "precision")
    }
    hours = sum(result["total_seconds"] for result in results) / 3600
    provenance = (
        f"{len(results)} runs, begun from {times[0]} to {times[-1]} UTC; {hours:.1f} hours of one core in all. Commit "
        f"{used['commit']}; {used['processor']}; Python {platform.python_version()}, torch {used['torch']}."
    )
    page = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    text = page.format(
        command=command,
        provenance=provenance,
        missing=f"**Not all runs are finished.** Missing: {', '.join(missing)}.\n\n" if missing else "",
        data=data,
        claims=markdown_table(("held", "claim", "measured, and its 95 % interval"), figures.claims()),
        tables="\n".join(parts),
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
    (out / f"{_NAME}.md").write_text(text, encoding="utf-8")
    return text


def _listed(values: Iterable[str]) -> str:
    *others, last = sorted(set(values))
    return f"{', '.join(others)} and {last}" if others else last


def plot(figures: Figures, out: Path) -> list[Path]:
    """Writes the plots of plan.yaml whose runs are finished into `out`, and returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, spec in PLANS["plots"].items():
        beside = spec.get("beside", {})
        if not all(figures.runs(group) for group in {**spec["runs"], **beside}):
            continue
        canvas, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
        for number, (group, label) in enumerate(spec["runs"].items()):
            if spec["kind"] == "losses":
                lines = [smoothed(run["losses"]) for run in figures.runs(group)]
                x: Sequence[float] = range(1, len(lines[0]) + 1)
            else:
                lines, x = [[perplexity(figures.runs(group)[0], s) for s in STRENGTHS]], STRENGTHS
            for seed, line in enumerate(lines):
                axes.plot(x, line, f"C{number}", alpha=0.8, label=None if seed else label)
        for (group, label), style in zip(beside.items(), ("--", ":"), strict=False):
            value = statistics.fmean(map(perplexity, figures.runs(group)))
            axes.axhline(value, color="black", linestyle=style, label=label)
            axes.set_yscale("log")
        axes.set(title=spec["title"], xlabel=spec["x"], ylabel=spec["y"])
        axes.legend(frameon=False)
        written.append(out / f"{name}.png")
        canvas.savefig(written[-1], dpi=130)
        pyplot.close(canvas)
    return written
