"""Each format: what its records become, and the sentence for each fault."""

from __future__ import annotations

import csv
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.base.template import Message
from train.formats import captions, scienceqa
from train.formats.dataset import FORMATS, DataError, open_records
from train.formats.scienceqa import COLUMNS, Problem, columns, problems, question_text


def jsonl(folder: Path, *values) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def one(folder: Path, value, **options):
    return open_records(jsonl(folder, value), **options)[0]


def turns(record) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in record.messages]


def check_fault(folder: Path, value, message: str, format: str) -> None:
    """The second line of a file is refused with this message, after the file's name and the line."""
    good = {
        "instruction": "a",
        "output": "b",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    }
    records = open_records(jsonl(folder, good, value), format)
    with pytest.raises(DataError) as error:
        records[1]
    assert str(error.value).startswith("data.jsonl, line 2: ")
    assert message in str(error.value)
    assert str(error.value).rstrip().endswith((".", "}."))


def chat(*messages, **more) -> dict:
    return {"messages": list(messages), **more}


def llava(*turns, **more) -> dict:
    return {"conversations": list(turns), **more}


# Alpaca.


def test_alpaca(tmp_path):
    example = {"instruction": "Name a colour.", "input": "", "output": "Red.", "text": "as published, unused"}
    records = open_records(
        jsonl(tmp_path, example, {**example, "input": "Of the sky"}, {**example, "input": None})
    )
    assert records.format == "alpaca"
    assert turns(records[0]) == turns(records[2]) == [("user", "Name a colour."), ("assistant", "Red.")]
    assert records[1].messages[0] == Message("user", "Name a colour.", "Of the sky")
    assert records[0].image is None and records[1].where == "data.jsonl, line 2"


def test_alpaca_takes_an_empty_answer_and_an_image(tmp_path):
    # 28 of the published 52,000 records have no output.
    assert turns(one(tmp_path, {"instruction": "a", "output": ""}))[-1] == ("assistant", "")
    assert one(tmp_path, {"instruction": "a", "output": "b", "image": "x/a.png"}).image == tmp_path / "x/a.png"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"output": "b"}, "'instruction' is missing. Add it"),
        ({"instruction": "a"}, "'output' is missing. Add it"),
        ({"instruction": "a", "output": None}, "'output' is null, not text. Write it as a string"),
        ({"instruction": "a", "output": 5}, "'output' is a number, not text"),
        ({"instruction": ["a"], "output": "b"}, "'instruction' is a list, not text"),
        ({"instruction": "a", "input": {}, "output": "b"}, "'input' is an object, not text"),
        ({"instruction": "a", "input": True, "output": "b"}, "'input' is a boolean, not text"),
        ({"instruction": " ", "input": "\n", "output": "b"}, "'instruction' and 'input' are both empty"),
        ({"instruction": "a", "output": "\ud83d"}, "'output' holds half of a surrogate pair"),
        ({"instruction": "a", "output": "b", "image": 3}, "'image' is a number, not text"),
    ],
)
def test_faults_of_alpaca(tmp_path, value, message):
    check_fault(tmp_path, value, message, "alpaca")


# Chat.

USER = {"role": "user", "content": "What is it?"}
BOT = {"role": "assistant", "content": "A cat."}


def test_chat(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    record = one(tmp_path, {"messages": [system, USER, BOT, {**USER, "content": "Sure?"}, BOT]})
    assert turns(record) == [
        ("system", "Be brief."),
        ("user", "What is it?"),
        ("assistant", "A cat."),
        ("user", "Sure?"),
        ("assistant", "A cat."),
    ]
    assert record.image is None


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image", "url": None, "path": "a.png"},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
    ],
)
def test_chat_blocks(tmp_path, block):
    content = [block, {"type": "text", "text": "What is it?"}, {"type": "text", "text": "Say."}]
    record = one(tmp_path, {"messages": [{"role": "user", "content": content}, BOT]})
    assert turns(record) == [("user", "What is it?\nSay."), ("assistant", "A cat.")]
    assert record.image == tmp_path / "a.png"


@pytest.mark.parametrize("named", [{"image": "a.png"}, {"images": "a.png"}, {"images": ["a.png"]}])
def test_chat_images_beside_the_messages(tmp_path, named):
    folder = tmp_path / "pictures"
    folder.mkdir()
    pointing = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    marked = {"role": "user", "content": "<image>\nWhat is it?"}
    for request in (USER, pointing, marked):
        record = one(tmp_path, {"messages": [request, BOT], **named}, images=folder)
        assert turns(record)[0] == ("user", "What is it?") and record.image == folder / "a.png"


def test_an_image_named_twice_is_one_and_empty_names_are_none(tmp_path):
    block = {"type": "image", "image": "a.png"}
    asked = {"role": "user", "content": [block, {"type": "text", "text": "What is it?"}]}
    assert one(tmp_path, {"messages": [asked, BOT, asked, BOT], "image": "a.png"}).image
    for none in (None, "", []):
        assert one(tmp_path, {"messages": [USER, BOT], "image": none, "images": none}).image is None


def test_an_absolute_image_path_is_kept(tmp_path):
    elsewhere = tmp_path / "elsewhere" / "a.png"
    (tmp_path / "pictures").mkdir()
    value = {"messages": [USER, BOT], "image": str(elsewhere)}
    assert one(tmp_path, value, images=tmp_path / "pictures").image == elsewhere


def test_without_an_image_placeholders_stay_in_the_text(tmp_path):
    asked = {"role": "user", "content": " What does <image> mean in HTML?\n"}
    assert turns(one(tmp_path, {"messages": [asked, BOT]}))[0] == ("user", asked["content"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "a"}, "'messages' is missing"),
        ({"messages": "a"}, "'messages' is text, not a list"),
        (chat(), "'messages' is an empty list"),
        (chat("a"), "'messages[0]' is text, not an object"),
        (chat({"content": "a"}), "'messages[0].role' is missing"),
        (chat({**USER, "role": "tool"}), "'messages[0].role' is 'tool'. Known roles: system, user, assis"),
        (chat({**USER, "role": ["user"]}), "'messages[0].role' is ['user']"),
        (chat({"role": "user"}), "'messages[0].content' is missing"),
        (chat(USER, {"role": "assistant", "content": None}), "'messages[1].content' is null, not text"),
        (chat({**USER, "content": ["a"]}), "'messages[0].content[0]' is text, not an object"),
        (chat({**USER, "content": [{}]}), "'messages[0].content[0].type' is missing"),
        (chat({**USER, "content": [{"type": "audio"}]}), "content[0].type' is 'audio'. Known types: text"),
        (chat({**USER, "content": [{"type": "text"}]}), "'messages[0].content[0].text' is missing"),
        (chat({**USER, "content": []}, BOT), "'messages[0]' is an empty turn of the user's"),
        (chat({**USER, "content": [{"type": "image"}]}, BOT), "names no picture and the record has"),
        (
            chat({**USER, "content": [{"type": "image_url", "image_url": {}}]}),
            "image_url.url' is missing",
        ),
        (chat(USER), "'messages[0]' is the last turn and the user's. The assistant must end it"),
        (chat(USER, BOT, USER), "'messages[2]' is the last turn and the user's"),
        (chat(BOT), "'messages[0]' is the assistant's. The user must speak first"),
        (chat({**USER, "role": "system"}, BOT), "'messages[1]' is the assistant's"),
        (chat({**USER, "role": "system"}), "'messages' holds no turn of the assistant"),
        (chat(USER, {**USER, "role": "system"}, BOT), "'messages[1]' is a system turn in the midd"),
        (chat(USER, BOT, images=["a.png", "b.png"]), "2 images in one conversation (a.png, b.pn"),
        (chat(USER, BOT, images=["a.png", 3]), "'images[1]' is a number, not text"),
        (chat(USER, BOT, image=" "), "'image' is empty"),
        (chat(USER, BOT, image="https://example.org/a.png"), "address, 'https://example.org/a.png'. Download"),
        (chat(USER, BOT, image="data:image/png;base64," + "A" * 999), "'image' is an address, 'da"),
    ],
)
def test_faults_of_chat(tmp_path, value, message):
    check_fault(tmp_path, value, message, "chat")


# LLaVA.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("\n <image> \n\nWhat is it?", "What is it?"),
        ("What is\n<image>\nthis?", "What is\nthis?"),
        ("What is <image> this?", "What is this?"),
        ("What is it?", "What is it?"),
    ],
)
def test_llava(tmp_path, value, text):
    (tmp_path / "coco").mkdir()
    path = tmp_path / "llava.json"
    conversation = [{"from": "human", "value": value}, {"from": "gpt", "value": "A cat."}]
    path.write_text(json.dumps([{"id": "7", "image": "train/7.jpg", "conversations": conversation}]))
    records = open_records(path, images=tmp_path / "coco")
    assert records.format == "llava"
    assert turns(records[0]) == [("user", text), ("assistant", "A cat.")]
    assert records[0].image == tmp_path / "coco/train/7.jpg"
    assert records[0].where == "llava.json, record 1 (line 1)"


def test_llava_without_an_image(tmp_path):
    conversation = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hello <image>"},
        {"from": "gpt", "value": "Hi."},
    ]
    record = one(tmp_path, {"conversations": conversation})
    assert turns(record) == [("system", "Be brief."), ("user", "Hello <image>"), ("assistant", "Hi.")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"image": "a.png"}, "'conversations' is missing"),
        ({"conversations": {}}, "'conversations' is an object, not a list"),
        (llava(3), "'conversations[0]' is a number, not an object"),
        (llava({"value": "a"}), "'conversations[0].from' is missing"),
        (llava({"from": "bot", "value": "a"}), "'conversations[0].from' is 'bot'. Known speakers: human"),
        (llava({"from": [], "value": "a"}), "'conversations[0].from' is []"),
        (llava({"from": "human"}), "'conversations[0].value' is missing"),
        (llava({"from": "human", "value": 1}), "'conversations[0].value' is a number, not text"),
        (llava({"from": "human", "value": "a"}), "'conversations[0]' is the last turn and the user's"),
        (
            {
                "image": "a.png",
                "conversations": [{"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": "a"}],
            },
            "'conversations[0]' is an empty turn of the user's",
        ),
        ({"image": ["a.png", "b.png"], "conversations": []}, "2 images in one conversation"),
    ],
)
def test_faults_of_llava(tmp_path, value, message):
    check_fault(tmp_path, value, message, "llava")


def test_weights_of_answers(tmp_path):
    """As in OpenAI's files: 0 leaves an earlier answer unlearnt."""

    def messages(*weights):
        answers = [{"role": "assistant", "content": "b"} | ({} if w is None else {"weight": w}) for w in weights]
        return {"messages": [m for a in answers for m in ({"role": "user", "content": "a"}, a)]}

    assert one(tmp_path, messages(0, 1, 0, None)).unlearnt == (1, 5)
    assert one(tmp_path, messages(None, None)).unlearnt == ()
    with pytest.raises(DataError, match=r"line 1: 'messages\[1\].weight' is 0 in the last turn"):
        one(tmp_path, messages(0))
    with pytest.raises(DataError, match=r"'messages\[1\].weight' is neither 0 nor 1"):
        one(tmp_path, messages(0.5, 1))


# Pairs of a request and its answer, and tables.


@pytest.mark.parametrize(
    "names",
    [
        ("question", "answer"),
        ("prompt", "completion"),
        ("prompt", "response"),
        ("query", "response"),
        ("input", "output"),
    ],
)
def test_pairs(tmp_path, names):
    asked, answered = names
    records = open_records(jsonl(tmp_path, {asked: "Häh?", answered: "Ja.", "id": 3}, {asked: " ", answered: "x"}))
    assert records.format == "pairs" and turns(records[0]) == [("user", "Häh?"), ("assistant", "Ja.")]
    with pytest.raises(DataError, match=f"data.jsonl, line 2: '{asked}' is empty"):
        records[1]
    record = one(tmp_path, {asked: "What?\n<image>", answered: "A cat.", "image": "a.png"})
    assert record.image == tmp_path / "a.png" and record.messages[0].text == "What?"


def test_pairs_of_messages(tmp_path):
    asked = [{"role": "system", "content": "Be brief."}, USER]
    record = one(tmp_path, {"prompt": asked, "completion": [BOT]})
    assert [role for role, _ in turns(record)] == ["system", "user", "assistant"]
    with pytest.raises(DataError, match="'prompt' is a list, not text"):
        one(tmp_path, {"prompt": asked, "completion": "text"})


TABLE = [
    {"Instruction": "Add, please.", "input": "2\nand\n3", "output": 'The "answer":\r\n5'},
    {"Instruction": "Say ü.", "input": "", "output": "ü\u2028ü"},
    {"Instruction": "Say \U0001f600.", "input": "", "output": ""},
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_csv_of_instructions_has_cells_of_several_lines(tmp_path, newline, bom):
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(bom)
        writer = csv.DictWriter(file, TABLE[0], lineterminator=newline)
        writer.writeheader()
        writer.writerows(TABLE)
        file.write(newline)
    records = open_records(path)
    assert records.format == "alpaca" and len(records) == 3
    for row, record in zip(TABLE, records, strict=True):
        assert record.messages[0] == Message("user", row["Instruction"], row["input"])
        assert record.messages[1].text == row["output"]
    assert [record.where for record in records] == [f"rows.csv, line {n}" for n in (2, 6, 7)]
    assert pickle.loads(pickle.dumps(records))[2] == records[2]


@settings(deadline=None)
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


def test_a_semicolon_is_named_where_cells_are_missing(tmp_path):
    records = table(tmp_path, "Question;Answer;Note\nWhat, then?;This.;\na;b\n", "pairs.csv")
    assert turns(records[0]) == [("user", "What, then?"), ("assistant", "This.")]
    with pytest.raises(DataError, match="2 cells where the first line has 3. Separate the cells by one semicolon"):
        records[1]


def test_a_quote_that_is_not_closed_is_found_where_it_opens(tmp_path):
    rows = "".join(f"q{i},{'x' * 100}\n" for i in range(3000))
    with pytest.raises(
        DataError, match="pairs.csv, line 3: a cell that begins in this row does not end. Close its"
    ):
        table(tmp_path, f'question,answer\na,b\nc,"d\n{rows}', "pairs.csv")
    # Fewer lines than the longest cell may have: the row is broken, and those before it are read.
    records = table(tmp_path, 'question,answer\na,b\nc,"d\ne,f\n', "pairs.csv")
    assert turns(records[0]) == [("user", "a"), ("assistant", "b")]
    with pytest.raises(DataError, match="pairs.csv, line 3: this row cannot be read as CSV"):
        records[1]


def test_a_tsv_may_name_the_columns_of_any_format(tmp_path):
    records = table(tmp_path, 'Question\tAnswer\nWhat is 5"?\tA length.\n')
    assert records.format == "pairs" and turns(records[0]) == [("user", 'What is 5"?'), ("assistant", "A length.")]


# Captions.


def table(folder: Path, text: str, name: str = "pairs.tsv"):
    path = folder / name
    path.write_bytes(text.encode())
    return open_records(path)


def pairs(records) -> list[tuple[str, str]]:
    return [(str(record.image), record.messages[-1].text) for record in records]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("path\tcaption\na.jpg\tA cat, asleep.\nsub/b.jpg\tA dog.\n", "pairs.tsv"),
        ("caption\turl\nA cat, asleep.\ta.jpg\nA dog.\tsub/b.jpg", "pairs.tsv"),
        ("\ufeffid\tImage\tCaption\r\n1\ta.jpg\tA cat, asleep.\r\n\r\n2\tsub/b.jpg\tA dog.\r\n", "pairs.tsv"),
        ("a.jpg\tA cat, asleep.\nsub/b.jpg\tA dog.\n", "pairs.tsv"),
        ('path,caption\na.jpg,"A cat, asleep."\nsub/b.jpg,A dog.\n', "pairs.csv"),
        ('a.jpg, "A cat, asleep."\nsub/b.jpg, A dog.\n', "pairs.csv"),
    ],
)
def test_tables_of_captions(tmp_path, text, name):
    records = table(tmp_path, text, name)
    assert records.format == "captions" and len(records) == 2
    assert pairs(records) == [(f"{tmp_path}/a.jpg", "A cat, asleep."), (f"{tmp_path}/sub/b.jpg", "A dog.")]
    assert open_records(tmp_path / name, "captions", images=tmp_path.parent)[0].image == tmp_path.parent / "a.jpg"
    assert pickle.loads(pickle.dumps(records))[0] == records[0]


def test_quotes_in_a_tsv_belong_to_the_caption_unless_they_enclose_the_cell(tmp_path):
    records = table(tmp_path, 'a.jpg\t"Hi" he said\nb.jpg\t"He said ""hi"""\nc.jpg\t5" nails\nd.jpg\t"\n')
    assert [caption for _, caption in pairs(records)] == ['"Hi" he said', 'He said "hi"', '5" nails', '"']


def test_requests_vary_and_are_reproducible(tmp_path):
    text = "".join(f"{i}.jpg\tA {i}.\n" for i in range(12))
    asked = [record.messages[0] for record in table(tmp_path, text)]
    assert asked == [record.messages[0] for record in table(tmp_path, text)]
    assert {message.text for message in asked} == set(captions.REQUESTS)
    assert {message.role for message in asked} == {"user"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a.jpg\tA cat.\nb.jpg\n",
            "line 2: 1 cells where the first line has 2. Separate the cells by one tab",
        ),
        ("a.jpg\tA cat.\nb.jpg\tA dog\trunning\n", "line 2: 3 cells where the first line has 2"),
        (
            "a.jpg,A cat.\nb.jpg,A dog, running\n",
            "line 2: 3 cells where the first line has 2. Separate the cells",
        ),
        ("a.jpg\tA cat.\n\nb.jpg\t  \n", "line 3: 'caption' is empty"),
        ("a.jpg\tA cat.\n\tA dog.\n", "line 2: 'image' is empty"),
        (
            "a.jpg\tA cat.\nhttp://x.org/b.jpg\tA dog.\n",
            "line 2: 'image' is an address, 'http://x.org/b.jpg'. Downl",
        ),
        ('a.jpg,A cat.\nb.jpg,"A dog" runs\n', "line 2: this row cannot be read as CSV"),
    ],
)
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
    ],
)
def test_a_table_that_cannot_be_opened_is_explained(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        table(tmp_path, text)
    assert message in str(error.value)


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
    (tmp_path / "b.txt").write_text("\nA dog.")
    with pytest.raises(DataError, match=r"^b.txt, line 1: 'caption' is empty"):
        records[0]
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"^b.txt, line 1: byte 0xe9 at offset 3 of the file is not UTF-8"):
        records[0]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(DataError, match=r"b.txt' cannot be read"):
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


def test_a_folder_or_list_without_captions(tmp_path):
    with pytest.raises(DataError, match="holds neither problems nor captions nor records"):
        open_records(tmp_path, "captions")
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(DataError, match="captions.json holds a list, not an object"):
        open_records(tmp_path)
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(DataError, match="captions.json is an empty object"):
        open_records(tmp_path)
    (tmp_path / "captions.json").write_text('{"a.jpg":\n x}')
    with pytest.raises(DataError, match="captions.json, line 2, column 2: this is not JSON"):
        open_records(tmp_path)


# COCO.


def write_coco(folder: Path, images=None, annotations=None, **more) -> Path:
    path = folder / "captions_val.json"
    images = [{"id": 9, "file_name": "9.jpg"}, {"id": 7, "file_name": "7.jpg"}] if images is None else images
    if annotations is None:
        annotations = [
            {"image_id": i, "id": 100 + n, "caption": f" Nr {n}. "} for n, i in enumerate((7, 9, 7, 5, 9))
        ]
    path.write_text(json.dumps({"info": {}, **more, "images": images, "annotations": annotations}))
    return path


def test_captions_of_coco(tmp_path):
    (tmp_path / "val").mkdir()
    records = open_records(write_coco(tmp_path, licenses=[{"id": 1}]), images=tmp_path / "val")
    assert records.format == "captions" and len(records) == 5
    names = ["7", "9", "7", "9"]
    found = [records[i] for i in (0, 1, 2, 4)]
    assert pairs(found) == [
        (f"{tmp_path}/val/{n}.jpg", f"Nr {i}.") for n, i in zip(names, (0, 1, 2, 4), strict=True)
    ]
    assert len({record.messages[0].text for record in records[:3]}) == 3 and found[0].where.endswith(
        "annotation 100"
    )
    with pytest.raises(DataError, match="captions_val.json, annotation 103: image 5 is not in 'images'. Take"):
        records[3]
    assert pickle.loads(pickle.dumps(records))[1] == records[1]
    (tmp_path / "captions_val.json").rename(tmp_path / "captions.json")
    assert len(open_records(tmp_path)) == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": []}, "captions_val.json: 'images' is an empty list"),
        ({"images": {}}, "captions_val.json: 'images' is an object, not a list"),
        ({"images": [{"id": 1}]}, "captions_val.json: 'images[0].file_name' is missing"),
        ({"images": [{"id": [], "file_name": "a"}]}, "captions_val.json: 'images[0].id' is a list"),
        ({"annotations": []}, "captions_val.json: 'annotations' is an empty list"),
        ({"annotations": [{"image_id": 7, "bbox": []}]}, "captions_val.json: 'annotations[0].caption' is missing"),
        ({"annotations": [3]}, "captions_val.json: 'annotations[0]' is a number, not an object"),
    ],
)
def test_faults_of_coco(tmp_path, changed, message):
    with pytest.raises(DataError) as error:
        open_records(write_coco(tmp_path, **changed))
    assert str(error.value).startswith(message)


def test_objects_with_images_and_captions_are_captions(tmp_path):
    """As in a folder of the library `datasets`, where metadata.jsonl lists the pictures."""
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "A cat."}\n')
    assert pairs(open_records(tmp_path)) == [(f"{tmp_path}/a.jpg", "A cat.")]
    lines = [{"image": "b.jpg", "caption": "A dog."}, {"image": "c.jpg", "caption": None}, {"caption": "d"}]
    records = open_records(jsonl(tmp_path, *lines))
    assert records.format == "captions" and pairs(records[:1]) == [(f"{tmp_path}/b.jpg", "A dog.")]
    for i, message in ((1, "line 2: 'caption' is null"), (2, "line 3: 'image' is missing")):
        with pytest.raises(DataError, match=message):
            records[i]


# ScienceQA.

MAGNETS = {
    "question": "Which is a magnet?",
    "choices": ["wood", "iron", "glass"],
    "answer": 1,
    "hint": "Some metals are.",
    "image": "image.png",
    "task": "closed choice",
    "grade": "grade6",
    "subject": "natural science",
    "topic": "physics",
    "category": "Magnets",
    "skill": "Find magnets",
    "lecture": "A lecture.",
    "solution": "Iron is.",
    "split": "train",
}
CAPITALS = {
    **MAGNETS,
    "question": "What is the capital?",
    "hint": "",
    "image": None,
    "grade": "grade7",
    "subject": "social science",
    "topic": "geography",
    "split": "val",
}


def science(folder: Path, **every) -> Path:
    (folder / "problems.json").write_text(json.dumps(every))
    splits = {split: [n for n, p in every.items() if p.get("split") == split] for split in ("train", "val")}
    (folder / "pid_splits.json").write_text(json.dumps({**splits, "trainval": list(every), "test": []}))
    return folder


def test_scienceqa(tmp_path):
    science(tmp_path, **{"1": MAGNETS, "22": CAPITALS})
    records = open_records(tmp_path)
    assert records.format == "scienceqa" and len(records) == 1
    assert turns(records[0]) == [
        (
            "user",
            "Question: Which is a magnet?\nContext: Some metals are.\nOptions: (A) wood (B) iron (C) glass",
        ),
        ("assistant", "B"),
    ]
    assert records[0].image == tmp_path / "train/1/image.png"
    assert records[0].where == "problems.json, problem 1"
    held_out = open_records(tmp_path / "problems.json", split="val")
    assert "\nContext: N/A\n" in held_out[0].messages[0].text and held_out[0].image is None
    both = open_records(tmp_path, "scienceqa", split="trainval")
    assert [record.where for record in both] == ["problems.json, problem 1", "problems.json, problem 22"]
    assert pickle.loads(pickle.dumps(both))[1] == both[1]


def test_scienceqa_is_not_mistaken_for_captions(tmp_path):
    # The official folder holds a captions.json of its own.
    science(tmp_path, **{"1": MAGNETS})
    (tmp_path / "captions.json").write_text('{"captions": {"1": "A magnet."}}')
    assert open_records(tmp_path).format == "scienceqa"


def test_scienceqa_images_in_a_folder_of_their_own(tmp_path):
    science(tmp_path, **{"1": MAGNETS})
    (tmp_path / "images").mkdir()
    (tmp_path / "elsewhere").mkdir()
    assert problems(tmp_path, "train")[0].image == tmp_path / "images/train/1/image.png"
    elsewhere = open_records(tmp_path, images=tmp_path / "elsewhere")
    assert elsewhere[0].image == tmp_path / "elsewhere/train/1/image.png"


def test_problems_are_typed(tmp_path):
    science(tmp_path, **{"1": MAGNETS, "22": CAPITALS})
    magnets, capitals = problems(tmp_path, "trainval")
    assert magnets == Problem(
        id="1",
        question="Which is a magnet?",
        choices=("wood", "iron", "glass"),
        answer=1,
        hint="Some metals are.",
        image=tmp_path / "train/1/image.png",
        grade=6,
        subject="natural science",
        topic="physics",
        split="train",
    )
    assert (magnets.has_text, magnets.has_image, magnets.letter) == (True, True, "B")
    assert (capitals.has_text, capitals.has_image) == (False, False)
    assert question_text(magnets) == open_records(tmp_path)[0].messages[0].text


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


def test_every_problem_has_one_subject_one_span_of_grades_and_a_context(tmp_path):
    all_problems = {
        str(len(str(k))) + k: {
            **MAGNETS,
            "subject": subject,
            "grade": f"grade{grade}",
            "hint": hint,
            "image": image,
        }
        for subject in ("natural science", "social science", "language science")
        for grade in range(1, 13)
        for hint in ("", "h")
        for image in (None, "image.png")
        for k in [f"{subject}{grade}{hint}{image}"]
    }
    counted = Counter(c for p in problems(science(tmp_path, **all_problems), "train") for c in columns(p))
    assert counted == {
        **dict.fromkeys(("NAT", "SOC", "LAN"), 48),
        **{"TXT": 72, "IMG": 72, "NO": 36},
        **dict.fromkeys(("G1-6", "G7-12"), 72),
        "Avg": 144,
    }
    assert len(COLUMNS) == 9 == len(counted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " "}, "'question' is empty"),
        ({"choices": []}, "'choices' is an empty list"),
        ({"choices": ["a", 2]}, "'choices[1]' is a number, not text"),
        ({"choices": ["a"] * 11}, "'choices' has 11 of them. 10 is the limit"),
        ({"answer": 3}, "'answer' is 3. It is the index of a choice, 0 to 2"),
        ({"answer": "B"}, "'answer' is 'B'"),
        ({"answer": True}, "'answer' is True"),
        ({"grade": "grade13"}, "'grade' is 'grade13'. It is grade1 to grade12"),
        ({"grade": 6}, "'grade' is a number, not text"),
        ({"subject": "art"}, "'subject' is 'art'. Known subjects: natural science, social"),
        ({"hint": 5}, "'hint' is a number, not text"),
    ],
)
def test_a_broken_problem_is_named(tmp_path, changes, message):
    with pytest.raises(DataError) as error:
        problems(science(tmp_path, **{"1": MAGNETS, "7": {**MAGNETS, **changes}}), "train")
    assert str(error.value).startswith("problems.json, problem 7: ") and message in str(error.value)


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


def test_letters_suffice_for_every_choice():
    assert len(set(scienceqa.LETTERS)) == 10


def test_every_format_is_recognised(tmp_path):
    folders = {name: tmp_path / name for name in FORMATS}
    for folder in folders.values():
        folder.mkdir()
    science(folders["scienceqa"], **{"1": MAGNETS})
    (folders["captions"] / "pairs.tsv").write_text("a.jpg\tA cat.\n")
    examples = {
        "alpaca": jsonl(folders["alpaca"], {"instruction": "a", "output": "b"}),
        "chat": jsonl(folders["chat"], {"messages": [USER, BOT]}),
        "llava": jsonl(
            folders["llava"], {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
        ),
        "captions": folders["captions"] / "pairs.tsv",
        "pairs": jsonl(folders["pairs"], {"question": "a", "answer": "b"}),
        "scienceqa": folders["scienceqa"],
    }
    assert examples.keys() == FORMATS.keys()
    for name, path in examples.items():
        records = open_records(path)
        assert records.format == name and open_records(path, name)[0] == records[0]
