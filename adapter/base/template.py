"""Chat templates: the one place where conversations become token ids, for training and for serving."""

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

from jinja2 import TemplateError

from adapter.errors import BadInput, first_line

Role = Literal["system", "user", "assistant"]

# The template of Stanford's Alpaca data, which the published LLaMA-Adapter was trained with. It ends in
# "### Response:" without a newline. A follow-up turn continues with another Instruction/Response pair.
_ALPACA_TASK = "Below is an instruction that describes a task"
_ALPACA_INPUT = ", paired with an input that provides further context"
_ALPACA_REQUEST = ". Write a response that appropriately completes the request.\n\n"
_TURNS = ("<|", "<｜", "<start_of", "<end_of", "[INST", "[/INST")  # how tokens of published templates begin
_ALPACA_CUE = "### Response:"
_INPUT_LINE = re.compile(r"^### Input:[ \t]*\r?\n", re.MULTILINE)
# What would open a turn gets a space: Alpaca's template has no control tokens to be told from a user's words.
_TURN_HEADING = re.compile(r"#(##\s*(?:Instruction|Response)\s*:)", re.IGNORECASE)
# Put before a chat template: replaces today's date by the one that Meta's templates use when told none. An
# adapter is then served with the prompt that it was trained with, and prefix caches hold over midnight. A macro
# shadows transformers' function of this name, which no caller can replace; transformers drops the newline after
# the macro's block.
_ONE_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro %}\n"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    input: what the text of a user's turn is about, the second field of Alpaca's records. The template `alpaca`
    writes it under a heading of its own, the other templates after a blank line. name: of an answer, the adapter
    that gave it, "" for the frozen base; None where nobody knows.
    """

    role: Role
    text: str
    input: str = ""
    name: str | None = None

    @property
    def full_text(self) -> str:
        """Text and input, a blank line between them."""
        return "\n\n".join(part for part in (self.text, self.input) if part.strip()) or self.text


def default_template(tokenizer: Any) -> str:
    """The template of a base that nobody chose one for: its own, or Alpaca's if it has none."""
    return "chat" if getattr(tokenizer, "chat_template", None) else "alpaca"


def encode_prompt(tokenizer: Any, messages: Sequence[Message], template: str = "chat") -> list[int]:
    """Token ids of a conversation up to where the answer begins.

    `template` is `chat` (the base's own chat template), `alpaca`, or `raw` (the texts one after another, with the
    control tokens that they spell; under the other two nobody's words can end a turn or begin another). Raises
    BadInput if there is nothing to answer, or if the base has no chat template or one that refuses these turns.
    """
    if not any(m.full_text if template == "raw" else m.full_text.strip() for m in messages):
        raise BadInput("The message is empty. Type something first.")
    if template == "raw":
        return encode_text(tokenizer, "".join(m.full_text for m in messages))
    messages = [without_control(tokenizer, message) for message in messages]
    if template == "alpaca":
        return encode_text(tokenizer, _alpaca(messages))
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("This base has no chat template. Use template 'alpaca' or 'raw' with it.")
    turns = [{"role": m.role, "content": m.full_text} for m in messages]
    try:
        own = _ONE_DAY + tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(turns, chat_template=own, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # by its own word: some take no system turn, others no two turns of one role
        what = "refuses a conversation with these turns. Leave the system message out, and let user and assistant"
        what = f"{what} take turns." if type(error) is TemplateError else "is faulty. Mend its chat_template."
        raise BadInput(f"The chat template of this base {what}", first_line(error)) from error
    return list(tokenizer(encodable(text), add_special_tokens=False, verbose=False).input_ids)


def encodable(text: str) -> str:
    """The text with ? for each half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    return text.encode("utf-8", "replace").decode()


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, with the BOS token first if the tokenizer adds one, and without an EOS token."""
    begin = list(tokenizer("").input_ids)[:1]
    begin = begin if begin == [tokenizer.bos_token_id] else []
    return [*begin, *tokenizer(encodable(text), add_special_tokens=False, verbose=False).input_ids]


def without_control(tokenizer: Any, message: Message) -> Message:
    """The message with a space inside everything that the tokenizer would read as a control token."""
    # Converters often write the tokens of a turn as added ones that are not special, as words are.
    added = tokenizer.added_tokens_decoder.values()
    control = [str(token) for token in added if token.special or str(token).startswith(_TURNS)]
    # Some templates spell turns in plain words.
    control += re.findall(r"<\|\w+\|>|\[/?INST\]|<</?SYS>>", str(getattr(tokenizer, "chat_template", None)))
    text, given = message.text, message.input
    for token in {*tokenizer.all_special_tokens, *control}:
        if len(token) > 1:
            text, given = (part.replace(token, f"{token[0]} {token[1:]}") for part in (text, given))
    return replace(message, text=text, input=given)


def encode_answer(tokenizer: Any, answer: str, template: str = "chat") -> list[int]:
    """Token ids of an answer and its end token: the supervised part of a training example.

    Tokenised as it stands after a prompt, as in later prompts: alone, some tokenizers begin it with a space.
    """
    text = _before_answer(tokenizer, template, str(getattr(tokenizer, "chat_template", None) or ""))
    texts = (answer, text.rstrip(" "), text + answer)  # a space between them belongs to the answer's first token
    alone, before, both = (tokenizer(t, add_special_tokens=False, verbose=False).input_ids for t in texts)
    return [*(both[len(before) :] if both[: len(before)] == before else alone), tokenizer.eos_token_id]


@lru_cache(maxsize=8)
def _before_answer(tokenizer: Any, template: str, chat_template: str) -> str:
    """A text as it stands before an answer."""
    if template != "chat" or not chat_template:
        return _ALPACA_CUE if template == "alpaca" else ":"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("answer")[0]
    except Exception:  # as above
        return ""


def encode_conversation(
    tokenizer: Any,
    messages: Sequence[Message],
    template: str = "chat",
    all_turns: bool = False,
    unlearnt: Container[int] = (),
    limit: float = math.inf,
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation that ends in an answer, and which of them are to be learnt.

    These are the tokens of the last answer and of its end; with all_turns those of the earlier answers too, where
    the template lets them stand as they were written, but for the messages in `unlearnt`. limit: number of tokens
    after which no earlier answer needs to be found, as each costs an encoding. Raises as `encode_prompt`.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    for i, message in enumerate(messages):
        if message.role != "assistant" or i in unlearnt:
            continue
        if i < len(messages) - 1 and (not all_turns or len(ids) >= limit):
            continue
        prompt = encode_prompt(tokenizer, messages[:i], template)
        answer = encode_answer(tokenizer, message.text, template)
        # Some templates trim earlier answers, or do not end them with a token.
        same = next((n for n, (one, other) in enumerate(zip(ids, prompt, strict=False)) if one != other), len(ids))
        learnt = (learnt[:same] + [False] * len(prompt))[: len(prompt)] + [True] * len(answer)
        ids = prompt + answer
    return ids, learnt


def _alpaca(messages: Sequence[Message]) -> str:
    """The published prompt. A text with a line `### Input:` is split there, so that one text can hold both fields.

    Its head tells of an input if the first turn has one: later turns leave the beginning as it is.
    """
    turns = [_split_input(m) if m.role == "user" else m for m in messages]
    unheaded = partial(_TURN_HEADING.sub, r"# \1")
    turns = [replace(m, text=unheaded(m.text), input=unheaded(m.input)) for m in turns]
    with_input = next((bool(m.input) for m in turns if m.role == "user"), False)
    parts = [f"{_ALPACA_TASK}{_ALPACA_INPUT if with_input else ''}{_ALPACA_REQUEST}"]
    for turn in turns:
        if turn.role == "user":
            given = f"### Input:\n{turn.input}\n\n" if turn.input else ""
            parts.append(f"### Instruction:\n{turn.text}\n\n{given}")
        elif turn.role == "assistant":
            parts.append(f"{_ALPACA_CUE}{turn.text}\n\n")
        else:
            parts[0] = f"{turn.text}\n\n"
    return "".join(parts) + _ALPACA_CUE


def _split_input(message: Message) -> Message:
    if message.input.strip():
        return message
    text, *given = _INPUT_LINE.split(message.text, maxsplit=1)
    text = text.rstrip("\r\n") if given else text
    return replace(message, text=text, input=given[0] if given and given[0].strip() else "")
