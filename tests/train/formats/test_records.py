"""Records: files of every shape are indexed without being held in memory, and errors name the place of a fault."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.base.template import Message
from adapter.errors import AdapterError
from train.formats import index
from train.formats.dataset import FORMATS, DataError, Record, open_records
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
chunks = st.sampled_from([1, 2, 3, 7, 64, 2**18])


@settings(deadline=None, max_examples=120)
@given(st.lists(values, min_size=1, max_size=5), st.data(), chunks)
def test_a_json_array_is_read_back_in_any_layout(tmp_path_factory, elements, data, chunk):
    text, places = data.draw(blanks) + "[", []
    for i, element in enumerate(elements):
        text += "," * (i > 0) + data.draw(blanks)
        places.append(text.count("\n") + 1)
        indent = data.draw(st.sampled_from([None, 0, 1, 4]))
        text += json.dumps(element, ensure_ascii=data.draw(st.booleans()), indent=indent) + data.draw(blanks)
    bom = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    path = write(
        tmp_path_factory.getbasetemp(), "random.json", bom + (text + "]" + data.draw(blanks)).encode("utf-8")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_CHUNK", chunk)
        found = index_json(path)
    assert [found.read(i) for i in range(len(found))] == [
        (element, f"random.json, record {i + 1} (line {line})")
        for i, (element, line) in enumerate(zip(elements, places, strict=True))
    ]


@settings(deadline=None, max_examples=80)
@given(st.lists(values, min_size=1, max_size=5), st.data())
def test_json_lines_are_read_back_with_blank_lines_between(tmp_path_factory, elements, data):
    text, places = "", []
    for element in elements:
        text += data.draw(st.sampled_from(["", "\n", "  \n", "\r\n\t\r\n"]))
        places.append(text.count("\n") + 1)
        text += data.draw(st.sampled_from(["", " "]))
        text += json.dumps(element, ensure_ascii=data.draw(st.booleans())) + data.draw(
            st.sampled_from(["\n", "\r\n"])
        )
    text = data.draw(st.sampled_from([text, text.rstrip(), text + "\n \n"]))
    path = write(tmp_path_factory.getbasetemp(), "random.jsonl", text)
    found = index_json(path)
    assert [found.read(i) for i in range(len(found))] == [
        (element, f"random.jsonl, line {line}") for element, line in zip(elements, places, strict=True)
    ]


def test_an_array_and_json_lines_are_the_same_records(tmp_path):
    array = open_records(write(tmp_path, "a.json", json.dumps(numbered_rows(50), indent=2)))
    by_line = open_records(write(tmp_path, "a.jsonl", to_jsonl(numbered_rows(50))))
    assert [r.messages for r in array] == [r.messages for r in by_line]
    assert array.format == by_line.format == "alpaca"


def test_brackets_quotes_and_escapes_inside_strings_are_text(tmp_path):
    tricky = ['},{"', "]", 'a\\"b', "\\", "\\\\", '\\\\"', "[[[", '"', "é\u2028\U0001f600", ",", "\n", '\\"],', ""]
    records = [{"instruction": f"say {text}", "output": text, "deep": [[{"a": [text]}]]} for text in tricky]
    for ascii_only in (True, False):
        path = write(tmp_path, "tricky.json", json.dumps(records, ensure_ascii=ascii_only))
        assert answers(open_records(path)) == tricky


# Large files.


@pytest.mark.parametrize("name", ["big.jsonl", "big.json"])
def test_a_large_file_is_indexed_without_being_held_in_memory(tmp_path, name):
    count = 200_000
    path = tmp_path / name
    with path.open("w", encoding="utf-8") as file:
        between = "\n" if name == "big.jsonl" else ",\n"
        file.write("" if name == "big.jsonl" else "[")
        for i in range(count):
            file.write((between if i else "") + f'{{"instruction": "Say {i}, {"x" * 150}", "output": "{i}"}}')
        file.write("" if name == "big.jsonl" else "]")
    assert path.stat().st_size > 35e6
    tracemalloc.start()
    records = open_records(path)
    sample = [records[i].messages[-1].text for i in range(0, count, 10_007)]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == count and sample == [str(i) for i in range(0, count, 10_007)]
    assert records[-1].where.endswith(f"line {count}" if name == "big.jsonl" else f"(line {count})")
    assert held < 4e6 and peak < 20e6


def test_records_can_be_pickled_and_read_by_many_threads(tmp_path):
    records = open_records(write(tmp_path, "a.jsonl", to_jsonl(numbered_rows(300))))
    again = pickle.loads(pickle.dumps(records))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: again[i].messages[-1].text, range(300))) == [str(i) for i in range(300)]


def test_records_are_a_sequence(tmp_path):
    records = open_records(write(tmp_path, "a.jsonl", to_jsonl(numbered_rows(5))))
    assert records[-1] == records[4] and answers(records[1:4:2]) == ["1", "3"] and len(list(records)) == 5
    for i in (5, -6):
        with pytest.raises(IndexError):
            records[i]
    assert len(repr(records)) < 1000


# Encodings.


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "data.txt"])
def test_byte_order_marks_and_windows_newlines(tmp_path, bom, newline, name):
    text = to_jsonl(numbered_rows(3)) if name != "a.json" else json.dumps(numbered_rows(3), indent=1) + "\n"
    records = open_records(write(tmp_path, name, bom + text.encode().replace(b"\n", newline)))
    assert answers(records) == ["0", "1", "2"]


def test_a_file_may_hold_one_record(tmp_path):
    assert len(open_records(write(tmp_path, "a.jsonl", json.dumps(ALPACA)))) == 1
    assert len(open_records(write(tmp_path, "a.json", json.dumps([ALPACA])))) == 1


# Files that cannot be opened.


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "", "a.json is empty"),
        ("a.jsonl", " \n\n\t\r\n", "a.jsonl is empty"),
        ("a.json", b"\xef\xbb\xbf", "a.json is empty"),
        ("a.json", "[]", "a.json holds an empty array"),
        ("a.json", "\n[ \n ]\n", "a.json holds an empty array"),
        ("a.json", "[" + json.dumps(ALPACA) + ",\n]", "line 1: a comma stands behind the last record. Take"),
        ("a.json", "\n[" + json.dumps(ALPACA) + "\n\n  , ]", "line 4: a comma stands behind"),
        (
            "a.json",
            "[" + json.dumps(ALPACA) + ",\n",
            "the file ends within record 2, which begins in line 1. Either",
        ),
        ("a.json", "[" + json.dumps(ALPACA)[:-3], "the file ends within record 1, which begins in line 1. Either"),
        (
            "a.json",
            '[{"a": "b},\n{"a": "b"},\n{"a": "b"}]',
            "the file ends within record 1, which begins in line 1",
        ),
        ("a.json", '[{"a": "b"},\n{"a": b},\n{"a": {}]', "a.json, record 2, line 2, character 7 of the record"),
        ("a.json", '[{"a": "b"},\n{"a": {},\n{"a": "b"}]', "record 2, which begins in line 1. Either a quote or"),
        ("a.json", '[{"a": "b"}},\n{"a": "b"}]', "a.json, line 1: something follows the end of the array"),
        ("a.json", "[" + json.dumps(ALPACA) + "]\n\n[1]", "line 3: something follows the end of the array"),
        ("a.json", "[1]" + " " * 2**19 + "\nx", "line 2: something follows the end of the array"),
        ("a.json", json.dumps(ALPACA, indent=2), "line 1, column 2: this is not JSON"),
        ("a.json", json.dumps(ALPACA, indent=2), "A file of records is one array"),
        ("a.json", json.dumps({"data": [ALPACA]}), "the record has the fields 'data'. Known formats: alpaca"),
        ("a.jsonl", "{}\n", "the format cannot be told; the record has no fields"),
        ("a.jsonl", "hello\n", "a.jsonl, line 1, column 1: this is not JSON."),
        ("a.jsonl", '"hello"\n', "a.jsonl, line 1: this is text, not an object"),
        ("a.json", "[1, 2]", "a.json, record 1 (line 1): this is a number, not an object"),
        ("a.json", json.dumps([ALPACA]).encode("utf-16"), "is not UTF-8. Save the file as UTF-8"),
        ("a.jsonl", '{"instruction": ' + "[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_file_that_cannot_be_opened_is_explained(tmp_path, name, content, says):
    with pytest.raises(DataError) as error:
        open_records(write(tmp_path, name, content))
    assert says in str(error.value)
    assert isinstance(error.value, AdapterError)


def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_LONGEST_LINE", 1000)
    with pytest.raises(DataError, match="line 2: this line is longer than"):
        open_records(write(tmp_path, "a.jsonl", "{}\n" + "x" * 5000))


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


# A broken record raises when it is read and does not affect the others.


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ('{"instruction": "a" "output": "b"}', "a.jsonl, line 4, column 21: this is not JSON."),
        ('{"instruction": "a", "output": "b",}', "a.jsonl, line 4, column "),
        (b'{"instruction": "caf\xe9", "output": "b"}', "a.jsonl, line 4: byte 0xe9 at offset OFFSET of the file"),
        ("[1]", "a.jsonl, line 4: this is a list, not an object"),
        ('{"instruction": 1' + "0" * 5000 + "}", "a.jsonl, line 4: this cannot be read as JSON"),
        ('{"instruction": "a"}', "a.jsonl, line 4: 'output' is missing. Add it"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path, broken, says):
    good = json.dumps({"instruction": "Say it, please.", "output": "it"}).encode()
    broken = broken.encode() if isinstance(broken, str) else broken
    content = b"\n".join([good, b"", good, broken, good])
    records = open_records(write(tmp_path, "a.jsonl", content))
    assert len(records) == 4 and answers([records[0], records[1], records[3]]) == ["it"] * 3
    with pytest.raises(DataError) as error:
        records[2]
    assert says.replace("OFFSET", str(max(content.find(b"\xe9"), content.find(b"\xff")))) in str(error.value)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ('{"instruction": "a" "output": "b"}', "record 2, line 2, character 21 of the record: this is not JSON"),
        ('{"instruction": "a",\n\n "output": b}', "record 2, line 4, column 12: this is not JSON"),
        ('\n {"instruction": "a",\n\n "output": b}', "record 2, line 5, column 12: this is not JSON"),
        (b'{"instruction": "a",\n "output": "\xff"}', "a.json, line 3: byte 0xff at offset OFFSET of the file"),
        ("", "record 2, line 2, character 1 of the record: this is not JSON"),
        ('{"instruction": "a"]', "record 2, line 2"),
        ("null", "a.json, record 2 (line 2): this is null, not an object"),
        ('{"output": "b"}', "a.json, record 2 (line 2): 'instruction' is missing"),
    ],
)
def test_a_broken_element_is_named_and_the_others_are_read(tmp_path, broken, says):
    good = json.dumps({"instruction": "Say it, please.", "output": "it"}).encode()
    broken = broken.encode() if isinstance(broken, str) else broken
    content = b"[" + good + b",\n" + broken + b",\n" + good + b"]"
    records = open_records(write(tmp_path, "a.json", content))
    assert answers([records[0], records[2]]) == ["it"] * 2
    with pytest.raises(DataError) as error:
        records[1]
    assert says.replace("OFFSET", str(max(content.find(b"\xe9"), content.find(b"\xff")))) in str(error.value)


def test_a_deleted_file_is_a_data_error(tmp_path):
    path = write(tmp_path, "a.jsonl", to_jsonl([ALPACA]))
    records = open_records(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        records[0]


def test_a_record_holds_its_conversation_and_its_place(tmp_path):
    path = write(tmp_path, "alpaca.jsonl", "\n" + to_jsonl([ALPACA]))
    assert open_records(path)[0] == Record(
        (Message("user", "Add.", "2 and 3"), Message("assistant", "5")), None, "alpaca.jsonl, line 2"
    )
