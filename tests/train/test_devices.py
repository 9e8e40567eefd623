"""Every path of the trainer with base and adapter on a device that is not the CPU: here, on a pretended one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTROL = "control"  # what has to fail
PATHS = (
    "text", "half_precision", "gradient_checkpointing", "keep", "stop_and_resume", "start_from", "pictures",
    "evaluation", "a_recipe", "pirate", "extract", "see",
)  # fmt: skip


@pytest.fixture(scope="module")
def failures(tiny_folder, tmp_path_factory) -> dict[str, str]:
    """What went wrong in each path, all of which run in one process: the device is there for its whole life."""
    base = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny_folder, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    command = [sys.executable, "-m", "tests.train.device_paths", str(base), str(tmp_path_factory.mktemp("runs"))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {**json.loads(run.stdout.splitlines()[-1]), "log": run.stderr}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_path_works_on_another_device(failures, path):
    assert failures[path] == "", failures["log"]


@pytest.mark.slow
def test_a_wrong_device_is_found(failures):
    """Features of the CPU, given to an adapter that is not there."""
    assert "WrongDevice" in failures[CONTROL]
    assert set(failures) == {*PATHS, CONTROL, "log"}
