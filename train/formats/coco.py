"""COCO's captions_*.json: a list of images, and a list of annotations that each caption one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.formats.index import opened, read_json
from train.formats.record import DataError, fault, json_type, list_of, object_of, required

_FIRST_KEYS = rb'\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:'


@dataclass(frozen=True, eq=False)
class CocoCaptions:
    """The annotations. Held in memory: a short text each.

    names: the images' files by their id; pairs: (image id, caption, annotation id), unchecked.
    """

    path: Path
    names: dict[int | str, Any] = field(repr=False)
    pairs: tuple[tuple[int | str, Any, Any], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        image, caption, number = self.pairs[index]
        where = f"{self.path.name}, annotation {number}"
        if image not in self.names:
            raise DataError(
                f"{where}: image {image} is not in 'images'. Take the annotation out, or add its image."
            )
        return {"image": self.names[image], "caption": caption}, where


def open_coco(path: Path) -> CocoCaptions | None:
    """None if the file is no object of images and annotations. Raises DataError if it is one, and broken."""
    with opened(path) as file:
        if not re.match(_FIRST_KEYS, file.read(200).removeprefix(b"\xef\xbb\xbf")):
            return None
    try:
        value = read_json(path)
    except DataError:
        return None  # perhaps records in lines, of which the index says what is wrong
    if "annotations" not in value:
        return None
    names: dict[int | str, Any] = {}
    for i, image in enumerate(list_of(required(value, "images", path.name), "images", path.name)):
        image = object_of(image, f"images[{i}]", path.name)
        number = _id(required(image, "id", path.name, f"images[{i}].id"), f"images[{i}].id", path.name)
        names[number] = required(image, "file_name", path.name, f"images[{i}].file_name")
    pairs: list[tuple[int | str, Any, Any]] = []
    for i, item in enumerate(list_of(value["annotations"], "annotations", path.name)):
        place = f"annotations[{i}]"
        item = object_of(item, place, path.name)
        number = _id(required(item, "image_id", path.name, f"{place}.image_id"), f"{place}.image_id", path.name)
        pairs.append((number, required(item, "caption", path.name, f"{place}.caption"), item.get("id", i + 1)))
    return CocoCaptions(path, names, tuple(pairs))


def _id(value: Any, field: str, where: str) -> int | str:
    if not isinstance(value, int | str):
        raise fault(where, field, f"is {json_type(value)}", "Write it as a number.")
    return value
