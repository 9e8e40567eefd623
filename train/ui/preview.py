"""What is in the data, as HTML: counts, lengths, what is broken, and the first records.

Knows words; reads the pictures that it shows.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adapter.errors import AdapterError
from adapter.server.settings import without_folders
from adapter.ui.texts import train as texts
from train.ui.data_upload import Preview

if TYPE_CHECKING:
    from train.data_report import Faults, Report
    from train.formats.records import Record

_CLIP = 220  # characters of a turn
_SIDE = 96  # pixels of a thumbnail
_NAMED = 5  # faults


def preview_html(preview: Preview) -> str:
    report = preview.report
    kind = texts.PICTURES if preview.pictures else texts.TEXTS
    head = texts.records(report.records, kind, preview.shown)
    notes = []
    if report.truncated:
        notes.append(texts.cut(report.truncated, report.answerless, report.max_length))
    if report.empty_answers:
        notes.append(texts.empty_answers(report.empty_answers))
    if preview.left_out:
        notes.append(texts.left_out(list(preview.left_out[:3]), len(preview.left_out)))
    body = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    cards = "".join(_card(record) for record in preview.first)
    return (
        f'<div class="found"><p class="head">{html.escape(head)}</p>{_faults(preview)}{body}'
        f'{_lengths(report)}<ol class="records">{cards}</ol></div>'
    )


def problem_html(error: AdapterError) -> str:
    """Data that cannot be used, and why."""
    return f'<div class="found wrong" role="alert"><p>{html.escape(without_folders(str(error)))}</p></div>'


def nothing_html(text: str) -> str:
    return f'<div class="found none"><p>{html.escape(text)}</p></div>'


def _faults(preview: Preview) -> str:
    report = preview.report
    kinds = [report.broken, *([report.missing, report.unreadable] if preview.pictures else [])]
    return _passed_over(texts.broken, *kinds) + _passed_over(texts.uncaptioned, report.uncaptioned)


def _passed_over(summary: Callable[[int], str], *kinds: Faults) -> str:
    count = sum(kind.count for kind in kinds)
    if not count:
        return ""
    named = [fault for kind in kinds for fault in kind.first][:_NAMED]
    if count > len(named):
        named.append(texts.more(count - len(named)))
    items = "".join(f"<li>{html.escape(without_folders(fault))}</li>" for fault in named)
    return (
        f"<details open><summary>{html.escape(summary(count))}</summary>"
        f"<p>{html.escape(texts.PASSED_OVER)}</p><ul>{items}</ul></details>"
    )


def _lengths(report: Report) -> str:
    """A bar for each range of lengths; ranges double."""
    if not report.histogram:
        return ""
    most = max(count for _, _, count in report.histogram)
    bars = []
    for low, high, count in report.histogram:
        height = max(3, round(100 * count / most)) if count else 0
        title = f"{low:,} – {high:,}: {count:,}"
        bars.append(f'<div title="{title}"><i style="height: {height}%"></i><span>{high:,}</span></div>')
    said = texts.lengths(report.median, report.longest)
    return (
        f'<div class="lengths"><p>{html.escape(texts.LENGTHS)}: {html.escape(said)}</p>'
        f'<div class="bars" role="img" aria-label="{html.escape(texts.LENGTHS)}: {html.escape(said)}">'
        f"{''.join(bars)}</div></div>"
    )


def _card(record: Record) -> str:
    *before, answer = record.messages
    asked = next((turn.text for turn in reversed(before) if turn.role == "user"), "")
    picture = _thumbnail(record.image) if record.image is not None else ""
    said = _clip(answer.text) or texts.NO_ANSWER
    return (
        f"<li>{picture}<div>"
        f'<p class="asked"><span class="sr">{texts.ASKED}: </span>{html.escape(_clip(asked))}</p>'
        f'<p class="answer"><span class="sr">{texts.ANSWERED}: </span>{html.escape(said)}</p></div></li>'
    )


def _thumbnail(path: Path) -> str:
    """The picture itself, small, in the page: it is not kept on the server."""
    from adapter.method.vision import open_image

    try:
        image = open_image(path)
    except AdapterError:
        return '<span class="no-picture"></span>'
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _clip(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _CLIP else text[: _CLIP - 1].rsplit(" ", 1)[0] + "…"
