"""Each server's folder of uploads: private, its own, and gone with the server."""

import subprocess
import sys
from pathlib import Path

import pytest

from adapter.server.deployment import _LOCK, _PREFIX, upload_folder
from tests.app_process import PATIENCE, ROOT

PROGRAM = """
import sys
from adapter.server.deployment import upload_folder
with upload_folder(sys.argv[1]) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folder_is_private_new_and_deleted_at_the_end(tmp_path):
    with upload_folder(str(tmp_path / "a" / "b")) as one, upload_folder(str(tmp_path / "a" / "b")) as two:
        assert one != two and {one.parent, two.parent} == {(tmp_path / "a" / "b").resolve()}
        for folder in (one, two):
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "below").mkdir()
            (folder / "below" / "picture.png").write_bytes(b"x")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_leftovers_of_killed_servers_are_deleted_and_nothing_else(tmp_path):
    foreign = [tmp_path / name for name in ("tmpabcd", "llama-adapter-notes", "other/llama-adapter-x")]
    for path in foreign:
        path.mkdir(parents=True)
        (path / "kept").write_text("x")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with upload_folder(str(tmp_path)) as there, subprocess.Popen(command, cwd=ROOT, **pipes) as killed:
        leftover = Path(killed.stdout.readline().strip())
        (leftover / "old.png").write_bytes(b"x")
        (leftover / "out").symlink_to(foreign[0])
        killed.kill()
        killed.wait(PATIENCE)
        assert leftover.is_dir()
        with upload_folder(str(tmp_path)) as mine:
            assert not leftover.exists() and there.is_dir() and mine.is_dir()
    assert all((path / "kept").read_text() == "x" for path in foreign)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama-adapter-notes", "other", "tmpabcd"]


@pytest.mark.parametrize("planted", ["folder", "mark"])
def test_planted_leftovers_are_not_followed(tmp_path, planted):
    """What somebody else puts into a shared temporary folder must not make a server delete files elsewhere."""
    there, parent = tmp_path / "there", tmp_path / "shared"
    for folder in (there, parent):
        folder.mkdir()
    (there / "diary").write_text("x")
    (there / _LOCK).touch()
    trap = parent / f"{_PREFIX}trap"
    if planted == "folder":
        trap.symlink_to(there)
    else:
        trap.mkdir()
        (trap / "diary").write_text("x")
        (trap / _LOCK).symlink_to(there / _LOCK)
    with upload_folder(str(parent)):
        assert (trap / "diary").read_text() == (there / "diary").read_text() == "x"
