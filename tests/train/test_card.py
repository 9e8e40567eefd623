"""Cards: what they say of training, and what scoring changes in them."""

import json

import pytest

from adapter.method.checkpoint import CARD, WEIGHTS, read_config, save_adapter
from adapter.serve.store import SHIPPED
from tests.app_process import ROOT
from tests.tiny_models import FINGERPRINT, random_adapter
from tests.train.parrot import parrot
from train.__main__ import main
from train.recipes import recipe


@pytest.fixture
def command(parrot_command, monkeypatch):
    monkeypatch.setattr("train.__main__.unrelated_text", lambda: "An assignment binds a name. " * 20)
    return parrot_command


@pytest.mark.slow
def test_training_measures_development_sets_and_scoring_the_sealed_ones(command, tmp_path):
    assert main(command("lr=0.02")) == 0
    before = (tmp_path / "out" / CARD).read_text()
    made = "`python -m train parrot lr=0.02 base=tiny0`: AdamW, learning rate 0.02 (gates 0.01),\n6 steps of 4"
    assert made in before and "sealed, %" not in before
    # The adapter, the bare base, and the base that is told.
    assert "| parrots, % | 50 (40 to 60) | 50 (40 to 60) | 20 (10 to 30) | 4 |" in before
    weights = (tmp_path / "out" / WEIGHTS).read_bytes()
    assert main(command("--score", recipe=parrot(75.0))) == 0
    scored = (tmp_path / "out" / CARD).read_text()
    assert "| parrots, sealed, % | 75 (65 to 85) | 75 (65 to 85) | 20 (10 to 30) | 4 |" in scored
    assert "language reference | " in scored  # what it forgot
    assert "The base, bare or told, scored as high or higher in: parrots, sealed, %.\n" in scored
    start, end = scored.index("## Scores on sealed"), scored.index("## Scores on development")
    assert scored[:start] + scored[end:] == before
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == weights
    # The ledger counts by sets: also what other weights were scored on, and what has decided something is spent.
    assert "Of 1 scorings in `train/recipes/ledger.json`, 1 was of this" in scored
    ledger = recipe._FOLDER / "ledger.json"
    ((key, entry),) = json.loads(ledger.read_text()).items()
    assert key.startswith("parrot/recipe.yaml ")
    ledger.write_text(json.dumps({key: {**entry, "spent": "they chose the learning rate"}}))
    save_adapter(random_adapter(FINGERPRINT), tmp_path / "out", scored)
    assert main(command("--score")) == 0
    second = (tmp_path / "out" / CARD).read_text()
    assert "spent: they chose the learning rate. Of 2 scorings in `train/recipes/ledger.json`, 1 was of" in second
    assert second[second.index("## Scores on development") :] == before[before.index("## Scores on development") :]


def test_an_adapter_whose_making_is_unknown_gets_its_scores_and_nothing_else(command, tmp_path):
    save_adapter(random_adapter(FINGERPRINT), tmp_path / "out", "# poet\n\nBy somebody else.\n")
    assert main(command("--score")) == 0
    card = (tmp_path / "out" / CARD).read_text()
    assert card.startswith("# poet\n\nBy somebody else.\n\n## Scores on sealed test sets\n")
    assert "| parrots, sealed, % | 50 (40 to 60) | 50 (40 to 60) | 20 (10 to 30) | 4 |\n" in card


def test_the_readme_has_what_the_cards_say():
    """Of each adapter the description, and the first three rows of its scores."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = [folder for folder in SHIPPED.iterdir() if (folder / CARD).is_file()]
    for folder in folders:
        assert f"[{folder.name}](assets/adapters/{folder.name}): {read_config(folder).description}" in readme
        card = (folder / CARD).read_text(encoding="utf-8")
        for row in card[card.index("| measure |") :].splitlines()[2:5]:
            assert row.rpartition(" | ")[0] in readme, "without the number of items"
    assert len(folders) == 4
