"""Which records are learnt and which are held out, so that no picture and no conversation is on both sides.

Holds two hashes and no text of each record, and opens no picture that is a file.
"""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from train.formats.dataset import DataError, Records
from train.formats.record import picture_key

# A request that more records share than these ("Hello") is no sign of one conversation: their whole text is.
# Nor are the few phrasings of one task, of which a single one would be held out.
_COMMON_COUNT, _COMMON_SHARE = 20, 0.02  # above both


@dataclass(frozen=True, eq=False)
class Scan:
    """What tells the records of a file apart; broken records are left out.

    indices, requests, conversations: [N], of the readable records: their number in the file, a hash of the picture
    or else of the first request, and one of the whole conversation. pictured: [N], whether there is a picture.
    digest: of all records, in hexadecimal.
    """

    indices: np.ndarray
    requests: np.ndarray
    conversations: np.ndarray
    pictured: np.ndarray
    digest: str

    def groups(self, common: np.ndarray) -> np.ndarray:
        """[N], the hash of each record's group, to be kept on one side. common: what common_requests returns."""
        return np.where(np.isin(self.requests, common), self.conversations, self.requests)


def scan(records: Records, skip: Callable[[int, DataError], None]) -> Scan:
    """Reads every record once. skip: gets the number and the fault of each broken one.

    Shows progress on a terminal.
    """
    indices, requests, conversations, pictured = array("q"), array("Q"), array("Q"), array("b")
    digest = hashlib.sha256(f"{records.format} {len(records)}\n".encode())
    folder = f"{os.path.abspath(records.images)}{os.sep}"
    for i in tqdm(range(len(records)), desc="read", unit="record", disable=None, leave=False):
        try:
            record = records[i]
        except DataError as error:
            skip(i, error)
            digest.update(b"broken\n")
            continue
        indices.append(i)
        pictured.append(record.image is not None)
        picture = "" if record.image is None else picture_key(record.image)
        turns = [(turn.role, _normalised(turn.full_text)) for turn in record.messages]
        first = next((text for role, text in turns if role == "user"), "")
        requests.append(_hash(f"picture {picture}" if picture else f"text {first}"))
        conversations.append(_hash(repr((picture, turns))))
        if isinstance(record.image, Path):  # by its name within the folder, so that the folder may move
            picture = os.path.abspath(record.image).removeprefix(folder)
        content = picture, [(turn.role, turn.text, turn.input) for turn in record.messages]
        digest.update(f"{content!r}{record.unlearnt or ''}\n".encode())
    return Scan(
        np.array(indices, dtype=np.int64),
        np.array(requests, dtype=np.uint64),
        np.array(conversations, dtype=np.uint64),
        np.array(pictured, dtype=bool),
        digest.hexdigest(),
    )


def common_requests(scans: Sequence[Scan]) -> np.ndarray:
    """The hashes of requests that so many records share that they tell nothing apart. Pictures always do."""
    requests, counts = np.unique(np.concatenate([s.requests[~s.pictured] for s in scans]), return_counts=True)
    return requests[counts > max(_COMMON_COUNT, int(_COMMON_SHARE * counts.sum()))]


def choose_groups(groups: np.ndarray, most: int, share: float, seed: int) -> np.ndarray:
    """The groups to hold out, chosen by the seed: at most `most` of them, with at most `share` of the records.

    groups: [N], of each record. Where all are larger than that share, one of up to a quarter of the records is
    chosen.
    """
    unique, first, counts = np.unique(groups, return_index=True, return_counts=True)
    room = int(share * len(groups))
    if room and (smallest := int(counts.min())) <= len(groups) // 4:
        room = max(room, smallest)
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed)).numpy()
    chosen: list[int] = []
    for group in np.argsort(first)[order]:
        if len(chosen) == most or not room:
            break
        if counts[group] <= room:
            room -= int(counts[group])
            chosen.append(group)
    return unique[chosen]


def by_group(groups: np.ndarray) -> np.ndarray:
    """[N], the numbers of the records, those of one group together, in the order of the groups' first ones."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(first[inverse], kind="stable")


def draw_evenly(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of the numbers below `count`, ascending: one at random from each of as many equal stretches."""
    if count <= wanted:
        return list(range(count))
    rng = random.Random(f"{seed} held out")
    return [rng.randrange(i * count // wanted, (i + 1) * count // wanted) for i in range(wanted)]


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")  # of names of files
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
