"""The preview of training data as HTML: counts, faults and the first records."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

from adapter.base.image_file import open_image
from adapter.errors import AdapterError
from adapter.ui.theme import ellipsize
from train.formats.record import Picture, picture_source
from train.ui import texts
from train.ui.data_upload import Preview

if TYPE_CHECKING:
    from train.formats.dataset import Record

_TURN_CHARACTERS = 220
_THUMBNAIL_PIXELS = 96
_LISTED_FAULTS = 5
FEW_RECORDS = 20  # below it the preview says what to expect


def preview_html(preview: Preview) -> str:
    report, data = preview.report, preview.data
    notes = [texts.LENGTHS.format(report.median, report.longest)]
    if report.truncated:
        notes.append(texts.truncated(report.truncated, report.answerless, report.max_length))
    if preview.usable < FEW_RECORDS:
        notes.append(texts.FEW_RECORDS.format(preview.usable))
    faults = [report.broken, *([report.missing, report.unreadable] if data.pictures else [])]
    count, listed = sum(kind.count for kind in faults), [fault for kind in faults for fault in kind.first]
    skipped = _skipped_html(texts.BROKEN.format(count), count, listed)
    bare = report.uncaptioned
    skipped += _skipped_html(texts.uncaptioned(bare.count), bare.count, list(bare.first))
    head = texts.records(report.records, texts.PICTURES if data.pictures else texts.TEXTS, data.name)
    body = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    cards = "".join(_record_html(record) for record in preview.first_records)
    return (
        f'<div class="data-preview"><p class="head">{html.escape(head)}</p>{skipped}{body}'
        f'<ol class="records">{cards}</ol></div>'
    )


def notice_html(text: str, kind: str = "empty") -> str:
    """In place of a preview or a run. kind: "empty", or "error"."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<div class="data-preview {kind}"{role}><p>{html.escape(text)}</p></div>'


def _skipped_html(summary: str, count: int, faults: list[str]) -> str:
    if not count:
        return ""
    listed = faults[:_LISTED_FAULTS]
    if count > len(listed):
        listed.append(texts.MORE.format(count - len(listed)))
    items = "".join(f"<li>{html.escape(fault)}</li>" for fault in listed)
    return (
        f"<details open><summary>{html.escape(summary)}</summary>"
        f"<p>{html.escape(texts.SKIPPED)}</p><ul>{items}</ul></details>"
    )


def _record_html(record: Record) -> str:
    *earlier, answer = record.messages
    request = next((turn.full_text for turn in reversed(earlier) if turn.role == "user"), "")
    picture = _thumbnail(record.image) if record.image is not None else ""
    turns = (
        ("request", texts.REQUEST, ellipsize(request, _TURN_CHARACTERS)),
        ("answer", texts.ANSWER, ellipsize(answer.text, _TURN_CHARACTERS) or texts.NO_ANSWER),
    )
    body = "".join(
        f'<p class="{kind}"><span class="screen-reader-only">{label}: </span>{html.escape(text)}</p>'
        for kind, label, text in turns
    )
    return f"<li>{picture}<div>{body}</div></li>"


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
