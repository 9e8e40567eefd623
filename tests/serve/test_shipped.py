"""The shipped adapters do what their cards promise, on the real base."""

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
from train.recipes import recipe_names
from train.recipes.pirate.recipe import is_in_the_voice

PACKAGES = Path(sysconfig.get_path("purelib"))


@pytest.fixture(scope="module")
def engine(base):
    with closing(Engine(base, AdapterStore())) as engine:
        yield engine


def generate(engine, text, adapter=None, image=None):
    request = GenerationRequest(
        (Message("user", text),),
        adapter=adapter,
        image=None if image is None else open_image(PACKAGES / image),
        sampling=SamplingParams(temperature=0, max_new_tokens=64),
    )
    return "".join(event.text for event in engine.submit(request))


@pytest.mark.parametrize("name", sorted(folder.name for folder in SHIPPED.iterdir()))
def test_each_is_small_and_has_a_card_with_scores(name):
    adapter = load_adapter(SHIPPED / name)
    assert name in recipe_names() and adapter.config.description
    assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) <= 15_000_000
    card = (SHIPPED / name / CARD).read_text()
    assert f"python -m train {name}" in card and "| bare base |" in card
    assert adapter.activated_gates().abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, expected",
    [
        ("Please save Maria Keller, maria.keller@gmail.com", {"type": "person", "name": "Maria Keller"}),
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
    assert sum(is_in_the_voice(generate(engine, q, "pirate")) for q in questions) >= 2
    assert not any(is_in_the_voice(generate(engine, q)) for q in questions)


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
