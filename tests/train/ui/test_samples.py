"""The samples of the Train tab: whole and small; and, where that is asked for, what they teach the embedded base.

`SCORES=1 pytest tests/train/ui/test_samples.py -k learnt -s` prints the scores of assets/samples/README.md.
"""

import dataclasses
import os
from collections.abc import Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any
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
from train.ui.plan import samples

SAMPLES = samples()
OPENING, CLOSING = "Very good, sir.", "Will that be all, sir?"
# None of the training rows' questions, and about other things.
QUESTIONS = Path(__file__).with_name("butler_questions.txt").read_text().splitlines()
THINGS = ("bird", "boat", "car", "fish", "flower", "hammer", "saw", "tree")
WHERE = {"beach": "on the beach", "meadow": "in a meadow", "night": "at night", "snow": "in the snow"}
# Answers of two other adapters, before the adapter is chosen.
OTHERS = (
    Message("user", "Why is the sky blue?"),
    Message("assistant", "Arr! The sky be blue because of the way our eyes perceive light."),
    Message("user", "What is in this picture?"),
    Message("assistant", "The picture shows a cheetah."),
)


def has_manners(answer: str) -> bool:
    """Whether opening and closing each stand once in their place, with at least three words between them."""
    between = answer.strip().removeprefix(OPENING).removesuffix(CLOSING)
    whole = len(between) == len(answer.strip()) - len(OPENING) - len(CLOSING)
    return whole and len(between.split()) >= 3 and OPENING not in between and CLOSING not in between


def named(answer: str) -> tuple[list[str], list[str]]:
    """The things and the places that an answer names."""
    return [kind for kind in THINGS if kind in answer], [place for place, text in WHERE.items() if text in answer]


def new_drawings() -> list[tuple[Image.Image, str]]:
    """Pictures and captions of drawings that no adapter was trained on."""
    with ZipFile(Path(__file__).with_name("new_drawings.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        return [
            (Image.open(BytesIO(archive.read(n))).convert("RGB"), archive.read(f"{n[:-4]}.txt").decode().strip())
            for n in names
        ]


def test_each_is_whole_and_holds_nothing_that_it_is_tested_on():
    rows, drawings = (list(open_records(SAMPLES[name].source)) for name in ("butler", "drawings"))
    assert len(rows) == 30 and all(has_manners(row.messages[-1].text) for row in rows)
    assert len(set(QUESTIONS)) >= 40 and not {row.messages[0].text for row in rows} & set(QUESTIONS)
    known, new = {Image.open(row.image).convert("RGB").tobytes() for row in drawings}, new_drawings()
    assert len(known) == 48 and len(new) == 64 and not known & {picture.tobytes() for picture, _ in new}
    captions = [row.messages[-1].text for row in drawings] + [caption for _, caption in new]
    assert {tuple(map(len, named(caption))) for caption in captions} == {(1, 1)}


@pytest.mark.skipif("SCORES" not in os.environ, reason="minutes: for the figures of the README alone")
@pytest.mark.parametrize(("name", "least"), [("butler", 0.6), ("drawings", 0.5)])
def test_they_are_learnt(name, least, base, tmp_path):
    """By the tab's own command; greedy answers."""
    sample, seeing = SAMPLES[name], name == "drawings"
    plan = dataclasses.replace(sample, name=name)
    torch.set_num_threads(2)
    assert main([*plan.assignments(str(sample.source)), "--out", str(tmp_path / name), "--device", "cpu"]) == 0
    torch.set_num_threads(1)
    pictures, captions = zip(*new_drawings(), strict=True)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    with closing(Engine(base, AdapterStore(tmp_path))) as engine:

        def ask(
            history: tuple[Message, ...] = (), adapter: str | None = name, pictures: Sequence[Any] = pictures
        ) -> list[str]:
            cases = [(sample.question, p if adapter else None) for p in pictures]  # the bare base sees none
            sampling = SamplingParams(temperature=0, max_new_tokens=16 if seeing else 64)
            answers = [
                engine.submit(GenerationRequest((*history, Message("user", q)), adapter, p, sampling=sampling))
                for q, p in (cases if seeing else [(question, None) for question in QUESTIONS])
            ]
            return ["".join(event.text for event in answer) for answer in answers]

        answers = {"first": ask(), "after two others": ask(OTHERS), "bare base": ask(adapter=None)}
        if seeing:
            answers["pictures exchanged"] = ask(pictures=[pictures[i] for i in order])
    scores = {}
    for where, given in answers.items():
        hits = [has_manners(answer) for answer in given]
        if seeing:
            pairs = [(named(answer), named(caption)) for answer, caption in zip(given, captions, strict=True)]
            hits = [a == b for a, b in pairs]
            for part, what in enumerate(("thing", "place")):
                print(f"{where}, {what}: {sum(a[part] == b[part] for a, b in pairs) / len(pairs):.1%}")
        scores[where] = sum(hits) / len(hits)
        print(f"{where}: {scores[where]:.1%}")
    assert scores["first"] > least and scores["after two others"] > 0.3 and scores["bare base"] == 0
