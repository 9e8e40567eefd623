"""Whole runs as people start them: on files, in processes of their own, killed, resumed, doubled and starved."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from adapter.method.checkpoint import CONFIG, WEIGHTS, load_adapter
from train.config import TrainConfig
from train.data import Example
from train.job import Stopped, train
from train.loop import new_adapter
from train.run_folder import METRICS, STATE, MetricsWriter, RunFolder, TrainError

ROOT = Path(__file__).parents[2]
WORDS = ("ab", "cd", "ef", "gh")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Text rows and picture rows, one picture that is none, one record that is broken."""
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
def command(tiny_folder, data):
    """The arguments of a run on the tiny base; steps are taken one at a time by `--config`-less key=value."""

    def make(out: Path, *more: str, processes: int = 1) -> list[str]:
        launch = [] if processes == 1 else [
            "accelerate.commands.launch", "--cpu", f"--num_processes={processes}", "--main_process_port=0", "-m",
        ]  # fmt: skip
        return [
            sys.executable, "-m", *launch, "train", f"data={data}", "name=tiny", f"--base={tiny_folder}",
            "precision=fp32", "template=raw", "batch_size=6", "prompt_length=4", "steps=60", "eval_every=10",
            "lr=0.02", "gate_lr=0.05", "vision.projection=global", "vision.hidden=16", f"--out={out}", *more,
        ]  # fmt: skip

    return make


def run(arguments: list[str], **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, **kwargs
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def figures(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in figures(folder) if "loss" in line]


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_ends_bit_for_bit_as_if_never_stopped(command, tmp_path):
    whole = run(command(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert "skipped" in whole.stdout and "bad.png" in whole.stdout and "line 78" in whole.stdout
    out = tmp_path / "killed"
    for life, steps in enumerate((13, 41)):
        arguments = command(out, "save_every=4", *(["--resume"] if life else []))
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda steps=steps: (out / METRICS).exists() and len(losses_so_far(out)) >= steps)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        assert (out / STATE).exists()
    ended = run(command(out, "save_every=4", "--resume"))
    assert ended.returncode == 0, ended.stderr
    assert "going on after step" in ended.stdout
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert losses(out) == losses(tmp_path / "whole")
    assert not (out / STATE).exists()
    assert "holds no unfinished run" in run(command(out, "--resume")).stderr


def losses_so_far(folder: Path) -> list[str]:
    return [line for line in (folder / METRICS).read_text().splitlines() if '"loss"' in line]


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.slow
def test_two_processes_equal_one(command, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert (alone := run(command(one))).returncode == 0, alone.stderr
    assert (both := run(command(two, processes=2))).returncode == 0, both.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-3, abs=1e-4)
    left, right = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-2, atol=1e-3)
    held_out = [[line["held_out_loss"] for line in figures(f) if "held_out_loss" in line] for f in (one, two)]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-3)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(command, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, "eval_every=1000", "steps=4000"),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: (out / METRICS).exists() and len(losses_so_far(out)) >= 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert (out / STATE).stat().st_size < 2_000_000


@pytest.mark.slow
def test_a_full_disk_costs_a_save_and_not_the_run(command, tmp_path):
    """Files may not grow over 200 kB: state.pt is larger, and the adapter is not."""
    out = tmp_path / "run"

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    ended = run(command(out, "steps=20"), preexec_fn=small_disk)
    assert "cannot be saved" in ended.stdout and "Training goes on" in ended.stdout
    assert ended.returncode == 1 and "free some room" in ended.stderr
    assert load_adapter(out).gates.abs().max() > 0


# In this process, on the tiny base.


CONFIG_ = TrainConfig("echo", steps=12, batch_size=4, prompt_length=4, template="raw", eval_every=4, held_out=8)


def examples(split):
    from adapter.base.template import Message

    rng = random.Random(split)
    count = 10**6 if split == "train" else 16
    return (Example((Message("user", f"{w}>"),), w) for w in (rng.choice(WORDS) for _ in range(count)))


def test_a_folder_in_use_is_refused(tiny_base, tmp_path):
    other = RunFolder(tmp_path / "run")
    other.open(resume=False)
    with pytest.raises(TrainError, match="in use by another run"):
        train(CONFIG_, tiny_base, examples, tmp_path / "run", new_adapter(CONFIG_, tiny_base))
    other.close()


def test_a_folder_that_cannot_be_written_is_named(tiny_base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot be written"):
        train(CONFIG_, tiny_base, examples, tmp_path / "file" / "run", new_adapter(CONFIG_, tiny_base))


def stopped_run(base, folder, monkeypatch):
    """A run that is asked to stop after its fifth step."""
    import train.job

    record, taken = MetricsWriter.record, []

    def counting(self, step, **figures):
        record(self, step, **figures)
        taken.append(1)
        if len(taken) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.job.MetricsWriter, "record", counting)
    with pytest.raises(Stopped, match="--resume"):
        train.job.train(CONFIG_, base, examples, folder, new_adapter(CONFIG_, base))
    monkeypatch.undo()


def test_an_unfinished_run_is_neither_overwritten_nor_mixed_up(tiny_base, tmp_path, monkeypatch):
    stopped_run(tiny_base, tmp_path / "run", monkeypatch)
    fresh = new_adapter(CONFIG_, tiny_base)
    with pytest.raises(TrainError, match="holds an unfinished run"):
        train(CONFIG_, tiny_base, examples, tmp_path / "run", fresh)
    other = TrainConfig(**{**vars(CONFIG_), "lr": 0.5})
    with pytest.raises(TrainError, match="other settings: lr"):
        train(other, tiny_base, examples, tmp_path / "run", fresh, resume=True)
    trained, loss = train(CONFIG_, tiny_base, examples, tmp_path / "run", fresh, resume=True)
    whole, whole_loss = train(CONFIG_, tiny_base, examples, tmp_path / "whole", new_adapter(CONFIG_, tiny_base))
    assert loss == whole_loss and torch.equal(trained.prompts, whole.prompts)


def test_a_damaged_state_is_named(tiny_base, tmp_path, monkeypatch):
    stopped_run(tiny_base, tmp_path / "run", monkeypatch)
    state = tmp_path / "run" / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainError, match=r"state.pt' cannot be read"):
        train(CONFIG_, tiny_base, examples, tmp_path / "run", new_adapter(CONFIG_, tiny_base), resume=True)


def test_the_best_is_kept_and_training_stops_when_nothing_improves(tiny_base, tmp_path):
    config = TrainConfig(**{**vars(CONFIG_), "steps": 200, "lr": 1.0, "gate_lr": 1.0, "patience": 2})
    _, loss = train(config, tiny_base, examples, tmp_path / "run", new_adapter(config, tiny_base))
    seen = [line["held_out_loss"] for line in figures(tmp_path / "run") if "held_out_loss" in line]
    assert loss == min(seen)
    assert len(seen) == seen.index(min(seen)) + 3 < 50


def test_gradients_that_are_not_finite_are_left_out_and_then_end_the_run(tiny_base, tmp_path, monkeypatch, capsys):
    import train.job

    adapter = new_adapter(CONFIG_, tiny_base)
    prompts = adapter.prompts.detach().clone()
    monkeypatch.setattr(
        train.job,
        "total_loss",
        lambda model, adapter, *_: (adapter.prompts.sum() + adapter.gates.sum()) * float("nan"),
    )
    with pytest.raises(TrainError, match="not finite"):
        train.job.train(CONFIG_, tiny_base, examples, tmp_path / "run", adapter)
    assert torch.equal(adapter.prompts, prompts)
    assert "the step is left out" in capsys.readouterr().out


def test_gates_that_do_not_move_are_told(tiny_base, tmp_path, capsys):
    config = TrainConfig(**{**vars(CONFIG_), "steps": 50, "gate_lr": 1e-9})
    train(config, tiny_base, examples, tmp_path / "run", new_adapter(config, tiny_base))
    assert "gates have not moved" in capsys.readouterr().out


def test_gates_that_saturate_are_told(tiny_base, tmp_path, capsys):
    config = TrainConfig(**{**vars(CONFIG_), "gate_lr": 2.0})
    train(config, tiny_base, examples, tmp_path / "run", new_adapter(config, tiny_base))
    assert "saturated" in capsys.readouterr().out


def test_pieces_of_a_step_equal_the_step(tiny_base, tmp_path):
    results = []
    for pieces in (1, 3):
        config = TrainConfig(**{**vars(CONFIG_), "batch_size": 6, "accumulate": pieces})
        adapter, _ = train(config, tiny_base, examples, tmp_path / str(pieces), new_adapter(config, tiny_base))
        results.append(adapter)
    torch.testing.assert_close(results[0].gates, results[1].gates, rtol=1e-3, atol=1e-4)


def test_nothing_but_the_adapter_is_left_when_a_run_has_ended(tiny_base, tmp_path):
    train(CONFIG_, tiny_base, examples, tmp_path / "run", new_adapter(CONFIG_, tiny_base))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names - {".lock"} == {CONFIG, WEIGHTS, METRICS}
