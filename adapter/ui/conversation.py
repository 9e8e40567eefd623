"""The page's conversation as plain data: the Chatbot's message dictionaries to engine messages and back.

Knows the shape of Gradio's messages; imports neither Gradio nor a model. A turn is one picture message (if
there is one), one text message, then the answer and a muted line about it. The picture has a message of its
own because the Chatbot's edit replaces the whole content of the message that is edited.
"""

from __future__ import annotations

import html
import mimetypes
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adapter.base.template import Message
from adapter.serve.transcript import join
from adapter.ui.texts import page as texts

Entry = dict[str, Any]
History = list[Entry]

# metadata.id of messages that belong to the page: shown, but never part of what the model reads.
STATS, NOTE, OFFER, DIVIDER = "stats", "note", "offer", "divider"


def user_turn(text: str, picture: str | None = None) -> History:
    """The messages of one user turn; picture: path of a file that Gradio may serve."""
    entries = [] if picture is None else [_entry("user", _file(picture))]
    return [*entries, _entry("user", _text(text))]


def answer(text: str) -> Entry:
    return _entry("assistant", _text(text))


def note(text: str, *, waiting: bool = False) -> Entry:
    """Something the page says in the answer's place; plain text. waiting: an answer is still to come."""
    entry = _entry("assistant", _text(_muted(text, "note waiting" if waiting else "note")), NOTE)
    return _unfinished(entry) if waiting else entry


def stats(line: str, *, live: bool = False, record: str = "") -> Entry:
    """The line about an answer; live: there is more of the answer to come.

    record: how the answer came about, see record.py. It travels with the conversation, in a field of the message
    that Gradio keeps and does not show.
    """
    entry = _entry("assistant", _text(_muted(line, "stats")), STATS)
    if record:
        entry["metadata"]["log"] = record
    return _unfinished(entry) if live else entry


def offer(text: str, choices: Iterable[tuple[str, str]]) -> Entry:
    """A question of the page with buttons; choices: (label, value) pairs."""
    options = [{"label": label, "value": value} for label, value in choices]
    return {**_entry("assistant", _text(_muted(text, "offer")), OFFER), "options": options}


def divider(text: str) -> Entry:
    """Where another adapter takes over; text: its name."""
    return _entry("assistant", _text(_muted(text, "divider")), DIVIDER)


def stats_line(
    adapter: str | None,
    strength: float,
    tokens: int,
    tokens_per_s: float | None,
    notes: Sequence[str] = (),
    mix: Sequence[tuple[str, float]] = (),
) -> str:
    """`adapter · strength · tokens · tokens/s`; without an adapter there is no strength to name.

    mix: what is added to the adapter, with its strengths.
    """
    parts = [texts.BASE_NAME] if adapter is None else [adapter, texts.strength(strength)]
    parts += [texts.with_another(name, added) for name, added in mix]
    parts.append(texts.tokens(tokens))
    if tokens_per_s is not None:
        parts.append(texts.rate(tokens_per_s))
    return " · ".join([*parts, *notes])


def to_messages(history: Sequence[Entry]) -> tuple[Message, ...]:
    """What the model reads: texts only, neighbours of one role joined, the page's own messages left out."""
    return join((entry["role"], words(entry)) for entry in history if kind(entry) is None)


def latest_picture(history: Sequence[Entry]) -> str | None:
    """Path of the newest picture of the conversation: the one that a visual adapter looks at."""
    return next((path for entry in reversed(history) if (path := picture(entry))), None)


def with_picture(history: Sequence[Entry], path: str) -> History:
    """The entries with another picture in the place of each."""
    return [_entry("user", _file(path)) if picture(entry) else entry for entry in history]


class Turn(NamedTuple):
    """The last thing that the user sent: where it begins in the history, its text and its picture.

    A divider before it belongs to it.
    """

    start: int
    text: str
    picture: str | None


def last_turn(history: Sequence[Entry]) -> Turn | None:
    """The user turn that an answer, a retry or an undo is about; None in an empty conversation."""
    start = end = _last_of_user(history)
    if end < 0:
        return None
    seen = picture(history[end])
    if seen is None and end and (seen := picture(history[end - 1])):
        start = end - 1
    if start and kind(history[start - 1]) == DIVIDER:
        start -= 1
    return Turn(start, words(history[end]), seen)


def without_answer(history: Sequence[Entry]) -> History:
    """The history up to and with the last user turn: what a retry answers anew."""
    return list(history[: _last_of_user(history) + 1])


def stopped(
    history: Sequence[Entry], word: str = texts.ENDINGS["cancelled"][0], at_once: str = texts.STOPPED_AT_ONCE
) -> History:
    """The history after Stop: what is there stays and is marked. word, at_once: as what."""
    kept = list(history)
    while kept and kind(kept[-1]) == NOTE:
        kept.pop()
    if not kept:
        return kept
    if kind(kept[-1]) == STATS:
        last = kept.pop()
        return [*kept, stats(f"{plain(last)} · {word}", record=record_of(last))]
    return [*kept, note(at_once)] if kept[-1]["role"] == "user" else kept


class Answered(NamedTuple):
    """An answer of the conversation: the messages that it answers, the picture that counted, and its record."""

    messages: tuple[Message, ...]
    picture: str | None
    record: str


def newest_answer(history: Sequence[Entry]) -> Answered | None:
    """The last answer that has a record; None before the first one."""
    for index in range(len(history) - 1, 0, -1):
        if record := record_of(history[index]):
            before = history[: index - 1]  # the answer itself stands before the line about it
            return Answered(to_messages(before), latest_picture(before), record)
    return None


def awaits_answer(history: Sequence[Entry]) -> bool:
    """Whether the last user turn has no answer with a record."""
    return not any(map(record_of, history[_last_of_user(history) + 1 :]))


def pending_offer(history: Sequence[Entry]) -> bool:
    return bool(history) and kind(history[-1]) == OFFER


def being_answered(history: Sequence[Entry]) -> bool:
    """Whether the history was taken in the middle of an answer."""
    return bool(history) and (history[-1].get("metadata") or {}).get("status") == "pending"


def _unfinished(entry: Entry) -> Entry:
    return {**entry, "metadata": {**entry["metadata"], "status": "pending"}}


def _entry(role: str, block: dict[str, Any], kind: str | None = None) -> Entry:
    return {"role": role, "content": [block], "metadata": {"id": kind} if kind else {}, "options": []}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _file(path: str) -> dict[str, Any]:
    name = Path(path).name
    file = {
        "path": path,
        "orig_name": name,
        "mime_type": mimetypes.guess_type(name)[0] or "image/png",
        "meta": {"_type": "gradio.FileData"},
    }
    return {"type": "file", "file": file, "alt_text": name}


def _muted(text: str, css_class: str) -> str:
    # Escaped for HTML, and for Markdown, which would take the underscores of an adapter's name for emphasis.
    escaped = "".join(f"&#{ord(c)};" if c in "*_`~[]$\\|#&<>\"'" else c for c in text)
    return f'<span class="aside {css_class}">{escaped}</span>'


def kind(entry: Entry) -> str | None:
    """Which of the page's own messages this is; None for what somebody or a model said."""
    return (entry.get("metadata") or {}).get("id")


def plain(entry: Entry) -> str:
    """What one of the page's own messages says, as it was put in."""
    text = words(entry)
    return html.unescape(text[text.find(">") + 1 : text.rfind("<")])


def record_of(entry: Entry) -> str:
    """How an answer came about, from the line about it; empty for anything else."""
    record = (entry.get("metadata") or {}).get("log")
    return record if kind(entry) == STATS and isinstance(record, str) else ""


def _last_of_user(history: Sequence[Entry]) -> int:
    return next((i for i in range(len(history) - 1, -1, -1) if history[i]["role"] == "user"), -1)


def words(entry: Entry) -> str:
    return "\n".join(block["text"] for block in entry["content"] if block["type"] == "text")


def picture(entry: Entry) -> str | None:
    if entry["role"] != "user":
        return None
    return next((block["file"]["path"] for block in entry["content"] if block["type"] == "file"), None)
