"""Every English word of the page, in one place: a translation is another module of the same names.

Plain texts and functions that put values into one. Knows no components. Errors of the library come with their own
sentences (adapter.errors); what the page says about itself stands here.
"""

from __future__ import annotations

# The top, and the tabs.
TITLE = "LLaMA-Adapter"
SENTENCE = (
    "One frozen LLaMA, small adapters you can swap in the middle of a conversation: "
    "some change how it answers, some let it see a picture."
)
CHAT, COMPARE, TRAIN = "Chat", "Compare", "Train"

# The chat.
PLACEHOLDER = "Message, or drop a picture"
EMPTY_CHAT = "### Try one of these, or write your own"
DEFAULT_QUESTION = "What is in this picture?"
MIX = "Mix in another"
NO_MIX = "None"
FAILED = "Something went wrong on the server; its log has the details. Try again."
STILL_ANSWERING = "An answer is still being written. Stop it first, or wait for it."
NOTHING_TO_SEND = "Type a message or add a picture first."
STOPPED_AT_ONCE = "Stopped before the first word."
EMPTY_ANSWER = "The answer was empty."
# What the line below an answer adds about its end.
ENDINGS: dict[str | None, tuple[str, ...]] = {
    "stop": (), "length": ("cut at max tokens",), "time": ("cut at the time limit",), "cancelled": ("stopped",)
}  # fmt: skip

# The comparison.
FROZEN_BASE = "Frozen base"
COMPARE_HINT = "One message, several answers side by side: written in one batch, from one seed."
COMPARE_PLACEHOLDER = "One message for all"
EMPTY_PANE = "Its answer appears here."
SAME_WORDS = "word for word as pane 1"


def waiting(position: int) -> str:
    """What somebody reads who waits, with `position` others before."""
    if position == 0:
        return "Everybody is being answered at once already. You are next."
    return f"Waiting for a place: {position} before you."


def changed_words(changed: int, words: int) -> str:
    """The note about a pane whose words differ from the first one's."""
    if not changed:
        return SAME_WORDS
    return f"{changed} of {words} {'word' if words == 1 else 'words'} not in pane 1"
