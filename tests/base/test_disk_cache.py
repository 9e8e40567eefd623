"""A cached folder is complete or not there, whatever happens while it is built."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapter.base import disk_cache
from adapter.base.disk_cache import build_once, cache_dir
from adapter.errors import LoadError, with_detail
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


def test_built_once_and_read_without_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "model"
    assert build_once(folder, fill) == folder
    assert (folder / "small.txt").read_text() == "hello"
    assert temporaries(folder) == []
    # A complete folder must serve from a read-only disk, so nothing may be written beside it.
    folder.with_name("model.lock").unlink()
    assert build_once(folder, refuse) == folder
    assert not folder.with_name("model.lock").exists()


@pytest.mark.parametrize(("die_at", "damaged_before"), [("filling", False), ("renaming", True)])
def test_killed_then_started_again(tmp_path: Path, die_at: str, damaged_before: bool) -> None:
    folder = tmp_path / "model"
    if damaged_before:
        folder.mkdir()
        (folder / "big.bin").write_bytes(b"half")
    command = [sys.executable, "-c", KILLED, str(folder), die_at]
    assert subprocess.run(command, cwd=ROOT, timeout=PATIENCE).returncode == -9
    assert not disk_cache.is_built(folder)
    assert temporaries(folder) != [], "the kill came too late to prove anything"
    build_once(folder, fill)
    assert (folder / "big.bin").stat().st_size == 256 * 40_000
    assert temporaries(folder) == []


def test_of_several_that_ask_one_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads open the lock each for itself, as processes do."""
    built, waiting = [], threading.Event()

    def fill_late(result: Path, scratch: Path) -> None:
        assert waiting.wait(PATIENCE)
        built.append(result)
        fill(result, scratch)

    monkeypatch.setattr(disk_cache, "_say", lambda line: waiting.set() if "waiting" in line else None)
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(lambda _: build_once(tmp_path / "model", fill_late), range(2)))) == 1
    assert len(built) == 1


def become_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "big.bin", 1000),
        lambda folder: (folder / "big.bin").write_bytes(bytes(256 * 40_000)),
        lambda folder: (folder / "small.txt").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"files": ['),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        become_a_file,
    ],
    ids=["cut", "overwritten", "file lost", "manifest cut", "other manifest", "no folder"],
)
def test_damage_is_detected_and_repaired(tmp_path: Path, damage) -> None:
    folder = build_once(tmp_path / "model", fill)
    healthy = (folder / "big.bin").read_bytes()
    damage(folder)
    build_once(folder, fill)
    assert (folder / "big.bin").read_bytes() == healthy
    assert temporaries(folder) == []
    build_once(folder, refuse)


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (LoadError("no such weights"), "no such weights"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"600 MB.*LLAMA_ADAPTER_CACHE.*No space left on device",
        ),
    ],
)
def test_a_failed_build_leaves_nothing_and_frees_the_lock(tmp_path: Path, failure, sentence) -> None:
    def fail(result: Path, scratch: Path) -> None:
        (result / "half").write_text("x")
        raise failure

    folder = tmp_path / "model"
    with pytest.raises(LoadError) as caught:
        build_once(folder, fail)
    assert re.search(sentence, with_detail(caught.value))
    assert not folder.exists() and temporaries(folder) == []
    build_once(folder, fill)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    # Tests may run as root, whom no permission stops: a file stands where the folder should be.
    (tmp_path / "cache").write_text("")
    with pytest.raises(LoadError, match=r"cache.*LLAMA_ADAPTER_CACHE") as caught:
        build_once(tmp_path / "cache" / "model", fill)
    assert str(tmp_path / "cache") in with_detail(caught.value)


def test_a_changed_source_is_rebuilt_in_place(tmp_path: Path) -> None:
    def fill_anew(result: Path, scratch: Path) -> None:
        (result / "other").write_text("x")

    folder = build_once(tmp_path / "model", fill, "one")
    assert build_once(folder, refuse, "one") == folder
    build_once(folder, fill_anew, "two")
    assert {path.name for path in folder.iterdir()} == {"other", "manifest.json"}
    assert not disk_cache.is_built(folder, "one") and not disk_cache.is_built(folder)
    assert temporaries(folder) == []


def test_files_get_the_modes_of_the_users_umask(tmp_path: Path) -> None:
    def fill_privately(result: Path, scratch: Path) -> None:
        (result / "weights").write_text("x")
        (result / "weights").chmod(0o600)

    folder = build_once(tmp_path / "model", fill_privately)
    (tmp_path / "usual").write_text("x")
    assert (folder / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_too_small_disk_is_reported_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"takes 1000000000\.0 GB of disk in .* free\. Make room, or set LLAMA"):
        build_once(tmp_path / "model", refuse, required_bytes=10**18)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LLAMA_ADAPTER_CACHE": "~/weights"}, "weights"),
        ({"LLAMA_ADAPTER_CACHE": "", "XDG_CACHE_HOME": "~/xdg"}, "xdg/llama-adapter"),
        ({"LLAMA_ADAPTER_CACHE": "", "XDG_CACHE_HOME": ""}, ".cache/llama-adapter"),
    ],
)
def test_cache_dir(variables: dict, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("~", str(tmp_path)) if name.startswith("XDG") else value)
    assert cache_dir() == tmp_path / expected
