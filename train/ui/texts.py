"""The texts of the Train tab. Exceptions about data and names have their own messages."""

from __future__ import annotations

# The three steps.
DATA, SETTINGS, RUN = "Data", "Settings", "Run"
HINT = "Teach the frozen LLaMA something new: show it examples, train a small adapter, and chat with it at once."
SAMPLES = "Start with a sample"
UPLOAD = "Or bring your own"
UPLOAD_HINT = (
    "CSV, JSONL or JSON with `question` and `answer`, `prompt` and `completion`, `input` and `output` or other "
    "common names; or a zip of pictures with captions."
)
TYPE_ROWS, USE_ROWS = "Or type them here", "Use these rows"
ROWS = "question => answer, one a line"
ROWS_HINT = (
    "Who wrote Hamlet? => Very good, sir. That was William Shakespeare.\n"
    "I am late for work. => Very good, sir. I shall have the car brought round."
)
NO_ROWS = "Type rows first: a question, => and its answer, one a line."
TYPED_NAME = "typed-rows.jsonl"
NO_DATA = "Choose a sample or drop a file. What is in it is shown here before anything is trained."
NAME, NAME_HINT = "Name", "my-poet"
DESCRIPTION, DESCRIPTION_HINT = "What it does", "Shown on its card, if you like"
STEPS, STEPS_INFO = "Steps", "More steps learn more, and take longer"
RATE, RATE_INFO = "Learning rate", "Higher learns faster, and forgets more of the rest"
COMMAND = "The same in a terminal"
NO_COMMAND = "Appears once there is data and a name."
START, RUNNING = "Start training", "“{}” is being trained"
STOP, GO_ON = "Stop", "Go on"
CHAT_WITH, TRY, DOWNLOAD, WHICH = "Chat with it", "Try it as it is", "Download", "Run"
NOTHING_YET = "Nothing has been trained here yet. The run appears here, and is found again after a reload."
NOT_THERE = "This adapter is not there yet: the first one is saved after a few steps. Try again shortly."
NO_RUN = "Choose a run first."
NOT_YOURS = "Only who started this run may stop it or go on with it."

# The states of a run.
STATES = {
    "starting": "Starting",
    "training": "Training",
    "stopping": "Stopping",
    "ended": "Ready",
    "stopped": "Stopped",
    "failed": "Failed",
    "killed": "Interrupted",
}
_KILLED = "The trainer ended without a word: somebody or the system killed it, for want of memory perhaps."
SENTENCES = {
    "starting": "The trainer is starting: it loads its libraries and a copy of the model, some ten seconds.",
    "stopping": "It stops after the step under way, and saves what it has learnt.",
    "ended": "Trained, and among the adapters of all tabs.",
    "stopped": "Stopped and saved. The adapter so far can be used; Go on trains it to the end.",
    "killed": f"{_KILLED} Go on takes it up after the last save.",
}
# In place of these before anything was saved.
UNSAVED = {
    "stopped": "Stopped before anything was saved. Go on begins anew.",
    "killed": f"{_KILLED} Nothing was saved yet: Go on begins anew.",
}
# A run's metrics.
LOSS, HELD_OUT, STEP = "Training loss", "Held-out loss", "step"
NOW, AFTER, LARGEST = "now", "after", "The largest gate is open by {:.2f}."
BY_HEART = "It began to learn by heart at step {:,}; the best is kept."  # held-out loss has risen since
# To the Hub.
PUBLISH, PUBLISH_BUTTON = "Publish on the Hub", "Publish"
PUBLISH_HINT = (
    "The adapter, its card, and what its question was answered before and after; nothing of your data. It is sent "
    "with this machine's login (`hf auth login`), and everybody can see it."
)
PUBLISH_SIGNED_IN = (
    "The adapter, its card, and what its question was answered before and after; nothing of your data. Sign in "
    "first: it becomes yours on the Hub, and everybody can see it."
)
PUBLISH_NOT_HERE = "Others use this server too, so nothing is sent with its login. Download the adapter instead."
REPOSITORY, REPOSITORY_HINT = "Repository", "your-name/my-poet"

# Teach by chatting.
LESSON = "Name, and what to ask meanwhile"
TAUGHT_NAME, TAUGHT = "my-voice", "Answers as it was corrected in the chat"
WATCHED, WATCHED_HINT = "Asked before, and again while it learns", "Nothing is asked"
WATCHED_QUESTION = "What is the best way to spend a rainy Sunday?"

# The preview.
TEXTS, PICTURES = "text", "pictures"
REQUEST, ANSWER = "Asked", "Answer"
SKIPPED = "These are passed over:"
NO_ANSWER = "(says nothing)"
LENGTHS = "Half of them have up to {:,} tokens, the longest {:,}."
TOO_FEW = "'{}' has {} records that can be learnt from; {} are the least."
BROKEN, MORE = "{:,} cannot be learnt from", "and {:,} more"
# What to expect of so few records, and what would help; assets/samples/README.md has the trials.
FEW_RECORDS = (
    "{:,} are few: expect a tone of voice, hardly the whole manner and no facts, and that it learns these by "
    "heart after some twenty steps. Thirty or more, each about something else, help most."
)


def records(count: int, kind: str, shown: str) -> str:
    return f"{count:,} {'record' if count == 1 else 'records'} of {kind} in {shown}"


def truncated(count: int, answerless: int, max_length: int) -> str:
    """How many records are too long, and how many of those lose their whole answer."""
    text = f"{count:,} longer than {max_length:,} tokens {'loses its' if count == 1 else 'lose their'} end"
    return f"{text}; {answerless:,} of them with the whole answer." if answerless else f"{text}."


def uncaptioned(count: int) -> str:
    return f"{count:,} {'picture has' if count == 1 else 'pictures have'} no caption"


def train_on_these(missing: int) -> str:
    """The label of the button. missing: how many corrections are wanted before."""
    return "Train on these" if missing <= 0 else f"Train on these: {missing} more"


def watched_step(step: int) -> str:
    return f"Step {step:,}" if step else "Before"


def before_and_after(question: str, before: str, after: str) -> str:
    """A section of a model card."""
    quoted = [" ".join(text.split()) for text in (question, before, after)]
    return "## Before and after\n\n{}\n\n> frozen base: {}\n\n> with this adapter: {}\n".format(*quoted)


def published(repo: str, url: str) -> str:
    return f"Published: [{repo}]({url}). Anybody opens it with `{repo}` under *Bring an adapter*."


def held_out(before: float | None, loss: float, when: str) -> str:
    return f"{HELD_OUT} {'' if before is None else f'{before:.2f} before, '}{loss:.2f} {when}."


def duration(seconds: float) -> str:
    if seconds < 55:
        return f"about {max(5, round(seconds / 5) * 5)} seconds"
    minutes = round(seconds / 60)
    return "about a minute" if minutes <= 1 else f"about {minutes:,} minutes"


def step_line(step: int, steps: int, seconds_left: float | None) -> str:
    line = f"Step {step:,} of {steps:,}"
    return line if seconds_left is None else f"{line} · {duration(seconds_left)} left"


def stopped_with_server(ended: bool) -> str:
    """Printed in the terminal when the server stops. ended: whether the trainer has; if not, it still saves."""
    state = "saved" if ended else "and is still being saved"
    return f"The training stops too, {state}: the Train tab goes on with it the next time."


def chart(step: int, loss: float, held_out: float | None) -> str:
    """The description of the chart for screen readers."""
    sentence = f"Loss over the steps, up to step {step}. Training loss {loss:.2f}."
    return sentence if held_out is None else f"{sentence} Held-out loss {held_out:.2f}."
