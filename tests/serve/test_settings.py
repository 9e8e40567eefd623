"""The one schema of settings: ranges, sentences about wrong values, and what the page's sliders take from it."""

import pytest

from adapter.errors import BadInput
from adapter.serve.settings import Settings


@pytest.mark.parametrize(
    ("typed", "seed"),
    [("", None), (None, None), (" 7 ", 7), ("7", 7), (7, 7), (7.0, 7), (-1, -1), (2**62 + 1, 2**62 + 1)],
)
def test_a_seed_is_read_as_typed_or_sent(typed, seed):
    assert Settings.checked({"seed": typed}).seed == seed


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("strength", 2.01, "Strength: Input should be less than or equal to 2."),
        ("temperature", float("nan"), "Temperature: Input should be a finite number."),
        ("temperature", True, "Temperature: Input should be a valid number."),
        ("top_p", -0.1, "Top-p: Input should be greater than or equal to 0."),
        ("max_tokens", 1.5, "Max tokens: Input should be a valid integer."),
        ("stop", "1\n" * 17, "Stop texts are at most 16 texts of 1 to 200 characters."),
        ("system", "x" * 2001, "The system prompt is a text of at most 2000 characters."),
        *(("seed", seed, "The seed must be a whole number") for seed in ("x", 1.5, 2**63, "9" * 5000)),
        ("mix", "a\nb", "Second adapter: not printable."),
    ],
)
def test_a_wrong_value_is_one_sentence(field, value, sentence):
    with pytest.raises(BadInput) as refused:
        Settings.checked({field: value})
    assert str(refused.value).startswith(sentence) and len(str(refused.value)) < 120
