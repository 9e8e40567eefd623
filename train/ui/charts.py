"""A run as HTML and SVG: how far it is, what its question is answered, its losses.

Own SVG, not gr.LinePlot (tried with 6.31): that shows no points at evaluations and has no description for screen
readers. Colours and sizes are in static/train.css.
"""

import html
from collections.abc import Sequence

from adapter.ui.theme import ellipsize
from train.ui import texts
from train.ui.runs import Points, RunProgress, TrainingRun, WatchedAnswer

WIDTH, HEIGHT = 400, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 20
_SMOOTHING = 0.8  # weight of the previous value in the exponential average of the loss
_SHOWN_CHARACTERS = 240  # of a watched answer


def run_html(run: TrainingRun, watched: Sequence[WatchedAnswer] = ()) -> str:
    """watched: the answers to the run's question; none for who may not see them."""
    progress, config, name = run.progress, run.recipe.train, html.escape(run.name)
    step, steps = progress.step, config.steps
    share = 100 if run.state == "ended" else min(100, round(100 * step / steps))
    left = progress.seconds_left(steps, config.eval_every) if run.state == "training" else None
    explanation = texts.SENTENCES.get(run.state, "")
    if not run.saved:
        explanation = texts.UNSAVED.get(run.state, explanation)
    if run.state == "ended" and step < steps:
        explanation += f" {texts.ENDED_EARLY}"
    if run.message and run.state in ("failed", "starting"):  # of one that starts: the trainer reads, loads
        explanation = run.message if run.state == "failed" else f"{run.message[:1].upper()}{run.message[1:]}…"
    if run.state in ("starting", "training") and run.message.startswith("warning: "):
        explanation = f"{run.message[9:10].upper()}{run.message[10:]}"
    losses = texts.NONE_HELD_OUT if run.state == "ended" else ""
    if progress.held_out:
        kept = progress.kept(config.save)[1] if run.state == "ended" else None
        now, when = (progress.held_out[-1][1], texts.NOW) if kept is None else (kept, texts.AFTER)
        losses = texts.held_out(progress.untrained, now, when)
    turned = progress.by_heart_since if config.save == "best" else None
    answers = "".join(
        f"<li><b>{f'Step {at:,}' if at else texts.BEFORE}</b> "
        f"{html.escape(ellipsize(text, _SHOWN_CHARACTERS))}</li>"
        for at, text in watched
    )
    return (
        f'<div class="run {run.state}">'
        f'<div class="top"><strong>{name}</strong>'
        f'<span class="state" role="status">{texts.STATES[run.state]}</span></div>'
        f'<div class="bar" role="progressbar" aria-label="{name}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share}"><i style="width: {share}%"></i></div>'
        + _paragraph("step-line", texts.step_line(step, steps, left) if step or run.state == "training" else "")
        + _paragraph("explanation", explanation)
        + _paragraph("by-heart", "" if turned is None else texts.by_heart(turned))
        + (_paragraph("watched", f"“{run.record.question}”") if answers else "")
        + (f'<ol tabindex="0">{answers}</ol>' if answers else "")
        + _paragraph("numbers", losses)
        + loss_chart(progress, steps)
        + "</div>"
    )


def _paragraph(kind: str, text: str) -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ""


def loss_chart(progress: RunProgress, steps: int) -> str:
    """Both losses over the steps, that of training smoothed; "" before the first step."""
    losses, held_out, value = [], progress.held_out, progress.losses[0][1] if progress.losses else 0.0
    for step, loss in progress.losses:
        value = _SMOOTHING * value + (1 - _SMOOTHING) * loss
        losses.append((step, value))
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
    parts += [line("loss", tuple(losses)), line("held-out", held_out)]
    parts += ['<circle class="held-out" r="3" cx="{}" cy="{}"/>'.format(*position(point)) for point in held_out]
    label = html.escape(texts.chart(progress.step, losses[-1][1]))
    named = f'<span class="held-out">{texts.HELD_OUT}</span>' if held_out else ""
    return (
        f'<svg class="losses" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
        f'<div class="legend"><span class="loss">{texts.LOSS}</span>{named}</div>'
    )
