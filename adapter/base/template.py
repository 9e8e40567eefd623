"""Chat templates: the one place where conversations become token ids, for training and for serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapter.errors import BadInput

Role = Literal["system", "user", "assistant"]

# The template of Stanford's Alpaca data, which the published LLaMA-Adapter V1 was trained with. It ends in
# "### Response:" without a newline. A follow-up turn continues with another Instruction/Response pair.
_ALPACA_HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


def encode_prompt(tokenizer: Any, messages: Sequence[Message], template: str = "chat") -> list[int]:
    """Token ids of a conversation up to where the answer begins.

    `template` is `chat` (the base's own chat template), `alpaca`, or `raw` (the texts one after another, with the
    control tokens that they spell; under the other two nobody's words can end a turn or begin another).
    Raises BadInput if there is nothing to answer or the base has no chat template.
    """
    if not messages or not any(m.text.strip() for m in messages):
        raise BadInput("The message is empty. Type something first.")
    if template == "raw":
        return list(tokenizer("".join(m.text for m in messages)).input_ids)
    messages = [Message(m.role, _without_control(tokenizer, m.text)) for m in messages]
    if template == "alpaca":
        return list(tokenizer(_alpaca(messages)).input_ids)
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("This base has no chat template. Use template 'alpaca' or 'raw' with it.")
    turns = [{"role": m.role, "content": m.text} for m in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _without_control(tokenizer: Any, text: str) -> str:
    """The text with a space inside everything that the tokenizer would read as a control token."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    for token in {*tokenizer.all_special_tokens, *added}:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def encode_answer(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer and its end token: the supervised part of a training example."""
    return [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def encode_conversation(
    tokenizer: Any, messages: Sequence[Message], template: str = "chat", all_turns: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation that ends in an answer, and which of them are to be learnt.

    These are the tokens of the last answer and of its end; with all_turns those of the earlier answers too, where
    the template lets them stand as they were written. Raises BadInput as `encode_prompt`.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    for i, message in enumerate(messages):
        if message.role != "assistant" or not (all_turns or i == len(messages) - 1):
            continue
        prompt, answer = encode_prompt(tokenizer, messages[:i], template), encode_answer(tokenizer, message.text)
        if prompt[: len(ids)] != ids:
            ids, learnt = ids[:-1], learnt[:-1]  # some templates do not end earlier turns with a token
        if prompt[: len(ids)] != ids:
            learnt = [False] * len(ids)
        learnt = (learnt + [False] * len(prompt))[: len(prompt)] + [True] * len(answer)
        ids = prompt + answer
    return ids, learnt


def _alpaca(messages: Sequence[Message]) -> str:
    parts = [_ALPACA_HEAD]
    for message in messages:
        if message.role == "user":
            parts.append(f"### Instruction:\n{message.text}\n\n")
        elif message.role == "assistant":
            parts.append(f"### Response:{message.text}\n\n")
        else:
            parts[0] = f"{message.text}\n\n"
    return "".join(parts) + "### Response:"
