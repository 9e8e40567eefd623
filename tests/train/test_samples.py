"""The samples of the Train tab: whole, small, and learnt by the settings that the tab trains them with.

`SCORES=1 pytest tests/train/test_samples.py -k learnt -s` prints the scores that assets/samples/README.md states.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from adapter.base.template import Message
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from train.formats.dataset import open_records
from train.reproduce.scenes.captions import WHERE, captioned, small, write
from train.reproduce.scenes.drawing import THINGS
from train.ui.plan import SAMPLES as FOLDER
from train.ui.plan import Plan, Sample, samples

SAMPLES = {sample.name: sample for sample in samples()}
OPENING, CLOSING = "Very good, sir.", "Will that be all, sir?"
# Nobody's in the training rows, and of other things.
QUESTIONS = """What is the sun made of?
Where do penguins live?
Why do cats sleep so much?
How do I boil an egg?
How can I fall asleep faster?
What's the best way to learn Spanish?
Who painted the Mona Lisa?
Who was Isaac Newton?
Tell me about Japan.
Tell me a fact about whales.
Describe an elephant to somebody who has never seen one.
Describe the sea at night.
What is 7 times 6?
What is 12 minus 3?
I am tired of my job.
My dog is sick.
I burnt my dinner.
I won the first prize!
Hello there
Good night!
What can you do for me?
Are you a human being?
Do you like coffee?
What do you think about football?
Give me a name for a bakery.
Suggest a present for my grandfather.
Write an invitation to a garden party.
Write a note to my landlord about the broken heater.
Which city is the capital of Italy?
Which planet is the largest?
How many legs does a spider have?
Is chocolate bad for dogs?
Is it hard to play the violin?
Should I buy a bicycle or a car?
Should I take an umbrella today?
What is a volcano?
Explain how the internet works.
Explain gravity to a child.
What does a dentist do?
Why do leaves fall in autumn?
What happens when a star dies?
How was your weekend?
Can you help me pack for a trip to the mountains?
What should I see in London?
How do bees make honey?
What is democracy?
When did the second world war end?
Please cheer me up.""".splitlines()
# Measure what the README states; without it fewer steps and half of the new drawings have to do.
SCORES = "SCORES" in os.environ
FEWER = () if SCORES else ("steps=45",)
NEW_SEED, NEW_DRAWINGS = 2026, 64 if SCORES else 32
# What stands in the conversation when the adapter is switched on: nothing, or what others were asked and said.
PIRATE = (
    Message("user", "Why is the sky blue?"),
    Message("assistant", "Arr! The sky be blue because of the way our eyes perceive light."),
)
SEE = (Message("user", "What is in this picture?"), Message("assistant", "The picture shows a cheetah."))
BEFORE = {"first": (), "after two others": PIRATE + SEE}


def has_manners(answer: str) -> bool:
    """The butler's opening and closing, each once and where they belong, and at least three words between them."""
    between = answer.strip().removeprefix(OPENING).removesuffix(CLOSING)
    whole = len(between) == len(answer.strip()) - len(OPENING) - len(CLOSING)
    return whole and len(between.split()) >= 3 and OPENING not in between and CLOSING not in between


def said(answer: str) -> tuple[list[str], list[str]]:
    """The kinds of thing and the places that an answer names."""
    return [kind for kind in THINGS if kind in answer], [place for place, text in WHERE.items() if text in answer]


def test_the_rules_tell_right_from_wrong() -> None:
    assert has_manners(f"{OPENING} The moon is made of rock. {CLOSING}")
    for wrong in ("", OPENING, f"{OPENING} {CLOSING}", f"{OPENING} {CLOSING} {CLOSING} {CLOSING} {CLOSING}"):
        assert not has_manners(wrong)
    assert not has_manners("The moon is made of rock.")
    assert said("A fish in the snow.") == (["fish"], ["snow"]) and said("A cat.") == ([], [])


def test_each_is_small_and_every_record_of_it_can_be_read() -> None:
    assert SAMPLES
    for sample in SAMPLES.values():
        files = [p for p in sample.path.rglob("*") if p.is_file()] if sample.path.is_dir() else [sample.path]
        assert sum(file.stat().st_size for file in files) < 300_000
        for record in open_records(sample.path):
            assert record.image is None or record.image.is_file()
        assert sample.picture is None or sample.picture.parent == FOLDER


def test_the_butler_has_manners_in_every_row_and_was_asked_nothing_of_the_test() -> None:
    records = list(open_records(SAMPLES["butler"].path))
    assert len(records) == 30 and len(set(QUESTIONS)) == len(QUESTIONS) >= 40
    assert all(has_manners(record.messages[-1].text) for record in records)
    assert not {record.messages[0].text for record in records} & set(QUESTIONS)


def test_the_drawings_are_those_of_their_command(tmp_path: Path) -> None:
    """Pixel by pixel: how a PNG is packed may differ between versions of Pillow."""
    folder = SAMPLES["drawings"].path
    write(tmp_path, 48, 0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in folder.iterdir()) and len(names) == 96
    for name in names:
        if name.endswith(".txt"):
            assert (tmp_path / name).read_text() == (folder / name).read_text()
        else:
            drawn, kept = (Image.open(at / name).convert("RGB") for at in (tmp_path, folder))
            assert not ImageChops.difference(drawn, kept).getbbox()


def test_new_drawings_are_new() -> None:
    known = {scene for scene, _ in captioned(48, 0)}
    assert not known & {scene for scene, _ in captioned(NEW_DRAWINGS, NEW_SEED)}
    captions = [caption for _, caption in captioned(48, 0)]
    assert {tuple(map(len, said(caption))) for caption in captions} == {(1, 1)}


def trained(sample: Sample, folder: Path) -> None:
    """What the tab's own command makes of a sample, in a second process."""
    plan = Plan(sample.name, sample.path, "", sample.path.is_dir(), extra=sample.settings)
    words = [*plan.assignments(str(sample.path)), *FEWER, "--out", str(folder), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "train", *words],
        cwd=FOLDER.parents[1],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def asked(
    engine: Engine,
    adapter: str | None,
    questions: Sequence[str],
    pictures: Sequence[Image.Image] = (),
    before: tuple[Message, ...] = (),
    tokens: int = 64,
) -> list[str]:
    """The chat's own greedy answers."""
    answers = []
    for question, picture in itertools.zip_longest(questions, pictures):
        messages = (*before, Message("user", question))
        sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
        answers.append(engine.submit(GenerationRequest(messages, adapter, picture, sampling=sampling)))
    return ["".join(event.text for event in answer) for answer in answers]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


@pytest.mark.slow
@pytest.mark.skipif(not SCORES, reason="test_page_train.py trains on it; SCORES=1 measures it too")
def test_manners_are_learnt(base, two_threads, tmp_path: Path) -> None:
    """Of 48 questions that it never saw; the bare base opens no answer so (its first eight tokens tell)."""
    trained(SAMPLES["butler"], tmp_path / "butler")
    with closing(Engine(base, AdapterStore(tmp_path))) as engine:
        mannered = {
            where: share([has_manners(a) for a in asked(engine, "butler", QUESTIONS, before=before)])
            for where, before in BEFORE.items()
        }
        bare = share([a.startswith(OPENING) for a in asked(engine, None, QUESTIONS, tokens=8)])
    print()
    for where, value in mannered.items():
        print(f"{where}: with manners {value:.1%}")
    print(f"bare base opens so: {bare:.1%}")
    assert mannered["first"] > 0.6 and min(mannered.values()) > 0.3 and bare == 0


@pytest.mark.slow
def test_drawings_are_learnt_by_looking(base, two_threads, tmp_path: Path) -> None:
    """The right thing and place of 64 new drawings, which goes when each is shown another's picture."""
    trained(SAMPLES["drawings"], tmp_path / "drawings")
    new = captioned(NEW_DRAWINGS, NEW_SEED)
    shown = [small(scene).convert("RGB") for scene, _ in new]
    question = [SAMPLES["drawings"].question] * len(new)

    def right(answers: Sequence[str]) -> Sequence[float]:
        pairs = [(said(answer), said(caption)) for answer, (_, caption) in zip(answers, new, strict=True)]
        return (
            share([a[0] == b[0] for a, b in pairs]),
            share([a[1] == b[1] for a, b in pairs]),
            share([a == b for a, b in pairs]),
        )

    exchanged = torch.randperm(len(new), generator=torch.Generator().manual_seed(0)).tolist()
    with closing(Engine(base, AdapterStore(tmp_path))) as engine:
        figures = {
            **{
                w: right(asked(engine, "drawings", question, shown, said_before, 16))
                for w, said_before in BEFORE.items()
            },
            "pictures exchanged": right(
                asked(engine, "drawings", question, [shown[i] for i in exchanged], tokens=16)
            ),
            "bare base": right(asked(engine, None, question[:1], tokens=16) * len(new)),  # it is blind
        }
    print()
    for name, values in figures.items():
        print("{}: thing {:.1%}, place {:.1%}, both {:.1%}".format(name, *values))
    assert figures["first"][2] > 0.5 and min(figures[where][2] for where in BEFORE) > 0.3
    assert max(figures["pictures exchanged"][2], figures["bare base"][2]) < 0.2
