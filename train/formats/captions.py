"""Images with captions: rows of a table or data set, a folder with captions beside the images, lists of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter.base.template import Message
from train.formats.index import decoded, opened, read_json
from train.formats.record import DataError, Record, Rows, fault, image_path, list_of, object_of, required, text_of

# The user turn of an image. Several, so that the adapter learns from the image and not from the wording.
REQUESTS = (
    "Describe the picture.",
    "What is in this picture?",
    "What does the picture show?",
    "Describe this image in a few words.",
    "Write a caption for this picture.",
    "What can be seen here?",
)
# Columns of a table or data set, the first that is there.
IMAGE_COLUMNS = ("image", "path", "url", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "captions", "text")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
CAPTION_FILES = ("captions.tsv", "captions.csv", "captions.json", "metadata.csv", "metadata.jsonl")
_KEYS_OF_COCO = rb'\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:'


@dataclass(frozen=True)
class ListedCaptions(Rows):
    """Images and captions that are held in memory: two short texts each, unchecked, and what names the pair."""

    path: Path
    unit: str  # of the names: entry or annotation
    pairs: tuple[tuple[Any, Any, Any], ...] = field(repr=False)
    columns = ("image", "caption")

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        image, caption, name = self.pairs[index]
        return {"image": image, "caption": caption}, f"{self.path.name}, {self.unit} {name!r}"


@dataclass(frozen=True)
class TextFiles(Rows):
    """NAME.txt beside NAME.jpg. Names are held in memory, captions are read on access."""

    folder: Path
    pairs: tuple[tuple[str, str], ...] = field(repr=False)  # (image, text), relative to the folder
    columns = ("image", "caption")

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        image, text = self.pairs[index]
        with opened(self.folder / text) as file:
            caption = decoded(file.readline(), f"{text}, line 1")
        return {"image": image, "caption": caption.removeprefix("\ufeff")}, f"{text}, line 1"


def has_captions(folder: Path) -> bool:
    return caption_file(folder) is not None or any(exists for _, _, exists in _walk(folder))


def uncaptioned(path: Path) -> tuple[str, ...]:
    """The images of a folder without a caption beside them; none where a caption file lists the images."""
    if caption_file(path) is not None:
        return ()
    return tuple(sorted(image for image, _, exists in _walk(path) if not exists))


def caption_columns(value: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of an object's image and caption; None if it has no such fields."""
    image = next((name for name in IMAGE_COLUMNS if name in value), None)
    caption = next((name for name in CAPTION_COLUMNS if name in value), None)
    return None if image is None or caption is None else (image, caption)


def caption_file(folder: Path) -> Path | None:
    """The file in a folder that lists its images and captions."""
    return next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)


def open_folder(path: Path) -> TextFiles:
    """The images of a folder that have captions beside them."""
    return TextFiles(path, tuple(sorted((image, text) for image, text, exists in _walk(path) if exists)))


def open_json(path: Path) -> ListedCaptions | None:
    """The pairs of captions.json or of COCO's captions_*.json; None for another file. Raises DataError."""
    with opened(path) as file:
        of_coco = re.match(_KEYS_OF_COCO, file.read(200).removeprefix(b"\xef\xbb\xbf"))
    if path.name != "captions.json" and not of_coco:
        return None
    try:
        value = read_json(path)
    except DataError:
        if path.name == "captions.json":
            raise
        return None  # perhaps records in lines, of which the index says what is wrong
    if of_coco and "annotations" in value:
        return _of_coco(path, value)
    if path.name != "captions.json":
        return None
    if not value:
        raise DataError(f"{path.name} is an empty object. Check that it is the right file.")
    return ListedCaptions(path, "entry", tuple((image, caption, image) for image, caption in value.items()))


def _of_coco(path: Path, value: dict[str, Any]) -> ListedCaptions:
    """Of a list of images, and a list of annotations that each caption one of them."""

    def objects(key: str, *fields: str) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        for i, item in enumerate(list_of(required(value, key, path.name), key, path.name)):
            place = f"{key}[{i}]"
            item = object_of(item, place, path.name)
            yield item, [required(item, field, path.name, f"{place}.{field}") for field in fields]

    names = {str(number): name for _, (number, name) in objects("images", "id", "file_name")}
    annotations = enumerate(objects("annotations", "image_id", "caption"), 1)
    pairs = ((names.get(str(id)), caption, item.get("id", i)) for i, (item, (id, caption)) in annotations)
    return ListedCaptions(path, "annotation", tuple(pairs))


def parse(value: Mapping[str, Any], where: str, index: int, images: Path) -> Record:
    """The record of an object; its number in the file chooses the user's request. Raises DataError."""
    columns = caption_columns(value)
    if columns is None:
        missing = "caption" if any(name in value for name in IMAGE_COLUMNS) else "image"
        raise fault(where, missing, "is missing", "Add it, or take the record out.")
    image = image_path(value[columns[0]], columns[0], where, images)
    caption = text_of(value[columns[1]], columns[1], where, blank=False).strip()
    return Record((Message("user", REQUESTS[index % len(REQUESTS)]), Message("assistant", caption)), image, where)


def _walk(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """(image, its text file, whether that exists) of every image at any depth, lazily."""
    for root, _, names in os.walk(folder):
        present = set(names)
        relative = Path(root).relative_to(folder)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SUFFIXES:
                text = f"{stem}.txt"
                yield (relative / name).as_posix(), (relative / text).as_posix(), text in present
