"""The Train tab without a browser: strangers' zips, data, names, commands, and real runs on the tiny base."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

import app
from adapter.base.embedded import BASE
from adapter.errors import AdapterError, BadInput, Busy
from adapter.method.checkpoint import load_adapter
from adapter.method.config import check_name
from adapter.server import archive as unpack
from tests.ui.test_page_parts import Ready, Shelf
from train.config import read_recipe, recipe_text
from train.ui import data_upload as intake
from train.ui import events as handlers
from train.ui.charts import run_html
from train.ui.plan import Plan, estimate_minutes, free_name, samples
from train.ui.preview import preview_html
from train.ui.runs import RECIPE, RECORD, Progress, Record, Run, TrainingRuns, read_progress

SMALL = unpack.Limits(files=20, file_bytes=2 * 2**20, total_bytes=3 * 2**20, ratio=50)
ROWS = [{"instruction": f"say {i}", "output": f"{i}!"} for i in range(30)]


def png(colour: str = "red", side: int = 8) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(data, "PNG")
    return data.getvalue()


def zipped(path: Path, files: dict[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


# Zips of strangers.


def hostile(path: Path, kind: str) -> Path:
    link, device = (stat.S_IFLNK | 0o777) << 16, (stat.S_IFCHR | 0o666) << 16
    good = {"a.png": png(), "a.txt": b"red"}
    simple: dict[str, tuple[dict[str, bytes], dict[str, int]]] = {
        "parent": ({**good, "../evil.txt": b"x"}, {}),
        "parent within": ({**good, "a/../../evil.txt": b"x"}, {}),
        "backslashes": ({**good, "..\\evil.txt": b"x"}, {}),
        "absolute": ({**good, "/tmp/evil.txt": b"x"}, {}),
        "drive": ({**good, "C:/evil.txt": b"x"}, {}),
        "link": ({"a.png": b"/etc/passwd"}, {"external_attr": link}),
        "device": ({"a.png": b""}, {"external_attr": device}),
        "count": ({f"{i}.txt": b"x" for i in range(21)}, {}),
        "large file": ({"a.txt": os.urandom(2**21 + 1)}, {}),
        "large in all": ({f"{i}.txt": os.urandom(2**20) for i in range(4)}, {}),
        "bomb": ({"a.txt": bytes(2**21)}, {}),
        "twice": ({"a.txt": b"x", "A.TXT": b"y"}, {}),
        "long name": ({"a" * 300 + ".txt": b"x"}, {}),
        "line break": ({"a\nb.txt": b"x"}, {}),
        "nothing wanted": ({"run.exe": b"MZ", "page.html": b"<script>"}, {}),
        "folder and file": ({"a.txt": b"x", "a.txt/b.txt": b"y"}, {}),
    }
    if kind in simple:
        files, attributes = simple[kind]
        return zipped(path, files, **attributes)
    zipped(path, {"a.txt": bytes(2**21)} if kind == "lying size" else good)
    data = bytearray(path.read_bytes())
    if kind == "lying size":  # both headers say ten bytes
        for at, field in ((data.find(b"PK\3\4"), 22), (data.find(b"PK\1\2"), 24)):
            data[at + field : at + field + 4] = (10).to_bytes(4, "little")
    elif kind == "locked":
        for at, field in ((data.find(b"PK\3\4"), 6), (data.find(b"PK\1\2"), 8)):
            data[at + field] |= 1
    elif kind == "unknown packing":
        for at, field in ((data.find(b"PK\3\4"), 8), (data.find(b"PK\1\2"), 10)):
            data[at + field] = 99
    elif kind == "damaged":
        data[40:60] = bytes(20)
    elif kind == "cut off":
        del data[-30:]
    elif kind == "empty":
        data.clear()
    elif kind == "no zip":
        data[:] = b"hello" * 100
    else:
        raise AssertionError(kind)
    path.write_bytes(data)
    return path


HOSTILE = [
    "parent", "parent within", "backslashes", "absolute", "drive", "link", "device", "count", "large file",
    "large in all", "bomb", "twice", "long name", "line break", "nothing wanted", "folder and file", "lying size",
    "locked", "unknown packing", "damaged", "cut off", "empty", "no zip",
]  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_zip_that_could_do_harm_is_refused_with_a_sentence(kind: str, tmp_path: Path) -> None:
    into = tmp_path / "around" / "into"
    into.mkdir(parents=True)
    with pytest.raises(BadInput) as error:
        unpack.unpack(hostile(tmp_path / "x.zip", kind), into, SMALL)
    assert str(error.value)[-1] == "." and str(tmp_path) not in str(error.value)
    # Whatever was written before the refusal: plain files, inside, and within the limits.
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and into not in path.parents]
    assert outside == [tmp_path / "x.zip"]
    inside = [path for path in into.rglob("*") if not path.is_dir()]
    assert all(path.is_file() and not path.is_symlink() for path in inside)
    assert sum(path.stat().st_size for path in inside) <= SMALL.total_bytes


def test_the_list_of_a_zip_is_counted_and_not_believed(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {f"{i}.txt": b"" for i in range(500)})
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\5\6")
    data[end + 8 : end + 12] = (1).to_bytes(2, "little") * 2  # "one file"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="more than 20 files"):
        unpack.unpack(path, tmp_path / "into", SMALL)


def test_a_good_zip_is_unpacked_and_what_is_of_no_use_is_named(tmp_path: Path) -> None:
    files = {
        "pictures/a.png": png(), "pictures/a.txt": b"a red square", "pictures/.DS_Store": b"x",
        "__MACOSX/pictures/._a.png": b"x", "pictures/notes.docx": b"x", "pictures/run.sh": b"x",
    }  # fmt: skip
    into = tmp_path / "into"
    into.mkdir()
    left_out = unpack.unpack(zipped(tmp_path / "x.zip", files), into)
    assert sorted(left_out) == ["pictures/notes.docx", "pictures/run.sh"]
    assert sorted(p.name for p in into.rglob("*.*")) == ["a.png", "a.txt"]


# Data.


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


@pytest.mark.parametrize("layout", ["beside", "in a folder", "captions.tsv", "captions.json", "chat", "llava"])
def test_zips_of_pictures_in_every_layout(layout: str, tmp_path: Path, into: Path) -> None:
    names = [f"{i}.png" for i in range(6)]
    pictures = {name: png(colour) for name, colour in zip(names, ["red", "blue", "green"] * 2, strict=True)}
    extra: dict[str, bytes] = {}
    if layout in ("beside", "in a folder"):
        extra = {f"{i}.txt": b"a square" for i in range(6)}
    elif layout == "captions.tsv":
        extra = {layout: "\n".join(f"{name}\ta square" for name in names).encode()}
    elif layout == "captions.json":
        extra = {layout: json.dumps(dict.fromkeys(names, "a square")).encode()}
    else:
        turns = {
            "chat": {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "it"}]},
            "llava": {"conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "it"}]},
        }
        rows = [{**turns[layout], "image": name} for name in names]
        extra = {"rows.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    files = {("set/" if layout == "in a folder" else "") + k: v for k, v in {**pictures, **extra}.items()}
    data = intake.open_upload(zipped(tmp_path / "squares.zip", files), into)
    assert data.pictures and len(data.records) == 6 and data.name == "squares.zip"
    assert all(record.image.is_relative_to(into) for record in data.records)


@pytest.mark.parametrize("image", ["/etc/hostname", "../x.zip", "a/../../x.zip"])
def test_no_file_that_was_not_sent_is_looked_at(image: str, tmp_path: Path, into: Path) -> None:
    rows = [{"instruction": "what?", "output": "x", "image": image}] * 5
    path = zipped(tmp_path / "x.zip", {"rows.jsonl": "\n".join(map(json.dumps, rows)).encode(), "a.png": png()})
    with pytest.raises(BadInput, match=r"rows.jsonl, line 1: .* outside of what was sent"):
        intake.open_upload(path, into)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.exe", b"MZ", "of no known kind"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"hello\nworld", "line 1, column 1: this is not JSON"),
        ("a.json", b'{"a": 1}', "the format cannot be told"),
        ("a.csv", b"cat.png,a cat\ndog.png,a dog", "names pictures that did not come with it"),
        (
            "a.jsonl",
            b'{"instruction": "x", "output": "y"}',
            "has 1 record that can be learnt from; 4 are the least.",
        ),
        (
            "a.jsonl",
            (json.dumps({"instruction": "x" * 600, "output": "y" * 600}) + "\n").encode() * 5,
            "has 0 records that can be learnt from; 4 are the least. "
            "All 5 are too long: nothing of the answer lies within the first 512 tokens.",
        ),
        (
            "a.jsonl",
            b'{"instruction": "x", "output": "y"}\n' * 3 + b'{"instruction": "x"}\n',
            "line 4: 'output' is missing",
        ),
    ],
)
def test_data_that_cannot_be_used_is_a_sentence(
    name: str, content: bytes, said: str, tmp_path: Path, into: Path, tiny_folder: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterError) as error:
        intake.make_preview(intake.open_upload(tmp_path / name, into), str(tiny_folder))
    assert said in str(error.value)


def test_limits_of_an_upload(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_RECORDS", 20)
    with pytest.raises(BadInput, match="30 records; 20 are the limit"):
        intake.open_upload(jsonl(tmp_path / "a.jsonl", ROWS), into)
    monkeypatch.setattr(intake, "MAX_FILE_BYTES", 100)
    with pytest.raises(BadInput, match="are the limit"):
        intake.open_upload(tmp_path / "a.jsonl", into)
    with pytest.raises(BadInput, match="no longer on the server"):
        intake.open_upload(tmp_path / "gone.jsonl", into)


def test_a_preview_says_what_is_there_what_is_broken_and_what_is_cut(
    tmp_path: Path, into: Path, tiny_folder: Path
) -> None:
    rows = [
        *ROWS,
        '{"instruction": "x"',
        {"instruction": "long", "output": "y" * 600},
        {"instruction": "<b>", "output": ""},
    ]
    preview = intake.make_preview(intake.open_upload(jsonl(tmp_path / "a.jsonl", rows), into), str(tiny_folder))
    shown = preview_html(preview)
    assert "33 records of text in a.jsonl" in shown
    assert "a.jsonl, line 31, column 20: this is not JSON" in shown.replace("&#x27;", "'")
    assert "1 longer than 512 tokens loses its end" in shown and "1 with an empty answer" in shown
    assert "say 0" in shown and str(tmp_path) not in shown and "<b>" not in shown
    assert preview.usable == 32 and 0 < preview.tokens < 100


def test_a_preview_of_pictures_shows_them_and_names_those_that_are_none(
    tmp_path: Path, into: Path, tiny_folder: Path
) -> None:
    files = {f"{i}.png": png() for i in range(6)} | {f"{i}.txt": b"a <i>square" for i in range(8)}
    files["6.png"] = b"no picture"
    preview = intake.make_preview(intake.open_upload(zipped(tmp_path / "x.zip", files), into), str(tiny_folder))
    shown = preview_html(preview)
    assert shown.count("data:image/jpeg;base64,") == 6 and "6.png" in shown and "<i>square" not in shown
    assert preview.pictures and preview.usable == 6 and str(tmp_path) not in shown


def test_pictures_without_a_caption_are_named(tmp_path: Path, into: Path, tiny_folder: Path) -> None:
    def preview(captions: int, pictures: int) -> intake.Preview:
        files = {f"{i}.png": png() for i in range(pictures)} | {f"{i}.txt": b"red" for i in range(captions)}
        shutil.rmtree(into)
        into.mkdir()
        return intake.make_preview(intake.open_upload(zipped(tmp_path / "x.zip", files), into), str(tiny_folder))

    shown = preview_html(preview(captions=5, pictures=9))
    assert "5 records of pictures" in shown and "4 pictures have no caption" in shown
    assert all(f"<li>{i}.png</li>" in shown for i in range(5, 9)) and "cannot be learnt from" not in shown
    assert "no caption" not in preview_html(preview(captions=5, pictures=5))
    with pytest.raises(BadInput, match=r"has 2 records .* 4 pictures have no caption, 2\.png for one: put NAME"):
        preview(captions=2, pictures=6)


# Names, recipes and commands.


@pytest.mark.parametrize(
    "name",
    ["", " ", "../x", "a/b", "a\\b", "CON", "con", "lpt1", "base", "x" * 300, ".hidden", "-x", "a b", "a.", "é",
     "a\n", "poet", "POET", "x\0", "~", "$(id)"],
)  # fmt: skip
def test_names_that_are_no_folder_or_taken_are_refused(name: str) -> None:
    if name == "a\n":
        assert check_name(name, []) == "a"
        return
    with pytest.raises(BadInput):
        check_name(name, ["poet"])


@pytest.mark.parametrize("wanted", ["poet", "my data (1)", "", "…", "CON", "x" * 300, "../../x", "A"])
def test_a_proposed_name_is_one_that_is_accepted(wanted: str) -> None:
    taken = ["poet", "poet-2", "a"]
    assert check_name(free_name(wanted, taken), taken)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "yes", "description": "Says: 'ahoy' \"#1\" $HOME; & more"},
        {"name": "1e5", "description": "null", "steps": 100, "lr": 0.01},
        {"pictures": True, "extra": {"preset": "small", "vision": {"hidden": 32}, "data": {"validation": 0.2}}},
        {"template": "alpaca", "extra": {"preset": "quick", "steps": 60}, "steps": 60},
    ],
)
def test_the_command_by_hand_is_the_run(changes: dict[str, Any], tmp_path: Path) -> None:
    plan = Plan(
        **{"name": "n", "data": Path("my data.jsonl"), "shown": "my data.jsonl", "pictures": False, **changes}
    )
    words = shlex.split(plan.command())
    assert words[:3] == ["python", "-m", "train"]
    by_hand = read_recipe(None, words[3:])
    assert by_hand == plan.recipe()
    (tmp_path / RECIPE).write_text(recipe_text(plan.recipe()))
    assert read_recipe(tmp_path / RECIPE, []) == by_hand
    assert by_hand.train.name == plan.name and by_hand.train.description == plan.description
    assert plan.steps is None or by_hand.train.steps == plan.steps


def test_what_is_typed_counts_more_than_what_a_sample_says_of_itself() -> None:
    said = {"description": "The sample's own."}
    assert "description=The sample's own." in Plan("x", Path("x"), "x", False, extra=said).assignments("x")
    typed = Plan("x", Path("x"), "x", False, "Mine.", extra=said).assignments("x")
    assert "description=Mine." in typed and "description=The sample's own." not in typed


def test_an_estimate_counts_the_talk_before_the_rows(tmp_path: Path) -> None:
    def guessed(history: float) -> float:
        config = Plan("x", Path("x"), "x", False, extra={"history": history}).recipe().train
        found, measured = estimate_minutes(config, 60.0, BASE, tmp_path)
        assert found is not None and not measured
        return found

    assert guessed(1.0) > guessed(0.5) > guessed(0.0) > 0


def test_the_command_names_a_base_without_its_folder() -> None:
    plan = Plan("n", Path("a"), "a", False, base="/somewhere/secret/tiny")
    assert plan.command("r/n").endswith("--base tiny --out r/n") and plan.recipe().base == "/somewhere/secret/tiny"


@pytest.mark.parametrize("wrong", [{"steps": 9}, {"steps": 10**9}, {"lr": 0.0}, {"lr": 1e9}, {"lr": float("nan")}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Plan("n", Path("a"), "a", False, **wrong)


def test_every_sample_is_there_and_can_be_trained_on() -> None:
    found = samples()
    assert found and len({sample.name for sample in found}) == len(found)
    for sample in found:
        data = intake.open_sample(sample.path)
        plan = Plan(sample.name, data.path, "x", data.pictures, extra=sample.settings)
        assert plan.recipe().train.steps and len(data.records) >= 20 and sample.question


# Figures.


def test_progress_is_read_while_it_is_written(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == Progress()
    lines = [
        {"step": 0, "untrained_loss": 3.0, "evaluation_seconds": 2.0}, {"step": 0, "gates": [0.0, 0.0]},
        *({"step": i, "loss": 3 - i, "largest_gate": 0.1, "tokens": 100 * i, "seconds": 0.5 * i} for i in (1, 2)),
        {"step": 2, "held_out_loss": 1.5, "evaluation_seconds": 2.0}, {"step": 2, "gates": [0.1, 0.2]},
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    progress = read_progress(tmp_path)
    assert (progress.step, progress.untrained, progress.best) == (2, 3.0, 1.5)
    assert progress.gates == (0.1, 0.2) and progress.losses == ((1, 2.0), (2, 1.0))
    assert progress.seconds_left(10, 4) == pytest.approx(8 * 0.5 + 2 * 2.0)
    shown = run_html(Run("n", "training", Record(0.0), recipe_of("n"), progress, "", True, True))
    assert "Step 2 of 1,000" in shown and "<svg" in shown and "layer 2: 0.200" in shown


# Runs.


def recipe_of(name: str) -> Any:
    return Plan(name, Path("x"), "x", False, steps=1000).recipe()


class Trainer:
    """Runs on the tiny base in a folder of their own."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        self.runs = TrainingRuns(folder)

    def start(self, name: str = "echo", steps: int = 600, runs: TrainingRuns | None = None) -> str:
        def plan(folder: Path) -> tuple[Plan, str, str]:
            data = jsonl(folder / "rows.jsonl", ROWS)
            extra = {"eval_every": 20, "prompt_length": 4}
            return Plan("x", data, "x", False, steps=steps, base=str(self.base), extra=extra), "say 3", ""

        return (runs or self.runs).start(name, ["poet"], plan)

    def until(self, condition: Callable[[Run], bool], runs: TrainingRuns | None = None, name: str = "echo") -> Run:
        end = time.monotonic() + 240
        while True:
            run = (runs or self.runs).get(name)
            assert run is not None
            if condition(run):
                return run
            assert time.monotonic() < end, (run.state, self.runs.log(name))
            time.sleep(0.02)

    def saved_at(self, step: int) -> Callable[[Run], bool]:
        return lambda run: run.saved and run.progress.step >= step


@pytest.fixture
def trainer(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trainer = Trainer(tmp_path / "runs", tiny_folder)
    yield trainer
    trainer.runs.close()


@pytest.mark.slow
def test_the_life_of_a_run(trainer: Trainer) -> None:
    """Started, stopped, gone on with, killed, found again by other servers, and brought to its end."""
    trainer.start()
    run = trainer.runs.get("echo")
    assert run is not None and run.state == "starting" and trainer.runs.names() == ["echo"]
    other = TrainingRuns(trainer.folder)  # a server that was started again
    assert other.running() == "echo"
    with pytest.raises(Busy, match="“echo” is being trained"):
        trainer.start("second", runs=other)
    assert not (trainer.folder / "second").exists()
    run = trainer.until(trainer.saved_at(25))
    assert run.state == "training" and run.adapter and run.seconds_left and run.record.question == "say 3"
    assert run.record.pid is not None and psutil.Process(run.record.pid).nice() > psutil.Process().nice()
    load_adapter(trainer.folder / "echo")  # at any time
    # Stop, by whichever server; asking again does not hurry it into losing its save.
    other.stop("echo")
    other.stop("echo")
    run = trainer.until(lambda run: not run.alive)
    assert run.state == "stopped" and run.saved and run.adapter and 0 < run.progress.step < 600
    stopped_at = run.progress.step
    # On, and killed.
    other.resume("echo")
    run = trainer.until(lambda run: run.alive, other)
    assert run.state == "starting" and run.progress.step == stopped_at  # older figures do not make it train
    run = trainer.until(trainer.saved_at(stopped_at + 45), other)
    os.kill(run.record.pid or 0, signal.SIGKILL)
    run = trainer.until(lambda run: not run.alive, other)
    assert run.state == "killed" and run.saved and "killed it" in run_html(run) and "Go on" in run_html(run)
    assert trainer.runs.running() is None
    # On again, and the server that started it stops.
    last = TrainingRuns(trainer.folder)
    last.resume("echo")
    trainer.until(lambda run: run.progress.step > stopped_at + 60, last)
    assert last.close() == "echo" and last.close() == ""
    run = trainer.until(lambda run: not run.alive)
    assert run.state == "stopped" and run.saved
    # To the end: nothing was done twice, or left out.
    trainer.runs.resume("echo")
    run = trainer.until(lambda run: not run.alive)
    assert run.state == "ended" and not run.saved and run.progress.step == 600
    assert [step for step, _ in run.progress.losses] == list(range(1, 601))
    assert run.progress.untrained and run.progress.best and run.progress.best < run.progress.untrained
    with pytest.raises(BadInput, match="nothing to go on with"):
        trainer.runs.resume("echo")
    home = zipfile.ZipFile(handlers.zip_adapter(trainer.folder / "echo"))
    assert sorted(home.namelist()) == [f"echo/{name}" for name in sorted(handlers.SERVED)]


@pytest.mark.slow
def test_a_run_that_fails_says_why_and_its_name_is_free_again(trainer: Trainer) -> None:
    trainer.base = trainer.folder / "nowhere" / "base"
    trainer.start()
    run = trainer.until(lambda run: not run.alive)
    assert run.state == "failed" and not run.saved and "Traceback" not in run.message
    shown = run_html(run)
    assert "base" in run.message and str(trainer.folder) not in shown
    assert "echo" not in trainer.runs.taken()
    with pytest.raises(BadInput, match="already"):
        trainer.start("poet")


def test_a_stranger_with_the_number_of_a_run_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "echo"
    folder.mkdir()
    (folder / RECIPE).write_text(recipe_text(recipe_of("echo")))
    runs = TrainingRuns(tmp_path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(folder)])
    try:
        began = psutil.Process(sleeper.pid).create_time()
        me = psutil.Process()
        for pid, started, alive in (
            (sleeper.pid, began, True),  # its number, its time, its command
            (sleeper.pid, began - 3600, False),
            (me.pid, me.create_time(), False),
            (2**22 - 1, began, False),
            (None, None, False),
        ):
            record = Record(time.time(), pid=pid, started=started)
            (folder / RECORD).write_text(json.dumps(dataclasses.asdict(record)))
            assert (runs.running() == "echo") is alive
            if not alive:
                runs.stop("echo")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
    (folder / RECORD).write_text('{"cut')
    assert runs.get("echo") is None and runs.running() is None and runs.log("echo") == ""


@pytest.mark.parametrize("name", ["../echo", "", "nobody", "echo/../echo", "x" * 5000, "\0", None, 3, ["echo"]])
def test_names_that_are_no_run_reach_nothing(name: Any, tmp_path: Path) -> None:
    runs = TrainingRuns(tmp_path / "runs")
    assert runs.get(name) is None and runs.log(name) == ""
    runs.stop(name)
    with pytest.raises(BadInput):
        runs.resume(name)


def test_what_cannot_be_planned_leaves_nothing_behind(tmp_path: Path) -> None:
    runs = TrainingRuns(tmp_path / "runs")

    def plan(folder: Path) -> Any:
        (folder / "half.jsonl").write_text("x")
        raise BadInput("No.")

    with pytest.raises(BadInput):
        runs.start("echo", [], plan)
    assert runs.names() == [] and runs.taken() == [".starting"]


# The handlers, and who may call them.


@pytest.fixture
def tab(tmp_path: Path, tiny_folder: Path) -> handlers.TrainEvents:
    return handlers.TrainEvents(TrainingRuns(tmp_path / "runs"), Shelf(), str(tiny_folder))  # type: ignore[arg-type]


FORGED = [
    ("../x", None), ("x" * 300, None), ("CON", None), ("poet", None), ("", None), (None, None),
    ("good", "no such sample"), ("good", 7),
]  # fmt: skip


@pytest.mark.parametrize("name, sample", FORGED)
def test_a_forged_start_starts_nothing(
    name: Any, sample: Any, tab: handlers.TrainEvents, toasts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", nothing)
    tab.start(sample or next(iter(tab.samples)), None, {"sample": "../../x"}, name, "", 40, 0.004)  # type: ignore[typeddict-item]
    assert len(toasts) == 1 and tab.runs.names() == []


@pytest.mark.parametrize("steps, rate", [(10**12, 0.004), (40, 1e9), (-1, 0.004), ("many", 0.004)])
def test_forged_settings_start_nothing(
    steps: Any, rate: Any, tab: handlers.TrainEvents, toasts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    tab.start(next(iter(tab.samples)), None, None, "good", "", steps, rate)
    assert len(toasts) == 1 and tab.runs.names() == []


def test_data_that_is_chosen_fills_the_settings_and_a_typed_name_stays(tab: handlers.TrainEvents) -> None:
    sample = next(iter(tab.samples))
    _, shown, found, name, *_, command, start = tab.choose_sample(sample, None, "", "")
    assert "records" in shown and name == f"my-{sample}" and start["interactive"]
    assert command.startswith("python -m train data=assets/samples/") and f"name=my-{sample}" in command
    assert tab.describe_settings(found, "mine", "", 80, 0.01)[1].count("steps=80") == 1
    assert tab.choose_upload("/etc/passwd", found, "mine", "")[2] is None


def test_an_untouched_proposal_follows_the_data_and_what_is_typed_stays(
    tab: handlers.TrainEvents, tmp_path: Path
) -> None:
    rows, broken = jsonl(tmp_path / "rows.jsonl", ROWS), jsonl(tmp_path / "broken.jsonl", ["{"])
    sample = next(iter(tab.samples))

    def after(*kinds: str, name: str = "", description: str = "") -> tuple[str, str]:
        """The two fields when these were chosen one after the other; what is given is typed after the first."""
        found, fields = None, ("", "")
        for count, kind in enumerate(kinds):
            if kind == "none":
                updates = tab.clear_data(found, *fields)
            elif kind == "sample":
                updates = tab.choose_sample(sample, found, *fields)
            else:
                updates = tab.choose_upload(str(rows if kind == "rows" else broken), found, *fields)
            found, fields = updates[2], updates[3:5]
            if not count:
                fields = (name or fields[0], description or fields[1])
        return fields

    said = tab.samples[sample].settings["description"]
    for between in ([], ["none"], ["broken"], ["broken", "none"]):
        assert after("rows", *between, "sample") == (f"my-{sample}", said)
        assert after("sample", *between, "rows") == ("rows", "")
        assert after("sample", *between, "rows", name="mine") == ("mine", "")
        assert after("sample", *between, "rows", description="Mine.") == ("rows", "Mine.")
    assert after("sample", "none") == after("sample", "broken") == ("", "")


@pytest.mark.parametrize(
    "name, said",
    [
        ("../x", "letters, digits"),
        ("-rf", "letters, digits"),
        ("x/y", "letters, digits"),
        ("Poet", "already"),
        ("con", "something else"),
        ("", "needs a name"),
    ],
)
def test_a_name_that_will_not_do_is_told_where_the_command_would_stand(
    name: str, said: str, tab: handlers.TrainEvents
) -> None:
    sample = next(iter(tab.samples))
    found = tab.choose_sample(sample, None, "", "")[2]
    takes, command = tab.describe_settings(found, name, "", 40, 0.004)
    assert said in command and "python" not in command and takes.startswith("Learns from text")
    assert tab.describe_settings(found, "mine", "", 40, 0.004)[1].startswith("python -m train")


def events(page: Any) -> set[str]:
    return {fn.name for fn in page.fns.values() if getattr(fn.fn, "__module__", "").startswith("train.ui")}


def test_what_may_be_refused_goes_by_the_queue() -> None:
    """Toasts come through it alone; the others say what is wrong in their place on the page."""
    page = app.build_page(Ready(None), Shelf(), training=True)  # type: ignore[arg-type]
    unqueued = {fn.name for fn in page.fns.values() if fn.fn is not None and not fn.queue}
    assert unqueued == {
        "<lambda>",
        "clear",
        "clear_data",
        "panel",
        "refresh",
        "select_tab",
        "stop",
        "describe_settings",
    }
    # The chat's and the comparison's have nothing to say.
    stops = {fn.fn.__module__: fn.queue for fn in page.fns.values() if fn.name == "stop"}
    assert stops.pop("train.ui.events") and not any(stops.values())


def test_where_training_is_off_there_is_nothing_to_call() -> None:
    on, off = (app.build_page(Ready(None), Shelf(), training=training) for training in (True, False))  # type: ignore[arg-type]
    assert {"start", "stop", "resume", "choose_upload"} <= events(on)
    assert events(off) == set()
    words = [str(getattr(block, "value", "")) for block in off.blocks.values()]
    assert any("Training is off here" in text and "python -m train" in text for text in words)
