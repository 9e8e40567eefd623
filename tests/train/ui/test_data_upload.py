"""Uploads for training: hostile zips are refused, data is opened in every layout, and previews name its faults."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapter.errors import AdapterError, BadInput
from adapter.server.archive import ArchiveLimits, unpack
from train.ui import data_upload
from train.ui.data_upload import make_preview, open_upload
from train.ui.preview import preview_html

LIMITS = ArchiveLimits(files=20, file_bytes=2 * 2**20, total_bytes=3 * 2**20, ratio=50)
ROWS = [{"instruction": f"say {i}", "output": f"{i}!"} for i in range(30)]


def png(colour: str = "red", side: int = 8) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(data, "PNG")
    return data.getvalue()


def write_zip(path: Path, files: dict[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


# Zips. More attacks on them are in tests/server/test_adapter_upload.py.

GOOD = {"a.png": png(), "a.txt": b"red"}
HOSTILE_FILES: dict[str, tuple[dict[str, bytes], dict[str, int]]] = {
    "parent within": ({**GOOD, "a/../../evil.txt": b"x"}, {}),
    "backslashes": ({**GOOD, "..\\evil.txt": b"x"}, {}),
    "link": ({"a.png": b"/etc/passwd"}, {"external_attr": (stat.S_IFLNK | 0o777) << 16}),
    "large in all": ({f"{i}.txt": os.urandom(2**20) for i in range(4)}, {}),
    "bomb": ({"a.txt": bytes(2**21)}, {}),
    "twice": ({"a.txt": b"x", "A.TXT": b"y"}, {}),
    "nothing wanted": ({"run.exe": b"MZ", "page.html": b"<script>"}, {}),
    "folder and file": ({"a.txt": b"x", "a.txt/b.txt": b"y"}, {}),
}


def write_hostile_zip(path: Path, kind: str) -> Path:
    if kind in HOSTILE_FILES:
        files, attributes = HOSTILE_FILES[kind]
        return write_zip(path, files, **attributes)
    many = {f"{i}.txt": b"" for i in range(500)}
    write_zip(path, {"lying size": {"a.txt": bytes(2**21)}, "lying count": many}.get(kind, GOOD))
    data = bytearray(path.read_bytes())
    local, central, end = data.find(b"PK\3\4"), data.find(b"PK\1\2"), data.rfind(b"PK\5\6")
    if kind == "lying size":  # both headers say ten bytes
        for at in (local + 22, central + 24):
            data[at : at + 4] = (10).to_bytes(4, "little")
    elif kind == "lying count":
        data[end + 8 : end + 12] = (1).to_bytes(2, "little") * 2
    elif kind == "locked":
        data[local + 6] |= 1
        data[central + 8] |= 1
    else:
        data[40:60] = bytes(20)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", [*HOSTILE_FILES, "lying size", "lying count", "locked", "damaged"])
def test_a_hostile_zip_is_refused_with_a_sentence(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "around" / "inside"
    folder.mkdir(parents=True)
    with pytest.raises(BadInput) as error:
        unpack(write_hostile_zip(tmp_path / "x.zip", kind), folder, LIMITS)
    assert str(error.value)[-1] == "." and str(tmp_path) not in str(error.value)
    # What was written before the refusal: plain files, inside the folder, within the limits.
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert outside == [tmp_path / "x.zip"]
    inside = [path for path in folder.rglob("*") if not path.is_dir()]
    assert all(path.is_file() and not path.is_symlink() for path in inside)
    assert sum(path.stat().st_size for path in inside) <= LIMITS.total_bytes


# Uploads.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    return tmp_path / "inside"


CHAT = {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "it"}]}


@pytest.mark.parametrize("captions", [True, False])
def test_a_zip_of_images_with_captions_or_records(captions: bool, tmp_path: Path, folder: Path) -> None:
    names = [f"{i}.png" for i in range(6)]
    files = {f"set/{name}": png() for name in names}
    files |= {"__MACOSX/set/._a.png": b"x", "set/.DS_Store": b"x", "set/notes.docx": b"x"}
    if captions:
        files |= {f"set/{i}.txt": b"a square" for i in range(6)}
    else:
        files["set/rows.jsonl"] = "\n".join(json.dumps({**CHAT, "image": name}) for name in names).encode()
    data = open_upload(write_zip(tmp_path / "squares.zip", files), folder)
    assert data.left_out == ("set/notes.docx",) and data.name == "squares.zip"
    assert data.pictures and len(data.records) == 6
    assert all(record.image.is_relative_to(folder) for record in data.records)


@pytest.mark.parametrize("image", ["/etc/hostname", "a/../../x.zip"])
def test_an_image_outside_of_the_upload_is_refused(image: str, tmp_path: Path, folder: Path) -> None:
    rows = [{"instruction": "what?", "output": "x", "image": image}] * 5
    rows_file = "\n".join(map(json.dumps, rows)).encode()
    path = write_zip(tmp_path / "x.zip", {"rows.jsonl": rows_file, "a.png": png()})
    with pytest.raises(BadInput, match=r"rows.jsonl, line 1: .* outside of what was sent"):
        open_upload(path, folder)


LINE = b'{"instruction": "x", "output": "y"}\n'
LONG_LINE = (json.dumps({"instruction": "x" * 600, "output": "y" * 600}) + "\n").encode()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.exe", b"MZ", "of no known kind"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"hello\nworld", "line 1: this is not JSON"),
        ("a.json", b'{"a": 1}', "the format cannot be told"),
        ("a.csv", b"cat.png,a cat\ndog.png,a dog", "names pictures that did not come with it"),
        ("a.jsonl", LINE, "has 1 record that can be learnt from; 4 are the least."),
        (
            "a.jsonl",
            LONG_LINE * 5,
            "has 0 records that can be learnt from; 4 are the least. "
            "All 5 are too long: nothing of the answer lies within the first 512 tokens.",
        ),
        ("a.jsonl", LINE * 3 + b'{"instruction": "x"}\n', "line 4: 'output' is missing"),
    ],
)
def test_unusable_data_is_refused_with_a_sentence(
    name: str, content: bytes, message: str, tmp_path: Path, folder: Path, tiny_folder: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterError) as error:
        make_preview(open_upload(tmp_path / name, folder), str(tiny_folder))
    assert message in str(error.value)


def test_limits_of_an_upload(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_upload, "MAX_RECORDS", 20)
    with pytest.raises(BadInput, match="30 records; 20 are the limit"):
        open_upload(write_jsonl(tmp_path / "a.jsonl", ROWS), folder)
    monkeypatch.setattr(data_upload, "MAX_FILE_BYTES", 100)
    with pytest.raises(BadInput, match="are the limit"):
        open_upload(tmp_path / "a.jsonl", folder)
    with pytest.raises(BadInput, match="no longer on the server"):
        open_upload(tmp_path / "gone.jsonl", folder)


# Previews.


def test_a_preview_names_broken_truncated_and_empty_records(
    tmp_path: Path, folder: Path, tiny_folder: Path
) -> None:
    rows = [
        *ROWS,
        '{"instruction": "x"',
        {"instruction": "long", "output": "y" * 600},
        {"instruction": "<b>", "output": ""},
    ]
    preview = make_preview(open_upload(write_jsonl(tmp_path / "a.jsonl", rows), folder), str(tiny_folder))
    shown = preview_html(preview)
    assert "33 records of text in a.jsonl" in shown
    assert "a.jsonl, line 31: this is not JSON" in shown.replace("&#x27;", "'")
    assert "1 longer than 512 tokens loses its end" in shown and "1 with an empty answer" in shown
    assert "say 0" in shown and str(tmp_path) not in shown and "<b>" not in shown
    assert preview.usable == 32


def test_a_preview_shows_images_and_names_those_without_caption_or_content(
    tmp_path: Path, folder: Path, tiny_folder: Path
) -> None:
    def preview(captions: int, pictures: int) -> str:
        files = {f"{i}.png": png() for i in range(pictures)} | {"0.png": b"no picture"}
        files |= {f"{i}.txt": b"a <i>square" for i in range(captions)}
        shutil.rmtree(folder)
        folder.mkdir()
        found = make_preview(open_upload(write_zip(tmp_path / "x.zip", files), folder), str(tiny_folder))
        assert found.data.pictures and found.usable == captions - 1
        return preview_html(found)

    shown = preview(captions=6, pictures=9)
    assert "6 records of pictures" in shown and "3 pictures have no caption" in shown and "0.png" in shown
    assert all(f"<li>{i}.png</li>" in shown for i in range(6, 9)) and "<i>square" not in shown
    assert shown.count("data:image/jpeg;base64,") == 5 and str(tmp_path) not in shown
    assert "no caption" not in preview(captions=6, pictures=6)
    with pytest.raises(BadInput, match=r"has 2 records .* 3 pictures have no caption, 3\.png for one: put NAME"):
        preview(captions=3, pictures=6)
