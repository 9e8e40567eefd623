"""Which records are learnt and which are held out: pictures and conversations stay whole, rows are drawn evenly,
and an epoch sees every record once.
"""

from __future__ import annotations

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
from train.input.examples import FileExamples, Part, ShuffledExamples, SkippedExamples
from train.input.rows import Tokeniser
from train.input.split import choose_groups


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def open_examples(path, seed=0, held_out=96, log=lambda _: None, **data) -> FileExamples:
    config = TrainConfig("x", steps=1, seed=seed, held_out=held_out)
    sources = path if isinstance(path, list) else [DataConfig(str(path), **data)]
    return FileExamples(sources, config, SkippedExamples(log))


def numbered(count: int, first: int = 0):
    return [{"instruction": f"Question {i}?", "output": f"{i}."} for i in range(first, first + count)]


def learnt(examples: FileExamples) -> list:
    return [part.records[int(i)] for part in examples.parts for i in part.indices]


def held_out(examples: FileExamples) -> list:
    return [records[i] for records, i in examples.held_out]


def texts(records) -> list[str]:
    return [record.messages[0].text for record in records]


# Groups.


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


def asked(record) -> str:
    return "".join(record.messages[0].text.lower().split())


def answered(record) -> str:
    return record.messages[-1].text


def captions(*names: str) -> list[str]:
    return [f"{name}\tCaption {i}." for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("rows", "share", "key", "groups"),
    [
        pytest.param(
            captions(*(path for i in range(30) for path in (f"{i}.jpg", f"./in/../{i}.jpg", f"link/{i}.jpg"))),
            0.2, image, (24, 6), id="a picture by any path, and behind a link",
        ),
        pytest.param(captions(*["0.jpg"] * 400), 0.25, image, (1, 0), id="one picture"),
        pytest.param(
            [
                row for i in range(60)
                for row in (
                    talk(f"Tell me of {i}.", "It is a number."),
                    talk(f"Tell me of {i}.", "It is a number.", "And then?", f"Then {i + 1}."),
                    talk(f"  tell me\n of {i}.", "Another answer."),
                )
            ],
            0.1, asked, (54, 6), id="a conversation, its copies and its beginnings",
        ),
        pytest.param(
            [{"instruction": "Tell a joke.", "output": f"Joke {i % 80}."} for i in range(160)],
            0.1, answered, (72, 8), id="conversations that begin alike",
        ),
        # Thousands of Alpaca's records ask "Rewrite this sentence." of another sentence each.
        pytest.param(
            [{"instruction": "Add one.", "input": str(i), "output": str(i + 1)} for i in range(8)],
            0.25, answered, (6, 2), id="an instruction with another input",
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
    assert examples.learnt + len(examples.held_out) == len(rows)


def test_an_evaluation_takes_rows_of_as_many_pictures_as_it_can(tmp_path):
    (tmp_path / "c.tsv").write_text("".join(f"{i % 100}.jpg\tCaption {i}.\n" for i in range(500)))
    examples = open_examples(tmp_path / "c.tsv", held_out=20, validation=0.5)
    assert len({record.image for record in held_out(examples)}) == len(examples.held_out) == 20
    assert examples.describe() == (
        "400 records of 80 pictures or conversations to learn from, 20 of 20 others held out for every evaluation"
        ", 80 used for neither, as they share a picture or a conversation with held-out ones"
    )


def test_a_picture_in_two_files_is_held_out_of_both(tmp_path):
    (tmp_path / "c.tsv").write_text("".join(f"{i}.jpg\tCaption {i}.\n" for i in range(60)))
    chats = [{**talk(f"What is in picture {i}?", "A thing."), "image": f"./{i}.jpg"} for i in range(59, -1, -1)]
    write_rows(tmp_path / "chat.jsonl", chats)
    sources = [DataConfig(str(tmp_path / name), validation=0.2) for name in ("c.tsv", "chat.jsonl")]
    examples = open_examples(sources)
    assert len(sides(examples, image)[1]) > 12


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=200),
    st.integers(0, 40),
    st.floats(0, 0.9),
    st.integers(0, 9),
)
def test_groups_that_are_held_out_fit_into_their_share(groups, most, share, seed):
    groups = np.array(groups, dtype=np.uint64)
    chosen = choose_groups(groups, most, share, seed)
    records = int(np.isin(groups, chosen).sum())
    assert len(chosen) == len(set(chosen.tolist())) <= most and set(chosen.tolist()) <= set(groups.tolist())
    assert records <= share * len(groups) or (len(chosen) == 1 and records <= len(groups) / 4)
    moved = choose_groups(groups + np.uint64(1000), most, share, seed)
    assert (moved == chosen + np.uint64(1000)).all(), "which are chosen is a function of the seed and the order"


# The rows of an evaluation.


def test_a_separate_file_is_drawn_from_evenly_and_without_what_is_learnt(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", numbered(20))
    separate = write_rows(tmp_path / "b.jsonl", numbered(970, first=10))
    drawn = [open_examples(path, seed, validation=str(separate)) for seed in (0, 0, 1)]
    numbers = [[int(text.split()[1][:-1]) - 20 for text in texts(held_out(examples))] for examples in drawn]
    assert numbers[0] == numbers[1] != numbers[2] and drawn[0].learnt == 20
    assert all([n // 10 for n in one] == list(range(96)) for one in numbers)
    with pytest.raises(DataError, match="All that 'a.jsonl' holds out is in the data to learn from too"):
        open_examples(path, validation=str(path))


# The digest.


def test_the_digest_is_of_all_that_the_split_depends_on(tmp_path):
    rows, more = numbered(30), numbered(9, first=100)
    path, separate = write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "b.jsonl", more)
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved/other.json"
    moved.write_text(json.dumps(rows, indent=1))
    digests = [open_examples(path).digest]
    assert open_examples(moved, seed=3).digest == digests[0], "the seed is compared with the other settings"
    options = {"validation": 0.1}, {"validation": str(separate)}, {"weight": 2.0}, {"images": str(tmp_path)}
    digests += [open_examples(path, **changed).digest for changed in options]
    sources = [DataConfig(str(path)), DataConfig(str(separate))]
    digests += [open_examples(order).digest for order in (sources, sources[::-1], sources[:1] * 2)]
    for changed in (
        rows[::-1],
        [*rows[:-1], {**rows[-1], "output": "1. "}],
        [{**rows[0], "image": "a"}, *rows[1:]],
    ):
        digests.append(open_examples(write_rows(path, changed)).digest)
    assert len(set(digests)) == len(digests)


# Epochs.


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
        [Part(_Numbers(count, long), np.arange(count), weight) for count, weight, long in parts],
        seed=1,
        skipped=SkippedExamples(lambda _: None),
    )


def with_steps(stream: ShuffledExamples, epochs: float, batch_size: int) -> int:
    examples = FileExamples.__new__(FileExamples)
    examples._train = lambda: stream  # type: ignore[method-assign]
    config = TrainConfig("x", epochs=epochs, batch_size=batch_size)
    return examples.with_steps(config).steps


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


def test_parts_of_epochs_are_rounded_up_and_broken_records_are_not_part_of_them(tmp_path):
    for rows, epochs, size, steps in ((20, 0.1, 3, 1), (20, 0.5, 3, 4), (20, 2.25, 3, 16), (65, 5, 64, 10)):
        assert with_steps(stream_of([(rows, 1.0, 0)]), epochs, size) == steps
    path = write_rows(tmp_path / "a.jsonl", ["{" if i % 2 else row for i, row in enumerate(numbered(40))])
    logged: list[str] = []
    examples = open_examples(path, held_out=0, log=logged.append)
    config = TrainConfig("x", epochs=2, batch_size=4)
    assert examples.learnt == 20 and examples.with_steps(config).steps == 10 and len(logged) == 20
    seen = [example.answer for example in itertools.islice(examples("train"), 20)]
    assert sorted(seen) == sorted(f"{i}." for i in range(0, 40, 2))


# Mixtures.


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


def test_a_mixture_is_mixed(tmp_path):
    paths = [write_rows(tmp_path / f"{i}.jsonl", numbered(n, 100 * i)) for i, n in enumerate((40, 20))]
    sources = [DataConfig(str(path), weight=weight) for path, weight in zip(paths, (1.0, 3.0), strict=True)]
    first_epoch = list(itertools.islice(open_examples(sources, held_out=0)("train"), 100))
    times = Counter(example.answer for example in first_epoch)
    assert {times[f"{i}."] for i in range(40)} == {1} and {times[f"{i}."] for i in range(100, 120)} == {3}
    parts = [len(example.answer) > 3 for example in first_epoch]
    assert 20 < sum(parts[:50]) < 40, "not one part after the other"


@pytest.mark.parametrize(
    ("parts", "rows", "given"),
    [
        # (records, weight, validation) of each part; as they share the steps.
        ([(900, 1.0, 0.5), (300, 3.0, 0.5)], 96, [48, 48]),
        ([(900, 1.0, 0.0), (200, 1.0, 0.5)], 96, [0, 96]),
        ([(100, 1.0, 0.5)] * 5, 96, [19, 19, 19, 19, 20]),
    ],
)
def test_parts_of_a_mixture_share_the_rows_of_an_evaluation(tmp_path, parts, rows, given):
    paths = [write_rows(tmp_path / f"{i}.jsonl", numbered(part[0], 10_000 * i)) for i, part in enumerate(parts)]
    sources = [
        DataConfig(str(path), weight=weight, validation=share)
        for path, (_, weight, share) in zip(paths, parts, strict=True)
    ]
    of_part = Counter(records.path for records, _ in open_examples(sources, held_out=rows).held_out)
    assert sorted(of_part[path] for path in paths) == given


def test_a_part_without_records_is_named(tmp_path):
    good = DataConfig(str(write_rows(tmp_path / "a.jsonl", numbered(9))))
    for rows, message in (
        ([], "b.jsonl is empty"),
        (
            [{"instruction": "a", "output": 3}] * 4,
            "'b.jsonl' has no record that can be read. b.jsonl, line 1: 'output'",
        ),
    ):
        with pytest.raises(DataError, match=message):
            open_examples([good, DataConfig(str(write_rows(tmp_path / "b.jsonl", rows)))])
