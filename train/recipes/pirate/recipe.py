"""Recipe of the `pirate` adapter: any question is answered as a pirate would, in one to three sentences.

The answers to learn from are the frozen base's own, put into the voice by rule, and a larger language model's.
"""

import re
from pathlib import Path
from typing import Any

from train.recipes.recipe import Recipe, RuledSet, recipe_by_rule
from train.recipes.sealed_sets import SEALED, conversation_of, read_table, read_yaml, word_list

_DATA = Path(__file__).with_name("pirate.yaml")
_GREETING = re.compile(
    r"\s*(?:arr|ahoy|avast|aye|shiver me timbers|yo ho)\b(?:,? +(?:ho|aye|there|me|ye|mateys?|hearties)\b)*",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"you(rs|rself|rselves|'\w+)|\w+'re|(s?he|t?here|what|who|where|how)'s|(is|are)n't")
# Text between back-quotes or double quotes, addresses and links are nobody's voice.
_LITERAL = re.compile(r"(`[^`]*`|\"[^\"]*\"|“[^”]*”|https?://\S+|\S+@\S+)")


def recipe(_: Any) -> Recipe:
    sealed = ["pirate_questions.yaml", "pirate_answers.tsv"]
    return recipe_by_rule("pirate", sets, ["pirate.yaml", "answers.tsv"], sealed)


def sets(sealed: bool) -> list[RuledSet]:
    """300 sealed questions of a visitor, or 60 of development; and `known_answers` beside them."""
    data = read_yaml(SEALED / "pirate_questions.yaml") if sealed else {"": read_yaml(_DATA)["development"]}
    asked = [conversation_of(question) for group in data.values() for question in group.splitlines()]
    return [RuledSet("in the voice", asked, lambda text, _: is_in_the_voice(text)), known_answers(sealed)]


def known_answers(sealed: bool) -> RuledSet:
    """70 sealed questions, or 35 of development, with a short answer that the base knows."""
    answers = answer_patterns(sealed)
    known = [conversation_of(question) for question in answers]
    return RuledSet("the right answer", known, lambda text, asked: answers_question(text, asked[-1].text, answers))


def answer_patterns(sealed: bool) -> dict[str, re.Pattern[str]]:
    """By the question, a pattern of the words that answer it: 70 of the sealed set, or 35 of development."""
    rows = read_table(SEALED / "pirate_answers.tsv" if sealed else _DATA.with_name("answers.tsv"))
    words = ((question, "|".join(map(re.escape, accepted.split("|")))) for question, accepted in rows)
    return {
        question: re.compile(rf"\b(?<!\d[.,])(?!(?<=\w['’])\w\b)(?:{accepted})\b(?![.,]\d)", re.IGNORECASE)
        for question, accepted in words
    }


def answers_question(text: str, question: str, answers: dict[str, re.Pattern[str]]) -> bool:
    """Whether an answer has a word that answers the question, and fits at most two of the other questions by words
    that are not asked about: one that names everything answers nothing.
    """
    others = (pattern for other, pattern in answers.items() if other != question and not pattern.search(question))
    return bool(answers[question].search(text)) and sum(bool(pattern.search(text)) for pattern in others) <= 2


def is_in_the_voice(text: str) -> bool:
    """Whether an answer greets like a pirate, uses a pirate word after that greeting too, and has none of the plain
    words that the voice always replaces (you, your, my, is, are, ...) outside quotations and code.
    """
    greeting = _GREETING.match(text)
    if not greeting:
        return False
    after = any(
        word in word_list(_DATA, "pirate_words") or (word.endswith("in'") and len(word) > 4)
        for word in _words_of(text[greeting.end() :])
    )
    return after and not any(w in word_list(_DATA, "untranslated") or _PLAIN.fullmatch(w) for w in _words_of(text))


def _words_of(text: str) -> list[str]:
    return re.findall(r"'?[a-z]+(?:'[a-z]*)*", _LITERAL.sub(" ", text.lower().replace("’", "'")))
