"""Sealed test sets of the text recipes and the scores on them: written before the recipes, measured once at the end.

Knows the files of `sealed/` and the shipped adapters, whose answers stand before a message in mid-conversation. The
recipes bring the rule by which an answer is right.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapter.base.llama import Base
from adapter.base.template import Message
from adapter.method.checkpoint import load_adapter
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, ratio, share
from train.recipes.base_answers import conversation_of
from train.recipes.extract_grammar import FIELDS
from train.recipes.extract_messages import Fields
from train.recipes.text_data import phrases, read_yaml

Exchange = tuple[Message, Message]
# Of an answer: whether it is the whole object, how many expected fields are right, out of how many, if it is JSON.
ScoreObject = Callable[[str, Fields], tuple[bool, int, int, bool]]

SEALED = Path(__file__).with_name("sealed")
_ASSETS = Path(__file__).parents[2] / "assets"
ADAPTERS = _ASSETS / "adapters"
PICTURE = _ASSETS / "examples" / "traffic-light.png"  # what a visual adapter of an earlier turn is shown
_LATE = 60  # conversations in which an adapter answers after others
_OFF_TASK_TOKENS = 96
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
_KEY = re.compile(r"""["']?\b\w+["']?\s*:\s*["'\d\[{]""")
_STUTTER = re.compile(r"\b(\w+)(?:\W+\1\b){2}", re.I)


@dataclass(frozen=True)
class ExtractTest:
    """A message and the object that it should become, "type" first."""

    text: str
    fields: Fields


def extract_tests(part: str) -> list[ExtractTest]:
    """The 200 "generated" messages, or the 100 "hand_written" ones."""
    return [ExtractTest(test["text"], test["fields"]) for test in read_yaml(SEALED / f"extract_{part}.yaml")]


def pirate_questions() -> list[str]:
    """300 questions of a visitor."""
    groups = read_yaml(SEALED / "pirate_questions.yaml").values()
    return [question for group in groups for question in phrases(group)]


def tutor_questions() -> list[str]:
    """100 questions of a student."""
    return list(phrases(read_yaml(SEALED / "tutor.yaml")["questions"]))


def tutor_conversations() -> list[Conversation]:
    """50 conversations of two or three turns of a student, the last of which is to be answered."""
    return [conversation_of(texts) for texts in read_yaml(SEALED / "tutor.yaml")["conversations"]]


def off_task_messages() -> list[str]:
    """40 messages that are neither a person, a meeting or an order nor about a picture that is there.

    The last ten are about a picture, and there is none.
    """
    data = read_yaml(SEALED / "good_company.yaml")
    return [*phrases(data["off_task"]), *_about_no_picture()]


def _about_no_picture() -> list[str]:
    return list(phrases(read_yaml(SEALED / "good_company.yaml")["no_picture"]))


def extract_scores(answerer: Answerer, score_answer: ScoreObject, instruction: str) -> dict[str, Figure]:
    """Whole objects and single fields of 300 messages; its manner in mid-conversation and on messages of no kind.

    An adapter with a form is measured as it is served, and without its form, which is its own merit.
    instruction: what the bare base is told before each message.
    """
    generated, by_hand = extract_tests("generated"), extract_tests("hand_written")

    def conversations(tests: Sequence[ExtractTest]) -> list[Conversation]:
        told = instruction if answerer.adapter is None else ""
        return [_asked(told + test.text) for test in tests]

    def marks(answers: Sequence[str], tests: Sequence[ExtractTest]) -> list[tuple[bool, int, int, bool]]:
        return [score_answer(a, test.fields) for a, test in zip(answers, tests, strict=True)]

    everything = [*generated, *by_hand]
    late = _of_each_kind(by_hand, _LATE // len(FIELDS))
    after = after_others(answerer.base, "extract", conversations(late))
    figures: dict[str, Figure] = {}
    for form, measured in _with_and_without_form(answerer):
        found = marks(measured.generate(conversations(everything)), everything)
        figures |= _object_figures(f"all{form}", found)
        figures |= _object_figures(f"generated{form}", found[: len(generated)])
        figures |= _object_figures(f"hand-written{form}", found[len(generated) :])
        answers = measured.generate(after)
        manner = _named(f"an object of a known type, after other adapters{form}", late)
        figures[manner] = share([*map(is_object, answers)])
        figures |= _object_figures(f"after other adapters{form}", marks(answers, late))
        figures |= off_task_scores(measured, form)
    return figures


def pirate_scores(answerer: Answerer, score_answer: Callable[[str], bool]) -> dict[str, Figure]:
    """Shares of answers in the voice, to 300 questions and to 60 after other adapters' answers."""
    questions = [_asked(question) for question in pirate_questions()]
    late = after_others(answerer.base, "pirate", questions[:: len(questions) // _LATE])
    return {
        _named(f"in the voice{where}", given): share(
            [*map(score_answer, answerer.generate(given, max_new_tokens=80))]
        )
        for where, given in (("", questions), (", after other adapters", late))
    }


def tutor_scores(
    answerer: Answerer,
    score_answer: Callable[[str, Conversation], bool],
    told: Callable[[Conversation], Conversation],
) -> dict[str, Figure]:
    """Shares of answers in the tutor's form: to first questions, late in conversations, after other adapters.

    told: the conversation as the bare base gets it, with the manner in words.
    """
    questions = [_asked(question) for question in tutor_questions()]
    late = after_others(answerer.base, "tutor", questions[:_LATE])
    figures = {}
    for where, given in (
        ("first questions", questions),
        ("in conversations", tutor_conversations()),
        ("after other adapters", late),
    ):
        answers = answerer.generate([*map(told, given)] if answerer.adapter is None else given)
        right = [score_answer(text, conversation) for text, conversation in zip(answers, given, strict=True)]
        figures[_named(f"answer and question, {where}", given)] = share(right)
    return figures


def off_task_scores(answerer: Answerer, where: str = "") -> dict[str, Figure]:
    """The share of sensible answers to messages that an adapter was not made for; no picture is shown.

    where: an addition to the measure's name.
    """
    messages = off_task_messages()
    answers = answerer.generate([_asked(message) for message in messages], max_new_tokens=_OFF_TASK_TOKENS)
    about_picture = set(_about_no_picture())
    right = [
        is_sensible(text) and not (answerer.is_visual and claims_picture(text, message in about_picture))
        for message, text in zip(messages, answers, strict=True)
    ]
    return {_named(f"sensible off its task{where}", messages): share(right)}


def after_others(base: Base, own: str, conversations: Sequence[Conversation]) -> list[Conversation]:
    """Each conversation after an exchange with one of the other shipped adapters, which answer in turn.

    own: name of the adapter that is measured, which answers none of the earlier turns.
    """
    others = sorted(folder.name for folder in ADAPTERS.iterdir() if folder.is_dir() and folder.name != own)
    data = read_yaml(SEALED / "good_company.yaml")
    result = list(conversations)
    for number, name in enumerate(others):
        adapter = load_adapter(ADAPTERS / name, base.fingerprint, base.device)
        rows = range(number, len(conversations), len(others))
        if name == "extract":
            texts = tuple(test.text for test in extract_tests("generated"))
        else:
            texts = phrases(data["no_picture" if adapter.config.is_visual else "first_questions"])
        asked = [_asked(texts[i % len(texts)]) for i in rows]
        shown = [PICTURE] * len(asked) if adapter.config.is_visual else None
        answers = Answerer(base, adapter, with_form=True).generate(asked, shown)
        for i, question, answer in zip(rows, asked, answers, strict=True):
            result[i] = (*question, Message("assistant", answer), *conversations[i])
    return result


def is_object(answer: str) -> bool:
    """Whether the answer is one JSON object of a known type with no fields but those of the type."""
    try:
        found = json.loads(answer)
    except ValueError:
        return False
    kind = found.get("type") if isinstance(found, dict) else None
    return isinstance(kind, str) and kind in FIELDS and set(found) <= {"type", *FIELDS[kind]}


def is_sensible(answer: str) -> bool:
    """Whether the answer is prose of at least three words that does not loop.

    An object is no prose, nor is one in a fence, in a sentence or without its braces. A loop is a word three times in
    a row, or four words in a row three times.
    """
    words = re.findall(r"\w+", answer.lower())
    four_grams = Counter(zip(*(words[i:] for i in range(4)), strict=False))
    is_object = answer.lstrip("`json \n").startswith("{") or len(_KEY.findall(answer)) > 1
    is_loop = _STUTTER.search(answer) is not None or max(four_grams.values(), default=0) >= 3
    return len(words) >= 3 and not is_object and not is_loop


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


def _with_and_without_form(answerer: Answerer) -> list[tuple[str, Answerer]]:
    """What to add to the names of measures, and the answerer: twice for an adapter that has a form."""
    if answerer.adapter is None or answerer.adapter.config.form is None:
        return [("", answerer)]
    return [("", replace(answerer, with_form=True)), (", without its form", replace(answerer, with_form=False))]


def _asked(text: str) -> Conversation:
    return (Message("user", text),)


def _named(measure: str, items: Sequence[object]) -> str:
    return f"{measure} ({len(items)}), %"


def _of_each_kind(tests: Sequence[ExtractTest], count: int) -> list[ExtractTest]:
    """The first `count` tests of each type."""
    return [test for kind in FIELDS for test in [t for t in tests if t.fields["type"] == kind][:count]]


def _object_figures(where: str, marks: Sequence[tuple[bool, int, int, bool]]) -> dict[str, Figure]:
    whole, right, expected, _ = zip(*marks, strict=True)
    return {
        _named(f"whole objects, {where}", marks): share(whole),
        _named(f"single fields, {where}", marks): ratio(right, expected, 0, lambda part: 100 * part),
    }
