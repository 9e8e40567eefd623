"""Records: files of every shape are indexed without being held in memory, and errors name the place of a fault."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.base.template import Message
from train.formats import index
from train.formats.dataset import FORMATS, DataError, Record, open_records
from train.formats.index import index_json

ALPACA = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
GOOD = json.dumps(ALPACA)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def numbered_rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Say {i}.", "output": str(i)} for i in range(count)]


def to_jsonl(values: list) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def answers(records) -> list[str]:
    return [record.messages[-1].text for record in records]


# What was written is what is read.

values = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
blanks = st.text(" \t\r\n", max_size=3)


@settings(deadline=None, max_examples=60)
@given(st.lists(values, min_size=1, max_size=5), st.data(), st.sampled_from([1, 2, 3, 7, 64, 2**18]))
def test_a_json_array_is_read_back_in_any_layout(tmp_path_factory, elements, data, chunk):
    text = data.draw(blanks) + "["
    for i, element in enumerate(elements):
        indent = data.draw(st.sampled_from([None, 0, 1, 4]))
        written = json.dumps(element, ensure_ascii=data.draw(st.booleans()), indent=indent)
        text += "," * (i > 0) + data.draw(blanks) + written + data.draw(blanks)
    bom = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    content = bom + (text + "]" + data.draw(blanks)).encode("utf-8")
    path = write(tmp_path_factory.getbasetemp(), "random.json", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_CHUNK", chunk)
        found = index_json(path)
    assert [found.read(i) for i in range(len(found))] == [
        (element, f"random.json, record {i}") for i, element in enumerate(elements, 1)
    ]


@settings(deadline=None, max_examples=40)
@given(st.lists(values, min_size=1, max_size=5), st.data())
def test_json_lines_are_read_back_with_blank_lines_between(tmp_path_factory, elements, data):
    text, places = "", []
    for element in elements:
        text += data.draw(st.sampled_from(["", "\n", "  \n", "\r\n\t\r\n"]))
        places.append(text.count("\n") + 1)
        text += data.draw(st.sampled_from(["", " "]))
        text += json.dumps(element, ensure_ascii=data.draw(st.booleans()))
        text += data.draw(st.sampled_from(["\n", "\r\n"]))
    text = data.draw(st.sampled_from([text, text.rstrip(), text + "\n \n"]))
    found = index_json(write(tmp_path_factory.getbasetemp(), "random.jsonl", text))
    assert [found.read(i) for i in range(len(found))] == [
        (element, f"random.jsonl, line {line}") for element, line in zip(elements, places, strict=True)
    ]


def test_an_array_lines_and_compressed_files_are_the_same_records(tmp_path):
    array, lines = json.dumps(numbered_rows(50), indent=2), to_jsonl(numbered_rows(50))
    table = "instruction,output\n" + "".join(f'"{r["instruction"]}",{r["output"]}\n' for r in numbered_rows(50))
    found = [
        open_records(write(tmp_path, name, gzip.compress(text.encode()) if name.endswith(".gz") else text))
        for name, text in (("a.jsonl", lines), ("a.json", array), ("b.jsonl.gz", lines), ("b.json.gz", array),
                           ("b.csv.gz", table))
    ]  # fmt: skip
    for records in found:
        assert records.format == "alpaca" and [r.messages for r in records] == [r.messages for r in found[0]]
    assert found[2][7].where == "b.jsonl.gz, line 8"
    with pytest.raises(DataError, match="'b.jsonl.gz' cannot be unpacked. Fetch it again"):
        open_records(write(tmp_path, "b.jsonl.gz", gzip.compress(lines.encode())[:-20]))


def test_brackets_quotes_and_escapes_inside_strings_are_text(tmp_path):
    tricky = ['},{"', "]", 'a\\"b', "\\", "\\\\", '\\\\"', "[[[", '"', "é\u2028\U0001f600", ",", "\n", '\\"],', ""]
    records = [{"instruction": f"say {text}", "output": text, "deep": [[{"a": [text]}]]} for text in tricky]
    for ascii_only in (True, False):
        path = write(tmp_path, "tricky.json", json.dumps(records, ensure_ascii=ascii_only))
        assert answers(open_records(path)) == tricky


_MEASURE = """
import resource, sys
from train.formats.dataset import open_records

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
records = open_records(sys.argv[1])
assert len(records) == 40_000 and records[39_999].messages[-1].text.startswith("39999"), len(records)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_large_file_is_read_in_little_memory(tmp_path):
    """Of 60 MB, in the layout of LLaVA's, whose ids are numbers and texts; in a process of its own."""
    path = tmp_path / "llava.json"
    with path.open("w", encoding="utf-8") as file:
        for i in range(40_000):
            said = [{"from": "human", "value": "<image>\nWhät?"}, {"from": "gpt", "value": f"{i} " + "x y " * 330}]
            row = {"id": i if i % 2 else f"{i:012}", "image": f"{i}.jpg", "conversations": said}
            file.write(("[" if i == 0 else ",\n") + json.dumps(row, ensure_ascii=False, indent=1))
        file.write("]\n")
    assert path.stat().st_size > 50e6
    run = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 15, "MB"


def test_records_are_a_sequence_that_many_threads_read(tmp_path):
    records = open_records(write(tmp_path, "a.jsonl", to_jsonl(numbered_rows(300))))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: records[i].messages[-1].text, range(300))) == [str(i) for i in range(300)]
    assert records[-1] == records[299] and answers(records[1:4:2]) == ["1", "3"] and len(list(records)) == 300
    for i in (300, -301):
        with pytest.raises(IndexError):
            records[i]
    assert len(repr(records)) < 1000
    assert records[0] == Record((Message("user", "Say 0."), Message("assistant", "0")), None, "a.jsonl, line 1")
    records.path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        records[0]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "data.txt"])
def test_byte_order_marks_and_windows_newlines(tmp_path, bom, newline, name):
    text = to_jsonl(numbered_rows(3)) if name != "a.json" else json.dumps(numbered_rows(3), indent=1) + "\n"
    records = open_records(write(tmp_path, name, bom + text.encode().replace(b"\n", newline)))
    assert answers(records) == ["0", "1", "2"]


# Files that cannot be opened.


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "", "a.json is empty"),
        ("a.jsonl", " \n\n\t\r\n", "a.jsonl is empty"),
        ("a.json", b"\xef\xbb\xbf", "a.json is empty"),
        ("a.json", "[]", "a.json holds an empty array"),
        ("a.json", "\n[ \n ]\n", "a.json holds an empty array"),
        ("a.json", f"[{GOOD},\n]", "record 2: a comma stands behind the last record. Take the comma out."),
        ("a.json", f"[{GOOD},\n", "record 2: it does not end. Either a quote or bracket is missing there, or the"),
        ("a.json", f"[{GOOD}", "record 1: it does not end. Either"),
        ("a.json", "[" + GOOD[:-3], "record 1: it does not end. Either"),
        (
            "a.json",
            '[{"a": "b},\n{"a": "b"}]',
            "a.json, record 1: this is not JSON. Mend the record or take it out",
        ),
        ("a.json", '[{"a": "b"},\n{"a": b},\n{"a": {}}]', "a.json, record 2: this is not JSON"),
        ("a.json", '[{"a": "b"},\n{"a": {},\n{"a": "b"}]', "a.json, record 2: this is not JSON"),
        ("a.json", '[{"a": "b"}}, {"a": "b"}]', "a.json, record 1: no comma follows it. Put one between two"),
        ("a.json", '[{"a": 1} {"a": 2}]', "a.json, record 1: no comma follows it"),
        ("a.json", f"[{GOOD},,{GOOD}]", "record 2: this is not JSON"),
        ("a.json", '[{"a": 1' + "0" * 5000 + "}]", "record 1: this is not JSON"),
        ("a.json", f"[{GOOD}]\n\n[1]", "a.json: something follows the end of the array. Keep one array"),
        ("a.json", "[1]" + " " * 2**19 + "\nx", "something follows the end of the array"),
        ("a.json", json.dumps(ALPACA, indent=2), "line 1: this is not JSON. A file of records is one array"),
        ("a.json", json.dumps({"data": [ALPACA]}), "the record has the fields 'data'. Known formats: alpaca"),
        ("a.jsonl", "{}\n", "the format cannot be told; the record has no fields"),
        ("a.jsonl", "hello\n", "a.jsonl, line 1: this is not JSON."),
        ("a.jsonl", '"hello"\n', "a.jsonl, line 1: this is text, not an object"),
        ("a.json", "[1, 2]", "a.json, record 1: this is a number, not an object"),
        ("a.json", json.dumps([ALPACA]).encode("utf-16"), "is not UTF-8. Save the file as UTF-8"),
        ("a.jsonl", '{"instruction": ' + "[" * 100_000, "line 1: this is not JSON"),
    ],
)
def test_a_file_that_cannot_be_opened_is_explained(tmp_path, name, content, says):
    with pytest.raises(DataError) as error:
        open_records(write(tmp_path, name, content))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", "{}\n" + "x" * 5000, "line 2: this line is longer than"),
        ("a.json", '[{}, {"a": [' + "1, " * 5000 + "2]}]", "record 2: it does not end"),
    ],
)
def test_a_record_without_end_is_not_read_whole(tmp_path, monkeypatch, name, content, says):
    monkeypatch.setattr(index, "_LONGEST", 1000)
    monkeypatch.setattr(index, "_CHUNK", 100)
    with pytest.raises(DataError, match=says):
        open_records(write(tmp_path, name, content))


def test_a_format_that_does_not_fit_is_refused_and_all_formats_are_named(tmp_path):
    path = write(tmp_path, "a.jsonl", to_jsonl([ALPACA]))
    with pytest.raises(DataError) as error:
        open_records(path, "chat")
    assert "a.jsonl, line 1: this is not of format 'chat'; the record has the fields 'instru" in str(error.value)
    assert all(name in str(error.value) for name in FORMATS)
    with pytest.raises(DataError, match="'sharegpt' is no format. Known formats: alpaca"):
        open_records(path, "sharegpt")


def test_missing_paths_are_named(tmp_path):
    path = write(tmp_path, "a.jsonl", to_jsonl([ALPACA]))
    with pytest.raises(DataError, match="no file or folder '.*b.jsonl'. Check the path"):
        open_records(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="no file or folder"):
        open_records("x" * 5000)
    with pytest.raises(DataError, match="no folder of images"):
        open_records(path, images=tmp_path / "pictures")
    with pytest.raises(DataError, match="has no splits, so there is no 'val'"):
        open_records(path, split="val")
    path.unlink()
    for format in ("auto", "alpaca"):
        with pytest.raises(DataError, match="holds neither problems nor captions nor records. Known formats"):
            open_records(tmp_path, format)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ('{"instruction": "a" "output": "b"}', "this is not JSON."),
        (b'{"instruction": "caf\xe9", "output": "b"}', "this is not UTF-8."),
        ("[1]", "this is a list, not an object"),
        ("null", "this is null, not an object"),
        ('{"instruction": 1' + "0" * 5000 + "}", "this is not JSON"),
        ('{"instruction": "a"}', "'output' is missing. Add it"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_broken_record_is_named_and_the_others_are_read(tmp_path, broken, says, name):
    """In an array, too, as long as the whole is JSON."""
    good = json.dumps({"instruction": "Say it, please.", "output": "it"}).encode()
    broken = broken.encode() if isinstance(broken, str) else broken
    lines = name == "a.jsonl"
    content = (
        b"\n\n".join([good, good, broken, good]) if lines else b"[" + b",".join([good, good, broken, good]) + b"]"
    )
    path = write(tmp_path, name, content)
    if not lines and "not JSON" in says:
        with pytest.raises(DataError, match="a.json, record 3: this is not JSON"):
            open_records(path)
        return
    records = open_records(path)
    assert len(records) == 4 and answers([records[0], records[1], records[3]]) == ["it"] * 3
    with pytest.raises(DataError) as error:
        records[2]
    assert f"{name}, {'line 5' if lines else 'record 3'}: {says}" in str(error.value)
