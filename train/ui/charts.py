"""The state and metrics of a run as HTML and SVG. Knows numbers and the page's texts.

Colours and sizes are in static/train.css. Own SVG, not gr.LinePlot and gr.BarPlot (tried with 6.31):
those show no points at evaluations, sort layers as text and have no description for screen readers.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from train.ui import texts
from train.ui.metrics import Points, RunProgress
from train.ui.runs import TrainingRun

WIDTH, HEIGHT = 400, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 20
_MAX_POINTS = 300  # per line
_SMALLEST, _LARGEST = 1e-300, 1e300  # values that a chart can show: powers of ten beyond are 0 or infinite
_SMOOTHING = 0.8  # weight of the previous value in the exponential average of the loss


def run_html(run: TrainingRun) -> str:
    """The panel of one run."""
    steps = run.recipe.train.steps
    body = [progress_html(run), _numbers(run), loss_chart(run.progress, steps), gates_chart(run.progress.gates)]
    if run.adapter and run.record.question and not run.alive:
        body.append(f'<p class="try-it">{html.escape(texts.try_it(run.record.question))}</p>')
    return f'<div class="run {run.state}">{"".join(body)}</div>'


def progress_html(run: TrainingRun) -> str:
    """The head of the panel: how far the run is, and what is to be said of it."""
    step, steps = run.progress.step, run.recipe.train.steps
    share = 100 if run.state == "ended" else min(100, round(100 * step / steps))
    left = run.seconds_left if run.state == "training" else None
    line = texts.step_line(step, steps, left) if step or run.state == "training" else ""
    sentence, turned = _sentence(run), run.progress.by_heart_since
    by_heart = "" if turned is None else texts.by_heart(turned, run.recipe.train.save == "best")
    body = [
        f'<div class="top"><strong>{html.escape(run.name)}</strong>'
        f'<span class="state">{html.escape(texts.STATES[run.state])}</span></div>',
        f'<div class="bar" role="progressbar" aria-label="{html.escape(run.name)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share}"><i style="width: {share}%"></i></div>',
        f'<p class="step-line">{html.escape(line)}</p>' if line else "",
        f'<p class="explanation">{html.escape(sentence)}</p>' if sentence else "",
        f'<p class="by-heart">{html.escape(by_heart)}</p>' if by_heart else "",
    ]
    return "".join(body)


def _sentence(run: TrainingRun) -> str:
    if run.state == "starting":
        # The trainer's log once there is one: reading, loading.
        return run.message.capitalize() + "…" if run.message else texts.STARTING
    if run.state == "stopped":
        return texts.STOPPED if run.saved else texts.STOPPED_EARLY
    if run.state == "killed":
        return texts.KILLED_SAVED if run.saved else texts.KILLED_EARLY
    if run.state == "failed":
        return run.message
    return {"stopping": texts.STOPPING, "ended": texts.ENDED}.get(run.state, "")


def _numbers(run: TrainingRun) -> str:
    progress = run.progress
    cells = []
    if progress.untrained is not None:
        cells.append((f"{texts.HELD_OUT}, {texts.BEFORE}", f"{progress.untrained:.2f}"))
    kept_loss = progress.kept_loss(run.recipe.train.save)
    if run.state == "ended" and kept_loss is not None:
        cells.append((f"{texts.HELD_OUT}, {texts.AFTER}", f"{kept_loss:.2f}"))
    elif progress.held_out:
        cells.append((f"{texts.HELD_OUT}, {texts.NOW}", f"{progress.held_out[-1][1]:.2f}"))
    if progress.largest_gate:
        cells.append((texts.LARGEST.capitalize(), f"{progress.largest_gate[-1][1]:.2f}"))
    rows = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{value}</dd></div>" for name, value in cells)
    return f"<dl>{rows}</dl>" if cells else ""


def loss_chart(progress: RunProgress, steps: int) -> str:
    """Both losses over the steps; "" before the first step."""
    held_out = progress.held_out
    if progress.untrained is not None:
        held_out = ((0, progress.untrained), *held_out)
    losses = _thin(_smooth(progress.losses))
    values = [value for _, value in (*losses, *held_out)]
    if not losses or not values:
        return ""
    top = _round_up(max(values))

    def position(point: tuple[int, float]) -> str:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * point[0] / max(steps, 1)
        y = _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(point[1], top) / top)
        return f"{x:.1f},{y:.1f}"

    grid = []
    for part in (0.0, 0.5, 1.0):
        value = part * top
        y = position((0, value)).partition(",")[2]
        grid.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        grid.append(f'<text x="{_LEFT - 6}" y="{y}" dy="0.35em" text-anchor="end">{value:.3g}</text>')
    baseline = HEIGHT - 4
    axis = f'<text x="{_LEFT}" y="{baseline}">0</text>'
    axis += f'<text x="{WIDTH - _RIGHT}" y="{baseline}" text-anchor="end">{texts.STEP} {steps:,}</text>'
    dots = "".join(
        '<circle class="held-out" r="3" cx="{}" cy="{}"/>'.format(*position(point).split(","))
        for point in held_out
    )
    latest = held_out[-1][1] if held_out else None
    label = texts.chart(progress.step, losses[-1][1], latest)
    return (
        f'<svg class="losses" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">'
        f"{''.join(grid)}{axis}"
        f'<polyline class="loss" points="{" ".join(map(position, losses))}"/>'
        f'<polyline class="held-out" points="{" ".join(map(position, held_out))}"/>{dots}</svg>'
        f'<div class="legend"><span class="loss">{texts.LOSS}</span>'
        f'<span class="held-out">{texts.HELD_OUT}</span></div>'
    )


def gates_chart(gates: Sequence[float]) -> str:
    """One bar per layer."""
    if not gates or not any(gates):
        return ""
    top, bars = max(gates), []
    for number, gate in enumerate(gates):
        height = max(2, round(100 * gate / top))
        name = html.escape(texts.layer(number + 1, gate))
        bars.append(f'<i style="height: {height}%" title="{name}"></i>')
    title = html.escape(texts.GATES)
    return (
        f'<div class="gates"><span>{title}</span>'
        f'<div class="bars" role="img" aria-label="{title}">{"".join(bars)}</div>'
        f'<div class="ends"><span>{texts.LOWEST}</span><span>{texts.TOPMOST}</span></div></div>'
    )


def _smooth(points: Points) -> Points:
    smoothed, value = [], math.nan
    for step, loss in points:
        value = loss if math.isnan(value) else _SMOOTHING * value + (1 - _SMOOTHING) * loss
        smoothed.append((step, value))
    return tuple(smoothed)


def _thin(points: Points) -> Points:
    stride = -(-len(points) // _MAX_POINTS) or 1
    return (*points[:-1:stride], *points[-1:])


def _round_up(value: float) -> float:
    """The next of 1, 2, 3, 4, 5, 6, 8 or 10 times a power of ten."""
    if not _SMALLEST <= value <= _LARGEST:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 3, 4, 5, 6, 8, 10) if value <= factor * power * (1 + 1e-9))
