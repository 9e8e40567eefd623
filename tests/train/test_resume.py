"""What a resumed run must have in common with the one that was stopped, and which sentence refuses another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train.__main__
from adapter.method.checkpoint import CARD, WEIGHTS
from train.__main__ import main
from train.run_folder import CHECKPOINTS, STATE


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


def add_a_record(rows: Path) -> None:
    records = json.loads(rows.read_text())
    rows.write_text(json.dumps([*records, {"instruction": "60>", "output": "0"}]))


@pytest.mark.parametrize(
    "change, more, sentence",
    [
        (add_a_record, (), "its data has changed since it started"),
        (lambda _: None, ("data.validation=0.5",), "or which of it is held out"),
        (lambda _: None, ("precision=bf16",), "precision was fp32 and is bf16"),
        (lambda _: None, ("lr=0.5", "seed=3"), "lr was 0.01 and is 0.5; seed was 0 and is 3"),
        (lambda _: None, ("tuning.norms=true",), "tuning was not set and is set"),
    ],
    ids=["data", "split", "precision", "settings", "groups"],
)
def test_a_resumed_run_is_the_one_that_was_stopped(
    run, stop_after, refused_before_loading, rows, change, more, sentence
):
    stop_after(3)
    assert run() == 130
    change(rows)
    assert sentence in refused_before_loading(*more, "--resume")


def test_a_resumed_run_has_the_same_base(run, stop_after, refused_before_loading, tiny_folder, tmp_path):
    """The other base is a sibling: an adapter of one can be used with the other."""
    sibling = tmp_path / "sibling"
    shutil.copytree(tiny_folder, sibling)
    tensors = load_file(sibling / "model.safetensors")
    tensors["model.norm.weight"] += 0.5
    save_file(tensors, sibling / "model.safetensors", metadata={"format": "pt"})
    stop_after(3)
    assert run() == 130
    assert "and is sibling (other weights)" in refused_before_loading(f"--base={sibling}", "--resume")


def test_a_resumed_run_starts_from_the_same_adapter(run, stop_after, refused_before_loading, tmp_path):
    assert run(out="first") == 0
    start = f"start_from={tmp_path / 'first'}"
    assert "which this run would write over" in refused_before_loading(start, out="first")
    stop_after(3)
    assert run(start) == 130
    assert "start_from is not the adapter" in refused_before_loading("--resume")
    assert run("lr=0.5", out="first") == 0
    assert "start_from is not the adapter" in refused_before_loading(start, "--resume")


def test_a_folder_is_neither_mistyped_nor_written_over(run, refused_before_loading, tmp_path):
    assert "'otu' holds no unfinished run" in refused_before_loading("--resume", out="otu")
    assert not (tmp_path / "otu").exists()
    assert run("checkpoint_every=2") == 0
    own = tmp_path / "out" / CHECKPOINTS / "step-000002"
    assert "start_from is 'step-000002', which this run" in refused_before_loading(f"start_from={own}")
    assert run(f"start_from={own}", out="other") == 0


@pytest.mark.parametrize("what", ["write_card", "_measure"])
def test_a_run_that_is_killed_after_its_last_step_can_be_completed(
    run, parrot_command, tmp_path, monkeypatch, capsys, what
):
    """While its scores are measured, or before its card is written."""
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


def test_what_is_not_resumed_is_seen_in_the_bits(run, stop_after, tmp_path, monkeypatch):
    """The control of these tests: the moments of the optimiser begin anew."""
    assert run(out="whole") == 0
    stop_after(4)
    assert run() == 130
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda *_: None)
    assert run("--resume") == 0
    assert weights(tmp_path / "out") != weights(tmp_path / "whole")


def test_a_resumed_run_keeps_the_precision_that_was_chosen_for_it(run, stop_after, tmp_path, monkeypatch, capsys):
    """The run is moved to a machine where "auto" means another one."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert run("precision=auto", out="whole") == 0
    stop_after(3)
    assert run("precision=auto") == 130
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert run("precision=auto", "--resume") == 0
    assert "precision fp32: as when the run started" in capsys.readouterr().out
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_the_average_is_that_of_the_adapters_after_each_step(run, tmp_path):
    """It changes nothing about what is trained. Its decay grows: a short run is not mostly its first step."""
    assert run("save=last", "checkpoint_every=1", out="plain") == 0
    assert run("save=last", "checkpoint_every=1", "average=0.75", out="averaged") == 0
    plain, averaged = (
        [load_file(folder / WEIGHTS) for folder in sorted((tmp_path / out / CHECKPOINTS).iterdir())]
        for out in ("plain", "averaged")
    )
    expected = plain[0]
    for step in range(6):
        decay = min(0.75, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * plain[step][name] for name, value in expected.items()}
        torch.testing.assert_close(averaged[step], expected)
    assert load_file(tmp_path / "averaged" / WEIGHTS).keys() == expected.keys()
    torch.testing.assert_close(load_file(tmp_path / "averaged" / WEIGHTS), expected)


def test_a_resumed_run_keeps_its_loss_scale(run, stop_after, tmp_path, monkeypatch):
    """It doubles after every second step here."""
    scaler, scales = torch.amp.GradScaler, []
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *args, **options: scaler(*args, **{**options, "growth_interval": 2})
    )
    update = scaler.update
    monkeypatch.setattr(scaler, "update", lambda self: (update(self), scales.append(self.get_scale())))
    assert run("precision=fp16", out="whole") == 0
    stop_after(2)
    assert run("precision=fp16") == 130
    assert run("precision=fp16", "--resume") == 0
    assert scales[6:] == scales[:6] and scales[0] < scales[5]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_recipe_of_the_project_is_resumed_with_the_same_assignments(
    parrot_command, stop_after, tmp_path, monkeypatch, capsys
):
    stop_after(3)
    assert main(parrot_command("lr=0.02")) == 130
    with monkeypatch.context() as patch:
        patch.setattr(train.__main__, "load_to_train", lambda *_: pytest.fail("the base was loaded"))
        assert main(parrot_command("--resume")) == 1
        assert "lr was 0.02 and is 0.01" in capsys.readouterr().err
    assert main(parrot_command("lr=0.02", "--resume")) == 0
    assert not (tmp_path / "out" / STATE).exists()
