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

from train.formats import index
from train.formats.dataset import FORMATS, DataError, open_records
from train.formats.index import index_json

ALPACA = {"instruction": "Add.", "input": "2 and 3", "output": "5"}


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

texts = st.text(max_size=12) | st.sampled_from(
    ['},{"', "]", 'a\\"b', "\\", "\\\\", '\\\\"', "[[[", '"', "é\u2028\U0001f600", '\\"],']
)
values = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)  # fmt: skip
boms = st.sampled_from([b"", b"\xef\xbb\xbf"])


@settings(deadline=None, max_examples=60)
@given(st.lists(values, min_size=1, max_size=5), st.data(), st.sampled_from([1, 2, 3, 7, 64, 2**18]))
def test_a_json_array_is_read_back_in_any_layout(tmp_path_factory, elements, data, chunk):
    blanks = st.text(" \t\r\n", max_size=3)
    text = data.draw(blanks) + "["
    for i, element in enumerate(elements):
        indent = data.draw(st.sampled_from([None, 0, 1, 4]))
        written = json.dumps(element, ensure_ascii=data.draw(st.booleans()), indent=indent)
        text += "," * (i > 0) + data.draw(blanks) + written + data.draw(blanks)
    content = data.draw(boms) + (text + "]" + data.draw(blanks)).encode("utf-8")
    path = write(tmp_path_factory.getbasetemp(), "random.json", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_CHUNK", chunk)
        found = index_json(path)
    assert [found.read(i) for i in range(len(found))] == [
        (element, f"random.json, record {i}") for i, element in enumerate(elements, 1)
    ]


@settings(deadline=None, max_examples=30)
@given(st.lists(values, min_size=1, max_size=5), st.data())
def test_json_lines_are_read_back_with_blank_lines_between(tmp_path_factory, elements, data):
    text, places = "", []
    for element in elements:
        text += data.draw(st.sampled_from(["", "\n", "  \n", "\r\n\t\r\n", " "]))
        places.append(text.count("\n") + 1)
        text += json.dumps(element, ensure_ascii=data.draw(st.booleans()))
        text += data.draw(st.sampled_from(["\n", "\r\n"]))
    text = data.draw(st.sampled_from([text, text.rstrip(), text + "\n \n"]))
    path = write(tmp_path_factory.getbasetemp(), "random.jsonl", data.draw(boms) + text.encode())
    found = index_json(path)
    assert [found.read(i) for i in range(len(found))] == [
        (element, f"random.jsonl, line {line}") for element, line in zip(elements, places, strict=True)
    ]


def test_an_array_lines_and_compressed_files_are_the_same_records(tmp_path):
    array, lines = json.dumps(numbered_rows(50), indent=2), to_jsonl(numbered_rows(50))
    table = "instruction,output\n" + "".join(f'"{r["instruction"]}",{r["output"]}\n' for r in numbered_rows(50))
    found = [
        open_records(write(tmp_path, name, gzip.compress(text.encode()) if name.endswith(".gz") else text))
        for name, text in (("a.jsonl", lines), ("a.json", array), ("b.jsonl.gz", lines), ("b.json.gz", array),
                           ("b.csv.gz", table), ("data.txt", lines))
    ]  # fmt: skip
    for records in found:
        assert records.format == "alpaca" and [r.messages for r in records] == [r.messages for r in found[0]]
    assert found[2][7].where == "b.jsonl.gz, line 8"
    with pytest.raises(DataError, match="'b.jsonl.gz' cannot be unpacked. Fetch it again"):
        open_records(write(tmp_path, "b.jsonl.gz", gzip.compress(lines.encode())[:-20]))


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
    assert records[-1] == records[299] and len(list(records)) == 300
    with pytest.raises(IndexError):
        records[300]
    records.path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        records[0]


# Files that cannot be opened; more of them in faults.yaml.


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "[1]" + " " * 2**19 + "\nx", "something follows the end of the array"),
        ("a.json", json.dumps([ALPACA]).encode("utf-16"), "is not UTF-8. Save the file as UTF-8"),
        ("a.json", '[{"a": 1' + "0" * 5000 + "}]", "record 1: this is not JSON"),
        ("a.jsonl", '{"instruction": ' + "[" * 100_000, "line 1: this is not JSON"),
        ("a.csv", 'question,answer\na,b\nc,"d\n' + "q,xxxxxxxxxxx\n" * 20_000, "line 3: a cell that begins"),
        ("a.jsonl", "{}\n" + "x" * 5000, "line 2: this line is longer than"),
        ("a.json", '[{}, {"a": [' + "1, " * 5000 + "2]}]", "record 2: this is not JSON, or does not end"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_opened_is_explained(tmp_path, monkeypatch, name, content, says):
    if "longer" in says or "record 2" in says:  # a record without end is not read whole
        monkeypatch.setattr(index, "_LONGEST", 1000)
        monkeypatch.setattr(index, "_CHUNK", 100)
    with pytest.raises(DataError) as error:
        open_records(write(tmp_path, name, content))
    assert says in str(error.value)


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
    for missing in (tmp_path / "b.jsonl", "x" * 5000):
        with pytest.raises(DataError, match="no file or folder '.*'. Check the path"):
            open_records(missing)
    with pytest.raises(DataError, match="no folder of images"):
        open_records(path, images=tmp_path / "pictures")
    with pytest.raises(DataError, match="has no splits, so there is no 'val'"):
        open_records(path, split="val")
    path.unlink()
    with pytest.raises(DataError, match="holds neither problems nor captions nor records. Known formats"):
        open_records(tmp_path)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (b'{"instruction": "a" "output": "b"}', "this is not JSON."),
        (b'{"instruction": "caf\xe9", "output": "b"}', "this is not UTF-8."),
        (b"[1]", "this is a list, not an object"),
        (b'{"instruction": "a"}', "'output' is missing. Add it"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_broken_record_is_named_and_the_others_are_read(tmp_path, broken, says, name):
    """In an array, too, as long as the whole is JSON."""
    good = json.dumps(numbered_rows(1)[0]).encode()
    rows, lines = [good, good, broken, good], name == "a.jsonl"
    path = write(tmp_path, name, b"\n\n".join(rows) if lines else b"[" + b",".join(rows) + b"]")
    if not lines and "not JSON" in says:
        with pytest.raises(DataError, match="a.json, record 3: this is not JSON"):
            open_records(path)
        return
    records = open_records(path)
    assert len(records) == 4 and answers([records[0], records[1], records[3]]) == ["0"] * 3
    with pytest.raises(DataError) as error:
        records[2]
    assert f"{name}, {'line 5' if lines else 'record 3'}: {says}" in str(error.value)
