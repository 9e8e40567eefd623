"""`python -m train.evaluate` as a program: its table and JSON, what it refuses, and lm-eval's tasks through it."""

import json
import shutil

import numpy as np
import pytest
import torch

from adapter.base.llama import base_fingerprint, load_base
from adapter.base.template import Message, encode_answer
from adapter.method.checkpoint import adapter_digest, load_adapter, save_adapter
from adapter.method.deltas import TuningConfig
from tests.tiny_models import random_adapter
from tests.train.recipes.rows import roomy
from train.evaluate.__main__ import main
from train.evaluate.answerer import Answerer
from train.evaluate.report import code_version
from train.input.rows import IGNORED

MATCH = ("exact-match", "--max-new-tokens", 3)
ROWS = [
    {"question": "What do bees make?", "choices": ["honey", "iron", "paper money"], "answer": 0},
    {"question": "How many legs has a spider?", "choices": ["six", "eight"], "answer": 1},
    {"question": "Which is a colour?", "choices": ["table", "red", "quickly"], "answer": 1},
    {"question": "Where?", "choices": ["up", "down the stairs", "in it", "x"], "answer": 2},
]


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """The tiny base with room for long prompts, adapters for it, and data."""
    folder = tmp_path_factory.mktemp("evaluate")
    fingerprint = base_fingerprint(str(roomy(tiny_folder, folder / "base")))
    save_adapter(random_adapter(fingerprint, gate=2.0), folder / "poet")
    save_adapter(random_adapter(fingerprint, 1, tuning=TuningConfig(64, bias=True)), folder / "tuned")
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "asked.jsonl").write_text('{"prompt": "hi", "answer": "ho"}\n{"prompt": "ha", "answer": "he"}\n')
    return folder


@pytest.fixture
def run(folder, capsys):
    def run(*words, adapters=("poet",), code=0):
        named = [word for name in adapters for word in ("--adapter", str(folder / name))]
        base = ["--base", str(folder / "base"), "--device", "cpu", "--precision", "fp32"]
        assert main([*map(str, words), *base, *named]) == code
        return capsys.readouterr()

    return run


def test_one_command_one_table_one_json(run, folder, tmp_path):
    files = [tmp_path / f"{i}.json" for i in range(3)]
    printed = [
        run(*MATCH, folder / "asked.jsonl", "--out", file, "--seed", 5, adapters=("poet", "tuned")).out
        for file in files[:2]
    ]
    first, second = (json.loads(file.read_text()) for file in files[:2])
    assert printed[0] == printed[1] and first["systems"] == second["systems"]
    bare, poet, tuned = first["systems"]
    assert (bare["name"], poet["name"], tuned["name"]) == ("bare base", "poet", "tuned")
    assert poet["digest"] == adapter_digest(folder / "poet") != tuned["digest"]
    assert first["seed"] == 5 and first["precision"] == "fp32 on cpu" and first["commit"] == code_version()
    assert first["command"].startswith("python -m train.evaluate exact-match") and first["base"]["name"] == "base"
    _, _, *lines = [line.split("|")[1:-1] for line in printed[0].splitlines() if line[0] == "|"]
    assert [line[1].strip() for line in lines] == ["bare base", "poet", "tuned"] and lines[0][-1].strip() == "2"
    assert "templates: bare base chat, poet chat" in printed[0] and first["processor"] in printed[0]
    run(*MATCH, folder / "asked.jsonl", "--limit", 1, "--out", files[2])
    _, few = json.loads(files[2].read_text())["systems"]
    twice = run(*MATCH, folder / "asked.jsonl", "--limit", 1, adapters=("poet", "tuned/../poet")).out
    assert f"| {folder}/poet" in twice and f"| {folder}/tuned/../poet" in twice
    assert few["name"] == "poet" and few["figures"]["answers"]["exact match"]["n"] == 1


def test_what_was_measured_outlives_an_adapter_that_fails(run, folder, tmp_path):
    config = json.loads((shutil.copytree(folder / "poet", folder / "held") / "config.json").read_text())
    (folder / "held" / "config.json").write_text(json.dumps({**config, "form": "start: ((("}))
    asked, out = folder / "asked.jsonl", tmp_path / "out.json"
    printed = run(*MATCH, asked, "--out", out, adapters=("held", "poet"), code=1)
    assert "Not measured: held." in printed.err and "| 0 (0 to 65.8) |" in printed.out  # Wilson's of 0 of 2
    assert "held could not be measured: asked.jsonl, line 1: The form" in printed.out, printed.out
    assert [s["name"] for s in json.loads(out.read_text())["systems"]] == ["bare base", "poet"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["forgetting", "--adapter", "nobody"], "There is no adapter 'nobody'. Choose one of: "),
        (["exact-match", "no.jsonl"], "There is no file or folder 'no.jsonl'."),
        (["exact-match", "no.jsonl", "--seed", "-1"], "--seed must be at least 0, got -1."),
        (["exact-match", "no.jsonl", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0."),
        (["lm-eval", "--tasks", "a", "--shots", "-1"], "--shots must be at least 0, got -1."),
        (["forgetting", "--adapter", "tests/train"], "'train' is not an adapter: "),
    ],
)
def test_refusals_are_one_line(words, sentence, capsys):
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1


TASK = """task: quiz{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/quiz.jsonl}}, cache_dir: {cache}}}
test_split: test
output_type: {output}
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
CHOICES = 'doc_to_target: answer\ndoc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n'
ANSWERS = """doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""


@pytest.mark.slow
def test_lm_eval_agrees_with_the_models_own_likelihoods(run, folder, tmp_path):
    pytest.importorskip("lm_eval")
    from train.evaluate.harness import HarnessModel

    for kind, output, rest in (("", "multiple_choice", CHOICES), ("gen", "generate_until", ANSWERS)):
        text = TASK.format(kind=kind, output=output, folder=folder, cache=tmp_path / "cache")
        (tmp_path / f"quiz{kind}.yaml").write_text(text + rest)
    for group, task in (("inner", "quiz"), ("outer", "inner")):
        text = f"group: {group}\ntask: [{task}]\naggregate_metric_list: [{{metric: acc}}]\n"
        (tmp_path / f"{group}.yaml").write_text(text)
    run("lm-eval", "--tasks", "outer,quizgen", "--include", tmp_path, "--template", "--out", tmp_path / "out.json")
    base = load_base(str(folder / "base"), quantization="none", device="cpu", dtype=torch.float32)
    adapters = (None, load_adapter(folder / "poet", base.fingerprint))
    systems = json.loads((tmp_path / "out.json").read_text())["systems"]
    assert systems[0]["figures"]["outer"]["acc"]["n"] == len(ROWS)
    accuracies = set()
    for system, adapter in zip(systems, adapters, strict=True):
        answerer = Answerer(base, adapter)
        by_sum, by_length = [], []
        for row in ROWS:
            prompt = answerer.encode((Message("user", row["question"]),))
            targets = [encode_answer(base.tokenizer, text, answerer.template)[:-1] for text in row["choices"]]
            labels = [[IGNORED] * len(prompt) + target for target in targets]
            scores = answerer.token_scores([prompt + target for target in targets], labels)
            sums = np.array([float(score.logprobs.sum()) for score in scores])
            by_sum.append(sums.argmax() == row["answer"])
            by_length.append((sums / [len(text) for text in row["choices"]]).argmax() == row["answer"])
        found = system["figures"]["quiz"]
        assert found["acc"]["value"] == pytest.approx(np.mean(by_sum))
        assert found["acc_norm"]["value"] == pytest.approx(np.mean(by_length))
        assert found["acc"]["n"] == 4 and found["acc"]["interval"] == "lm-eval"
        assert system["figures"]["quizgen"]["exact_match"]["n"] == 4
        accuracies |= {found["acc"]["value"], found["acc_norm"]["value"]}
    assert len(accuracies) > 1
    model, question = HarnessModel(Answerer(base, None)), {"role": "user", "content": "Which?"}
    prompt = model.apply_chat_template([question])
    assert model.tok_encode(prompt) == list(model.answerer.encode((Message("user", "Which?"),)))
    begun = [question, {"role": "assistant", "content": "It is"}]
    assert model.apply_chat_template(begun, False) == prompt + "It is"
