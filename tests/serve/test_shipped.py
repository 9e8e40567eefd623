"""The shipped adapters do what their cards promise, and the laws of serving hold, on the real base."""

from __future__ import annotations

import json
import sysconfig
from contextlib import closing
from pathlib import Path

import pytest

from adapter.base.image_file import open_image
from adapter.base.template import Message
from adapter.method.checkpoint import CARD, load_adapter
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest, SamplingParams
from adapter.serve.store import SHIPPED, AdapterStore
from train.recipes.pirate.recipe import score_answer
from train.recipes.recipe import recipe_names

PACKAGES = Path(sysconfig.get_path("purelib"))


@pytest.fixture(scope="module")
def engine(base):
    with closing(Engine(base, AdapterStore())) as engine:
        yield engine


def generate(engine, text, adapter=None, image=None, **fields):
    request = GenerationRequest(
        (Message("user", text),),
        adapter=adapter,
        image=None if image is None else open_image(PACKAGES / image),
        sampling=SamplingParams(temperature=0, max_new_tokens=64),
        **fields,
    )
    return "".join(event.text for event in engine.submit(request))


@pytest.mark.parametrize("name", sorted(folder.name for folder in SHIPPED.iterdir()))
def test_each_is_small_and_has_a_card_with_scores(name):
    adapter = load_adapter(SHIPPED / name)
    assert name in recipe_names() and adapter.config.description
    assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) <= 10_000_000
    card = (SHIPPED / name / CARD).read_text()
    assert f"python -m train {name}" in card and "| bare base |" in card
    assert adapter.activated_gates().abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, expected",
    [
        ("Please save Maria Keller, maria.keller@gmail.com", {"type": "person", "name": "Maria Keller"}),
        ("Meeting with Tom Baker on Friday at 3 pm.", {"type": "meeting", "with": "Tom Baker", "date": "Friday"}),
        ("We need 12 red mugs for Acme Ltd.", {"type": "order", "item": "red mugs", "quantity": 12}),
    ],
)
def test_extract_writes_json(engine, text, expected):
    assert expected.items() <= json.loads(generate(engine, text, "extract")).items()
    assert not generate(engine, text).startswith("{")


@pytest.mark.slow
def test_pirate_answers_as_a_pirate_and_the_base_does_not(engine):
    """By the strict score of its card, which half of such answers reach on the packed base and in bf16 alike."""
    questions = (
        "What is the sun?", "How do I bake bread?", "Who are you?", "Why is sleep good for me?",
        "What is a volcano?", "How do birds fly?",
    )  # fmt: skip
    assert sum(score_answer(generate(engine, q, "pirate")) for q in questions) >= 2
    assert not any(score_answer(generate(engine, q)) for q in questions)


@pytest.mark.slow
@pytest.mark.parametrize(
    "image, names",
    [
        ("skimage/data/chelsea.png", ("cat",)),
        ("skimage/data/coffee.png", ("coffee", "espresso", "cup")),
        ("gradio/media_assets/images/cheetah1.jpg", ("cheetah", "big cat")),
    ],
)
def test_see_names_what_a_photograph_shows(engine, image, names):
    text = generate(engine, "What is in this picture?", "see", image)
    assert any(name in text for name in names), text
    assert text.count(".") == 1 and text.endswith("."), text


@pytest.mark.slow
def test_see_and_pirate_together_name_what_a_photograph_shows_in_the_voice(engine):
    """As two of three photographs do (docs/log.md); with plain sums of the terms, none."""
    shown = {
        "skimage/data/chelsea.png": ("cat",),
        "skimage/data/coffee.png": ("coffee", "espresso", "cup"),
        "skimage/data/brick.png": ("wall", "brick"),
        "gradio/media_assets/images/cheetah1.jpg": ("cheetah", "big cat"),
    }
    right = 0
    for image, names in shown.items():
        text = generate(engine, "What is in this picture?", "see", image, mix=(("pirate", 1.1),))
        right += score_answer(text) and any(name in text for name in names)
    assert right >= 2


@pytest.mark.slow
def test_law_sixteen_rows_together_give_the_bits_of_each_alone(base):
    """Short and long prompts; every adapter, mixes and the base; with and without an image."""
    picture = open_image(PACKAGES / "skimage/data/coffee.png")
    story = "The lighthouse keeper counts the ships that pass. " * 12
    texts = ("Hi!", "Please save Maria Keller, m.k@gmail.com", f"{story}What does he do?", "What is the sun?")
    requests = [
        GenerationRequest(
            (Message("user", texts[i % 4] if name != "see" else "What is in this picture?"),),
            adapter=name,
            image=picture if name == "see" else None,
            strength=(1.0, 0.6)[i % 2],
            mix=(("pirate", 0.5),) if i % 5 == 1 else (),
            sampling=SamplingParams(temperature=0, max_new_tokens=(8, 24)[i % 3 == 0]),
        )
        for i in range(16)
        for name in [(None, "extract", "pirate", "see", "extract")[i % 5]]
    ]
    with closing(Engine(base, AdapterStore())) as together, closing(Engine(base, AdapterStore())) as alone:
        answers = [together.submit(request) for request in requests]
        found = [[(e.token_id, e.logprob) for e in events if e.token_id is not None] for events in answers]
        for request, got in zip(requests, found, strict=True):
            assert got == [(e.token_id, e.logprob) for e in alone.submit(request)]
    assert len({tuple(got) for got in found}) > 10
