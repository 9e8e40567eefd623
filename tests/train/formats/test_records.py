"""Records: files of every shape are indexed without being held in memory, and errors name the place of a fault."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.formats import sources
from train.formats.dataset import DataError, open_records


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def numbered_rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Say {i}.", "output": str(i)} for i in range(count)]


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
        patch.setattr(sources, "_CHUNK", max(chunk, 8))
        found = list(sources.of_file(path))
    assert found == [(f"random.json, record {i}", element) for i, element in enumerate(elements, 1)]


def test_an_array_lines_and_compressed_files_are_the_same_records(tmp_path):
    rows = numbered_rows(50)
    array, lines = json.dumps(rows, indent=2), "".join(json.dumps(row) + "\n" for row in rows)
    table = "instruction,output\n" + "".join(f'"{row["instruction"]}",{row["output"]}\n' for row in rows)
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


def test_a_large_file_is_read_in_little_memory(tmp_path):
    """In the layout of LLaVA's, whose ids are numbers and texts."""
    path = tmp_path / "llava.json"
    said = [{"from": "human", "value": "<image>\nWhät?"}, {"from": "gpt", "value": "x y " * 330}]
    rows = ({"id": i if i % 2 else f"{i:012}", "image": f"{i}.jpg", "conversations": said} for i in range(8000))
    path.write_text("[" + ",\n".join(json.dumps(row, ensure_ascii=False, indent=1) for row in rows) + "]\n")
    tracemalloc.start()
    records = open_records(path)
    assert len(records) == 8000 and str(records[7999].image).endswith("7999.jpg")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 10e6 and peak < 4e6


# Faults; more of them in faults.yaml.


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"[{\xff}]", "is not UTF-8. Save the file as UTF-8"),
        ("a.csv", "instruction,output\nSay 1.,1\n".encode("utf-16"), "UTF-16. Save the file as UTF-8"),
        ("a.jsonl", b"PK\x03\x04\x14", "a packed file. Unpack it, or pack it with gzip"),
        ("a.csv", "question,answer, Answer\nWho?,I,you\n", "several columns are called 'answer'"),
        ("a.jsonl", '{"instruction": ' + "[" * 100_000, "line 1: this is not JSON"),
        ("a.json", '[{}, {"a": [' + "1, " * 5000 + "2]}]", "record 2: this is not JSON, or does not end"),
    ],
)
def test_a_file_that_cannot_be_opened_is_explained(tmp_path, monkeypatch, name, content, says):
    if "record 2" in says:  # a record without end is not read whole
        monkeypatch.setattr(sources, "_LONGEST", 1000)
        monkeypatch.setattr(sources, "_CHUNK", 100)
    with pytest.raises(DataError) as error:
        open_records(write(tmp_path, name, content))
    assert says in str(error.value)


def test_a_broken_record_is_named_and_the_others_are_read(tmp_path):
    good = json.dumps(numbered_rows(1)[0]).encode()
    records = open_records(
        write(tmp_path, "a.jsonl", b"\n\n".join([good, b'{"instruction": "caf\xe9", "output": ""}', good]))
    )
    assert len(records) == 3 and records[2].messages[-1].text == "0"
    for format in ("auto", "alpaca"):  # which it is need not be told by the first record
        some = open_records(write(tmp_path, "b.jsonl", b'{}\n{"instruction": "x"}\n' + good), format)
        assert some.format == "alpaca" and some[2].messages[-1].text == "0"
    with pytest.raises(DataError, match="a.jsonl, line 3: 'instruction' is not UTF-8"):
        records[1]
