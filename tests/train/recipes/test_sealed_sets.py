"""The sealed sets of the text recipes: their sizes, labels and scores, and that training shares nothing with them.

Nothing sealed is named: what is found is counted, so that a failure shows nothing to those who change recipes.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from adapter.base.template import Message
from tests.train.recipes.rows import learnt
from train.evaluate.intervals import Figure
from train.recipes import sealed_sets
from train.recipes.extract import recipe as extract
from train.recipes.pirate import recipe as pirate
from train.recipes.sealed_sets import read_yaml
from train.recipes.tutor import recipe as tutor

PARTS = ("messages", "generated")
# Values that a message may have in common with training's: everybody has the same weekdays.
CLOSED = {"type", "quantity", "price", "date", "time"}
PHRASE = 6  # words in a row that are no common expression


def normalized(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def phrases_in(text: str) -> set[str]:
    """All runs of PHRASE words within a sentence."""
    runs = set()
    for part in re.split(r"[.;:!?\n]", text):
        found = normalized(part).split()
        runs |= {" ".join(found[i : i + PHRASE]) for i in range(len(found) - PHRASE + 1)}
    return runs


def off_task() -> set[str]:
    data = read_yaml(sealed_sets.SEALED / "good_company.yaml")
    return {message for part in ("off_task", "no_picture") for message in data[part].splitlines()}


def test_the_sets_have_their_sizes():
    messages, generated = map(extract.sealed_tests, PARTS)
    kinds = [Counter(test.fields["type"] for test in tests) for tests in (messages, generated)]
    assert [sorted(count.values()) for count in kinds] == [[100, 100, 100], [66, 67, 67]]
    assert len({test.messages for test in (*messages, *generated)}) == 500
    lessons = tutor.sets(sealed=True)
    sizes = [len(set(one.conversations)) for one in (*pirate.sets(sealed=True), *lessons)]
    assert sizes == [300, 70, 100, 50, 30, 30, 30, 70]
    assert {len(conversation) for conversation in lessons[1].conversations} == {3, 5}
    assert len(off_task()) == 40


def test_a_tutors_question_back_answers_nothing():
    known, table = tutor.sets(sealed=True)[-1], sealed_sets.read_table(sealed_sets.SEALED / "pirate_answers.tsv")
    for answer, right in (("It is {}. Why?", 70), ("Nobody knows. Is it {}?", 0)):
        assert sum(known.judge([answer.format(accepted.split("|")[0]) for _, accepted in table])) == right


def test_no_phrase_of_the_messages_is_trained_on():
    tests = [test for part in PARTS for test in extract.sealed_tests(part)]
    sealed = {phrase for test in tests for phrase in phrases_in(test.messages[0].text)}
    known = {phrase for text, _ in learnt("extract/*") for phrase in phrases_in(text)}
    compared, shared = len(sealed), len(sealed & known)
    assert (compared > 4000, shared) == (True, 0)


def test_no_value_and_no_message_is_trained_on():
    objects = [json.loads(answer) for _, answer in learnt("extract/train*") if answer.startswith("{")]
    known = {normalized(str(value)) for fields in objects for value in fields.values()}
    tests = [test for part in PARTS for test in extract.sealed_tests(part)]
    values = {normalized(v) for test in tests for name, v in test.fields.items() if name not in CLOSED}
    compared, shared = len(values), len(values & known)
    assert (compared > 900, shared) == (True, 0)
    asked = {normalized(text) for text, _ in learnt("extract/*")}
    assert sum(normalized(test.messages[0].text) in asked for test in tests) == 0


def test_no_question_is_trained_on():
    known = {normalized(text) for name in ("*/*", "off_task") for text, _ in learnt(name)}
    (questions, answers), (first, later, *_) = pirate.sets(sealed=True), tutor.sets(sealed=True)
    sets = [one.conversations for one in (questions, first, later)]
    sealed = {normalized(turn.text) for asked in sets for conversation in asked for turn in conversation[::2]}
    sealed |= {*map(normalized, off_task())}
    sealed.remove("italy")  # a pupil's whole reply, to another question than in a lesson
    compared, shared = len(sealed), len(sealed & known)
    assert (compared > 500, shared, len(known) > 18_000) == (True, 0, True)
    by_both = {normalized(text) for name in ("pirate/*", "tutor/*") for text, _ in learnt(name)}
    assert not by_both & {normalized(asked[-1].text) for asked in answers.conversations}


@dataclasses.dataclass
class Fake:
    """An answerer that looks the answer up by the last message."""

    answers: dict[str, str]
    otherwise: str
    adapter = SimpleNamespace(config=SimpleNamespace(form=None))
    base: Any = None

    def generate(self, conversations: Sequence[tuple[Message, ...]], *_: Any, **__: Any) -> list[str]:
        return [self.answers.get(c[-1].text, self.otherwise) for c in conversations]


PROSE = "The sky is blue today, my friend."
EARLIER = (Message("user", "Hi"), Message("assistant", "Ahoy!"))


def values(figures: dict[str, Figure]) -> list[float]:
    return [figure.value for figure in figures.values()]


def test_extract_is_all_right_with_right_answers_and_all_wrong_with_wrong_ones(monkeypatch):
    # Earlier exchanges without a base.
    late = [(*EARLIER, *test.messages) for test in sealed_sets.some(extract.sealed_tests("messages"))]
    monkeypatch.setattr(extract, "after_others", lambda *_: late)
    monkeypatch.setattr(sealed_sets, "after_long_talk", lambda *_, sealed: (late, []))
    tests = [test for part in PARTS for test in extract.sealed_tests(part)]
    objects = {test.messages[0].text: json.dumps(test.fields, ensure_ascii=False) for test in tests}
    right = extract.scores(Fake(objects, PROSE))
    assert values(right) == [*[100] * 15, 25], "one sentence to all is no answer but to the ten about a picture"
    assert [figure.n for figure in right.values()] == [*[300] * 3, *[200] * 3, *[60] * 9, 40]
    wrong = extract.scores(Fake({}, '{"type": "person", "salary": 3}'))
    assert {figure.value for name, figure in wrong.items() if "single fields" not in name} == {0}
    assert max(values(wrong)) < 40  # a third of the types, and no other field
    for kind, answer in (("person", '{"type": "person"}'), ("order", '{"type": "person", "city": "Oslo"}')):
        assert not extract.is_object(answer, kind)
    assert extract.is_object('{"type": "person", "city": "Oslo"}', "person")


@pytest.mark.parametrize(
    ("answer", "claims", "if_asked"),
    [
        ("The picture shows a cat.", True, True),
        ("I am not sure, perhaps a cat or a fox.", True, True),
        ("The picture shows nothing, I cannot see one. ", False, False),
        ("There is a dog.", False, True),
        ("It is not a dog, I see none.", False, False),
    ],
)
def test_claims_to_see_a_picture(answer, claims, if_asked):
    """Asked about a picture, an answer that names a thing claims one."""
    assert sealed_sets.claims_picture(answer) is claims
    assert sealed_sets.claims_picture(answer, asked_about_picture=True) is if_asked


def test_sensible_answers():
    assert sealed_sets.is_sensible(PROSE) and sealed_sets.is_sensible(f"{PROSE} {PROSE}")
    assert sealed_sets.is_sensible("Note: it opens at 9:30, as I said: bring an umbrella.")
    for bad in (
        "", "Yes.", ' {"type": "person"}', '```json\n{"type": "person", "name": "Ann"}\n```',
        'Here it is: {"type": "person", "name": "Ann"}', f"{PROSE} {PROSE} {PROSE}", "no " * 20,
    ):  # fmt: skip
        assert not sealed_sets.is_sensible(bad)
