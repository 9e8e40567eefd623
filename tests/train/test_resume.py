"""What a resumed run must have in common with the one that was stopped, and which sentence refuses another."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import train.__main__
from adapter.method.checkpoint import CARD, WEIGHTS
from train.__main__ import main
from train.run_folder import CHECKPOINTS, STATE, RunFolder

MORE = ', {"instruction": "60>", "output": "0"}]'  # the end of a file with one more record


@pytest.fixture
def refused_before_loading(run, monkeypatch, capsys) -> Callable[..., str]:
    """Runs the command, which fails before it loads the base. Returns its error."""

    def refused(*arguments: str, **options: str) -> str:
        with monkeypatch.context() as patch:
            for name in ("load_to_train", "load_base"):
                patch.setattr(train.__main__, name, lambda *_: pytest.fail("a base was loaded"))
            assert run(*arguments, **options) == 1
        return capsys.readouterr().err

    return refused


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    "change, more, sentence",
    [
        (lambda rows: rows.write_text(rows.read_text()[:-1] + MORE), (), "its data has changed since it started"),
        (lambda _: None, ("data.validation=0.5",), "or which of it is held out"),
        (lambda _: None, ("lr=0.5", "seed=3"), "lr was 0.01 and is 0.5; seed was 0 and is 3"),
    ],
    ids=["data", "split", "settings"],
)
def test_a_resumed_run_is_the_one_that_was_stopped(
    run, stop_after, refused_before_loading, rows, change, more, sentence
):
    stop_after(3)
    assert run() == 130
    change(rows)
    assert sentence in refused_before_loading(*more, "--resume")


def test_a_folder_is_neither_mistyped_nor_written_over(run, refused_before_loading, tmp_path):
    assert "'otu' holds no unfinished run" in refused_before_loading("--resume", out="otu")
    assert not (tmp_path / "otu").exists()
    (tmp_path / "out").mkdir()
    cut_off, own = (tmp_path / "out" / name for name in (".adapter.safetensors.0123abcd", ".bashrc.20240131"))
    for file in (cut_off, own):  # by a kill while it was saved, and the user's
        file.touch()
    (tmp_path / CARD).touch()
    assert f"holds a {CARD} of something else" in refused_before_loading(out="")
    assert run("checkpoint_every=2") == 0 and own.exists() and not cut_off.exists()
    assert "holds a finished adapter" in refused_before_loading()
    (tmp_path / "out" / CARD).unlink()
    own = tmp_path / "out" / CHECKPOINTS / "step-000002"
    assert "holds adapters in 'checkpoints'" in refused_before_loading() and own.exists()
    assert run(f"start_from={own}", out="other") == 0
    (tmp_path / "other" / CARD).unlink()
    own = tmp_path / "other"
    assert "start_from is 'other', which this run" in refused_before_loading(f"start_from={own}", out="other")
    (tmp_path / "recipe.yaml").write_text("seed: 1  # the user's")
    config = f"--config={tmp_path / 'recipe.yaml'}"
    assert "write over the recipe" in refused_before_loading(config, out="")


def test_a_run_that_is_killed_behind_its_first_numbered_adapter_goes_on(run, tmp_path, monkeypatch):
    assert run("checkpoint_every=2", out="whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_adapter", Mock(side_effect=KeyboardInterrupt))
        assert run("checkpoint_every=2") == 130
    assert run("checkpoint_every=2", "--resume") == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize("what", ["write_card", "_measure"])
def test_a_run_that_is_killed_after_its_last_step_can_be_completed(
    run, parrot_command, tmp_path, monkeypatch, capsys, what
):
    finish = run if what == "write_card" else lambda *more: main(parrot_command(*more))
    with monkeypatch.context() as patch:
        patch.setattr(train.__main__, what, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert finish() == 130
    assert "--resume goes on" in capsys.readouterr().err
    before = weights(tmp_path / "out")
    assert finish("--resume") == 0
    assert weights(tmp_path / "out") == before
    assert "after 6 of 6 steps" in (tmp_path / "out" / CARD).read_text()
    assert not (tmp_path / "out" / STATE).exists()


@pytest.mark.parametrize(
    "settings, changed",
    [
        ((), ("save_every=1", "gradient_checkpointing=true")),  # which changes no number
        (("average=0.9", "save=last", "accumulate=2", "tuning.norms=true"), ()),
    ],
)
def test_a_resumed_run_ends_with_the_bits_of_one_that_never_stopped(run, stop_after, tmp_path, settings, changed):
    assert run(*settings, out="whole") == 0
    stop_after(4)
    assert run(*settings) == 130
    assert run(*settings, *changed, "--resume") == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_resumed_run_keeps_the_precision_that_was_chosen_for_it(run, stop_after, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert run("precision=auto", out="whole") == 0
    stop_after(3)
    assert run("precision=auto") == 130
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert run("precision=auto", "--resume") == 0
    assert "precision fp32: as when the run started" in capsys.readouterr().out
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
