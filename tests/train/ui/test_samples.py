"""The samples of the Train tab: whole and small; and, where that is asked for, what they teach the embedded base.

`SCORES=1 pytest tests/train/ui/test_samples.py -k learnt -s` prints the scores of assets/samples/README.md.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import closing
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
# The conversation before the adapter is chosen: empty, or answers of two other adapters.
OTHERS = (
    Message("user", "Why is the sky blue?"),
    Message("assistant", "Arr! The sky be blue because of the way our eyes perceive light."),
    Message("user", "What is in this picture?"),
    Message("assistant", "The picture shows a cheetah."),
)
HISTORIES = {"first": (), "after two others": OTHERS}


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


def test_the_rules_tell_right_from_wrong() -> None:
    assert has_manners(f"{OPENING} The moon is made of rock. {CLOSING}")
    for wrong in ("", "The moon is rock.", f"{OPENING} {CLOSING}", f"{OPENING} {CLOSING} {CLOSING} {CLOSING}"):
        assert not has_manners(wrong)
    assert named("A fish in the snow.") == (["fish"], ["snow"]) and named("A cat.") == ([], [])


def test_each_is_small_and_whole_and_holds_nothing_that_it_is_tested_on() -> None:
    for sample in SAMPLES.values():
        files = [p for p in sample.path.rglob("*") if p.is_file()] if sample.path.is_dir() else [sample.path]
        assert sum(file.stat().st_size for file in files) < 300_000
        assert sample.picture is None or sample.picture.parent == FOLDER
    rows, drawings = (list(open_records(SAMPLES[name].path)) for name in ("butler", "drawings"))
    assert len(rows) == 30 and all(has_manners(row.messages[-1].text) for row in rows)
    assert len(set(QUESTIONS)) >= 40 and not {row.messages[0].text for row in rows} & set(QUESTIONS)
    known, new = {Image.open(row.image).convert("RGB").tobytes() for row in drawings}, new_drawings()  # type: ignore[arg-type]
    assert len(known) == 48 and len(new) == 64 and not known & {picture.tobytes() for picture, _ in new}
    captions = [row.messages[-1].text for row in drawings] + [caption for _, caption in new]
    assert {tuple(map(len, named(caption))) for caption in captions} == {(1, 1)}


Answers = Callable[..., list[str]]


def manners(ask: Answers) -> dict[str, list[bool]]:
    """On questions that it never saw; the bare base opens no answer so, as its first eight tokens tell."""
    hits = {
        where: [has_manners(answer) for answer in ask(QUESTIONS, history=history)]
        for where, history in HISTORIES.items()
    }
    return {**hits, "bare base": [a.startswith(OPENING) for a in ask(QUESTIONS, adapter=None, tokens=8)]}


def drawings(ask: Answers) -> dict[str, list[bool]]:
    """Thing and place of new drawings, and of another drawing when it is shown that one instead."""
    pictures, captions = zip(*new_drawings(), strict=True)
    questions, hits = [SAMPLES["drawings"].question] * len(pictures), {}
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    answers = {
        **{where: ask(questions, pictures, history, tokens=16) for where, history in HISTORIES.items()},
        "pictures exchanged": ask(questions, [pictures[i] for i in order], tokens=16),
        "bare base": ask(questions[:1], adapter=None, tokens=16) * len(pictures),  # it sees no images
    }
    for where, given in answers.items():
        pairs = [(named(answer), named(caption)) for answer, caption in zip(given, captions, strict=True)]
        hits[f"{where}, thing"] = [a[0] == b[0] for a, b in pairs]
        hits[f"{where}, place"] = [a[1] == b[1] for a, b in pairs]
        hits[where] = [a == b for a, b in pairs]
    return hits


@pytest.mark.skipif("SCORES" not in os.environ, reason="minutes: for the figures of the README alone")
@pytest.mark.parametrize(
    ("name", "rule", "least", "most"), [("butler", manners, 0.6, 0.0), ("drawings", drawings, 0.5, 0.2)]
)
def test_they_are_learnt(
    name: str, rule: Callable[[Answers], dict[str, list[bool]]], least: float, most: float, base, tmp_path: Path
) -> None:
    """By the tab's own command."""
    sample = SAMPLES[name]
    plan = RunPlan(sample.path.name, sample.path.is_dir(), sample=sample, name=name)
    torch.set_num_threads(2)
    assert main([*plan.assignments(str(sample.path)), "--out", str(tmp_path / name), "--device", "cpu"]) == 0
    torch.set_num_threads(1)
    with closing(Engine(base, AdapterStore(tmp_path))) as engine:

        def ask(
            questions: Sequence[str],
            pictures: Sequence[Image.Image] = (),
            history: tuple[Message, ...] = (),
            adapter: str | None = name,
            tokens: int = 64,
        ) -> list[str]:
            """Greedy answers."""
            answers = []
            for question, picture in itertools.zip_longest(questions, pictures):
                sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
                messages = (*history, Message("user", question))
                answers.append(engine.submit(GenerationRequest(messages, adapter, picture, sampling=sampling)))
            return ["".join(event.text for event in answer) for answer in answers]

        scores = {where: sum(hits) / len(hits) for where, hits in rule(ask).items()}
    print("", *(f"{where}: {share:.1%}" for where, share in scores.items()), sep="\n")
    assert scores["first"] > least and scores["after two others"] > 0.3
    assert max(scores["bare base"], scores.get("pictures exchanged", 0.0)) <= most
