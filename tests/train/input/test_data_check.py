"""The report on training data: each fault is counted once and named, and the numbers add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapter.base.template import Message
from train.formats.dataset import Record, open_records
from train.input.data_check import Faults, Report, make_report
from train.input.examples import Example
from train.input.rows import IGNORED, TokenisedRow, Tokeniser


class CharacterTokeniser:
    """One token per character, without a template."""

    def row(self, example: Example, truncate: bool) -> TokenisedRow:
        prompt = "".join(message.text for message in example.messages)
        ids = [ord(character) for character in prompt + example.answer]
        return TokenisedRow(ids, [IGNORED] * len(prompt) + ids[len(prompt) :], example)


def report_on(records, max_length: int, images: bool = True) -> Report:
    return make_report(records, CharacterTokeniser(), max_length, images)


def records(folder: Path, *values):
    path = folder / "data.jsonl"
    path.write_text("".join(v if isinstance(v, str) else json.dumps(v) + "\n" for v in values))
    return open_records(path, "alpaca")


def record(prompt: int, answer: int, **more) -> dict[str, str]:
    return {"instruction": "q" * prompt, "output": "a" * answer, **more}


def test_a_clean_file(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    report = report_on(records(tmp_path, record(3, 2, image="a.png"), record(10, 5), record(1, 1)), 15)
    assert report.clean and report.records == 3
    assert (report.median, report.longest, report.supervised) == (5, 15, 8)
    assert (report.truncated, report.answerless, report.empty_answers) == (0, 0, 0)
    assert report.images == 1 and report.missing == report.unreadable == report.broken == Faults()
    assert str(report).startswith("3 records\ntokens: median 5, 95 % up to 14, longest 15\n")
    assert str(report).endswith(
        "at max_length 15: 8 supervised tokens, 0 records truncated, 0 of them lose their whole answer\n"
        "1 images, all opened"
    )


def test_truncated_records_and_empty_answers_are_counted(tmp_path):
    # One fits exactly, one loses part of its answer, one all of it, one ends within its prompt.
    report = report_on(
        records(tmp_path, record(8, 2), record(8, 5), record(10, 5), record(20, 1), record(3, 0)), 10
    )
    assert (report.truncated, report.answerless, report.supervised, report.empty_answers) == (3, 2, 4, 1)
    assert not report.clean and "1 records with an empty answer" in str(report)
    assert "4 supervised tokens, 3 records truncated, 2 of them lose their whole answer" in str(report)


def test_all_broken_records_are_counted_and_ten_named(tmp_path):
    broken = [{"instruction": "a"}, "{broken\n", "\n", "[]\n"] * 8
    report = report_on(records(tmp_path, record(3, 2), *broken, record(3, 2)), 10)
    assert report.records == 26 and report.broken.count == 24 and len(report.broken.first) == 10
    assert report.broken.first[0].startswith("data.jsonl, line 2: 'output' is missing")
    assert report.broken.first[1].startswith("data.jsonl, line 3: this is not JSON")
    assert sum(count for _, _, count in report.histogram) == 2 and not report.clean
    text = str(report)
    assert "24 cannot be read:\n  data.jsonl, line 2: " in text and "\n  and 14 more\n" in text


def test_images_are_opened_once_each_and_faults_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "folder.png").mkdir()
    good, gone = "good.png", "gone.png"
    names = [good, gone, "text.png", good, "cut.png", gone, "folder.png", "x" * 300, "a\0b"]
    data = records(tmp_path, *(record(3, 2, image=name) for name in names), record(3, 2))
    report = report_on(data, 10)
    assert (report.images, report.missing.count, report.unreadable.count) == (7, 4, 2)
    assert report.missing.first[0] == "gone.png (data.jsonl, line 2)"
    assert report.unreadable.first[0].startswith("text.png (data.jsonl, line 3): ")
    assert "7 images, all opened\n4 missing:" in str(report) and "2 are no pictures:" in str(report)
    assert not report.clean
    quick = report_on(data, 10, images=False)
    assert quick.missing == report.missing and quick.unreadable == Faults()
    assert "7 images, not opened" in str(quick)


class InMemory(list):
    uncaptioned = ()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50))
def test_the_histogram_holds_every_length(lengths):
    data = InMemory(Record((Message("user", ""), Message("assistant", "a" * n)), None, "") for n in lengths)
    report = report_on(data, 100)
    assert sum(count for _, _, count in report.histogram) == len(lengths)
    for low, high, count in report.histogram:
        assert count == sum(low <= n <= high for n in lengths)
    assert report.histogram[0][2] and report.histogram[-1][2]
    assert all(a[1] + 1 == b[0] for a, b in zip(report.histogram, report.histogram[1:], strict=False))
    assert report.longest == max(lengths) and abs(report.median - np.median(lengths)) <= 0.5
    assert report.supervised == sum(min(n, 100) for n in lengths)
    assert report.truncated == sum(n > 100 for n in lengths)


def test_lengths_include_the_template(tiny_base, tmp_path):
    report = make_report(records(tmp_path, record(3, 2)), Tokeniser(tiny_base.tokenizer, "chat", 64), 64)
    assert report.clean and report.supervised == 3 and report.longest == 3 + 2 + 1 + 2 + 2 + 1
