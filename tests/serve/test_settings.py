"""The one schema of settings: ranges, sentences about wrong values, and what the page's sliders take from it."""

from __future__ import annotations

from typing import Any

import pytest

from adapter.errors import BadInput
from adapter.serve.request import GenerationRequest, SamplingParams
from adapter.serve.settings import PAGE_PENALTY, PANEL, Settings, panel_values, slider


@pytest.mark.parametrize(
    ("typed", "seed"), [("", None), (None, None), (" 7 ", 7), ("7", 7), (7, 7), (7.0, 7), (2**62 + 1, 2**62 + 1)]
)
def test_a_seed_is_read_as_typed_or_sent(typed: Any, seed: int | None) -> None:
    assert Settings.checked({"seed": typed}).seed == seed


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("strength", 2.01, "Strength must lie between 0 and 2, got 2.01."),
        ("temperature", 3, "Temperature must lie between 0 and 2, got 3."),
        ("temperature", float("nan"), "Temperature must lie between 0 and 2, got nan."),
        ("temperature", True, "Temperature needs a number, got True."),
        ("top_p", 0, "Top-p must lie above 0 and be at most 1, got 0."),
        ("max_tokens", 2049, "Max tokens must lie between 1 and 2048, got 2049."),
        ("max_tokens", 1.5, "Max tokens needs a whole number, got 1.5."),
        ("stop", "1\n2\n3\n4\n5", "Stop texts are at most 4 texts of 1 to 200 characters."),
        ("stop", [""], "Stop texts are at most 4"),
        ("system", "x" * 2001, "The system prompt is a text of at most 2000 characters."),
        *((("seed", seed, "The seed must be a whole number")) for seed in ("x", "1.5", 1.5, True, -1, 2**63)),
        ("seed", "9" * 5000, "The seed must be a whole number"),
        ("adapter", 3, "Adapter must be the name of an adapter, got 3."),
        ("mix", "a\nb", "Second adapter must be the name of an adapter"),
        ("mute_layers", [1.5], "Layers and heads to mute are whole numbers."),
    ],
)
def test_a_wrong_value_is_one_sentence(field: str, value: Any, sentence: str) -> None:
    with pytest.raises(BadInput) as refused:
        Settings.checked({field: value})
    assert str(refused.value).startswith(sentence) and len(str(refused.value)) < 120


def test_requests_take_their_ranges_from_the_schema() -> None:
    assert SamplingParams() == SamplingParams(0.1, 0.75, 256, None)
    for wrong in ({"temperature": 3.0}, {"top_p": 0.0}, {"max_new_tokens": 0}, {"seed": -1}):
        with pytest.raises(BadInput, match=r"got (3\.0|0\.0|0|-1)\."):
            SamplingParams(**wrong)  # type: ignore[arg-type]
    for wrong in ({"strength": 3.0}, {"mix": (("poet", 3.0),)}, {"mute_layers": (0.5,)}):
        with pytest.raises(BadInput):
            GenerationRequest(**wrong)  # type: ignore[arg-type]


def test_sliders_offer_a_part_of_each_range() -> None:
    assert slider("temperature") == {"minimum": 0, "maximum": 2, "value": 0.1, "step": 0.05}
    assert slider("top_p") == {"minimum": 0.05, "maximum": 1, "value": 0.75, "step": 0.05}
    assert slider("max_tokens") == {"minimum": 16, "maximum": 1024, "value": 256, "step": 16}
    assert slider("mix_strength")["value"] == 1.1
    assert slider("top_k") == {"minimum": 0, "maximum": 100, "value": 0, "step": 1}
    assert slider("repetition_penalty")["value"] == PAGE_PENALTY > Settings().repetition_penalty == 1
    kept = {"max_tokens": 2000, "top_p": 0.01, "seed": 12, "mix": None, "strength": 2, "unknown": 1}
    assert panel_values(kept) == {"seed": "12", "mix": "", "strength": 2.0}
    assert panel_values(panel_values(Settings().model_dump())) == {
        name: "" if name in ("seed", "stop") else getattr(Settings(), name) for name in PANEL
    }


def test_a_box_of_stop_texts_that_was_never_shown_has_none() -> None:
    """As the page's, in an accordion that is still closed."""
    assert Settings.checked({"stop": None, "system": None}).stop == ()
