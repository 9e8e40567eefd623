"""Each format: what its records become, and the sentence for each fault."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from train.formats.dataset import FORMATS, DataError, open_records
from train.formats.parsers import REQUESTS
from train.formats.scienceqa import columns, problems, question_text

USER = {"role": "user", "content": "What is it?"}
BOT = {"role": "assistant", "content": "A cat."}
# A good record of each format that is a property of one object; all say the same.
GOOD: dict[str, dict] = {
    "alpaca": {"instruction": "What is it?", "output": "A cat."},
    "chat": {"messages": [USER, BOT]},
    "llava": {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]},
    "pairs": {"question": "What is it?", "answer": "A cat."},
    "captions": {"image": "a.png", "caption": "A cat."},
}
MAGNETS = {
    "question": "Which is a magnet?", "choices": ["wood", "iron", "glass"], "answer": 1,
    "hint": "Some metals are.", "image": "image.png", "task": "closed choice", "grade": "grade6",
    "subject": "natural science", "topic": "physics", "category": "Magnets", "skill": "Find magnets",
    "lecture": "A lecture.", "solution": "Iron is.", "split": "train",
}  # fmt: skip
CAPITALS = {
    **MAGNETS, "question": "What is the capital?", "hint": "", "image": None, "grade": "grade7",
    "subject": "social science", "topic": "geography", "split": "val",
}  # fmt: skip
FAULTS, GOOD_RECORDS = (
    yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    for name in ("faults.yaml", "records.yaml")
)


def jsonl(folder: Path, *values) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def table(folder: Path, text: str, name: str = "pairs.tsv"):
    path = folder / name
    path.write_bytes(text.encode())
    return open_records(path)


def turns(record) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in record.messages]


def pairs(records) -> list[tuple[str, str]]:
    return [(str(record.image), record.messages[-1].text) for record in records]


def science(folder: Path, **every) -> Path:
    (folder / "problems.json").write_text(json.dumps(every))
    splits = {split: [n for n, p in every.items() if p.get("split") == split] for split in ("train", "val")}
    (folder / "pid_splits.json").write_text(json.dumps({**splits, "trainval": list(every), "test": []}))
    return folder


@pytest.mark.parametrize(
    ("format", "value", "message"), [(name, *case) for name in FORMATS for case in FAULTS[name]]
)
def test_a_fault_is_named_with_its_place_and_the_remedy(tmp_path, format, value, message):
    with pytest.raises(DataError) as error:
        if format == "scienceqa":
            problems(science(tmp_path, **{"1": MAGNETS, "7": {**MAGNETS, **value}}), "train")
        open_records(jsonl(tmp_path, GOOD[format], value), format)[1]
    place = "problems.json, problem 7: " if format == "scienceqa" else "data.jsonl, line 2: "
    assert str(error.value).startswith(place) and message in str(error.value)
    assert str(error.value).rstrip().endswith((".", "}."))


@pytest.mark.parametrize(("name", "content", "message"), FAULTS["files"])
def test_a_file_that_is_broken_is_explained(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as error:
        list(open_records(tmp_path / name))
    assert str(error.value).startswith((name, f"'{name}'")) and message in str(error.value)


def test_every_format_is_recognised(tmp_path):
    (tmp_path / "science").mkdir()
    assert open_records(science(tmp_path / "science", **{"1": MAGNETS})).format == "scienceqa"
    assert {*GOOD, "scienceqa"} == FORMATS.keys()
    for name, value in GOOD.items():
        records = open_records(jsonl(tmp_path, value))
        assert records.format == name and open_records(jsonl(tmp_path, value), name)[0] == records[0]
        assert turns(records[0])[-1] == ("assistant", "A cat.")


@pytest.mark.parametrize(("value", "said", "image"), GOOD_RECORDS)
def test_a_record_becomes_a_conversation(tmp_path, value, said, image):
    record = open_records(jsonl(tmp_path, value))[0]
    assert [{turn.role: turn.full_text} for turn in record.messages] == said
    assert record.image == (image and tmp_path / image) and record.where == "data.jsonl, line 1"


def test_weights_of_answers_and_broken_characters(tmp_path):
    messages = [m for weight in (0, 1, 0, None) for m in (USER, BOT | {"weight": weight})]
    records = open_records(
        jsonl(tmp_path, {"messages": messages}, {"messages": [USER, BOT | {"content": "\ud83d"}]})
    )
    assert records[0].unlearnt == (1, 5)
    asked = {"prompt": [USER, BOT, USER], "completion": [BOT]}
    assert open_records(jsonl(tmp_path, asked))[0].unlearnt == (1,), "of TRL's, the completion alone is learnt"
    with pytest.raises(DataError, match="line 2: 'messages\\[1\\].content' is not UTF-8, or holds half of a"):
        records[1]
    said = [{"from": by, "value": "a", "weight": w} for w in (0, 1) for by in ("human", "gpt")]
    assert 1 in open_records(jsonl(tmp_path, {"conversations": said}))[0].unlearnt
    with pytest.raises(DataError, match="the 'weight' of the last turn is 0"):
        open_records(jsonl(tmp_path, {"conversations": said[:2]}))[0]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=9)] * 2),
        min_size=1, max_size=6,
    ),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(",;"),
)  # fmt: skip
def test_any_csv_is_read_as_it_was_written(tmp_path_factory, rows, quoting, separator):
    path = tmp_path_factory.getbasetemp() / "random.csv"
    # Spaces after a comma are no part of a cell without quotes.
    rows = [(f"q{asked}", f"a{answered}") for asked, answered in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([("question", "answer"), *rows])
    assert [tuple(m.text for m in record.messages) for record in open_records(path)] == rows


def test_a_cell_that_is_too_long_for_csv_makes_no_records_of_its_lines(tmp_path):
    with pytest.raises(DataError, match=r"long.csv, line 2: a cell has more than 131,072"):
        table(tmp_path, 'question,answer\n"' + "a line, and more\n" * 9000 + '",short\n', "long.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.tsv", "\ufeffid\tImage\tCaption\r\n1\ta.jpg\tA cat, asleep.\r\n\r\n2\tsub/b.jpg\tA dog.\r\n"),
        ("pairs.csv", 'image, caption\na.jpg, "A cat, asleep."\nsub/b.jpg, A dog.\n'),
        ("pairs.csv", 'image;caption;of\r\ra.jpg;A cat, asleep.;"x\ny"\rsub\\b.jpg;A dog.;z\r'),  # of an old Mac
        ("metadata.jsonl", '{"path": "a.jpg", "text": "A cat, asleep."}\n{"path": "sub/b.jpg", "text": "A dog."}'),
    ],
)  # fmt: skip
def test_lists_of_captions(tmp_path, name, text):
    table(tmp_path, text, name)
    for path in (tmp_path / name, *([] if name.startswith("pairs") else [tmp_path])):
        records = open_records(path)
        assert records.format == "captions" and len(records) == 2 and records.uncaptioned == ()
        assert pairs(records) == [(f"{tmp_path}/a.jpg", "A cat, asleep."), (f"{tmp_path}/sub/b.jpg", "A dog.")]


def test_a_folder_with_captions_beside_the_images(tmp_path):
    copies = (".tmp/b.jpg", ".tmp/b.txt", "__MACOSX/._b.jpg", "__MACOSX/._b.txt", "._b.jpg", "._b.txt")
    for name in ("b.jpg", "sub/a.PNG", "uncaptioned.HEIC", "drawing.svg", "wide.jpg", *copies):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfA dog.\r\nde.utf-8=Ein Hund.\n")
    (tmp_path / "sub/a.txt").write_text("Ein Käfer.", encoding="utf-8")
    (tmp_path / "drawing.txt").write_text("not a picture that can be opened")
    (tmp_path / "notes.txt").write_text("of nothing")
    (tmp_path / "wide.txt").write_text("A cup.", encoding="utf-16")
    records = open_records(tmp_path)
    assert records.format == "captions"
    with pytest.raises(DataError, match="wide.txt"):
        records[2]
    found = [records[0], records[1]]
    assert pairs(found) == [(f"{tmp_path}/b.jpg", "A dog."), (f"{tmp_path}/sub/a.PNG", "Ein Käfer.")]
    assert records[1].where == "sub/a.txt, line 1"
    assert records.uncaptioned == ("uncaptioned.HEIC",)


def test_a_file_has_no_splits_and_no_configurations(tmp_path):
    for name, named in (("splits", {"split": "dev"}), ("configurations", {"config": "dev"})):
        with pytest.raises(DataError, match=f"'data.jsonl' has no {name}, so there is no 'dev'"):
            open_records(jsonl(tmp_path, GOOD["alpaca"]), **named)


def test_captions_of_coco(tmp_path):
    path = tmp_path / "captions_val.json"
    images = [{"id": 9, "file_name": "9.jpg"}, {"id": 7, "file_name": "7.jpg"}]
    annotations = [{"image_id": i, "id": 100 + n, "caption": f" Nr {n}. "} for n, i in enumerate((7, 9, 7, 5, 9))]
    annotations += [{"image_id": 7, "id": 105}, {"caption": "Of nothing.", "id": 106}]
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations}))
    (tmp_path / "val").mkdir()
    records = open_records(path, images=tmp_path / "val")
    assert records.format == "captions" and len(records) == 7
    lines = tmp_path / "lines.json"
    lines.write_text(json.dumps({"images": ["9.jpg"], "messages": [USER, BOT]}) + "\n")
    assert open_records(lines).format == "chat", "whose images are names"
    many = open_records(jsonl(tmp_path, *[{"image": "9.jpg", "caption": "A"}] * 240))
    for period in (2, 3, 6, 8):  # of files: the wording tells nothing of the picture
        assert {many[i].messages[0].text for i in range(0, 240, period)} == {*REQUESTS}
    found = [records[i] for i in (0, 1, 2, 4)]
    assert pairs(found) == [(f"{tmp_path}/val/{n}.jpg", f"Nr {i}.") for n, i in ((7, 0), (9, 1), (7, 2), (9, 4))]
    assert len({r.messages[0].text for r in found[:3]}) == 3 and found[0].where.endswith("annotation 100")
    lost = "'images' has none of its 'image_id'"
    for i, why in ((3, lost), (5, "'caption' is null, not text"), (6, lost)):
        with pytest.raises(DataError, match=f"captions_val.json, annotation {100 + i}: {why}"):
            records[i]


def test_scienceqa(tmp_path):
    science(tmp_path, **{"1": MAGNETS, "22": CAPITALS})
    records = open_records(tmp_path)
    assert records.format == "scienceqa" and len(records) == 1
    asked = "Question: Which is a magnet?\nContext: Some metals are.\nOptions: (A) wood (B) iron (C) glass"
    assert turns(records[0]) == [("user", asked), ("assistant", "B")]
    assert records[0].where == "problems.json, problem 1"
    held_out = open_records(tmp_path / "problems.json", split="val")
    assert "\nContext: N/A\n" in held_out[0].messages[0].text and held_out[0].image is None
    magnets, capitals = problems(tmp_path, "trainval")
    assert records[0].image == tmp_path / "train/1/image.png" and question_text(magnets) == asked
    found = [columns(problem) for problem in (magnets, capitals)]
    assert found == [("NAT", "TXT", "IMG", "G1-6", "Avg"), ("SOC", "NO", "G7-12", "Avg")]
    (tmp_path / "images").mkdir()
    assert problems(tmp_path, "train")[0].image == tmp_path / "images/train/1/image.png"
    with pytest.raises(DataError, match="no problems of the split 'test'. It has those of: train, val, trainval"):
        problems(tmp_path, "test")
