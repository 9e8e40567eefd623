"""The preview of training data as HTML: counts, lengths, faults and the first records."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from adapter.base.image_file import open_image
from adapter.errors import AdapterError
from adapter.server.generation import public_text
from adapter.ui.theme import ellipsize
from train.formats.record import Picture, picture_source
from train.ui import texts
from train.ui.data_upload import Preview

if TYPE_CHECKING:
    from train.formats.dataset import Record
    from train.input.data_check import Faults, Report

_TURN_CHARACTERS = 220
_THUMBNAIL_PIXELS = 96
_LISTED_FAULTS = 5
FEW_RECORDS = 20  # below it the preview says what to expect


def preview_html(preview: Preview) -> str:
    report, data = preview.report, preview.data
    kind = texts.PICTURES if data.pictures else texts.TEXTS
    head = texts.records(report.records, kind, data.name)
    notes = []
    if report.truncated:
        notes.append(texts.truncated(report.truncated, report.answerless, report.max_length))
    if report.empty_answers:
        notes.append(texts.empty_answers(report.empty_answers))
    if preview.usable < FEW_RECORDS:
        notes.append(texts.FEW_RECORDS.format(preview.usable))
    if data.left_out:
        notes.append(texts.left_out(list(data.left_out[:3]), len(data.left_out)))
    faults = [report.broken, *([report.missing, report.unreadable] if data.pictures else [])]
    skipped = _skipped_html(texts.BROKEN.format, *faults) + _skipped_html(texts.uncaptioned, report.uncaptioned)
    body = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    cards = "".join(_record_html(record) for record in preview.first_records)
    return (
        f'<div class="data-preview"><p class="head">{html.escape(head)}</p>{skipped}{body}'
        f'{_histogram_html(report)}<ol class="records">{cards}</ol></div>'
    )


def problem_html(error: AdapterError) -> str:
    """The error message in place of the preview."""
    return f'<div class="data-preview error" role="alert"><p>{public_text(error)}</p></div>'


def nothing_html(text: str) -> str:
    return f'<div class="data-preview empty"><p>{html.escape(text)}</p></div>'


def _skipped_html(summary: Callable[[int], str], *kinds: Faults) -> str:
    count = sum(kind.count for kind in kinds)
    if not count:
        return ""
    listed = [fault for kind in kinds for fault in kind.first][:_LISTED_FAULTS]
    if count > len(listed):
        listed.append(texts.MORE.format(count - len(listed)))
    items = "".join(f"<li>{html.escape(fault)}</li>" for fault in listed)
    return (
        f"<details open><summary>{html.escape(summary(count))}</summary>"
        f"<p>{html.escape(texts.SKIPPED)}</p><ul>{items}</ul></details>"
    )


def _histogram_html(report: Report) -> str:
    """One bar per range of lengths; ranges double in width. A sentence where there is one bar."""
    if not report.histogram:
        return ""
    summary = html.escape(f"{texts.LENGTHS}: {texts.LENGTH_SUMMARY.format(report.median, report.longest)}")
    if len(report.histogram) == 1:
        return f"<p>{summary}.</p>"
    most = max(count for _, _, count in report.histogram)
    bars = []
    for low, high, count in report.histogram:
        height = max(3, round(100 * count / most)) if count else 0
        title = f"{low:,} – {high:,}: {count:,}"
        bars.append(f'<div title="{title}"><i style="height: {height}%"></i><span>{high:,}</span></div>')
    return (
        f'<div class="lengths"><p>{summary}</p>'
        f'<div class="bars" role="img" aria-label="{summary}">{"".join(bars)}</div></div>'
    )


def _record_html(record: Record) -> str:
    *earlier, answer = record.messages
    request = next((turn.full_text for turn in reversed(earlier) if turn.role == "user"), "")
    picture = _thumbnail(record.image) if record.image is not None else ""
    request = ellipsize(request, _TURN_CHARACTERS)
    answer_text = ellipsize(answer.text, _TURN_CHARACTERS) or texts.NO_ANSWER
    return (
        f"<li>{picture}<div>"
        f'<p class="request">{_hidden_label(texts.REQUEST)}{html.escape(request)}</p>'
        f'<p class="answer">{_hidden_label(texts.ANSWER)}{html.escape(answer_text)}</p></div></li>'
    )


def _hidden_label(label: str) -> str:
    return f'<span class="screen-reader-only">{label}: </span>'


def _thumbnail(picture: Picture) -> str:
    """A thumbnail as a data URL, so that no copy stays on the server."""
    try:
        image = open_image(picture_source(picture)).copy()
    except AdapterError:
        return '<span class="no-picture"></span>'
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
