"""A run as HTML and SVG: how far it is, what its question is answered, its losses.

Own SVG, not gr.LinePlot (tried with 6.31): that shows no points at evaluations and has no description for screen
readers. Colours and sizes are in static/train.css.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from adapter.ui.theme import ellipsize
from train.ui import texts
from train.ui.metrics import Points, RunProgress
from train.ui.runs import TrainingRun, WatchedAnswer

WIDTH, HEIGHT = 400, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 20
_SMOOTHING = 0.8  # weight of the previous value in the exponential average of the loss
_SHOWN_CHARACTERS = 240  # of a watched answer


def run_html(run: TrainingRun, watched: Sequence[WatchedAnswer] = ()) -> str:
    """watched: the answers to the run's question; none for who may not see them."""
    step, steps, name = run.progress.step, run.recipe.train.steps, html.escape(run.name)
    share = 100 if run.state == "ended" else min(100, round(100 * step / steps))
    left = run.seconds_left if run.state == "training" else None
    line = texts.step_line(step, steps, left) if step or run.state == "training" else ""
    turned = run.progress.by_heart_since
    told = turned is not None and run.recipe.train.save == "best"
    return (
        f'<div class="run {run.state}">'
        f'<div class="top"><strong>{name}</strong><span class="state">{texts.STATES[run.state]}</span></div>'
        f'<div class="bar" role="progressbar" aria-label="{name}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share}"><i style="width: {share}%"></i></div>'
        + _paragraph("step-line", line)
        + _paragraph("explanation", _sentence(run))
        + _paragraph("by-heart", texts.BY_HEART.format(turned) if told else "")
        + _watched_html(run.record.question, watched)
        + _numbers(run)
        + loss_chart(run.progress, steps)
        + "</div>"
    )


def _paragraph(kind: str, text: str) -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ""


def _watched_html(question: str, watched: Sequence[WatchedAnswer]) -> str:
    shown = [(texts.watched_step(step), ellipsize(text, _SHOWN_CHARACTERS)) for step, text in watched]
    items = "".join(f"<li><b>{when}</b> {html.escape(text)}</li>" for when, text in shown)
    return f'{_paragraph("watched", f"“{question}”")}<ol tabindex="0">{items}</ol>' if items else ""


def _sentence(run: TrainingRun) -> str:
    if run.state == "failed":
        return run.message
    if run.state == "starting" and run.message:  # the trainer's log: reading, loading
        return run.message.capitalize() + "…"
    sentence = texts.SENTENCES.get(run.state, "")
    return sentence if run.saved else texts.UNSAVED.get(run.state, sentence)


def _numbers(run: TrainingRun) -> str:
    progress, sentences = run.progress, []
    if progress.held_out:
        kept = progress.kept(run.recipe.train.save)[1] if run.state == "ended" else None
        now, when = (progress.held_out[-1][1], texts.NOW) if kept is None else (kept, texts.AFTER)
        sentences.append(texts.held_out(progress.untrained, now, when))
    if progress.largest_gate is not None:
        sentences.append(texts.LARGEST.format(progress.largest_gate))
    return _paragraph("numbers", " ".join(sentences))


def loss_chart(progress: RunProgress, steps: int) -> str:
    """Both losses over the steps; "" before the first step."""
    losses, held_out = _smooth(progress.losses), progress.held_out
    if not losses:
        return ""
    if progress.untrained is not None:
        held_out = ((0, progress.untrained), *held_out)
    top = max(value for _, value in (*losses, *held_out)) or 1.0
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


def _smooth(points: Points) -> Points:
    smoothed, value = [], points[0][1] if points else 0.0
    for step, loss in points:
        value = _SMOOTHING * value + (1 - _SMOOTHING) * loss
        smoothed.append((step, value))
    return tuple(smoothed)
