"""Each format: what its records become, and the sentence for each fault."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.base.template import Message
from train.formats import captions
from train.formats.dataset import FORMATS, DataError, open_records
from train.formats.scienceqa import COLUMNS, Problem, columns, problems, question_text

USER = {"role": "user", "content": "What is it?"}
BOT = {"role": "assistant", "content": "A cat."}
SAID = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]
# A good record of each format that is a property of one object; all say the same.
GOOD: dict[str, dict] = {
    "alpaca": {"instruction": "What is it?", "output": "A cat."},
    "chat": {"messages": [USER, BOT]},
    "llava": {"conversations": SAID},
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
FAULTS = yaml.safe_load(Path(__file__).with_name("faults.yaml").read_text(encoding="utf-8"))


def jsonl(folder: Path, *values) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def one(folder: Path, value, **options):
    return open_records(jsonl(folder, value), **options)[0]


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
    ("format", "value", "message"), [(name, *case) for name, cases in FAULTS.items() for case in cases]
)
def test_a_fault_is_named_with_its_place_and_the_remedy(tmp_path, format, value, message):
    with pytest.raises(DataError) as error:
        if format == "scienceqa":
            problems(science(tmp_path, **{"1": MAGNETS, "7": {**MAGNETS, **value}}), "train")
        open_records(jsonl(tmp_path, GOOD[format], value), format)[1]
    place = "problems.json, problem 7: " if format == "scienceqa" else "data.jsonl, line 2: "
    assert str(error.value).startswith(place) and message in str(error.value)
    assert str(error.value).rstrip().endswith((".", "}."))


def test_every_format_is_recognised(tmp_path):
    (tmp_path / "science").mkdir()
    assert open_records(science(tmp_path / "science", **{"1": MAGNETS})).format == "scienceqa"
    assert {*GOOD, "scienceqa"} == FORMATS.keys()
    for name, value in GOOD.items():
        records = open_records(jsonl(tmp_path, value))
        assert records.format == name and open_records(jsonl(tmp_path, value), name)[0] == records[0]
        assert turns(records[0])[-1] == ("assistant", "A cat.")


# Alpaca and chat.


def test_alpaca(tmp_path):
    example = {"instruction": "Name a colour.", "input": "", "output": "Red.", "text": "as published, unused"}
    # 28 of the published 52,000 records have no output.
    rows = [{**example, "input": "Of the sky"}, {**example, "input": None}, {"instruction": "a", "output": ""}]
    records = open_records(jsonl(tmp_path, example, *rows, {**example, "output": "\ud83d"}))
    assert turns(records[0]) == turns(records[2]) == [("user", "Name a colour."), ("assistant", "Red.")]
    assert records[1].messages[0] == Message("user", "Name a colour.", "Of the sky")
    assert records[0].image is None and records[1].where == "data.jsonl, line 2"
    assert turns(records[3])[-1] == ("assistant", "")
    with pytest.raises(DataError, match="line 5: 'output' holds half of a surrogate pair"):
        records[4]
    assert one(tmp_path, {**example, "image": "x/a.png"}).image == tmp_path / "x/a.png"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "url": None, "path": "a.png"},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
    ],
)
def test_chat_blocks(tmp_path, block):
    content = [block, {"type": "text", "text": "What is it?"}, {"type": "text", "text": "Say."}]
    asked = {"role": "user", "content": content}
    record = one(tmp_path, {"messages": [asked, BOT, asked, BOT], "image": "a.png"})
    assert turns(record)[:2] == [("user", "What is it?\nSay."), ("assistant", "A cat.")]
    assert record.image == tmp_path / "a.png", "named three times, it is one"


@pytest.mark.parametrize("named", [{"image": "a.png"}, {"images": "a.png"}, {"images": ["a.png"]}])
def test_images_beside_the_messages(tmp_path, named):
    folder = tmp_path / "pictures"
    folder.mkdir()
    pointing = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    marked = {"role": "user", "content": "<image>\nWhat is it?"}
    for request in (USER, pointing, marked):
        record = one(tmp_path, {"messages": [request, BOT], **named}, images=folder)
        assert turns(record)[0] == ("user", "What is it?") and record.image == folder / "a.png"
    elsewhere = str(tmp_path / "elsewhere" / "a.png")
    assert one(tmp_path, {"messages": [USER, BOT], "image": elsewhere}, images=folder).image == Path(elsewhere)


def test_without_an_image_placeholders_stay_in_the_text(tmp_path):
    asked = {"role": "user", "content": " What does <image> mean in HTML?\n"}
    for none in (None, "", []):
        record = one(tmp_path, {"messages": [asked, BOT], "image": none, "images": none})
        assert record.image is None and turns(record)[0] == ("user", asked["content"])


def test_weights_of_answers(tmp_path):
    """As in OpenAI's files: 0 leaves an earlier answer unlearnt."""
    for weights, unlearnt in (((0, 1, 0, None), (1, 5)), ((None, None), ())):
        answers = [BOT | ({} if w is None else {"weight": w}) for w in weights]
        messages = [m for answer in answers for m in (USER, answer)]
        assert one(tmp_path, {"messages": messages}).unlearnt == unlearnt


# LLaVA and pairs.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("\n <image> \n\nWhat is it?", "What is it?"),
        ("What is\n<image>\nthis?", "What is\nthis?"),
        ("What is <image> this?", "What is this?"),
    ],
)
def test_llava(tmp_path, value, text):
    (tmp_path / "coco").mkdir()
    path = tmp_path / "llava.json"
    said = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": value}, SAID[1]]
    path.write_text(
        json.dumps([{"id": "7", "image": "train/7.jpg", "conversations": said}, {"conversations": said}])
    )
    records = open_records(path, images=tmp_path / "coco")
    assert turns(records[0]) == [("system", "Be brief."), ("user", text), ("assistant", "A cat.")]
    assert records[0].image == tmp_path / "coco/train/7.jpg" and records[0].where == "llava.json, record 1"
    assert records[1].messages[1].text == value and records[1].image is None


@pytest.mark.parametrize("names", ["question answer", "prompt completion", "prompt response", "query response",
                                   "input output"])  # fmt: skip
def test_pairs(tmp_path, names):
    asked, answered = names.split()
    record = one(tmp_path, {asked: "Häh?", answered: "Ja.", "id": 3})
    assert turns(record) == [("user", "Häh?"), ("assistant", "Ja.")]
    record = one(tmp_path, {asked: "What?\n<image>", answered: "A cat.", "image": "a.png"})
    assert record.image == tmp_path / "a.png" and record.messages[0].text == "What?"


def test_pairs_of_messages(tmp_path):
    asked = [{"role": "system", "content": "Be brief."}, USER]
    record = one(tmp_path, {"prompt": asked, "completion": [BOT]})
    assert [role for role, _ in turns(record)] == ["system", "user", "assistant"]


# Tables.


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_csv_of_instructions_has_cells_of_several_lines(tmp_path, newline, bom):
    rows = [
        {"Instruction": "Add, please.", "input": "2\nand\n3", "output": 'The "answer":\r\n5'},
        {"Instruction": "Say ü.", "input": "", "output": "ü\u2028ü"},
        {"Instruction": "Say \U0001f600.", "input": "", "output": ""},
    ]
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(bom)
        writer = csv.DictWriter(file, rows[0], lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows)
        file.write(newline)
    records = open_records(path)
    assert records.format == "alpaca" and len(records) == 3
    for row, record in zip(rows, records, strict=True):
        assert record.messages[0] == Message("user", row["Instruction"], row["input"])
        assert record.messages[1].text == row["output"]
    assert [record.where for record in records] == [f"rows.csv, line {n}" for n in (2, 6, 7)]


@settings(deadline=None, max_examples=40)
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


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("path\tcaption\na.jpg\tA cat, asleep.\nsub/b.jpg\tA dog.\n", "pairs.tsv"),
        ("caption\turl\nA cat, asleep.\ta.jpg\nA dog.\tsub/b.jpg", "pairs.tsv"),
        ("\ufeffid\tImage\tCaption\r\n1\ta.jpg\tA cat, asleep.\r\n\r\n2\tsub/b.jpg\tA dog.\r\n", "pairs.tsv"),
        ("a.jpg\tA cat, asleep.\nsub/b.jpg\tA dog.\n", "pairs.tsv"),
        ('path,caption\na.jpg,"A cat, asleep."\nsub/b.jpg,A dog.\n', "pairs.csv"),
        ('a.jpg, "A cat, asleep."\nsub/b.jpg, A dog.\n', "pairs.csv"),
        ("Image;Caption;Note\na.jpg;A cat, asleep.;\nsub/b.jpg;A dog.;\n", "pairs.csv"),
    ],
)
def test_tables_of_captions(tmp_path, text, name):
    records = table(tmp_path, text, name)
    assert records.format == "captions" and len(records) == 2
    assert pairs(records) == [(f"{tmp_path}/a.jpg", "A cat, asleep."), (f"{tmp_path}/sub/b.jpg", "A dog.")]
    assert open_records(tmp_path / name, "captions", images=tmp_path.parent)[0].image == tmp_path.parent / "a.jpg"


def test_quotes_in_a_tsv_belong_to_the_text_unless_they_enclose_the_cell(tmp_path):
    records = table(tmp_path, 'a.jpg\t"Hi" he said\nb.jpg\t"He said ""hi"""\nc.jpg\t5" nails\nd.jpg\t"\n')
    assert [caption for _, caption in pairs(records)] == ['"Hi" he said', 'He said "hi"', '5" nails', '"']
    records = table(tmp_path, 'Question\tAnswer\nWhat is 5"?\tA length.\n')
    assert records.format == "pairs" and turns(records[0]) == [("user", 'What is 5"?'), ("assistant", "A length.")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\tA cat.\nb.jpg\n", "line 2: 1 cells where the first line has 2. Separate the cells by one tab"),
        ("a.jpg\tA cat.\nb.jpg\tA dog\trunning\n", "line 2: 3 cells where the first line has 2"),
        ("a.jpg,A cat.\nb.jpg,A dog, running\n", "line 2: 3 cells where the first line has 2. Separate the cells"),
        ("image;text;x\na.jpg;A cat.;\nb;c\n", "line 3: 2 cells where the first line has 3. Separate the"),
        ("a.jpg\tA cat.\n\nb.jpg\t  \n", "line 3: 'caption' is empty"),
        ("a.jpg\tA cat.\n\tA dog.\n", "line 2: 'image' is empty"),
        ("a.jpg\tA cat.\nhttp://x.org/b.jpg\tA dog.\n", "line 2: 'image' is an address, 'http://x.org/b.jpg'"),
        ('a.jpg,A cat.\nb.jpg,"A dog" runs\n', "line 2: this row cannot be read as CSV"),
        ('a.jpg,A cat.\nb.jpg,"A dog\nc,d\n', "line 2: this row cannot be read as CSV"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named(tmp_path, text, message):
    records = table(tmp_path, text)
    assert pairs(records[:1]) == [(f"{tmp_path}/a.jpg", "A cat.")]
    with pytest.raises(DataError) as error:
        records[1]
    assert str(error.value).startswith("pairs.tsv, ") and message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pairs.tsv is empty"),
        ("path\tcaption\n", "pairs.tsv has a header and nothing below it"),
        ("a.jpg\n", "line 1: 1 columns and no header of a known format. Name the columns"),
        ("id\tfile\ttext\n1\ta.jpg\tA cat.\n", "line 1: 3 columns and no header"),
        (
            'question,answer\na,b\nc,"d\n' + f"q,{'x' * 100}\n" * 3000,
            "line 3: a cell that begins in this row does not end. Close its",
        ),
    ],
)
def test_a_table_that_cannot_be_opened_is_explained(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        table(tmp_path, text)
    assert message in str(error.value)


# Captions.


def test_requests_vary_and_are_reproducible(tmp_path):
    text = "".join(f"{i}.jpg\tA {i}.\n" for i in range(12))
    asked = [record.messages[0] for record in table(tmp_path, text)]
    assert asked == [record.messages[0] for record in table(tmp_path, text)]
    assert {message.text for message in asked} == set(captions.REQUESTS)
    assert {message.role for message in asked} == {"user"}


def test_a_folder_with_captions_beside_the_images(tmp_path):
    for name in ("b.jpg", "sub/a.PNG", "uncaptioned.png", "drawing.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfA dog.\r\nde.utf-8=Ein Hund.\n")
    (tmp_path / "sub/a.txt").write_text("Ein Käfer.", encoding="utf-8")
    (tmp_path / "drawing.txt").write_text("not a picture that can be opened")
    (tmp_path / "notes.txt").write_text("of nothing")
    records = open_records(tmp_path)
    assert records.format == "captions"
    assert pairs(records) == [(f"{tmp_path}/b.jpg", "A dog."), (f"{tmp_path}/sub/a.PNG", "Ein Käfer.")]
    assert records[1].where == "sub/a.txt, line 1"
    assert records.uncaptioned == ("uncaptioned.png",)
    for content, message in (
        (b"\nA dog.", "^b.txt, line 1: 'caption' is empty"),
        (b"caf\xe9", "^b.txt, line 1: this is not UTF-8"),
        (None, "b.txt' cannot be read"),
    ):
        (tmp_path / "b.txt").unlink() if content is None else (tmp_path / "b.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            records[0]


def test_a_folder_with_a_list_of_captions(tmp_path):
    (tmp_path / "captions.json").write_text('{"a.jpg": "A cat.", "b.jpg": 3}')
    for path in (tmp_path, tmp_path / "captions.json"):
        records = open_records(path)
        assert records.format == "captions" and records[0].image == tmp_path / "a.jpg"
        assert records.uncaptioned == ()
        assert records[0].messages[-1] == Message("assistant", "A cat.")
        with pytest.raises(DataError, match="captions.json, entry 'b.jpg': 'caption' is a number, not text"):
            records[1]
    (tmp_path / "captions.tsv").write_text("image\tcaption\nc.jpg\tA cow.\n")
    assert pairs(open_records(tmp_path)) == [(f"{tmp_path}/c.jpg", "A cow.")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds neither problems nor captions nor records"),
        ("[]", "captions.json holds a list, not an object"),
        ("{}", "captions.json is an empty object"),
        ('{"a.jpg":\n x}', "captions.json: this is not JSON"),
    ],
)
def test_a_folder_or_list_without_captions(tmp_path, content, message):
    if content is not None:
        (tmp_path / "captions.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_records(tmp_path, "captions")


def test_metadata_of_a_folder_lists_its_pictures(tmp_path):
    """As in a folder of the library `datasets`."""
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "A cat."}\n')
    assert pairs(open_records(tmp_path)) == [(f"{tmp_path}/a.jpg", "A cat.")]


def write_coco(folder: Path, **changed) -> Path:
    path = folder / "captions_val.json"
    images = [{"id": 9, "file_name": "9.jpg"}, {"id": 7, "file_name": "7.jpg"}]
    annotations = [{"image_id": i, "id": 100 + n, "caption": f" Nr {n}. "} for n, i in enumerate((7, 9, 7, 5, 9))]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, **changed}))
    return path


def test_captions_of_coco(tmp_path):
    (tmp_path / "val").mkdir()
    records = open_records(write_coco(tmp_path, licenses=[{"id": 1}]), images=tmp_path / "val")
    assert records.format == "captions" and len(records) == 5
    found = [records[i] for i in (0, 1, 2, 4)]
    assert pairs(found) == [(f"{tmp_path}/val/{n}.jpg", f"Nr {i}.") for n, i in ((7, 0), (9, 1), (7, 2), (9, 4))]
    assert len({r.messages[0].text for r in found[:3]}) == 3 and found[0].where.endswith("annotation 100")
    with pytest.raises(DataError, match="captions_val.json, annotation 103: 'image' is null. Give it a picture"):
        records[3]
    (tmp_path / "captions_val.json").rename(tmp_path / "captions.json")
    assert len(open_records(tmp_path)) == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": []}, "captions_val.json: 'images' is an empty list"),
        ({"images": {}}, "captions_val.json: 'images' is an object, not a list"),
        ({"images": [{"id": 1}]}, "captions_val.json: 'images[0].file_name' is missing"),
        ({"annotations": []}, "captions_val.json: 'annotations' is an empty list"),
        ({"annotations": [{"image_id": 7, "bbox": []}]}, "captions_val.json: 'annotations[0].caption' is missing"),
        ({"annotations": [3]}, "captions_val.json: 'annotations[0]' is a number, not an object"),
    ],
)
def test_faults_of_coco(tmp_path, changed, message):
    with pytest.raises(DataError) as error:
        open_records(write_coco(tmp_path, **changed))
    assert str(error.value).startswith(message)


# ScienceQA.


def test_scienceqa(tmp_path):
    science(tmp_path, **{"1": MAGNETS, "22": CAPITALS})
    # The official folder holds a captions.json of its own.
    (tmp_path / "captions.json").write_text('{"captions": {"1": "A magnet."}}')
    records = open_records(tmp_path)
    assert records.format == "scienceqa" and len(records) == 1
    asked = "Question: Which is a magnet?\nContext: Some metals are.\nOptions: (A) wood (B) iron (C) glass"
    assert turns(records[0]) == [("user", asked), ("assistant", "B")]
    assert records[0].where == "problems.json, problem 1"
    held_out = open_records(tmp_path / "problems.json", split="val")
    assert "\nContext: N/A\n" in held_out[0].messages[0].text and held_out[0].image is None
    both = open_records(tmp_path, "scienceqa", split="trainval")
    assert [record.where for record in both] == ["problems.json, problem 1", "problems.json, problem 22"]
    magnets, capitals = problems(tmp_path, "trainval")
    image = tmp_path / "train/1/image.png"
    assert records[0].image == image and question_text(magnets) == asked
    assert magnets == Problem("1", MAGNETS["question"], ("wood", "iron", "glass"), 1, "Some metals are.", image, 6,
                              "natural science", "physics", "train")  # fmt: skip
    assert (magnets.has_text, magnets.has_image, magnets.letter) == (True, True, "B")
    assert (capitals.has_text, capitals.has_image) == (False, False)


def test_scienceqa_images_in_a_folder_of_their_own(tmp_path):
    science(tmp_path, **{"1": MAGNETS})
    (tmp_path / "images").mkdir()
    (tmp_path / "elsewhere").mkdir()
    assert problems(tmp_path, "train")[0].image == tmp_path / "images/train/1/image.png"
    elsewhere = open_records(tmp_path, images=tmp_path / "elsewhere")
    assert elsewhere[0].image == tmp_path / "elsewhere/train/1/image.png"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("NAT", "TXT", "IMG", "G1-6", "Avg")),
        ({"hint": ""}, ("NAT", "IMG", "G1-6", "Avg")),
        ({"image": None}, ("NAT", "TXT", "G1-6", "Avg")),
        ({"image": None, "hint": "", "grade": "grade1"}, ("NAT", "NO", "G1-6", "Avg")),
        ({"subject": "social science", "grade": "grade7"}, ("SOC", "TXT", "IMG", "G7-12", "Avg")),
        ({"subject": "language science", "grade": "grade12"}, ("LAN", "TXT", "IMG", "G7-12", "Avg")),
    ],
)
def test_columns(tmp_path, changes, expected):
    found = columns(problems(science(tmp_path, **{"1": {**MAGNETS, **changes}}), "train")[0])
    assert found == expected and set(found) <= set(COLUMNS)


def test_incomplete_scienceqa_is_explained(tmp_path):
    science(tmp_path, **{"1": MAGNETS})
    with pytest.raises(DataError, match="has no split 'dev'. It has: train, val, trainval, test"):
        open_records(tmp_path, split="dev")
    with pytest.raises(DataError, match="pid_splits.json: 'test' is an empty list"):
        open_records(tmp_path, split="test")
    (tmp_path / "problems.json").write_text("{}")
    with pytest.raises(DataError, match="split 'train': problem '1' is not in problems.json. Fetch both"):
        open_records(tmp_path)
    (tmp_path / "pid_splits.json").unlink()
    with pytest.raises(DataError, match="pid_splits.json' cannot be read. Check the path"):
        open_records(tmp_path)
