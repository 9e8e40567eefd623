"""The paper's claims as inequalities over the figures: computed, not asserted. Knows figures; runs nothing."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from train.reproduce.scoring import chance
from train.reproduce.tables import Figures, shares, spread

_GAP = 25.0  # points on image questions that a picture must be worth
_SLACK = 2.0  # points that count as equal: about one deviation of a test of some hundred problems


@dataclass(frozen=True)
class Claim:
    """What is claimed, what was measured, and whether the one follows from the other."""

    text: str
    measured: str
    held: bool

    def line(self) -> str:
        return f"| {'yes' if self.held else 'NO'} | {self.text} | {self.measured} |"


def claims(figures: Figures) -> list[Claim]:
    return [
        _learns(figures),
        *_sees(figures),
        _layers(figures),
        _zero_init(figures),
        *_goes_on(figures),
        *_cheap(figures),
        *_forgets(figures),
    ]


def _learns(figures: Figures) -> Claim:
    base, text = figures.unseen_by("base"), figures.unseen_by("text")
    return Claim(
        "the text-only adapter answers what the frozen base cannot (table 2)",
        f"without a picture: base {base:.1f} %, adapter {text:.1f} %",
        text > base + _SLACK,
    )


def _sees(figures: Figures) -> list[Claim]:
    text, visual = figures.columns("text").get("IMG", 0.0), figures.columns("zero-0").get("IMG", 0.0)
    guess = chance(figures.problems).get("IMG", 0.0)
    blind, sighted = figures.unseen_by("text"), figures.unseen_by("zero-0")
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


def _layers(figures: Figures) -> Claim:
    third, two_thirds, every = shares(figures.layers)
    found = [figures.columns(run)["Avg"] for run in (f"layers-{third}", f"layers-{two_thirds}", "zero-0")]
    return Claim(
        "more insertion layers, more right answers (table 4)",
        f"{third}, {two_thirds}, {every} layers: " + ", ".join(f"{value:.1f}" for value in found) + " %",
        found[0] < found[2] and found[0] <= found[1] + _SLACK and found[1] <= found[2] + _SLACK,
    )


def _zero_init(figures: Figures) -> Claim:
    zero, random = figures.all_layers("zero", "Avg"), figures.all_layers("random", "Avg")
    (mean, deviation), (other, others) = spread(zero), spread(random)
    return Claim(
        "zero-init attention beats random-init at every seed (table 5; the paper: by 43 points)",
        f"{mean:.1f} ± {deviation:.1f} % against {other:.1f} ± {others:.1f} %: {mean - other:+.1f} points",
        min(zero) > max(random),
    )


def _goes_on(figures: Figures) -> list[Claim]:
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


def _cheap(figures: Figures) -> list[Claim]:
    ours, lora, full = (figures.results[run] for run in ("text", "lora", "full"))
    speed = full["seconds"] / ours["seconds"]
    right = [figures.unseen_by(run) for run in ("text", "lora", "full")]
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


def _forgets(figures: Figures) -> list[Claim]:
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
