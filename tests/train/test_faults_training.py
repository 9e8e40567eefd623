"""A trainer that is killed beside the server: the page answers, its best adapter too, and the run goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.app_process import app_process
from tests.tiny_models import endless_base
from tests.train.test_tab import Trainer


@pytest.mark.slow
def test_a_killed_trainer_leaves_an_adapter_that_answers(tiny_folder: Path, tmp_path: Path) -> None:
    base = endless_base(tiny_folder, tmp_path / "base")
    trainer = Trainer(tmp_path / "runs", base)
    environment = {"LLAMA_ADAPTER_RUNS": str(trainer.folder)}
    with app_process(tmp_path / "server", "--base", str(base), environment=environment) as server:
        bare = server.answer()
        try:
            trainer.start("echo")
            run = trainer.until(trainer.saved_at(25))
            os.kill(run.record.pid or 0, signal.SIGKILL)
            run = trainer.until(lambda run: not run.alive)
            assert run.state == "killed" and run.saved and run.adapter
            server.check_alive()
            assert server.answer() == bare
            best = server.answer(model="echo")
            assert best != bare and best == server.answer(model="echo")
            killed_at = run.progress.step
            trainer.runs.resume("echo")
            run = trainer.until(lambda run: run.progress.step > killed_at + 25)
            assert [step for step, _ in run.progress.losses] == list(range(1, run.progress.step + 1))
            assert server.answer(model="echo")
        finally:
            trainer.runs.close()
        server.check_alive()
