"""The data that a visitor chose for training: an upload or a sample, opened, checked and previewed."""

import contextlib
import html
import io
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapter.base.image_file import open_image
from adapter.base.template import default_template
from adapter.errors import AdapterError, BadInput
from adapter.server.archive import PICTURES, TABLES, unpack
from adapter.server.generation import import_libraries
from adapter.ui.images import data_url
from adapter.ui.theme import ellipsize
from train.formats import sources
from train.formats.dataset import Record, Records, open_records
from train.formats.record import picture_source
from train.ui import texts
from train.ui.plan import SAMPLES

MAX_FILE_BYTES = 40 * 2**20
MAX_RECORDS = 20_000
UPLOADS = [".jsonl", ".json", ".tsv", ".csv", ".zip"]
_NO_LIMIT = "Train on a part of it, or on the command line, where there is no limit."
MIN_RECORDS = 4
FEW_RECORDS = 20  # below it the preview says what to expect
MAX_LENGTH = 512  # tokens of a record, the default of TrainConfig
_SHOWN_RECORDS, _TURN_CHARACTERS, _THUMBNAIL_PIXELS = 6, 220, 96


@dataclass(frozen=True)
class TrainingData:
    """Opened data. path: read by the trainer; name: of the file; pictures: whether records have images."""

    path: Path
    name: str
    records: Records
    pictures: bool


def open_data(file: Path, folder: Path) -> TrainingData:
    """Opens a bundled sample where it is. Of an upload a copy, unpacked if it is a zip, in the empty `folder`.

    Raises BadInput or DataError; broken records are reported by the preview.
    """
    path, suffix = file, file.suffix.lower()
    if file.is_relative_to(SAMPLES):
        folder = file if file.is_dir() else file.parent
    elif not file.is_file():
        raise BadInput("The uploaded file is no longer on the server. Send it again.")
    elif (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise BadInput(
            f"'{file.name}' has {size / 2**20:.0f} MB; {MAX_FILE_BYTES // 2**20} MB are the limit. {_NO_LIMIT}"
        )
    elif suffix == ".zip":
        unpack(file, folder)
        path = _data_in_zip(folder)
    elif suffix not in TABLES:
        raise BadInput(f"'{file.name}' is none of {', '.join(TABLES)} or .zip. Save it as one of them.")
    else:
        path = folder / file.name
        try:
            shutil.copyfile(file, path)
        except OSError as error:
            raise BadInput(f"'{file.name}' cannot be copied: is the disk full? Try again.", str(error)) from error
    records = open_records(path, most=MAX_RECORDS + 1)
    if len(records) > MAX_RECORDS:
        raise BadInput(f"'{file.name}' has more than {MAX_RECORDS:,} records, the limit here. {_NO_LIMIT}")
    pictures = sum(_is_pictured(record, folder.resolve()) for record in readable(records)) > 0  # each is checked
    if pictures and path != file and suffix != ".zip":
        raise BadInput(
            f"'{file.name}' names pictures that did not come with it. Put it and the pictures into one zip "
            f"({', '.join(PICTURES[:3])} and more) and send that."
        )
    return TrainingData(path, file.name, records, pictures)


def _data_in_zip(folder: Path) -> Path:
    """The data in an unpacked zip: a folder of images with captions, or the only table of records."""
    entries = sorted(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir():  # a zip of a folder holds that folder
        return _data_in_zip(entries[0])
    if (folder / "problems.json").is_file() or sources.caption_file(folder) or sources.captioned(folder)[0]:
        return folder
    tables = [path for path in entries if path.suffix.lower() in TABLES]
    if len(tables) != 1:
        raise BadInput(
            "The zip holds no captions, and no single list of records. Put NAME.txt beside each NAME.jpg, or a "
            "captions.tsv or metadata.jsonl in it."
        )
    return tables[0]


def readable(records: Records) -> Iterator[Record]:
    """The records without those that are broken."""
    for i in range(len(records)):
        with contextlib.suppress(AdapterError):
            yield records[i]


def _is_pictured(record: Record, root: Path) -> bool:
    """Whether a record has a picture. Raises BadInput for one outside of `root`: a file of the server's own."""
    if not isinstance(record.image, Path):  # a picture within the data is within what was sent
        return record.image is not None
    try:
        inside = record.image.resolve().is_relative_to(root)
    except (OSError, ValueError, RuntimeError):  # a null character, a loop
        inside = False
    if not inside:
        raise BadInput(
            f"{record.where}: '{ascii(record.image.name[:60])[1:-1]}' is a picture outside of what was sent. "
            "Name pictures as they lie in the zip."
        )
    return True


def make_preview(data: TrainingData, base: str) -> tuple[str, str]:
    """HTML, and the template to train with. Raises BadInput if too few records can be trained on."""
    import_libraries()
    from train.input.data_check import make_report

    tokeniser = _tokeniser(base)
    report = make_report(data.records, tokeniser, MAX_LENGTH, data.pictures)
    faults = [*report.broken, *report.missing, *report.unreadable]
    usable = max(report.records - report.answerless - len(faults) - report.repeated, 0)
    if usable < MIN_RECORDS:
        raise BadInput(f"{texts.too_few(data.name, usable, MIN_RECORDS)}\n{report}")
    few = f"<p>{html.escape(texts.few_records(usable))}</p>" if usable < FEW_RECORDS else ""
    head = texts.records(report.records, texts.PICTURES if data.pictures else texts.TEXTS, data.name)
    cards = "".join(map(_record_html, itertools.islice(readable(data.records), _SHOWN_RECORDS)))
    is_open = "" if report.clean and not report.truncated + report.with_control + report.empty_answers else "open"
    return (
        f'<div class="data-preview"><p class="head">{html.escape(head)}</p>{few}'
        f"<details {is_open}><summary>{texts.CHECKED}</summary>"
        f'<p>{html.escape(str(report))}</p></details><ol class="records">{cards}</ol></div>'
    ), tokeniser.template


@lru_cache(maxsize=2)
def _tokeniser(base: str) -> Any:
    """The `Tokeniser` of a base, with the template to train with. Raises LoadError."""
    from adapter.base.llama import base_config, load_tokenizer
    from train.input.rows import Tokeniser

    tokenizer = load_tokenizer(base)
    return Tokeniser(tokenizer, default_template(tokenizer), MAX_LENGTH, vocab_size=base_config(base).vocab_size)


def notice_html(text: str, kind: str = "empty") -> str:
    """Returns a notice in place of a preview or a run. kind: "empty", or "error"."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<div class="data-preview {kind}"{role}><p>{html.escape(text)}</p></div>'


def _record_html(record: Record) -> str:
    """A picture as a data URL, so that no copy of it stays on the server."""
    *earlier, answer = record.messages
    requests = [ellipsize(turn.full_text, _TURN_CHARACTERS) for turn in earlier if turn.role == "user"]
    picture = ""
    if record.image is not None:
        try:
            image, data = open_image(picture_source(record.image)).copy(), io.BytesIO()
            image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
            image.save(data, "JPEG", quality=80)
            picture = f'<img alt="" src="{data_url(data.getvalue())}">'
        except AdapterError:
            picture = '<span class="no-picture"></span>'
    turns = (
        ("request", texts.REQUEST, " … ".join(requests[:1] + requests[1:][-1:])),
        ("answer", texts.ANSWER, ellipsize(answer.text, _TURN_CHARACTERS) or texts.NO_ANSWER),
    )
    body = "".join(
        f'<p class="{kind}"><span class="sr-only">{label}: </span>{html.escape(text)}</p>'
        for kind, label, text in turns
    )
    return f"<li>{picture}<div>{body}</div></li>"
