"""Whole runs: killed, resumed, stopped, on two nodes, on a full disk; and what a step does to time and rates."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train.__main__
import train.job
import train.processes
from adapter.method.checkpoint import WEIGHTS, load_adapter
from tests.app_process import PATIENCE, free_port
from tests.train.conftest import ECHO, WORDS, examples, signal_after
from train.__main__ import main
from train.config import METRICS, STATE
from train.input.features import FOLDER_VARIABLE
from train.job import Job, Outcome, Stopped
from train.loop import new_adapter, rate_factor
from train.run_folder import RunFolder, TrainError

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])  # all processes are copies of one that has imported this


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Text rows and image rows, one image that is unreadable, one record that is broken."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 40), colour).save(folder / f"{i}.png")
    (folder / "bad.png").write_text("no picture")
    rows: list[dict] = []
    for i in range(60):
        words = rng.choices(WORDS, k=rng.randint(1, 5))
        row = {"instruction": " ".join(words) + ">", "output": words[-1]}
        if i % 3 == 0:
            row = {"instruction": "see>", "output": WORDS[i % 4], "image": f"{i % 4}.png"}
        rows.append(row)
    rows[20] = {"instruction": "x>", "output": "y", "image": "bad.png"}
    rows[37] = {"instruction": "x>"}
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


@pytest.fixture
def arguments(tiny_folder, data) -> Callable[..., list[str]]:
    """The arguments of `python -m train` for a run of 20 steps on the tiny base."""
    return lambda out, *more: [
        f"data={data}", "name=tiny", f"--base={tiny_folder}", "precision=fp32", "template=raw", "batch_size=6",
        "prompt_length=4", "steps=20", "eval_every=5", "lr=0.02", "gate_lr=0.05", "vision.projection=global",
        "vision.hidden=16", "keep=0.4", "average=0.5", "--device=cpu", f"--out={out}", *more,
    ]  # fmt: skip


def run_there(arguments: list[str], folder: Path, stop: tuple[int, int] | None, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    if stop is not None:
        signal_after(pytest.MonkeyPatch(), *stop)
    with open("errors.txt", "w") as file, contextlib.redirect_stderr(file):
        sys.exit(main(arguments))


def processes(*runs: tuple[Any, ...]) -> list[int | None]:
    """Exit statuses of processes with `python -m train`, as `run_there` wants it."""
    started = [SERVER.Process(target=run_there, args=run) for run in runs]
    for process in started:
        process.start()
    for process in started:
        process.join(PATIENCE)
        process.kill()
    return [process.exitcode for process in started]


def metrics(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_bit_identical_to_one_that_never_stopped(arguments, tmp_path, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(arguments(whole)) == 0
    output = capsys.readouterr().out
    assert "skipped" in output and "bad.png" in output and "line 38" in output
    dying = (arguments(killed, "checkpoint_every=3"), tmp_path, (7, signal.SIGKILL), {})
    better = tmp_path / "better"  # than untrained, at step 5: no other reason to save it
    early = (arguments(better, "save_every=100"), tmp_path, (7, signal.SIGKILL), {})
    assert processes(dying, early) == 2 * [-signal.SIGKILL]
    assert (killed / STATE).exists() and (better / STATE).exists()
    shutil.rmtree(os.environ[FOLDER_VARIABLE])  # pictures are encoded again
    assert main(arguments(killed, "save_every=3", "--resume")) == 0
    assert "going on after step 6 of 20" in capsys.readouterr().out
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert metrics(killed, "loss") == metrics(whole, "loss") and len(metrics(whole, "loss")) == 20
    assert not (killed / STATE).exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files may not grow over 100 kB: state.pt is larger, and the adapter is not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_a_save_but_not_the_run(arguments, tmp_path, small_files, capsys):
    assert main(arguments(tmp_path / "run", "vision=", "keep=0", "prompt_length=100")) == 1
    output = capsys.readouterr()
    assert "cannot be saved" in output.out and "Training goes on" in output.out
    assert "Free some room" in output.err
    assert load_adapter(tmp_path / "run").gates.abs().max() > 0
    with contextlib.redirect_stdout(Mock(**{"write.side_effect": OSError})):
        train.job.say("The Train tab's messages are on that disk too.")


def test_a_batch_systems_log_can_be_read_while_the_run_goes_on(tmp_path):
    with open(tmp_path / "log", "w") as log, contextlib.redirect_stdout(log):
        train.job.say("step 100")
        assert (tmp_path / "log").read_text() == "step 100\n"


@pytest.fixture
def nodes(data, tiny_folder, tmp_path) -> list[Path]:
    """Two machines' disks: each has its copies of data and base, and nothing of the other's."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        shutil.copytree(data.parent, folder / "data")
        shutil.copytree(tiny_folder, folder / "base")
        (folder / "recipe.yaml").write_text("warmup: 0.1")
    return folders


def on_both(arguments: Callable[..., list[str]], nodes: list[Path], *more: str, stop=None) -> list[int | None]:
    """Exit statuses of `python -m train` on both nodes, of which one may be stopped."""
    own = arguments("run", "--config=recipe.yaml", "data=data/rows.jsonl", "--base=base", *more)
    group = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return processes(*((own, nodes[i], None if i else stop, {**group, "RANK": str(i)}) for i in range(2)))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda node: (node / "data" / "rows.jsonl").unlink(), "There is no file or folder 'rows.jsonl'"),
        (
            lambda node: (node / "recipe.yaml").write_text("warmup: 0.1\nsave_every: 3"),
            "do not train the same run: their settings",
        ),
    ],
    ids=["no data", "other settings"],
)
def test_what_one_node_lacks_ends_the_run_on_both(arguments, nodes, change, sentence):
    change(nodes[1])
    assert on_both(arguments, nodes, "vision=") == [1, 1]
    assert sentence in (nodes[0] / "errors.txt").read_text()
    assert not (nodes[0] / "run" / METRICS).exists() and not (nodes[1] / "run").exists()


@pytest.mark.slow
def test_two_nodes_without_a_shared_disk_stop_resume_and_equal_one(arguments, tmp_path, nodes):
    """Stopped on one node, both stop. A batch without pictures leaves a node without some gradients."""
    one, run = tmp_path / "one", nodes[0] / "run"
    more = ["steps=8", "accumulate=2", "warmup=0.1"]
    assert main(arguments(one, *more)) == 0
    assert on_both(arguments, nodes, *more, stop=(2, signal.SIGTERM)) == [130, 130]
    assert (run / STATE).exists()
    assert on_both(arguments, nodes, *more, "--resume") == [0, 0]
    assert not (nodes[1] / "run").exists() and not (run / STATE).exists()
    for name in ("loss", "held_out_loss"):
        assert metrics(run, name) == pytest.approx(metrics(one, name), rel=1e-3, abs=1e-4)
    right = load_file(run / WEIGHTS)
    for name, tensor in load_file(one / WEIGHTS).items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-2, atol=1e-3)


# On generated examples.


def test_a_folder_is_refused_that_is_in_use_unfinished_damaged_or_no_folder(train_echo, tmp_path, stop_after):
    other = RunFolder(tmp_path / "run")
    other.open(resume=False)
    with pytest.raises(TrainError, match="in use by another run"):
        train_echo()
    other.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot be written"):
        train_echo("file/run")
    stop_after(5)
    with pytest.raises(Stopped, match="stopped after step 5 of .*--resume"):
        train_echo()
    with pytest.raises(TrainError, match="holds an unfinished run"):
        train_echo()
    state = tmp_path / "run" / STATE
    whole = state.read_bytes()
    for damaged in (whole[:1000], whole.replace(b"echo", b"ecko", 1)):  # the name of the run
        state.write_bytes(damaged)
        with pytest.raises(TrainError, match=r"state.pt' cannot be read"):
            train_echo(resume=True)
    state.unlink()
    (tmp_path / "run" / METRICS).unlink()  # now it is an adapter that no run has made
    with pytest.raises(TrainError, match="holds a finished adapter"):
        train_echo()


def test_the_adapter_is_kept_that_is_asked_for(train_echo, tmp_path, monkeypatch):
    losses = itertools.cycle([9.0, 3.0, 2.0, 4.0])  # held-out, before the first step and after steps 4, 8 and 12
    monkeypatch.setattr(train.job, "evaluate", lambda *_: (next(losses), 1))
    best, held_out = train_echo("best", steps=200, patience=1)
    assert held_out == Outcome(2, 8, 12), "nothing improves any more"
    last, held_out = train_echo("last", save="last")
    assert held_out == Outcome(4, 12, 12)
    assert not torch.equal(best.prompts, last.prompts)
    for adapter, folder in ((best, "best"), (last, "last")):
        assert torch.equal(adapter.prompts, load_adapter(tmp_path / folder).prompts)


# Learning rate, time and precision of a step.


@pytest.mark.parametrize("steps, warmup, rising", [(10, 0.3, 3), (1, 0.05, 0)])
def test_the_rate_moves_the_first_step_and_is_zero_after_the_last(train_echo, tmp_path, steps, warmup, rising):
    factors = [rate_factor(step, steps, warmup) for step in range(steps + 1)]
    assert factors[0] > 0 and factors[rising] == max(factors) == 1 and factors[-1] == pytest.approx(0)
    assert factors[:rising] == sorted(factors[:rising]) and factors[rising:] == sorted(factors[rising:])[::-1]
    train_echo(steps=steps, warmup=warmup, lr=0.5)
    assert metrics(tmp_path / "run", "lr") == pytest.approx([0.5 * factor for factor in factors[:-1]])


def test_a_run_whose_last_step_left_no_numbers_fails(train_echo):
    with pytest.raises(TrainError, match="not finite. Use a smaller learning rate"):
        train_echo(steps=2, lr=1e30)


def test_steps_with_gradients_that_are_not_finite_are_left_out_and_then_end_the_run(
    tiny_base, tmp_path, monkeypatch, capsys
):
    adapter = new_adapter(ECHO, tiny_base)
    prompts = adapter.prompts.detach().clone()
    nan_loss = lambda model, adapter, *_: (adapter.prompts.sum() + adapter.gates.sum()) * float("nan")  # noqa: E731
    monkeypatch.setattr(train.job, "total_loss", nan_loss)
    for steps in (ECHO.steps, 4):
        config, folder = dataclasses.replace(ECHO, steps=steps), RunFolder(tmp_path / f"run{steps}")
        with pytest.raises(TrainError, match=f"{min(steps, 10)} steps in a row had a gradient that is not finite"):
            Job(config, tiny_base, examples, folder, adapter).run()
    assert torch.equal(adapter.prompts, prompts)
    assert "the step is left out" in capsys.readouterr().out
