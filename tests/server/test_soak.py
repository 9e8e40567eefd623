"""What `make soak` would notice; and a crowd without attackers, on a real `python app.py`."""

from __future__ import annotations

import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from adapter.errors import LoadError
from adapter.method.checkpoint import load_adapter
from tests.app_process import ROOT, AppProcess
from tests.soak import attacks
from tests.soak.people import Answer, Connection, Question, questions
from tests.soak.siege import GROWTH_FILES, GROWTH_MB, Figures, Report


def test_the_verdict_counts_everything_that_must_not_be() -> None:
    figures = Figures(500.0, 20, 20, 0.0)
    good = {"attacks": {"flood": Counter({"429": 1})}, "figures": {"warm": figures, "end": figures}}
    assert Report(answers=5, **good).problems == []
    larger = Figures(501.0 + GROWTH_MB, 20, 21 + GROWTH_FILES, 0.0)
    for changes, count in (
        ({"differing": ["x"]}, 1),
        ({"unanswered": ["x"], "broken": ["y"]}, 2),
        ({"died": "it ended with -11"}, 1),
        ({"figures": {"warm": figures, "end": larger}}, 2),
        ({"attacks": {"flood": Counter()}}, 1),
        ({"attacks": {"flood": Counter({"soak: KeyError": 1})}}, 1),
    ):
        report = Report(**{**good, **changes})  # type: ignore[arg-type]
        assert len(report.problems) == count, changes


def test_a_response_that_tells_of_the_machine_is_a_success_of_the_attack() -> None:
    request = httpx.Request("GET", "http://here/")
    assert attacks.checked(httpx.Response(404, text="Nothing here.", request=request)) == "404"
    with pytest.raises(attacks.Broken, match="Traceback"):
        attacks.checked(httpx.Response(500, text="Traceback (most recent call last)", request=request))


def test_evil_adapters_are_finite(tmp_path: Path) -> None:
    """What is not finite is refused when it is loaded: an adapter that is refused attacks nobody."""
    shipped = ROOT / "assets" / "adapters"
    names = attacks.write_evil(shipped / "pirate", shipped / "see", 1536, tmp_path)
    refused = []
    for name in names:
        try:
            load_adapter(tmp_path / name)
        except LoadError:
            refused.append(name)
    assert len(names) == 8 and set(refused) <= {"lying"}


@pytest.mark.slow
def test_concurrent_answers_equal_answers_alone(real_page: AppProcess) -> None:
    picture = Path(sysconfig.get_path("purelib")) / "skimage/data/coffee.png"
    asked = questions(("pirate", "extract"), "see", picture, 24)[:14]  # through the page and /v1

    def ask(question: Question) -> Answer:
        with closing(Connection(real_page.url, "127.0.0.1", signed_in=False)) as visitor:
            return visitor.ask(question)

    alone = [ask(question) for question in asked]
    with ThreadPoolExecutor(16) as crowd:
        assert list(crowd.map(ask, asked)) == alone
