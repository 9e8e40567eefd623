"""Paths of the trainer with base and adapter on a device that is not the CPU: here, on a pretended one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.app_process import ROOT


@pytest.mark.slow
def test_the_trainer_works_on_another_device(tiny_folder, tmp_path):
    """All in one process: the device is there for its whole life. What is on the wrong device is found."""
    command = [sys.executable, "-m", "tests.train.device_paths", str(tiny_folder), str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    failures = json.loads(run.stdout.splitlines()[-1])
    assert "WrongDevice" in failures.pop("control")
    assert failures == dict.fromkeys(["text", "pictures", "keep_text", "stop_and_resume"], ""), run.stderr
