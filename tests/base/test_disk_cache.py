"""A cached folder is complete or not there, whatever happens while it is built."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapter.base import disk_cache
from adapter.base.disk_cache import Progress, build_once, cache_dir
from adapter.errors import LoadError, with_detail
from tests.app_process import PATIENCE, ROOT

# A builder to run in a process of its own: `die_at` names the moment at which it is killed without notice.
BUILDER = """
import os, signal, sys, time
from pathlib import Path
from adapter.base import disk_cache
folder, die_at = Path(sys.argv[1]), sys.argv[2]
def die(): os.kill(os.getpid(), signal.SIGKILL)
def fill(result, scratch, progress):
    progress.stage("convert")
    (result / "big.bin").write_bytes(b"a" * 300_000)
    if die_at == "filling": die()
    (result / "small.txt").write_text("hello")
    with (folder.parent / "log").open("a") as log: log.write("built\\n")
    deadline = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < deadline and not any("waiting" in p.read_text() for p in folder.parent.glob("*.err")):
        time.sleep(0.02)
rename = os.rename
def dying_rename(source, target):
    if die_at == "renaming" and Path(target) == folder: die()
    rename(source, target)
    if die_at == "renamed" and Path(target) == folder: die()
os.rename = dying_rename
disk_cache.build_once(folder, fill)
"""


def start_builder(
    folder: Path, die_at: str = "never", number: int = 0, patience: float = 0
) -> subprocess.Popen[bytes]:
    """A process that builds `folder`; while it does, it waits so long for another one that waits for it."""
    command = [sys.executable, "-c", BUILDER, str(folder), die_at, str(patience)]
    with open(folder.parent / f"{number}.err", "wb") as errors:
        return subprocess.Popen(command, cwd=ROOT, stderr=errors)


def fill(result: Path, scratch: Path, progress: Progress) -> None:
    (result / "big.bin").write_bytes(bytes(range(256)) * 40_000)
    (result / "small.txt").write_text("hello")


def refuse(result: Path, scratch: Path, progress: Progress) -> None:
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


@pytest.mark.parametrize("damaged_before", [False, True])
@pytest.mark.parametrize("die_at", ["filling", "renaming", "renamed"])
def test_killed_then_started_again(tmp_path: Path, die_at: str, damaged_before: bool) -> None:
    folder = tmp_path / "model"
    if damaged_before:
        folder.mkdir()
        (folder / "big.bin").write_bytes(b"half")
    assert start_builder(folder, die_at).wait(PATIENCE) == -9
    if die_at == "renamed":
        assert build_once(folder, refuse) == folder
        return
    assert not disk_cache.is_built(folder)
    assert temporaries(folder) != [], "the kill came too late to prove anything"
    build_once(folder, fill)
    assert (folder / "big.bin").stat().st_size == 256 * 40_000
    assert temporaries(folder) == []


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    builders = [start_builder(folder, number=i, patience=PATIENCE) for i in range(3)]
    codes = [builder.wait(PATIENCE) for builder in builders]
    errors = [file.read_text() for file in tmp_path.glob("*.err")]
    assert codes == [0, 0, 0], errors
    assert (tmp_path / "log").read_text() == "built\n"
    assert build_once(folder, refuse) == folder
    assert any("waiting" in text for text in errors)


def cut(folder: Path) -> None:
    os.truncate(folder / "big.bin", 1000)


def overwrite(folder: Path) -> None:
    with (folder / "big.bin").open("r+b") as file:
        file.seek(2_000_000)
        file.write(bytes(6_000_000))


def lose_a_file(folder: Path) -> None:
    (folder / "small.txt").unlink()


def garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": [')


def foreign_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def become_a_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("not a folder")


@pytest.mark.parametrize("damage", [cut, overwrite, lose_a_file, garble_manifest, foreign_manifest, become_a_file])
def test_damage_is_detected_and_repaired(tmp_path: Path, damage) -> None:
    folder = build_once(tmp_path / "model", fill)
    healthy = (folder / "big.bin").read_bytes()
    damage(folder)
    build_once(folder, fill)
    assert (folder / "big.bin").read_bytes() == healthy
    assert temporaries(folder) == []
    build_once(folder, refuse)


def test_failed_build_leaves_nothing_and_frees_the_lock(tmp_path: Path) -> None:
    def fail(result: Path, scratch: Path, progress: Progress) -> None:
        (result / "half").write_text("x")
        raise LoadError("no such weights")

    folder = tmp_path / "model"
    with pytest.raises(LoadError, match="no such weights"):
        build_once(folder, fail)
    assert not folder.exists()
    assert temporaries(folder) == []
    build_once(folder, fill)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    # Tests may run as root, whom no permission stops: a file stands where the folder should be.
    (tmp_path / "cache").write_text("")
    with pytest.raises(LoadError, match=r"cache.*LLAMA_ADAPTER_CACHE") as caught:
        build_once(tmp_path / "cache" / "model", fill)
    assert str(tmp_path / "cache") in with_detail(caught.value)


def test_full_disk(tmp_path: Path) -> None:
    def run_out(result: Path, scratch: Path, progress: Progress) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LoadError, match=r"600 MB.*LLAMA_ADAPTER_CACHE") as caught:
        build_once(tmp_path / "model", run_out)
    assert "No space left on device" in with_detail(caught.value)
    assert temporaries(tmp_path / "model") == []


def test_a_changed_source_is_rebuilt_in_place(tmp_path: Path) -> None:
    def fill_anew(result: Path, scratch: Path, progress: Progress) -> None:
        (result / "other").write_text("x")

    folder = build_once(tmp_path / "model", fill, "one")
    assert build_once(folder, refuse, "one") == folder
    build_once(folder, fill_anew, "two")
    assert {path.name for path in folder.iterdir()} == {"other", "manifest.json"}
    assert not disk_cache.is_built(folder, "one") and not disk_cache.is_built(folder)
    assert temporaries(folder) == []


def test_a_too_small_disk_is_reported_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"takes 1000000000\.0 GB of disk in .* free\. Make room, or set LLAMA"):
        build_once(tmp_path / "model", refuse, required_bytes=10**18)
    assert temporaries(tmp_path / "model") == []


def test_files_get_the_modes_of_the_users_umask(tmp_path: Path) -> None:
    def fill_privately(result: Path, scratch: Path, progress: Progress) -> None:
        (result / "weights").write_text("x")
        (result / "weights").chmod(0o600)

    folder = build_once(tmp_path / "model", fill_privately)
    (tmp_path / "usual").write_text("x")
    assert (folder / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", "~/weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "weights"
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", "here")
    assert cache_dir() == Path.cwd() / "here"
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "llama-adapter"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "llama-adapter"
