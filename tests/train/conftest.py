"""Fixtures of several of the trainer's tests: records in a file, and a run that is asked to stop after a step."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def rows(tmp_path) -> Path:
    """A file of sixty records in Alpaca's format."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": f"{i}>", "output": str(i % 3)} for i in range(60)]))
    return path


@pytest.fixture
def stop_after(monkeypatch) -> Callable[[int], None]:
    """Lets the next run be asked to stop after its step `step`."""
    from train.run_folder import MetricsWriter

    record = MetricsWriter.record

    def stop_after(step: int) -> None:
        def record_and_interrupt(self, at, **values):
            record(self, at, **values)
            if at == step and "loss" in values:
                monkeypatch.setattr(MetricsWriter, "record", record)
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(MetricsWriter, "record", record_and_interrupt)

    return stop_after
