"""Which records are learnt and which are held out, and that an epoch sees every record once."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.base.template import Message
from train.config import DataConfig, TrainConfig
from train.formats.dataset import DataError, Record
from train.input.batches import Batches
from train.input.examples import FilePart, ShuffledExamples, SkippedExamples
from train.input.rows import Tokeniser
from train.input.split import FileExamples


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def open_examples(path, seed=0, held_out=96, **data) -> FileExamples:
    config = TrainConfig("x", steps=1, seed=seed, held_out=held_out)
    sources = path if isinstance(path, list) else [DataConfig(str(path), **data)]
    return FileExamples(sources, config, SkippedExamples(lambda _: None))


def numbered(count: int, first: int = 0):
    return [{"instruction": f"Question {i}?", "output": f"{i}."} for i in range(first, first + count)]


def learnt(examples: FileExamples) -> list:
    return [part.records[int(i)] for part in examples.parts for i in part.indices]


def held_out(examples: FileExamples) -> list:
    return [records[i] for records, i in examples.held_out]


def sides(examples: FileExamples, key) -> tuple[set, set]:
    """What the records to learn and those held out have, by `key`."""
    inside, outside = ({key(record) for record in side} for side in (learnt(examples), held_out(examples)))
    assert not inside & outside
    return inside, outside


def talk(*turns: str) -> dict:
    roles = itertools.cycle(("user", "assistant"))
    return {"messages": [{"role": next(roles), "content": turn} for turn in turns]}


def image(record) -> str:
    return Path(record.image).resolve().name


def captions(*names: str) -> list[str]:
    return ["image\tcaption", *(f"{name}\tCaption {i}." for i, name in enumerate(names))]


@pytest.mark.parametrize(
    ("rows", "share", "key", "groups"),
    [
        pytest.param(
            captions(*(path for i in range(30) for path in (f"{i}.jpg", f"./in/../{i}.jpg", f"link/{i}.jpg"))),
            0.2, image, (24, 6), id="a picture by any path, and behind a link",
        ),
        pytest.param(
            [
                row for i in range(60)
                for row in (
                    talk(f"Tell me of {i}.", "It is a number."),
                    talk(f"Tell me of {i}.", "It is a number.", "And then?", f"Then {i + 1}."),
                    talk(f"  tell me\n of {i}.", "Another answer."),
                )
            ],
            0.1, lambda r: "".join(r.messages[0].text.lower().split()), (54, 6), id="conversations",
        ),
    ],
)  # fmt: skip
def test_what_belongs_together_stays_on_one_side(tmp_path, rows, share, key, groups):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    lines = isinstance(rows[0], str)
    path = write_rows(tmp_path / ("a.tsv" if lines else "a.jsonl"), rows)
    examples = open_examples(path, seed=1, validation=share)
    inside, outside = sides(examples, key)
    assert (len(inside), len(outside)) == groups
    assert examples.learnt + len(examples.held_out) == len(rows) - lines


def test_a_picture_in_two_files_is_held_out_of_both(tmp_path):
    write_rows(tmp_path / "c.tsv", captions(*(f"{i}.jpg" for i in range(60))))
    chats = [{**talk(f"What is in picture {i}?", "A thing."), "image": f"./{i}.jpg"} for i in range(59, -1, -1)]
    write_rows(tmp_path / "chat.jsonl", chats)
    sources = [DataConfig(str(tmp_path / name), validation=0.2) for name in ("c.tsv", "chat.jsonl")]
    assert len(sides(open_examples(sources), image)[1]) > 12


def test_a_separate_file_is_drawn_from_evenly_and_without_what_is_learnt(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", numbered(20))
    separate = write_rows(tmp_path / "b.jsonl", numbered(970, first=10))
    drawn = [open_examples(path, seed, validation=str(separate)) for seed in (0, 0, 1)]
    numbers = [[int(r.messages[0].text.split()[1][:-1]) - 20 for r in held_out(examples)] for examples in drawn]
    assert numbers[0] == numbers[1] != numbers[2] and drawn[0].learnt == 20
    assert drawn[0].description.endswith("; 10 of 'b.jsonl' are left out, as they are learnt")
    assert all([n // 10 for n in one] == list(range(96)) for one in numbers)
    with pytest.raises(DataError, match="All that 'a.jsonl' holds out is in the data to learn from too"):
        open_examples(path, validation=str(path))


def test_the_digest_is_of_all_that_the_split_depends_on(tmp_path):
    rows = numbered(30)
    path, separate = write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "b.jsonl", numbered(9, 100))
    digests = [open_examples(path).digest]
    assert open_examples(path, seed=3).digest == digests[0], "the seed is compared with the other settings"
    options = {"validation": 0.1}, {"validation": str(separate)}, {"weight": 2.0}, {"images": str(tmp_path)}
    digests += [open_examples(path, **changed).digest for changed in options]
    for changed in (rows[::-1], [*rows[:-1], {**rows[-1], "output": "1. "}]):
        digests.append(open_examples(write_rows(path, changed)).digest)
    assert len(set(digests)) == len(digests)


class _Numbers:
    """Records of which some are broken; a record's answer is its number."""

    format, uncaptioned = "alpaca", ()

    def __init__(self, count: int, long: int = 0) -> None:
        self.path, self._count, self._long = Path("numbers"), count, long

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        question = "x" * 99 if self._long and index % self._long == 0 else "x"
        return Record((Message("user", f"{question}>"), Message("assistant", f"{index}.")), None, f"row {index}")


def stream_of(parts) -> ShuffledExamples:
    return ShuffledExamples(
        [FilePart(_Numbers(count, long), np.arange(count), weight) for count, weight, long in parts],
        seed=1,
        skipped=SkippedExamples(lambda _: None),
    )


def with_steps(stream: ShuffledExamples, epochs: float, batch_size: int) -> int:
    examples = FileExamples.__new__(FileExamples)
    examples._train = lambda: stream
    return examples.with_steps(TrainConfig("x", epochs=epochs, batch_size=batch_size)).steps


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 4), st.sampled_from([0, 2, 3, 50]))
def test_an_epoch_sees_every_row_once_in_the_planned_steps(tiny_base, rows, batch_size, epochs, long):
    """Also where rows are passed over, as they are too long: batches are then smaller, not fewer."""
    if long and rows <= long:
        long = 0
    tokeniser = Tokeniser(tiny_base.tokenizer, "raw", 32, SkippedExamples(lambda _: None))
    steps = with_steps(stream_of([(rows, 1.0, long)]), epochs, batch_size)
    assert steps == epochs * math.ceil(rows / batch_size)
    usable = {f"{i}." for i in range(rows) if not (long and i % long == 0)}
    batches = Batches(stream_of([(rows, 1.0, long)]), tokeniser, batch_size, seed=2)
    seen: Counter[str] = Counter()
    for taken, batch in enumerate(itertools.islice(iter(batches), steps), 1):
        assert len(batch) <= batch_size
        seen.update(row.example.answer for row in batch)
        if taken % (steps // epochs) == 0:
            assert seen == dict.fromkeys(usable, taken // (steps // epochs))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0])), min_size=1, max_size=3),
    st.integers(0, 150),
)
def test_an_epoch_of_a_mixture_holds_each_part_as_often_as_it_weighs(parts, ahead):
    stream = stream_of([(count, weight, 0) for count, weight in parts])
    sizes = [stream.epoch_size(epoch) for epoch in range(4)]
    examples = list(itertools.islice(stream, sum(sizes)))
    assert sum(sizes) == sum(math.floor(weight * count * 4) for count, weight in parts) > 0
    again = stream_of([(count, weight, 0) for count, weight in parts])
    again.skip(ahead)
    assert list(itertools.islice(again, 5)) == [*examples, *itertools.islice(stream, 160)][ahead : ahead + 5]
    if len(parts) == 1:  # over all epochs, a record comes as often as any other
        times = Counter(example.answer for example in examples)
        assert max(times.values()) - min(times.get(f"{i}.", 0) for i in range(parts[0][0])) <= 1
