"""What `make soak` would notice; and a crowd without attackers, on a real `python app.py`."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.soak import siege
from tests.soak.people import Answer, Connection, Question, questions
from tests.soak.siege import ANSWER_TOKENS, PICTURE, TEXT, VISUAL, Figures, Report


def test_the_verdict_counts_everything_that_must_not_be():
    figures = Figures(500.0, 20, 20, 0.0)
    good = {"attacks": {"flood": Counter({"429": 1})}, "figures": {"warm": figures, "end": figures}}
    assert Report(answers=5, **good).problems == []
    larger = Figures(501.0 + siege.GROWTH_MB, 21 + siege.GROWTH_THREADS, 21 + siege.GROWTH_FILES, 0.0)
    for changes, count in (
        ({"differing": ["x"]}, 1),
        ({"unanswered": ["x"], "broken": ["y"]}, 2),
        ({"died": "it ended with -11"}, 1),
        ({"figures": {"warm": figures, "end": larger}}, 3),
        ({"attacks": {"flood": Counter()}}, 1),
        ({"attacks": {"flood": Counter({"soak: KeyError": 1})}}, 1),
    ):
        report = Report(**{**good, **changes})
        assert len(report.problems) == count, changes


@pytest.mark.slow
def test_concurrent_answers_equal_answers_alone(real_page):
    asked = questions(TEXT, VISUAL, PICTURE, ANSWER_TOKENS)[:14]  # through the page and /v1

    def ask(question: Question) -> Answer:
        with closing(Connection(real_page.url, "127.0.0.1", signed_in=False)) as visitor:
            return visitor.ask(question)

    alone = [ask(question) for question in asked]
    with ThreadPoolExecutor(16) as crowd:
        assert list(crowd.map(ask, asked)) == alone
