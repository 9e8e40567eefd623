"""The watched question: asked of the frozen base, and of a run's adapter whenever a better one was saved."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from adapter.base.image_file import open_image
from adapter.base.template import Message
from adapter.errors import AdapterError
from adapter.serve.request import Client
from adapter.serve.settings import Settings
from adapter.server.generation import EngineProvider
from adapter.ui.answer_stream import build_request, whole_answer
from train.ui.runs import TrainingRun, TrainingRuns, WatchedAnswer

log = logging.getLogger(__name__)
MAX_TOKENS = 48


class Watch:
    """Thread-safe. What is due is asked while somebody looks at the run, in a thread of its own."""

    def __init__(self, runs: TrainingRuns, provider: EngineProvider) -> None:
        self.runs, self.provider = runs, provider
        self._asking: set[str] = set()  # runs

    def look(self, run: TrainingRun, client: Client) -> list[WatchedAnswer]:
        """The answers so far. client: who looks, and so asks."""
        answers = self.runs.watched(run.name)
        step = self._due(run, answers)
        if step is not None and run.name not in self._asking:
            self._asking.add(run.name)
            threading.Thread(target=self._ask, args=(run, step, client), daemon=True).start()
        return answers

    def is_asking(self, run: TrainingRun) -> bool:
        return run.name in self._asking or self._due(run, self.runs.watched(run.name)) is not None

    def _due(self, run: TrainingRun, answers: list[WatchedAnswer]) -> int | None:
        """The step whose answer is missing: 0, of the base, or that of the adapter that is saved."""
        if not run.record.question:
            return None
        step = run.progress.kept(run.recipe.train.save)[0] if run.adapter and answers else 0
        return step if not answers or step > answers[-1].step else None

    def _ask(self, run: TrainingRun, step: int, client: Client) -> None:
        try:
            if (engine := self.provider.engine()) is None:
                return
            settings = Settings().replace(adapter=run.name if step else "", temperature=0.0, max_tokens=MAX_TOKENS)
            picture = run.record.picture if step else ""
            image = open_image(Path(picture)) if picture else None
            request = build_request((Message("user", run.record.question),), settings, image, client)
            text = whole_answer(engine, request)
            self.runs.add_watched(run.name, WatchedAnswer(step, text.strip()))
        except Exception as error:  # the next look asks again
            if not isinstance(error, AdapterError):
                log.exception("a watched question was not answered")
        finally:
            self._asking.discard(run.name)
