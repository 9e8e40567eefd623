"""Uploads for training: hostile zips are refused, data is opened in every layout, and previews name its faults."""

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from adapter.errors import AdapterError, BadInput
from tests.base.hostile_pictures import encoded
from train.ui.preview import make_preview, open_data

PNG = encoded(Image.new("RGB", (8, 8), "red"))
CHAT = {"messages": [{"role": ["user", "assistant"][i % 2], "content": "abcd"[i]} for i in range(4)]}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    return tmp_path / "inside"


def test_a_zip_of_images_with_captions_or_records(tmp_path, folder, tiny_folder):
    files = {f"set/{i}.png": PNG for i in range(9)} | {"set/0.png": b"no picture"}
    other = {"__MACOSX/set/._a.png": b"x", "set/.DS_Store": b"x", "set/my\u202fnotes.docx": b"x"}
    captions = {f"set/{i}.txt": b"a <i>square" for i in range(6)}
    data = open_data(write_zip(tmp_path / "squares.zip", files | other | captions), folder)
    assert data.name == "squares.zip"
    shown = make_preview(data, str(tiny_folder))[0]
    assert "5 are few" in shown and "6 records of pictures" in shown and "3 without a caption" in shown
    assert shown.count("data:image/jpeg;base64,") == 5 and str(tmp_path) not in shown and "<i>square" not in shown
    rows = "\n".join(json.dumps({**CHAT, "image": f"{i}.png"}) for i in range(6)).encode()
    (tmp_path / "other").mkdir()
    data = open_data(write_zip(tmp_path / "rows.zip", files | {"set/rows.jsonl": rows}), tmp_path / "other")
    assert data.pictures and len(data.records) == 6 and "a … c</p>" in make_preview(data, str(tiny_folder))[0]
    assert all(record.image.is_relative_to(tmp_path / "other") for record in data.records)
    (tmp_path / "rows.jsonl").write_bytes(rows)
    with pytest.raises(BadInput, match="cannot be copied"):
        open_data(tmp_path / "rows.jsonl", tmp_path / "no folder")


@pytest.mark.parametrize("image", ["/etc/hostname", "a/../../x.zip"])
def test_an_image_outside_of_the_upload_is_refused(image, tmp_path, folder):
    rows_file = (json.dumps({"instruction": "what?", "output": "x", "image": image}) + "\n").encode() * 5
    with pytest.raises(BadInput, match=r"rows.jsonl, line 1: .* outside of what was sent"):
        open_data(write_zip(tmp_path / "x.zip", {"rows.jsonl": rows_file, "a.png": PNG}), folder)


LONG_LINE = (json.dumps({"instruction": "x" * 600, "output": "y" * 600}) + "\n").encode()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"image,caption\ncat.png,a cat\ndog.png,a dog", "names pictures that did not come with it"),
        ("a.json", b"[" + b'{"input": "a", "output": "b"}, ' * 20_001 + b"never read", "more than 20,000 records"),
        ("a.jsonl", LONG_LINE * 5, "5 records truncated, 5 of them lose their whole answer"),
    ],
)
def test_unusable_data_is_refused_with_a_sentence(name, content, message, tmp_path, folder, tiny_folder):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterError) as error:
        make_preview(open_data(tmp_path / name, folder), str(tiny_folder))
    assert message in str(error.value)
