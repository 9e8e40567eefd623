"""Recipe of the `tutor` adapter: any question is answered in one plain sentence, and a short question is asked back.

The lessons to learn from are written by a larger language model: the base's own end in the same few questions.
"""

import re
from pathlib import Path
from typing import Any

from train.evaluate.answerer import Conversation
from train.recipes.pirate.recipe import known_answers
from train.recipes.recipe import Recipe, RuledSet, recipe_by_rule
from train.recipes.sealed_sets import SEALED, conversation_of, loops, read_table, read_yaml, word_list

_DATA = Path(__file__).with_name("tutor.yaml")
_MAX_SENTENCE, _MAX_QUESTION = 25, 20  # words
_PARTS = re.compile(r"([^\n]+?[.!][\"”]?) ((?:[^.!?\n]|\.(?=\d))+\?)")
# An end of a sentence within the first: a tutor gives one. Initials and numbers such as 3.5 are none.
_INNER_END = re.compile(r"[.!?][\"”]?\s+(?=\S)(?<!\b[A-Za-z]\.\s)(?<!\b(?:Dr|Mr|St)\.\s)(?<!\b(?:Mrs|etc)\.\s)")
_LIST_MARK = re.compile(r"(?:[-*\u2022#>]|\d+[.)])\s")
# How an answer takes a student's reply.
_PRAISES = re.compile(
    r"\s*(?:yes|exactly|absolutely|indeed|of course|excellent|well done"
    r"|(?:(?:you(?:['’]re| are)|that(?:['’]s| is))(?: a| exactly| quite)? )?(?:right|correct|true|good|great))\b(?! not\b)",
    re.IGNORECASE,
)
_CONTRADICTS = re.compile(
    r"^\s*(no|not|actually)\b|\b(wrong|incorrect|false)\b|(\bnot|n['’]t) (quite|right|true|correct)\b", re.I
)
_DENIES = re.compile(r"\b(?:no|not|never|instead|rather|wrong)\b|n['’]t\b", re.IGNORECASE)
_PLURAL = re.compile(r"(?<!s)s$")
_SUFFIX = re.compile(r"(?:ing|edly|ed|ie|ier|ly|er|y|e)$")


def recipe(_: Any) -> Recipe:
    sealed = ["tutor.yaml", "tutor_replies.tsv", "pirate_answers.tsv"]
    return recipe_by_rule("tutor", sets, ["tutor.yaml", "replies.tsv"], sealed)


def sets(sealed: bool) -> list[RuledSet]:
    """Questions of a student, conversations whose last turn is to be answered, and right, strange and wrong replies:
    100, 50 and thrice 30 that are sealed, or 60, 30 and thrice 16 that the recipe was developed on. Beside the
    sealed ones stand the 70 `known_answers` of pirate's.
    """
    data = read_yaml(SEALED / "tutor.yaml") if sealed else read_yaml(_DATA)["development"]
    questions = [conversation_of(question) for question in data["questions"].splitlines()]
    conversations = [conversation_of(*texts) for texts in data["conversations"]]
    replies = read_table(SEALED / "tutor_replies.tsv" if sealed else _DATA.with_name("replies.tsv"))
    half = len(replies) // 2  # how far the reply to another question is taken from
    telling = {wrong: word for _, _, _, wrong, word in replies}
    result = [
        RuledSet("answer and question, first questions", questions, is_by_the_rule),
        RuledSet("answer and question, in conversations", conversations, is_by_the_rule),
        RuledSet(
            "does not contradict a right reply",
            [conversation_of(asked, said, right) for asked, said, right, *_ in replies],
            lambda text, asked: is_by_the_rule(text, asked) and not contradicts(text, asked),
        ),
        RuledSet(
            "comes back from a reply off the topic",
            [conversation_of(asked, said, replies[i - half][2]) for i, (asked, said, *_) in enumerate(replies)],
            lambda text, asked: is_by_the_rule(text, asked) and comes_back(text, asked),
        ),
        RuledSet(
            "does not agree with a wrong reply",
            [conversation_of(asked, said, wrong) for asked, said, _, wrong, _ in replies],
            lambda text, asked: is_by_the_rule(text, asked) and not agrees(text, telling[asked[-1].text]),
        ),
    ]
    if sealed:
        known = known_answers(sealed)  # by what is said: a question back answers nothing
        result.append(known._replace(is_right=lambda text, asked: known.is_right(_said(text), asked)))
    return result


def contradicts(text: str, asked: Conversation) -> bool:
    """Whether an answer to a right reply denies it, or has a new number in place of the reply's."""
    sentence, reply = re.split(r"(?<=[.!])[\"”]? ", text)[0], asked[-1].text
    found, right, known = map(_numbers, (sentence, reply, " ".join(message.text for message in asked)))
    return bool(_CONTRADICTS.search(sentence) or (right and found - known and not right & found))


def _numbers(text: str) -> set[str]:
    return {number.replace(",", "").rstrip(".") for number in re.findall(r"\d[\d.,]*", text)}


def comes_back(text: str, asked: Conversation) -> bool:
    """Whether an answer to a reply that is off the topic does not praise it and has a word of what was asked."""
    topic = " ".join(message.text for message in asked[:-1])
    return not _PRAISES.match(text) and bool(_content_words(text) & _content_words(topic))


def agrees(text: str, telling: str) -> bool:
    """Whether an answer to a wrong reply praises it, or says its telling word again as if it were so."""
    said = _said(text)
    repeats = re.search(rf"\b{re.escape(telling)}\b", said, re.IGNORECASE) and not _DENIES.search(said)
    return bool(_PRAISES.match(text) or repeats)


def _said(text: str) -> str:
    """The sentences of a text that are no questions."""
    sentences = re.split(r"(?<=[.!?])[\"”]? ", text)
    return " ".join(one for one in sentences if not one.endswith("?"))


def is_by_the_rule(text: str, conversation: Conversation) -> bool:
    """True for a sentence of at most 25 words and a question of at most 20 that belong to the topic, the question a
    new one, and do not loop.

    They belong to the topic if the two share a content word of at least four letters with what the user has said, and
    the question one with the user's last message or with the sentence. It is new if no earlier turn asks it.
    """
    match = _PARTS.fullmatch(text.strip())
    if match is None or _INNER_END.search(match[1]) or _LIST_MARK.match(match[1]):
        return False
    sentence, question = match.groups()
    said = " ".join(m.text for m in conversation if m.role == "user")
    earlier = {_bare(part) for m in conversation for part in re.findall(r"[^.!?\n]+", m.text)}
    return (
        2 <= len(sentence.split()) <= _MAX_SENTENCE
        and 3 <= len(question.split()) <= _MAX_QUESTION
        and bool(_content_words(text) & _content_words(said))
        and bool(_content_words(question) & _content_words(f"{conversation[-1].text} {sentence}"))
        and _bare(question) not in earlier
        and not loops(sentence)
        and not loops(question)
    )


def _content_words(text: str) -> set[str]:
    """The words of at least four letters that say what a text is about, without their endings, so that plant, plants
    and planting are the same; at least three letters stay.
    """
    stems = set()
    for word in re.findall(r"[^\W\d_]{4,}", text.lower()):
        if word not in word_list(_DATA, "function_words"):
            singular = _PLURAL.sub("", word)
            stem = _SUFFIX.sub("", singular)
            stems.add(stem if len(stem) >= 3 else singular)
    return stems


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
