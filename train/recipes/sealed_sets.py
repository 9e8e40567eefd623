"""What the sets of all recipes share: their files, earlier turns by the other adapters, and messages off the task.

Each set in `sealed/` was written before anything was trained for it; `ledger.json` keeps every scoring. The recipes
bring the rules by which an answer is right.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from adapter.base.llama import Base
from adapter.base.template import Message
from adapter.method.checkpoint import load_adapter
from adapter.serve.settings import BASE_ONLY
from adapter.serve.store import SHIPPED
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, share
from train.input.split import draw_evenly
from train.recipes import recipe_names

Item = TypeVar("Item")
SEALED = Path(__file__).with_name("sealed")
# Files that every recipe's scores depend on: what is off the task, and what is asked in earlier turns.
SHARED = ("sealed/good_company.yaml", "sealed/extract_generated.yaml")
MAX_TIMES = 3  # what answers more messages of a set is no answer to them
_LATE = 60  # conversations in which an adapter answers after others
_DEPTH, _LONG_TOKENS = 5, 300  # of long talk: answers of the base one after another, and tokens of each
_PICTURE = SHIPPED.parent / "examples" / "traffic-light.png"  # what a visual adapter of an earlier turn is shown
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_SHOWS = re.compile(
    r"\b(?:picture|image|photo|photograph|drawing)\b.*\b(?:shows?|depicts?|is of|is an?|contains?|of an?)\b"
    r"|\bi (?:can )?see an?\b|\b(?:it|this) (?:shows|depicts)\b",
    re.I,
)
# To a question about a picture that is not there, "there is a dog" and "yes, it is an animal" are claims too.
_NAMES = re.compile(
    r"\b(?:there (?:is|are)|there's|(?:it|this|that|he|she)(?: is|'s| looks like| appears to be| seems to be)"
    r"|(?:these|those|they) are|(?:you|we) can see|we see)\s+"
    r"(?:mostly |mainly |probably |likely |perhaps |actually |indeed )*"
    r"(?:an?|the|one|two|three|some|several|many|red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y)\b",
    re.I,
)
# What the recipe says of a picture when it is not sure names things too: without a picture that is a claim.
_GUESSES = re.compile(r"\bnot sure, perhaps an?\b", re.I)
_DENIES = re.compile(r"\b(?:no|not|cannot|without|unable)\b|n't\b", re.I)
_KEY = re.compile(r"""["']?\b[^\W\d]\w*["']?\s*:\s*["'\d\[{]""")


@cache
def read_yaml(path: Path) -> Any:
    """The content of a YAML file, which is read once. Callers must not change it."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def word_list(path: Path, key: str) -> frozenset[str]:
    """The words under a key of a YAML file, which stand apart by commas or blanks there."""
    return frozenset(re.findall(r"[^,\s]+", read_yaml(path)[key]))


def read_table(path: Path) -> list[tuple[str, ...]]:
    """The rows of a file with tabs between cells; lines that begin with # are comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines if not line.startswith("#")]


def conversation_of(*texts: str) -> Conversation:
    """Turns of a user and of an assistant, one after the other."""
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def percent(measure: str, right: Sequence[bool]) -> dict[str, Figure]:
    """The share of right answers, with their number in the measure's name; nothing if there are none."""
    return {f"{measure} ({len(right)}), %": share(right)} if right else {}


def some(items: Sequence[Item]) -> list[Item]:
    """60 of the items, drawn evenly over all of them."""
    return [items[i] for i in draw_evenly(len(items), _LATE, seed=0)]


def loops(text: str, times: int = 2, between: str = " ") -> bool:
    """Whether four words in a row come `times` times, or a word that often in a row.

    between: a pattern of what stands between the words that are the same.
    """
    words = re.findall(r"[\w']+", text.lower())
    four_grams = Counter(zip(*(words[i:] for i in range(4)), strict=False))
    stutter = rf"\b(\w+)(?:{between}\1\b){{{times - 1}}}"
    return max(four_grams.values(), default=0) >= times or re.search(stutter, text, re.I) is not None


def off_task_scores(answerer: Answerer, where: str = "") -> dict[str, Figure]:
    """The share of sensible answers to 40 messages that are neither a person, a meeting or an order nor about a
    picture that is there; ten ask about one that is not.

    where: an addition to the measure's name.
    """
    data = read_yaml(SEALED / "good_company.yaml")
    about_picture = data["no_picture"].splitlines()
    messages = [*data["off_task"].splitlines(), *about_picture]
    answers = answerer.generate([*map(conversation_of, messages)])
    given = Counter(answers[: -len(about_picture)])
    right = [
        is_sensible(text)
        and (message in about_picture or given[text] <= MAX_TIMES)
        and not claims_picture(text, message in about_picture)
        for message, text in zip(messages, answers, strict=True)
    ]
    return percent(f"sensible off its task{where}", right)


def after_others(base: Base, own: str, conversations: Sequence[Conversation]) -> list[Conversation]:
    """Each conversation after an exchange with one of the other shipped adapters, which answer in turn.

    own: name of the adapter that is measured, which answers none of the earlier turns.
    """
    others = [name for name in recipe_names() if name != own]  # a user's may lie beside those that are shipped
    data = read_yaml(SEALED / "good_company.yaml")
    result = list(conversations)
    for number, name in enumerate(others):
        adapter = load_adapter(SHIPPED / name, base.fingerprint, base.device)
        if name == "extract":
            texts = [test["text"] for test in read_yaml(SEALED / "extract_generated.yaml")]
        else:
            texts = data["no_picture" if adapter.config.is_visual else "first_questions"].splitlines()
        rows = range(number, len(conversations), len(others))
        asked = [conversation_of(texts[i % len(texts)]) for i in rows]
        answers = Answerer(base, adapter, form=None).generate(asked, [_PICTURE] * len(asked))
        for i, question, answer in zip(rows, asked, answers, strict=True):
            result[i] = (*question, Message("assistant", answer), *conversations[i])
    return result


def after_long_talk(
    base: Base, conversations: Sequence[Conversation], sealed: bool
) -> tuple[list[Conversation], list[Conversation]]:
    """Each conversation after one to five long answers of the frozen base; and questions about such answers.

    sealed: whether the questions come from `sealed/long_talk.yaml`, or else from `development_talk.yaml`.
    """
    talk, follow_ups = _long_talk(base, sealed)
    late = [(*talk[i % len(talk)], *conversation) for i, conversation in enumerate(conversations)]
    step = len(talk) / len(follow_ups)
    return late, [(*talk[int(i * step)], *conversation_of(one)) for i, one in enumerate(follow_ups)]


@lru_cache(maxsize=1)
def _long_talk(base: Base, sealed: bool) -> tuple[list[Conversation], list[str]]:
    """Conversations with long answers of the bare base, the same for all systems compared; and follow-ups."""
    data = read_yaml(SEALED / "long_talk.yaml" if sealed else SEALED.parent / "development_talk.yaml")
    asked, bare = data["long"].splitlines(), Answerer(base)
    columns = len(asked) // _DEPTH
    talk: list[Conversation] = [()] * columns
    for row in range(_DEPTH):  # each column goes on in the next row
        heads = zip(talk[-columns:], asked[row * columns : (row + 1) * columns], strict=True)
        given = [(*head, *conversation_of(question)) for head, question in heads]
        answers = bare.generate(given, max_new_tokens=_LONG_TOKENS)
        answered = [Message("assistant", answer, name=BASE_ONLY) for answer in answers]
        talk += [(*one, answer) for one, answer in zip(given, answered, strict=True)]
    return talk[columns:], data["follow_ups"].splitlines()


def is_sensible(answer: str) -> bool:
    """Whether the answer is prose of at least three words that does not loop.

    An object is no prose, nor is one in a fence, in a sentence or without its braces.
    """
    words_apart = answer.replace("'", " ")
    is_object = answer.lstrip("`json \n").startswith("{") or len(_KEY.findall(answer)) > 1
    return len(re.findall(r"\w+", answer)) >= 3 and not is_object and not loops(words_apart, 3, r"\W+")


def claims_picture(answer: str, asked_about_picture: bool = False) -> bool:
    """Whether a sentence of the answer says what a picture shows, rather than that there is none.

    asked_about_picture: the question was about one, so that "it is a dog" is about it too.
    """
    return any(
        _GUESSES.search(sentence)
        or (
            (_SHOWS.search(sentence) or (asked_about_picture and _NAMES.search(sentence)))
            and not _DENIES.search(sentence)
        )
        for sentence in _SENTENCE.findall(answer)
    )
