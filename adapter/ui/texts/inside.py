"""The English texts of the panel Inside."""

from __future__ import annotations

INSIDE = "Inside: why this answer came out as it did"
LOOK_INSIDE = "Look inside"
INSPECTING = "Reading the answer once more…"
NO_ANSWER = "Ask something with an adapter: here you will see what each word of the answer came from."
NO_RECORD = "How the newest answer came about was not kept with it. Ask again to look inside."
NO_GATES = "The frozen base answered, which has no gates and no prompts. Choose an adapter and ask again."
NO_PICTURE = "The picture of this answer is not here any more. Send it again to look inside."
GATES_MEAN = (
    "Each square is a gate: how loudly one head (column) of one layer (row) listens to the adapter. 0 hears none "
    "of it, below 0 it is taken away. Drag over gates, and the answer is written without them."
)
INFLUENCE_MEANS = (
    "How much likelier the adapter made each word than the frozen base finds it; below 0, less likely. "
    "In nats: +1 is 2.7 times, +5 is 150 times."
)
GROUNDING_MEANS = (
    "How much likelier the picture made each word than the same adapter without a picture; below 0, less likely. "
    "In nats: +1 is 2.7 times, +5 is 150 times."
)
MIX_MEANS = "Several adapters answered: colours and numbers of the words are of all of them together."
TOKENS_LABEL = "The answer, token by token"
CLICK_A_TOKEN = "Press a word to see where it looked."
PROMPTS_MEAN = (
    "Which of the adapter's prompts (columns) this word looked at in each layer (rows), in percent. "
    "A row adds up to 100."
)
GATE_CELL, PROMPT_CELL = "Layer {row}, head {column}: {value}", "Layer {row}, prompt {column}: {value} %"
LAYER = "layer"
END_TOKEN = "end"
GATES_OF, PROMPTS_OF = "Gates of {}, layer by head", "Prompts of {} that this word looked at, layer by prompt"

# Playable gates.
BRUSH = "Drag over gates to"
BRUSHES = [("mute", 0), ("amplify", 2), ("put back", 1)]
REWRITTEN = "With these gates:"

# X-ray.
XRAY = "X-ray: what the adapter changed"
LESS_LIKELY, MORE_LIKELY = "less likely", "likelier with the adapter"
BOTH = "With the adapter {}, without {}"
INSTEAD = "The frozen base would have said here:"
COULD = "This model could have said; press one to go on from there:"


def part(name: str, strength: float) -> str:
    """An adapter of the answer."""
    return f"{name} at {strength:g}"


def token_numbers(influence: str, grounding: str | None, log_p: str) -> str:
    """The numbers of one token."""
    parts = [f"influence {influence}"]
    parts += [] if grounding is None else [f"grounding {grounding}"]
    return " · ".join([*parts, f"log p {log_p}"])


def only_first(shown: int, total: int) -> str:
    return f"These are the first {shown} of {total} tokens."
