"""The state and metrics of a run as HTML and SVG. Colours and sizes are in static/train.css.

Own SVG, not gr.LinePlot and gr.BarPlot (tried with 6.31): those show no points at evaluations, sort layers as text
and have no description for screen readers.
"""

from __future__ import annotations

import html
import math

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
        body.append(_paragraph("try-it", texts.TRY_IT.format(run.record.question)))
    return f'<div class="run {run.state}">{"".join(body)}</div>'


def progress_html(run: TrainingRun) -> str:
    """The head of the panel: how far the run is, and what is to be said of it."""
    step, steps, name = run.progress.step, run.recipe.train.steps, html.escape(run.name)
    share = 100 if run.state == "ended" else min(100, round(100 * step / steps))
    left = run.seconds_left if run.state == "training" else None
    line = texts.step_line(step, steps, left) if step or run.state == "training" else ""
    turned = run.progress.by_heart_since
    by_heart = "" if turned is None else texts.by_heart(turned, run.recipe.train.save == "best")
    return (
        f'<div class="top"><strong>{name}</strong><span class="state">{texts.STATES[run.state]}</span></div>'
        f'<div class="bar" role="progressbar" aria-label="{name}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share}"><i style="width: {share}%"></i></div>'
        + _paragraph("step-line", line)
        + _paragraph("explanation", _sentence(run))
        + _paragraph("by-heart", by_heart)
    )


def _paragraph(kind: str, text: str) -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ""


def _sentence(run: TrainingRun) -> str:
    if run.state == "failed":
        return run.message
    if run.state == "starting" and run.message:  # the trainer's log: reading, loading
        return run.message.capitalize() + "…"
    sentence = texts.SENTENCES.get(run.state, "")
    return sentence if run.saved else texts.UNSAVED.get(run.state, sentence)


def _numbers(run: TrainingRun) -> str:
    progress, cells = run.progress, []
    if progress.untrained is not None:
        cells.append((f"{texts.HELD_OUT}, {texts.BEFORE}", progress.untrained))
    if progress.held_out:
        kept = progress.kept(run.recipe.train.save)[1] if run.state == "ended" else None
        when, loss = (texts.NOW, progress.held_out[-1][1]) if kept is None else (texts.AFTER, kept)
        cells.append((f"{texts.HELD_OUT}, {when}", loss))
    if progress.largest_gate is not None:
        cells.append((texts.LARGEST.capitalize(), progress.largest_gate))
    rows = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{value:.2f}</dd></div>" for name, value in cells)
    return f"<dl>{rows}</dl>" if cells else ""


def loss_chart(progress: RunProgress, steps: int) -> str:
    """Both losses over the steps; "" before the first step."""
    losses, held_out = _thin(_smooth(progress.losses)), progress.held_out
    if not losses:
        return ""
    if progress.untrained is not None:
        held_out = ((0, progress.untrained), *held_out)
    top = _round_up(max(value for _, value in (*losses, *held_out)))
    right, bottom = WIDTH - _RIGHT, HEIGHT - 4

    def position(point: tuple[int, float]) -> tuple[str, str]:
        x = _LEFT + (right - _LEFT) * point[0] / max(steps, 1)
        y = _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(point[1], top) / top)
        return f"{x:.1f}", f"{y:.1f}"

    def line(kind: str, points: Points) -> str:
        return f'<polyline class="{kind}" points="{" ".join(map(",".join, map(position, points)))}"/>'

    parts = []
    for value in (0.0, 0.5 * top, top):
        y = position((0, value))[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="0.35em" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{_LEFT}" y="{bottom}">0</text>')
    parts.append(f'<text x="{right}" y="{bottom}" text-anchor="end">{texts.STEP} {steps:,}</text>')
    parts += [line("loss", losses), line("held-out", held_out)]
    parts += ['<circle class="held-out" r="3" cx="{}" cy="{}"/>'.format(*position(point)) for point in held_out]
    label = html.escape(texts.chart(progress.step, losses[-1][1], held_out[-1][1] if held_out else None))
    return (
        f'<svg class="losses" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
        f'<div class="legend"><span class="loss">{texts.LOSS}</span>'
        f'<span class="held-out">{texts.HELD_OUT}</span></div>'
    )


def gates_chart(gates: tuple[float, ...]) -> str:
    """One bar per layer."""
    if not any(gates):
        return ""
    heights = [max(2, round(100 * gate / max(gates))) for gate in gates]
    bars = "".join(
        f'<i style="height: {height}%" title="{texts.LAYER.format(number, gate)}"></i>'
        for number, (height, gate) in enumerate(zip(heights, gates, strict=True), 1)
    )
    return (
        f'<div class="gates"><span>{texts.GATES}</span>'
        f'<div class="bars" role="img" aria-label="{texts.GATES}">{bars}</div>'
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
