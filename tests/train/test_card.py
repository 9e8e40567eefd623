"""Cards: which held-out loss they give, and what measuring again leaves as it was."""

from __future__ import annotations

import math

import pytest

import train.__main__
from adapter.method.checkpoint import CARD, save_adapter
from tests.tiny_models import FINGERPRINT, random_adapter
from tests.train.parrot import CONFIG, parrot
from train.__main__ import main
from train.card import with_scores, write_card
from train.job import HeldOut

PARROT = parrot()


@pytest.fixture
def command(tiny_folder, tmp_path, monkeypatch):
    """Arguments of `python -m train` for the parrot, and a way to change what that recipe is."""
    monkeypatch.setattr(train.__main__, "recipe_names", lambda: ["parrot"])

    def command(*more: str, recipe=PARROT) -> list[str]:
        monkeypatch.setattr(train.__main__, "load_recipe", lambda *_: recipe)
        return ["parrot", f"--base={tiny_folder}", f"--out={tmp_path / 'out'}", "--device=cpu", *more]

    return command


@pytest.mark.parametrize(
    "held_out, sentence",
    [
        (HeldOut(1.5, 40, 1.5, 40, 1.75, 60), "after 40 steps, the lowest of its run (1.750 after the last, 60)."),
        (HeldOut(1.75, 60, 1.5, 40, 1.75, 60), "after 60 steps, the last of its run (lowest: 1.500 after 40)."),
        (HeldOut(1.5, 60, 1.5, 60, 1.5, 60), "1.500 nats a token after 60 steps, the lowest of its run."),
        (HeldOut(math.nan, 60, math.inf, 0, math.nan, 60), "Held-out loss: not measured."),
    ],
)
def test_a_card_says_which_held_out_loss_it_gives(held_out, sentence):
    card = write_card(random_adapter(FINGERPRINT), CONFIG, "Data.", held_out, {}, {}, "", "python -m train")
    assert sentence in card
    assert "60 of 6 steps" in card  # of those that were planned


def test_measuring_again_leaves_how_the_adapter_was_made(command, tmp_path):
    """The recipe has other settings by now than those that the adapter was trained with."""
    assert main(command("lr=0.02")) == 0
    before = (tmp_path / "out" / CARD).read_text()
    assert "learning rate 0.02 (gates 0.01), 6 steps of 4" in before and "| parrots, % | 50 | 50 |" in before
    assert main(command("--score", recipe=parrot(75.0, steps=999, lr=0.5))) == 0
    after = (tmp_path / "out" / CARD).read_text()
    assert after == before.replace("| 50 | 50 |", "| 75 | 75 |")


def test_an_adapter_whose_making_is_unknown_gets_its_scores_and_nothing_else(command, tmp_path):
    save_adapter(random_adapter(FINGERPRINT), tmp_path / "out", "# poet\n\nBy somebody else.\n")
    assert main(command("--score")) == 0
    card = (tmp_path / "out" / CARD).read_text()
    assert card.startswith("# poet\n\nBy somebody else.\n\n## Scores\n") and card.endswith("| 50 | 50 |\n")
    assert "steps" not in card and "AdamW" not in card


def test_settings_are_refused_where_nothing_is_trained(command, capsys):
    assert main(command("--score", "steps=3")) == 1
    assert "leave out steps=3" in capsys.readouterr().err


def test_the_shipped_cards_can_be_measured_again():
    from tests.app_process import ROOT

    for path in sorted((ROOT / "assets" / "adapters").glob(f"*/{CARD}")):
        card = path.read_text(encoding="utf-8")
        again = with_scores(card, path.parent.name, {"new": 1.0}, {}, "bf16 on cpu")
        assert "| new | 1 | - |" in again and "(bf16 on cpu)" in again
        for part in ("Held-out loss: ", "## How it was made"):
            assert again.split(part)[1:] == card.split(part)[1:]
