"""`python -m train.reproduce`: scores by likelihood, tables and claims from results, bad input, all of it once."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from adapter.base.llama import load_base
from adapter.errors import AdapterError
from tests.tiny_models import endless_base
from train.evaluate.answerer import Answerer
from train.formats.scienceqa import COLUMNS, LETTERS, Problem, by_column, chance, question_text
from train.formats.scienceqa import problems as read_problems
from train.reproduce.__main__ import main
from train.reproduce.baselines import train_baseline
from train.reproduce.benchmark import Benchmark, answer, drawn_benchmark, open_benchmark, prompt
from train.reproduce.report import Figures, write_report
from train.reproduce.runs import FULL, STRENGTHS, Study, planned_runs

LAYERS = 30  # of the embedded base


def problem(number, answer=0, choices=("yes", "no"), hint="", image=None, grade=3, subject="natural science"):
    return Problem(
        id=str(number), question=f"Is it {number}?", choices=list(choices), answer=answer, hint=hint, image=image,
        grade=f"grade{grade}", subject=subject, split="test", images=Path(),
    )  # fmt: skip


@pytest.fixture
def problems():
    return [
        problem(1, 0, hint="It is."),
        problem(2, 1, image="image.png", subject="social science", grade=9),
        problem(3, 2, choices=("a", "b", "c"), subject="language science"),
        problem(4, 1, hint="It is not.", image="image.png", grade=12),
    ]


@pytest.fixture
def figures(problems):
    """Results in which every claim holds."""
    shown = problems * 60

    def result(right, loss=0.5, perplexity=20.0, **more):
        answers = {"right": right * 60, "loss": [loss] * 240}
        by_strength = {**{str(s): perplexity + s for s in STRENGTHS}, "0.0": 20.0, "1.0": perplexity}
        unrelated = {strength: [math.log(value)] * 3 for strength, value in by_strength.items()}
        results = {"test": answers, "val": answers, "seen": answers, "unrelated": unrelated}
        training = {"parameters": 1000, "seconds": 10.0, "tokens": 5000, "losses": [2.0, 1.0, 0.5], "bytes": 4000}
        made = {"precision": "bf16", "commit": "abc", "processor": "Z80", "torch": "2", "time": "2026-01-01 00:00"}
        return {**results, **training, **made, "accuracy": by_strength, "total_seconds": 60.0, **more}

    blind, sighted, wrong = [1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]
    groups = {
        "text": result(blind),
        "prompts": result(blind, perplexity=21.0),
        **dict.fromkeys(("keep", "tuned-keep"), result(blind, perplexity=20.5)),
        **dict.fromkeys(("lora", "gentle"), result(blind, perplexity=30.0, seconds=20.0)),
        "full": result(blind, perplexity=40.0, seconds=40.0, bytes=4_000_000),
        "third": result(wrong),
        "two-thirds": result([1, 1, 0, 0]),
        "zero": result(sighted),
        "random": result(wrong),
        "short": result(sighted, loss=0.8),
        "long": result(sighted, loss=3.2),
    }
    runs = {f"{group}-{seed}": found for group, found in groups.items() for seed in FULL.seeds}
    return Figures({"base-0": result([0, 0, 0, 0]), **runs}, shown, FULL, LAYERS)


def test_columns_are_those_of_the_paper(problems):
    row = {name: 100 * sum(part) / len(part) for name, part in by_column(problems, [1, 0, 1, 1]).items()}
    assert tuple(row) == COLUMNS
    assert row == {
        "NAT": 100, "SOC": 0, "LAN": 100, "TXT": 100, "IMG": 50, "NO": 100, "G1-6": 100, "G7-12": 50, "Avg": 75,
    }  # fmt: skip
    assert chance(problems)["LAN"] == pytest.approx(100 / 3)


def test_the_likeliest_of_a_problems_letters_is_its_answer(tiny_base, problems):
    found = answer(Answerer(tiny_base), problems, Benchmark({"test": tuple(problems)}), shown=False)
    for i, one in enumerate(problems):
        text = prompt(one).text.replace("\n", "")  # the tiny tokenizer has printable characters only
        assert text.endswith("Answer: (")
        ids = tiny_base.tokenizer(prompt(one).text).input_ids
        logs = tiny_base.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        letters = [tiny_base.tokenizer(letter).input_ids[0] for letter in LETTERS]
        assert found["right"][i] == (int(logs[letters][: len(one.choices)].argmax()) == one.answer)
        assert found["loss"][i] == pytest.approx(-logs[letters[one.answer]].item(), rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_baselines_train_every_parameter_of_theirs(method, tiny_folder, problems):
    base = load_base(str(tiny_folder), quantization="none", device="cpu", dtype=torch.float32)
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    examples = Benchmark({"train": tuple(problems)}).examples(False, 0, 0)
    found = train_baseline(base, examples, steps=3, batch_size=2, seed=0, lr=1e-3, rank=2 * (method == "lora"))
    assert len(found["losses"]) == 3 and found["tokens"] > 0
    after = dict(base.model.named_parameters())
    assert sum(p.numel() for p in after.values() if p.requires_grad) == found["parameters"]
    for name, parameter in before.items():
        now = after.get(name, after.get(name.replace(".weight", ".base_layer.weight")))  # where PEFT puts it
        assert torch.equal(parameter, now) != now.requires_grad, name
    moved = [p for name, p in after.items() if "lora_B" in name]  # begins at zero
    assert all(p.abs().max() > 0 for p in moved) and bool(moved) == (method == "lora")


def test_claims_follow_from_the_figures(figures):
    assert len(figures.claims()) == 20 and {held for held, *_ in figures.claims()} == {"yes"}
    exchanged, runs = {"prompts": "full", "full": "prompts", "zero": "text", "text": "zero"}, {}
    for name, result in figures.results.items():
        group, _, seed = name.rpartition("-")
        runs[f"{exchanged.get(group, group)}-{seed}"] = result
    held = [held for held, *_ in Figures(runs, figures.problems, FULL, LAYERS).claims()]
    assert held.count("NO") > 3 and held.count("yes") < 15
    moved = {name: {**result, "processor": name[-1]} for name, result in figures.results.items()}  # one a seed
    claims = [row for row in Figures(moved, figures.problems, FULL, LAYERS).claims() if "processors" in str(row)]
    assert claims and not any(held in ("yes", "NO") for held, *_ in claims)
    told = [p for p in figures.problems if p.hint and not p.image]
    assert 0 < len(figures._right("lora", "context")[0]) == len(told) < len(figures._right("lora", "blind")[0])


def test_rows_and_claims_of_runs_that_are_missing_are_left_out(figures, tmp_path):
    few = {name: result for name, result in figures.results.items() if name in ("base-0", "text-0", "zero-1")}
    partial = Figures(few, figures.problems, FULL, LAYERS)
    report = write_report(
        partial, tmp_path, command="it", base="tiny", data="Drawn.", sizes=FULL.problems, missing=["full-0"]
    )
    assert "**Not all runs are finished.** Missing: full-0." in report
    assert not any(held == "yes" for held, *_ in partial.claims())  # one seed tells nothing of the spread
    assert "| text-only adapter | 50.0 |" in report and "\n| full fine-tuning |" not in report
    assert "## What held" in report and "\nTable 6" not in report


def test_a_folder_of_that_name_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "benchmark").mkdir()
    (mine := tmp_path / "benchmark" / "mine.txt").write_text("mine")
    with pytest.raises(AdapterError, match="Give another folder"):
        drawn_benchmark(tmp_path / "benchmark")
    assert mine.read_text() == "mine"


def test_the_drawn_benchmark(drawn_folder):
    """Splits share no text and no picture."""
    seen: set[str] = set()
    for split, count in FULL.problems.items():
        read = read_problems(drawn_folder, split)
        assert len(read) == count and {p.split for p in read} == {split}
        own = {question_text(p) for p in read if p.image is None}
        own |= {hashlib.sha256(p.image.read_bytes()).hexdigest() for p in read if p.image is not None}
        assert len(own) == count and not own & seen
        seen |= own


@pytest.mark.parametrize("changes", [{"image": None}, {"image": "image.png"}, {}], ids=["none", "all", "lost"])
def test_problems_that_some_run_would_miss_are_said_before_the_first(changes, drawn_folder, tmp_path):
    found = json.loads((drawn_folder / "problems.json").read_text())
    (tmp_path / "problems.json").write_text(json.dumps({number: {**p, **changes} for number, p in found.items()}))
    shutil.copy(drawn_folder / "pid_splits.json", tmp_path)
    for split in FULL.problems if changes else ():
        for one in read_problems(tmp_path, split):
            if one.image is not None:
                one.image.parent.mkdir(parents=True)
                one.image.touch()
    with pytest.raises(AdapterError, match="needs training problems with and without pictures"):
        open_benchmark(tmp_path, FULL.problems)
    assert open_benchmark(drawn_folder, FULL.problems)


@pytest.mark.slow
def test_the_command_performs_every_run_once(tiny_folder, tmp_path, capsys, monkeypatch):
    """On a tiny base, and of the runs those of a few rows: the claims are about the command, not the figures."""

    def few_runs(plan, layers):
        return [r for r in planned_runs(plan, layers) if r.group in ("base", "begun", "prompts", "zero", "lora")]

    monkeypatch.setattr("train.reproduce.__main__.planned_runs", few_runs)
    out = tmp_path / "out"
    base = endless_base(tiny_folder, tmp_path / "base")  # whose context holds the problems
    command = ["--quick", "--base", str(base), "--out", str(out)]
    assert main([*command, "--report"]) == 1
    assert "error: No run of 'out' is finished" in capsys.readouterr().err
    assert main(command) == 0
    report = capsys.readouterr().out
    for heading in ("What held", "Table 2", "Table 3", "Forgetting"):
        assert heading in report
    assert (out / "reproduce.md").read_text() == report[report.index("# The paper's") :].rstrip("\n") + "\n"
    results = {path: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}
    assert len(results) == 1 + 4 * 2
    assert "| yes | at strength 0 the base is back, exactly |" in report

    # A second call performs no run; without its file a run is missing, and the report says so.
    monkeypatch.setattr(Study, "perform", None)
    assert main(command) == 0
    assert "Not all runs are finished" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in results} == results
    next(path for path in results if path.name.startswith("lora-1")).unlink()
    assert main([*command, "--report"]) == 0
    assert "Missing: lora-1." in capsys.readouterr().out
