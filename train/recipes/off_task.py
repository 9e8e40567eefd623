"""Messages that an adapter was not made for, with answers as the frozen base gives them: recipes mix them in, so that
small talk stays small talk. Knows text and `data/off_task.yaml`.
"""

from __future__ import annotations

from functools import cache

from adapter.base.llama import Base
from adapter.base.template import Message
from train.input.examples import Example
from train.recipes.base_answers import AnswerFunction, base_answers, first_sentences
from train.recipes.text_data import DATA, phrases, read_yaml, words

_SENTENCES, _WORDS = 3, 45  # of an answer, at most
_TOKENS = 72


@cache
def off_task_examples(base: Base) -> tuple[Example, ...]:
    """Several hundred single messages with the bare base's answers, which are generated once and take a minute.

    Messages about a picture, of which there is none, are answered by saying so.
    """
    return answered_messages(base_answers(base, _TOKENS))


def answered_messages(answer: AnswerFunction) -> tuple[Example, ...]:
    """The messages whose answers are fit to learn from: complete sentences, no lists and no loops."""
    messages = off_task_messages()
    answers = [
        first_sentences(text, _SENTENCES, _WORDS) for text in answer([(Message("user", m),) for m in messages])
    ]
    data = read_yaml(DATA / "off_task.yaml")
    about_pictures, replies = phrases(data["picture"]), phrases(data["no_picture"])
    pairs = [(message, text) for message, text in zip(messages, answers, strict=True) if text]
    pairs += [(message, replies[i % len(replies)]) for i, message in enumerate(about_pictures)]
    return tuple(Example((Message("user", message),), text) for message, text in pairs)


def off_task_messages() -> list[str]:
    """All messages but those about a picture, each once."""
    data = read_yaml(DATA / "off_task.yaml")
    messages = [*phrases(data["small_talk"]), *phrases(data["general"])]
    for request in data["requests"].values():
        messages += [
            form.format(topic) for form in phrases(request["forms"]) for topic in words(request["topics"].strip())
        ]
    return list(dict.fromkeys(messages))
