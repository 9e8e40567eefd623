"""The report on training data: each fault is counted once and named, and the numbers add up."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from train.formats.dataset import open_records
from train.input.data_check import Report, make_report
from train.input.examples import Example
from train.input.rows import IGNORED, TokenisedRow
from train.job import say


class CharacterTokeniser:
    """One token per character, without a template."""

    template = "raw"

    def row(self, example: Example, truncate: bool) -> TokenisedRow:
        prompt = "".join(message.text for message in example.messages)
        ids = [ord(character) for character in prompt + example.answer]
        return TokenisedRow(ids, [IGNORED] * len(prompt) + ids[len(prompt) :], example)


def report_on(records) -> Report:
    return make_report(records, CharacterTokeniser(), 10)


def records(folder: Path, *values):
    path = folder / "data.jsonl"
    path.write_text("".join(v if isinstance(v, str) else json.dumps(v) + "\n" for v in values))
    return open_records(path, "alpaca")


def record(prompt: int, answer: int, **more) -> dict[str, str]:
    return {"instruction": "q" * prompt, "output": "a" * answer, **more}


def test_truncated_records_and_empty_answers_are_counted(tmp_path):
    # One fits exactly, one loses part of its answer, one all of it, one ends within its prompt.
    report = report_on(records(tmp_path, record(8, 2), record(8, 5), record(10, 5), record(20, 1), record(3, 0)))
    assert (report.truncated, report.answerless, report.supervised, report.empty_answers) == (3, 2, 4, 1)
    assert not report.clean and "1 records with an empty answer" in str(report)
    assert "4 supervised tokens, 3 records truncated, 2 of them lose their whole answer" in str(report)


def test_all_broken_records_are_counted_and_ten_named(tmp_path):
    broken = [{"instruction": "a"}, "{broken\n", "\n", "[]\n"] * 8
    report = report_on(records(tmp_path, record(3, 2), *broken, record(3, 2)))
    assert report.records == 26 and len(report.broken) == 24
    assert report.broken[0].startswith("data.jsonl, line 2: 'output' is missing")
    assert len(report.lengths) == 2 and not report.clean
    assert "24 cannot be read:\n  data.jsonl, line 2: " in str(report) and "\n  and 14 more\n" in str(report)


def test_images_are_opened_once_each_and_faults_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "folder.png").mkdir()
    good, gone = "good.png", "gone.png"
    names = [good, gone, "text.png", good, "cut.png", gone, "folder.png", "x" * 300, "a\0b"]
    data = records(tmp_path, *(record(3, 2, image=name) for name in names), record(3, 2))
    report = report_on(data)
    assert (report.images, len(report.missing), len(report.unreadable), report.repeated) == (7, 4, 2, 1)
    assert not report.clean and report.missing[0] == "gone.png (data.jsonl, line 2)"
    assert report.unreadable[0].startswith("text.png (data.jsonl, line 3): ")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_a_file_name_that_is_no_utf8_is_told(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "caf\udce9.png")
    (tmp_path / "caf\udce9.txt").write_text("A cup.")
    report = report_on(open_records(tmp_path))
    say(report.broken[0])
    assert "caf\\udce9.txt" in str(report) and str(report).encode()
