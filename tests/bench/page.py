"""The page's program under visitors, each on a connection of its own."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.app_process import app_process
from tests.bench.engine import PICTURE
from tests.bench.programs import Task, timed
from tests.soak.people import Answer, Connection, Question


class Page:
    """Asks as `through` says, see Question."""

    def __init__(self, url: str, through: str) -> None:
        self._url, self._through = url, through
        self._visitors: list[Connection] = []

    def run(self, task: Task) -> tuple[float, int]:
        """As Run, with a visitor for each answer."""
        while len(self._visitors) < len(task.texts):
            self._visitors.append(Connection(self._url, "127.0.0.1", signed_in=False))

        # Those of the engine's requests: without penalty, and the base does not read along.
        settings = {"temperature": 0.0, "max_tokens": task.tokens, "repetition_penalty": 1.0, "xray": False}
        questions = [
            # The only shipped adapter that takes a picture.
            Question(text, self._through, adapter, PICTURE if adapter == "see" else None, settings=settings)
            for text, adapter in zip(task.texts, task.adapters, strict=True)
        ]
        through_page = self._through == "page"
        ask: Callable[[Connection, Any], Answer] = Connection.send if through_page else Connection.ask
        # A page that has been opened: only what it does for an answer is timed.
        asked = [*map(Connection.asked, self._visitors, questions)] if through_page else questions
        with ThreadPoolExecutor(len(task.texts)) as pool:
            answers: list[Answer] = []
            seconds = timed(lambda: answers.extend(pool.map(ask, self._visitors, asked)))
        return seconds, sum(len(a.tokens) if through_page else a.tokens[0] for a in answers)


@contextmanager
def start_page(through: str) -> Iterator[Page]:
    """through: see Question; one that tells the number of tokens."""
    with TemporaryDirectory() as folder, app_process(Path(folder)) as server:
        yield Page(server.url, through)
