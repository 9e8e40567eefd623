"""The English texts of the page: its header, Chat, Compare, Inside and the endpoints of gradio_client."""

from typing import Any

from adapter.server.generation import DEFAULT_QUESTION, FAILED
from adapter.ui.texts import read

__all__ = ["DEFAULT_QUESTION", "FAILED"]
vars().update(read(__file__))


def __getattr__(name: str) -> Any:  # for the type checker: a text of the file
    raise AttributeError(name)


def reads_of_others(adapter: str, others: str) -> str:
    """The line above a turn that another adapter answers. others: of Settings."""
    part = {"first sentence": "the first sentence", "nothing": "nothing"}.get(others, "all")
    return f"{adapter} reads {part} of what was said before"


def corrections(count: int) -> str:
    return f"{count} {'correction' if count == 1 else 'corrections'}, in this browser only"


def before_answer(position: int | None, progress: float | None) -> str:
    """position: the number of requests in the queue before this one; progress: the share of it that is read."""
    if progress is not None:
        return f"Reading your message, {100 * progress:.0f} %"
    if position == 0:
        return "Everybody is being answered at once already. You are next."
    return f"Waiting for a place: {position} before you."


def differences(changed: int, all_of_them: int, others: int, of: str, where: str) -> str:
    """The note below an answer: how many parts differ. others: how many `where` has; of: "word" or "field"."""
    if not changed:
        return f"{of} for {of} as {where}{', but for what is left out' if others > all_of_them else ''}"
    return f"{changed} of {all_of_them} {of if all_of_them == 1 else f'{of}s'} not as {where}"


def reads_text_only(adapter: str | None, visual_installed: bool) -> str:
    """The question about a picture that the adapter cannot see; visual_installed: whether another one can."""
    who = f"“{adapter}”" if adapter else "The frozen base"
    rest = "so it cannot see this picture" if visual_installed else "and no adapter that sees is installed"
    return f"{who} reads text only, {rest}."


def tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.1f} tokens/s" if tokens_per_s < 10 else f"{tokens_per_s:.0f} tokens/s"
