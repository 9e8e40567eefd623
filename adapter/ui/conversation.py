"""The conversation as plain data: the Chatbot's message dictionaries, and what engine requests need of them.

A turn is one picture message (if there is one), one text message, then the answer and a statistics line about
it. The picture has a message of its own because the Chatbot's edit replaces the whole content of the message
that is edited.
"""

from __future__ import annotations

import html
import json
import mimetypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, Strict, TypeAdapter, ValidationError

from adapter.base.template import Message
from adapter.errors import BadInput
from adapter.serve.settings import Settings
from adapter.server import transcript
from adapter.ui.texts import page as texts

Entry = dict[str, Any]
History = list[Entry]

# metadata.id of the page's own messages, which are shown to the user and never sent to the model.
STATS, NOTE, OFFER, DIVIDER = "stats", "note", "offer", "divider"

# Buttons below the newest answer; no valid adapter names.
PREVIOUS, NEXT, CONTINUE, FILM = " previous", " next", " continue", " film"

MAX_HISTORY = 2_000_000  # characters, where a base reads some ten thousand tokens

# Construction of messages.


def user_turn(text: str, picture: str | None = None) -> History:
    """The messages of one user turn; picture: path of a file that Gradio may serve."""
    entries = [] if picture is None else [_entry("user", _file_block(picture))]
    return [*entries, _entry("user", _text_block(text))]


def answer(text: str, xray: str = "") -> Entry:
    """xray: what the frozen base gives its tokens, for xray.js. It is stored as a record is, see `stats`."""
    entry = _entry("assistant", _text_block(text))
    return {**entry, "metadata": {"log": xray}} if xray else entry


def note(text: str, *, waiting: bool = False) -> Entry:
    """The page's own message in place of an answer. text: plain text; waiting: an answer will replace it."""
    entry = _entry("assistant", _text_block(_page_html(text, "note waiting" if waiting else "note")), NOTE)
    return _mark_pending(entry) if waiting else entry


def stats(line: str, *, live: bool = False, record: str = "") -> Entry:
    """The statistics line below an answer; live: the answer is still being streamed.

    record: how the answer was generated, as AnswerRecord's JSON. It is stored in a field of the message that
    Gradio keeps and does not show.
    """
    entry = _entry("assistant", _text_block(_page_html(line, "stats")), STATS)
    if record:
        entry["metadata"]["log"] = record
    return _mark_pending(entry) if live else entry


def offer(text: str, choices: Iterable[tuple[str, str]]) -> Entry:
    """A question by the page, with buttons; choices: (label, value) pairs."""
    options = [{"label": label, "value": value} for label, value in choices]
    return {**_entry("assistant", _text_block(_page_html(text, "offer")), OFFER), "options": options}


def divider(text: str) -> Entry:
    """The line above a turn that another adapter answers."""
    return _entry("assistant", _text_block(_page_html(text, "divider")), DIVIDER)


def stats_line(settings: Settings, tokens: int, tokens_per_s: float | None, notes: Sequence[str] = ()) -> str:
    """`adapter · strength · tokens · tokens/s · notes`; the frozen base has no strength."""
    parts = [settings.adapter, texts.strength(settings.strength)] if settings.adapter else [texts.BASE_NAME]
    if settings.mix:
        parts.append(texts.mixed_in(settings.mix, settings.mix_strength))
    parts.append(texts.tokens(tokens))
    if tokens_per_s is not None:
        parts.append(texts.rate(tokens_per_s))
    return " · ".join([*parts, *notes])


def _entry(role: str, block: dict[str, Any], kind: str | None = None) -> Entry:
    return {"role": role, "content": [block], "metadata": {"id": kind} if kind else {}, "options": []}


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _file_block(path: str) -> dict[str, Any]:
    name = Path(path).name
    file = {
        "path": path,
        "orig_name": name,
        "mime_type": mimetypes.guess_type(name)[0] or "image/png",
        "meta": {"_type": "gradio.FileData"},
    }
    return {"type": "file", "file": file, "alt_text": name}


def _page_html(text: str, css_class: str) -> str:
    # Escaped for HTML, and for Markdown, which would read the underscores of an adapter's name as emphasis.
    escaped = "".join(f"&#{ord(c)};" if c in "*_`~[]$\\|#&<>\"'" else c for c in text)
    return f'<span class="aside {css_class}">{escaped}</span>'


def _mark_pending(entry: Entry) -> Entry:
    return {**entry, "metadata": {**entry["metadata"], "status": "pending"}}


# Reading one message.


def kind(entry: Entry) -> str | None:
    """STATS, NOTE or the like for the page's own message; None for one of the user or the model."""
    return (entry.get("metadata") or {}).get("id")


def is_answer(entry: Entry) -> bool:
    return entry["role"] == "assistant" and kind(entry) is None


def text_of(entry: Entry) -> str:
    return "\n".join(block["text"] for block in entry["content"] if block["type"] == "text")


def page_text(entry: Entry) -> str:
    """The plain text of one of the page's own messages."""
    text = text_of(entry)
    return html.unescape(text[text.find(">") + 1 : text.rfind("<")])


def picture_path(entry: Entry) -> str | None:
    if entry["role"] != "user":
        return None
    return next((block["file"]["path"] for block in entry["content"] if block["type"] == "file"), None)


def record_of(entry: Entry) -> str:
    """The record that a statistics line carries; empty for any other message."""
    record = (entry.get("metadata") or {}).get("log")
    return record if kind(entry) == STATS and isinstance(record, str) else ""


def xray_of(entry: Entry) -> str:
    """What `answer` stores with an answer."""
    return "" if kind(entry) else (entry.get("metadata") or {}).get("log") or ""


# Reading a history.


def size_of(history: Sequence[Entry]) -> int:
    """Characters that a history takes, about."""
    parts = (sum(len(block.get("text", "")) for block in entry["content"]) for entry in history)
    return sum(parts) + sum(len(entry["metadata"].get("log") or "") + 200 for entry in history)


def check_size(history: Sequence[Entry]) -> None:
    """Raises BadInput for a history too large to go on with: a page that opens it is sent all of it."""
    if size_of(history) > MAX_HISTORY:
        raise BadInput(texts.TOO_LONG_TO_GO_ON)


class UserTurn(NamedTuple):
    """A user turn: where it begins in the history, its text and its picture. It includes the lines above it."""

    start: int
    text: str
    picture: str | None


class RecordedAnswer(NamedTuple):
    """An answer that has a record: the messages it answers, the picture in effect, and the record."""

    messages: tuple[Message, ...]
    picture: str | None
    record: str


class Variant(NamedTuple):
    """One of the answers to a question: its text, its statistics line, and its record without other variants."""

    text: str
    about: str
    record: str


def to_messages(history: Sequence[Entry]) -> tuple[Message, ...]:
    """The messages for the model: texts only, adjacent ones of one speaker joined, those by the page left out.

    An answer has the name of who gave it if it has a record: one without is the visitor's, or of an early version.
    """

    def name(index: int) -> str | None:
        settings = parse_settings(record_of(history[index])) if index < len(history) else None
        return settings.answerer if settings else None

    return transcript.merge_turns(
        (entry["role"], text_of(entry), name(index))
        for index, entry in enumerate(history, start=1)
        if kind(entry) is None
    )


def latest_picture(history: Sequence[Entry]) -> str | None:
    """Path of the newest picture of the conversation, the one that a visual adapter sees."""
    return next((path for entry in reversed(history) if (path := picture_path(entry))), None)


def last_turn(history: Sequence[Entry]) -> UserTurn | None:
    """The user turn that an answer, a retry or an undo applies to; None in an empty conversation."""
    start = end = _last_user_index(history)
    if end < 0:
        return None
    picture = picture_path(history[end])
    if picture is None and end and (picture := picture_path(history[end - 1])):
        start = end - 1
    while start and kind(history[start - 1]) == DIVIDER:
        start -= 1
    return UserTurn(start, text_of(history[end]), picture)


def last_recorded_answer(history: Sequence[Entry]) -> RecordedAnswer | None:
    for index in range(len(history) - 1, 0, -1):
        if record := record_of(history[index]):
            before = history[: index - 1]  # the answer itself stands before its statistics line
            return RecordedAnswer(to_messages(before), latest_picture(before), record)
    return None


def last_turn_is_unanswered(history: Sequence[Entry]) -> bool:
    """Whether the last user turn has no answer with a record."""
    return not any(map(record_of, history[_last_user_index(history) + 1 :]))


def ends_with_options(history: Sequence[Entry]) -> bool:
    return bool(history) and bool(history[-1].get("options"))


def is_streaming(history: Sequence[Entry]) -> bool:
    """Whether the history was taken while an answer was being written."""
    return bool(history) and (history[-1].get("metadata") or {}).get("status") == "pending"


def _last_user_index(history: Sequence[Entry]) -> int:
    return next((i for i in range(len(history) - 1, -1, -1) if history[i]["role"] == "user"), -1)


# Changed histories.


def without_last_answer(history: Sequence[Entry]) -> History:
    """The history up to and including the last user turn."""
    return list(history[: _last_user_index(history) + 1])


def replace_pictures(history: Sequence[Entry], path: str) -> History:
    """The history with every picture replaced by the one at `path`."""
    return [_entry("user", _file_block(path)) if picture_path(entry) else entry for entry in history]


def with_correction(history: Sequence[Entry], index: int, text: str) -> History:
    """The history with the visitor's words in place of the answer at `index`, which has no record any more."""
    corrected = [*history[:index], answer(text), *history[index + 1 :]]
    if index + 1 < len(history) and kind(history[index + 1]) == STATS:
        corrected[index + 1] = stats(texts.YOUR_WORDS)
    return corrected


def mark_stopped(
    history: Sequence[Entry],
    remark: str = texts.ENDINGS["cancelled"][0],
    remark_without_text: str = texts.STOPPED_BEFORE_TEXT,
) -> History:
    """The history of an answer that was cut off: its text stays, and its statistics line gets a remark."""
    shortened = list(history)
    while shortened and kind(shortened[-1]) == NOTE:
        shortened.pop()
    if not shortened:
        return shortened
    if kind(shortened[-1]) == STATS:
        last = shortened.pop()
        return [*shortened, stats(f"{page_text(last)} · {remark}", record=record_of(last))]
    return [*shortened, note(remark_without_text)] if shortened[-1]["role"] == "user" else shortened


def ended(history: History) -> History:
    """The history of an answer that has ended, maybe by an error that no page has seen."""
    return mark_stopped(history, texts.CUT_OFF, texts.CUT_OFF_BEFORE_TEXT) if is_streaming(history) else history


def with_dividers(history: Sequence[Entry], settings: Settings | None = None) -> History:
    """The history with a divider above each turn whose adapters differ from those of the answer before it.

    Replaces earlier dividers. settings: those of the answer that the last turn will get. An answer without a
    record is taken to be by the same adapters as the one before it.
    """
    divided: History = []
    turn_start = 0
    before: tuple[str, ...] | None = None

    def insert_divider(now: Settings) -> None:
        nonlocal before
        if before is not None and now.adapters != before:
            name = " + ".join(now.adapters) or texts.BASE_NAME
            divided.insert(turn_start, divider(texts.reads_of_others(name, now.others)))
        before = now.adapters

    for entry in history:
        if kind(entry) == DIVIDER:
            continue
        if entry["role"] == "user" and not (divided and divided[-1]["role"] == "user"):
            turn_start = len(divided)
        divided.append(entry)
        if (record := record_of(entry)) and (answered := parse_settings(record)):
            insert_divider(answered)
    if settings is not None:
        insert_divider(settings)
    return divided


def variants(history: Sequence[Entry]) -> tuple[Variant, ...]:
    """All answers to the last question, the one that is shown among them; empty if it has no record."""
    record = last_record(history)
    if record is None or len(history) < 2:
        return ()
    alone = replace(record, before=(), after=()).to_json()
    return (*record.before, Variant(text_of(history[-2]), page_text(history[-1]), alone), *record.after)


def with_variant(history: Sequence[Entry], step: int) -> History:
    """The history with the next or previous of the variants of its last answer in place of that."""
    found, record = variants(history), last_record(history)
    index = (len(record.before) + step) % len(found) if record is not None and found else 0
    chosen = parse_record(found[index].record) if len(found) > 1 else None
    if chosen is None:
        return list(history)
    line = replace(chosen, before=found[:index], after=found[index + 1 :]).to_json()
    shown = [answer(found[index].text), stats(found[index].about, record=line)]
    return with_dividers([*history[:-2], *shown])


def last_record(history: Sequence[Entry]) -> AnswerRecord | None:
    """The record of the message that the history ends with, if that is a whole answer's line."""
    return parse_record(record_of(history[-1])) if history and not is_streaming(history) else None


def with_buttons(history: History) -> History:
    """The history with those buttons below its last answer that follow from its record."""
    record = last_record(history)
    if record is None:
        return history
    buttons = [(texts.CONTINUE, CONTINUE)] if record.cut else []
    if count := len(record.before) + len(record.after):
        place = f"{len(record.before) + 1}/{count + 1}"
        buttons = [("‹", PREVIOUS), (place, NEXT), ("›", NEXT), *buttons]
    if record.settings.adapter:
        buttons.append((texts.FILM_BUTTON, FILM))
    own = (PREVIOUS, NEXT, CONTINUE, FILM)
    others = [option for option in history[-1].get("options") or () if option["value"] not in own]
    options = [*({"label": label, "value": value} for label, value in buttons), *others]
    return [*history[:-1], {**history[-1], "options": options}]


# Records: how an answer was generated. They come back from a browser, so everything in them is checked.

# Of the settings, what records have always had; the later ones have their defaults where they are missing.
_OLDEST_FIELDS = {"adapter", "strength", "temperature", "top_p", "max_tokens", "seed"}
_MAX_CHARACTERS = 100_000
_MAX_VARIANTS = 8
_Count = Annotated[int, Field(ge=0, strict=True)]
_Variants = Annotated[tuple[Variant, ...], Field(max_length=_MAX_VARIANTS)]


@dataclass(frozen=True)
class AnswerRecord:
    """settings: those of the answer, with the seed that was used; picture: whether the adapter saw a picture.

    cut: whether it ended before the model ended it. context_tokens: of the conversation up to its end, of
    context_length that the base reads; 0 where that is unknown. before, after: its variants.
    """

    settings: Settings
    token_ids: Annotated[tuple[_Count, ...], Field(max_length=4096)]
    picture: Annotated[bool, Strict()]
    cut: bool = False
    context_tokens: _Count = 0
    context_length: _Count = 0
    before: _Variants = ()
    after: _Variants = ()

    def to_json(self) -> str:
        fields = {"token_ids": self.token_ids, "picture": self.picture}
        fields |= {name: value for name, value in vars(self).items() if name != "settings" and value}
        text = json.dumps({**self.settings.model_dump(), **fields})
        if self.before and (len(text) > _MAX_CHARACTERS or len(self.before) >= _MAX_VARIANTS):
            return replace(self, before=self.before[1:]).to_json()
        return text


_RECORD = TypeAdapter(AnswerRecord)


def settings_json(settings: Settings) -> str:
    """A record without tokens: of an answer that is still being streamed, or in a link."""
    return settings.model_dump_json()


def parse_record(text: str) -> AnswerRecord | None:
    """The record in a text; None for anything else."""
    if (settings := parse_settings(text)) is None:
        return None
    try:
        return _RECORD.validate_python({**_parse_fields(text), "settings": settings})
    except ValidationError:
        return None


def parse_settings(text: str) -> Settings | None:
    """The settings in a record with or without tokens; None for anything else."""
    fields = _parse_fields(text)
    if not fields.keys() >= _OLDEST_FIELDS or fields["seed"] is None:
        return None
    try:
        # Records by earlier versions have 0 where the time limit ended an answer before its first token.
        # They were given after everything that others had answered.
        return Settings.checked({"others": "all", **fields, "max_tokens": fields["max_tokens"] or 1})
    except BadInput:
        return None


def _parse_fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text) if len(text) <= _MAX_CHARACTERS else None
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
