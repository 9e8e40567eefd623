"""The English texts of the page: its header, Chat, Compare and the endpoints of gradio_client."""

from __future__ import annotations

from adapter.server.texts import DEFAULT_QUESTION, FAILED

__all__ = ["DEFAULT_QUESTION", "FAILED"]

# Header and tabs.
TITLE = "LLaMA-Adapter"
SENTENCE = (
    "One frozen LLaMA, small adapters you can swap in the middle of a conversation: "
    "some change how it answers, some let it see a picture."
)
CHAT, COMPARE, TRAIN = "Chat", "Compare", "Train"
SERVER_GONE = (
    "The server does not answer. Your conversation is kept in this browser; the page goes on by itself when the "
    "server is back."
)
KEYS_TITLE, CLOSE = "Keys", "Close"
KEYS = (
    (("Enter",), "Send the message, or an edit of one"),
    (("Shift", "Enter"), "A new line"),
    (("Esc",), "Stop the answer; in an edit, put the message back"),
    (("/",), "Go to the message"),
    (("↑", "↓"), "Choose an adapter, once the list has the focus"),
    (("?",), "This list"),
)

# The chat.
PLACEHOLDER = "Message, or drop a picture"
SHOW_PICTURE = "Show the picture by itself"
EMPTY_CHAT = "## Try one of these, or write your own"
MIX = "Mix in another"
NO_MIX = "None"
STILL_ANSWERING = "An answer is still being written. Stop it first, or wait for it."
NOTHING_TO_SEND = "Type a message or add a picture first."
STOPPED_BEFORE_TEXT = "Stopped before the first word."
EMPTY_ANSWER = "The answer was empty."
STILL_RESTORING = "The server has to be told your conversation once more. Try again in a moment."
# Additions to the statistics line, by finish reason.
ENDINGS: dict[str | None, tuple[str, ...]] = {
    "stop": (), "length": ("cut at max tokens",), "time": ("cut at the time limit",), "cancelled": ("stopped",),
    "repetition": ("it began to repeat itself",),
}  # fmt: skip

NO_IMAGE, PICTURE_NOT_USED = "no image", "picture not used"
MUTED = "with muted gates"  # an answer of an older version that goes on

# A JSON object as a table.
FIELD, VALUE, JSON, COPY = "Field", "Value", "JSON", "Copy"

CONTINUE = "Continue"  # an answer that was cut
# How full the context is; page.js fills in the numbers.
CONTEXT = "TOKENS of LENGTH tokens of context"
CONTEXT_NEARLY_FULL = "TOKENS of LENGTH tokens: nearly full. Start a new conversation."

# Components of the chat.
CONVERSATION, MESSAGE = "Conversation", "Message"
FIND_ADAPTER = "Find an adapter"
# Parts of the chip below the message box; composer.js joins them.
CHIP = {"base": "No adapter", "strength": "strength", "mix": "with"}
ADAPTER, STRENGTH, SAMPLING = "Adapter", "Strength", "Sampling"
STRENGTH_INFO = "0 is the frozen base, 1 the adapter as trained"
ABOUT = "About this adapter"
SECOND_ADAPTER, SECOND_STRENGTH = "Second adapter", "Second strength"
SECOND_INFO = "Added on top of the first"
TEMPERATURE, TEMPERATURE_INFO = "Temperature", "0 takes the likeliest word"
TOP_P, MAX_TOKENS, SEED, NEW_SEED = "Top-p", "Max tokens", "Seed", "A new one each time"
TOP_K, TOP_K_INFO = "Top-k", "Only so many of the likeliest words; 0 is off"
MIN_P, MIN_P_INFO = "Min-p", "Only words at least so likely as this part of the likeliest"
PENALTY = "Repetition penalty"
PENALTY_INFO = "Above 1, words that were there come less often. Structured answers have none"
STOP, STOP_INFO = "Stop texts", "The answer ends before one of them. One a line"
SYSTEM_PROMPT, SYSTEM_INFO = "System prompt", "In place of the base's own. Adapters were trained without one"
SYSTEM_PLACEHOLDER = "You are a patient teacher."
# Errors of a turn, and parts of the statistics line.
BASE_NAME = "frozen base"
EMPTY_EDIT = "The edited message is empty. Write something, or use undo to remove it."
EMPTY_MESSAGE = "The message is empty. Write something."
WITHOUT_PICTURE = "Answer from the text alone"
PICTURE_GONE = "This picture is no longer on the server. Reload the page, or send the picture again."
# Corrections of answers.
SAY_IT_LIKE_THIS, YOUR_WORDS = "Say it like this", "your words"
EMPTY_CORRECTION = "The answer is empty. Write what it should say."
NOT_ABOUT_PICTURES = (
    "Changed here, but not collected: corrections teach from words, and this answer is about a picture."
)
EXPORT_CORRECTIONS, FORGET_CORRECTION = "Export as JSONL", "Forget the newest"
# The panel "This conversation", and conversations that were stored.
CUT_OFF, CUT_OFF_BEFORE_TEXT = "cut off", "Cut off before the first word."
OFFER_NOT_ANSWERED = "Not answered yet. Retry answers it."
THIS_CONVERSATION = "This conversation"
EXPORT, IMPORT, COPY_LINK = "Export", "Import", "Copy link"
EXPORT_NAME = "conversation.json"
NOTHING_TO_EXPORT = "There is no conversation yet."
LINK_COPIED = (
    "Link copied. It holds the words and settings of this conversation, not its pictures. Whoever has the link "
    "can read them."
)
PICTURE_NOT_SENT = "The picture of this message was not sent with the link."
LINK_TOO_LONG = "This conversation is too long for a link. Export it instead."
FILE_TOO_LARGE = "The file is too large: 6 MB are the limit. Export the conversation here again."
NOT_OPENED = "The conversation could not be opened. It is still in the list."
LINK_UNREADABLE = "The link holds no conversation that can be read here. It may have been cut."
LINK_OPENED = "This conversation came with the link. A message here adds it to your own, which are kept."
COMMAND_LINE, NO_COMMAND_LINE = "The newest answer, from the command line", "Appears when there is an answer."
ONE_PICTURE = "A message takes one picture. The first of those that were dropped is in it."
NO_PICTURE = "Only pictures go into a message. Adapters and training data have their own places on this page."
STORAGE_FULL = (
    "The browser's storage is full: what is new here may be gone after a reload. Export it, or delete others."
)
TOO_LONG_TO_GO_ON = "This conversation is too long to go on with. Export it to keep it, and start a new one."
# The list of conversations.
CONVERSATIONS, NEW_CONVERSATION = "Conversations", "New conversation"
SEARCH, RENAME, DELETE, CLOSE, UNDO = "Search", "Rename", "Delete", "Close", "Undo"
DELETED = "Deleted: {}"
NO_CONVERSATIONS = "Your conversations will be listed here. They are kept in this browser only."
NOTHING_FOUND = "No conversation has these words."
NOTHING_IS_KEPT = "This browser keeps nothing for this page: what is listed here is gone when the page is closed."
UNTITLED = "Untitled"
# Comparison.
FROZEN_BASE = "Frozen base"
COMPARE_HINT = "One message, several answers, written in one batch from one seed."
COMPARE_PLACEHOLDER = "Ask something"
WORDS_HINT = "What the base is told: Answer like a pirate."
EMPTY_PANE = "Its answer appears here."
IN_PANE_1 = "in pane 1"
PANES = "Panes"
VIEW, VIEWS = "View", [("Strengths", "strengths"), ("Side by side", "side by side")]
NO_PANE_SEES = "No pane has an adapter that sees pictures. Choose one, or take the picture out."

# Adapter upload.
UPLOAD = "Bring an adapter"
UPLOAD_HINT = (
    "A zip of its folder, or its `config.json` and `adapter.safetensors` together. "
    "It is checked, kept on this machine, and there for everybody who uses this page."
)
UPLOAD_FILES = "The adapter's files"
UPLOAD_NAME = "Name"
UPLOAD_NAME_HINT = "As the zip is called"
UPLOAD_BUTTON = "Add it"
HUB, HUB_HINT = "Or open one from the Hub", "owner/name"
HUB_BUTTON, HUB_LEAVE = "Open it", "Not now"
RENAME, DELETE = "Rename", "Delete"
UPLOAD_LATER = "The model is still being loaded, and an adapter is checked against it. Try again in a minute."

# Adapter cards and examples: the first line is bold.
BASE_CARD = "None (frozen base)\nThe LLaMA as it is, with nothing added"
SEES_PICTURES, READS_TEXT = "Sees pictures", "Text"
ADDED_HERE = "added here"  # page.css knows the group by it
ABOUT_BASE = "The frozen base, without an adapter."
NO_CARD = "This adapter came without a card."
EXAMPLE_EXTRACT = "Turn a message into JSON"
EXAMPLE_EXTRACT_MESSAGE = (
    "Hi, this is Maria Keller from Nordlicht Ltd in Hamburg, you can call me on +49 40 5550 173."
)
EXAMPLE_PIRATE = "Ask a pirate"
EXAMPLE_PIRATE_MESSAGE = "Why is the sky blue?"
EXAMPLE_PHOTOGRAPH, EXAMPLE_PHOTOGRAPH_MESSAGE = "Show a photograph", "What is this animal?"
EXAMPLE_DRAWING, EXAMPLE_DRAWING_MESSAGE = "Show a drawing", "What is this?"
EXAMPLE_TUTOR = "Be asked back by a tutor"
EXAMPLE_TUTOR_MESSAGE = "Why do leaves fall in autumn?"


def no_description(prompts: int, layers: int) -> str:
    return f"No description: {prompts} prompts in {'the topmost layer' if layers == 1 else f'{layers} layers'}"


def not_taken_along(mix: str) -> str:
    """The note when another adapter is chosen. mix: the second adapter."""
    return f"Another adapter: “{mix}” is no longer mixed in."


def broken_card(name: str) -> str:
    """The card of an adapter that cannot be loaded."""
    return f"{name}\nCannot be read; the command line says why: show {name}"


def at_strength_0(answer: str) -> str:
    return f"At strength 0, the frozen base: “{answer}”"


def linked_adapter(repository: str) -> str:
    return f"This link names the adapter `{repository}` on the Hub. It is fetched, and checked, if you open it."


def adapter_uploaded(name: str) -> str:
    return f"The adapter “{name}” is here, and chosen."


def adapter_already_here(name: str) -> str:
    return f"This adapter was here already: “{name}”. It is chosen."


def adapter_missing(name: str) -> str:
    """Of a conversation that was stored, imported or opened from a link."""
    return f"This conversation was using the adapter “{name}”, which this server does not have."


def undo_delete(name: str) -> str:
    return f"“{name}” is deleted. Undo"


def adapter_gone(name: str) -> str:
    return f"The adapter “{name}” is gone, and chosen no more."


def corrections(count: int) -> str:
    return f"{count} {'correction' if count == 1 else 'corrections'}, in this browser only"


def pane(number: int) -> str:
    return f"Pane {number}"


def pane_words(number: int) -> str:
    return f"Words for pane {number}"


def told(words: str) -> str:
    return f"told “{words}”"


def pane_strength(number: int) -> str:
    return f"Pane {number} strength"


def wrong_panes(fewest: int, most: int, count: object) -> str:
    return f"A comparison has {fewest} to {most} panes, got {count}."


def before_answer(position: int | None, progress: float | None) -> str:
    """position: the number of requests in the queue before this one; progress: the share of it that is read."""
    if progress is not None:
        return f"Reading your message, {100 * progress:.0f} %"
    if position == 0:
        return "Everybody is being answered at once already. You are next."
    return f"Waiting for a place: {position} before you."


def changed_words(changed: int, words: int, where: str) -> str:
    """The note below an answer. changed: its words that differ from another one; words: all its words; where:
    the other one.
    """
    if not changed:
        return f"word for word as {where}"
    return f"{changed} of {words} {'word' if words == 1 else 'words'} not {where}"


def changed_fields(changed: int, fields: int, where: str) -> str:
    """As `changed_words`, of JSON objects."""
    if not changed:
        return f"field for field as {where}"
    return f"{changed} of {fields} {'field' if fields == 1 else 'fields'} not as {where}"


# The filmstrip.
FILM_BUTTON, AT_FIVE_STRENGTHS = "◑", "Show at five strengths"  # an icon; page.js gives it its name
SHOWN_STRENGTH = "Shown strength"
FILM_ADAPTER = "Adapter to compare"
FILM_NEEDS_ADAPTER = "The frozen base has no strength. Choose an adapter."


def at_strength(value: float) -> str:
    return f"at {strength(value)}"


def film_example(message: str, adapter: str) -> str:
    return f"An example, as recorded: {adapter} on “{message}” Move the slider, or ask something above."


def all_refused(count: int, seconds: int) -> str:
    """The refusal of several answers that are written together or not at all."""
    again = f"Try again in {seconds} {'second' if seconds == 1 else 'seconds'}."
    return f"These are {count} answers, and your address may not have so many now: none was written. {again}"


def waiting_for_model(status: str) -> str:
    return f"Waiting for the model. {status}"


# Requests that are malformed.
WRONG_VALUE = "The request has a value of another kind than is needed. Reload the page, or see docs/api.md."
TOO_FEW_VALUES = "The request lacks some of the values that it needs. Reload the page and try again."
NOTHING_IS_FETCHED = "Files are uploaded here: nothing is fetched from other addresses."


def reads_text_only(adapter: str | None, visual_installed: bool) -> str:
    """The question about a picture that the adapter cannot see; visual_installed: whether another one can."""
    who = f"“{adapter}” reads text only" if adapter else "The frozen base reads text only"
    if visual_installed:
        return f"{who}, so it cannot see this picture."
    return f"{who}, and no adapter that sees is installed."


def use_for_picture(adapter: str) -> str:
    return f"Use {adapter} for this picture"


def strength(value: float) -> str:
    return f"strength {value:g}"


def mixed_in(name: str, value: float) -> str:
    return f"with {name} at {value:g}"


def tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.1f} tokens/s" if tokens_per_s < 10 else f"{tokens_per_s:.0f} tokens/s"


def mixed_with_itself(adapter: str) -> str:
    return f"“{adapter}” cannot be mixed with itself. Choose another second adapter, or none."


def image_not_seen(adapter: str | None) -> str:
    """The API's error for an image that is sent to a text adapter."""
    return f"{adapter or 'The frozen base'} reads text only. Name an adapter that sees, or no image."


def link_to_copy(address: str) -> str:
    """Shown if the browser does not allow copying."""
    return f"Copy this link. It holds the words and settings of this conversation, not its pictures: {address}"


def not_kept_by_browser(what: object) -> str:
    """what: that exceeds a limit, a transcript's Dropped, here and below."""
    return f"Gone after a reload, for the browser keeps no more: {what}."


def not_imported(what: object) -> str:
    return f"Left out, for a conversation holds no more: {what}."


# The manual of the endpoints for gradio_client.
API_CHAT = (
    "Answers one message, with or without a picture. It streams: each result is the whole text so far. "
    "What cannot be answered is an error with a sentence that says what to change."
)
API_ADAPTERS = "Lists the adapters that /chat takes: name, description, whether it sees pictures, size in bytes."
