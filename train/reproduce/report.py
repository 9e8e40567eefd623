"""The report: tables as CSV, plots as PNG and report.md. Knows figures, matplotlib and files; performs no runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adapter.base.embedded import ENCODER
from train.reproduce.runs import SEEDS, STRENGTHS, layer_shares
from train.reproduce.tables import Figures, claims

_INTRO = """# The paper's claims, tried anew

LLaMA-Adapter (arXiv 2303.16199), its tables on ScienceQA, at the scale of this machine. Every figure below was
measured by the command; a claim is said to hold if its inequality does.
"""
_METHOD = """## How

- Base: {base}, frozen, {precision}. Encoder: {encoder}, frozen. Projection: the paper's (multi-scale global
  features, one MLP, one vector added to every prompt), its first layer started from the main components of the
  training pictures' features.
- One prompt for all: the problem as in the paper, then "Answer: (". The answer learnt is the letter. Scored is the
  likeliest of the problem's own letters, in one forward pass.
- Data: {data}. {train:,} problems to train on, {val:,} for validation, {test:,} to test.
- {steps} steps of {batch_size} in every run but those of table 6; the last adapter counts. Seed 0, in table 5 also
  {seeds}.
- LoRA (PEFT, rank 8, all linear maps) and full fine-tuning ({precision}, with fp32 copies for the optimiser) get
  the same problems in the same batches as the text-only adapter. None of the three sees a picture, and so they are
  compared on problems without one.
- Table 6 trains on {few} problems, each of its rows from the start, with a schedule of its own length.
- Unrelated text: the language reference that comes with Python (`pydoc_data.topics`).
"""


_COLORS = {"zero": "#1f6fb4", "random": "#c8541b", "text": "#4b9b57"}
_NAMES = {"zero": "zero-init", "random": "random-init"}


def write_report(
    figures: Figures,
    out: Path,
    *,
    command: str,
    base: str,
    data: str,
    seconds: float,
    jobs: int,
    sizes: dict[str, int],
) -> str:
    """Writes CSV, PNG and report.md into `out` and returns the report's text.

    command: that the user gave. data: where the problems come from. sizes: problems by split.
    """
    tables = figures.tables()
    for table in tables:
        (out / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    pictures = {path.stem: path.name for path in plot(figures, out)}
    plan = figures.plan
    precisions = {result.get("precision", "bf16") for result in figures.results.values()}
    parts = [
        _INTRO,
        f"    {command}\n\n{_machine()}; {jobs} at a time. This call took {seconds / 60:.0f} minutes, "
        "without the runs that an earlier one had finished.\n",
        "## What held\n",
        "\n".join(["| held | claim | measured |", "| --- | --- | --- |", *(c.markdown() for c in claims(figures))])
        + "\n",
    ]
    for table in tables:
        parts.append(table.markdown())
        name = "figure5" if table.name == "table5" else table.name
        if name in pictures:
            parts.append(f"![{name}]({pictures[name]})\n")
    parts.append(
        _METHOD.format(
            base=base,
            precision=" and ".join(sorted(precisions)),
            encoder=ENCODER,
            data=data,
            seeds=" and ".join(str(seed) for seed in SEEDS[1:]),
            steps=plan.steps,
            batch_size=plan.batch_size,
            few=plan.few,
            **sizes,
        )
    )
    text = "\n".join(parts)
    (out / "report.md").write_text(text, encoding="utf-8")
    return text


def _machine() -> str:
    python = platform.python_version()
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {python}, torch {torch.__version__}"


# Plots.


def plot(figures: Figures, out: Path) -> list[Path]:
    """Writes the plots into `out` and returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plots = {
        "figure5": _plot_losses,
        "table2": _plot_columns,
        "table4": _plot_layers,
        "table6": _plot_long_training,
        "forgetting": _plot_forgetting,
    }
    for name, draw in plots.items():
        canvas, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
        try:
            draw(axes, figures)
            axes.spines[["top", "right"]].set_visible(False)
            canvas.savefig(out / f"{name}.png", dpi=130)
        finally:
            pyplot.close(canvas)
    return [out / f"{name}.png" for name in plots]


def _plot_losses(axes: Any, figures: Figures) -> None:
    """The paper's figure 5."""
    for init in ("zero", "random"):
        for seed in SEEDS:
            losses = _smooth(figures.results[f"{init}-{seed}"]["losses"])
            label = _NAMES[init] if seed == SEEDS[0] else None
            axes.plot(range(1, len(losses) + 1), losses, color=_COLORS[init], alpha=0.8, label=label)
    axes.set(
        title="Figure 5: training loss, three seeds each", xlabel="step", ylabel="loss, nats a token", ylim=(0, 2)
    )
    axes.legend(frameon=False)


def _smooth(losses: Sequence[float], keep: float = 0.9) -> list[float]:
    smoothed, running = [], losses[0]
    for loss in losses:
        running = keep * running + (1 - keep) * loss
        smoothed.append(running)
    return smoothed


def _plot_columns(axes: Any, figures: Figures) -> None:
    named = {"frozen base": "base", "text-only adapter": "text", "multi-modal adapter": "zero-0"}
    width = 0.8 / len(named)
    for i, (name, run) in enumerate(named.items()):
        found = figures.columns(run)
        axes.bar([j + i * width for j in range(len(found))], found.values(), width, label=name)
    axes.set_xticks([j + width for j in range(len(found))], found)
    axes.set(title="Table 2: accuracy by column", ylabel="%", ylim=(0, 118))
    axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8)


def _plot_layers(axes: Any, figures: Figures) -> None:
    third, two_thirds, every = layer_shares(figures.layers)
    runs = {third: f"layers-{third}", two_thirds: f"layers-{two_thirds}", every: "zero-0"}
    for column in ("Avg", "IMG"):
        values = [figures.columns(run).get(column) for run in runs.values()]
        axes.plot(list(runs), values, marker="o", label=column)
    axes.set(title="Table 4: insertion layers", xlabel="layers with prompts", ylabel="%", ylim=(0, 100))
    axes.set_xticks(list(runs))
    axes.legend(frameon=False)


def _plot_long_training(axes: Any, figures: Figures) -> None:
    rows = next(table for table in figures.tables() if table.name == "table6").rows
    epochs = [row[0] for row in rows]
    for place, name, style in ((1, "training loss", "--"), (2, "validation loss", "-")):
        axes.plot(epochs, [row[place] for row in rows], style, color=_COLORS["random"], marker="o", label=name)
    axes.set(title="Table 6: after over-fitting", xlabel="epochs", ylabel="loss, nats")
    right = axes.twinx()
    right.plot(epochs, [row[5] for row in rows], color=_COLORS["zero"], marker="o", label="test accuracy")
    right.set(ylabel="%", ylim=(0, 100))
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)


def _plot_forgetting(axes: Any, figures: Figures) -> None:
    for run, key, name in (("text", "text", "text-only adapter"), ("zero-0", "zero", "multi-modal adapter")):
        found = figures.results[run]["perplexity"]
        values = [found[str(s)] for s in STRENGTHS]
        axes.plot(STRENGTHS, values, color=_COLORS[key], marker="o", label=name)
    for run, name, style in (("full", "full fine-tuning", "--"), ("lora", "LoRA", ":")):
        axes.axhline(figures.results[run]["perplexity"]["-"], color="black", linestyle=style, label=name)
    axes.set(title="Forgetting", xlabel="strength", ylabel="perplexity of unrelated text", yscale="log")
    axes.legend(frameon=False)
