"""`python -m train.reproduce`: scores by likelihood, tables and claims from results, bad input, all of it once."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import statistics

import pytest
import torch

from adapter.base.llama import load_base
from adapter.base.template import encode_answer, encode_prompt
from adapter.errors import AdapterError
from adapter.method.config import VisionConfig
from adapter.method.projection import GlobalProjection
from adapter.method.vision import VisualFeatures
from tests.tiny_models import TINY, endless_base
from train.evaluate.answerer import Answerer
from train.evaluate.perplexity import perplexity, text_windows, unrelated_text
from train.evaluate.scienceqa import chance, table_row
from train.formats.scienceqa import COLUMNS, LETTERS, Problem
from train.input.rows import IGNORED, Tokeniser
from train.reproduce import runs
from train.reproduce.__main__ import main
from train.reproduce.baselines import Baseline
from train.reproduce.benchmark import MAX_LENGTH, TEMPLATE, Benchmark, open_benchmark, prompt
from train.reproduce.intervals import difference, over_seeds, ratio
from train.reproduce.report import plot, write_report
from train.reproduce.runs import FULL, QUICK, STRENGTHS, Run, layer_shares, planned_runs, whiten
from train.reproduce.scenes.writer import write_benchmark
from train.reproduce.scoring import answer
from train.reproduce.tables import Figures, claims, steps_until_learnt

LAYERS = 30  # of the embedded base


def problem(number, answer=0, choices=("yes", "no"), hint="", image=None, grade=3, subject="natural science"):
    return Problem(str(number), f"Is it {number}?", choices, answer, hint, image, grade, subject, "", "test")


@pytest.fixture
def problems(tmp_path):
    return [
        problem(1, 0, hint="It is."),
        problem(2, 1, image=tmp_path / "image.png", subject="social science", grade=9),
        problem(3, 2, choices=("a", "b", "c"), subject="language science"),
        problem(4, 1, hint="It is not.", image=tmp_path / "image.png", grade=12),
    ]


@pytest.fixture
def figures(problems):
    """Results in which every claim holds."""
    shown = problems * 60

    def result(right, loss=0.5, perplexity=20.0, **more):
        answers = {"right": right * 60, "loss": [loss] * 240}
        by_strength = {**{str(s): perplexity + s for s in STRENGTHS}, "0.0": 20.0, "1.0": perplexity}
        results = {"test": answers, "val": answers, "seen": answers, "perplexity": by_strength}
        training = {"parameters": 1000, "seconds": 10.0, "tokens": 5000, "losses": [2.0, 1.0, 0.5], "bytes": 4000}
        made = {"precision": "bf16", "commit": "abc", "processor": "Z80", "torch": "2", "time": "2026-01-01 00:00"}
        return {**results, **training, **made, "accuracy": by_strength, "total_seconds": 60.0, **more}

    blind, sighted, wrong = [1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]
    groups = {
        "text": result(blind, perplexity=21.0),
        "keep": result(blind, perplexity=20.5),
        "lora": result(blind, perplexity=30.0, seconds=20.0),
        "full": result(blind, perplexity=40.0, seconds=40.0, bytes=4_000_000),
        "layers-10": result(wrong),
        "layers-20": result([1, 1, 0, 0]),
        "zero": result(sighted),
        "random": result(wrong),
        **{f"long-{steps}": result(sighted, loss=steps / 100) for steps in FULL.long},
    }
    runs = {f"{group}-{seed}": found for group, found in groups.items() for seed in FULL.seeds}
    return Figures({"base-0": result([0, 0, 0, 0]), **runs}, shown, FULL, LAYERS)


def changed(figures, change):
    """The same figures after `change(name, result)` of every trained run, which returns the new result."""
    results = {
        name: result if name == "base-0" else change(name, result) for name, result in figures.results.items()
    }
    return Figures(results, figures.problems, FULL, LAYERS)


def test_columns_are_those_of_the_paper(problems):
    row = table_row(problems, [1, 0, 1, 1])
    assert tuple(row) == COLUMNS
    assert row == {
        "NAT": 100, "SOC": 0, "LAN": 100, "TXT": 100, "IMG": 50, "NO": 100, "G1-6": 100, "G7-12": 50, "Avg": 75,
    }  # fmt: skip
    assert chance(problems)["LAN"] == pytest.approx(100 / 3)


def test_the_likeliest_of_a_problems_letters_is_its_answer(tiny_base, problems, tmp_path):
    benchmark = Benchmark(tmp_path, {}, {"test": tuple(problems)}, {})
    found = answer(Answerer(tiny_base), problems, benchmark)
    for i, one in enumerate(problems):
        text = prompt(one).text.replace("\n", "")  # the tiny tokenizer has printable characters only
        assert text.endswith("Answer: (")
        ids = tiny_base.tokenizer(prompt(one).text).input_ids
        logs = tiny_base.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        letters = [tiny_base.tokenizer(letter).input_ids[0] for letter in LETTERS]
        best = int(logs[letters][: len(one.choices)].argmax())
        assert found.right[i] == (best == one.answer)
        assert found.loss[i] == pytest.approx(-logs[letters[one.answer]].item(), rel=1e-4)


def test_strength_zero_scores_like_the_base(tiny_base, tiny_fingerprint, problems, tmp_path):
    from tests.tiny_models import random_adapter

    adapter = random_adapter(tiny_fingerprint, gate=2.0)
    benchmark = Benchmark(tmp_path, {}, {"test": tuple(problems)}, {})
    bare = answer(Answerer(tiny_base), problems, benchmark)
    assert answer(Answerer(tiny_base, adapter, 0.0), problems, benchmark) == bare
    assert answer(Answerer(tiny_base, adapter), problems, benchmark) != bare
    windows = text_windows(tiny_base, "some words of no relation " * 40)
    bare = perplexity(Answerer(tiny_base), windows)
    assert perplexity(Answerer(tiny_base, adapter, 0.0), windows) == bare
    assert perplexity(Answerer(tiny_base, adapter), windows) != bare


@pytest.mark.parametrize("method", ["full", "lora"])
def test_baselines_train_every_parameter_of_theirs(method, tiny_folder, problems, tmp_path):
    base = load_base(str(tiny_folder), quantization="none", device="cpu", dtype=torch.float32)
    baseline = Baseline(method, base)
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    examples = Benchmark(tmp_path, {}, {"train": tuple(problems)}, {}).examples(False, 0, 0)
    losses, _, tokens = baseline.train(examples, steps=3, batch_size=2, seed=0)
    assert len(losses) == 3 and tokens > 0
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_whitening_gives_all_features_one_scale():
    torch.manual_seed(0)
    projection = GlobalProjection(VisionConfig("x", feature_size=40, hidden=256), 16)
    shared = torch.randn(40) * 10  # what all pictures have in common drowns what they differ in
    levels = shared + torch.randn(500, 40) * torch.logspace(0, -1.5, 40)
    before = projection.mlp[0](projection.norm(levels)).std(0)
    whiten(projection, levels)
    after = projection.mlp[0](projection.norm(levels))
    assert after.mean(0).abs().max() < 1e-2
    assert before.mean() < 0.1 and 0.8 < after.std(0).mean() < 1.2
    assert projection(VisualFeatures(levels), None, []).abs().max() == 0  # as gently as the gates


def test_the_key_of_a_run_changes_with_every_setting():
    run = Run("zero", pictures=True, steps=10)
    keys = {run.key("a"), run.key("b"), run.key("a", base="other")}
    changes = {
        "init": "random",
        "seed": 1,
        "steps": 11,
        "layers": 3,
        "pictures": False,
        "questions": 9,
        "keep": 0.5,
    }
    for change in ({name: value} for name, value in (changes | {"keep": 0.5}).items()):
        keys.add(dataclasses.replace(run, **change).key("a"))
    assert len(keys) == 10
    assert Run("zero", pictures=True, steps=10).key("a") == run.key("a")


def test_planned_runs_are_those_that_the_tables_read(figures):
    assert sorted(run.name for run in planned_runs(FULL, LAYERS)) == sorted(figures.results)


@pytest.mark.parametrize("plan", [FULL, QUICK])
def test_every_row_has_every_seed_and_the_first_comes_first(plan):
    base, *trained = planned_runs(plan, LAYERS)
    assert base.name == "base-0"
    rows = {run.group for run in trained}
    assert sorted((run.group, run.seed) for run in trained) == sorted(itertools.product(rows, plan.seeds))
    assert {run.group for run in trained[: len(rows)]} == rows  # whoever stops early has a figure for every row


def test_a_third_two_thirds_all():
    assert layer_shares(30) == (10, 20, 30)


def test_claims_follow_from_the_figures(figures):
    assert [c.text for c in claims(figures) if c.held is not True] == []


def test_no_claim_holds_where_all_runs_are_alike(figures):
    alike = {**figures.results["text-0"], **{"test": figures.results["base-0"]["test"]}, "bytes": 1}
    alike["perplexity"] = dict.fromkeys(alike["perplexity"], 50.0)
    held = [c.text for c in claims(changed(figures, lambda *_: alike)) if c.held]
    # Nothing is lost where there is nothing to lose.
    assert all("points (table" in text or "no accuracy" in text for text in held), held


def test_what_the_seeds_disagree_on_is_not_decided(figures):
    """One training seed of three is no better than random-init, one learns nothing, one has it all."""
    shares = {"zero-0": 0, "zero-1": 1, "zero-2": 4}

    def change(name, result):
        right = [int(i % 4 < shares[name]) for i in range(240)] if name in shares else result["test"]["right"]
        return {**result, "test": {**result["test"], "right": right}}

    (claim,) = [c for c in claims(changed(figures, change)) if "zero-init" in c.text]
    assert claim.held is None and claim.markdown().startswith("| not decided |")


def test_rows_and_claims_of_runs_that_are_missing_are_left_out(figures, tmp_path):
    few = {name: result for name, result in figures.results.items() if name in ("base-0", "text-0", "zero-1")}
    partial = Figures(few, figures.problems, FULL, LAYERS)
    report = write_report(
        partial, tmp_path, command="it", base="tiny", data="Drawn.", sizes=FULL.counts, missing=["full-0"]
    )
    assert "**Not all runs are finished.** Missing: full-0." in report
    assert not any(claim.held for claim in claims(partial))  # one seed tells nothing of the spread
    assert "| text-only adapter | 50.0 |" in report and "\n| full fine-tuning |" not in report
    assert "## What held" in report and "\nTable 6" not in report


def test_intervals_over_seeds_are_students():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.3027 * (1 / 3) ** 0.5, rel=1e-4)
    assert over_seeds([1.0]).half is None and over_seeds([1.0]).exceeds(0.5) is None
    assert found.exceeds(-1) is True and found.exceeds(0) is None and found.exceeds(5) is False


def test_a_difference_counts_the_spread_of_seeds_and_of_questions():
    from scipy.stats import ttest_ind, ttest_rel

    ours, theirs = [[1.0], [2.0], [4.0]], [[0.0], [1.0], [0.5]]
    welch = ttest_ind([1, 2, 4], [0, 1, 0.5], equal_var=False).confidence_interval(0.95)
    found = difference(ours, theirs)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), rel=1e-6)
    # A base that was not trained has one "seed": only the questions spread, each its own control.
    first, second = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    paired = ttest_rel(first, second).confidence_interval(0.95)
    found = difference([first], [second])
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high), rel=1e-6)
    both = difference([first, second, first], [second])
    assert (
        both.half
        > difference([[statistics.fmean(q) for q in zip(first, second, first, strict=True)]], [second]).half
    )
    found = ratio([2.0, 2.0], [1.0, 1.0])
    assert found.mean == pytest.approx(math.log(2)) and found.half == 0


def test_scores_use_the_tokens_of_training(tiny_base, problems, tmp_path):
    benchmark = Benchmark(tmp_path, {}, {"train": tuple(problems)}, {})
    tokeniser = Tokeniser(tiny_base.tokenizer, TEMPLATE, MAX_LENGTH)
    for example in itertools.islice(benchmark.examples(False, 0, 0), 8):
        row = tokeniser.row(example)
        scored = encode_prompt(tiny_base.tokenizer, list(example.messages), TEMPLATE)
        letter = encode_answer(tiny_base.tokenizer, example.answer)[0]
        assert row.ids[: len(scored) + 1] == [*scored, letter]
        assert row.labels[: len(scored) + 1] == [*[IGNORED] * len(scored), letter]


def test_tables_as_csv_and_markdown(figures):
    tables = {table.name: table for table in figures.tables()}
    assert set(tables) == {"table2", "table3", "table4", "table5", "table6", "forgetting", "strengths"}
    rows = list(csv.DictReader(tables["table2"].csv().splitlines()))
    assert next(row[""] for row in rows) == "random choice"
    assert float(rows[3]["IMG"]) == 100 and float(rows[2]["IMG"]) == 0
    assert float(rows[3]["IMG ±"]) == 0 and rows[0]["IMG ±"] == ""
    assert "| multi-modal adapter | 100.0 ± 0.0 |" in tables["table2"].markdown()
    for table in tables.values():
        assert all(len(row) == len(table.head) for row in table.rows)
        assert table.markdown().count("\n|") == len(table.rows) + 2


def test_steps_until_learnt_are_counted_on_the_smoothed_loss():
    assert steps_until_learnt([1.0, 0.1, *[1.0] * 10]) == 12  # one lucky step is none
    assert steps_until_learnt([1.0] + [0.0] * 20) == 10  # 0.9 ** 9 < 0.4


def test_plots_are_written(figures, tmp_path):
    from PIL import Image

    made = plot(figures, tmp_path)
    assert {path.stem for path in made} == {"table2", "table4", "figure5", "table6", "forgetting"}
    for path in made:
        assert Image.open(path).size[0] > 500


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--scienceqa", "nowhere"], "There is no folder 'nowhere'"),
        (["--scienceqa", "."], "holds no problems.json"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--steps", "1"], "--steps must be at least 2"),
        (["--quick", "--report"], "No run of 'out' is finished"),
        (["--quick", "--base", "nowhere"], "'nowhere' is no folder with a config.json"),
    ],
)
def test_bad_input_is_one_line(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*given, "--out", "out"]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_missing_and_empty_splits_are_named(tmp_path, capsys):
    (tmp_path / "problems.json").write_text("{}")
    for splits in ({"train": [], "val": []}, {"train": [], "val": [], "test": []}):
        (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
        assert main(["--scienceqa", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
        assert "pid_splits.json" in capsys.readouterr().err


def test_a_test_split_of_pictures_only_is_refused(tmp_path, capsys):
    data = write_benchmark(tmp_path / "data", {"train": 8, "val": 8, "test": 16})
    every, splits = (json.loads((data / name).read_text()) for name in ("problems.json", "pid_splits.json"))
    splits["test"] = [number for number in splits["test"] if every[number]["image"]]
    assert splits["test"]
    (data / "pid_splits.json").write_text(json.dumps(splits))
    assert main(["--quick", "--scienceqa", str(data), "--out", str(tmp_path / "out")]) == 1
    assert "the tables need both kinds" in capsys.readouterr().err


def test_real_data_are_read_evenly_over_the_split(tmp_path, monkeypatch, capsys):
    """The drawn benchmark, laid out as ScienceQA is published: images/<split>/<id>/image.png."""
    data = write_benchmark(tmp_path / "ScienceQA", {"train": 60, "val": 20, "test": 60})
    (data / "images").mkdir()
    for split in ("train", "val", "test"):
        (data / split).rename(data / "images" / split)
    seen = []

    def perform_all(runs, benchmark, *_):
        seen.append(benchmark)
        raise AdapterError("enough")

    monkeypatch.setattr("train.reproduce.__main__.perform_all", perform_all)
    assert main(["--quick", "--scienceqa", str(data), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: enough\n"
    (benchmark,) = seen
    assert {split: len(part) for split, part in benchmark.splits.items()} == QUICK.counts
    ids = [int(p.id) for p in benchmark.splits["test"]]
    assert ids == sorted(set(ids)) and ids[-1] >= 60 + 20 + 58  # to the end of the split
    shown = [p for part in benchmark.splits.values() for p in part if p.has_image]
    assert set(benchmark.features) == {p.id for p in shown}
    levels = torch.cat([benchmark.features[p.id].levels for p in shown])
    assert len(torch.unique(levels, dim=0)) == len(levels)

    # Examples come with their pictures or without, each once an epoch, in an order of the seed.
    first, again, blind = (
        list(itertools.islice(benchmark.examples(pictures, 16, seed=1), 32)) for pictures in (True, True, False)
    )
    text = [e.messages for e in first]
    assert text == [e.messages for e in again] == [e.messages for e in blind]
    assert len(set(text[:16])) == 16 and set(text[:16]) == set(text[16:]) and text[:16] != text[16:]
    assert any(e.features is not None for e in first) and all(e.features is None for e in blind)

    (data / "images" / "test" / next(p.id for p in shown if p.split == "test") / "image.png").unlink()
    assert main(["--quick", "--scienceqa", str(data), "--out", str(tmp_path / "other")]) == 1
    assert "There is no picture at" in capsys.readouterr().err


def test_unrelated_text_needs_no_download():
    assert len(unrelated_text()) > 20_000


@pytest.mark.slow
def test_the_command_performs_every_run_once(tiny_folder, tmp_path, capsys, monkeypatch):
    """On a tiny base: the claims are about the command, not about the figures."""
    out = tmp_path / "out"
    base = endless_base(tiny_folder, tmp_path / "base")  # whose context holds the problems
    command = ["--quick", "--base", str(base), "--out", str(out)]
    assert main(command) == 0
    report = capsys.readouterr().out
    for heading in ("What held", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Forgetting"):
        assert heading in report
    assert (out / "reproduce.md").read_text() == report[report.index("# The paper's") :].rstrip("\n") + "\n"
    for name in ("table2", "table3", "table4", "table5", "table6", "forgetting", "strengths"):
        assert (out / "reproduce" / f"{name}.csv").stat().st_size > 50
    results = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert len(results) == len(planned_runs(QUICK, TINY["num_hidden_layers"]))
    assert "| yes | at strength 0 the base is back, exactly |" in report

    # A second call performs no run; without its file a run is missing, and the report says so.
    monkeypatch.setattr(runs, "ProcessPoolExecutor", None)
    assert main(command) == 0
    assert "Not all runs are finished" not in capsys.readouterr().out
    (other,) = (path for path in results if path.name.startswith("lora-1"))
    text = other.read_text()
    other.unlink()
    assert main([*command, "--report"]) == 0
    assert "Missing: lora-1." in capsys.readouterr().out
    other.write_text(text)
    results[other] = other.stat().st_mtime_ns
    assert {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()} == results

    # Features of the pictures come from the file.
    benchmark = open_benchmark(out / f"benchmark-{QUICK.train}-7", out, QUICK.counts)
    assert len(benchmark.features) == sum(p.has_image for part in benchmark.splits.values() for p in part)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero-0", "full-0"])
def test_a_run_on_the_real_base(name, tmp_path):
    plan = dataclasses.replace(QUICK, steps=2, train=8, val=4, test=12, few=4, text=400, batch_size=2)
    data = write_benchmark(tmp_path / "data", plan.counts | {"test": 32})
    benchmark = open_benchmark(data, tmp_path, plan.counts)
    run = next(run for run in planned_runs(plan, LAYERS) if run.name == name)
    results = json.loads(runs.perform(run, benchmark, tmp_path, unrelated_text()[: plan.text]).read_text())
    assert len(results["losses"]) == 2 and len(results["test"]["right"]) == 12
    assert all(value > 1 for value in results["perplexity"].values())
