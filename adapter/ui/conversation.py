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

from adapter.chat import Message

Entry = dict[str, Any]
History = list[Entry]

# metadata.id of messages that belong to the page: shown, but never part of what the model reads.
STATS, NOTE, OFFER = "stats", "note", "offer"


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
    parts = ["frozen base"] if adapter is None else [adapter, f"strength {strength:g}"]
    parts += [f"with {name} at {added:g}" for name, added in mix]
    parts.append("1 token" if tokens == 1 else f"{tokens} tokens")
    if tokens_per_s is not None:
        parts.append(f"{tokens_per_s:.1f} tokens/s" if tokens_per_s < 10 else f"{tokens_per_s:.0f} tokens/s")
    return " · ".join([*parts, *notes])


def to_messages(history: Sequence[Entry]) -> tuple[Message, ...]:
    """What the model reads: texts only, neighbours of one role joined, the page's own messages left out."""
    joined: list[Message] = []
    for entry in history:
        text = _entry_text(entry)
        if entry["role"] not in ("user", "assistant") or _kind(entry) is not None or not text.strip():
            continue
        if joined and joined[-1].role == entry["role"]:
            text = f"{joined.pop().text}\n\n{text}"
        joined.append(Message(entry["role"], text))
    return tuple(joined)


def latest_picture(history: Sequence[Entry]) -> str | None:
    """Path of the newest picture of the conversation: the one that a visual adapter looks at."""
    return next((path for entry in reversed(history) if (path := _picture(entry))), None)


class Turn(NamedTuple):
    """The last thing that the user sent: where it begins in the history, its text and its picture."""

    start: int
    text: str
    picture: str | None


def last_turn(history: Sequence[Entry]) -> Turn | None:
    """The user turn that an answer, a retry or an undo is about; None in an empty conversation."""
    end = next((i for i in range(len(history) - 1, -1, -1) if history[i]["role"] == "user"), None)
    if end is None:
        return None
    if _picture(history[end]):
        return Turn(end, "", _picture(history[end]))
    if end and history[end - 1]["role"] == "user" and _picture(history[end - 1]):
        return Turn(end - 1, _entry_text(history[end]), _picture(history[end - 1]))
    return Turn(end, _entry_text(history[end]), None)


def without_answer(history: Sequence[Entry]) -> History:
    """The history up to and with the last user turn: what a retry answers anew."""
    end = next((i for i in range(len(history) - 1, -1, -1) if history[i]["role"] == "user"), -1)
    return list(history[: end + 1])


def stopped(history: Sequence[Entry]) -> History:
    """The history after Stop: what is there stays and is marked as cut off."""
    kept = list(history)
    while kept and _kind(kept[-1]) == NOTE:
        kept.pop()
    if not kept:
        return kept
    if _kind(kept[-1]) == STATS:
        line = html.unescape(_strip_tags(_entry_text(kept.pop())))
        return [*kept, stats(f"{line} · stopped")]
    return [*kept, note("Stopped before the first word.")] if kept[-1]["role"] == "user" else kept


class Answered(NamedTuple):
    """An answer of the conversation: the messages that it answers, the picture that counted, and its record."""

    messages: tuple[Message, ...]
    picture: str | None
    record: str


def newest_answer(history: Sequence[Entry]) -> Answered | None:
    """The last answer that has a record; None before the first one."""
    for index in range(len(history) - 1, 0, -1):
        record = (history[index].get("metadata") or {}).get("log")
        if _kind(history[index]) == STATS and isinstance(record, str) and record:
            before = history[: index - 1]  # the answer itself stands before the line about it
            return Answered(to_messages(before), latest_picture(before), record)
    return None


def pending_offer(history: Sequence[Entry]) -> bool:
    return bool(history) and _kind(history[-1]) == OFFER


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
    escaped = "".join(f"&#{ord(c)};" if c in "*_`~[]$\\|#" else c for c in html.escape(text))
    return f'<span class="aside {css_class}">{escaped}</span>'


def _strip_tags(text: str) -> str:
    return text[text.find(">") + 1 : text.rfind("<")]


def _kind(entry: Entry) -> str | None:
    return (entry.get("metadata") or {}).get("id")


def _entry_text(entry: Entry) -> str:
    return "\n".join(block["text"] for block in entry["content"] if block["type"] == "text")


def _picture(entry: Entry) -> str | None:
    if entry["role"] != "user":
        return None
    return next((block["file"]["path"] for block in entry["content"] if block["type"] == "file"), None)
