"""The samples of the Train tab: whole and small; and, where that is asked for, what they teach the embedded base.

`SCORES=1 pytest tests/train/ui/test_samples.py -k learnt -s` prints the scores of assets/samples/README.md.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from PIL import Image

from adapter.base.template import Message
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from train.__main__ import main
from train.formats.dataset import open_records
from train.ui.plan import SAMPLES as FOLDER
from train.ui.plan import RunPlan, samples

SAMPLES = {sample.name: sample for sample in samples()}
OPENING, CLOSING = "Very good, sir.", "Will that be all, sir?"
# None of the training rows' questions, and about other things.
QUESTIONS = Path(__file__).with_name("butler_questions.txt").read_text().splitlines()
THINGS = ("bird", "boat", "car", "fish", "flower", "hammer", "saw", "tree")
WHERE = {"beach": "on the beach", "meadow": "in a meadow", "night": "at night", "snow": "in the snow"}
scores_only = pytest.mark.skipif("SCORES" not in os.environ, reason="minutes: for the figures of the README alone")
# The conversation before the adapter is chosen: empty, or answers of two other adapters.
PIRATE = (
    Message("user", "Why is the sky blue?"),
    Message("assistant", "Arr! The sky be blue because of the way our eyes perceive light."),
)
SEE = (Message("user", "What is in this picture?"), Message("assistant", "The picture shows a cheetah."))
HISTORIES = {"first": (), "after two others": PIRATE + SEE}


def has_manners(answer: str) -> bool:
    """Whether opening and closing each stand once in their place, with at least three words between them."""
    between = answer.strip().removeprefix(OPENING).removesuffix(CLOSING)
    whole = len(between) == len(answer.strip()) - len(OPENING) - len(CLOSING)
    return whole and len(between.split()) >= 3 and OPENING not in between and CLOSING not in between


def named(answer: str) -> tuple[list[str], list[str]]:
    """The things and the places that an answer names."""
    return [kind for kind in THINGS if kind in answer], [place for place, text in WHERE.items() if text in answer]


def share(hits: Sequence[float]) -> float:
    return sum(hits) / len(hits)


def test_the_rules_tell_right_from_wrong() -> None:
    assert has_manners(f"{OPENING} The moon is made of rock. {CLOSING}")
    for wrong in ("", OPENING, f"{OPENING} {CLOSING}", f"{OPENING} {CLOSING} {CLOSING} {CLOSING} {CLOSING}"):
        assert not has_manners(wrong)
    assert not has_manners("The moon is made of rock.")
    assert named("A fish in the snow.") == (["fish"], ["snow"]) and named("A cat.") == ([], [])


def test_each_is_small_and_all_records_can_be_read() -> None:
    assert SAMPLES
    for sample in SAMPLES.values():
        files = [p for p in sample.path.rglob("*") if p.is_file()] if sample.path.is_dir() else [sample.path]
        assert sum(file.stat().st_size for file in files) < 300_000
        for record in open_records(sample.path):
            assert record.image is None or record.image.is_file()
        assert sample.picture is None or sample.picture.parent == FOLDER


def test_the_butler_has_manners_in_every_row_and_no_row_is_a_test_question() -> None:
    records = list(open_records(SAMPLES["butler"].path))
    assert len(records) == 30 and len(set(QUESTIONS)) == len(QUESTIONS) >= 40
    assert all(has_manners(record.messages[-1].text) for record in records)
    assert not {record.messages[0].text for record in records} & set(QUESTIONS)


def new_drawings() -> list[tuple[Image.Image, str]]:
    """Pictures and captions of drawings that no adapter was trained on."""
    with ZipFile(Path(__file__).with_name("new_drawings.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        return [
            (Image.open(BytesIO(archive.read(n))).convert("RGB"), archive.read(f"{n[:-4]}.txt").decode().strip())
            for n in names
        ]


def test_new_drawings_are_new() -> None:
    records = list(open_records(SAMPLES["drawings"].path))
    known = {Image.open(record.image).convert("RGB").tobytes() for record in records}
    new = new_drawings()
    assert len(known) == 48 and len(new) == 64 and not known & {picture.tobytes() for picture, _ in new}
    captions = [record.messages[-1].text for record in records] + [caption for _, caption in new]
    assert {tuple(map(len, named(caption))) for caption in captions} == {(1, 1)}


# Training on the embedded base.


@pytest.fixture
def train_sample(base, tmp_path: Path) -> Iterator[Engine]:
    """Trains a sample by the tab's own command; returns an engine that serves it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    engines: list[Engine] = []

    def train(name: str) -> Engine:
        sample = SAMPLES[name]
        plan = RunPlan(sample.path.name, sample.path.is_dir(), sample=sample, name=name)
        assert main([*plan.assignments(str(sample.path)), "--out", str(tmp_path / name), "--device", "cpu"]) == 0
        engines.append(Engine(base, AdapterStore(tmp_path)))
        return engines[0]

    yield train
    for engine in engines:
        engine.close()
    torch.set_num_threads(threads)


def ask(
    engine: Engine,
    adapter: str | None,
    questions: Sequence[str],
    pictures: Sequence[Image.Image] = (),
    history: tuple[Message, ...] = (),
    tokens: int = 64,
) -> list[str]:
    """The engine's greedy answers."""
    answers = []
    for question, picture in itertools.zip_longest(questions, pictures):
        messages = (*history, Message("user", question))
        sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
        answers.append(engine.submit(GenerationRequest(messages, adapter, picture, sampling=sampling)))
    return ["".join(event.text for event in answer) for answer in answers]


@scores_only
def test_manners_are_learnt(train_sample) -> None:
    """On questions that it never saw; the bare base opens no answer so, as its first eight tokens tell."""
    engine = train_sample("butler")
    with_manners = {
        where: share([has_manners(answer) for answer in ask(engine, "butler", QUESTIONS, history=history)])
        for where, history in HISTORIES.items()
    }
    bare = share([answer.startswith(OPENING) for answer in ask(engine, None, QUESTIONS, tokens=8)])
    print()
    for where, value in with_manners.items():
        print(f"{where}: with manners {value:.1%}")
    print(f"bare base opens so: {bare:.1%}")
    assert with_manners["first"] > 0.6 and min(with_manners.values()) > 0.3 and bare == 0


@scores_only
def test_drawings_are_learnt_by_looking(train_sample) -> None:
    """It names the thing and place of new drawings, and of another drawing when it is shown that one instead."""
    engine = train_sample("drawings")
    new = new_drawings()
    pictures = [picture for picture, _ in new]
    questions = [SAMPLES["drawings"].question] * len(new)

    def right(answers: Sequence[str]) -> Sequence[float]:
        pairs = [(named(answer), named(caption)) for answer, (_, caption) in zip(answers, new, strict=True)]
        return (
            share([a[0] == b[0] for a, b in pairs]),
            share([a[1] == b[1] for a, b in pairs]),
            share([a == b for a, b in pairs]),
        )

    order = torch.randperm(len(new), generator=torch.Generator().manual_seed(0)).tolist()
    scores = {
        where: right(ask(engine, "drawings", questions, pictures, history, 16))
        for where, history in HISTORIES.items()
    }
    scores["pictures exchanged"] = right(
        ask(engine, "drawings", questions, [pictures[i] for i in order], tokens=16)
    )
    scores["bare base"] = right(ask(engine, None, questions[:1], tokens=16) * len(new))  # it sees no images
    print()
    for name, values in scores.items():
        print("{}: thing {:.1%}, place {:.1%}, both {:.1%}".format(name, *values))
    assert scores["first"][2] > 0.5 and min(scores[where][2] for where in HISTORIES) > 0.3
    assert max(scores["pictures exchanged"][2], scores["bare base"][2]) < 0.2
