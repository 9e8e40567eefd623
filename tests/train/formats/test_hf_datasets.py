"""Data sets of the library `datasets`: files and folders as it writes them, ids of the Hub by a fake; shards."""

import json
import os
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from PIL import Image

from adapter.base.image_file import open_image
from tests.base.hostile_pictures import encoded
from tests.train.input.test_split import held_out, learnt, open_examples
from train.formats.dataset import DataError, open_records
from train.formats.record import EmbeddedPicture, picture_key, picture_source

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def alpaca(count: int) -> datasets.Dataset:
    rows = [{"instruction": f"Say {i}.", "input": None, "output": f"{i} ü"} for i in range(count)]
    return datasets.Dataset.from_list(rows)


def pictures(**columns) -> datasets.Dataset:
    images = [Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    return datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())


def as_parquet(dataset, folder: Path) -> Path:
    dataset.to_parquet(folder / "part.parquet")
    return folder / "part.parquet"


def as_arrow(dataset, folder: Path) -> Path:
    pa.feather.write_feather(dataset.with_format("arrow")[:], folder / "part.arrow", compression="uncompressed")
    return folder / "part.arrow"


def as_folder(dataset, folder: Path) -> Path:
    half = len(dataset) // 2
    parts = {
        "train-00000-of-00002": range(half),
        "train-00001-of-00002": range(half, len(dataset)),
        "test-00000-of-00001": [0],
    }
    (folder / "pq/data").mkdir(parents=True)
    for name, rows in parts.items():
        dataset.select(rows).to_parquet(folder / f"pq/data/{name}.parquet")
    return folder / "pq"


def as_saved(dataset, folder: Path) -> Path:
    dataset.save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(dataset, folder: Path) -> Path:
    return as_saved(datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}), folder)


@pytest.mark.parametrize("layout", [as_parquet, as_arrow, as_folder, as_saved, as_saved_splits])
def test_text_and_pictures_are_read_in_every_layout(tmp_path, layout):
    path = layout(pictures(caption=["a", "b", "c", "d ü"]), tmp_path)
    records = open_records(path)
    assert records.format == "captions" and [r.messages[-1].text for r in records] == ["a", "b", "c", "d ü"]
    assert records[2].where == f"{path.name}, row 3"
    for colour, record in zip(COLOURS, records, strict=True):
        assert isinstance(record.image, EmbeddedPicture)
        expected = np.asarray(Image.new("RGB", (8, 8), colour))
        assert (np.asarray(open_image(picture_source(record.image))) == expected).all()
    assert len({picture_key(record.image) for record in records}) == 4


def test_several_captions_of_a_picture_are_records_on_one_side(tmp_path):
    captions = [[f"{colour} {i}" for i in range(n)] for colour, n in zip(COLOURS, (2, 3, 0, 4), strict=True)]
    found = pictures(caption=captions)
    path = as_parquet(datasets.concatenate_datasets([found, found.select([0])]), tmp_path)
    records = open_records(path)
    flat = [caption for row in (*captions, captions[0]) for caption in row]
    assert [record.messages[-1].text for record in records] == flat
    places = "part.parquet, row 2, caption 3", "part.parquet, row 4, caption 4"
    assert (records[4].where, records[8].where) == places
    for seed in range(8):
        examples = open_examples(path, seed, validation=0.3)
        inside, outside = (
            {record.image.read_bytes() for record in side} for side in (learnt(examples), held_out(examples))
        )
        assert outside and not inside & outside, "also where the same picture is in two rows"


def test_a_picture_may_be_a_path_or_bytes_and_none_is_a_fault_of_its_row(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    red = encoded(Image.new("RGB", (8, 8), "red"))
    images = [{"bytes": None, "path": "a.png"}, {"bytes": red, "path": "x/b.png"}, None, {"bytes": b""}]
    table = pa.table({"image": pa.array(images, kind), "caption": ["a", "b", "c", None]})
    pa.parquet.write_table(table, tmp_path / "structs.parquet")
    records = open_records(tmp_path / "structs.parquet", images=tmp_path)
    assert records[0].image == tmp_path / "a.png"
    assert records[1].image.name == "b.png" and records[1].image.read_bytes() == red
    for i in (2, 3):
        with pytest.raises(DataError, match=rf"structs.parquet, row {i + 1}: 'image' is null, not text"):
            records[i]
    shown = [{"type": "image", "image": images[1], "text": None}, {"type": "text", "image": None, "text": "What?"}]
    talk = [{"role": "user", "content": shown}]
    talk += [{"role": "assistant", "content": [{"type": "text", "image": None, "text": "Red."}]}]
    pa.parquet.write_table(pa.table({"messages": [talk]}), tmp_path / "blocks.parquet")
    [record] = open_records(tmp_path / "blocks.parquet")
    assert record.image.read_bytes() == red and record.messages[-1].text == "Red."


def test_splits_are_chosen_by_name(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (as_folder(alpaca(8), tmp_path / "folder"), as_saved_splits(alpaca(8), tmp_path)):
        assert len(open_records(path, split="test")) == 1
        with pytest.raises(DataError, match="has no split 'dev'. Choose one of train, test as data.split"):
            open_records(path, split="dev")
    with pytest.raises(DataError, match="has no splits, so there is no 'test'. Name the file that holds it"):
        open_records(as_parquet(alpaca(2), tmp_path), split="test")
    assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS  # by a request for local files too


def test_a_data_set_of_the_hub_is_loaded_by_its_id(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return alpaca(30) if kwargs["split"] == "train" else alpaca(60).select(range(40, 60))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = open_records("hf:user/name", config="main")
    assert records[1].where == "user/name, row 2" and len(records) == 30
    examples = open_examples("hf:user/name", validation="test", config="main", split="train")
    assert examples.learnt == 30 and len(examples.held_out) == 20
    assert asked == [(("user/name", "main"), {"split": split}) for split in ("train", "train", "test")]


def test_without_the_hub_the_error_says_so(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot be reached for 'user/none'.*without HF_HUB_OFFLINE=1"):
        open_records("hf:user/none")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    several = "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']\nExample"
    for error, says in (
        (ConnectionError("https://host.example/ says no"), "The Hugging Face Hub cannot be reached"),
        (datasets.exceptions.DatasetNotFoundError("'user/none'"), "There is no data set 'user/none' on the Hub"),
        (ValueError(several), "has several configurations. Choose one of main, socratic as data.config."),
        (RuntimeError("https://host.example/ says no"), "."),
    ):
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=error))
        with pytest.raises(DataError) as raised:
            open_records("hf:user/none")
        assert says in str(raised.value) and "host.example" not in str(raised.value)


def write_shards(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": f"{number} {i}", "completion": name} for i in range(2)]
        path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    return folder


def test_shards_are_one_set_of_records_with_exact_places(tmp_path):
    names = ["b/part-1.jsonl", "part-0.jsonl", "c.json", "validation/x.jsonl", "test-0.jsonl"]
    folder = write_shards(tmp_path / "data", [*names, "dataset_info.json", "runs/x/metrics.jsonl"])
    records = open_records(folder)
    assert records.format == "pairs" and [records[i].messages[-1].text for i in (0, 2, 4)] == sorted(names[:3])
    assert records[1].where == "part-1.jsonl, line 2" and len(records) == 6
    for split, name in (("validation", names[3]), ("val", names[3]), ("test", names[4])):
        assert open_records(folder, split=split)[0].messages[-1].text == name
    examples = open_examples(folder, validation="validation")
    assert examples.learnt == 6 and len(examples.held_out) == 2
    with pytest.raises(DataError, match="'train/metadata.jsonl' lists pictures of its own folder"):
        open_records(write_shards(tmp_path / "more", ["train/metadata.jsonl"]))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"'pipe.jsonl' is no file"):
        open_records(tmp_path / "pipe.jsonl")
    (folder / "test-0.jsonl").unlink()
    with pytest.raises(DataError, match="'data' has no files of the split 'test'. It has: train, validation"):
        open_records(folder, split="test")
