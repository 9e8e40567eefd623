"""The preview of training data: what is in it, what is wrong with it, and the first records."""

from __future__ import annotations

import base64
import html
import io
import itertools
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from adapter.base.image_file import open_image
from adapter.errors import AdapterError, BadInput
from adapter.ui.theme import ellipsize
from train.formats.record import Picture, picture_source
from train.ui import texts
from train.ui.data_upload import TrainingData, readable

if TYPE_CHECKING:
    from train.formats.dataset import Record

MIN_RECORDS = 4
FEW_RECORDS = 20  # below it the preview says what to expect
MAX_LENGTH = 512  # tokens of a record, the default of TrainConfig
_SHOWN_RECORDS, _TURN_CHARACTERS, _THUMBNAIL_PIXELS, _LISTED_FAULTS = 6, 220, 96, 5


class Preview(NamedTuple):
    """template: to train with."""

    html: str
    template: str


def make_preview(data: TrainingData, base: str) -> Preview:
    """Reads all records once, as the trainer will. Raises BadInput if too few can be trained on."""
    from train.input.data_check import make_report
    from train.input.rows import Tokeniser

    tokenizer, template = _tokenizer(base)
    report = make_report(data.records, Tokeniser(tokenizer, template, MAX_LENGTH), MAX_LENGTH, data.pictures)
    faults = [report.broken, *([report.missing, report.unreadable] if data.pictures else [])]
    broken, listed = sum(map(len, faults)), [fault for kind in faults for fault in kind]
    usable, bare = max(report.records - report.answerless - broken, 0), report.uncaptioned
    notes = [texts.LENGTHS.format(report.percentile(50), report.percentile(100))]
    if report.truncated:
        notes.append(texts.truncated(report.truncated, report.answerless, report.max_length))
    if usable < MIN_RECORDS:
        reasons = [*listed[:1], *notes[1:], *([texts.uncaptioned(len(bare))] if bare else [])]
        raise BadInput(" ".join([texts.TOO_FEW.format(data.name, usable, MIN_RECORDS), *reasons]))
    if usable < FEW_RECORDS:
        notes.append(texts.FEW_RECORDS.format(usable))
    head = texts.records(report.records, texts.PICTURES if data.pictures else texts.TEXTS, data.name)
    body = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    cards = "".join(map(_record_html, itertools.islice(readable(data.records), _SHOWN_RECORDS)))
    shown = (
        f'<div class="data-preview"><p class="head">{html.escape(head)}</p>'
        + _skipped_html(texts.BROKEN.format(broken), broken, listed)
        + _skipped_html(texts.uncaptioned(len(bare)), len(bare), list(bare))
        + f'{body}<ol class="records">{cards}</ol></div>'
    )
    return Preview(shown, template)


@lru_cache(maxsize=2)
def _tokenizer(base: str) -> tuple[Any, str]:
    """The base's tokenizer and the template to train with. Raises LoadError."""
    from adapter.base.llama import load_tokenizer
    from adapter.base.template import default_template

    tokenizer = load_tokenizer(base)
    return tokenizer, default_template(tokenizer)


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
