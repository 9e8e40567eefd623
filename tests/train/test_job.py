"""Whole runs: killed, resumed, stopped, on two nodes, on a full disk; and what a step does to time and rates."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train.__main__
import train.job
import train.processes
from adapter.base.template import Message
from adapter.method.checkpoint import WEIGHTS, load_adapter
from tests.app_process import PATIENCE, ROOT, free_port, wait_until
from tests.tiny_models import random_llama
from train.__main__ import main
from train.config import TrainConfig
from train.input.examples import Example
from train.job import Outcome, Stopped
from train.loop import new_adapter
from train.optimizer import rate_factor
from train.processes import sum_gradients
from train.run_folder import METRICS, STATE, RunFolder, TrainError

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
    assert "skipped" in output and "bad.png" in output and "line 38" in output
    run = process(arguments(killed, "save_every=3"))
    wait_for_step(run, killed, 7)
    run.kill()
    run.communicate()
    assert run.returncode == -signal.SIGKILL and (killed / STATE).exists()
    assert main(arguments(killed, "save_every=3", "--resume")) == 0
    assert "going on after step" in capfd.readouterr().out
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert metrics(killed, "loss") == metrics(whole, "loss") and len(metrics(whole, "loss")) == 20
    assert not (killed / STATE).exists()
    assert main(arguments(killed, "--resume")) == 1 and "holds no unfinished run" in capfd.readouterr().err


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
    assert "free some room" in output.err
    assert load_adapter(tmp_path / "run").gates.abs().max() > 0


# Several processes.


@pytest.fixture
def nodes(data, tiny_folder, tmp_path) -> list[Path]:
    """Two machines' disks: each has its copies of data and base, and nothing of the other's."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        shutil.copytree(data.parent, folder / "data")
        shutil.copytree(tiny_folder, folder / "base")
        (folder / "recipe.yaml").write_text("warmup: 0.1")
    return folders


class Group:
    """Two processes as threads, and the two ways in which they tell each other something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[list[Any]] = [[], []]
        self.barrier = threading.Barrier(2, timeout=PATIENCE)
        monkeypatch.setattr(train.processes, "gather_object", self.gather)
        monkeypatch.setattr(train.processes, "broadcast_object_list", lambda told: self.gather(told)[:1])
        monkeypatch.setattr(train.__main__, "_accelerator", self.accelerator)
        # transformers loads in one thread only: it replaces a method of its class meanwhile.
        loading, load = threading.Lock(), train.__main__.load_to_train

        def load_one_by_one(*arguments: Any) -> Any:
            with loading:
                return load(*arguments)

        monkeypatch.setattr(train.__main__, "load_to_train", load_one_by_one)

    def gather(self, told: list[Any]) -> list[Any]:
        self.told[self.rank] = told
        self.barrier.wait()
        found = copy.deepcopy([*self.told[0], *self.told[1]])  # as processes share nothing
        self.barrier.wait()
        return found

    def reduce(self, values: torch.Tensor, _: str) -> torch.Tensor:
        return torch.stack(self.gather([values])).sum(0)

    @property
    def rank(self) -> int:
        return int(threading.current_thread().name)

    def accelerator(self, *_: Any) -> Any:
        return types.SimpleNamespace(
            num_processes=2, process_index=self.rank, is_main_process=self.rank == 0, device=torch.device("cpu"),
            local_main_process_first=contextlib.nullcontext, reduce=self.reduce, trackers=[],
            log=lambda *_: None,
        )  # fmt: skip

    @staticmethod
    def arguments(arguments: Callable[..., list[str]], node: Path, *more: str) -> list[str]:
        own = [f"--config={node / 'recipe.yaml'}", f"data={node / 'data/rows.jsonl'}", f"--base={node / 'base'}"]
        return arguments(node / "run", *own, *more)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What `work` returns, or what it raises, of each rank."""
        outcomes: list[Any] = [None, None]

        def run(rank: int) -> None:
            try:
                outcomes[rank] = work(rank)
            except Exception as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=run, args=[rank], name=str(rank), daemon=True) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
        return outcomes


@pytest.fixture
def group(monkeypatch) -> Group:
    return Group(monkeypatch)


def test_gradients_and_figures_are_summed_over_processes_and_a_missing_gradient_is_zero(group):
    def work(rank: int) -> tuple[list[Any], list[float]]:
        parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
        parameters[rank].grad = torch.full_like(parameters[rank], 2.0 + rank)
        sums = sum_gradients(group.accelerator(), parameters, torch.tensor([1.0, rank]))
        return [p.grad.tolist() for p in parameters], sums.tolist()

    assert group.run(work) == 2 * [([[[2.0] * 3] * 2, [3.0] * 4], [2.0, 1.0])]


NOT_THE_SAME = "do not train the same run: their settings, base, data"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda node: (node / "data" / "rows.jsonl").unlink(), "there is no file or folder 'rows.jsonl'"),
        (lambda node: shutil.rmtree(node / "base"), "has failed"),
        (lambda node: (node / "recipe.yaml").write_text("warmup: 0.5"), NOT_THE_SAME),
        (lambda node: random_llama(random_norms=True).save_pretrained(node / "base"), NOT_THE_SAME),
    ],
    ids=["no data", "no base", "other settings", "another base"],
)
def test_what_one_node_lacks_ends_the_run_on_both(arguments, nodes, group, capsys, change, sentence):
    change(nodes[1])
    assert group.run(lambda rank: main(group.arguments(arguments, nodes[rank], "vision="))) == [1, 1]
    assert sentence in capsys.readouterr().err
    assert not (nodes[0] / "run" / METRICS).exists() and not (nodes[1] / "run").exists()


@pytest.mark.slow
def test_two_nodes_without_a_shared_disk_stop_resume_and_equal_one(arguments, tmp_path, nodes, monkeypatch):
    """Started by the command of docs/cluster.md and stopped on one node: alike with one process.

    They are resumed as two threads, which tell each other the same as two processes.
    """
    one, run = tmp_path / "one", nodes[0] / "run"
    more = ["steps=8", "accumulate=2", "warmup=0.1", "vision="]
    assert main(arguments(one, *more)) == 0
    launch = "accelerate.commands.accelerate_cli launch --multi_gpu --num_machines 2 --num_processes 2"
    launch += f" --main_process_ip 127.0.0.1 --main_process_port {free_port()} --mixed_precision no --machine_rank"

    def start(rank: int) -> subprocess.Popen[str]:
        own = ["--config=recipe.yaml", "data=data/rows.jsonl", "--base=base", *more]
        home = {name: f"home/{name}" for name in ("LLAMA_ADAPTER_CACHE", "LLAMA_ADAPTER_FEATURES")}
        variables = {"PYTHONPATH": str(ROOT), **home}
        by = [*launch.split(), str(rank), "-m"]
        return process(arguments("run", *own), *by, variables=variables, cwd=nodes[rank])

    launched = [start(rank) for rank in range(2)]
    wait_for_step(launched[0], run, 2)
    launched[0].send_signal(signal.SIGTERM)
    errors = [launcher.communicate()[1] for launcher in launched]
    assert 0 not in [launcher.returncode for launcher in launched], errors
    assert (run / STATE).exists(), errors
    group = Group(monkeypatch)
    assert group.run(lambda rank: main(group.arguments(arguments, nodes[rank], *more, "--resume"))) == [0, 0]
    assert not (nodes[1] / "run").exists() and not (run / STATE).exists()
    assert len(metrics(run, "loss")) == 8
    assert metrics(run, "loss") == pytest.approx(metrics(one, "loss"), rel=1e-3, abs=1e-4)
    assert metrics(run, "divergence") == pytest.approx(metrics(one, "divergence"), rel=1e-2, abs=1e-4)
    assert metrics(run, "held_out_loss") == pytest.approx(metrics(one, "held_out_loss"), rel=1e-3)
    left, right = load_file(one / WEIGHTS), load_file(run / WEIGHTS)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-2, atol=1e-3)


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
    with pytest.raises(Stopped, match="--resume"):
        train_echo()
    with pytest.raises(TrainError, match="holds an unfinished run"):
        train_echo()
    state = tmp_path / "run" / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainError, match=r"state.pt' cannot be read"):
        train_echo(resume=True)


@pytest.fixture
def measured(monkeypatch) -> None:
    """Held-out losses of 9 before the first step and 3, 2 and 4 after steps 4, 8 and 12, whatever is trained."""
    losses = itertools.cycle([9.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr(train.job, "evaluate", lambda *_: (next(losses), 1))


def test_the_adapter_is_kept_that_is_asked_for(train_echo, tmp_path, measured):
    best, held_out = train_echo("best", steps=200, patience=1)
    assert held_out == Outcome(2, 8, 12), "nothing improves any more"
    last, held_out = train_echo("last", save="last")
    assert held_out == Outcome(4, 12, 12)
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


@pytest.mark.parametrize("steps, warmup, rising", [(10, 0.3, 3), (1, 0.05, 0)])
def test_the_rate_moves_the_first_step_and_is_zero_after_the_last(train_echo, tmp_path, steps, warmup, rising):
    factors = [rate_factor(step, steps, warmup) for step in range(steps + 1)]
    assert factors[0] > 0 and factors[rising] == max(factors) == 1 and factors[-1] == pytest.approx(0)
    assert factors[:rising] == sorted(factors[:rising]) and factors[rising:] == sorted(factors[rising:])[::-1]
    train_echo(steps=steps, warmup=warmup, lr=0.5)
    assert metrics(tmp_path / "run", "lr") == pytest.approx([0.5 * factor for factor in factors[:-1]])


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
