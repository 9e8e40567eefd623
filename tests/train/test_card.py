"""Cards: what they say of training, and what scoring changes in them."""

from __future__ import annotations

import dataclasses
import datetime
import math

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from adapter.method.checkpoint import CARD, WEIGHTS, adapter_digest, read_config, save_adapter
from adapter.method.config import TuningConfig
from adapter.serve.store import SHIPPED
from tests.app_process import ROOT
from tests.tiny_models import FINGERPRINT, random_adapter
from tests.train.parrot import CONFIG, parrot
from train.__main__ import main
from train.card import write_card
from train.job import Outcome


@pytest.fixture
def command(parrot_command, monkeypatch):
    monkeypatch.setattr("train.__main__.unrelated_text", lambda: "An assignment binds a name. " * 20)
    return parrot_command


@pytest.mark.parametrize(
    "outcome, sentences",
    [
        (
            Outcome(1.5, 40, 60, 100, 90.4),
            ["Held-out loss: 1.500 nats a token after 40 of 60 steps.", "100 s (90 s of processor time)"],
        ),
        (Outcome(math.nan, 60, 60, 9000, 7000), ["Held-out loss: not measured.", "2.5 h (117 min of"]),
    ],
)
def test_a_card_says_what_when_where_and_how_long(outcome, sentences):
    adapter = random_adapter(FINGERPRINT, tuning=TuningConfig(64, norms=True, lora_rank=2, layers=1))
    config = dataclasses.replace(CONFIG, tuning_lr=0.003)
    card = write_card(adapter, config, "Data.", outcome, "fp32 on a slate", command="x")
    text = " ".join(card.split())
    for sentence in [*sentences, "in fp32 on a slate. Training and its evaluations took"]:
        assert sentence in text
    assert "Beside them, in the topmost 1 layers: LoRA of rank 2, norms.\nTemplate" in card
    assert ", tuning 0.003),\n6 steps of 4" in card
    assert f"Finished on {datetime.date.today()} with the code of " in text


def test_training_measures_development_sets_and_scoring_the_sealed_ones(command, tmp_path):
    """The recipe has other settings at the scoring than those that the adapter was trained with."""
    assert main(command("lr=0.02")) == 0
    before = (tmp_path / "out" / CARD).read_text()
    assert "learning rate 0.02 (gates 0.01),\n6 steps of 4" in before
    assert "| parrots, % | 50 (40 to 60) | 50 (40 to 60) | 4 |" in before and "sealed, %" not in before
    weights = (tmp_path / "out" / WEIGHTS).read_bytes()
    assert main(command("--score", recipe=parrot(75.0, steps=999, lr=0.5))) == 0
    scored = (tmp_path / "out" / CARD).read_text()
    assert "| parrots, sealed, % | 75 (65 to 85) | 75 (65 to 85) | 4 |" in scored
    assert "language reference | " in scored  # what it forgot
    assert scored.index("## Scores on sealed") < scored.index("## Scores on development")
    start, end = scored.index("## Scores on sealed"), scored.index("## Scores on development")
    assert scored[:start] + scored[end:] == before
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == weights
    # A card counts how often the adapter was scored; other weights have not been.
    assert main(command("--score")) == 0
    second = (tmp_path / "out" / CARD).read_text()
    assert "was scored on them 1 time," in scored and "was scored on them 2 times," in second
    row, new_row = (f"sealed, % | {figure} | {figure} | 4" for figure in ("75 (65 to 85)", "50 (40 to 60)"))
    assert second == scored.replace("1 time,", "2 times,").replace(row, new_row)
    save_adapter(random_adapter(FINGERPRINT), tmp_path / "out", second)
    assert main(command("--score")) == 0
    assert "was scored on them 1 time," in (tmp_path / "out" / CARD).read_text()


def test_a_recipe_goes_on_from_an_adapter_of_its_own(command, tmp_path, capsys):
    """Which it begins with, whose digest its card gives."""
    assert main(command("save=last")) == 0
    first = tmp_path / "first"
    (tmp_path / "out").rename(first)
    weights, start = (first / WEIGHTS).read_bytes(), f"start_from={first}"
    assert main(command(start, "save=last", "steps=1", "lr=1e-9", "gate_lr=1e-9")) == 0
    card = (tmp_path / "out" / CARD).read_text()
    assert "`python -m train parrot start_from=FOLDER`" in card
    assert f"went on from an adapter of the same recipe with the digest {adapter_digest(first)}." in card
    assert (first / WEIGHTS).read_bytes() == weights
    assert_close(load_file(tmp_path / "out" / WEIGHTS), load_file(first / WEIGHTS), atol=1e-5, rtol=1e-5)
    assert main(command(start, "--score")) == 1
    assert "trains nothing: leave out start_from." in capsys.readouterr().err
    (tmp_path / "out").rename(tmp_path / "second")
    assert main(command(start, "prompt_length=5")) == 1
    assert "is not one of this recipe" in capsys.readouterr().err


def test_an_adapter_whose_making_is_unknown_gets_its_scores_and_nothing_else(command, tmp_path):
    save_adapter(random_adapter(FINGERPRINT), tmp_path / "out", "# poet\n\nBy somebody else.\n")
    assert main(command("--score")) == 0
    card = (tmp_path / "out" / CARD).read_text()
    assert card.startswith("# poet\n\nBy somebody else.\n\n## Scores on sealed test sets\n")
    assert "| parrots, sealed, % | 50 (40 to 60) | 50 (40 to 60) | 4 |\n" in card


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
