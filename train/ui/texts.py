"""The English texts of the Train tab: those of texts.yaml, and functions that choose words."""

from typing import Any

from adapter.ui.texts import read

vars().update(read(__file__))


def __getattr__(name: str) -> Any:  # for the type checker: a text of the file
    raise AttributeError(name)


def train_on_these(missing: int) -> str:
    """The label of the button. missing: how many corrections are wanted before."""
    return "Train on these" if missing <= 0 else f"Train on these: {missing} more"


def held_out(before: float | None, loss: float, when: str) -> str:
    return f"Held-out loss {'' if before is None else f'{before:.2f} before, '}{loss:.2f} {when}."


def step_line(step: int, steps: int, seconds_left: float | None) -> str:
    line = f"Step {step:,} of {steps:,}"
    if seconds_left is None:
        return line
    minutes = round(seconds_left / 60)
    left = "a minute" if minutes <= 1 else f"{minutes:,} minutes"
    if seconds_left < 55:
        left = f"{max(5, round(seconds_left / 5) * 5)} seconds"
    return f"{line} · about {left} left"


def stopped_with_server(ended: bool) -> str:
    """Printed in the terminal when the server stops. ended: whether the trainer has; if not, it still saves."""
    state = "" if ended else ", and is still being saved"
    return f"The training stops too{state}: the Train tab goes on from its last save, if there is one."
