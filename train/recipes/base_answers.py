"""The frozen base's own greedy answers, for recipes that learn from them: each is generated once and then read from a
file in the cache. Knows conversations and text; knows no recipe.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from adapter.base.disk_cache import cache_dir
from adapter.base.llama import Base
from adapter.base.template import Message
from train.evaluate.answerer import Answerer, Conversation
from train.recipes.text_data import DATA, read_yaml

AnswerFunction = Callable[[Sequence[Conversation]], list[str]]

_PLAIN_TOKENS = 56
_WRITTEN_TOGETHER = 96  # answers that are generated before they are saved
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.M)
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)(?<!\b[A-Z]\.)(?<!Dr\.)(?<!Mr\.)(?<!St\.)\s*")


def base_answers(base: Base, max_new_tokens: int, stop: str = "") -> AnswerFunction:
    """A function that returns the bare base's answers of at most `max_new_tokens` tokens, by the serving engine.

    A conversation that ends in an assistant's message is continued behind that, and the continuation is returned.
    stop: the text before which an answer ends. A kill damages no file: what it cuts short is generated again.
    """
    answerer = Answerer(base, None)
    kind = f"{base.fingerprint} {base.describe()} {max_new_tokens} {stop!r}"
    file = cache_dir() / "answers" / f"{hashlib.sha256(kind.encode()).hexdigest()[:16]}.jsonl"

    def prompt(conversation: Conversation) -> list[int]:
        if conversation[-1].role == "user":
            return answerer.encode(conversation)
        begun = base.tokenizer(conversation[-1].text, add_special_tokens=False).input_ids
        return [*answerer.encode(conversation[:-1]), *begun]

    def answer(conversations: Sequence[Conversation]) -> list[str]:
        prompts = [*map(prompt, conversations)]
        keys = [hashlib.sha256(repr(prompt).encode()).hexdigest()[:24] for prompt in prompts]
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            known = _read(file)
            missing = [i for key, i in {key: i for i, key in enumerate(keys)}.items() if key not in known]
            for first in range(0, len(missing), _WRITTEN_TOGETHER):
                part = missing[first : first + _WRITTEN_TOGETHER]
                texts = answerer.generate_from(
                    [prompts[i] for i in part], max_new_tokens=max_new_tokens, stop=(stop,) if stop else ()
                )
                with open(file, "a", encoding="utf-8") as lines:
                    for i, text in zip(part, texts, strict=True):
                        known[keys[i]] = text
                        lines.write(json.dumps([keys[i], text]) + "\n")
        return [known[key] for key in keys]

    return answer


def plain_answers(base: Base) -> Callable[[Sequence[str]], list[str]]:
    """A function that returns short plain answers of the bare base to questions.

    The base writes them after exchanges of that kind (`data/plain_answers.yaml`): left alone, it makes long lists,
    and asked in words to be brief, it talks about that.
    """
    answer = base_answers(base, _PLAIN_TOKENS)
    shown = conversation_of(read_yaml(DATA / "plain_answers.yaml"))
    return lambda questions: answer([(*shown, Message("user", question)) for question in questions])


def conversation_of(texts: Sequence[str]) -> Conversation:
    """Turns of a user and of an assistant, one after the other."""
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def first_sentences(text: str, max_sentences: int, max_words: int) -> str | None:
    """The first complete sentences of an answer; None if it is a list, a loop, not plain text or too long."""
    if _LIST_ITEM.search(text) or "```" in text:
        return None
    text = re.split(r"\n\s*\n", text.strip())[0].replace("\n", " ").strip()
    short = ""
    for sentence in (match.group() for match in list(_SENTENCE.finditer(text))[:max_sentences]):
        if len((short + sentence).split()) > max_words:
            break
        short += sentence
    short = short.strip()
    return None if len(short.split()) < 3 or loops(short) else short


def loops(text: str) -> bool:
    """Whether a sentence, four words in a row, or a word and the next one are the same again."""
    tokens = re.findall(r"[\w']+", text.lower())
    four_grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    sentences = [sentence.lower() for sentence in re.split(r"[.!?]\s+", text.rstrip(".!?"))]
    return (
        len(set(four_grams)) < len(four_grams)
        or len(set(sentences)) < len(sentences)
        or re.search(r"\b(\w+) \1\b", text, re.I) is not None
    )


def _read(file: Path) -> dict[str, str]:
    """Answers by key; a line that a kill has cut short is left out."""
    known: dict[str, str] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, text = json.loads(line)
                known[key] = text
            except ValueError:
                continue
    return known
