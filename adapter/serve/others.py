"""What a model reads of answers that others gave: long ones make an adapter lose its style, see docs/log.md."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby

from adapter.base.template import Message
from adapter.serve.settings import Others

_LONGEST = 400  # characters of a first sentence; a longer one is cut
# Full stops of all scripts; those of the second group end a sentence without a space after them.
_END = re.compile(r"(?:[.!?…؟۔।॥։።፧܀]+|(?:[。！？｡︒။។།]|．(?![\dA-Za-zＡ-ｚ]))+)[\"'”’»›)\]）」』*_`]*")
_UNSPACED = "。！？｡．︒။។།"
_LOOP = re.compile(r"(\b[^\W\d].{2,80}?)\1{2,}")  # a piece three times over, which a reading model copies
_ABBREVIATION = re.compile(
    r"mrs?|ms|dr|prof|st|sr|jr|vs|approx|ca|cf|inc|ltd|co|mt|jan|feb|aug|sept?|oct|nov|dec|bzw|vgl|sra|dra"
)
_BEFORE_NUMBER = re.compile(r"nos?|nr|fig|vol|pp?|art")
_LIST_MARK = re.compile(r"(?:[-*+•–]|\(?(?:\d{1,3}|[A-Za-z])[.)])[ \t]+")
_OPENS_BLOCK = re.compile(rf"{_LIST_MARK.pattern}|#{{1,6}} |>|\||```|~~~|[-*_]{{3,}}$")


def as_read(messages: Sequence[Message], own: Collection[str], others: Others) -> tuple[Message, ...]:
    """The conversation for a model whose names are `own`. Answers under these or without a name stay whole; others
    are cut to a first sentence, or with "nothing" dropped with their questions, and then joined where adjacent.
    """
    if others == "all" or all(_is_read(message, own) for message in messages):
        return tuple(messages)
    read: list[Message] = []
    for is_answer, group in groupby(messages, lambda message: message.role == "assistant"):
        turn = list(group)
        if is_answer and others == "nothing":
            turn = [message for message in turn if _is_read(message, own)]
            while not turn and read and read[-1].role == "user":
                read.pop()
        elif is_answer:
            turn = [m if _is_read(m, own) else replace(m, text=first_sentence(m.text)) for m in turn]
        if is_answer and len(turn) > 1:
            turn = [Message("assistant", "\n\n".join(message.text for message in turn))]
        read += turn
    return tuple(read)


def _is_read(message: Message, own: Collection[str]) -> bool:
    return message.role != "assistant" or message.name is None or message.name in own


def first_sentence(text: str) -> str:
    """The first sentence or the first line of a list, table or code; at most _LONGEST characters, no loops."""
    text = _LOOP.sub(r"\1", " ".join(_first_lines(text))[: 2 * _LONGEST])
    mark = _LIST_MARK.match(text)
    for end in _END.finditer(text, mark.end() if mark else 0):
        if text[0] not in "{[" and _ends_sentence(text, end):
            text = text[: end.end()]
            break
    if len(text) <= _LONGEST:
        return text
    cut = text[:_LONGEST]
    return f"{cut[: cut.rfind(' ', _LONGEST // 2)] if ' ' in cut[_LONGEST // 2 :] else cut}…"


def _first_lines(text: str) -> list[str]:
    """The lines of the first paragraph, which ends before a list, a heading or code."""
    found: list[str] = []
    in_code = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith(("```", "~~~")) and not found:
            in_code = True
            continue
        if not line and not found:
            continue
        if found and (not line or in_code or _OPENS_BLOCK.match(line) or _OPENS_BLOCK.match(found[0])):
            break
        found.append(line)
    return found


def _ends_sentence(text: str, end: re.Match[str]) -> bool:
    if end[0][0] in _UNSPACED or end.end() == len(text):
        return True
    following = text[end.end() :].lstrip()
    if not text[end.end()].isspace() or following[:1].islower():
        return False
    word = re.split(r"[\s(\"'“‘«]", text[: end.start()])[-1].lower()
    initials = re.fullmatch(r"(?:[^\W\d_]\.)*[^\W\d_]", word) and word != "i"
    counted = _BEFORE_NUMBER.fullmatch(word) and following[:1].isdigit()
    return end[0] != "." or not (initials or counted or _ABBREVIATION.fullmatch(word))
