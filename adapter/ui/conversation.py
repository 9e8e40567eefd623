"""The conversation as plain data. A picture is a message of its own, before its text, as in a file: the Chatbot's
edit replaces all of the message that is edited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

from pydantic import Field, Strict, TypeAdapter, ValidationError

from adapter.base.template import Message
from adapter.errors import BadInput
from adapter.serve.settings import Settings
from adapter.server import transcript
from adapter.ui.texts import page as texts

# Buttons below the newest answer. Their values begin with a space: adapters' names do not.
PREVIOUS, NEXT, CONTINUE, FILM = " previous", " next", " continue", " film"

MAX_HISTORY = 2_000_000  # characters, far more than a base reads


class Variant(NamedTuple):
    """One of the answers to a question: its text, the line about it, and its record as JSON without variants."""

    text: str
    about: str
    record: str


# Records come back from a browser: everything in them is checked.
_MAX_CHARACTERS = 100_000
_MAX_VARIANTS = 8
_Count = Annotated[int, Field(ge=0, le=2**31, strict=True)]
_Variants = Annotated[tuple[Variant, ...], Field(max_length=_MAX_VARIANTS)]


@dataclass(frozen=True)
class AnswerRecord:
    """How an answer was generated. settings: with the seed that was used; picture: whether the adapter saw one.
    token_ids: none in a link. cut: whether it ended before the model ended it. context_tokens: up to its end, of
    context_length that the base reads; 0 where that is unknown. before, after: its variants.
    """

    settings: Settings
    token_ids: tuple[_Count, ...] = ()
    picture: Annotated[bool, Strict()] = False
    cut: bool = False
    context_tokens: _Count = 0
    context_length: _Count = 0
    before: _Variants = ()
    after: _Variants = ()

    def to_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "settings" and value}
        return {**self.settings.model_dump(), "picture": False, **own}

    def fitted(self) -> AnswerRecord:
        """Returns the record without the oldest variants that a file has no room for."""
        many = len(self.before) >= _MAX_VARIANTS
        if self.before and (many or len(json.dumps(self.to_dict())) > _MAX_CHARACTERS):
            return replace(self, before=self.before[1:]).fitted()
        return self


_RECORD = TypeAdapter(AnswerRecord)


def read_record(fields: Any) -> AnswerRecord | None:
    """The record in an object of a file; None for anything else."""
    if not isinstance(fields, Mapping) or fields.get("seed") is None:
        return None
    try:
        return _RECORD.validate_python({**fields, "settings": Settings.checked(fields)})
    except (BadInput, ValidationError):
        return None


@dataclass(frozen=True)
class Entry:
    """A message: a text, or a picture of the user. role: of transcript.py; picture: path of a file that Gradio may
    serve; about: the line below an answer; record: of the answer, or of the one that is waited for; xray: what the
    frozen base gives its tokens, for xray.js; pending: whether an answer is still being written or waited for;
    options: (label, value) of the buttons below a question of the page.
    """

    role: str
    text: str = ""
    picture: str | None = None
    about: str = ""
    record: AnswerRecord | None = None
    xray: str = ""
    pending: bool = False
    options: tuple[tuple[str, str], ...] = ()


History = list[Entry]


def user_turn(text: str, picture: str | None = None) -> History:
    """The messages of one user turn; picture: path of a file that Gradio may serve."""
    return [*([Entry("user", picture=picture)] if picture else []), Entry("user", text)]


def size_of(history: Sequence[Entry]) -> int:
    """Characters that a history takes, about."""
    size = 0
    for entry in history:
        size += 300 + len(entry.text) + len(entry.about) + len(entry.xray)
        if (record := entry.record) is not None:
            others = (*record.before, *record.after)
            size += 500 + 8 * len(record.token_ids) + sum(len(one.text) + len(one.record) for one in others)
    return size


class UserTurn(NamedTuple):
    """A user turn: where it begins in the history, its text and its picture."""

    start: int
    text: str
    picture: str | None


class RecordedAnswer(NamedTuple):
    """An answer that has a record: the messages it answers, the picture in effect, its text and the record."""

    messages: tuple[Message, ...]
    picture: str | None
    text: str
    record: AnswerRecord


def to_messages(history: Sequence[Entry]) -> tuple[Message, ...]:
    """The messages for the model: texts only, adjacent ones of one speaker joined, those by the page left out. An
    answer has the name of who gave it if it has a record: one without is the visitor's.
    """
    return transcript.merge_turns(
        (entry.role, entry.text, entry.record.settings.answerer if entry.record else None) for entry in history
    )


def picture_index(history: Sequence[Entry]) -> int:
    """Where the newest picture is, or the remark in the place of one that is lost; -1 for none."""
    lost = (transcript.PICTURE_NOT_KEPT, texts.PICTURE_NOT_SENT)
    return max((i for i, entry in enumerate(history) if entry.picture or entry.text in lost), default=-1)


def latest_picture(history: Sequence[Entry]) -> str | None:
    """Path of the newest picture of the conversation, the one that a visual adapter sees."""
    return history[index].picture if (index := picture_index(history)) >= 0 else None


def last_turn(history: Sequence[Entry]) -> UserTurn | None:
    """The user turn that an answer, a retry or an undo applies to; None in an empty conversation."""
    start = end = _last_user_index(history)
    if end < 0:
        return None
    picture = history[end].picture
    if picture is None and end and (picture := history[end - 1].picture):
        start = end - 1
    return UserTurn(start, history[end].text, picture)


def newest_recorded_answer(history: Sequence[Entry]) -> RecordedAnswer | None:
    """Returns the newest answer; None if it has no record, even if older ones have one."""
    for index in range(len(history) - 1, -1, -1):
        entry, before = history[index], history[:index]
        if entry.record is not None:
            return RecordedAnswer(to_messages(before), latest_picture(before), entry.text, entry.record)
        if entry.role == "assistant" or entry.about:
            return None
    return None


def is_streaming(history: Sequence[Entry]) -> bool:
    """Whether the history was taken while an answer was being written."""
    return bool(history) and history[-1].pending


def _last_user_index(history: Sequence[Entry]) -> int:
    return next((i for i in range(len(history) - 1, -1, -1) if history[i].role == "user"), -1)


def dividers(history: Sequence[Entry]) -> dict[int, str]:
    """Lines above turns whose adapters are not those of the recorded answer before, by where these turns begin."""
    lines: dict[int, str] = {}
    start, before = 0, None
    for index, entry in enumerate(history):
        if entry.role == "user" and not (index and history[index - 1].role == "user"):
            start = index
        if entry.record is not None:
            settings = entry.record.settings
            if before is not None and settings.adapters != before:
                name = " + ".join(settings.adapters) or texts.BASE_NAME
                lines[start] = texts.reads_of_others(name, settings.others)
            before = settings.adapters
    return lines


def without_last_answer(history: Sequence[Entry]) -> History:
    """The history up to and including the last user turn."""
    return list(history[: _last_user_index(history) + 1])


def ended(history: History) -> History:
    """The history with an answer that was still being written marked as cut off; else the history itself."""
    if not is_streaming(history):
        return history
    *before, last = history
    if last.role == "assistant":
        return [*before, replace(last, about=f"{last.about} · {texts.CUT_OFF}", pending=False)]
    return [*before, Entry("page", texts.CUT_OFF_BEFORE_TEXT)]


def last_record(history: Sequence[Entry]) -> AnswerRecord | None:
    """The record of the message that the history ends with, if that is a whole answer."""
    last = history[-1] if history else Entry("page")
    record = None if last.pending or last.role == "page" else last.record
    return record if record is not None and record.token_ids else None


def variants(history: Sequence[Entry]) -> tuple[Variant, ...]:
    """All answers to the last question, the one that is shown among them; empty if it has no record."""
    if (record := last_record(history)) is None:
        return ()
    alone = json.dumps(replace(record, before=(), after=()).to_dict())
    return (*record.before, Variant(history[-1].text, history[-1].about, alone), *record.after)


def with_variant(history: Sequence[Entry], step: int) -> History:
    """The history with the next or previous of the variants of its last answer in place of that."""
    found, record = variants(history), last_record(history)
    index = (len(record.before) + step) % len(found) if record is not None else 0
    try:
        text, about, kept = found[index]
        chosen = read_record(json.loads(kept))
    except (LookupError, ValueError, RecursionError):
        chosen = None
    if chosen is None:
        return list(history)
    chosen = replace(chosen, before=found[:index], after=found[index + 1 :])
    return [*history[:-1], Entry("assistant", text, about=about, record=chosen)]


def buttons(history: Sequence[Entry]) -> tuple[tuple[str, str], ...]:
    """(label, value) of the buttons below the last message."""
    if (record := last_record(history)) is None:
        return history[-1].options if history else ()
    has_room = not record.context_length or record.context_tokens < record.context_length
    found = [(texts.CONTINUE, CONTINUE)] if record.cut and has_room else []
    if count := len(record.before) + len(record.after):
        place = f"{len(record.before) + 1}/{count + 1}"
        found = [("‹", PREVIOUS), (place, NEXT), ("›", NEXT), *found]
    can_be_shown = record.settings.adapter and not (record.picture and latest_picture(history) is None)
    return (*found, *([(texts.FILM_BUTTON, FILM)] if can_be_shown else []))
