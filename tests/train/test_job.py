"""Whole runs on files and on examples: killed, resumed, stopped, on two processes, on a full disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train.job
from adapter.base.template import Message
from adapter.method.checkpoint import CONFIG, WEIGHTS, load_adapter
from tests.app_process import wait_until
from tests.tiny_models import random_llama
from train.__main__ import main
from train.config import TrainConfig
from train.input.examples import Example
from train.job import HeldOut, Stopped, in_main, rate_factor
from train.loop import new_adapter
from train.run_folder import METRICS, STATE, RunFolder, TrainError

ROOT = Path(__file__).parents[2]
WORDS = ("ab", "cd", "ef", "gh")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Text rows and image rows, one image that is unreadable, one record that is broken."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 40), colour).save(folder / f"{i}.png")
    (folder / "bad.png").write_text("no picture")
    rows: list[dict] = []
    for i in range(120):
        words = rng.choices(WORDS, k=rng.randint(1, 5))
        row = {"instruction": " ".join(words) + ">", "output": words[-1]}
        if i % 3 == 0:
            row = {"instruction": "see>", "output": WORDS[i % 4], "image": f"{i % 4}.png"}
        rows.append(row)
    rows[40] = {"instruction": "x>", "output": "y", "image": "bad.png"}
    rows[77] = {"instruction": "x>"}
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


@pytest.fixture
def arguments(tiny_folder, data) -> Callable[..., list[str]]:
    """The arguments of `python -m train` for a run of 60 steps on the tiny base."""
    return lambda out, *more: [
        f"data={data}", "name=tiny", f"--base={tiny_folder}", "precision=fp32", "template=raw", "batch_size=6",
        "prompt_length=4", "steps=60", "eval_every=10", "lr=0.02", "gate_lr=0.05", "vision.projection=global",
        "vision.hidden=16", "--device=cpu", f"--out={out}", *more,
    ]  # fmt: skip


def process(arguments: list[str], *launch: str, variables=None, **options) -> subprocess.Popen[str]:
    """`python -m train` as a process with one thread, as the tests themselves have."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(variables or {})}
    command = [sys.executable, "-m", *launch, "train", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **{"cwd": ROOT, **options})


def metrics(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def wait_for_step(run: subprocess.Popen[str], folder: Path, step: int) -> None:
    def reached() -> bool:
        assert run.poll() is None, run.communicate()
        return (folder / METRICS).exists() and (folder / METRICS).read_text().count('"loss"') >= step

    wait_until(reached)


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_bit_identical_to_one_that_never_stopped(arguments, tmp_path, capfd):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(arguments(whole)) == 0
    output = capfd.readouterr().out
    assert "skipped" in output and "bad.png" in output and "line 78" in output
    for step, more in ((13, []), (29, ["--resume"])):
        run = process(arguments(killed, "save_every=4", *more))
        wait_for_step(run, killed, step)
        run.kill()
        run.communicate()
        assert run.returncode == -signal.SIGKILL and (killed / STATE).exists()
    assert main(arguments(killed, "save_every=4", "--resume")) == 0
    assert "going on after step" in capfd.readouterr().out
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert metrics(killed, "loss") == metrics(whole, "loss") and len(metrics(whole, "loss")) == 60
    assert not (killed / STATE).exists()
    assert main(arguments(killed, "--resume")) == 1 and "holds no unfinished run" in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes_equal_one(arguments, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(arguments(one, "keep=0.4", "average=0.5")) == 0
    # Not `accelerate launch --cpu`, which starts a single process unless it is given MPI.
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    both = process(arguments(two, "keep=0.4", "average=0.5"), *launch)
    _, errors = both.communicate()
    assert both.returncode == 0, errors
    assert metrics(two, "loss") == pytest.approx(metrics(one, "loss"), rel=1e-3, abs=1e-4)
    assert metrics(two, "divergence") == pytest.approx(metrics(one, "divergence"), rel=1e-2, abs=1e-4)
    assert metrics(two, "held_out_loss") == pytest.approx(metrics(one, "held_out_loss"), rel=1e-3)
    left, right = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_two_machines_without_a_shared_disk_stop_resume_and_end(arguments, tmp_path):
    """As two nodes: each process has a folder of its own, and only the first writes into it."""
    small = ["vision=", "steps=30", "accumulate=2"]
    one = tmp_path / "one"
    assert main(arguments(one, *small)) == 0
    folders = tmp_path / "first", tmp_path / "second"

    def start(*more: str) -> list[subprocess.Popen[str]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        world |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        return [
            process(arguments(folder, *small, *more), variables={**world, "RANK": str(rank)})
            for rank, folder in enumerate(folders)
        ]

    nodes = start()
    wait_for_step(nodes[0], folders[0], 8)
    nodes[1].send_signal(signal.SIGINT)  # one of them is enough
    errors = [node.communicate()[1] for node in nodes]
    assert [node.returncode for node in nodes] == [130, 130], errors
    nodes = start("--resume")
    errors = [node.communicate()[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert (folders[0] / WEIGHTS).exists() and not folders[1].exists()
    assert metrics(folders[0], "loss") == pytest.approx(metrics(one, "loss"), rel=1e-3, abs=1e-4)


@pytest.fixture
def nodes(data, tiny_folder, tmp_path) -> list[Path]:
    """Two machines' disks: each has its copies of data and base, and nothing of the other's."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        shutil.copytree(data.parent, folder / "data")
        shutil.copytree(tiny_folder, folder / "base")
        (folder / "recipe.yaml").write_text("warmup: 0.1")
    return folders


def own_disk(folder: Path) -> dict[str, str]:
    """Variables of a process in that folder that otherwise would name a folder that both share."""
    names = ("HF_HOME", "LLAMA_ADAPTER_CACHE", "LLAMA_ADAPTER_FEATURES", "LLAMA_ADAPTER_RUNS")
    return {"PYTHONPATH": str(ROOT), **{name: str(folder / "home" / name) for name in names}}


NOT_THE_SAME = "do not train the same run: their settings, base, data"
ON_A_NODE = ["--config=recipe.yaml", "data=data/rows.jsonl", "--base=base", "vision=", "steps=30", "accumulate=2"]


@pytest.mark.slow
def test_accelerate_trains_on_two_nodes(arguments, tmp_path, nodes):
    """By the commands of docs/cluster.md: alike with one process, stopped on the main node and resumed."""
    one = tmp_path / "one"
    assert main(arguments(one, "vision=", "steps=30", "accumulate=2", "warmup=0.1")) == 0

    def start(*more: str) -> list[subprocess.Popen[str]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        launch = "accelerate.commands.accelerate_cli launch --multi_gpu --num_machines 2 --num_processes 2"
        launch += f" --main_process_ip 127.0.0.1 --main_process_port {port} --mixed_precision no --machine_rank"
        return [
            process(arguments("run", *ON_A_NODE, *more), *launch.split(), str(rank), "-m",
                    variables=own_disk(folder), cwd=folder)
            for rank, folder in enumerate(nodes)
        ]  # fmt: skip

    run = nodes[0] / "run"
    launched = start()
    wait_for_step(launched[0], run, 8)
    launched[0].send_signal(signal.SIGTERM)
    errors = [launcher.communicate()[1] for launcher in launched]
    assert 0 not in [launcher.returncode for launcher in launched], errors
    assert (run / STATE).exists(), errors
    launched = start("--resume")
    errors = [launcher.communicate()[1] for launcher in launched]
    assert [launcher.returncode for launcher in launched] == [0, 0], errors
    assert not (nodes[1] / "run").exists() and not (run / STATE).exists()
    assert len(metrics(run, "loss")) == 30
    assert metrics(run, "loss") == pytest.approx(metrics(one, "loss"), rel=1e-3, abs=1e-4)
    left, right = load_file(one / WEIGHTS), load_file(run / WEIGHTS)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-2, atol=1e-3)


def lack_data(node: Path) -> str:
    (node / "data" / "rows.jsonl").unlink()
    return "there is no file or folder 'rows.jsonl'"


def lack_base(node: Path) -> str:
    shutil.rmtree(node / "base")
    return "has failed"


def lack_recipe(node: Path) -> str:
    (node / "recipe.yaml").unlink()
    return "Process 1 of 2 has failed"


def have_other_settings(node: Path) -> str:
    (node / "recipe.yaml").write_text("warmup: 0.5")
    return NOT_THE_SAME


def have_other_data(node: Path) -> str:
    rows = node / "data" / "rows.jsonl"
    rows.write_text(rows.read_text().replace("ab", "ba"))
    return NOT_THE_SAME


def have_another_base(node: Path) -> str:
    random_llama(random_norms=True).save_pretrained(node / "base")
    return NOT_THE_SAME


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [lack_recipe, lack_data, lack_base, have_other_settings, have_other_data, have_another_base]
)
def test_what_one_node_lacks_ends_the_run_on_both(arguments, nodes, change):
    sentence = change(nodes[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    processes = [
        process(
            arguments("run", *ON_A_NODE), variables={**own_disk(folder), **world, "RANK": str(rank)}, cwd=folder
        )
        for rank, folder in enumerate(nodes)
    ]
    errors = [one.communicate()[1] for one in processes]
    assert [one.returncode for one in processes] == [1, 1], errors
    assert sentence in errors[0] and "Traceback" not in errors[0] + errors[1], errors
    assert not (nodes[0] / "run" / METRICS).exists()


@pytest.mark.slow
def test_ctrl_c_saves_and_names_the_way_to_resume(arguments, tmp_path):
    out = tmp_path / "run"
    run = process(arguments(out, "eval_every=1000", "steps=4000"))
    wait_for_step(run, out, 5)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate()
    assert run.returncode == 130 and "--resume" in errors
    assert (out / STATE).stat().st_size < 2_000_000


@pytest.mark.slow
def test_a_full_disk_loses_a_save_but_not_the_run(arguments, tmp_path):
    """Files may not grow over 200 kB: state.pt is larger, and the adapter is not."""

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    run = process(arguments(tmp_path / "run", "steps=20"), preexec_fn=limit_file_size)
    output, errors = run.communicate()
    assert "cannot be saved" in output and "Training goes on" in output
    assert run.returncode == 1 and "free some room" in errors
    assert load_adapter(tmp_path / "run").gates.abs().max() > 0


@pytest.mark.parametrize("error", [TrainError("The disk is full.", "/dev/sda"), OSError("of another kind")])
def test_what_fails_in_the_first_process_fails_in_all(monkeypatch, error):
    """By two processes whose group is a list."""
    sent: list[Any] = []

    def broadcast(values):
        sent.append(values)
        return sent[0]

    monkeypatch.setattr(train.job, "broadcast_object_list", broadcast)

    def work():
        raise error

    for is_main in (True, False):
        process = types.SimpleNamespace(num_processes=2, is_main_process=is_main)
        with pytest.raises((TrainError, OSError)) as raised:
            in_main(process, work if is_main else lambda: pytest.fail("work of the first process"))
        assert is_main is (raised.value is error)
        assert isinstance(error, OSError) or str(raised.value) == "The disk is full."


# On generated examples.


ECHO = TrainConfig("echo", steps=12, batch_size=4, prompt_length=4, template="raw", eval_every=4, held_out=8)


def examples(split):
    rng = random.Random(split)
    count = 10**6 if split == "train" else 16
    return (Example((Message("user", f"{w}>"),), w) for w in (rng.choice(WORDS) for _ in range(count)))


@pytest.fixture
def train_echo(tiny_base, tmp_path):
    """Trains on generated words with changes to ECHO; returns the adapter and the held-out loss."""

    def run(folder="run", resume=False, finish=lambda *_: None, **changes):
        config = dataclasses.replace(ECHO, **changes)
        adapter = new_adapter(config, tiny_base)
        return train.job.train(
            config, tiny_base, examples, tmp_path / folder, adapter, resume=resume, finish=finish
        )

    return run


def test_a_folder_in_use_is_refused(train_echo, tmp_path):
    other = RunFolder(tmp_path / "run")
    other.open(resume=False)
    with pytest.raises(TrainError, match="in use by another run"):
        train_echo()
    other.close()


def test_a_folder_that_cannot_be_written_is_named(train_echo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot be written"):
        train_echo("file/run")


@pytest.fixture
def stopped_run(train_echo, tmp_path, stop_after) -> Path:
    """The folder of a run that was asked to stop after its fifth step."""
    stop_after(5)
    with pytest.raises(Stopped, match="--resume"):
        train_echo()
    return tmp_path / "run"


def test_an_unfinished_run_is_resumed_with_its_own_settings_only(train_echo, stopped_run):
    with pytest.raises(TrainError, match="holds an unfinished run"):
        train_echo()
    with pytest.raises(TrainError, match="lr was 0.01 and is 0.5"):
        train_echo(resume=True, lr=0.5)
    resumed, held_out = train_echo(resume=True)
    whole, whole_held_out = train_echo("whole")
    assert held_out == whole_held_out and torch.equal(resumed.prompts, whole.prompts)


def test_a_damaged_state_is_named(train_echo, stopped_run):
    state = stopped_run / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainError, match=r"state.pt' cannot be read"):
        train_echo(resume=True)


def test_the_best_adapter_is_kept_and_training_stops_when_nothing_improves(train_echo, tmp_path):
    _, held_out = train_echo(steps=200, lr=1.0, gate_lr=1.0, patience=2)
    losses = metrics(tmp_path / "run", "held_out_loss")
    assert held_out.loss == held_out.best == min(losses) and len(losses) == losses.index(min(losses)) + 3 < 50
    assert held_out.step == held_out.best_step == 4 * (losses.index(min(losses)) + 1)
    assert (held_out.last, held_out.last_step) == (losses[-1], 4 * len(losses))


@pytest.fixture
def measured(monkeypatch) -> None:
    """Held-out losses of 9 before the first step and 3, 2 and 4 after steps 4, 8 and 12, whatever is trained."""
    losses = itertools.cycle([9.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr(train.job, "evaluate", lambda *_: (next(losses), 1))


def test_the_adapter_is_kept_that_is_asked_for(train_echo, tmp_path, measured):
    best, held_out = train_echo("best")
    assert held_out == HeldOut(loss=2, step=8, best=2, best_step=8, last=4, last_step=12)
    last, held_out = train_echo("last", save="last")
    assert held_out == HeldOut(loss=4, step=12, best=2, best_step=8, last=4, last_step=12)
    assert not torch.equal(best.prompts, last.prompts)
    for adapter, folder in ((best, "best"), (last, "last")):
        assert torch.equal(adapter.prompts, load_adapter(tmp_path / folder).prompts)


def test_a_best_adapter_that_could_not_be_saved_is_not_said_to_be_kept(
    train_echo, tmp_path, measured, monkeypatch, capsys
):
    """The disk is full while the adapter of the lowest loss is to be saved."""
    save_adapter, tries = RunFolder.save_adapter, itertools.count(1)

    def full_at_the_second(self, adapter):
        if next(tries) == 2:
            raise TrainError("The disk is full.")
        save_adapter(self, adapter)

    monkeypatch.setattr(RunFolder, "save_adapter", full_at_the_second)
    trained, held_out = train_echo()
    assert "Training goes on" in capsys.readouterr().out
    assert (held_out.loss, held_out.step) == (3, 4)
    assert torch.equal(trained.prompts, load_adapter(tmp_path / "run").prompts)


# Learning rate, time and precision of a step.


@pytest.mark.parametrize("steps, warmup, rising", [(10, 0.3, 3), (10, 0, 0), (1, 0.05, 0), (12, 0.05, 0)])
def test_the_rate_moves_the_first_step_and_is_zero_after_the_last(train_echo, tmp_path, steps, warmup, rising):
    factors = [rate_factor(step, steps, warmup) for step in range(steps + 1)]
    assert factors[0] > 0 and factors[rising] == max(factors) == 1 and factors[-1] == pytest.approx(0)
    assert factors[:rising] == sorted(factors[:rising]) and factors[rising:] == sorted(factors[rising:])[::-1]
    train_echo(steps=steps, warmup=warmup, lr=0.5)
    assert metrics(tmp_path / "run", "lr") == pytest.approx([0.5 * factor for factor in factors[:-1]])


def test_the_first_step_moves_the_gates(train_echo, tmp_path):
    train_echo(steps=1, warmup=0.5)
    assert metrics(tmp_path / "run", "largest_gate")[0] > 0.005


def test_the_time_of_steps_is_all_but_evaluations_and_saves(train_echo, tmp_path, monkeypatch):
    """By a clock of the test: an hour for each wait for rows, a day for each evaluation and each save.

    The time of training is of all of them, but for the last save.
    """
    clock, finished = [0.0], []
    clocks = types.SimpleNamespace(perf_counter=lambda: clock[0], process_time=lambda: clock[0] / 2)
    monkeypatch.setattr(train.job, "time", clocks)

    def takes(owner, name, seconds):
        function = getattr(owner, name)

        def slow(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    takes(train.job.Prefetch, "__next__", 3_600)
    takes(train.job, "evaluate", 86_400)
    takes(RunFolder, "save", 86_400)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_echo(finish=lambda _, __, time: finished.append(time))
    seconds = metrics(tmp_path / "run", "seconds")
    assert seconds == [3_600.0 * step for step in range(1, 13)]
    assert finished[0].wall == clock[0] > 12 * 3_600 + 3 * 86_400
    assert finished[0].processor == clock[0] / 2
    # A run that is resumed has also taken the time before; the resumed one reads no rows.
    before = clock[0]
    train_echo(resume=True, finish=lambda _, __, time: finished.append(time))
    assert finished[1].wall == pytest.approx(before - 86_400 + clock[0] - before)


def test_a_first_step_that_is_not_finite_brings_no_warning_of_torch(train_echo, monkeypatch, recwarn, capsys):
    total_loss, calls = train.job.total_loss, itertools.count()
    monkeypatch.setattr(
        train.job, "total_loss", lambda *args: total_loss(*args) * (1.0 if next(calls) else float("nan"))
    )
    train_echo()
    assert "not finite at step 1;" in capsys.readouterr().out
    assert [w for w in recwarn if "lr_scheduler" in str(w.message)] == []


def test_steps_with_gradients_that_are_not_finite_are_left_out_and_then_end_the_run(
    tiny_base, tmp_path, monkeypatch, capsys
):
    adapter = new_adapter(ECHO, tiny_base)
    prompts = adapter.prompts.detach().clone()
    nan_loss = lambda model, adapter, *_: (adapter.prompts.sum() + adapter.gates.sum()) * float("nan")  # noqa: E731
    monkeypatch.setattr(train.job, "total_loss", nan_loss)
    with pytest.raises(TrainError, match="not finite"):
        train.job.train(ECHO, tiny_base, examples, tmp_path / "run", adapter)
    assert torch.equal(adapter.prompts, prompts)
    assert "the step is left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, warning",
    [({"steps": 50, "gate_lr": 1e-9}, "gates have not moved"), ({"gate_lr": 2.0}, "saturated")],
)
def test_gates_that_do_not_learn_are_warned_of(train_echo, capsys, changes, warning):
    train_echo(**changes)
    assert warning in capsys.readouterr().out


def test_micro_batches_equal_the_whole_batch(train_echo):
    whole, pieces = (train_echo(str(n), batch_size=6, accumulate=n)[0] for n in (1, 3))
    torch.testing.assert_close(whole.gates, pieces.gates, rtol=1e-3, atol=1e-4)


def test_only_the_adapter_and_metrics_are_left_of_a_finished_run(train_echo, tmp_path):
    train_echo()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names - {".lock"} == {CONFIG, WEIGHTS, METRICS}
