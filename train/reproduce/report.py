"""The report: reproduce.md, with tables as CSV and plots as PNG in reproduce/.

Knows figures, matplotlib and files; performs no runs.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapter.base.embedded import ENCODER
from train.reproduce.runs import KEEP, STRENGTHS
from train.reproduce.tables import METHODS, Figures, claims, smoothed

_NAME = "reproduce"  # of the report and of the folder beside it: docs/ holds both as they are
_INTRO = """# The paper's claims, tried anew

LLaMA-Adapter (arXiv 2303.16199), its tables on ScienceQA, at the scale of this machine. The command below wrote
this page, and nothing in it was added by hand.
"""
_VALIDITY = """## Before you believe a figure

- {data}
- ± is half of a 95 % interval over the training seeds (Student's t); all rows answer the same questions. A claim's
  interval counts the spread over the test's questions too, of which each is its own control. "Not decided": the
  interval holds values for which the claim is true and values for which it is false.
- Times are a run's own time on the processor, with one thread on one core; a neighbour can slow it by what caches
  and memory are shared.
- Learning rates of LoRA and full fine-tuning are untuned. They have no `keep`, which would suit them as well.
"""
_METHOD = """## How

- Base: {base}, frozen, {precision}. Encoder: {encoder}, frozen. Projection: the paper's (multi-scale global
  features, one MLP, one vector added to every prompt), its first layer started from the main components of the
  training pictures' features.
- One prompt for all: the problem as in the paper, then "Answer: (". The answer learnt is the letter. Scored is the
  likeliest of the problem's own letters, in one forward pass; beside other rows {precision} may round otherwise,
  which can turn a question or two.
- {train:,} problems to train on, {val:,} for validation, {test:,} to test. {steps} steps of {batch_size} in every
  run but those of table 6; the last adapter counts. Training seeds {seeds}.
- LoRA (PEFT, rank 8, all linear maps) and full fine-tuning ({precision}, fp32 copies for the optimiser, which is
  torch's fused AdamW) get the same problems in the same batches as the text-only adapter. None of them sees a
  picture, and so they are compared on problems without one.
- "With keep": `keep: {keep:g}` of the trainer. To each batch is added a share of {keep:g} of its rows, of text
  that the base wrote by itself, on which the adapter is trained to leave the base's distribution as it is.
  The time of training includes the writing, about 20 s.
- Table 6 trains on {few} problems, each of its rows from the start, with a schedule of its own length.
- Unrelated text: the language reference that comes with Python (`pydoc_data.topics`).
"""

_COLORS = {"zero": "#1f6fb4", "random": "#c8541b", "text": "#4b9b57", "keep": "#8a5fb0"}
_NAMES = {"zero": "zero-init", "random": "random-init"}


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
    """Writes reproduce.md and, as CSV and PNG, reproduce/ into `out`, and returns the report's text.

    command: that the user gave. data: a sentence on where the problems come from. sizes: problems by split.
    missing: names of runs that have not been performed, whose rows are left out.
    """
    tables, files = figures.tables(), out / _NAME
    files.mkdir(exist_ok=True)
    for table in tables:
        (files / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    pictures = {path.stem: f"{_NAME}/{path.name}" for path in plot(figures, files)}
    plan, results = figures.plan, figures.results.values()
    parts = [
        _INTRO,
        f"    {command}\n\n{_provenance(results)}\n",
        *([f"**Not all runs are finished.** Missing: {', '.join(missing)}.\n"] if missing else []),
        _VALIDITY.format(data=data),
        "## What held\n",
        "| held | claim | measured, and its 95 % interval |",
        "| --- | --- | --- |",
        *(claim.markdown() for claim in claims(figures)),
        "",
    ]
    for table in tables:
        parts.append(table.markdown())
        name = {"table5": "figure5", "strengths": "forgetting"}.get(table.name, table.name)
        if name in pictures and table.name != "forgetting":
            parts.append(f"![{name}]({pictures[name]})\n")
    parts.append(
        _METHOD.format(
            base=base,
            precision=_listed(result["precision"] for result in results),
            encoder=ENCODER,
            seeds=_listed(map(str, plan.seeds)),
            steps=plan.steps,
            batch_size=plan.batch_size,
            few=plan.few,
            keep=KEEP,
            **sizes,
        )
    )
    text = "\n".join(parts)
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


# Plots.


def plot(figures: Figures, out: Path) -> list[Path]:
    """Writes the plots whose runs are finished into `out` and returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plots = {
        "figure5": (_plot_losses, ("zero", "random")),
        "table2": (_plot_columns, ("base", "text", "zero")),
        "table4": (_plot_layers, tuple(figures.by_layers().values())),
        "table6": (_plot_long_training, tuple(figures.long())),
        "forgetting": (_plot_forgetting, ("text", "keep", "zero", "lora", "full")),
    }
    written = []
    for name, (draw, groups) in plots.items():
        if not figures.has(*groups):
            continue
        canvas, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
        try:
            draw(axes, figures)
            axes.spines[["top", "right"]].set_visible(False)
            written.append(out / f"{name}.png")
            canvas.savefig(written[-1], dpi=130)
        finally:
            pyplot.close(canvas)
    return written


def _plot_losses(axes: Any, figures: Figures) -> None:
    """The paper's figure 5."""
    for init in ("zero", "random"):
        for i, run in enumerate(figures.runs(init)):
            losses = smoothed(run["losses"])
            label = None if i else _NAMES[init]
            axes.plot(range(1, len(losses) + 1), losses, color=_COLORS[init], alpha=0.8, label=label)
    axes.set(
        title="Figure 5: training loss, a line a seed", xlabel="step", ylabel="loss, nats a token", ylim=(0, 2)
    )
    axes.legend(frameon=False)


def _plot_columns(axes: Any, figures: Figures) -> None:
    named = {"frozen base": "base", "text-only adapter": "text", "multi-modal adapter": "zero"}
    width = 0.8 / len(named)
    for i, (name, group) in enumerate(named.items()):
        found = figures.mean_columns(group)
        axes.bar([j + i * width for j in range(len(found))], found.values(), width, label=name)
    axes.set_xticks([j + width for j in range(len(found))], found)
    axes.set(title="Table 2: accuracy by column", ylabel="%", ylim=(0, 118))
    axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8)


def _plot_layers(axes: Any, figures: Figures) -> None:
    by_layers = figures.by_layers()
    for column in ("Avg", "IMG"):
        found = [figures.accuracy(group, column) for group in by_layers.values()]
        axes.errorbar(
            list(by_layers),
            [value.mean for value in found if value],
            [value.half or 0 for value in found if value],
            marker="o",
            capsize=3,
            label=column,
        )
    axes.set(title="Table 4: insertion layers", xlabel="layers with prompts", ylabel="%", ylim=(0, 100))
    axes.set_xticks(list(by_layers))
    axes.legend(frameon=False)


def _plot_long_training(axes: Any, figures: Figures) -> None:
    rows = next(table for table in figures.tables() if table.name == "table6").rows
    epochs = [row[0] for row in rows]

    def means(place: int) -> list[float]:
        return [row[place].mean for row in rows]  # type: ignore[union-attr]

    for place, name, style in ((1, "training loss", "--"), (2, "validation loss", "-")):
        axes.plot(epochs, means(place), style, color=_COLORS["random"], marker="o", label=name)
    axes.set(title="Table 6: after over-fitting", xlabel="epochs", ylabel="loss, nats")
    right = axes.twinx()
    right.plot(epochs, means(5), color=_COLORS["zero"], marker="o", label="test accuracy")
    right.set(ylabel="%", ylim=(0, 100))
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)


def _plot_forgetting(axes: Any, figures: Figures) -> None:
    for (name, run), color in zip(figures.by_strength().items(), ("text", "keep", "zero"), strict=True):
        values = [run["perplexity"][str(s)] for s in STRENGTHS]
        axes.plot(STRENGTHS, values, color=_COLORS[color], marker="o", label=f"adapter, {name}")
    for group, style in (("full", "--"), ("lora", ":")):
        value = statistics.fmean(run["perplexity"]["1.0"] for run in figures.runs(group))
        axes.axhline(value, color="black", linestyle=style, label=METHODS[group])
    axes.set(title="Forgetting", xlabel="strength", ylabel="perplexity of unrelated text", yscale="log")
    axes.legend(frameon=False)
