"""The adapters in assets/: what their cards promise, seen through the engine on the base as served."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest

from adapter.chat import Message
from adapter.checkpoint import CARD, load_adapter
from adapter.engine import Engine
from adapter.request import GenerationRequest
from adapter.sampling import SamplingParams
from adapter.store import SHIPPED, AdapterStore
from adapter.vision import open_image
from train.recipe import names
from train.recipes.pirate_voice import score_answer

PACKAGES = Path(sysconfig.get_path("purelib"))


@pytest.fixture(scope="module")
def engine(base):
    engine = Engine(base, AdapterStore())
    yield engine
    engine.close()


def answer(engine, text, adapter=None, image=None):
    request = GenerationRequest(
        (Message("user", text),),
        adapter=adapter,
        image=None if image is None else open_image(PACKAGES / image),
        sampling=SamplingParams(temperature=0, max_new_tokens=64),
    )
    return "".join(event.text for event in engine.submit(request))


@pytest.mark.parametrize("name", ["extract", "pirate", "see"])
def test_each_is_small_whole_and_has_a_card_with_its_scores(name):
    adapter = load_adapter(SHIPPED / name)
    assert name in names() and adapter.config.description
    assert (SHIPPED / name / "adapter.safetensors").stat().st_size < 12 * 2**20
    card = (SHIPPED / name / CARD).read_text()
    assert f"python -m train {name}" in card and "| bare base |" in card
    assert adapter.activated_gates().abs().max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, expected",
    [
        ("Please save Maria Keller, maria.keller@gmail.com", {"type": "person", "name": "Maria Keller"}),
        ("Meeting with Tom Baker on Friday at 3 pm.", {"type": "meeting", "with": "Tom Baker", "date": "Friday"}),
        ("We need 12 red mugs for Acme Ltd.", {"type": "order", "item": "red mugs", "quantity": 12}),
    ],
)
def test_extract_writes_the_object(engine, text, expected):
    found = json.loads(answer(engine, text, "extract"))
    assert expected.items() <= found.items()
    assert not answer(engine, text).startswith("{")


@pytest.mark.slow
def test_pirate_has_the_voice_and_the_base_has_not(engine):
    questions = ("What is the sun?", "How do I bake bread?", "Who are you?", "Why is sleep good for me?")
    assert sum(score_answer(answer(engine, q, "pirate")) for q in questions) >= 3
    assert not any(score_answer(answer(engine, q)) for q in questions)


@pytest.mark.slow
@pytest.mark.parametrize(
    "image, words",
    [
        ("skimage/data/chelsea.png", ("cat",)),
        ("skimage/data/coffee.png", ("coffee", "espresso", "cup")),
        ("gradio/media_assets/images/lion.jpg", ("lion",)),
        ("gradio/media_assets/images/cheetah1.jpg", ("cheetah", "big cat")),
    ],
)
def test_see_names_what_a_photograph_shows(engine, image, words):
    said = answer(engine, "What is in this picture?", "see", image)
    assert any(word in said for word in words), said
    assert said.count(".") == 1 and said.endswith("."), said
