"""A cached folder is complete or not there, whatever happens while it is built."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapter.base import disk_cache
from adapter.base.disk_cache import build_once
from tests.app_process import PATIENCE, ROOT

# Builds a folder and is killed without notice while it fills it, or before it renames it.
KILLED = """
import os, signal, sys
from pathlib import Path
from adapter.base import disk_cache
folder, rename = Path(sys.argv[1]), os.rename
def die(): os.kill(os.getpid(), signal.SIGKILL)
def fill(result, scratch):
    (result / "big.bin").write_bytes(b"a" * 300_000)
    if sys.argv[2] == "filling": die()
os.rename = lambda source, target: die() if Path(target) == folder else rename(source, target)
disk_cache.build_once(folder, fill)
"""


def fill(result: Path, scratch: Path) -> None:
    (result / "big.bin").write_bytes(bytes(range(256)) * 40_000)
    (result / "small.txt").write_text("hello")


def refuse(result: Path, scratch: Path) -> None:
    raise AssertionError("a complete folder was built again")


def temporaries(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f".{folder.name}.*"))


def test_built_once_and_read_without_the_lock(tmp_path):
    folder = tmp_path / "cache" / "model"
    assert build_once(folder, fill) == folder
    assert temporaries(folder) == []
    # A complete folder must serve from a read-only disk, so nothing may be written beside it.
    folder.with_name("model.lock").unlink()
    assert build_once(folder, refuse) == folder
    assert not folder.with_name("model.lock").exists()


@pytest.mark.parametrize("die_at", ["filling", "renaming"])
def test_killed_then_started_again(tmp_path, die_at):
    folder = tmp_path / "model"
    command = [sys.executable, "-c", KILLED, str(folder), die_at]
    assert subprocess.run(command, cwd=ROOT, timeout=PATIENCE).returncode == -9
    assert not disk_cache.is_built(folder)
    assert temporaries(folder) != [], "the kill came too late to prove anything"
    build_once(folder, fill)
    assert (folder / "big.bin").stat().st_size == 256 * 40_000
    assert temporaries(folder) == []


def test_of_several_that_ask_one_builds(tmp_path, monkeypatch):
    """Threads open the lock each for itself, as processes do."""
    built, looks, waiting, is_built = [], [], threading.Event(), disk_cache.is_built

    def fill_late(result: Path, scratch: Path) -> None:
        assert waiting.wait(PATIENCE)
        built.append(result)
        fill(result, scratch)

    def look(*asked: object) -> bool:
        looks.append(asked)
        if len(looks) == 3:  # one of them twice, the second time with the lock
            waiting.set()
        return is_built(*asked)

    monkeypatch.setattr(disk_cache, "is_built", look)
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(lambda _: build_once(tmp_path / "model", fill_late), range(2)))) == 1
    assert len(built) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "big.bin", 1000),
        lambda folder: (folder / "big.bin").write_bytes(bytes(256 * 40_000)),
        lambda folder: (folder / "manifest.json").write_text('{"files": ['),
    ],
)
def test_damage_is_detected_and_repaired(tmp_path, damage):
    folder = build_once(tmp_path / "model", fill)
    healthy = (folder / "big.bin").read_bytes()
    damage(folder)
    build_once(folder, fill)
    assert (folder / "big.bin").read_bytes() == healthy
    assert temporaries(folder) == []
    build_once(folder, refuse)
