"""Many people at once: a real `python app.py`, and visitors that each ask on a connection of their own."""

from __future__ import annotations

import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.app_process import AppProcess
from tests.soak.people import Answer, Connection, Question, questions

PICTURE = Path(sysconfig.get_path("purelib")) / "skimage/data/coffee.png"
ASKED = questions(("pirate", "extract"), "see", PICTURE, 24)[:14]  # through the page and /v1


@pytest.mark.slow
def test_concurrent_answers_equal_answers_alone(real_page: AppProcess) -> None:
    def ask(question: Question) -> Answer:
        with closing(Connection(real_page.url, "127.0.0.1", signed_in=False)) as visitor:
            return visitor.ask(question)

    alone = [ask(question) for question in ASKED]
    with ThreadPoolExecutor(16) as crowd:
        assert list(crowd.map(ask, ASKED)) == alone
