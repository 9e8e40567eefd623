"""Where another adapter takes over in a conversation: lines between its turns, always worked out anew.

Knows conversations and records; knows no components.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapter.serve.settings import Settings
from adapter.ui import conversation as talk
from adapter.ui.answer_record import read_settings
from adapter.ui.conversation import Entry, History
from adapter.ui.texts import page as texts

Answerer = tuple[str, ...]  # the adapters that answer together, none for the base


def answerer(settings: Settings) -> Answerer:
    return settings.adapters


def divided(history: Sequence[Entry], settings: Settings | None = None) -> History:
    """The history with a divider before each turn that another adapter answers than the one before it.

    settings: of the answer that the last turn is about to get. An answer without a record changes nothing.
    """
    found: History = []
    start = 0  # of the turn that an answer belongs to
    before: Answerer | None = None

    def take_over(now: Answerer) -> None:
        nonlocal before
        if before is not None and now != before:
            found.insert(start, talk.divider(" + ".join(now) or texts.BASE_NAME))
        before = now

    for entry in history:
        if talk.kind(entry) == talk.DIVIDER:
            continue
        if entry["role"] == "user" and not (found and found[-1]["role"] == "user"):
            start = len(found)
        found.append(entry)
        if (record := talk.record_of(entry)) and (answered := read_settings(record)):
            take_over(answerer(answered))
    if settings is not None:
        take_over(answerer(settings))
    return found
