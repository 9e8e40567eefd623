"""The figures as PNG. Knows matplotlib and the figures; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.reproduce.plan import SEEDS
from train.reproduce.runs import STRENGTHS
from train.reproduce.tables import Figures, shares

_COLORS = {"zero": "#1f6fb4", "random": "#c8541b", "text": "#4b9b57"}
_NAMES = {"zero": "zero-init", "random": "random-init"}


def plot(figures: Figures, out: Path) -> list[Path]:
    """Write the plots into `out` and return their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    for name, draw in (("figure5", _losses), ("table2", _columns), ("table4", _layers), ("table6", _long)):
        made.append(_one(pyplot, out / f"{name}.png", draw, figures))
    made.append(_one(pyplot, out / "forgetting.png", _forgetting, figures))
    return made


def _one(pyplot: Any, path: Path, draw: Any, figures: Figures) -> Path:
    canvas, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    try:
        draw(axes, figures)
        axes.spines[["top", "right"]].set_visible(False)
        canvas.savefig(path, dpi=130)
    finally:
        pyplot.close(canvas)
    return path


def _losses(axes: Any, figures: Figures) -> None:
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


def _columns(axes: Any, figures: Figures) -> None:
    named = {"frozen base": "base", "text-only adapter": "text", "multi-modal adapter": "zero-0"}
    width = 0.8 / len(named)
    for i, (name, run) in enumerate(named.items()):
        found = figures.columns(run)
        axes.bar([j + i * width for j in range(len(found))], found.values(), width, label=name)
    axes.set_xticks([j + width for j in range(len(found))], found)
    axes.set(title="Table 2: accuracy by column", ylabel="%", ylim=(0, 118))
    axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8)


def _layers(axes: Any, figures: Figures) -> None:
    third, two_thirds, every = shares(figures.layers)
    runs = {third: f"layers-{third}", two_thirds: f"layers-{two_thirds}", every: "zero-0"}
    for column in ("Avg", "IMG"):
        values = [figures.columns(run).get(column) for run in runs.values()]
        axes.plot(list(runs), values, marker="o", label=column)
    axes.set(title="Table 4: insertion layers", xlabel="layers with prompts", ylabel="%", ylim=(0, 100))
    axes.set_xticks(list(runs))
    axes.legend(frameon=False)


def _long(axes: Any, figures: Figures) -> None:
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


def _forgetting(axes: Any, figures: Figures) -> None:
    for run, key, name in (("text", "text", "text-only adapter"), ("zero-0", "zero", "multi-modal adapter")):
        found = figures.results[run]["perplexity"]
        values = [found[str(s)] for s in STRENGTHS]
        axes.plot(STRENGTHS, values, color=_COLORS[key], marker="o", label=name)
    for run, name, style in (("full", "full fine-tuning", "--"), ("lora", "LoRA", ":")):
        axes.axhline(figures.results[run]["perplexity"]["-"], color="black", linestyle=style, label=name)
    axes.set(title="Forgetting", xlabel="strength", ylabel="perplexity of unrelated text", yscale="log")
    axes.legend(frameon=False)
