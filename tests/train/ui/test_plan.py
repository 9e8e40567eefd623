"""Plans and metrics of the Train tab: names, commands, and what is shown of a run."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from train.config import RecipeFile, read_recipe, recipe_text
from train.ui import texts
from train.ui.charts import run_html
from train.ui.plan import RunPlan
from train.ui.runs import RECIPE, RunProgress, RunRecord, TrainingRun, read_metrics


def plan_of(settings: dict[str, Any] | None = None, **changes: Any) -> RunPlan:
    """settings: those of a sample."""
    data = Path("a.jsonl")
    return RunPlan(**{"source": data, "shown": "a.jsonl", "name": "n", "settings": settings or {}, **changes})


def recipe_of(name: str, **changes: Any) -> RecipeFile:
    recipe = plan_of(name=name, steps=1000).recipe(Path("a.jsonl"))
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **changes))


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(shown="my data.jsonl"),
        plan_of(name="yes", description="Says: 'ahoy' \"#1\" $HOME; & more"),
        plan_of({"preset": "small", "vision": {"hidden": 32}, "data": {"validation": 0.2}}, pictures=True),
        plan_of({"preset": "quick", "steps": 60}, template="alpaca", steps=60),
    ],
)
def test_the_command_makes_the_same_recipe_as_the_tab(plan, tmp_path):
    recipe = read_recipe(None, shlex.split(plan.command())[3:])
    assert recipe == plan.recipe(Path(plan.shown))
    (tmp_path / RECIPE).write_text(recipe_text(recipe))
    assert read_recipe(tmp_path / RECIPE, []) == recipe
    assert recipe.train.name == plan.name and recipe.train.description == plan.description
    elsewhere = dataclasses.replace(plan, base="/srv/models/llama")
    assert "--base /srv/models/llama" in elsewhere.command() and "--base llama" in elsewhere.command(public=True)


def shown(progress: RunProgress, state: Any = "training", **settings: Any) -> str:
    return run_html(TrainingRun("n", state, RunRecord(), recipe_of("n", **settings), progress, "", True, "1"))


def test_progress_is_read_while_metrics_are_written(tmp_path):
    lines = [
        {"step": 0, "untrained_loss": 3.0, "evaluation_seconds": 2.0},
        *({"step": i, "loss": 3 - i, "largest_gate": 0.1, "seconds": i / 2 + 9} for i in (1, 2, 3)),
        {"step": 3, "held_out_loss": 1.5, "evaluation_seconds": 2.0},
    ]  # fmt: skip
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "lo')
    progress = read_metrics(file)
    assert (progress.step, progress.untrained, progress.kept("best")) == (3, 3.0, (3, 1.5))
    assert progress.losses == ((1, 2.0), (2, 1.0), (3, 0.0))
    assert progress.seconds_left(10, 4) == pytest.approx(7 * 0.5 + 2 * 2.0)  # the slow first step does not count
    html = shown(progress)
    blind = dataclasses.replace(progress, held_out=())
    assert (
        texts.NONE_HELD_OUT in shown(blind, "ended") and texts.NONE_HELD_OUT not in shown(progress, "ended") + html
    )
    assert "Step 3 of 1,000" in html and "<svg" in html and "3.00 before, 1.50 now" in html


@pytest.mark.parametrize(
    ("save", "last", "kept", "told"),
    [("best", 1.6, (40, 1.5), "by heart at step 40; the best is kept"),
     ("last", 1.6, (60, 1.6), ""), ("best", 1.51, (40, 1.5), "")],
)  # fmt: skip
def test_held_out_loss_that_has_turned_upward_is_told(save, last, kept, told):
    progress = RunProgress(held_out=((20, 2.0), (40, 1.5), (60, last)), evaluated=60)
    assert progress.kept(save) == kept
    assert told in shown(progress, save=save) and bool(told) == ("by heart" in shown(progress, save=save))


GOOD = '{"step": 1, "loss": 2.5, "seconds": 1.0}'


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "[" * 5000, '{"step": 1, "loss": NaN}', '{"step": 1, "loss": 1e999}', '{"step": -1, "loss": 1}',
     '{"step": 1, "loss": "2"}', '{"step": 1, "seconds": 1%s}' % ("0" * 400),
     '{"step": 1, "loss": 1.7e308}'],
)  # fmt: skip
def test_a_broken_line_of_metrics_is_passed_over(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n" + f"{line}\n{GOOD}\n".encode())
    progress = read_metrics(tmp_path / "metrics.jsonl")
    assert progress.losses[-1] == (1, 2.5) and progress.step == 1
    assert shown(progress) and shown(dataclasses.replace(progress, losses=progress.losses[:1]), "ended")
